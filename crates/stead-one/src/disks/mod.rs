//! The disks of a VM on its host: from a file, block device or Ceph image in a datastore to a mounted filesystem.
//!
//! A disk is mapped in steps ([`step::Step`]), each decided from what was seen before it ([`plan`]) and each with its
//! undo, which is written to the VM's journal ([`journal`]) before the step is done. Whatever fails, or is killed at
//! whatever moment, the journal undoes; the next deploy begins with that. Owns also which paths may be touched at all
//! ([`place`]). Does not own the instance's devices ([`crate::instance`]) nor making and moving the files, which
//! OpenNebula's transfer drivers do.

pub mod fstab;
pub mod idmap;
pub mod journal;
mod loops;
mod map;
mod mounts;
pub mod nbd;
pub mod place;
pub mod plan;
pub mod probe;
pub mod qcow2;
mod qmp;
mod resize;
pub mod step;
pub(crate) mod tool;

pub use map::{Mapped, Mapper};
pub use place::Place;
pub use tool::{ToolError, run as run_tool};

use std::{io, path::PathBuf};

/// Whether something is mounted exactly there. What cannot be told is taken for mounted: deleting what is would be worse.
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
    Tool(#[from] ToolError),
    /// The disk's file is not where it has to be.
    #[error(transparent)]
    Place(#[from] place::PlaceError),
    /// What is in it cannot be mounted.
    #[error(transparent)]
    Plan(#[from] plan::PlanError),
    /// The header of a qcow2 image.
    #[error(transparent)]
    Qcow2(#[from] qcow2::Qcow2Error),
    /// A file of the driver's own, or a directory.
    #[error("cannot {action} {}", .path.display())]
    File {
        /// What was done.
        action: &'static str,
        /// With which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
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
    /// A program did what it was told but not what it should.
    #[error("{0}")]
    Unexpected(String),
    /// Several undo steps failed; each of them is told.
    #[error("cannot undo everything: {}", .0.join("; "))]
    Undo(Vec<String>),
}

impl DiskError {
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
