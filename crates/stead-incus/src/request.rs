//! A request as a value: what will be sent, without the means to send it.
//!
//! Its fields are private. The only way to `PUT` an object is [`Request::put`], which takes the [`ETag`] of the version
//! it replaces.

use crate::Feature;
use bytes::Bytes;
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{fmt, path::PathBuf, time::Duration};

/// Time limit of an ordinary request. Lists on a busy cluster take well under a second; a cluster without quorum never
/// answers.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Time limit of a request or operation that moves data: some hundred gigabytes over a gigabit link take an hour.
pub const TRANSFER_TIMEOUT: Duration = Duration::from_secs(3600);

/// Default limit on the length of an answer. The longest answers are lists with states: 20,000 instances of 10 KiB each.
pub const DEFAULT_LIMIT_BYTES: u64 = 256 << 20;

/// Version of an object as described by an answer. The server computes it from the fields that a `PUT` can change.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ETag(String);

impl ETag {
    /// From the value of the `ETag` header.
    pub fn new(header: impl Into<String>) -> Self {
        Self(header.into())
    }
    /// The value of the header.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An object with the [`ETag`] that a later `PUT` of it needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Tagged<T> {
    /// The object.
    pub value: T,
    /// Its version.
    pub etag: ETag,
}

/// One request to the engine.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    method: Method,
    path: String,
    body: Body,
    etag: Option<ETag>,
    headers: Vec<(&'static str, String)>,
    timeout: Duration,
    limit_bytes: u64,
    needs: Vec<Feature>,
}

/// Body of a request.
#[derive(Clone, PartialEq, Eq)]
pub enum Body {
    /// No body.
    None,
    /// JSON.
    Json(Value),
    /// Bytes, sent as `application/octet-stream`.
    Raw(Source),
    /// `multipart/form-data`.
    Multipart(Vec<Part>),
}

/// One part of a multipart body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Field name: `metadata`, `rootfs`.
    pub name: &'static str,
    /// File name sent to the server.
    pub file_name: String,
    /// Contents.
    pub source: Source,
}

/// Source of the bytes of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Bytes in memory.
    Bytes(Bytes),
    /// A file, read while it is sent.
    File(PathBuf),
}

impl Request {
    fn new(method: Method, path: impl Into<String>, body: Body) -> Self {
        Self {
            method,
            path: path.into(),
            body,
            etag: None,
            headers: Vec::new(),
            timeout: DEFAULT_TIMEOUT,
            limit_bytes: DEFAULT_LIMIT_BYTES,
            needs: Vec::new(),
        }
    }
    /// `GET path`.
    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path, Body::None)
    }
    /// `PUT path` with a JSON body: replaces the object if it has not changed since `etag` was read.
    pub fn put(path: impl Into<String>, body: &impl Serialize, etag: ETag) -> Self {
        Self { etag: Some(etag), ..Self::put_untagged(path, body) }
    }
    /// `PUT path` without an ETag, for actions that the API expresses as a `PUT`.
    pub(crate) fn put_untagged(path: impl Into<String>, body: &impl Serialize) -> Self {
        Self::new(Method::PUT, path, Body::Json(json(body)))
    }
    /// `POST path` with a JSON body: creates something or starts something.
    pub fn post(path: impl Into<String>, body: &impl Serialize) -> Self {
        Self::new(Method::POST, path, Body::Json(json(body)))
    }
    /// `POST path` with a stream of bytes.
    pub fn upload(path: impl Into<String>, body: Body) -> Self {
        Self::new(Method::POST, path, body)
    }
    /// `PATCH path` with a JSON body: changes only the given keys.
    pub fn patch(path: impl Into<String>, body: &impl Serialize) -> Self {
        Self::new(Method::PATCH, path, Body::Json(json(body)))
    }
    /// `DELETE path`.
    pub fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, path, Body::None)
    }
    /// Makes the request conditional: the server refuses it if the object has changed since this ETag was read.
    #[must_use]
    pub(crate) fn if_match(mut self, etag: Option<ETag>) -> Self {
        self.etag = etag;
        self
    }
    /// Sets the time limit for the whole answer.
    #[must_use]
    pub fn within(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
    /// Sets the length limit of the answer.
    #[must_use]
    pub fn at_most(mut self, limit_bytes: u64) -> Self {
        self.limit_bytes = limit_bytes;
        self
    }
    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
    /// Marks the request as needing a feature. It is not sent to a server without it; see
    /// [`Error::Extension`](crate::Error::Extension).
    #[must_use]
    pub fn needs(mut self, feature: Feature) -> Self {
        self.needs.push(feature);
        self
    }
    /// As [`Self::needs`], if `wanted`.
    #[must_use]
    pub(crate) fn needs_if(self, wanted: bool, feature: Feature) -> Self {
        if wanted { self.needs(feature) } else { self }
    }
    /// Adds `key=value` to the query, percent-encoded.
    #[must_use]
    pub fn query(mut self, key: &str, value: &str) -> Self {
        self.path.push(if self.path.contains('?') { '&' } else { '?' });
        self.path.push_str(key);
        self.path.push('=');
        self.path.push_str(&encode(value));
        self
    }
    /// As [`Self::query`], if there is a value.
    #[must_use]
    pub(crate) fn query_if(self, key: &str, value: Option<&str>) -> Self {
        match value {
            Some(v) => self.query(key, v),
            None => self,
        }
    }

    /// The HTTP method.
    pub fn method(&self) -> &Method {
        &self.method
    }
    /// Path and query, percent-encoded: `/1.0/instances?project=default`.
    pub fn path(&self) -> &str {
        &self.path
    }
    /// The body.
    pub fn body(&self) -> &Body {
        &self.body
    }
    /// Sent as `If-Match`: the server refuses the change if somebody else has changed the object.
    pub fn etag(&self) -> Option<&ETag> {
        self.etag.as_ref()
    }
    /// Additional headers, as name and value.
    pub fn headers(&self) -> &[(&'static str, String)] {
        &self.headers
    }
    /// Time limit for the whole answer.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }
    /// Length limit of the answer.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }
    /// Features the server must have.
    pub fn needed(&self) -> &[Feature] {
        &self.needs
    }
}

/// Values of this crate's types always serialise: the keys of their maps are strings.
fn json(body: &impl Serialize) -> Value {
    serde_json::to_value(body).unwrap_or(Value::Null)
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// Bodies carry tokens: they stay out of logs.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("path", &self.path)
            .field("etag", &self.etag)
            .finish_non_exhaustive()
    }
}

/// Percent-encodes a path segment or query value: every byte but the unreserved characters (RFC 3986, 2.3).
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(b));
        } else {
            out.push('%');
            for nibble in [b >> 4, b & 15] {
                out.push(char::from(b"0123456789ABCDEF"[usize::from(nibble)]));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_encoded_and_joined() {
        let r = Request::get("/1.0/instances").query("project", "a b&c").query("recursion", "2");
        assert_eq!(r.path, "/1.0/instances?project=a%20b%26c&recursion=2");
        assert_eq!(r.to_string(), "GET /1.0/instances?project=a%20b%26c&recursion=2");
    }

    #[test]
    fn bodies_stay_out_of_debug() {
        let r = Request::post("/1.0/x", &serde_json::json!({"cluster_token": "SECRET"}));
        assert!(!format!("{r:?}").contains("SECRET"));
    }
}
