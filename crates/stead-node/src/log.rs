//! A service's log: its output, line by line with timestamps, in a file that is rotated.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};
use tokio::io::AsyncReadExt;

/// A log is rotated at this size; with the previous one, a service's logs take at most twice that.
pub const ROTATE_BYTES: u64 = 4 << 20;
/// A longer line is split, so that a service that never ends a line does not fill memory.
pub const MAX_LINE_BYTES: usize = 64 << 10;

/// A log file. Clones share it.
#[derive(Debug, Clone)]
pub struct Log(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    started: Instant,
}

impl Log {
    /// Appends to the file at `path`, which is created at the first line. `started`: when the node's init began.
    pub fn new(path: PathBuf, started: Instant) -> Self {
        Self(Arc::new(Mutex::new(Inner { path, file: None, size: 0, started })))
    }

    /// Writes one line, given without its newline. If the log cannot be written, the line is lost.
    pub fn line(&self, line: &[u8]) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = stamp(SystemTime::now(), inner.started.elapsed().as_millis()).into_bytes();
        text.extend_from_slice(line);
        text.push(b'\n');
        let _ = inner.write(&text);
    }

    /// Copies a pipe into the log until every process has closed it.
    pub async fn copy_from(self, pipe: OwnedFd) {
        let Ok(mut pipe) = tokio::net::unix::pipe::Receiver::from_owned_fd(pipe) else { return };
        let mut lines = Lines::default();
        // Small, because every service of every node has one.
        let mut buffer = [0u8; 4096];
        while let Ok(n @ 1..) = pipe.read(&mut buffer).await {
            lines.push(&buffer[..n], |line| self.line(line));
        }
        lines.finish(|line| self.line(line));
    }
}

impl Inner {
    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        if self.size + text.len() as u64 > ROTATE_BYTES && self.file.is_some() {
            self.file = None;
            fs::rename(&self.path, rotated(&self.path))?;
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let file = OpenOptions::new().append(true).create(true).mode(0o640).open(&self.path)?;
                self.size = file.metadata()?.len();
                self.file.insert(file)
            }
        };
        file.write_all(text)?;
        self.size += text.len() as u64;
        Ok(())
    }
}

/// Path of the previous log: `<service>.log.1`.
fn rotated(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// `2026-11-21T07:16:31.123Z +4567 `: the time, and the milliseconds since the node's init began, which never jump.
fn stamp(now: SystemTime, since_start_ms: u128) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let (year, month, day) = date_of(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let ms = since.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z +{since_start_ms} ")
}

/// Year, month and day of a day counted from 1970-01-01: Howard Hinnant's `civil_from_days`, with years that begin in
/// March so that the leap day is the last one.
fn date_of(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let m = (5 * day_of_year + 2) / 153;
    let month = if m < 10 { m + 3 } else { m - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day_of_year - (153 * m + 2) / 5 + 1)
}

/// Cuts a stream into lines of bounded length.
#[derive(Debug, Default)]
struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    fn push(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            let room = MAX_LINE_BYTES - self.partial.len();
            let window = &bytes[..bytes.len().min(room)];
            match window.iter().position(|b| *b == b'\n') {
                Some(end) => {
                    self.partial.extend_from_slice(&bytes[..end]);
                    line(&self.partial);
                    self.partial.clear();
                    bytes = &bytes[end + 1..];
                }
                None => {
                    self.partial.extend_from_slice(window);
                    bytes = &bytes[window.len()..];
                    if self.partial.len() == MAX_LINE_BYTES {
                        line(&self.partial);
                        self.partial.clear();
                    }
                }
            }
        }
        // Long lines are rare: do not keep their memory.
        if self.partial.is_empty() && self.partial.capacity() > 4096 {
            self.partial = Vec::new();
        }
    }

    fn finish(self, mut line: impl FnMut(&[u8])) {
        if !self.partial.is_empty() {
            line(&self.partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn stamps_are_dates() {
        let at = |s| stamp(UNIX_EPOCH + Duration::from_secs(s), 5);
        assert_eq!(at(0), "1970-01-01T00:00:00.000Z +5 ");
        assert_eq!(at(951_827_696), "2000-02-29T12:34:56.000Z +5 ");
        assert_eq!(at(1_795_246_591), "2026-11-21T07:36:31.000Z +5 ");
    }

    #[test]
    fn rotates_and_keeps_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let log = Log::new(path.clone(), Instant::now());
        let line = vec![b'x'; 60_000];
        for _ in 0..200 {
            log.line(&line);
        }
        let (now, before) = (fs::metadata(&path).unwrap().len(), fs::metadata(rotated(&path)).unwrap().len());
        assert!(now <= ROTATE_BYTES && before <= ROTATE_BYTES && before > ROTATE_BYTES / 2, "{now} {before}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    proptest! {
        #[test]
        fn no_byte_is_lost(chunks in proptest::collection::vec(proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'a')], 0..50), 0..20)) {
            let mut lines = Lines::default();
            let mut out = Vec::new();
            for chunk in &chunks {
                lines.push(chunk, |l| { out.extend_from_slice(l); out.push(b'\n'); });
            }
            lines.finish(|l| out.extend_from_slice(l));
            prop_assert_eq!(out, chunks.concat());
        }
        #[test]
        fn long_lines_are_split(length in (MAX_LINE_BYTES - 2)..(3 * MAX_LINE_BYTES)) {
            let mut lines = Lines::default();
            let mut seen = Vec::new();
            lines.push(&vec![b'a'; length], |l| seen.push(l.len()));
            lines.finish(|l| seen.push(l.len()));
            prop_assert_eq!(seen.iter().sum::<usize>(), length);
            prop_assert!(seen.iter().all(|l| *l <= MAX_LINE_BYTES));
        }
    }
}
