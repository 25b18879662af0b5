//! The content of a disk: filesystems and partitions, by util-linux' blkid and partx. Both read the bytes,
//! independently of the kernel, and accept plain files.

use super::{DiskError, program};
use serde::Serialize;
use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};
use stead_os::PathContext;

/// A disk with this many leading zeros counts as blank. Every signature that blkid knows is within a tenth of this.
const BLANK_BYTES: u64 = 1 << 20;
/// blkid's code for "nothing found".
const NOTHING_FOUND: i32 = 2;

/// A filesystem.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Filesystem {
    /// `ext4`, `xfs`, …
    pub kind: String,
    /// LABEL.
    pub label: Option<String>,
    /// UUID.
    pub uuid: Option<String>,
}

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Partition {
    /// Its number.
    pub number: u32,
    /// Its offset.
    pub offset_bytes: u64,
    /// Its length.
    pub length_bytes: u64,
    /// PARTUUID.
    pub uuid: Option<String>,
    /// Its filesystem.
    pub filesystem: Option<Filesystem>,
}

/// Content of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// None: no signature, and zeros at its beginning.
    Blank,
    /// A filesystem from its first to its last byte.
    Filesystem(Filesystem),
    /// A partition table.
    Partitions(Vec<Partition>),
    /// Something else, by blkid's name for it or as "data".
    Other(String),
}

/// Looks at a file or device.
///
/// # Errors
/// blkid or partx failed.
pub fn layout(bytes: &Path) -> Result<Layout, DiskError> {
    let mut found = blkid(bytes, None)?;
    if found.table && found.filesystem.is_none() {
        let mut partitions = partitions(bytes)?;
        for partition in &mut partitions {
            partition.filesystem =
                blkid(bytes, Some((partition.offset_bytes, partition.length_bytes)))?.filesystem;
        }
        return Ok(Layout::Partitions(partitions));
    }
    match found.filesystem.take() {
        Some(filesystem) if found.is_filesystem => Ok(Layout::Filesystem(filesystem)),
        Some(other) => Ok(Layout::Other(other.kind)),
        None if is_zero(bytes)? => Ok(Layout::Blank),
        None => Ok(Layout::Other("data".to_owned())),
    }
}

#[derive(Default)]
struct Found {
    filesystem: Option<Filesystem>,
    is_filesystem: bool,
    table: bool,
}

fn blkid(bytes: &Path, window: Option<(u64, u64)>) -> Result<Found, DiskError> {
    let mut arguments: Vec<String> = ["--probe", "--output", "export"].map(str::to_owned).to_vec();
    if let Some((offset, length)) = window {
        arguments.extend([format!("--offset={offset}"), format!("--size={length}")]);
    }
    arguments.push(bytes.display().to_string());
    Ok(parse_blkid(&program("blkid").args(arguments).accept(NOTHING_FOUND).run()?.text()))
}

/// Parses lines `KEY=value`, in which blkid escapes special characters by a backslash.
fn parse_blkid(text: &str) -> Found {
    let mut found = Found::default();
    let (mut label, mut uuid, mut kind) = (None, None, None);
    for (key, value) in text.lines().filter_map(|l| l.split_once('=')) {
        let value = value.replace('\\', "");
        match key {
            "TYPE" => kind = Some(value),
            "LABEL" => label = Some(value),
            "UUID" => uuid = Some(value),
            "USAGE" => found.is_filesystem = value == "filesystem",
            "PTTYPE" => found.table = true,
            _ => {}
        }
    }
    found.filesystem = kind.map(|kind| Filesystem { kind, label, uuid });
    found
}

fn partitions(bytes: &Path) -> Result<Vec<Partition>, DiskError> {
    let path = bytes.display().to_string();
    let arguments = ["--raw", "--noheadings", "--output", "NR,START,SECTORS,UUID", path.as_str()];
    Ok(parse_partx(&program("partx").args(arguments).run()?.text()))
}

/// Parses lines `1 2048 20480 0d9c…-01`, in sectors of 512 bytes. The extended partition of a DOS table only contains
/// others and no filesystem, so it needs no special treatment.
fn parse_partx(text: &str) -> Vec<Partition> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        let mut number = || fields.next()?.parse::<u64>().ok();
        let (nr, start, sectors) = (number()?, number()?, number()?);
        Some(Partition {
            number: u32::try_from(nr).ok()?,
            offset_bytes: start.checked_mul(512)?,
            length_bytes: sectors.checked_mul(512)?,
            uuid: fields.next().map(str::to_owned),
            filesystem: None,
        })
    };
    text.lines().filter_map(line).collect()
}

fn is_zero(bytes: &Path) -> Result<bool, DiskError> {
    let mut start = Vec::new();
    File::open(bytes).and_then(|f| f.take(BLANK_BYTES).read_to_end(&mut start)).at("read", bytes)?;
    Ok(start.iter().all(|b| *b == 0))
}

/// The first bytes of a file.
pub(super) fn start(bytes: &Path) -> Result<Vec<u8>, DiskError> {
    let mut start = Vec::new();
    let file = File::open(bytes).at("open", bytes)?;
    file.take(512).read_to_end(&mut start).at("read", bytes)?;
    Ok(start)
}

/// Path of a partition's window in messages.
impl std::fmt::Display for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "partition {}", self.number)
    }
}

/// A whole file or device, or a window of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Window {
    /// File or device.
    pub bytes: PathBuf,
    /// Offset and length; `None`: all of it.
    pub part: Option<(u64, u64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_of_the_tools_is_parsed() {
        let found = parse_blkid(
            "DEVNAME=x\nLABEL=my\\ disk\nUUID=aa\nVERSION=1.0\nTYPE=ext4\nUSAGE=filesystem\nBLOCK_SIZE=1024\n",
        );
        assert!(found.is_filesystem && !found.table);
        assert_eq!(
            found.filesystem,
            Some(Filesystem { kind: "ext4".into(), label: Some("my disk".into()), uuid: Some("aa".into()) })
        );
        assert!(parse_blkid("PTUUID=0d9c\nPTTYPE=dos\n").table);
        let parts = parse_partx("1 2048 20480 0d9c31f2-01\n2 22528 1000 \nbroken\n");
        assert_eq!(parts.len(), 2);
        assert_eq!((parts[0].offset_bytes, parts[0].length_bytes), (1 << 20, 20480 * 512));
        assert_eq!(parts[0].uuid.as_deref(), Some("0d9c31f2-01"));
    }
}
