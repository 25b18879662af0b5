//! Growing a disk that is in use.

use super::{DiskError, Mapper, export, filesystem, mounts, plan::PlanError, step::Undo};
use crate::ids::DiskId;
use std::path::Path;
use stead_os::loops;

impl Mapper<'_> {
    /// Grows the filesystem of a disk mounted at `at` to `size_mib`. The transfer driver has already grown a raw file,
    /// volume or Ceph image; an image exported by this host's daemon is grown through the daemon.
    ///
    /// # Errors
    /// [`DiskError`]; a disk with partitions is left unchanged.
    pub async fn grow(&mut self, disk: DiskId, at: &Path, size_mib: u64) -> Result<(), DiskError> {
        let partitioned =
            self.undos(disk).any(|u| matches!(u, Undo::DetachLoop { offset_bytes, .. } if *offset_bytes > 0));
        if partitioned {
            return Err(PlanError::Partitioned(disk).into());
        }
        let Some(mount) = mounts::uppermost(at)? else {
            return Err(DiskError::Unexpected(format!("disk {disk} is not mounted on this host")));
        };
        for undo in self.undos(disk) {
            match undo {
                Undo::EndExport { pidfile, .. } => {
                    export::grow(&export::control(pidfile), size_mib << 20).await?;
                }
                Undo::DisconnectNbd { .. } => {
                    return Err(DiskError::Unexpected(format!(
                        "disk {disk} is qcow2 behind qemu-nbd, which cannot grow while it is in use: power the VM off first"
                    )));
                }
                _ => {}
            }
        }
        if mount.source.to_string_lossy().starts_with("/dev/loop") {
            loops::refresh_size(&mount.source)?;
        }
        filesystem::grow(&mount.filesystem, at)
    }
}
