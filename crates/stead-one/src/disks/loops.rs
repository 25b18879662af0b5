//! Loop devices, by losetup: it finds them by the file's inode, so equal paths elsewhere are not confused.

use super::{DiskError, probe::Window, tool};
use std::path::{Path, PathBuf};

/// Attaches a window to a free loop device.
pub(super) fn attach(window: &Window, readonly: bool) -> Result<PathBuf, DiskError> {
    let mut arguments: Vec<String> = vec!["--find".into(), "--show".into()];
    if readonly {
        arguments.push("--read-only".into());
    }
    if let Some((offset, length)) = window.part {
        arguments.extend([format!("--offset={offset}"), format!("--sizelimit={length}")]);
    }
    arguments.push(window.bytes.display().to_string());
    let said = tool::run("losetup", &arguments, &[])?;
    let device = said.trim();
    if !device.starts_with("/dev/loop") {
        return Err(DiskError::Unexpected(format!("losetup attached {device:?}, which is no loop device")));
    }
    Ok(PathBuf::from(device))
}

/// Lets go of a device once nothing uses it; its filesystem being mounted is such a use.
pub(super) fn release(device: &Path) -> Result<(), DiskError> {
    tool::run("losetup", &[Path::new("--detach"), device], &[])?;
    Ok(())
}

/// Detaches what is attached to a file at an offset. The file may be gone, and with it nothing can be found: then its
/// loop devices, if there were any, end with their mounts.
pub(super) fn detach(bytes: &Path, offset_bytes: u64) -> Result<(), DiskError> {
    if !bytes.exists() {
        return Ok(());
    }
    let arguments = [
        Path::new("--associated"),
        bytes,
        Path::new("--output"),
        Path::new("NAME,OFFSET"),
        Path::new("--noheadings"),
        Path::new("--raw"),
    ];
    let said = tool::run("losetup", &arguments, &[])?;
    for line in said.lines() {
        let mut fields = line.split_whitespace();
        if let (Some(device), Some(offset)) = (fields.next(), fields.next())
            && offset.parse() == Ok(offset_bytes)
        {
            // Gone in between is as good.
            let _ = release(Path::new(device));
        }
    }
    Ok(())
}

/// Tells the kernel that the file behind a device grew. A FUSE file's size is asked for anew first: the kernel keeps it
/// for a while.
pub(super) fn refresh(device: &Path) -> Result<(), DiskError> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let said = Path::new("/sys/block").join(device.file_name().unwrap_or_default()).join("loop/backing_file");
    if let Ok(file) = std::fs::read_to_string(said) {
        let _ = statx(CWD, file.trim_end(), AtFlags::STATX_FORCE_SYNC, StatxFlags::SIZE);
    }
    tool::run("losetup", &[Path::new("--set-capacity"), device], &[])?;
    Ok(())
}
