//! What can go wrong between a request and its answer.

use crate::envelope::EnvelopeError;
use std::{io, time::Duration};

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
    #[error("{request} is not a request")]
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
    #[error("{request} was answered by something else")]
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
    #[error("{request} was answered in a shape that is not known")]
    Shape {
        /// Method and path.
        request: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The engine is too old for this.
    #[error("{feature} needs the API extension {extension}, which this server has not")]
    Extension {
        /// What was wanted.
        feature: &'static str,
        /// Its name in `api_extensions`.
        extension: &'static str,
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

impl Error {
    /// The engine's code when it refused or an operation failed.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Api { code, .. } | Self::Operation { code, .. } => Some(*code),
            _ => None,
        }
    }
    /// Whether the object asked about does not exist.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }
    /// Whether nothing answered: no connection, a broken one, or silence.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Http { .. } | Self::Timeout { .. })
    }
}
