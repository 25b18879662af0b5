//! The content of a block device.
//!
//! The rule that keeps data safe: [`Content::Blank`] means that every place where blkid knows a signature is zero.
//! Anything else is content, whether it has a name here or not.

use std::{
    fmt,
    io::{self, Read, Seek, SeekFrom},
};
use stead_model::recipe::Filesystem;

/// Content of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Nothing at all.
    Blank,
    /// A filesystem that a rule may ask for.
    Filesystem {
        /// Which.
        kind: Filesystem,
        /// Its label, maybe empty.
        label: String,
        /// Whether its superblock records errors.
        damaged: bool,
    },
    /// It was blank, and a format of ours was interrupted.
    Unfinished {
        /// The label of that format.
        label: String,
    },
    /// Something else, by name when it has one.
    Other(&'static str),
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blank => f.write_str("nothing"),
            Self::Filesystem { kind, label, damaged } => {
                let damaged = if *damaged { " with recorded errors" } else { "" };
                write!(f, "{}{damaged} labelled {label:?}", name(*kind))
            }
            Self::Unfinished { label } => write!(f, "an unfinished format for label {label:?}"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

/// The kernel's name of a filesystem.
pub fn name(kind: Filesystem) -> &'static str {
    match kind {
        Filesystem::Ext4 => "ext4",
        Filesystem::Xfs => "xfs",
        Filesystem::Btrfs => "btrfs",
    }
}

/// Length of the beginning that must be zero: it has every signature that is not in the tail. The farthest known are
/// btrfs' first superblock at 64 KiB and ZFS' labels up to 512 KiB; 4 MiB also covers partitions aligned to 1 MiB whose
/// table was wiped.
const HEAD: u64 = 4 << 20;
/// Length of the beginning that is searched for named signatures; the last one is btrfs' label.
const IDENTIFIED: u64 = 128 << 10;
/// Length of the end that must be zero: backup GPT (last sector), md 0.90 and 1.0 (last 128 KiB), ZFS (last 512 KiB).
const TAIL: u64 = 1 << 20;
/// Offset of btrfs' second superblock, which survives a wiped beginning.
const BTRFS_MIRROR: u64 = 64 << 20;
/// Length of the area checked there.
const BTRFS_MIRROR_LENGTH: u64 = 64 << 10;

/// Length of the mark of a format in progress, at the very end of the device. Filesystems are made shorter by this.
pub const MARK_BYTES: u64 = 4096;
/// Beginning of the mark; the label follows.
const MARK: &[u8] = b"stead-node: formatting a blank device; label ";

/// The mark of a format that gives `label`.
pub fn mark(label: &str) -> Vec<u8> {
    let mut mark = MARK.to_vec();
    mark.extend_from_slice(label.as_bytes());
    mark.resize(MARK_BYTES as usize, 0);
    mark
}

/// The label in a mark, if the bytes are exactly a mark.
fn marked(bytes: &[u8]) -> Option<String> {
    let label = bytes.strip_prefix(MARK)?;
    let end = label.iter().position(|b| *b == 0)?;
    let text = std::str::from_utf8(&label[..end]).ok()?;
    is_zero(&label[end..]).then(|| text.to_owned())
}

/// Areas of signatures on a device of `size` bytes, without the mark's: start and length.
pub fn signature_areas(size: u64) -> Vec<(u64, u64)> {
    let end = size.saturating_sub(MARK_BYTES);
    let areas = [(0, HEAD), (BTRFS_MIRROR, BTRFS_MIRROR_LENGTH), (size.saturating_sub(TAIL), TAIL)];
    areas
        .into_iter()
        .map(|(start, length)| (start.min(end), length.min(end.saturating_sub(start))))
        .filter(|(_, length)| *length > 0)
        .collect()
}

/// Looks at a device of `size` bytes. Only reads.
///
/// # Errors
/// It cannot be read.
pub fn probe(device: &mut (impl Read + Seek), size: u64) -> io::Result<Content> {
    let head = read_at(device, 0, IDENTIFIED.min(size))?;
    let mark_start = size.saturating_sub(MARK_BYTES);
    if let Some(label) = marked(&read_at(device, mark_start, size - mark_start)?) {
        // An interrupted mkfs leaves our label or none. Anything else came later.
        match identify(&head) {
            Some(Content::Filesystem { label: found, .. }) if found == label || found.is_empty() => {}
            None => {}
            Some(other) => return Ok(other),
        }
        return Ok(Content::Unfinished { label });
    }
    if let Some(content) = identify(&head) {
        return Ok(content);
    }
    if !is_zero_at(device, 0, HEAD.min(size))? {
        return Ok(Content::Other("unknown data"));
    }
    let tail_start = size.saturating_sub(TAIL);
    if !is_zero_at(device, tail_start, size - tail_start)? {
        return Ok(Content::Other("data at its end (an old partition table or RAID)"));
    }
    if size > BTRFS_MIRROR + BTRFS_MIRROR_LENGTH && !is_zero_at(device, BTRFS_MIRROR, BTRFS_MIRROR_LENGTH)? {
        return Ok(Content::Other("data at 64 MiB (perhaps a wiped btrfs)"));
    }
    Ok(Content::Blank)
}

fn read_at(device: &mut (impl Read + Seek), offset: u64, length: u64) -> io::Result<Vec<u8>> {
    device.seek(SeekFrom::Start(offset))?;
    let mut buffer = vec![0; length as usize];
    device.read_exact(&mut buffer)?;
    Ok(buffer)
}

/// Reads piece by piece, because PID 1 never returns memory to the kernel.
fn is_zero_at(device: &mut (impl Read + Seek), offset: u64, length: u64) -> io::Result<bool> {
    device.seek(SeekFrom::Start(offset))?;
    let mut rest = device.take(length);
    let mut buffer = [0u8; 16 << 10];
    let mut seen = 0;
    loop {
        match rest.read(&mut buffer) {
            Ok(0) if seen == length => return Ok(true),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) if !is_zero(&buffer[..n]) => return Ok(false),
            Ok(n) => seen += n as u64,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}

/// Named signatures in the beginning of a device.
fn identify(head: &[u8]) -> Option<Content> {
    let at = |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
    let label = |offset: usize, length: usize| {
        let bytes = head.get(offset..offset + length).unwrap_or_default();
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    };
    // Offsets of superblock fields: the kernel's ext4.h (superblock at 1024), xfs_format.h, btrfs_tree.h (at 64 KiB).
    if at(1024 + 0x38, &[0x53, 0xef]) {
        // s_state: bit 1 is "errors detected".
        let damaged = head.get(1024 + 0x3a).is_some_and(|state| state & 2 != 0);
        return Some(Content::Filesystem { kind: Filesystem::Ext4, label: label(1024 + 0x78, 16), damaged });
    }
    if at(0, b"XFSB") {
        return Some(Content::Filesystem { kind: Filesystem::Xfs, label: label(108, 12), damaged: false });
    }
    if at(0x10040, b"_BHRfS_M") {
        let label = label(0x10000 + 0x12b, 256);
        return Some(Content::Filesystem { kind: Filesystem::Btrfs, label, damaged: false });
    }
    let named: [(usize, &[u8], &str); 14] = [
        (0, b"hsqs", "a squashfs"),
        (0, b"LUKS\xba\xbe", "an encrypted (LUKS) volume"),
        (0, b"BCHF", "a bcachefs"),
        (512, b"LABELONE", "an LVM volume"),
        (0, b"LABELONE", "an LVM volume"),
        (1024, b"LABELONE", "an LVM volume"),
        (1536, b"LABELONE", "an LVM volume"),
        (512, b"EFI PART", "a GPT partition table"),
        (4086, b"SWAPSPACE2", "swap"),
        (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "a RAID (md) member"),
        (0, &[0xfc, 0x4e, 0x2b, 0xa9], "a RAID (md) member"),
        (0x8001, b"CD001", "an ISO 9660 image"),
        (3, b"NTFS    ", "an NTFS"),
        (510, &[0x55, 0xaa], "a partition table or boot sector"),
    ];
    named.iter().find(|(offset, magic, _)| at(*offset, magic)).map(|(_, _, what)| Content::Other(what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    fn of(bytes: Vec<u8>) -> Content {
        let size = bytes.len() as u64;
        probe(&mut Cursor::new(bytes), size).unwrap()
    }

    #[test]
    fn known_content_is_named() {
        let mut ext4 = vec![0u8; 8 << 20];
        ext4[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]);
        ext4[1024 + 0x78..1024 + 0x7d].copy_from_slice(b"label");
        let found = |damaged| Content::Filesystem { kind: Filesystem::Ext4, label: "label".into(), damaged };
        assert_eq!(of(ext4.clone()), found(false));
        ext4[1024 + 0x3a] = 2;
        assert_eq!(of(ext4), found(true));
        let mut mbr = vec![0u8; 1 << 20];
        mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(of(mbr).to_string(), "a partition table or boot sector");
        assert_eq!(of(vec![0; 5 << 20]), Content::Blank);
        assert_eq!(of(Vec::new()), Content::Blank);
        assert_eq!(of(vec![0; 100]), Content::Blank);
    }

    #[test]
    fn a_mirror_superblock_is_enough() {
        let mut disk = vec![0u8; 70 << 20];
        disk[(64 << 20) + 64] = b'_';
        assert!(matches!(of(disk), Content::Other(_)));
    }

    #[test]
    fn an_unfinished_format_is_distinguished_from_later_content() {
        let mut disk = vec![0u8; 8 << 20];
        let end = disk.len() - MARK_BYTES as usize;
        disk[end..].copy_from_slice(&mark("mine"));
        let unfinished = Content::Unfinished { label: "mine".into() };
        assert_eq!(of(disk.clone()), unfinished);
        disk[2_000_000] = 1;
        assert_eq!(of(disk.clone()), unfinished, "mkfs has begun");
        disk[4086..4096].copy_from_slice(b"SWAPSPACE2");
        assert_eq!(of(disk.clone()), Content::Other("swap"), "somebody used it since");
        let last = disk.len() - 1;
        disk[4086..4096].fill(0);
        disk[last] = 1;
        assert!(matches!(of(disk), Content::Other(_)), "a mark with other bytes is not a mark");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// One byte anywhere in head or tail is enough for a device to be left unchanged.
        #[test]
        fn one_byte_saves_a_disk(size in 1usize..(9 << 20), at: prop::sample::Index, byte in 1u8..) {
            let mut disk = vec![0u8; size];
            let at = at.index(size);
            disk[at] = byte;
            let looked_at = at < (4 << 20) || at >= size.saturating_sub(1 << 20);
            prop_assert_eq!(of(disk) == Content::Blank, !looked_at);
        }
    }
}
