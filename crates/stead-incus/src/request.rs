//! A request as a value: what will be sent, without the means of sending it.
//!
//! Its parts can be read and not set from outside: the only way to a `PUT` of an object is [`Request::put`], which wants
//! the [`ETag`] of what it replaces.

use crate::Feature;
use bytes::Bytes;
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{fmt, path::PathBuf, time::Duration};

/// How long an ordinary request may take before the engine counts as hanging. Lists on a busy cluster take well under
/// a second; a cluster without quorum never answers.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// An answer may be this long unless a request says otherwise. The longest ones are lists with states: 20,000 instances
/// of 10 KiB each.
pub const DEFAULT_LIMIT_BYTES: u64 = 256 << 20;

/// Which state of an object an answer described: the server makes it of what a `PUT` can change.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ETag(String);

impl ETag {
    /// As it stands in the header.
    pub fn new(header: impl Into<String>) -> Self {
        Self(header.into())
    }
    /// As it stands in the header.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An object with the [`ETag`] that a later `PUT` of it needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Tagged<T> {
    /// The object.
    pub value: T,
    /// Its state.
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

/// What a request carries.
#[derive(Clone, PartialEq, Eq)]
pub enum Body {
    /// Nothing.
    None,
    /// JSON.
    Json(Value),
    /// One stream of bytes.
    Raw(Source),
    /// `multipart/form-data`.
    Multipart(Vec<Part>),
}

/// One part of a multipart body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Field name: `metadata`, `rootfs`.
    pub name: &'static str,
    /// File name told to the server.
    pub file_name: String,
    /// Contents.
    pub source: Source,
}

/// Where bytes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Memory.
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
    /// `PUT path` with a JSON body: replaces the object, if it still is as it was when `etag` was given out.
    pub fn put(path: impl Into<String>, body: &impl Serialize, etag: ETag) -> Self {
        Self { etag: Some(etag), ..Self::put_untagged(path, body) }
    }
    /// `PUT path` where the API gives out no ETag: actions in the shape of a `PUT`.
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
    /// `PATCH path` with a JSON body: changes the keys given.
    pub fn patch(path: impl Into<String>, body: &impl Serialize) -> Self {
        Self::new(Method::PATCH, path, Body::Json(json(body)))
    }
    /// `DELETE path`.
    pub fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, path, Body::None)
    }
    /// Only if the object still is as it was when this ETag was given out.
    #[must_use]
    pub(crate) fn if_match(mut self, etag: Option<ETag>) -> Self {
        self.etag = etag;
        self
    }
    /// With another limit of time: the whole answer must be there within it.
    #[must_use]
    pub fn within(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
    /// With another limit of the answer's length.
    #[must_use]
    pub fn at_most(mut self, limit_bytes: u64) -> Self {
        self.limit_bytes = limit_bytes;
        self
    }
    /// With one header more.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
    /// Only for servers that can do this: others are not asked, see [`Error::Extension`](crate::Error::Extension).
    #[must_use]
    pub fn needs(mut self, feature: Feature) -> Self {
        self.needs.push(feature);
        self
    }
    /// As [`Self::needs`], when `wanted`.
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
    /// As [`Self::query`], when there is a value.
    #[must_use]
    pub(crate) fn query_if(self, key: &str, value: Option<&str>) -> Self {
        match value {
            Some(v) => self.query(key, v),
            None => self,
        }
    }

    /// Method.
    pub fn method(&self) -> &Method {
        &self.method
    }
    /// Path and query, percent-encoded: `/1.0/instances?project=default`.
    pub fn path(&self) -> &str {
        &self.path
    }
    /// Body.
    pub fn body(&self) -> &Body {
        &self.body
    }
    /// Sent as `If-Match`: the change is refused when somebody else changed the object meanwhile.
    pub fn etag(&self) -> Option<&ETag> {
        self.etag.as_ref()
    }
    /// Further headers.
    pub fn headers(&self) -> &[(&'static str, String)] {
        &self.headers
    }
    /// The whole answer must be there within this time.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }
    /// The answer may be this long.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }
    /// What the server must be able to do.
    pub fn needed(&self) -> &[Feature] {
        &self.needs
    }
}

/// Values of this crate's own types always serialise: their maps have text keys.
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

/// Percent-encodes one path segment or query value: all but unreserved characters (RFC 3986, 2.3).
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
