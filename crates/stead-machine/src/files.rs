//! The files of a supervised directory: its lock, its state, its logs.
//!
//! Finds the holder of a lock and rotates logs. How files are written and locks taken is in `stead-files`.

use serde::de::DeserializeOwned;
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};
pub(crate) use stead_files::{Durability, Lock, private_dir, write, write_json};

/// How long a supervisor tries to take its lock: a process that only tests the lock holds it for microseconds.
pub(crate) const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// Whether a supervisor holds `<dir>/lock`. A lock that cannot be read counts as held: what may be running is neither
/// started again nor taken for ended.
pub(crate) fn is_supervised(dir: &Path) -> bool {
    Lock::is_held(&dir.join("lock")).unwrap_or(true)
}

/// The process that holds `<dir>/lock`, from the kernel: a pid read from a file may belong to another process by now.
pub(crate) fn supervisor(dir: &Path) -> Option<i32> {
    use std::os::unix::fs::MetadataExt;
    let inode = dir.join("lock").metadata().ok()?.ino();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let said = read_json::<serde_json::Value>(&dir.join("state.json"))
        .and_then(|s| Some(s.get("supervisor_pid")?.as_i64()? as i32));
    let holders = lock_holders(&locks, inode);
    // Two filesystems may use the same inode number: then the state file decides.
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

/// Reads JSON; `None` when the file is missing or damaged.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    stead_files::read_json(path).ok().flatten()
}

/// The end of a log, for an error: at most `max` bytes.
pub(crate) fn tail(path: &Path, max: u64) -> String {
    stead_files::tail(path, max).trim().to_owned()
}

/// A log with a bound: when full it becomes `<name>.1` and starts anew.
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

/// Copies `from` into a rotating log until its end, on a thread. Reading goes on when the disk is full: the log loses
/// lines, and the machine does not block.
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
    fn a_supervisor_is_known_by_its_lock() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_supervised(dir.path()) && supervisor(dir.path()).is_none());
        let held = Lock::take(&dir.path().join("lock"), Duration::ZERO).unwrap().unwrap();
        assert!(is_supervised(dir.path()));
        assert_eq!(supervisor(dir.path()), Some(std::process::id() as i32));
        drop(held);
        assert!(!is_supervised(dir.path()));
        let unreadable = dir.path().join("unreadable");
        fs::create_dir(&unreadable).unwrap();
        std::os::unix::fs::symlink("lock", unreadable.join("lock")).unwrap();
        assert!(is_supervised(&unreadable) && supervisor(&unreadable).is_none());
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
