//! Why a script fails.

use super::words::CallError;
use crate::{
    disks::DiskError,
    document::DocumentError,
    engine::EngineError,
    ids::{IdError, InstanceName},
    instance::InstanceError,
    lxdrc::LxdrcError,
    payload::PayloadError,
};
use std::{io, path::PathBuf};
use stead_os::PathError;

/// A script failed.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// Called wrongly.
    #[error(transparent)]
    Call(#[from] CallError),
    /// No document on stdin.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// An unusable document.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A value of it.
    #[error(transparent)]
    Value(#[from] IdError),
    /// An unusable configuration.
    #[error(transparent)]
    Lxdrc(#[from] LxdrcError),
    /// An instance that cannot be.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The disks.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The call and its document speak of different VMs.
    #[error("the script was called for {called}, but its document is of {document}")]
    OtherVm {
        /// By the arguments.
        called: String,
        /// By the document.
        document: String,
    },
    /// There is an instance of this name that runs.
    #[error("instance {0} is running already")]
    Running(InstanceName),
    /// There is an instance of this name that OpenNebula did not make.
    #[error("an instance {0} that OpenNebula did not make exists already")]
    Foreign(InstanceName),
    /// No such instance on this host.
    #[error("there is no instance {0} on this host")]
    Absent(InstanceName),
    /// An action that needs OpenNebula's disks, for an instance that has none.
    #[error(
        "{action} is not possible for instance {name}, which was imported: it has no disks of OpenNebula"
    )]
    Imported {
        /// What was asked.
        action: &'static str,
        /// For whom.
        name: InstanceName,
    },
    /// The document names no device of this kind.
    #[error("the document has no {0}")]
    NoDevice(String),
    /// A file of the driver's own.
    #[error(transparent)]
    File(#[from] PathError),
    /// No runtime.
    #[error("cannot start the async runtime")]
    Runtime(#[source] io::Error),
    /// A file outside of the datastores.
    #[error("{} is not in {}", .path.display(), .datastores.display())]
    OutsideDatastores {
        /// Which.
        path: PathBuf,
        /// Where it should be.
        datastores: PathBuf,
    },
    /// What `save` wrote is not what `restore` got.
    #[error("{} was not written by save", .0.display())]
    Checkpoint(PathBuf),
    /// A VM with snapshots cannot leave.
    #[error("instance {0} has snapshots, which cannot move with it: delete them first")]
    Snapshots(InstanceName),
    /// The other host refused.
    #[error("host {host} could not take the VM over: {said}")]
    Elsewhere {
        /// Which.
        host: String,
        /// What it said.
        said: String,
    },
    /// The other host is not ready for the VM, which has not been touched.
    #[error("host {host} is not ready to take the VM over, which goes on here: {said}")]
    NotReady {
        /// Which.
        host: String,
        /// What it said.
        said: String,
    },
    /// It runs on another member of the engine's cluster.
    #[error(
        "instance {name} is {status} on member {member} of the engine's cluster, not on this host: stop it there before it \
         is deployed or given up here"
    )]
    RunsElsewhere {
        /// Which.
        name: InstanceName,
        /// The member that holds it.
        member: String,
        /// Its status there: `running`.
        status: String,
    },
    /// It is left, stopped, on another member of the engine's cluster, whose host does not release it.
    #[error(
        "instance {name} is stopped on member {member} of the engine's cluster, where its disks may still be mounted, and \
         that host does not release it ({said}): run there, as root: {command}"
    )]
    NotReleased {
        /// Which.
        name: InstanceName,
        /// The member that holds it.
        member: String,
        /// What the host said.
        said: String,
        /// What releases it.
        command: String,
    },
    /// Nowhere to go.
    #[error("{0}")]
    Refused(String),
    /// The console.
    #[error(transparent)]
    Console(#[from] crate::console::ConsoleError),
}

impl From<crate::disks::place::PlaceError> for ScriptError {
    fn from(error: crate::disks::place::PlaceError) -> Self {
        Self::Disk(error.into())
    }
}
