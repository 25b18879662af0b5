//! Files that are a machine's disks.

use crate::spec::MachineDisk;
use std::{fs::File, io, os::unix::fs::OpenOptionsExt};
use stead_os::{LoopDevice, PathContext, PathError, loops::Options};

/// Makes the file, sparse, when it is missing. One that is there keeps its content and its size.
pub(crate) fn ensure_file(disk: &MachineDisk) -> Result<(), PathError> {
    let make = || -> io::Result<()> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&disk.path)?;
        // Empty: new, or its making was cut short.
        if file.metadata()?.len() == 0 {
            file.set_len(disk.size.0)?;
        }
        Ok(())
    };
    make().at("make disk", &disk.path)
}

/// Attaches a disk to a loop device that lets go of it once nothing uses it.
pub(crate) fn attach(disk: &MachineDisk) -> Result<LoopDevice, PathError> {
    ensure_file(disk)?;
    LoopDevice::attach(&disk.path, &Options { autoclear: true, ..Options::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_model::Bytes;

    #[test]
    fn a_disk_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut disk =
            MachineDisk { serial: "data".into(), path: dir.path().join("d.img"), size: Bytes::mib(1) };
        ensure_file(&disk).unwrap();
        assert_eq!(disk.path.metadata().unwrap().len(), 1 << 20);
        std::fs::write(&disk.path, "content").unwrap();
        disk.size = Bytes::mib(2);
        ensure_file(&disk).unwrap();
        assert_eq!(std::fs::read_to_string(&disk.path).unwrap(), "content");
    }
}
