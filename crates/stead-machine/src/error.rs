//! What can go wrong with a machine, whichever backend starts it.

use crate::{
    CgroupError, DaemonError, LinkError, MachineSpec, TeardownError, host::Tool, layers::LayerError,
};
use std::{io, path::PathBuf};
use stead_model::{Failure, NodeName, cluster::Backend};
use stead_os::PathError;

impl Failure for MachineError {}

/// Why a machine could not be started, watched or stopped.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Another supervisor holds the lock.
    #[error("machine in {} already runs", .0.display())]
    AlreadyRuns(PathBuf),
    /// A file of the machine, or a disk.
    #[error(transparent)]
    Path(#[from] PathError),
    /// Its layers.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// Its cgroups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Its interfaces.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Its process.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// Something of the machine could not be removed.
    #[error("cannot remove what the machine left")]
    Teardown(#[source] TeardownError),
    /// The cluster's network namespace is missing.
    #[error("cannot enter network namespace {netns} of the cluster")]
    NoNetwork {
        /// Its name.
        netns: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a step of the start.
    #[error("cannot start machine {name}")]
    Start {
        /// The machine.
        name: NodeName,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The supervisor cannot start or watch a thread or process.
    #[error("cannot watch the machine's process")]
    Thread(#[source] io::Error),
    /// A program could not be run.
    #[error("cannot run {}", .exe.display())]
    Exec {
        /// The program.
        exe: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The spec lacks something its backend needs, or asks for more than it can do.
    #[error("machine {name} cannot be a {backend} machine: {why}")]
    Spec {
        /// The machine.
        name: NodeName,
        /// The backend.
        backend: Backend,
        /// What is missing, or too much.
        why: String,
    },
    /// A program is not installed.
    #[error("{} is not installed; it comes with the package {}", .0.name, .0.package)]
    Missing(Tool),
    /// The machine ended neither by power off nor by reboot.
    #[error("machine {name} crashed: {why}; the end of its console: {console}")]
    Crashed {
        /// The machine.
        name: NodeName,
        /// How it ended.
        why: String,
        /// The end of its console.
        console: String,
    },
}

impl From<io::Error> for MachineError {
    fn from(source: io::Error) -> Self {
        Self::Thread(source)
    }
}

impl MachineError {
    /// Wraps an error on the way to the machine's first process.
    pub(crate) fn start(spec: &MachineSpec) -> impl FnOnce(io::Error) -> Self + Copy + '_ {
        move |source| Self::Start { name: spec.name.clone(), source }
    }
}
