//! The storage disk: its device, its content, and the links that the engine looks for.
//!
//! The engine formats it. This module only distinguishes a blank disk, a pool and other data, and wipes a pool that was
//! never used.

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// All relevant signatures are in the first or the last MiB of a device: btrfs at 64 KiB, ext4 at 1 KiB, LVM, LUKS and
/// GPT at its start, GPT's copy and md's superblock at its end.
const EDGE: u64 = 1 << 20;
/// Offsets of btrfs' first superblock and its first copy (btrfs(5)).
const BTRFS_SUPERBLOCKS: [u64; 2] = [64 << 10, 64 << 20];
/// Length of a btrfs superblock.
const BTRFS_SUPERBLOCK_LENGTH: usize = 4096;

/// Content of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// None: its first and last MiB are zero.
    Blank,
    /// A btrfs filesystem.
    Btrfs {
        /// Its UUID.
        uuid: String,
        /// Its label: the pool's name when an engine made it.
        label: String,
    },
    /// A btrfs filesystem whose mkfs was interrupted, so it was never used.
    HalfMade,
    /// Anything else.
    Other,
}

/// The storage disk and its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Device node, as the engine names it.
    pub device: PathBuf,
    /// Its content.
    pub content: Content,
}

/// Finds the device with a serial: by `dev/disk/by-serial/SERIAL`, otherwise by `sys/block/*/serial`.
pub fn find(serial: &str, dev: &Path, sys: &Path) -> Option<PathBuf> {
    let link = dev.join("disk/by-serial").join(serial);
    if link.exists() {
        return Some(link);
    }
    fs::read_dir(sys.join("block")).ok()?.flatten().find_map(|entry| {
        let found = fs::read_to_string(entry.path().join("serial")).ok()?;
        (found.trim() == serial).then(|| dev.join(entry.file_name()))
    })
}

/// Looks at the device.
///
/// # Errors
/// It cannot be read.
pub fn probe(device: &Path) -> io::Result<Content> {
    let mut file = File::open(device)?;
    let length = file.seek(SeekFrom::End(0))?;
    let mut head = vec![0; EDGE.min(length) as usize];
    file.seek(SeekFrom::Start(0))?;
    file.read_exact(&mut head)?;
    let start = usize::try_from(BTRFS_SUPERBLOCKS[0]).unwrap_or(usize::MAX);
    if let Some(found) = head.get(start..).and_then(btrfs) {
        return Ok(found);
    }
    let mut tail = vec![0; EDGE.min(length) as usize];
    file.seek(SeekFrom::Start(length - tail.len() as u64))?;
    file.read_exact(&mut tail)?;
    let blank = head.iter().chain(&tail).all(|b| *b == 0);
    Ok(if blank { Content::Blank } else { Content::Other })
}

/// UUID of the btrfs filesystem on the device, if any. Reads 4 KiB.
pub fn btrfs_uuid(device: &Path) -> Option<String> {
    let mut file = File::open(device).ok()?;
    let mut block = [0; BTRFS_SUPERBLOCK_LENGTH];
    file.seek(SeekFrom::Start(BTRFS_SUPERBLOCKS[0])).ok()?;
    file.read_exact(&mut block).ok()?;
    match btrfs(&block)? {
        Content::Btrfs { uuid, .. } => Some(uuid),
        _ => None,
    }
}

/// Reads a btrfs superblock: fsid at 0x20, magic at 0x40, label at 0x12b (btrfs on-disk format).
fn btrfs(block: &[u8]) -> Option<Content> {
    match block.get(0x40..0x48)? {
        b"_BHRfS_M" => {}
        // mkfs.btrfs writes this first and the true magic last (BTRFS_MAGIC_TEMPORARY).
        b"!BHRfS_M" => return Some(Content::HalfMade),
        _ => return None,
    }
    let hex: String = block.get(0x20..0x30)?.iter().map(|b| format!("{b:02x}")).collect();
    let uuid = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
    let label = block.get(0x12b..0x12b + 256)?;
    let label = label.split(|b| *b == 0).next().unwrap_or_default();
    Some(Content::Btrfs { uuid, label: String::from_utf8_lossy(label).into_owned() })
}

/// Makes `dev/disk/by-uuid/UUID`. A node has no udev, the engine waits ten seconds for this link when it makes a pool,
/// and later mounts by it.
///
/// # Errors
/// Those of creating the directory and the link.
pub fn link_by_uuid(uuid: &str, device: &Path, dev: &Path) -> io::Result<()> {
    let directory = dev.join("disk/by-uuid");
    fs::create_dir_all(&directory)?;
    let target = fs::canonicalize(device)?;
    let link = directory.join(uuid);
    if fs::read_link(&link).is_ok_and(|t| t == target) {
        return Ok(());
    }
    match fs::remove_file(&link) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    std::os::unix::fs::symlink(target, link)
}

/// Whether this tree contains only directories, of which pools have a fixed set.
///
/// # Errors
/// It cannot be read.
pub fn only_directories(tree: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(tree)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() || !only_directories(&entry.path())? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the btrfs pool on the device contains only its own empty directories. Mounts it read-only meanwhile.
///
/// # Errors
/// It cannot be mounted or read.
pub fn is_unused_pool(device: &Path, scratch: &Path) -> io::Result<bool> {
    let point = scratch.join("stead-pool-check");
    fs::create_dir_all(&point)?;
    mount(device, &point, "btrfs", MountFlags::RDONLY, None)?;
    let answer = only_directories(&point);
    unmount(&point, UnmountFlags::empty())?;
    let _ = fs::remove_dir(&point);
    answer
}

/// Removes the filesystem's signatures, so that the device is blank.
///
/// # Errors
/// It is not a block device or cannot be written; `ResourceBusy` while it is mounted anywhere: a filesystem that is
/// still being unmounted (by a node that was just killed) would write its superblock back.
pub fn wipe(device: &Path) -> io::Result<()> {
    let exclusive = rustix::fs::OFlags::EXCL.bits() as i32;
    let mut file = OpenOptions::new().read(true).write(true).custom_flags(exclusive).open(device)?;
    if !file.metadata()?.file_type().is_block_device() {
        return Err(io::Error::other("not a block device"));
    }
    let length = file.seek(SeekFrom::End(0))?;
    wipe_signatures(&mut file, length)
}

fn wipe_signatures(file: &mut File, length: u64) -> io::Result<()> {
    for at in BTRFS_SUPERBLOCKS {
        if at + BTRFS_SUPERBLOCK_LENGTH as u64 <= length {
            file.seek(SeekFrom::Start(at))?;
            file.write_all(&[0; BTRFS_SUPERBLOCK_LENGTH])?;
        }
    }
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&vec![0; EDGE.min(length) as usize])?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_and_data_are_distinguished() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk");
        let disk = File::create(&file).unwrap();
        disk.set_len(200 << 20).unwrap();
        assert_eq!(probe(&file).unwrap(), Content::Blank);
        for at in [0, 1080, (200 << 20) - 512] {
            let mut disk = OpenOptions::new().write(true).open(&file).unwrap();
            disk.seek(SeekFrom::Start(at)).unwrap();
            disk.write_all(b"x").unwrap();
            assert_eq!(probe(&file).unwrap(), Content::Other, "{at}");
            disk.seek(SeekFrom::Start(at)).unwrap();
            disk.write_all(&[0]).unwrap();
        }
        let tiny = dir.path().join("tiny");
        fs::write(&tiny, [0; 100]).unwrap();
        assert_eq!(probe(&tiny).unwrap(), Content::Blank);
        assert!(wipe(&tiny).is_err(), "a plain file was wiped");
    }

    #[test]
    fn filesystems_of_mkfs_are_recognised() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk");
        File::create(&file).unwrap().set_len(200 << 20).unwrap();
        let uuid = "0f0e0d0c-0b0a-0908-0706-050403020100";
        let made = std::process::Command::new("mkfs.btrfs")
            .args(["-q", "-L", "default", "-U", uuid])
            .arg(&file)
            .status();
        if !made.is_ok_and(|s| s.success()) {
            println!("SKIP filesystems_of_mkfs_are_recognised: mkfs.btrfs is not installed");
            return;
        }
        assert_eq!(probe(&file).unwrap(), Content::Btrfs { uuid: uuid.into(), label: "default".into() });
        let mut disk = OpenOptions::new().read(true).write(true).open(&file).unwrap();
        disk.seek(SeekFrom::Start(BTRFS_SUPERBLOCKS[0] + 0x40)).unwrap();
        disk.write_all(b"!").unwrap();
        assert_eq!(probe(&file).unwrap(), Content::HalfMade);
        assert_eq!(btrfs_uuid(&file), None);
        wipe_signatures(&mut disk, 200 << 20).unwrap();
        assert_eq!(probe(&file).unwrap(), Content::Blank);
    }

    #[test]
    fn finds_by_link_and_by_sysfs() {
        let dir = tempfile::tempdir().unwrap();
        let (dev, sys) = (dir.path().join("dev"), dir.path().join("sys"));
        fs::create_dir_all(dev.join("disk/by-serial")).unwrap();
        fs::create_dir_all(sys.join("block/vdb")).unwrap();
        fs::create_dir_all(sys.join("block/vdc")).unwrap();
        fs::write(sys.join("block/vdb/serial"), "pool\n").unwrap();
        assert_eq!(find("pool", &dev, &sys), Some(dev.join("vdb")));
        assert_eq!(find("other", &dev, &sys), None);
        fs::write(dev.join("loop7"), "").unwrap();
        std::os::unix::fs::symlink(dev.join("loop7"), dev.join("disk/by-serial/pool")).unwrap();
        assert_eq!(find("pool", &dev, &sys), Some(dev.join("disk/by-serial/pool")));
        link_by_uuid("u-1", &dev.join("disk/by-serial/pool"), &dev).unwrap();
        link_by_uuid("u-1", &dev.join("loop7"), &dev).unwrap();
        assert_eq!(
            fs::canonicalize(dev.join("disk/by-uuid/u-1")).unwrap(),
            fs::canonicalize(dev.join("loop7")).unwrap()
        );
    }

    #[test]
    fn one_file_makes_a_pool_used() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("containers/a")).unwrap();
        assert!(only_directories(dir.path()).unwrap());
        fs::write(dir.path().join("containers/a/f"), "").unwrap();
        assert!(!only_directories(dir.path()).unwrap());
    }
}
