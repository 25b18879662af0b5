//! The JSON envelope around every answer.

use serde::Deserialize;
use serde_json::Value;

/// A parsed answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Envelope {
    /// The request is done; the value is the `metadata` field.
    Sync(Value),
    /// The server began an operation.
    Async {
        /// `/1.0/operations/<uuid>`.
        operation: String,
        /// The operation's state when it began.
        metadata: Value,
    },
    /// The server refused the request.
    Error {
        /// The engine's code, the same as the HTTP status.
        code: u16,
        /// The engine's error text.
        message: String,
    },
}

/// The bytes are not an envelope.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Not JSON, or JSON without the fields of an envelope.
    #[error("answer is not the engine's JSON")]
    Json(#[source] serde_json::Error),
    /// `type` is not `sync`, `async` or `error`.
    #[error("answer has the unknown type {0:?}")]
    Type(String),
    /// An asynchronous answer that names no operation.
    #[error("answer is of the type async but names no operation")]
    NoOperation,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    error_code: i64,
    #[serde(default)]
    error: String,
    #[serde(default)]
    metadata: Value,
}

/// Parses an answer. Does not panic on any input.
///
/// # Errors
/// [`EnvelopeError`] when the bytes are not an envelope.
pub fn parse(bytes: &[u8]) -> Result<Envelope, EnvelopeError> {
    let raw: Raw = serde_json::from_slice(bytes).map_err(EnvelopeError::Json)?;
    match raw.kind.as_str() {
        "sync" => Ok(Envelope::Sync(raw.metadata)),
        "async" if raw.operation.is_empty() => Err(EnvelopeError::NoOperation),
        "async" => Ok(Envelope::Async { operation: raw.operation, metadata: raw.metadata }),
        "error" => {
            Ok(Envelope::Error { code: u16::try_from(raw.error_code).unwrap_or(0), message: raw.error })
        }
        _ => Err(EnvelopeError::Type(raw.kind.chars().take(40).collect())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn opens_the_three_kinds() {
        assert_eq!(
            parse(br#"{"type":"sync","status":"Success","status_code":200,"operation":"","error_code":0,"error":"","metadata":["/1.0"]}"#)
                .unwrap(),
            Envelope::Sync(serde_json::json!(["/1.0"]))
        );
        assert_eq!(
            parse(br#"{"type":"async","status":"Operation created","status_code":100,"operation":"/1.0/operations/u","error_code":0,"error":"","metadata":{"id":"u"}}"#)
                .unwrap(),
            Envelope::Async { operation: "/1.0/operations/u".into(), metadata: serde_json::json!({"id": "u"}) }
        );
        assert_eq!(
            parse(br#"{"error":"Storage pool not found","error_code":404,"type":"error"}"#).unwrap(),
            Envelope::Error { code: 404, message: "Storage pool not found".into() }
        );
    }

    #[test]
    fn refuses_what_is_none() {
        assert!(matches!(parse(b"<html>"), Err(EnvelopeError::Json(_))));
        assert!(matches!(parse(br#"{"type":"other"}"#), Err(EnvelopeError::Type(_))));
        assert!(matches!(parse(br#"{"type":"async"}"#), Err(EnvelopeError::NoOperation)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes: Vec<u8>) { let _ = parse(&bytes); }
    }
}
