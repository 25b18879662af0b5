//! The JSON envelope around every answer.

use serde::Deserialize;
use serde_json::Value;

/// An answer, opened.
#[derive(Debug, Clone, PartialEq)]
pub enum Envelope {
    /// Done: `metadata` is the answer.
    Sync(Value),
    /// Begun: an operation at this path, and what it looked like when it began.
    Async {
        /// `/1.0/operations/<uuid>`.
        operation: String,
        /// The operation.
        metadata: Value,
    },
    /// Refused.
    Error {
        /// The engine's code, that of HTTP.
        code: u16,
        /// Its words.
        message: String,
    },
}

/// Why bytes are no envelope.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Not JSON, or not of the shape.
    #[error("answer is not the engine's JSON")]
    Json(#[source] serde_json::Error),
    /// `type` is none of the three.
    #[error("answer is of the unknown type {0:?}")]
    Type(String),
    /// An asynchronous answer that names no operation.
    #[error("answer says an operation began but names none")]
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

/// Opens an answer. Never panics, whatever the bytes.
///
/// # Errors
/// [`EnvelopeError`] when they are no envelope.
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
