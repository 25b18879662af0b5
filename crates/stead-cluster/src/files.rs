//! State files of clusters, through `stead-files`, with errors that name the file.

use crate::ClusterError;
use serde::{Serialize, de::DeserializeOwned};
use std::{fs, io, path::Path, time::Duration};
use stead_files::{Durability, Lock};

/// Creates a directory and its parents that only their owner may enter.
///
/// # Errors
/// As mkdir(2).
pub fn private_dir(path: &Path) -> Result<(), ClusterError> {
    stead_files::private_dir(path).map_err(ClusterError::file("make directory", path))
}

/// Writes a file atomically, readable only for its owner, on the disk when this returns. A file that already has this
/// content is left unchanged. Returns whether it was written.
///
/// # Errors
/// A step fails; the file then has its old content.
pub fn write(path: &Path, content: &[u8]) -> Result<bool, ClusterError> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    stead_files::write(path, content, Durability::Durable).map_err(ClusterError::file("write", path))?;
    Ok(true)
}

/// Writes a value as JSON, as [`write`].
///
/// # Errors
/// As [`write`].
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<bool, ClusterError> {
    let text = stead_files::to_json(value).map_err(ClusterError::file("write", path))?;
    write(path, &text)
}

/// Reads a JSON state file; `None` when it does not exist.
///
/// # Errors
/// It cannot be read or is damaged.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ClusterError> {
    stead_files::read_json(path).map_err(|e| match e.kind() {
        io::ErrorKind::InvalidData => ClusterError::Damaged { path: path.to_owned(), why: e.to_string() },
        _ => ClusterError::file("read", path)(e),
    })
}

/// A command that was killed while it started a process leaves its lock to that process until exec. That takes a
/// millisecond, on an overloaded host up to this long.
const INHERITED_LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Takes an exclusive lock on a file, created when missing; `None` when another process keeps holding it. Held until
/// dropped.
///
/// # Errors
/// The file cannot be opened.
pub fn try_lock(path: &Path) -> Result<Option<Lock>, ClusterError> {
    Lock::take(path, INHERITED_LOCK_PATIENCE).map_err(ClusterError::file("lock", path))
}

/// Waits for an exclusive lock on a file, created when missing. Held until dropped.
///
/// # Errors
/// The file cannot be opened.
pub fn wait_lock(path: &Path) -> Result<Lock, ClusterError> {
    Lock::wait(path).map_err(ClusterError::file("lock", path))
}

/// The last `lines` lines of a file, reading at most its last 64 KiB; empty when it does not exist.
pub fn tail(path: &Path, lines: usize) -> String {
    const READ_BYTES: u64 = 64 << 10;
    let text = stead_files::tail(path, READ_BYTES);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_whole_and_only_when_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        assert!(write_json(&path, &[1, 2]).unwrap());
        assert!(!write_json(&path, &[1, 2]).unwrap());
        assert_eq!(read_json::<Vec<u8>>(&path).unwrap(), Some(vec![1, 2]));
        fs::write(&path, "{").unwrap();
        assert!(matches!(read_json::<Vec<u8>>(&path), Err(ClusterError::Damaged { .. })));
        assert_eq!(read_json::<u8>(&dir.path().join("no")).unwrap(), None);
    }

    #[test]
    fn tail_gives_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, (0..10_000).map(|i| format!("line {i}\n")).collect::<String>()).unwrap();
        assert_eq!(tail(&path, 2), "line 9998\nline 9999");
        assert_eq!(tail(&dir.path().join("no"), 2), "");
    }
}
