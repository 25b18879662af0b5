//! Trusted certificates: the clients that may use the API.

use crate::{Dialect, Request, request::encode};
use serde_json::{Map, Value, json};

/// Trusted certificates.
pub fn list() -> Request {
    Request::get("/1.0/certificates?recursion=1")
}
/// Requests a token with which a client can add its certificate under `name`.
pub fn trust_token(name: &str) -> Request {
    Request::post("/1.0/certificates", &json!({ "name": name, "type": "client", "token": true }))
}
/// Adds the client certificate of the connection; the server takes it from the TLS session.
pub fn add_own(dialect: Dialect, name: &str, token: &str) -> Request {
    let mut body = Map::new();
    body.insert("name".into(), name.into());
    body.insert("type".into(), "client".into());
    body.insert(dialect.trust_token_field().into(), token.into());
    Request::post("/1.0/certificates", &Value::Object(body))
}
/// Has the server trust a client's certificate (DER) under `name`. For whoever is trusted already, as on the unix socket.
pub fn add(name: &str, der: &[u8]) -> Request {
    use base64::Engine as _;
    let certificate = base64::engine::general_purpose::STANDARD.encode(der);
    Request::post("/1.0/certificates", &json!({ "name": name, "type": "client", "certificate": certificate }))
}
/// Removes a certificate from the trusted ones.
pub fn delete(fingerprint: &str) -> Request {
    Request::delete(format!("/1.0/certificates/{}", encode(fingerprint)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::shown;

    #[test]
    fn requests() {
        assert_eq!(
            shown(&trust_token("me")),
            r#"POST /1.0/certificates {"name":"me","type":"client","token":true}"#
        );
        assert_eq!(
            shown(&add("me", b"der")),
            r#"POST /1.0/certificates {"name":"me","type":"client","certificate":"ZGVy"}"#
        );
        assert_eq!(
            shown(&add_own(Dialect::Incus, "me", "T")),
            r#"POST /1.0/certificates {"name":"me","type":"client","trust_token":"T"}"#
        );
        assert_eq!(
            shown(&add_own(Dialect::Lxd, "me", "T")),
            r#"POST /1.0/certificates {"name":"me","type":"client","password":"T"}"#
        );
    }
}
