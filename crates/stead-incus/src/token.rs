//! One-time tokens, as the engines write them: base64 of JSON.

use base64::Engine as _;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Lets one member join a cluster.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// Name the member must take.
    pub server_name: String,
    /// SHA-256 of the cluster's certificate, hexadecimal.
    pub fingerprint: String,
    /// Members that were online, `address:port`.
    pub addresses: Vec<String>,
    /// The secret.
    pub secret: String,
    /// When it expires, RFC 3339.
    pub expires_at: String,
}

/// Lets one client add its certificate.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustToken {
    /// Name under which the certificate is added.
    pub client_name: String,
    /// SHA-256 of the server's certificate, hexadecimal.
    pub fingerprint: String,
    /// The server's addresses.
    pub addresses: Vec<String>,
    /// The secret.
    pub secret: String,
    /// When it expires, RFC 3339; absent if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

/// The text is not a token. The error never shows the text: it may be a secret.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Not base64.
    #[error("it is not base64")]
    Base64(#[source] base64::DecodeError),
    /// Not the JSON of a token of this kind.
    #[error("its content is not that of a token")]
    Json(#[source] serde_json::Error),
}

fn decode<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, TokenError> {
    let json = base64::engine::general_purpose::STANDARD.decode(text.trim()).map_err(TokenError::Base64)?;
    serde_json::from_slice(&json).map_err(TokenError::Json)
}
fn encode(token: &impl Serialize) -> String {
    // A struct of strings always serialises.
    base64::engine::general_purpose::STANDARD.encode(serde_json::to_vec(token).unwrap_or_default())
}

impl JoinToken {
    /// Decodes a token.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn decode(text: &str) -> Result<Self, TokenError> {
        decode(text)
    }
    /// Encodes the token as the engine's own tools do.
    pub fn encode(&self) -> String {
        encode(self)
    }
}
impl TrustToken {
    /// Decodes a token.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn decode(text: &str) -> Result<Self, TokenError> {
        decode(text)
    }
    /// Encodes the token as the engine's own tools do.
    pub fn encode(&self) -> String {
        encode(self)
    }
}
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}
impl fmt::Debug for TrustToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustToken").field("client_name", &self.client_name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn round_trips_and_hides_the_secret() {
        let t = JoinToken {
            server_name: "node2".into(),
            fingerprint: "ab".into(),
            addresses: vec!["10.0.0.1:8443".into(), "[fd00::1]:8443".into()],
            secret: "SECRET".into(),
            expires_at: "2026-01-01T00:00:00Z".into(),
        };
        assert_eq!(JoinToken::decode(&t.encode()).unwrap(), t);
        assert!(!format!("{t:?}").contains("SECRET"));
    }

    #[test]
    fn says_what_is_wrong_without_the_text() {
        assert!(matches!(JoinToken::decode("!"), Err(TokenError::Base64(_))));
        assert!(matches!(JoinToken::decode("e30="), Err(TokenError::Json(_))));
    }

    proptest! {
        #[test]
        fn any_text_is_answered(s in ".{0,80}") {
            let _ = JoinToken::decode(&s);
            let _ = TrustToken::decode(&s);
        }
    }
}
