//! What can go wrong with a cluster.

use std::{io, path::PathBuf};
use stead_model::{ClusterName, NodeName};

/// An error of this crate. Messages name the subject; [`ClusterError::hint`] gives the mend.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No such cluster on this host.
    #[error("cluster {0} is not here")]
    NoCluster(ClusterName),
    /// No such node in the cluster.
    #[error("cluster {cluster} has no node {node}; it has {}", .have.join(", "))]
    NoNode {
        /// The cluster.
        cluster: ClusterName,
        /// The node asked for.
        node: String,
        /// Those it has.
        have: Vec<String>,
    },
    /// Another command works on the cluster.
    #[error("another command is working on cluster {0}")]
    Busy(ClusterName),
    /// A cluster of another state directory has the name.
    #[error("the name {cluster} is taken on this machine, by the cluster of that name in state directory {}", .state_dir.display())]
    NameTaken {
        /// The name.
        cluster: ClusterName,
        /// Whose.
        state_dir: PathBuf,
    },
    /// A file operation failed.
    #[error("{action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A state file is damaged.
    #[error("state file {path} is damaged: {why}")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// How.
        why: String,
    },
    /// The request does not fit the cluster.
    #[error("{0}")]
    Refused(String),
    /// The image store failed.
    #[error("image")]
    Image(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A host network failed.
    #[error("network of cluster {cluster}")]
    Network {
        /// Whose.
        cluster: ClusterName,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A machine could not be started, stopped or cleaned.
    #[error("{action} machine {node}")]
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
    #[error("certificates of cluster {cluster}")]
    Pki {
        /// Whose.
        cluster: ClusterName,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A node did not get as far as it should.
    #[error("node {node}: {why}{}", if .tail.is_empty() { String::new() } else { format!("\n{}", .tail) })]
    Node {
        /// Which.
        node: NodeName,
        /// What it did not do.
        why: String,
        /// The end of its console and logs.
        tail: String,
    },
    /// A request to a node's agent failed.
    #[error("{action} on node {node}")]
    Agent {
        /// What was asked.
        action: &'static str,
        /// Whom.
        node: NodeName,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A request to the engine failed.
    #[error("{action} of cluster {cluster}")]
    Engine {
        /// What was asked.
        action: &'static str,
        /// Of which.
        cluster: ClusterName,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Several things failed.
    #[error("{} things failed:\n{}", .0.len(), .0.iter().map(|e| format!("- {}", chain(e))).collect::<Vec<_>>().join("\n"))]
    Several(Vec<ClusterError>),
}

/// A whole error chain in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(e) = next {
        let part = e.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        next = e.source();
    }
    text
}

impl ClusterError {
    /// Wraps an error of the image store.
    pub fn image(e: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Image(Box::new(e))
    }
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
    /// Whether the mistake is in what was asked (exit code 2), not in the doing (1).
    pub fn is_bad_input(&self) -> bool {
        matches!(self, Self::NoCluster(_) | Self::NoNode { .. } | Self::NameTaken { .. } | Self::Refused(_))
    }
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoCluster(_) => {
                Some("`stead ls` lists the clusters here; `stead up FILE` makes one".into())
            }
            Self::NameTaken { cluster, state_dir } => Some(format!(
                "give one of them another name, or take that one down: `stead --state-dir {} down {cluster}`",
                state_dir.display()
            )),
            Self::Busy(_) => Some("wait for it to end, or end it: it can be resumed".into()),
            Self::Node { node, .. } => Some(format!(
                "see `stead logs CLUSTER {node}` and `stead console CLUSTER {node}`; `stead up` again goes on from here"
            )),
            Self::Machine { .. } => Some("`stead doctor` checks what machines need on this host".into()),
            _ => None,
        }
    }
}
