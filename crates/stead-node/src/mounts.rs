//! Mounted filesystems: reading the kernel's table, and mounting.
//!
//! Owns the syntax of `/proc/self/mounts`. Does not decide what is mounted at boot: that is [`crate::boot`].

use rustix::mount::{MountFlags, mount};
use serde::{Deserialize, Serialize};
use std::{
    ffi::CString,
    io,
    path::{Path, PathBuf},
};

/// One line of `/proc/self/mounts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Device or word in the first field.
    pub source: String,
    /// Where.
    pub target: PathBuf,
    /// Type, e.g. `ext4`.
    pub filesystem: String,
    /// Options, as the kernel tells them.
    pub options: Vec<String>,
}

/// Reads the text of `/proc/self/mounts`; lines that have too few fields are passed over.
pub fn parse(text: &str) -> Vec<Mounted> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            Some(Mounted {
                source: unescape(fields.next()?),
                target: PathBuf::from(unescape(fields.next()?)),
                filesystem: fields.next()?.to_owned(),
                options: fields.next()?.split(',').map(str::to_owned).collect(),
            })
        })
        .collect()
}

/// The kernel writes blank, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let octal = (bytes[i] == b'\\')
            .then(|| field.get(i + 1..i + 4))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                out.push(byte);
                i += 4;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// What is mounted in this mount namespace, in the order of mounting; nothing when /proc is not there.
pub fn current() -> Vec<Mounted> {
    std::fs::read_to_string("/proc/self/mounts").map(|t| parse(&t)).unwrap_or_default()
}

/// The filesystem that `path` would be on: the last mounted of the longest target that is a prefix of it.
pub fn holding<'a>(mounts: &'a [Mounted], path: &Path) -> Option<&'a Mounted> {
    mounts.iter().filter(|m| path.starts_with(&m.target)).max_by_key(|m| m.target.components().count())
}

/// A mount flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flag {
    /// Read-only.
    Ro,
    /// Set-user-id bits mean nothing.
    Nosuid,
    /// Devices mean nothing.
    Nodev,
    /// Nothing can be executed.
    Noexec,
}

/// Mounts a filesystem.
///
/// # Errors
/// As mount(2).
pub fn mount_filesystem(
    source: &str,
    target: &Path,
    filesystem: &str,
    flags: &[Flag],
    data: &str,
) -> io::Result<()> {
    let flags = flags.iter().fold(MountFlags::empty(), |all, flag| {
        all | match flag {
            Flag::Ro => MountFlags::RDONLY,
            Flag::Nosuid => MountFlags::NOSUID,
            Flag::Nodev => MountFlags::NODEV,
            Flag::Noexec => MountFlags::NOEXEC,
        }
    });
    let data = CString::new(data)?;
    Ok(mount(source, target, filesystem, flags, data.as_c_str())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_the_kernels_table() {
        let mounts = parse(
            "overlay / overlay rw,lowerdir=l/0 0 0\n/dev/vdb /var/lib/a\\040b ext4 rw,noatime 0 0\nbroken\n\
             tmpfs /var/lib/a\\040b/tmp tmpfs rw 0 0\n",
        );
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[1].target, Path::new("/var/lib/a b"));
        assert_eq!(mounts[1].options, ["rw", "noatime"]);
        assert_eq!(holding(&mounts, Path::new("/var/lib/a b/x")).unwrap().source, "/dev/vdb");
        assert_eq!(holding(&mounts, Path::new("/var/lib/a")).unwrap().filesystem, "overlay");
    }

    proptest! {
        #[test]
        fn any_text_is_answered(s in "(?s).{0,200}") { let _ = parse(&s); }
        #[test]
        fn unescape_undoes_the_kernel(s in "[a-z \\t\\\\]{0,20}") {
            let escaped: String = s.chars().map(|c| match c {
                ' ' | '\t' | '\\' => format!("\\{:03o}", c as u32),
                c => c.to_string(),
            }).collect();
            prop_assert_eq!(unescape(&escaped), s);
        }
    }
}
