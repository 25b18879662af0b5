//! Connections of the client: time limits, idle connections, and the classes of failures. Quick requests reuse idle
//! connections; a request that streams or changes something gets a connection of its own.

use super::{Chunks, Client, Inner};
use crate::error::{ClientError, find};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use std::{error::Error as StdError, io, sync::PoisonError, time::Duration};
use stead_model::agent::{ErrorBody, FIRST_PROTOCOL, PROTOCOL, PROTOCOL_HEADER};
use tokio::{net::TcpStream, time::timeout};

/// Longest JSON answer read, in bytes. The status of a node with 500 timeline events takes about 50 KiB; the instance
/// list of a large cluster may take a few MiB.
const MAX_ANSWER: usize = 16 << 20;
/// Idle connections kept: enough for one poller and one user.
const MAX_IDLE: usize = 2;
/// An idle connection without an answer for this long may lead to a node that is gone; asking again costs little.
const KEPT_ANSWER: Duration = Duration::from_secs(2);

/// How a connection ends when it is dropped or this process is killed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Closing {
    /// Once all sent data is delivered.
    Orderly,
    /// At once, for `exec`: a node whose command does not read its standard input stops reading too, and would never
    /// see an end that is queued behind unsent data.
    Abort,
}

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;
pub(super) type Sender = SendRequest<Body>;

impl Client {
    /// A quick request without effects, on an idle connection when there is one.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        target: &str,
    ) -> Result<T, ClientError> {
        let limit = self.timeouts.request;
        if let Some(mut sender) = self.take_idle() {
            let request = self.build(operation, Request::get(target), empty())?;
            match self.fetch(operation, &mut sender, request, limit.min(KEPT_ANSWER)).await {
                Ok(value) => {
                    self.keep(sender);
                    return Ok(value);
                }
                // The node may have closed the connection or rebooted: a new connection shows which.
                Err(ClientError::Unreachable { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let request = self.build(operation, Request::get(target), empty())?;
        let mut sender = self.connect(operation).await?;
        let value = self.fetch(operation, &mut sender, request, limit).await?;
        self.keep(sender);
        Ok(value)
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        target: &str,
        message: &impl Serialize,
        limit: Duration,
    ) -> Result<T, ClientError> {
        let request = self.build_post(operation, target, message)?;
        let mut sender = self.connect(operation).await?;
        self.fetch(operation, &mut sender, request, limit).await
    }

    pub(super) async fn post_empty(
        &self,
        operation: &'static str,
        target: &str,
        message: &impl Serialize,
        limit: Duration,
    ) -> Result<(), ClientError> {
        let request = self.build_post(operation, target, message)?;
        let mut sender = self.connect(operation).await?;
        self.answer(operation, &mut sender, request, limit).await.map(drop)
    }

    pub(super) async fn stream(&self, operation: &'static str, target: &str) -> Result<Chunks, ClientError> {
        let request = self.build(operation, Request::get(target), empty())?;
        let mut sender = self.connect(operation).await?;
        let answer = self.answer(operation, &mut sender, request, self.timeouts.request).await?;
        Ok(Chunks { operation, client: self.clone(), body: answer.into_body() })
    }

    fn take_idle(&self) -> Option<Sender> {
        let mut idle = self.inner.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(sender) = idle.pop() {
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    fn keep(&self, sender: Sender) {
        let mut idle = self.inner.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE && !sender.is_closed() {
            idle.push(sender);
        }
    }

    pub(super) async fn connect(&self, operation: &'static str) -> Result<Sender, ClientError> {
        self.connect_closing(operation, Closing::Orderly).await
    }

    pub(super) async fn connect_closing(
        &self,
        operation: &'static str,
        closing: Closing,
    ) -> Result<Sender, ClientError> {
        let Inner { address, name, tls, dialer, .. } = &*self.inner;
        let handshake = async {
            let tcp = dialer.dial(*address).await.map_err(|e| self.unreachable(operation, e))?;
            prepare(&tcp, closing).map_err(|e| self.unreachable(operation, e))?;
            let stream = tls
                .connect(name.clone(), tcp)
                .await
                .map_err(|error| self.transport_error(operation, error))?;
            http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|error| self.transport_error(operation, error))
        };
        let (sender, connection) = timeout(self.timeouts.connect, handshake)
            .await
            .map_err(|_| self.unreachable(operation, io::ErrorKind::TimedOut.into()))??;
        // The request that meets an error of the connection reports it.
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }

    /// Sends a request and reads a JSON answer.
    async fn fetch<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        sender: &mut Sender,
        request: Request<Body>,
        limit: Duration,
    ) -> Result<T, ClientError> {
        let whole = async {
            let answer = self.exchange(operation, sender, request).await?;
            let bytes = self.collect(operation, answer.into_body()).await?;
            // Once it is ready, the connection's task has also seen the end of the answer.
            let _ = sender.ready().await;
            serde_json::from_slice(&bytes).map_err(|error| self.protocol(operation, error))
        };
        timeout(limit, whole)
            .await
            .unwrap_or_else(|_| Err(self.unreachable(operation, io::ErrorKind::TimedOut.into())))
    }

    /// Sends a request and reads the headers of the answer.
    pub(super) async fn answer(
        &self,
        operation: &'static str,
        sender: &mut Sender,
        request: Request<Body>,
        limit: Duration,
    ) -> Result<Response<Incoming>, ClientError> {
        timeout(limit, self.exchange(operation, sender, request))
            .await
            .unwrap_or_else(|_| Err(self.unreachable(operation, io::ErrorKind::TimedOut.into())))
    }

    async fn exchange(
        &self,
        operation: &'static str,
        sender: &mut Sender,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, ClientError> {
        let answer =
            sender.send_request(request).await.map_err(|error| self.transport_error(operation, error))?;
        self.check(operation, answer).await
    }

    /// Turns an answer with an error status, or of another protocol version, into an error.
    pub(super) async fn check(
        &self,
        operation: &'static str,
        answer: Response<Incoming>,
    ) -> Result<Response<Incoming>, ClientError> {
        // Checked first, because another version's body may have any form.
        let theirs = protocol_of(answer.headers());
        if theirs != PROTOCOL {
            let node = self.node().clone();
            return Err(ClientError::Version { operation, node, theirs, ours: PROTOCOL });
        }
        let code = answer.status();
        if code.is_success() || code == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(answer);
        }
        let bytes = self.collect(operation, answer.into_body()).await?;
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| ErrorBody { error: format!("status {code}"), hint: None });
        Err(ClientError::Status { operation, node: self.node().clone(), code: code.as_u16(), body })
    }

    async fn collect(&self, operation: &'static str, body: Incoming) -> Result<Bytes, ClientError> {
        match Limited::new(body, MAX_ANSWER).collect().await {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(error) => Err(match error.downcast::<hyper::Error>() {
                Ok(error) => self.transport_error(operation, *error),
                Err(error) => self.protocol(operation, error),
            }),
        }
    }

    pub(super) fn build(
        &self,
        operation: &'static str,
        head: http::request::Builder,
        body: Body,
    ) -> Result<Request<Body>, ClientError> {
        head.header(header::HOST, self.inner.node.as_str())
            .header(PROTOCOL_HEADER, PROTOCOL)
            .body(body)
            .map_err(|error| self.protocol(operation, error))
    }

    fn build_post(
        &self,
        operation: &'static str,
        target: &str,
        message: &impl Serialize,
    ) -> Result<Request<Body>, ClientError> {
        let json = serde_json::to_vec(message).map_err(|error| self.protocol(operation, error))?;
        let head = Request::builder()
            .method(Method::POST)
            .uri(target)
            .header(header::CONTENT_TYPE, "application/json");
        self.build(operation, head, Full::from(json).map_err(|never| match never {}).boxed_unsync())
    }

    pub(super) fn protocol(
        &self,
        operation: &'static str,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> ClientError {
        ClientError::Protocol { operation, node: self.node().clone(), source: source.into() }
    }

    pub(super) fn unreachable(&self, operation: &'static str, source: io::Error) -> ClientError {
        let Inner { node, address, .. } = &*self.inner;
        ClientError::Unreachable { operation, node: node.clone(), address: *address, source }
    }

    /// Classifies a failure below HTTP: no trust, no connection, or no HTTP. With TLS 1.3 the node's refusal of our
    /// certificate arrives only after our side of the handshake, so any read may return it.
    pub(super) fn transport_error(
        &self,
        operation: &'static str,
        error: impl StdError + Send + Sync + 'static,
    ) -> ClientError {
        let Inner { node, address, .. } = &*self.inner;
        if let Some(tls) = find::<rustls::Error>(&error) {
            return ClientError::Tls {
                operation,
                node: node.clone(),
                address: *address,
                source: Box::new(tls.clone()),
            };
        }
        if let Some(io) = find::<io::Error>(&error) {
            return self.unreachable(operation, io::Error::new(io.kind(), error));
        }
        match find::<hyper::Error>(&error) {
            Some(http) if http.is_parse() || http.is_user() => self.protocol(operation, error),
            _ => self.unreachable(operation, io::Error::new(io::ErrorKind::ConnectionReset, error)),
        }
    }
}

/// The protocol version that the sender of these headers speaks.
fn protocol_of(headers: &http::HeaderMap) -> u32 {
    let said = headers.get(PROTOCOL_HEADER).and_then(|v| v.to_str().ok());
    said.and_then(|v| v.parse().ok()).unwrap_or(FIRST_PROTOCOL)
}

fn prepare(tcp: &TcpStream, closing: Closing) -> io::Result<()> {
    use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl};
    // Small requests and keystrokes must not wait for an acknowledgement.
    tcp.set_nodelay(true)?;
    // A node that vanished, e.g. a killed VM, closes nothing: keepalive ends a stream from it after half a minute.
    set_socket_keepalive(tcp, true)?;
    set_tcp_keepidle(tcp, Duration::from_secs(15))?;
    set_tcp_keepintvl(tcp, Duration::from_secs(5))?;
    set_tcp_keepcnt(tcp, 3)?;
    if closing == Closing::Abort {
        tcp.set_zero_linger()?;
    }
    Ok(())
}

pub(super) fn empty() -> Body {
    Full::default().map_err(|never| match never {}).boxed_unsync()
}
