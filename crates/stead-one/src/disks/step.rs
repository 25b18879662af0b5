//! Steps of mapping a disk, and what undoes each.

use super::probe::Window;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How an image's host cache is used: CACHE of the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Cache(pub String);

/// One step. Only [`super::Mapper`] does them; what each needs was decided before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// An image becomes a file of raw bytes, by a qemu-storage-daemon with a FUSE export.
    Export {
        /// The image.
        image: PathBuf,
        /// The file it appears as.
        at: PathBuf,
        /// The daemon's process id is written here.
        pidfile: PathBuf,
        /// Its control socket.
        control: PathBuf,
        /// CACHE.
        cache: Option<Cache>,
        /// Nothing can be written.
        readonly: bool,
    },
    /// An image becomes a network block device of the kernel.
    Nbd {
        /// The image.
        image: PathBuf,
        /// A free device.
        device: PathBuf,
        /// CACHE.
        cache: Option<Cache>,
        /// Nothing can be written.
        readonly: bool,
    },
    /// A Ceph image becomes a network block device.
    Rbd {
        /// `pool/image`.
        image: String,
        /// One that is free and fit; absent: the module is not loaded yet.
        device: Option<PathBuf>,
        /// CEPH_USER.
        user: Option<String>,
        /// CEPH_CONF.
        conf: Option<PathBuf>,
        /// Nothing can be written.
        readonly: bool,
    },
    /// A file, or part of a file or device, becomes a loop device.
    Loop {
        /// Of what.
        window: Window,
        /// Nothing can be written.
        readonly: bool,
    },
    /// A blank disk gets a filesystem.
    Format {
        /// `ext4`, `xfs`, `btrfs`.
        filesystem: String,
    },
    /// The filesystem gets an identity of its own, and fills its device if it is to grow and can offline.
    Prepare {
        /// Its kind.
        filesystem: String,
        /// Also grow it.
        grow: bool,
    },
    /// The filesystem is mounted.
    Mount {
        /// Its kind.
        filesystem: String,
        /// Where.
        at: PathBuf,
        /// Nothing can be written.
        readonly: bool,
    },
    /// The mounted filesystem fills its device.
    Grow {
        /// Its kind.
        filesystem: String,
        /// Where it is mounted.
        at: PathBuf,
    },
}

/// What undoes a step. It names what it undoes by what stays the same whether or not the step was finished, and doing it
/// twice, or without the step having happened, is no error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "undo", rename_all = "snake_case")]
pub enum Undo {
    /// Ends a qemu-storage-daemon.
    EndExport {
        /// Where its process id is.
        pidfile: PathBuf,
        /// Its file.
        at: PathBuf,
    },
    /// `qemu-nbd -d`.
    DisconnectNbd {
        /// The device.
        device: PathBuf,
        /// The image it was connected to: another's connection is left alone.
        image: PathBuf,
    },
    /// `rbd-nbd unmap`.
    UnmapRbd {
        /// `pool/image`.
        image: String,
    },
    /// Detaches the loop devices of a file at an offset.
    DetachLoop {
        /// File or device.
        bytes: PathBuf,
        /// Where the window begins.
        offset_bytes: u64,
    },
    /// Unmounts.
    Unmount {
        /// What.
        at: PathBuf,
    },
    /// Removes a directory that is empty.
    RemoveDirectory {
        /// Which.
        path: PathBuf,
    },
}
