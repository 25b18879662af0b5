//! Errors of clusters.

use std::{io, path::PathBuf};
use stead_agent::{ClientError, pki::PkiError};
use stead_image::ImageError;
use stead_machine::TeardownError;
use stead_model::{ClusterName, Failure, FailureKind, NodeName};
use tokio::task::JoinError;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No such cluster on this host.
    #[error("there is no cluster {0} on this host")]
    NoCluster(ClusterName),
    /// No such node in the cluster.
    #[error("cluster {cluster} has no node {node}; it has {}", .have.join(", "))]
    NoNode {
        /// The cluster.
        cluster: ClusterName,
        /// The requested node.
        node: String,
        /// The nodes it has.
        have: Vec<String>,
    },
    /// Another command works on the cluster.
    #[error("another command is working on cluster {0}")]
    Busy(ClusterName),
    /// A cluster in another state directory has the name.
    #[error("the name {cluster} is taken on this machine by a cluster in state directory {}", .state_dir.display())]
    NameTaken {
        /// The name.
        cluster: ClusterName,
        /// Whose.
        state_dir: PathBuf,
    },
    /// A file operation failed.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A state file is damaged.
    #[error("state file {path} is damaged: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The damage.
        why: String,
    },
    /// The request does not fit the cluster.
    #[error("{0}")]
    Refused(String),
    /// The cluster, a node or its engine was not started, or not completely.
    #[error("{0}")]
    NotUp(String),
    /// A task of this process panicked.
    #[error("cannot {task}: an internal task failed")]
    Task {
        /// Its purpose, a verb.
        task: &'static str,
        /// Its failure.
        #[source]
        source: JoinError,
    },
    /// Root layers are still mounted.
    #[error("cannot unmount the layers of cluster {cluster}")]
    Layers {
        /// Whose.
        cluster: ClusterName,
        /// Why.
        #[source]
        source: TeardownError,
    },
    /// The image store failed.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A host network failed.
    #[error("cannot set up or remove the network of cluster {cluster}")]
    Network {
        /// Whose.
        cluster: ClusterName,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A machine could not be started, stopped or cleaned.
    #[error("cannot {action} machine {node}")]
    Machine {
        /// What was tried.
        action: &'static str,
        /// Which.
        node: NodeName,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Certificates could not be made.
    #[error("cannot make the certificates of cluster {cluster}")]
    Pki {
        /// Whose.
        cluster: ClusterName,
        /// Why.
        #[source]
        source: Box<PkiError>,
    },
    /// A node did not reach its desired state.
    #[error("node {node}: {why}{}", if .tail.is_empty() { String::new() } else { format!("\n{}", .tail) })]
    Node {
        /// Which.
        node: NodeName,
        /// What it failed to do.
        why: String,
        /// The end of its console and logs.
        tail: String,
    },
    /// A request to a node's agent failed. The source names the operation and the node.
    #[error("{source}")]
    Agent {
        /// What was asked.
        action: &'static str,
        /// Whom.
        node: NodeName,
        /// Why not.
        #[source]
        source: Box<ClientError>,
    },
    /// A request to the engine failed.
    #[error("cannot {action} of cluster {cluster}")]
    Engine {
        /// What was asked.
        action: &'static str,
        /// Of which.
        cluster: ClusterName,
        /// Why not.
        #[source]
        source: Box<stead_incus::Error>,
    },
    /// A plan did not pass its check. Nothing was changed.
    #[error("the plan for cluster {cluster} is not sound; nothing was changed")]
    Unsound {
        /// Whose.
        cluster: ClusterName,
        /// The flaw.
        #[source]
        flaw: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The cluster changed during each plan's execution.
    #[error("cluster {cluster} changed during the execution of each of {plans} plans; last: {why}")]
    Unsettled {
        /// Which.
        cluster: ClusterName,
        /// How many plans were made.
        plans: usize,
        /// The last change.
        why: String,
    },
    /// The last state of the engine's cluster was lost during the execution of a plan. A command does not form a new
    /// cluster when its first plan did not.
    #[error("cluster {cluster}: {why}, and no member is left that kept the state of its engine")]
    LostMeanwhile {
        /// Which.
        cluster: ClusterName,
        /// The change.
        why: String,
    },
    /// Several things failed.
    #[error("{} things failed:\n{}", .0.len(), .0.iter().map(|e| format!("- {}", chain(e))).collect::<Vec<_>>().join("\n"))]
    Several(Vec<ClusterError>),
}

pub use stead_os::chain;

impl ClusterError {
    /// Wraps an I/O error, for `map_err`.
    pub fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
    /// One error out of many; none is `Ok`.
    pub fn all(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }
}

impl Failure for ClusterError {
    fn failure_kind(&self) -> FailureKind {
        match self {
            Self::NoCluster(_) | Self::NoNode { .. } | Self::NameTaken { .. } | Self::Refused(_) => {
                FailureKind::BadInput
            }
            Self::Task { .. } | Self::Unsound { .. } => FailureKind::Internal,
            Self::Image(source) => source.failure_kind(),
            Self::Agent { source, .. } => source.failure_kind(),
            Self::Engine { source, .. } => source.failure_kind(),
            // Bad input only if all errors are: one node may refuse a request while another fails.
            Self::Several(errors) if errors.iter().all(Self::is_bad_input) => FailureKind::BadInput,
            _ => FailureKind::Failed,
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            Self::NoCluster(_) => Some("`stead ls` lists the clusters; `stead up FILE` starts one".into()),
            Self::NameTaken { cluster, state_dir } => Some(format!(
                "rename one of the two, or take the other down: `stead --state-dir {} down {cluster}`",
                state_dir.display()
            )),
            Self::Busy(_) => Some("wait until it ends, or stop it: it can be resumed".into()),
            Self::NotUp(_) => Some("`stead up FILE` starts what is missing".into()),
            Self::Node { node, .. } => Some(format!(
                "see `stead logs CLUSTER {node}` and `stead console CLUSTER {node}`; `stead up FILE` continues from here"
            )),
            Self::Unsound { .. } => Some(
                "this is a bug in stead: report it with the output of `stead status CLUSTER --json` and the cluster file"
                    .into(),
            ),
            Self::Unsettled { .. } => Some("`stead up FILE` continues from here".into()),
            Self::LostMeanwhile { .. } => Some(
                "`stead up FILE --dry-run` shows what is left to do: a new, empty engine cluster would be formed".into(),
            ),
            Self::Machine { .. } => Some("`stead doctor` checks what machines need on this host".into()),
            Self::Image(source) => source.hint(),
            Self::Agent { source, .. } => source.hint(),
            Self::Engine { source, .. } => source.hint(),
            Self::Several(errors) => errors.iter().find_map(Failure::hint),
            _ => None,
        }
    }
}
