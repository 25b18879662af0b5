//! Which paths a VM's disks may have.
//!
//! A disk is `<datastores>/<system datastore>/<vm>/disk.<id>`, or what that is a link to: the file in the image datastore
//! that the document names, one of its snapshots, or, for block disks, a device. Anything else is another VM's, another
//! user's image, or the host's, and is refused.

use crate::{
    document::{Disk, DiskKind},
    ids::{DatastoreId, DiskId, InstanceName, VmId},
};
use std::{
    fs, io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};
use stead_os::{PathContext, PathError};

/// The driver's directories on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// What is mounted and running, gone after a reboot as they are: `/run/stead-one`.
    pub run: PathBuf,
    /// `datastore_location` of the configuration.
    pub datastores: PathBuf,
}

/// A path that may not be used.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Not there, or not reachable.
    #[error(transparent)]
    Find(#[from] PathError),
    /// It leads elsewhere.
    #[error("disk {disk} ({}) leads to {}, which is neither the VM's nor its image's", .path.display(), .to.display())]
    Outside {
        /// Which disk.
        disk: DiskId,
        /// Where it should be.
        path: PathBuf,
        /// Where it is.
        to: PathBuf,
    },
    /// A directory, a socket, …
    #[error("disk {disk} ({}) is neither a file nor a block device", .path.display())]
    Kind {
        /// Which disk.
        disk: DiskId,
        /// Where it is.
        path: PathBuf,
    },
    /// The document has no history, so there is no directory.
    #[error("the document does not say in which datastore VM {0} is")]
    NoDatastore(VmId),
}

impl Place {
    /// Everything of one instance here.
    pub fn directory(&self, name: &InstanceName) -> PathBuf {
        self.run.join(name.as_str())
    }
    /// Where a disk that is not root is mounted.
    pub fn mountpoint(&self, name: &InstanceName, disk: DiskId) -> PathBuf {
        self.directory(name).join(format!("disk.{disk}"))
    }
    /// The VM's directory in its datastore.
    ///
    /// # Errors
    /// The document does not tell the datastore.
    pub fn vm(&self, vm: VmId, datastore: Option<DatastoreId>) -> Result<PathBuf, PlaceError> {
        let datastore = datastore.ok_or(PlaceError::NoDatastore(vm))?;
        Ok(self.datastores.join(datastore.to_string()).join(vm.to_string()))
    }

    /// Whether the VM's directory is gone while its datastore is there: OpenNebula has deleted the VM, or moved it away.
    pub fn is_deleted(&self, vm: VmId, datastore: Option<DatastoreId>) -> bool {
        let Ok(directory) = self.vm(vm, datastore) else { return false };
        let is_gone =
            |path: &Path| fs::symlink_metadata(path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
        is_gone(&directory) && directory.parent().is_some_and(Path::is_dir)
    }

    /// The file or device that a disk's bytes are in, without links, and the files and directories which its backing files
    /// may be or be in.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub fn source(&self, vm_directory: &Path, disk: &Disk) -> Result<(PathBuf, Vec<PathBuf>), PlaceError> {
        let path = vm_directory.join(format!("disk.{}", disk.id));
        let own = real(vm_directory)?;
        let to = real(&path)?;
        let mut allowed = vec![own];
        if let (Some(datastore), Some(image)) = (disk.datastore, &disk.image)
            && let Ok(images) = real(&self.datastores.join(datastore.to_string()))
        {
            // OpenNebula keeps the snapshots of an image beside it.
            allowed.extend([images.join(image), images.join(format!("{image}.snap"))]);
        }
        let kind = fs::metadata(&to).at("find", &to)?.file_type();
        if kind.is_block_device() {
            // LVM's are links to /dev/vg-one-<datastore>/…, made by the transfer driver.
            if disk.kind == DiskKind::Block && to.starts_with("/dev") {
                return Ok((to, Vec::new()));
            }
            return Err(PlaceError::Outside { disk: disk.id, path, to });
        }
        if !kind.is_file() {
            return Err(PlaceError::Kind { disk: disk.id, path });
        }
        if !allowed.iter().any(|directory| to.starts_with(directory)) {
            return Err(PlaceError::Outside { disk: disk.id, path, to });
        }
        Ok((to, allowed))
    }
}

fn real(path: &Path) -> Result<PathBuf, PlaceError> {
    Ok(fs::canonicalize(path).at("find", path)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn disk(id: u32, extra: &str) -> Disk {
        let text = format!(
            "<VM><ID>7</ID><TEMPLATE><DISK><DISK_ID>{id}</DISK_ID><DATASTORE_ID>1</DATASTORE_ID><SOURCE>/frontend//datastores/1/image</SOURCE>{extra}</DISK></TEMPLATE></VM>"
        );
        crate::document::read(&text).unwrap().0.disks.remove(0)
    }

    #[test]
    fn only_the_vms_own_and_its_images() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place { run: "/run/x".into(), datastores: dir.path().to_owned() };
        let own = dir.path().join("0/7");
        for d in ["0/7", "0/8", "1/image.snap", "2"] {
            fs::create_dir_all(dir.path().join(d)).unwrap();
        }
        for file in ["0/7/disk.0", "0/8/disk.0", "1/image", "1/image.snap/0", "1/others", "2/image"] {
            fs::write(dir.path().join(file), "x").unwrap();
        }
        let deleted = |vm, ds| place.is_deleted(VmId(vm), ds);
        assert!(deleted(9, Some(DatastoreId(0))) && !deleted(7, Some(DatastoreId(0))));
        // A datastore that is not there now says nothing of its VMs.
        assert!(!deleted(7, Some(DatastoreId(3))) && !deleted(7, None));
        symlink(dir.path().join("1/image"), own.join("disk.1")).unwrap();
        symlink("../8/disk.0", own.join("disk.2")).unwrap();
        symlink("/etc/shadow", own.join("disk.3")).unwrap();
        symlink(dir.path().join("2/image"), own.join("disk.4")).unwrap();
        symlink("/dev/null", own.join("disk.5")).unwrap();
        fs::create_dir(own.join("disk.6")).unwrap();
        symlink(dir.path().join("1/others"), own.join("disk.9")).unwrap();
        symlink(dir.path().join("1/image.snap/0"), own.join("disk.10")).unwrap();
        for good in [0, 1, 10] {
            assert!(place.source(&own, &disk(good, "")).is_ok(), "disk {good}");
        }
        for bad in [2, 3, 4, 5, 6, 7, 9] {
            assert!(place.source(&own, &disk(bad, "")).is_err(), "disk {bad}");
        }
        // A loop device would do as LVM's, but only for what the document calls a block disk.
        if Path::new("/dev/loop0").exists() {
            symlink("/dev/loop0", own.join("disk.8")).unwrap();
            assert!(place.source(&own, &disk(8, "")).is_err());
            assert!(place.source(&own, &disk(8, "<DISK_TYPE>BLOCK</DISK_TYPE>")).is_ok());
        }
    }
}
