//! State files: written whole or not at all.

use crate::ClusterError;
use rustix::fs::{FlockOperation, flock};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

/// Makes a directory (and its parents) that only root may enter.
///
/// # Errors
/// As mkdir(2).
pub fn private_dir(path: &Path) -> Result<(), ClusterError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(ClusterError::file("make directory", path))
}

/// Writes a file by a temporary one beside it, fsync and rename, readable for root only. A file that has this content
/// already is left alone; says whether it was written.
///
/// # Errors
/// Any step fails; the old content is then still there.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<bool, ClusterError> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    let fail = || ClusterError::file("write", path);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let tmp = path.with_file_name(name);
    let result = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&tmp)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&tmp, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    })();
    if result.is_err() {
        let _ = fs::remove_file(&tmp);
    }
    result.map(|()| true).map_err(fail())
}

/// Writes a value as JSON, as [`write_atomically`].
///
/// # Errors
/// As there.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<bool, ClusterError> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|e| ClusterError::Damaged { path: path.to_owned(), why: e.to_string() })?;
    text.push(b'\n');
    write_atomically(path, &text)
}

/// Reads a JSON state file; `None` when it is not there.
///
/// # Errors
/// It cannot be read or is damaged.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ClusterError> {
    let text = match fs::read(path) {
        Ok(t) => t,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(ClusterError::file("read", path)(e)),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|e| ClusterError::Damaged { path: path.to_owned(), why: e.to_string() })
}

/// Takes an exclusive lock on a file, made when missing; `None` when somebody else holds it. Held until dropped.
///
/// # Errors
/// The file cannot be opened.
pub fn try_lock(path: &Path) -> Result<Option<File>, ClusterError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(ClusterError::file("open lock", path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(ClusterError::file("lock", path)(e.into())),
    }
}

/// The last `lines` lines of a file, reading at most its last 64 KiB; empty when it is not there.
pub fn tail(path: &Path, lines: usize) -> String {
    use std::io::{Read, Seek, SeekFrom};
    const READ_BYTES: u64 = 64 << 10;
    let mut text = Vec::new();
    if let Ok(mut f) = File::open(path) {
        let size = f.metadata().map_or(0, |m| m.len());
        let _ = f.seek(SeekFrom::Start(size.saturating_sub(READ_BYTES)));
        let _ = f.take(READ_BYTES).read_to_end(&mut text);
    }
    let text = String::from_utf8_lossy(&text);
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
    fn a_lock_is_held_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = try_lock(&path).unwrap();
        assert!(first.is_some() && try_lock(&path).unwrap().is_none());
        drop(first);
        assert!(try_lock(&path).unwrap().is_some());
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
