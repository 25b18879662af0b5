//! Runs the filesystems' own programs: makes a filesystem, gives it a new identity, grows it to its device.

use super::{DiskError, mounts, program};
use std::path::Path;

/// Makes a filesystem on a blank device.
pub(super) fn make(filesystem: &str, device: &Path) -> Result<(), DiskError> {
    let quiet = if filesystem == "ext4" || filesystem == "ext3" { "-Fq" } else { "-q" };
    program(&format!("mkfs.{filesystem}")).arg(quiet).arg(device).run()?;
    Ok(())
}

/// Gives an unmounted filesystem a new identity: two clones of an image must not have the same identity on a host. With
/// `grow`, a filesystem that can grow offline fills its device. Returns a note when it keeps its identity.
pub(super) fn prepare(filesystem: &str, device: &Path, grow: bool) -> Result<Option<String>, DiskError> {
    match filesystem {
        "xfs" => {
            // With a dirty log XFS keeps its UUID; it is mounted with nouuid.
            if let Err(error) = program("xfs_admin").args(["-U", "generate"]).arg(device).run() {
                return Ok(Some(format!("keeps its UUID: {}", stead_os::chain(&error))));
            }
        }
        "btrfs" => {
            program("btrfstune").args(["-f", "-m"]).arg(device).run()?;
        }
        _ => {
            // 1: errors were corrected.
            program("e2fsck").args(["-f", "-p"]).arg(device).accept(1).run()?;
            program("tune2fs").args(["-U", "random"]).arg(device).run()?;
            if grow {
                program("resize2fs").arg(device).run()?;
            }
        }
    }
    Ok(None)
}

/// Grows a mounted filesystem to its device.
pub(super) fn grow(filesystem: &str, at: &Path) -> Result<(), DiskError> {
    match filesystem {
        "xfs" => program("xfs_growfs").arg("-d").arg(at).run()?,
        "btrfs" => program("btrfs").args(["filesystem", "resize", "max"]).arg(at).run()?,
        _ => {
            let mount = mounts::uppermost(at)?
                .ok_or_else(|| DiskError::Unexpected(format!("{} is not mounted", at.display())))?;
            program("resize2fs").arg(mount.source).run()?
        }
    };
    Ok(())
}
