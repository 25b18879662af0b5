//! Plans the steps for a disk from its content. Pure.

use super::{
    fstab::{Entry, Tag},
    nbd,
    place::Place,
    probe::{Filesystem, Layout, Partition, Window},
    step::{Cache, Step},
};
use crate::{
    document::{Disk, DiskKind, ImageFormat, Role},
    ids::{DiskId, InstanceName},
};
use std::path::Path;

/// Filesystems that are mounted. The kernel knows more, but not all of them are safe with untrusted images.
const MOUNTED: [&str; 9] = ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "vfat", "iso9660", "squashfs"];
/// Filesystems that volatile disks can get.
const MADE: [&str; 7] = ["ext4", "xfs", "btrfs", "ext2", "ext3", "f2fs", "vfat"];
/// Filesystems whose owners the kernel can shift on a mount.
const SHIFTABLE: [&str; 6] = ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"];

/// A disk that cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Its content cannot be mounted.
    #[error("disk {disk} contains {found}, which cannot be mounted")]
    Content {
        /// Which.
        disk: DiskId,
        /// What is on it.
        found: String,
    },
    /// A volatile disk asks for a filesystem that cannot be made.
    #[error("disk {disk} cannot be formatted as FS={asked}: {} can be made", MADE.join(", "))]
    Made {
        /// Which.
        disk: DiskId,
        /// FS.
        asked: String,
    },
    /// An image is blank although it is not a volatile disk.
    #[error("disk {0} is blank: only volatile disks are formatted")]
    Blank(DiskId),
    /// No partition is a root filesystem.
    #[error("none of the partitions of disk {0} has /etc/fstab")]
    NoRoot(DiskId),
    /// Only whole filesystems can grow in use.
    #[error("disk {0} has partitions, so it cannot be grown while it is in use")]
    Partitioned(DiskId),
    /// The host has no way to expose the image.
    #[error(
        "disk {0} is qcow2, and this host has neither free nbd devices with qemu-nbd nor qemu-storage-daemon with FUSE"
    )]
    NoQcow2(DiskId),
    /// The host has no device for the Ceph image.
    #[error(
        "disk {0} is a Ceph image, and every free network block device was used by qemu-nbd since the module was loaded, on which rbd-nbd would hang: load the module nbd with a larger nbds_max"
    )]
    NoRbdDevice(DiskId),
}

/// The host's means for images.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    /// A network block device for the program that the disk needs.
    pub nbd: nbd::Offer,
    /// Whether it has qemu-storage-daemon and /dev/fuse.
    pub export: bool,
}

/// The step that exposes a disk's bytes as a file or device; `None`: they already are.
///
/// # Errors
/// The host lacks the means.
pub fn expose(
    place: &Place,
    name: &InstanceName,
    disk: &Disk,
    source: &Path,
    format: ImageFormat,
    offer: &Offer,
) -> Result<Option<Step>, PlanError> {
    let cache = disk.cache.clone().map(Cache);
    if let DiskKind::Rbd { image, user, conf } = &disk.kind {
        let device = match &offer.nbd {
            nbd::Offer::Device(device) => Some(device.clone()),
            nbd::Offer::NoModule => None,
            nbd::Offer::NoneFree => return Err(PlanError::NoRbdDevice(disk.id)),
        };
        let (image, user, conf) = (image.clone(), user.clone(), conf.clone());
        return Ok(Some(Step::Rbd { image, device, user, conf, readonly: disk.readonly }));
    }
    if format == ImageFormat::Raw {
        return Ok(None);
    }
    let (image, readonly) = (source.to_owned(), disk.readonly);
    if let nbd::Offer::Device(device) = &offer.nbd {
        return Ok(Some(Step::Nbd { image, device: device.clone(), cache, readonly }));
    }
    if !offer.export {
        return Err(PlanError::NoQcow2(disk.id));
    }
    let file = |suffix: &str| place.directory(name).join(format!("export.{}{suffix}", disk.id));
    Ok(Some(Step::Export {
        image,
        at: file(""),
        pidfile: file(".pid"),
        control: file(".control"),
        cache,
        readonly,
    }))
}

/// How a disk's content is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// One filesystem: these steps, in order.
    One(Vec<Step>),
    /// Several partitions: the first of these that has /etc/fstab is root.
    Search(Vec<Partition>),
}

/// How a disk is mounted at `at`.
///
/// # Errors
/// [`PlanError`].
pub fn mount(
    disk: &Disk,
    bytes: &Path,
    is_device: bool,
    layout: &Layout,
    filesystem: &str,
    at: &Path,
) -> Result<Way, PlanError> {
    let mut steps = Vec::new();
    let whole = Window { bytes: bytes.to_owned(), part: None };
    match layout {
        Layout::Blank if disk.role == Role::Volatile => {
            let kind = disk.filesystem.as_deref().unwrap_or(filesystem);
            if !MADE.contains(&kind) {
                return Err(PlanError::Made { disk: disk.id, asked: kind.to_owned() });
            }
            if !is_device {
                steps.push(Step::Loop { window: whole, readonly: false });
            }
            steps.push(Step::Format { filesystem: kind.to_owned() });
            steps.push(mounted(kind, at, disk.readonly));
            Ok(Way::One(steps))
        }
        Layout::Blank => Err(PlanError::Blank(disk.id)),
        Layout::Filesystem(found) => {
            let kind = mountable(disk.id, found)?;
            if !is_device {
                steps.push(Step::Loop { window: whole, readonly: disk.readonly });
            }
            if !disk.readonly && matches!(kind, "ext2" | "ext3" | "ext4" | "xfs" | "btrfs") {
                steps.push(Step::Prepare { filesystem: kind.to_owned(), grow: disk.grow });
            }
            steps.push(mounted(kind, at, disk.readonly));
            if disk.grow && !disk.readonly && matches!(kind, "xfs" | "btrfs") {
                steps.push(Step::Grow { filesystem: kind.to_owned(), at: at.to_owned() });
            }
            Ok(Way::One(steps))
        }
        Layout::Partitions(all) => {
            let usable: Vec<&Partition> =
                all.iter().filter(|p| p.filesystem.as_ref().is_some_and(is_mountable)).collect();
            match usable[..] {
                [] => Err(PlanError::Content {
                    disk: disk.id,
                    found: "a partition table without filesystems".to_owned(),
                }),
                [one] => Ok(Way::One(partition(bytes, one, at, disk.readonly))),
                _ => Ok(Way::Search(all.clone())),
            }
        }
        Layout::Other(kind) => Err(PlanError::Content { disk: disk.id, found: kind.clone() }),
    }
}

/// Steps that mount a partition.
pub fn partition(bytes: &Path, partition: &Partition, at: &Path, readonly: bool) -> Vec<Step> {
    let kind = partition.filesystem.as_ref().map_or("", |f| f.kind.as_str());
    let part = Some((partition.offset_bytes, partition.length_bytes));
    let window = Window { bytes: bytes.to_owned(), part };
    vec![Step::Loop { window, readonly }, mounted(kind, at, readonly)]
}

/// The partition that an entry of fstab names.
pub fn named<'a>(partitions: &'a [Partition], entry: &Entry) -> Option<&'a Partition> {
    let same = |a: Option<&String>, b: &str| a.is_some_and(|a| a.eq_ignore_ascii_case(b));
    partitions.iter().filter(|p| p.filesystem.as_ref().is_some_and(is_mountable)).find(|p| {
        let filesystem = p.filesystem.as_ref();
        match &entry.tag {
            Tag::Label(label) => filesystem.and_then(|f| f.label.as_ref()) == Some(label),
            Tag::Uuid(uuid) => same(filesystem.and_then(|f| f.uuid.as_ref()), uuid),
            Tag::PartUuid(uuid) => same(p.uuid.as_ref(), uuid),
        }
    })
}

/// Whether a filesystem may be mounted.
pub fn is_mountable(filesystem: &Filesystem) -> bool {
    MOUNTED.contains(&filesystem.kind.as_str())
}
/// Whether the kernel can shift the owners of a filesystem.
pub fn is_shiftable(kind: &str) -> bool {
    SHIFTABLE.contains(&kind)
}

fn mountable(disk: DiskId, filesystem: &Filesystem) -> Result<&str, PlanError> {
    if is_mountable(filesystem) {
        Ok(&filesystem.kind)
    } else {
        Err(PlanError::Content { disk, found: filesystem.kind.clone() })
    }
}

fn mounted(kind: &str, at: &Path, readonly: bool) -> Step {
    // These two are always read-only.
    let readonly = readonly || matches!(kind, "iso9660" | "squashfs");
    Step::Mount { filesystem: kind.to_owned(), at: at.to_owned(), readonly }
}
