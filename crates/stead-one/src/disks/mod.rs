//! The disks of a VM on its host: from a file, block device or Ceph image in a datastore to a mounted filesystem.
//!
//! A disk is mapped in steps ([`step::Step`]), each planned from what was observed before it ([`plan`]), each with an
//! undo that is written to the VM's journal ([`journal`]) before the step runs. After a failure or a kill at any moment
//! the journal undoes everything; the next deploy begins with that. Also owns which paths may be touched ([`place`]).
//! Does not own the instance's devices ([`crate::instance`]), or creating and moving the files, which OpenNebula's
//! transfer drivers do.

mod export;
mod filesystem;
pub mod fstab;
pub mod idmap;
pub mod journal;
mod map;
mod mounts;
pub mod nbd;
pub mod place;
pub mod plan;
pub mod probe;
pub mod qcow2;
mod resize;
pub mod step;

pub use map::{Mapped, Mapper};
pub use place::Place;
use std::{io, path::PathBuf, time::Duration};
use stead_os::{CommandError, PathError, Program};

/// Time limit of programs on disks: checking or growing a filesystem takes as long as the disk is large, and OpenNebula
/// ends a script that takes too long.
const PROGRAM_PATIENCE: Duration = Duration::from_secs(2 * 3600);

/// A program that works on disks.
pub(crate) fn program(name: &str) -> Program {
    Program::new(name).timeout(PROGRAM_PATIENCE)
}

/// Whether something is mounted exactly there. If that is unknown the answer is yes, because deleting a mounted
/// filesystem would be worse.
pub fn is_mounted(at: &std::path::Path) -> bool {
    mounts::is_mountpoint(at).unwrap_or(true)
}

/// Prepares a mounted root filesystem for a start by LXD 5.0, which unmounts an instance's root once when it starts:
/// mounts it a second time. Undoing the mount undoes both.
///
/// # Errors
/// It cannot be mounted twice.
pub fn brace(at: &std::path::Path) -> Result<(), DiskError> {
    mounts::brace(at)
}

/// A disk cannot be mapped or unmapped.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A program failed.
    #[error(transparent)]
    Tool(#[from] CommandError),
    /// The disk's file is not in an allowed place.
    #[error(transparent)]
    Place(#[from] place::PlaceError),
    /// Its content cannot be mounted.
    #[error(transparent)]
    Plan(#[from] plan::PlanError),
    /// A qcow2 image's header is unusable.
    #[error(transparent)]
    Qcow2(#[from] qcow2::Qcow2Error),
    /// An operation failed on one of the driver's own files, a directory or a loop device.
    #[error(transparent)]
    File(#[from] PathError),
    /// The daemon that exports an image refuses to change it.
    #[error("cannot grow the image that the daemon at {} exports", .control.display())]
    Daemon {
        /// The daemon's control socket.
        control: PathBuf,
        /// Why.
        #[source]
        source: stead_os::qmp::QmpError,
    },
    /// mount(2) refused.
    #[error("cannot mount {} ({filesystem}) on {}", .device.display(), .at.display())]
    Mount {
        /// What.
        device: PathBuf,
        /// Its filesystem.
        filesystem: String,
        /// Where.
        at: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// umount(2) refused.
    #[error("cannot unmount {}", .at.display())]
    Unmount {
        /// What.
        at: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program succeeded without its expected effect.
    #[error("{0}")]
    Unexpected(String),
    /// Several undo steps failed: every error, with its causes.
    #[error("cannot undo everything: {}", .0.join("; "))]
    Undo(Vec<String>),
}
