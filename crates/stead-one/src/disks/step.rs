//! Steps of mapping a disk, and their undos.

use super::probe::Window;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The host cache mode of an image: CACHE of the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Cache(pub String);

/// One step. Only [`super::Mapper`] executes them; all choices were made before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// Exports an image as a raw file, by a qemu-storage-daemon with a FUSE export.
    Export {
        /// The image.
        image: PathBuf,
        /// The exported file.
        at: PathBuf,
        /// The file for the daemon's process id.
        pidfile: PathBuf,
        /// Its control socket.
        control: PathBuf,
        /// CACHE.
        cache: Option<Cache>,
        /// Whether it is read-only.
        readonly: bool,
    },
    /// Attaches an image to a network block device of the kernel.
    Nbd {
        /// The image.
        image: PathBuf,
        /// A free device.
        device: PathBuf,
        /// CACHE.
        cache: Option<Cache>,
        /// Whether it is read-only.
        readonly: bool,
    },
    /// Attaches a Ceph image to a network block device.
    Rbd {
        /// `pool/image`.
        image: String,
        /// A free, suitable device; `None`: the module is not loaded yet.
        device: Option<PathBuf>,
        /// CEPH_USER.
        user: Option<String>,
        /// CEPH_CONF.
        conf: Option<PathBuf>,
        /// Whether it is read-only.
        readonly: bool,
    },
    /// Attaches a file, or part of a file or device, to a loop device.
    Loop {
        /// What it attaches.
        window: Window,
        /// Whether it is read-only.
        readonly: bool,
    },
    /// Makes a filesystem on a blank disk.
    Format {
        /// `ext4`, `xfs`, `btrfs`.
        filesystem: String,
    },
    /// Gives the filesystem a new identity and, if it should grow and can offline, grows it to its device.
    Prepare {
        /// Its kind.
        filesystem: String,
        /// Whether to grow it.
        grow: bool,
    },
    /// Mounts the filesystem.
    Mount {
        /// Its kind.
        filesystem: String,
        /// Where.
        at: PathBuf,
        /// Whether it is read-only.
        readonly: bool,
    },
    /// Grows the mounted filesystem to its device.
    Grow {
        /// Its kind.
        filesystem: String,
        /// Where it is mounted.
        at: PathBuf,
    },
}

/// The undo of a step. It identifies its object independently of whether the step was finished, and undoing twice, or
/// without the step, is not an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "undo", rename_all = "snake_case")]
pub enum Undo {
    /// Ends a qemu-storage-daemon.
    EndExport {
        /// The file with its process id.
        pidfile: PathBuf,
        /// The exported file.
        at: PathBuf,
    },
    /// `qemu-nbd -d`.
    DisconnectNbd {
        /// The device.
        device: PathBuf,
        /// The image it was connected to: a connection to another image is left alone.
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
        /// Offset of the window.
        offset_bytes: u64,
    },
    /// Unmounts.
    Unmount {
        /// What.
        at: PathBuf,
    },
    /// Removes an empty directory.
    RemoveDirectory {
        /// Which.
        path: PathBuf,
    },
}
