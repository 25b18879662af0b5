//! What is mounted where, read from `/proc/self/mountinfo`.

use std::{ffi::OsString, fs, io, os::unix::ffi::OsStringExt, path::PathBuf};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountPoint {
    /// Where.
    pub at: PathBuf,
    /// Type of the filesystem.
    pub filesystem: String,
    /// The filesystem's own options, e.g. the controllers of a cgroup hierarchy.
    pub options: Vec<String>,
    /// Whether it is mounted read-only.
    pub read_only: bool,
}

/// This process' mounts, in the order they were made.
pub(crate) fn read() -> io::Result<Vec<MountPoint>> {
    Ok(parse(&fs::read("/proc/thread-self/mountinfo")?))
}

/// Reads proc_pid_mountinfo(5)'s format; lines that do not have it are passed over.
pub(crate) fn parse(text: &[u8]) -> Vec<MountPoint> {
    text.split(|b| *b == b'\n')
        .filter_map(|line| {
            let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
            let dash = fields.iter().position(|f| *f == b"-")?;
            let words = |f: &[u8]| -> Vec<String> {
                String::from_utf8_lossy(f).split(',').map(str::to_owned).collect()
            };
            Some(MountPoint {
                at: PathBuf::from(OsString::from_vec(unescape(fields.get(4)?))),
                filesystem: String::from_utf8_lossy(fields.get(dash + 1)?).into_owned(),
                options: words(fields.get(dash + 3)?),
                read_only: words(fields.get(5)?).iter().any(|o| o == "ro"),
            })
        })
        .collect()
}

/// Octal escapes for space, tab, newline and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                out.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = after;
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_escapes_and_optional_fields() {
        let text =
            b"36 35 98:0 /mnt1 /a\\040b rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n\
            32 31 0:29 / /sys/fs/cgroup/cpu ro,relatime - cgroup cgroup rw,cpu,cpuacct\nbroken\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].at, PathBuf::from("/a b"));
        assert_eq!((mounts[0].filesystem.as_str(), mounts[0].read_only), ("ext3", false));
        assert_eq!(mounts[1].options, ["rw", "cpu", "cpuacct"]);
        assert!(mounts[1].read_only);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_answered(bytes: Vec<u8>) { let _ = parse(&bytes); }
    }
}
