//! The initrd's archive format: plain "newc" cpio, written so that the same entries give the same bytes.
//!
//! Owns the format only; [`crate::initrd`] chooses what goes into an initrd.

use std::{collections::BTreeMap, fmt::Write as _};

/// Kind of an entry, with its contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory,
    /// A file with these bytes.
    File(Vec<u8>),
    /// A symbolic link to this target.
    Symlink(String),
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// One entry: its permission bits and its kind. The owner is root, the time is 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Permission bits.
    pub mode: u32,
    /// Its kind.
    pub node: Node,
}

/// An archive: entries by path (relative, no leading `/`), hence always in the same order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Archive {
    entries: BTreeMap<String, Entry>,
}

/// Name of the entry that marks the end of an archive.
const TRAILER: &str = "TRAILER!!!";
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;
/// Length of a newc header: magic and thirteen fields of eight hexadecimal digits.
const HEADER_BYTES: usize = 110;

impl Archive {
    /// Adds an entry, and directories with mode 0755 above it where they are missing.
    pub fn put(&mut self, path: &str, mode: u32, node: Node) {
        let mut at = 0;
        while let Some(slash) = path[at..].find('/') {
            at += slash;
            self.entries.entry(path[..at].to_owned()).or_insert(Entry { mode: 0o755, node: Node::Directory });
            at += 1;
        }
        self.entries.insert(path.to_owned(), Entry { mode, node });
    }

    /// The entries by path.
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// The archive's bytes. A directory sorts before its contents, as the kernel needs.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (ino, (path, entry)) in (1u32..).zip(&self.entries) {
            let (kind, data, rdev): (u32, &[u8], (u32, u32)) = match &entry.node {
                Node::Directory => (S_IFDIR, &[], (0, 0)),
                Node::File(bytes) => (S_IFREG, bytes, (0, 0)),
                Node::Symlink(target) => (S_IFLNK, target.as_bytes(), (0, 0)),
                Node::CharDevice { major, minor } => (S_IFCHR, &[], (*major, *minor)),
            };
            let links = if kind == S_IFDIR { 2 } else { 1 };
            record(&mut out, path, ino, kind | entry.mode, links, rdev, data);
        }
        record(&mut out, TRAILER, 0, 0, 1, (0, 0), &[]);
        out
    }

    /// Reads an archive back.
    ///
    /// # Errors
    /// The offset of the fault and its description.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, (usize, &'static str)> {
        let mut archive = Self::default();
        let mut at = 0;
        loop {
            let header = bytes.get(at..at + HEADER_BYTES).ok_or((at, "header is truncated"))?;
            if &header[..6] != b"070701" {
                return Err((at, "wrong magic"));
            }
            let field = |i: usize| {
                std::str::from_utf8(&header[6 + 8 * i..14 + 8 * i])
                    .ok()
                    .and_then(|t| u32::from_str_radix(t, 16).ok())
                    .ok_or((at, "field is not hexadecimal"))
            };
            let (mode, size, name_len) = (field(1)?, field(6)? as usize, field(11)? as usize);
            let name_at = at + HEADER_BYTES;
            let name_end = name_at.checked_add(name_len).ok_or((at, "name is too long"))?;
            let name = bytes.get(name_at..name_end).ok_or((at, "name is truncated"))?;
            let name =
                name.strip_suffix(b"\0").and_then(|n| std::str::from_utf8(n).ok()).ok_or((at, "bad name"))?;
            let data_at = name_end.next_multiple_of(4);
            let data_end = data_at.checked_add(size).ok_or((at, "data is too long"))?;
            if name == TRAILER {
                return Ok(archive);
            }
            let data = bytes.get(data_at..data_end).ok_or((at, "data is truncated"))?;
            let node = match mode & 0o170_000 {
                S_IFDIR => Node::Directory,
                S_IFREG => Node::File(data.to_vec()),
                S_IFLNK => Node::Symlink(String::from_utf8_lossy(data).into_owned()),
                S_IFCHR => Node::CharDevice { major: field(9)?, minor: field(10)? },
                _ => return Err((at, "unknown kind of entry")),
            };
            archive.entries.insert(name.to_owned(), Entry { mode: mode & 0o7777, node });
            at = data_end.next_multiple_of(4);
        }
    }
}

fn record(
    out: &mut Vec<u8>,
    path: &str,
    ino: u32,
    mode: u32,
    links: u32,
    (rdev_major, rdev_minor): (u32, u32),
    data: &[u8],
) {
    let size = u32::try_from(data.len()).expect("newc files are under 4 GiB");
    let name_len = path.len() as u32 + 1;
    let mut header = String::with_capacity(HEADER_BYTES);
    header.push_str("070701");
    // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    for field in [ino, mode, 0, 0, links, 0, size, 0, 0, rdev_major, rdev_minor, name_len, 0] {
        let _ = write!(header, "{field:08x}");
    }
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Archive {
        let mut a = Archive::default();
        a.put("init", 0o755, Node::File(b"#!".to_vec()));
        a.put("dev/console", 0o600, Node::CharDevice { major: 5, minor: 1 });
        a.put("lib/modules/6/a.ko", 0o644, Node::File(vec![1, 2, 3]));
        a.put("bin", 0o777, Node::Symlink("usr/bin".into()));
        a
    }

    #[test]
    fn is_read_back_the_same() {
        assert_eq!(Archive::from_bytes(&sample().to_bytes()).unwrap(), sample());
    }

    #[test]
    fn first_record_is_as_the_kernel_documents() {
        let mut a = Archive::default();
        a.put("x", 0o644, Node::File(b"hello".to_vec()));
        let bytes = a.to_bytes();
        let expected = concat!(
            "070701", "00000001", "000081a4", "00000000", "00000000", "00000001", "00000000", "00000005",
            "00000000", "00000000", "00000000", "00000000", "00000002", "00000000", "x\0"
        );
        assert_eq!(&bytes[..112], expected.as_bytes());
        assert_eq!(&bytes[112..120], b"hello\0\0\0");
        assert_eq!(bytes.len() % 4, 0);
    }

    /// The system's own cpio, when installed, lists the same.
    #[test]
    fn other_programs_read_it() {
        use std::{
            io::Write,
            process::{Command, Stdio},
        };
        let Ok(mut child) = Command::new("busybox")
            .args(["cpio", "-t"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
        else {
            println!("SKIP other_programs_read_it: busybox is not installed");
            return;
        };
        child.stdin.take().unwrap().write_all(&sample().to_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success());
        let listed = String::from_utf8(out.stdout).unwrap();
        let ours: Vec<&str> = sample_paths();
        assert_eq!(listed.lines().collect::<Vec<_>>(), ours);
    }

    fn sample_paths() -> Vec<&'static str> {
        vec!["bin", "dev", "dev/console", "init", "lib", "lib/modules", "lib/modules/6", "lib/modules/6/a.ko"]
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Archive::from_bytes(&bytes);
        }
        #[test]
        fn damaged_is_answered(at in 0usize..600, value: u8) {
            let mut bytes = sample().to_bytes();
            if at < bytes.len() { bytes[at] = value; }
            let _ = Archive::from_bytes(&bytes);
        }
    }
}
