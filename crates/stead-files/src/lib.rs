//! State files: written whole or not at all, readable by root only, guarded by locks that end with their process.
//!
//! Owns how a file gets its content and what a lock means. Does not own what is in the files, or where they are.

use rustix::fs::{FlockOperation, flock};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    time::{Duration, Instant},
};

/// Pause between two tries for a lock.
const LOCK_POLL: Duration = Duration::from_millis(5);

/// Whether a file must outlive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It is what others go by later: on the disk before it gets its name.
    Durable,
    /// It is believed only while a lock is held, and no lock outlives a power cut.
    Volatile,
}

/// Makes a directory and those above it, for root only.
///
/// # Errors
/// As mkdir(2).
pub fn private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Writes a file whole, mode 0600: whoever reads sees the old content or the new.
///
/// # Errors
/// Any step fails; the old content is then still there.
pub fn write(path: &Path, content: &[u8], durability: Durability) -> io::Result<()> {
    write_by_way_of(parent(path), path, content, 0o600, durability)
}

/// As [`write`], by way of a temporary file in `directory`, which must be of the same filesystem, and with this mode.
///
/// # Errors
/// As there.
pub fn write_by_way_of(
    directory: &Path,
    path: &Path,
    content: &[u8],
    mode: u32,
    durability: Durability,
) -> io::Result<()> {
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(directory)?;
    file.write_all(content)?;
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    if durability == Durability::Durable {
        file.as_file().sync_all()?;
    }
    file.persist(path).map_err(|e| e.error)?;
    if durability == Durability::Durable {
        sync_dir(parent(path))?;
    }
    Ok(())
}

/// Has the names in a directory outlive a power cut.
///
/// # Errors
/// As fsync(2).
pub fn sync_dir(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes a value as JSON, as [`write`].
///
/// # Errors
/// As there.
pub fn write_json<T: Serialize>(path: &Path, value: &T, durability: Durability) -> io::Result<()> {
    write(path, &to_json(value)?, durability)
}

/// A value as the text of a state file: JSON for people, with a newline at its end.
///
/// # Errors
/// It cannot be JSON.
pub fn to_json<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let mut json = serde_json::to_vec_pretty(value)?;
    json.push(b'\n');
    Ok(json)
}

/// Reads JSON back; `None` when there is no such file.
///
/// # Errors
/// It cannot be read; [`io::ErrorKind::InvalidData`] when it is damaged.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => {
            serde_json::from_slice(&text).map(Some).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The last `max` bytes of a file as text; nothing when it cannot be read.
pub fn tail(path: &Path, max: u64) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(max)))?;
        let mut text = Vec::new();
        file.take(max).read_to_end(&mut text)?;
        Ok(text)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// An exclusive lock on a file, made when missing; free again when this is dropped or its process is gone.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code)] File);

impl Lock {
    /// Takes it, or answers `None` when somebody else holds it for as long as `patience`.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn take(path: &Path, patience: Duration) -> io::Result<Option<Self>> {
        let file = open_lock(path)?;
        let deadline = Instant::now() + patience;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(Self(file))),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(LOCK_POLL);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Waits for it, however long.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn wait(path: &Path) -> io::Result<Self> {
        let file = open_lock(path)?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Self(file)),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Whether somebody holds it.
    pub fn is_held(path: &Path) -> bool {
        let Ok(file) = File::open(path) else { return false };
        matches!(flock(&file, FlockOperation::NonBlockingLockShared), Err(rustix::io::Errno::WOULDBLOCK))
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        assert_eq!(read_json::<u8>(&path).unwrap(), None);
        for durability in [Durability::Durable, Durability::Volatile] {
            write_json(&path, &[1, 2], durability).unwrap();
            assert_eq!(read_json::<Vec<u8>>(&path).unwrap(), Some(vec![1, 2]));
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        write_by_way_of(dir.path(), &path, b"{", 0o444, Durability::Volatile).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o444);
        assert_eq!(read_json::<u8>(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
        // Nothing else is left beside it, also not by a write that failed.
        assert!(write(&dir.path().join("no/such/file"), b"", Durability::Durable).is_err());
        fs::create_dir(dir.path().join("taken")).unwrap();
        assert!(write(&dir.path().join("taken"), b"", Durability::Durable).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_lock_is_held_once_and_visible() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert!(!Lock::is_held(&path));
        let held = Lock::take(&path, Duration::ZERO).unwrap().unwrap();
        assert!(Lock::is_held(&path));
        assert!(Lock::take(&path, Duration::from_millis(20)).unwrap().is_none());
        drop(held);
        assert!(!Lock::is_held(&path));
        drop(Lock::wait(&path).unwrap());
    }

    #[test]
    fn tail_gives_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "0123456789").unwrap();
        assert_eq!(tail(&path, 3), "789");
        assert_eq!(tail(&path, 30), "0123456789");
        assert_eq!(tail(&dir.path().join("no"), 3), "");
    }
}
