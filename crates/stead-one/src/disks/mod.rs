//! The disks of a VM on its host: from a file, block device or Ceph image in a datastore to a mounted filesystem.
//!
//! A disk is mapped in steps ([`step::Step`]), each decided from what was seen before it ([`plan`]) and each with its
//! undo, which is written to the VM's journal ([`journal`]) before the step is done. Whatever fails, or is killed at
//! whatever moment, the journal undoes; the next deploy begins with that. Owns also which paths may be touched at all
//! ([`place`]). Does not own the instance's devices ([`crate::instance`]) nor making and moving the files, which
//! OpenNebula's transfer drivers do.

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

/// A program that checks or grows a filesystem takes as long as the disk is large; OpenNebula ends a script that takes
/// too long for it.
const PROGRAM_PATIENCE: Duration = Duration::from_secs(2 * 3600);

/// A program that works on disks.
pub(crate) fn program(name: &str) -> Program {
    Program::new(name).timeout(PROGRAM_PATIENCE)
}

/// Whether something is mounted exactly there. If that cannot be found out the answer is yes: deleting what is mounted
/// would be worse.
pub fn is_mounted(at: &std::path::Path) -> bool {
    mounts::is_mountpoint(at).unwrap_or(true)
}

/// Readies a mounted root filesystem for a start by LXD 5.0, which unmounts what is mounted on an instance's root once when
/// it starts: below it the same is mounted again. Undoing the mount undoes both.
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
    /// The disk's file is not where it has to be.
    #[error(transparent)]
    Place(#[from] place::PlaceError),
    /// What is in it cannot be mounted.
    #[error(transparent)]
    Plan(#[from] plan::PlanError),
    /// The header of a qcow2 image.
    #[error(transparent)]
    Qcow2(#[from] qcow2::Qcow2Error),
    /// A file of the driver's own, a directory, or a loop device.
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
    /// A program succeeded without the effect it should have had.
    #[error("{0}")]
    Unexpected(String),
    /// Several undo steps failed: every error, with its causes.
    #[error("cannot undo everything: {}", .0.join("; "))]
    Undo(Vec<String>),
}
