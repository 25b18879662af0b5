//! Growing a disk that is in use.

use super::{
    DiskError, Mapper, loops,
    map::{control, grow_mounted},
    mounts,
    plan::PlanError,
    qmp,
    step::Undo,
};
use crate::ids::DiskId;
use std::path::Path;

impl Mapper<'_> {
    /// Lets a disk that is mounted at `at` have `size_mib`. A raw file, volume or Ceph image was grown by the transfer
    /// driver already; an image in use by this host's daemon is grown through it.
    ///
    /// # Errors
    /// [`DiskError`]; nothing is changed when the disk has partitions.
    pub fn grow(&mut self, disk: DiskId, at: &Path, size_mib: u64) -> Result<(), DiskError> {
        let partitioned =
            self.undos(disk).any(|u| matches!(u, Undo::DetachLoop { offset_bytes, .. } if *offset_bytes > 0));
        if partitioned {
            return Err(PlanError::Partitioned(disk).into());
        }
        let Some((device, filesystem)) = mounts::device(at)? else {
            return Err(DiskError::Unexpected(format!("disk {disk} is not mounted on this host")));
        };
        for undo in self.undos(disk) {
            match undo {
                Undo::EndExport { pidfile, .. } => {
                    qmp::grow(&control(pidfile), size_mib << 20)?;
                }
                Undo::DisconnectNbd { .. } => {
                    return Err(DiskError::Unexpected(format!(
                        "disk {disk} is qcow2 behind qemu-nbd, which cannot grow while it is used: power the VM off first"
                    )));
                }
                _ => {}
            }
        }
        if device.to_string_lossy().starts_with("/dev/loop") {
            loops::refresh(&device)?;
        }
        grow_mounted(&filesystem, at)
    }
}
