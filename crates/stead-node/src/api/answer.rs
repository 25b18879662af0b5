//! Answers as values, and the only place where an error becomes an HTTP status.

use bytes::Bytes;
use futures_util::Stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{Response, StatusCode, body::Frame, header};
use serde::Serialize;
use std::io;
use stead_model::agent::ErrorBody;

/// Body of an answer. An error breaks the connection, which shows the client that the answer is incomplete.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;
/// Result of a handler.
pub type Answer = Result<Response<Body>, Refusal>;

/// A refused request.
#[derive(Debug)]
pub struct Refusal {
    pub status: StatusCode,
    pub body: ErrorBody,
    pub allow: Option<&'static str>,
}

impl Refusal {
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, body: ErrorBody { error: error.into(), hint: None }, allow: None }
    }
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.body.hint = Some(hint.into());
        self
    }
    pub fn into_response(self) -> Response<Body> {
        let bytes = serde_json::to_vec(&self.body).unwrap_or_default();
        let mut response = with_body(self.status, "application/json", whole(bytes));
        if let Some(allow) = self.allow {
            response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static(allow));
        }
        response
    }
}

pub fn json(value: &impl Serialize) -> Answer {
    let bytes = serde_json::to_vec(value).map_err(|e| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write the answer: {e}"))
    })?;
    Ok(with_body(StatusCode::OK, "application/json", whole(bytes)))
}

pub fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(whole(Vec::new()));
    *response.status_mut() = status;
    response
}

pub fn stream(
    content_type: &'static str,
    chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> Response<Body> {
    use futures_util::TryStreamExt;
    with_body(StatusCode::OK, content_type, StreamBody::new(chunks.map_ok(Frame::data)).boxed_unsync())
}

fn with_body(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

fn whole(bytes: Vec<u8>) -> Body {
    Full::from(bytes).map_err(|never| match never {}).boxed_unsync()
}
