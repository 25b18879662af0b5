//! Why a request failed, for whoever asked.

use crate::tls::TlsError;
use std::{error::Error as StdError, io, net::SocketAddr};
use stead_model::{Failure, FailureKind, NodeName, agent::ErrorBody};

/// A request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The identity, or the node's name, cannot be used.
    #[error("cannot make a client for {node}")]
    Identity {
        /// The node.
        node: NodeName,
        /// Why.
        #[source]
        source: TlsError,
    },
    /// No connection (refused, no route), it was lost, or there was no answer in time.
    #[error("cannot {operation} on {node}: it does not answer at {address}")]
    Unreachable {
        /// What was asked.
        operation: &'static str,
        /// The node.
        node: NodeName,
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// One side does not trust the other's certificate.
    #[error("cannot {operation} on {node}: no trust between us and {address}")]
    Tls {
        /// What was asked.
        operation: &'static str,
        /// The node.
        node: NodeName,
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: Box<rustls::Error>,
    },
    /// The node answered that it cannot or will not.
    #[error("cannot {operation} on {node}: {}", body.error)]
    Status {
        /// What was asked.
        operation: &'static str,
        /// The node.
        node: NodeName,
        /// HTTP status.
        code: u16,
        /// What it says, with a hint maybe.
        body: ErrorBody,
    },
    /// The node's agent speaks another version of the protocol.
    #[error(
        "cannot {operation} on {node}: its agent speaks protocol {theirs} and this stead protocol {ours}"
    )]
    Version {
        /// What was asked.
        operation: &'static str,
        /// The node.
        node: NodeName,
        /// The agent's.
        theirs: u32,
        /// Ours: [`stead_model::agent::PROTOCOL`].
        ours: u32,
    },
    /// The answer makes no sense.
    #[error("cannot {operation} on {node}: the answer is not the agent's")]
    Protocol {
        /// What was asked.
        operation: &'static str,
        /// The node.
        node: NodeName,
        /// Why.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The caller's own reader or writer failed.
    #[error("cannot {operation} on {node}: this side failed")]
    Local {
        /// What was asked.
        operation: &'static str,
        /// The node.
        node: NodeName,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ClientError {
    /// Whether trying again may help: nobody (yet) answers there.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
    /// Whether the node's agent speaks another version of the protocol: trying again does not help.
    pub fn is_version(&self) -> bool {
        matches!(self, Self::Version { .. })
    }
}

/// The node refuses what does not exist or makes no sense with 400 and 404, as any web server does.
impl Failure for ClientError {
    fn failure_kind(&self) -> FailureKind {
        match self {
            Self::Status { code: 400 | 404, .. } => FailureKind::BadInput,
            _ => FailureKind::Failed,
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            Self::Status { body, .. } => body.hint.clone(),
            Self::Version { theirs, ours, .. } if theirs < ours => Some(
                "rebuild the node's image with this stead (`stead image build`), then restart the node with `stead up`"
                    .into(),
            ),
            Self::Version { .. } => {
                Some("use the stead that built the node's image, or a newer one".into())
            }
            _ => None,
        }
    }
}

/// The first error of type `T` in a chain, looking also into what an [`io::Error`] wraps (its `source` skips that).
pub(crate) fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}
