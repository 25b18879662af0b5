//! The files of a supervised directory: its lock, its state, its logs.
//!
//! Owns atomic writing, the lock's meaning and rotation of logs. Does not own what is in them.

use rustix::fs::FlockOperation;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long a supervisor tries for its lock: one that only looks holds it for microseconds.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// An exclusive lock; free again when this is dropped or its process is gone.
#[derive(Debug)]
pub(crate) struct Lock(#[allow(dead_code)] File);

impl Lock {
    /// Takes `<dir>/<name>`, or answers `None` when another holds it.
    pub(crate) fn take(dir: &Path, name: &str) -> io::Result<Option<Self>> {
        let file = open_lock(dir, name)?;
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(Self(file))),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Waits for `<dir>/<name>`.
    pub(crate) fn wait(dir: &Path, name: &str) -> io::Result<Self> {
        let file = open_lock(dir, name)?;
        loop {
            match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Self(file)),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

fn open_lock(dir: &Path, name: &str) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(dir.join(name))
}

/// Whether some process holds `<dir>/<name>`.
pub(crate) fn is_locked(dir: &Path, name: &str) -> bool {
    let Ok(file) = File::open(dir.join(name)) else { return false };
    matches!(
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared),
        Err(rustix::io::Errno::WOULDBLOCK)
    )
}

/// The process that holds `<dir>/<name>`, as the kernel knows it: a pid out of a file may be another's by now.
pub(crate) fn holder(dir: &Path, name: &str) -> Option<i32> {
    use std::os::unix::fs::MetadataExt;
    let inode = dir.join(name).metadata().ok()?.ino();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let said = read_json::<serde_json::Value>(&dir.join("state.json"))
        .and_then(|s| Some(s.get("supervisor_pid")?.as_i64()? as i32));
    let holders = lock_holders(&locks, inode);
    // Two filesystems may use the same inode number: then both must agree.
    match holders.as_slice() {
        [only] => Some(*only),
        several => several.iter().copied().find(|pid| Some(*pid) == said),
    }
}

/// Pids in the text of `/proc/locks` that hold an exclusive flock on that inode.
fn lock_holders(locks: &str, inode: u64) -> Vec<i32> {
    locks
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let at = words.iter().position(|w| *w == "FLOCK")?;
            let (mode, pid, file) = (words.get(at + 2)?, words.get(at + 3)?, words.get(at + 4)?);
            let found: u64 = file.rsplit(':').next()?.parse().ok()?;
            // "->" marks one that waits.
            (*mode == "WRITE" && found == inode && words.get(1) != Some(&"->")).then(|| pid.parse().ok())?
        })
        .collect()
}

/// Makes a private directory and those above it.
pub(crate) fn private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Whether a file must outlive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// It is what `up` and `down` go by: on the disk before it gets its name.
    Durable,
    /// It is believed only while a lock is held, and no lock outlives a power cut.
    Volatile,
}

/// Writes `value` as JSON, readable by root only; whoever reads sees the old or the new whole.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T, durability: Durability) -> io::Result<()> {
    let mut json = serde_json::to_vec_pretty(value)?;
    json.push(b'\n');
    write(path, &json, durability)
}

/// Writes a file whole, mode 0600; whoever reads sees the old or the new.
pub(crate) fn write(path: &Path, content: &[u8], durability: Durability) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut tmp = tempfile::Builder::new().prefix(".new-").tempfile_in(dir)?;
    tmp.write_all(content)?;
    if durability == Durability::Durable {
        tmp.as_file().sync_data()?;
    }
    tmp.persist(path).map_err(|e| e.error)?;
    if durability == Durability::Durable {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// Reads JSON back; `None` when it is not there or not whole.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// The last `max` bytes of a file as text.
pub(crate) fn tail(path: &Path, max: u64) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        file.seek(io::SeekFrom::Start(len.saturating_sub(max)))?;
        let mut out = Vec::new();
        file.take(max).read_to_end(&mut out)?;
        Ok(out)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).trim().to_owned()
}

/// A log that never grows past a bound: when full it becomes `<name>.1` and starts anew.
#[derive(Debug)]
pub(crate) struct RotatingLog {
    path: PathBuf,
    file: File,
    written: u64,
    max: u64,
}

impl RotatingLog {
    /// Opens for appending.
    pub(crate) fn open(path: PathBuf, max: u64) -> io::Result<Self> {
        let file = File::options().append(true).create(true).mode(0o600).open(&path)?;
        let written = file.metadata()?.len();
        Ok(Self { path, file, written, max })
    }

    /// Starts anew when full.
    pub(crate) fn turn_if_full(&mut self) -> io::Result<()> {
        if self.written < self.max {
            return Ok(());
        }
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        fs::rename(&self.path, old)?;
        *self = Self::open(std::mem::take(&mut self.path), self.max)?;
        Ok(())
    }
}

impl Write for RotatingLog {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.turn_if_full()?;
        let n = self.file.write(buf)?;
        self.written += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Copies what comes from `from` into a rotating log until its end, on a thread of its own. A full disk loses log, not
/// the machine: reading goes on.
pub(crate) fn log_from(mut from: impl Read + Send + 'static, path: PathBuf, max: u64) -> io::Result<()> {
    let mut log = RotatingLog::open(path, max)?;
    std::thread::Builder::new().name("log".to_owned()).spawn(move || {
        let mut buffer = [0; 8192];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => return,
                Ok(n) => drop(log.write_all(&buffer[..n])),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_is_exclusive_and_visible() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_locked(dir.path(), "lock"));
        let held = Lock::take(dir.path(), "lock").unwrap().unwrap();
        assert!(is_locked(dir.path(), "lock"));
        assert_eq!(holder(dir.path(), "lock"), Some(std::process::id() as i32));
        assert!(Lock::take(dir.path(), "lock").unwrap().is_none());
        drop(held);
        assert!(!is_locked(dir.path(), "lock"));
    }

    #[test]
    fn holders_are_read_from_the_kernels_list() {
        let text = "1: FLOCK  ADVISORY  WRITE 100 08:02:55 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 200 08:02:55 0 EOF\n\
            2: POSIX  ADVISORY  WRITE 300 08:02:55 0 EOF\n3: FLOCK  ADVISORY  READ 400 08:02:55 0 EOF\n";
        assert_eq!(lock_holders(text, 55), [100]);
        assert!(lock_holders(text, 5).is_empty());
    }

    #[test]
    fn log_stays_within_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = RotatingLog::open(path.clone(), 100).unwrap();
        for i in 0..100 {
            writeln!(log, "line {i:05}").unwrap();
        }
        let now = fs::read_to_string(&path).unwrap();
        assert!(now.ends_with("line 00099\n") && now.len() <= 111, "{now}");
        assert!(dir.path().join("console.log.1").metadata().unwrap().len() <= 111);
        assert_eq!(tail(&path, 6), "00099");
    }
}
