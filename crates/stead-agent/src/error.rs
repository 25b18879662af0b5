//! Errors of requests, as the caller sees them.

use crate::{frame::MAX_PAYLOAD, tls::TlsError};
use std::{error::Error as StdError, io, net::SocketAddr};
use stead_model::{Failure, FailureKind, NodeName, agent::ErrorBody};

/// A request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The identity or the node's name cannot be used.
    #[error("cannot make a client for {node}")]
    Identity {
        /// The node.
        node: NodeName,
        /// Why.
        #[source]
        source: TlsError,
    },
    /// The connection failed (refused, no route) or was lost, or no answer came in time.
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
    #[error("cannot {operation} on {node}: TLS with {address} failed")]
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
    /// The node answered with an error.
    #[error("cannot {operation} on {node}: {}", body.error)]
    Status {
        /// What was asked.
        operation: &'static str,
        /// The node.
        node: NodeName,
        /// HTTP status.
        code: u16,
        /// The node's message, perhaps with a hint.
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
        /// The agent's version.
        theirs: u32,
        /// This program's version: [`stead_model::agent::PROTOCOL`].
        ours: u32,
    },
    /// The command with its environment does not fit into one frame.
    #[error(
        "cannot {operation} on {node}: the command with its environment has {length} bytes, more than {MAX_PAYLOAD}"
    )]
    TooLong {
        /// What was asked.
        operation: &'static str,
        /// The node.
        node: NodeName,
        /// Length of the request in bytes.
        length: usize,
    },
    /// The request cannot be written, or the answer does not follow the protocol.
    #[error("cannot {operation} on {node}: the exchange does not follow the agent's protocol")]
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
    #[error("cannot {operation} on {node}: local input or output failed")]
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
    /// Whether trying again may help: nothing answers at the address yet.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
    /// Whether the node's agent speaks another version of the protocol: trying again does not help.
    pub fn is_version(&self) -> bool {
        matches!(self, Self::Version { .. })
    }
}

/// The node answers 400 to a malformed request and 404 to one for something that does not exist: both are bad input, as is
/// a command that is too long.
impl Failure for ClientError {
    fn failure_kind(&self) -> FailureKind {
        match self {
            Self::Status { code: 400 | 404, .. } | Self::TooLong { .. } => FailureKind::BadInput,
            _ => FailureKind::Failed,
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            Self::Status { body, .. } => body.hint.clone(),
            Self::TooLong { .. } => {
                Some("pass long data on standard input, or copy it with `stead cp` first".into())
            }
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

/// The first error of type `T` in a chain, including the error that an [`io::Error`] wraps, which its `source` skips.
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
