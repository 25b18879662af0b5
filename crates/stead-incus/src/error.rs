//! What can go wrong between a request and its answer.

use crate::{Dialect, Feature, envelope::EnvelopeError};
use std::{io, time::Duration};
use stead_model::Failure;

/// A request failed. Every variant names the request (method and path) or the operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection.
    #[error("cannot connect to {endpoint}")]
    Connect {
        /// Socket path or address.
        endpoint: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Certificates or keys are unusable.
    #[error("cannot use {what}")]
    Tls {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server showed another certificate than expected.
    #[error("{endpoint} shows the certificate {found}, not {expected}")]
    Fingerprint {
        /// Its address.
        endpoint: String,
        /// SHA-256, hexadecimal.
        expected: String,
        /// SHA-256, hexadecimal.
        found: String,
    },
    /// The request cannot be expressed in HTTP.
    #[error("{request} cannot be sent as a request")]
    Request {
        /// Method and path.
        request: String,
        /// Why.
        #[source]
        source: http::Error,
    },
    /// The connection broke.
    #[error("{request} was not answered")]
    Http {
        /// Method and path.
        request: String,
        /// Why.
        #[source]
        source: hyper::Error,
    },
    /// No answer in time.
    #[error("{request} was not answered within {} ms", after.as_millis())]
    Timeout {
        /// Method and path.
        request: String,
        /// The limit.
        after: Duration,
    },
    /// The answer is not one of the engine's.
    #[error("{request} was answered by something that is not Incus or LXD")]
    Envelope {
        /// Method and path.
        request: String,
        /// Why.
        #[source]
        source: EnvelopeError,
    },
    /// The engine refused.
    #[error("{request} was refused ({code}): {message}")]
    Api {
        /// Method and path.
        request: String,
        /// As HTTP's.
        code: u16,
        /// The engine's words.
        message: String,
    },
    /// An operation began and failed.
    #[error("{request} failed in its operation ({code}): {message}")]
    Operation {
        /// What began it.
        request: String,
        /// 400 failed, 401 cancelled.
        code: u16,
        /// The engine's words.
        message: String,
    },
    /// The answer lacks something or has it in another shape.
    #[error("the answer to {request} does not have the expected shape")]
    Shape {
        /// Method and path.
        request: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The engine is too old for this.
    #[error("{feature} needs the API extension {extension}, which the server at {endpoint} lacks")]
    Extension {
        /// What was wanted.
        feature: Feature,
        /// Its name in `api_extensions`.
        extension: &'static str,
        /// Socket path or address.
        endpoint: String,
    },
    /// No version of this engine can do this.
    #[error("{dialect} does not support {feature}")]
    Never {
        /// What was wanted.
        feature: Feature,
        /// The engine.
        dialect: Dialect,
    },
    /// Somebody else changed the object since its ETag was given out.
    #[error("{request} was refused: the object has been changed meanwhile")]
    Changed {
        /// Method and path.
        request: String,
    },
    /// The answer is longer than the request allowed.
    #[error("{request} was answered with more than {limit_bytes} bytes")]
    TooLong {
        /// Method and path.
        request: String,
        /// The limit.
        limit_bytes: u64,
    },
    /// An answer without the ETag that a later change needs.
    #[error("{request} was answered without an ETag")]
    NoETag {
        /// Method and path.
        request: String,
    },
    /// The server does not know the operation any more: it ended more than five seconds ago, or the server was
    /// restarted in the middle of it. Whether it succeeded has to be looked up in what it worked on.
    #[error("the outcome of {request} is not known: the server knows no operation {operation}")]
    OutcomeUnknown {
        /// What began it.
        request: String,
        /// `/1.0/operations/<uuid>`.
        operation: String,
        /// Whether the server could not be reached at some time since.
        interrupted: bool,
    },
    /// A websocket broke or said something else than expected.
    #[error("{request} broke off")]
    WebSocket {
        /// Method and path.
        request: String,
        /// Why.
        #[source]
        source: Box<tokio_tungstenite::tungstenite::Error>,
    },
    /// An answer that should be measurements.
    #[error("the answer to {request} is not a set of measurements")]
    Metrics {
        /// Method and path.
        request: String,
        /// Why.
        #[source]
        source: crate::metrics::MetricsError,
    },
    /// Files of an answer cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The blocking client has no runtime.
    #[error("cannot start the client's runtime")]
    Runtime {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nothing was asked: the request makes no sense.
    #[error("{subject} {why}")]
    Refused {
        /// What it is about.
        subject: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file that was to be sent cannot be read.
    #[error("cannot read {path} to send it")]
    File {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Never bad input by itself: what the caller of a command named and what Stead chose look alike here.
impl Failure for Error {}

impl Error {
    /// The engine's code when it refused or an operation failed.
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
    /// Whether an object of that name exists already, or the change fits no longer.
    pub fn is_conflict(&self) -> bool {
        matches!(self.code(), Some(409 | 412))
    }
    /// Whether the server cannot do this.
    pub fn is_missing_extension(&self) -> bool {
        matches!(self, Self::Extension { .. } | Self::Never { .. })
    }
    /// Whether the engine is at work on the instance, which it may be without an operation that tells of it
    /// (internal/server/instance/operationlock of both engines); later it may do what was asked.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Api { message, .. } | Self::Operation { message, .. } if message.contains("is busy running"))
    }
    /// Whether the cluster takes a member that this concerns for offline (cmd/incusd/instance_post.go and
    /// lxd/instance_post.go). After a restart of its daemon that may last until the next heartbeat, though the member answers.
    pub fn is_offline(&self) -> bool {
        let told = ["is offline", "is currently offline"];
        matches!(self, Self::Api { message, .. } | Self::Operation { message, .. } if told.iter().any(|t| message.ends_with(t)))
    }
    /// Whether nothing answered: no connection, a broken one, or silence.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Http { .. } | Self::Timeout { .. })
    }
}
