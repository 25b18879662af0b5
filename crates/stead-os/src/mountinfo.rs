//! The mount table in `/proc/<pid>/mountinfo` (proc_pid_mountinfo(5)).
//!
//! Owns the syntax. Neither mounts nor unmounts.

use crate::{PathContext, PathError};
use std::{
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// The table of the calling thread: a thread may have its own mount namespace.
const TABLE: &str = "/proc/thread-self/mountinfo";

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mount {
    /// Its number, unique while it is mounted.
    pub id: u32,
    /// The number of its parent mount.
    pub parent: u32,
    /// The filesystem's device, as `major:minor`.
    pub device: String,
    /// The mounted directory of the filesystem; `/` for all of it.
    pub root: PathBuf,
    /// Its mount point, below the reader's root.
    pub at: PathBuf,
    /// Options of this mount, e.g. `ro` and `nodev`.
    pub options: Vec<String>,
    /// Propagation, e.g. `shared:7`; empty for a private mount.
    pub propagation: Vec<String>,
    /// Type of the filesystem.
    pub filesystem: String,
    /// Source of the mount: a device node or any other word, which the kernel does not check.
    pub source: PathBuf,
    /// The filesystem's own options, e.g. the controllers of a cgroup hierarchy.
    pub super_options: Vec<String>,
}

impl Mount {
    /// Whether the mount or its filesystem is read-only.
    pub fn is_read_only(&self) -> bool {
        let ro = |options: &[String]| options.iter().any(|o| o == "ro");
        ro(&self.options) || ro(&self.super_options)
    }
}

/// The calling thread's mounts, oldest first.
///
/// # Errors
/// The table cannot be read, e.g. because `/proc` is not mounted.
pub fn read() -> Result<Vec<Mount>, PathError> {
    Ok(parse(&fs::read(TABLE).at("read", TABLE)?))
}

/// The mount that `path` is on: the latest mount on the longest mount point above it. Links in `path` are not followed.
pub fn holding<'m>(mounts: &'m [Mount], path: &Path) -> Option<&'m Mount> {
    mounts.iter().filter(|m| path.starts_with(&m.at)).max_by_key(|m| m.at.components().count())
}

/// Parses the table; a malformed line is skipped.
pub fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let [id, parent, device, root, at, options, rest @ ..] = fields.as_slice() else { return None };
    // Any number of optional fields, then a lone dash.
    let dash = rest.iter().position(|f| *f == b"-")?;
    let (propagation, [_, filesystem, source, more @ ..]) = rest.split_at(dash) else { return None };
    Some(Mount {
        id: number(id)?,
        parent: number(parent)?,
        device: text(device),
        root: path(root),
        at: path(at),
        options: words(options),
        propagation: propagation.iter().map(|f| text(f)).collect(),
        filesystem: text(filesystem),
        source: path(source),
        super_options: more.first().map(|f| words(f)).unwrap_or_default(),
    })
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

/// A comma within an option is escaped, so the list is split before the escapes are undone.
fn words(field: &[u8]) -> Vec<String> {
    field.split(|b| *b == b',').filter(|w| !w.is_empty()).map(text).collect()
}

/// Undoes the kernel's escapes: a backslash and three octal digits stand for one byte. Which bytes are escaped depends
/// on the field and the filesystem, so all are undone.
pub fn unescape(field: &[u8]) -> Vec<u8> {
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
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn reads_escapes_and_optional_fields() {
        let mounts = parse(
            b"36 35 98:0 /mnt1 /a\\040b rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n\
            32 31 0:29 / /sys/fs/cgroup/cpu ro,relatime - cgroup cgroup rw,cpu,cpuacct\n\
            40 31 0:40 / /c\\134\\011\\012d rw - overlay over\\043lay rw,lowerdir=/x\\054y\n\
            41 31 0:41 / /e rw - tmpfs  rw\n\
            42 31 0:42 - - rw - tmpfs none\n\
            broken\n36 35 98:0 /mnt1 /a rw shared:7 ext3 /dev/root rw\n",
        );
        let found: Vec<_> = mounts.iter().map(|m| m.at.to_str().unwrap()).collect();
        assert_eq!(found, ["/a b", "/sys/fs/cgroup/cpu", "/c\\\t\nd", "/e", "-"]);
        let [ext, cpu, overlay, nameless, dash] = mounts.as_slice() else { panic!("{mounts:?}") };
        assert_eq!(
            (ext.id, ext.parent, ext.device.as_str(), ext.root.to_str()),
            (36, 35, "98:0", Some("/mnt1"))
        );
        assert_eq!(ext.propagation, ["master:1", "shared:7"]);
        assert_eq!((ext.filesystem.as_str(), ext.source.to_str()), ("ext3", Some("/dev/root")));
        assert_eq!(ext.super_options, ["rw", "errors=continue"]);
        assert!(!ext.is_read_only() && cpu.is_read_only());
        assert_eq!(cpu.super_options, ["rw", "cpu", "cpuacct"]);
        assert_eq!(overlay.source.to_str(), Some("over#lay"));
        assert_eq!(overlay.super_options, ["rw", "lowerdir=/x,y"]);
        assert_eq!((nameless.source.to_str(), nameless.filesystem.as_str()), (Some(""), "tmpfs"));
        assert_eq!((dash.root.to_str(), dash.super_options.len()), (Some("-"), 0));
    }

    #[test]
    fn a_path_is_on_the_last_mount_of_the_longest_mount_point() {
        let mounts = parse(
            b"1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 8:2 / /var/lib rw - ext4 /dev/b rw\n\
            3 2 8:3 / /var/lib rw - ext4 /dev/c rw\n4 1 8:4 / /var/libre rw - ext4 /dev/d rw\n",
        );
        let on = |path: &str| holding(&mounts, Path::new(path)).map(|m| m.id);
        assert_eq!(
            [on("/var/lib/x"), on("/var"), on("/var/libre"), on("x")],
            [Some(3), Some(1), Some(4), None]
        );
    }

    /// As the kernel writes a field.
    fn escape(bytes: &[u8]) -> Vec<u8> {
        let one = |b: &u8| match b {
            b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{b:03o}").into_bytes(),
            b => vec![*b],
        };
        bytes.iter().flat_map(one).collect()
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes: Vec<u8>) {
            prop_assert!(parse(&bytes).len() <= bytes.split(|b| *b == b'\n').count());
        }

        #[test]
        fn what_the_kernel_escapes_is_read_back(
            at in proptest::collection::vec(any::<u8>(), 0..40),
            source in proptest::collection::vec(any::<u8>(), 0..40),
            optional in proptest::collection::vec("(shared|master|propagate_from):[0-9]{1,3}", 0..4),
        ) {
            let mut line = b"7 1 0:5 / ".to_vec();
            line.extend(escape(&at));
            line.extend_from_slice(b" rw ");
            for field in &optional {
                line.extend_from_slice(field.as_bytes());
                line.push(b' ');
            }
            line.extend_from_slice(b"- tmpfs ");
            line.extend(escape(&source));
            line.extend_from_slice(b" rw,size=1k\n");
            let mounts = parse(&line);
            prop_assert_eq!(mounts.len(), 1);
            prop_assert_eq!(mounts[0].at.as_os_str().as_bytes(), &*at);
            prop_assert_eq!(mounts[0].source.as_os_str().as_bytes(), &*source);
            prop_assert_eq!(&mounts[0].propagation, &optional);
        }
    }
}
