//! Reads logs: the last lines, then new ones, across rotation (`<service>.log` becomes `<service>.log.1`).
//!
//! Does not write or rotate them. Holds no line in memory, so that a log of any size needs one buffer.

use bytes::Bytes;
use futures_util::{Stream, stream};
use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

/// Bytes per read.
const CHUNK: usize = 32 * 1024;
/// How often a followed log is read: less than a person notices, and about 10 system calls a second.
const POLL: Duration = Duration::from_millis(100);

/// A position in a log.
#[derive(Debug)]
pub struct Reader {
    current: PathBuf,
    rotated: PathBuf,
    file: Option<File>,
}

impl Reader {
    /// Opens a log at its beginning, or `tail` lines before its end.
    pub fn open(dir: &Path, service: &str, tail: Option<u64>) -> io::Result<Self> {
        let current = dir.join(format!("{service}.log"));
        let rotated = dir.join(format!("{service}.log.1"));
        let newest = open(&current)?;
        let older = open(&rotated)?;
        // Rotated between the two: the file opened as current now has the name of the rotated one.
        let older = match (&newest, older) {
            (Some(n), Some(o)) if inode(n)? == inode(&o)? => None,
            (_, older) => older,
        };
        let file = match tail {
            None => older.or(newest),
            Some(lines) => {
                let (newest, missing) = seek_back(newest, lines)?;
                if missing == 0 { newest.or(older) } else { seek_back(older, missing)?.0.or(newest) }
            }
        };
        Ok(Self { current, rotated, file })
    }

    /// Reads on; returns 0 when there is nothing more yet.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(file) = &mut self.file else {
                self.file = open(&self.current)?;
                if self.file.is_none() {
                    return Ok(0);
                }
                continue;
            };
            let n = file.read(buffer)?;
            if n > 0 {
                return Ok(n);
            }
            let Some(newest) = open(&self.current)? else { return Ok(0) };
            if inode(&newest)? == inode(file)? {
                if file.stream_position()? <= newest.metadata()?.len() {
                    return Ok(0);
                }
                // Truncated in place.
                file.rewind()?;
                continue;
            }
            // Rotated: lines written between the last read and the rename can still be read.
            let n = file.read(buffer)?;
            if n > 0 {
                return Ok(n);
            }
            // Rotated more than once: the log between is in the rotated file.
            let between = match open(&self.rotated)? {
                Some(between) if inode(&between)? != inode(file)? && newer(&between, file)? => Some(between),
                _ => None,
            };
            self.file = Some(between.unwrap_or(newest));
        }
    }
}

/// The log as a stream of chunks.
pub fn stream(reader: Reader, follow: bool) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::try_unfold(reader, move |mut reader| async move {
        loop {
            let read = tokio::task::spawn_blocking(move || {
                let mut buffer = vec![0; CHUNK];
                let n = reader.read(&mut buffer)?;
                buffer.truncate(n);
                io::Result::Ok((Bytes::from(buffer), reader))
            });
            let (chunk, back) = read.await.map_err(io::Error::other)??;
            reader = back;
            if !chunk.is_empty() {
                return Ok(Some((chunk, reader)));
            }
            if !follow {
                return Ok(None);
            }
            tokio::time::sleep(POLL).await;
        }
    })
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match fs::OpenOptions::new().read(true).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io::Error::new(e.kind(), format!("open {}: {e}", path.display()))),
    }
}

fn inode(file: &File) -> io::Result<(u64, u64)> {
    let m = file.metadata()?;
    Ok((m.dev(), m.ino()))
}

fn newer(a: &File, b: &File) -> io::Result<bool> {
    Ok(a.metadata()?.modified()? >= b.metadata()?.modified()?)
}

/// Seeks to `lines` lines before the end; returns how many lines are missing. An unfinished last line counts.
fn seek_back(file: Option<File>, lines: u64) -> io::Result<(Option<File>, u64)> {
    let Some(mut file) = file else { return Ok((None, lines)) };
    let end = file.metadata()?.len();
    if lines == 0 {
        file.seek(SeekFrom::Start(end))?;
        return Ok((Some(file), 0));
    }
    let mut block = vec![0; CHUNK];
    let (mut at, mut found) = (end, 0);
    while at > 0 {
        let start = at.saturating_sub(CHUNK as u64);
        let Some(part) = block.get_mut(..(at - start) as usize) else { break };
        file.read_exact_at(part, start)?;
        for (i, byte) in part.iter().enumerate().rev() {
            let position = start + i as u64;
            // A newline at the very end ends the last line and begins none.
            if *byte == b'\n' && position + 1 != end {
                found += 1;
                if found == lines {
                    file.seek(SeekFrom::Start(position + 1))?;
                    return Ok((Some(file), 0));
                }
            }
        }
        at = start;
    }
    file.rewind()?;
    // The first line has no newline before it.
    let found = found + u64::from(end > 0);
    Ok((Some(file), lines - found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn all(reader: &mut Reader) -> String {
        let mut out = Vec::new();
        let mut buffer = [0; 7];
        loop {
            match reader.read(&mut buffer).unwrap() {
                0 => return String::from_utf8(out).unwrap(),
                n => out.extend_from_slice(&buffer[..n]),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn tail_is_the_last_lines_of_both_files(
            older in proptest::collection::vec("[a-z]{0,9}", 0..6),
            newer in proptest::collection::vec("[a-z]{0,9}", 0..6),
            tail in 0u64..14,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let text = |lines: &[String]| lines.iter().map(|l| format!("{l}\n")).collect::<String>();
            fs::write(dir.path().join("s.log.1"), text(&older)).unwrap();
            fs::write(dir.path().join("s.log"), text(&newer)).unwrap();
            let both: Vec<String> = older.iter().chain(&newer).cloned().collect();
            let want = text(&both[both.len().saturating_sub(tail as usize)..]);
            prop_assert_eq!(all(&mut Reader::open(dir.path(), "s", Some(tail)).unwrap()), want);
            prop_assert_eq!(all(&mut Reader::open(dir.path(), "s", None).unwrap()), text(&both));
        }
    }

    #[test]
    fn long_lines_and_unfinished_ones() {
        let dir = tempfile::tempdir().unwrap();
        let long = "x".repeat(CHUNK * 2 + 3);
        fs::write(dir.path().join("s.log"), format!("first\n{long}\nlast")).unwrap();
        let tail = |n| all(&mut Reader::open(dir.path(), "s", Some(n)).unwrap());
        assert_eq!(tail(1), "last");
        assert_eq!(tail(2), format!("{long}\nlast"));
        assert_eq!(tail(3), format!("first\n{long}\nlast"));
    }

    #[test]
    fn follows_rotation_truncation_and_a_log_that_comes_later() {
        let dir = tempfile::tempdir().unwrap();
        let (log, rotated) = (dir.path().join("s.log"), dir.path().join("s.log.1"));
        let mut reader = Reader::open(dir.path(), "s", Some(0)).unwrap();
        assert_eq!(all(&mut reader), "");
        let mut writer = File::create(&log).unwrap();
        writer.write_all(b"one\n").unwrap();
        assert_eq!(all(&mut reader), "one\n");
        writer.write_all(b"two\n").unwrap();
        fs::rename(&log, &rotated).unwrap();
        assert_eq!(all(&mut reader), "two\n", "before the new file is there");
        writer.write_all(b"three\n").unwrap();
        let mut writer = File::create(&log).unwrap();
        writer.write_all(b"four\n").unwrap();
        assert_eq!(all(&mut reader), "three\nfour\n");
        // Two rotations between two reads.
        writer.write_all(b"five\n").unwrap();
        fs::rename(&log, &rotated).unwrap();
        fs::write(&log, "six\n").unwrap();
        fs::rename(&log, &rotated).unwrap();
        fs::write(&log, "seven\n").unwrap();
        assert_eq!(all(&mut reader), "five\nsix\nseven\n");
        File::options().write(true).open(&log).unwrap().set_len(0).unwrap();
        fs::write(&log, "8\n").unwrap();
        assert_eq!(all(&mut reader), "8\n");
    }
}
