//! What can go wrong between a request and its answer.

use crate::{Dialect, Feature, envelope::EnvelopeError};
use std::{io, time::Duration};
use stead_model::Failure;

/// A request failed. Every variant names the request (method and path) or the operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection could not be made.
    #[error("cannot connect to {endpoint}")]
    Connect {
        /// Socket path or address.
        endpoint: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A certificate or key is unusable.
    #[error("cannot use {what}")]
    Tls {
        /// The certificate or key, as in "the client key's PEM".
        what: &'static str,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server showed another certificate than expected.
    #[error("{endpoint} shows the certificate {found}, not {expected}")]
    Fingerprint {
        /// Address of the server.
        endpoint: String,
        /// SHA-256 of the expected certificate, hexadecimal.
        expected: String,
        /// SHA-256 of the certificate it showed, hexadecimal.
        found: String,
    },
    /// The request cannot be expressed in HTTP.
    #[error("{request} cannot be sent as a request")]
    Request {
        /// Method and path.
        request: String,
        /// The cause.
        #[source]
        source: http::Error,
    },
    /// The connection broke before the answer was complete.
    #[error("{request} failed: the connection broke")]
    Http {
        /// Method and path.
        request: String,
        /// The cause.
        #[source]
        source: hyper::Error,
    },
    /// The answer did not come in time.
    #[error("{request} got no answer within {} ms", after.as_millis())]
    Timeout {
        /// Method and path.
        request: String,
        /// The time limit.
        after: Duration,
    },
    /// The answer is not the engine's envelope.
    #[error("{request} got an answer that is not from Incus or LXD")]
    Envelope {
        /// Method and path.
        request: String,
        /// The cause.
        #[source]
        source: EnvelopeError,
    },
    /// The engine refused.
    #[error("{request} was refused ({code}): {message}")]
    Api {
        /// Method and path.
        request: String,
        /// The HTTP status code.
        code: u16,
        /// The engine's error text.
        message: String,
    },
    /// An operation began and failed.
    #[error("the operation of {request} failed ({code}): {message}")]
    Operation {
        /// Request that began the operation.
        request: String,
        /// 400 failed, 401 cancelled.
        code: u16,
        /// The engine's error text.
        message: String,
    },
    /// The answer lacks a field or has it in another type.
    #[error("the answer to {request} does not have the expected shape")]
    Shape {
        /// Method and path.
        request: String,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// The engine is too old for this feature.
    #[error("{feature} needs the API extension {extension}, which the server at {endpoint} lacks")]
    Extension {
        /// The feature the request needs.
        feature: Feature,
        /// Its name in `api_extensions`.
        extension: &'static str,
        /// Socket path or address.
        endpoint: String,
    },
    /// No version of this engine has this feature.
    #[error("{dialect} does not support {feature}")]
    Never {
        /// The feature the request needs.
        feature: Feature,
        /// The engine.
        dialect: Dialect,
    },
    /// Somebody else changed the object since its ETag was read.
    #[error("{request} was refused: somebody else changed the object since it was read")]
    Changed {
        /// Method and path.
        request: String,
    },
    /// The answer is longer than the request allowed.
    #[error("the answer to {request} is longer than {limit_bytes} bytes")]
    TooLong {
        /// Method and path.
        request: String,
        /// The length limit.
        limit_bytes: u64,
    },
    /// The answer lacks the ETag that a later change needs.
    #[error("the answer to {request} has no ETag")]
    NoETag {
        /// Method and path.
        request: String,
    },
    /// The server no longer knows the operation: it ended more than five seconds ago, or the server was restarted in
    /// the middle of it. Look at the object it worked on to learn whether it succeeded.
    #[error("the outcome of {request} is unknown: the server no longer knows the operation {operation}")]
    OutcomeUnknown {
        /// Request that began the operation.
        request: String,
        /// `/1.0/operations/<uuid>`.
        operation: String,
        /// Whether the server was unreachable at some time since.
        interrupted: bool,
    },
    /// A websocket broke, or the server did not speak the protocol.
    #[error("{request} was interrupted")]
    WebSocket {
        /// Method and path.
        request: String,
        /// The cause.
        #[source]
        source: Box<tokio_tungstenite::tungstenite::Error>,
    },
    /// The answer to `GET /1.0/metrics` is not in the OpenMetrics format.
    #[error("the answer to {request} is not in the OpenMetrics format")]
    Metrics {
        /// Method and path.
        request: String,
        /// The cause.
        #[source]
        source: crate::metrics::MetricsError,
    },
    /// The file that an answer is written to cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The runtime of the blocking client cannot be started.
    #[error("cannot start the client's runtime")]
    Runtime {
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The client cannot go on: the subject lacks what the call needs.
    #[error("{subject} {why}")]
    Refused {
        /// Request or endpoint, the subject of the message.
        subject: String,
        /// The predicate of the message, as in "does not listen on the network".
        why: &'static str,
    },
    /// A file that was to be sent cannot be read.
    #[error("cannot read {path} to send it")]
    File {
        /// The file.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Never bad input by itself: what the caller of a command named and what Stead chose look alike here.
impl Failure for Error {}

impl Error {
    /// The engine's code, when it refused or an operation failed.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Api { code, .. } | Self::Operation { code, .. } => Some(*code),
            Self::Changed { .. } => Some(412),
            _ => None,
        }
    }
    /// Whether the object asked about does not exist.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }
    /// Whether an object of that name exists already (409), or the object has changed since it was read (412).
    pub fn is_conflict(&self) -> bool {
        matches!(self.code(), Some(409 | 412))
    }
    /// Whether the server lacks a feature the request needs.
    pub fn is_missing_extension(&self) -> bool {
        matches!(self, Self::Extension { .. } | Self::Never { .. })
    }
    /// Whether the engine is busy with the instance. It may be busy without a visible operation
    /// (internal/server/instance/operationlock of both engines); the request may succeed later.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Api { message, .. } | Self::Operation { message, .. } if message.contains("is busy running"))
    }
    /// Whether the cluster considers a member offline that the request needs (cmd/incusd/instance_post.go and
    /// lxd/instance_post.go). After a restart of the member's daemon this may last until the next heartbeat, although
    /// the member answers.
    pub fn is_offline(&self) -> bool {
        let endings = ["is offline", "is currently offline"];
        matches!(self, Self::Api { message, .. } | Self::Operation { message, .. } if endings.iter().any(|e| message.ends_with(e)))
    }
    /// Whether the server did not answer: no connection, a broken connection, or a timeout.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Http { .. } | Self::Timeout { .. })
    }
}
