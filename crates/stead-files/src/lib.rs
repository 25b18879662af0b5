//! State files: written atomically, private to their owner, guarded by locks that end with the process that holds them.
//!
//! Owns atomic writes and the meaning of locks. Does not own the contents or the paths of files.

use rustix::fs::{FlockOperation, flock};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    time::{Duration, Instant},
};

/// Pause between two attempts to take a lock.
const LOCK_POLL: Duration = Duration::from_millis(5);

/// Whether a file must survive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Others rely on it later: its content is on the disk before it gets its name.
    Durable,
    /// It is valid only while a lock is held, and no lock survives a power cut.
    Volatile,
}

/// Creates a directory and its parents with mode 0700.
///
/// # Errors
/// As mkdir(2).
pub fn private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Writes a file atomically with mode 0600: readers see the old content or the new.
///
/// # Errors
/// A step failed; the file then still has its old content.
pub fn write(path: &Path, content: &[u8], durability: Durability) -> io::Result<()> {
    write_by_way_of(parent(path), path, content, 0o600, durability)
}

/// As [`write`], with a temporary file in `directory`, which must be on the same filesystem, and with the given mode.
///
/// # Errors
/// As [`write`].
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

/// Makes the names in a directory survive a power cut.
///
/// # Errors
/// As fsync(2).
pub fn sync_dir(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes a value as JSON with [`write`].
///
/// # Errors
/// As [`write`].
pub fn write_json<T: Serialize>(path: &Path, value: &T, durability: Durability) -> io::Result<()> {
    write(path, &to_json(value)?, durability)
}

/// A value as the text of a state file: indented JSON with a newline at the end.
///
/// # Errors
/// The value cannot be serialised.
pub fn to_json<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let mut json = serde_json::to_vec_pretty(value)?;
    json.push(b'\n');
    Ok(json)
}

/// Reads a JSON file; `None` if it does not exist.
///
/// # Errors
/// The file cannot be read; [`io::ErrorKind::InvalidData`] if it is not valid.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => {
            serde_json::from_slice(&text).map(Some).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The last `max` bytes of a file as text; empty if it cannot be read.
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

/// An exclusive lock on a file, which is created if missing. Released when this is dropped or the process ends.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code)] File);

impl Lock {
    /// Takes the lock; `None` if another process holds it for longer than `patience`.
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

    /// Waits for the lock without a time limit.
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

    /// Whether the lock is held; a file that does not exist is not.
    ///
    /// # Errors
    /// The file exists and cannot be opened or tested, so that nothing is known of the lock.
    pub fn is_held(path: &Path) -> io::Result<bool> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        loop {
            match flock(&file, FlockOperation::NonBlockingLockShared) {
                Ok(()) => return Ok(false),
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(true),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
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
        // No write leaves a temporary file behind, not even a failed one.
        assert!(write(&dir.path().join("no/such/file"), b"", Durability::Durable).is_err());
        fs::create_dir(dir.path().join("taken")).unwrap();
        assert!(write(&dir.path().join("taken"), b"", Durability::Durable).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_lock_is_held_once_and_visible() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert!(!Lock::is_held(&path).unwrap());
        let held = Lock::take(&path, Duration::ZERO).unwrap().unwrap();
        assert!(Lock::is_held(&path).unwrap());
        assert!(Lock::take(&path, Duration::from_millis(20)).unwrap().is_none());
        drop(held);
        assert!(!Lock::is_held(&path).unwrap());
        drop(Lock::wait(&path).unwrap());
    }

    /// As for a file of another user, which root would read: a link to itself cannot be opened by anybody.
    #[test]
    fn a_lock_that_cannot_be_read_is_not_free() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        std::os::unix::fs::symlink(&path, &path).unwrap();
        let error = Lock::is_held(&path).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::LOOP.raw_os_error()));
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
