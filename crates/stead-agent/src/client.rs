//! The client of the agent API: one value per node.
//!
//! Owns connections, time limits and how failures are sorted. Does not own routes into the node's network: a [`Dial`] brings
//! the connection. Quick requests share kept connections; everything that streams or changes something gets its own.

use crate::{
    error::{ClientError, find},
    exec::{ExecInput, ExecSession},
    frame::Frame,
    query,
    tls::{self, Identity},
};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream};
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body as _, Incoming},
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    error::Error as StdError,
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};
use stead_model::{
    NodeName,
    agent::{
        EngineStatus, ErrorBody, ExecRequest, InstanceStatus, JoinRequest, JoinTokenRequest, NodeStatus,
        RemoveMemberRequest, RestoreMemberRequest, StopRequest, Token, TrustTokenRequest,
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// Longest JSON answer read. The status of a node with 500 timeline events is some 50 KiB; the instance list of a large
/// cluster may be some MiB.
const MAX_ANSWER: usize = 16 << 20;
/// Kept connections: one poller and one person beside it.
const MAX_IDLE: usize = 2;
/// A kept connection that is silent for this long may be to a node that is no more; asking again costs little.
const KEPT_ANSWER: Duration = Duration::from_secs(2);
/// Pieces of a file transfer.
const CHUNK: usize = 64 * 1024;

/// A connection being made.
pub type DialFuture<'a> = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send + 'a>>;

/// Brings a TCP connection to a node, from wherever it can be reached.
pub trait Dial: Send + Sync {
    /// Connects. The caller limits the time.
    fn dial(&self, address: SocketAddr) -> DialFuture<'_>;
}

/// Connects from the network namespace this process is in.
#[derive(Debug, Clone, Copy, Default)]
pub struct DirectDialer;

impl Dial for DirectDialer {
    fn dial(&self, address: SocketAddr) -> DialFuture<'_> {
        Box::pin(TcpStream::connect(address))
    }
}

/// How long a client waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For TCP and TLS.
    pub connect: Duration,
    /// For the answer to a quick request, and for the head of the answer to one that streams.
    pub request: Duration,
    /// For the answer to what an engine does: tokens, joining, removing.
    pub engine: Duration,
    /// For the answer to `put_files` once everything is sent.
    pub unpack: Duration,
}

impl Default for Timeouts {
    /// Connecting 3 s, requests 10 s, engine actions and unpacking 180 s (an emulated node is slow).
    fn default() -> Self {
        let engine = Duration::from_secs(180);
        Self { connect: Duration::from_secs(3), request: Duration::from_secs(10), engine, unpack: engine }
    }
}

/// How a connection ends when it is dropped, or this process killed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Closing {
    /// After what was sent.
    Orderly,
    /// At once. For `exec`: a node whose command does not read its stdin reads no more either, and would never come to
    /// an end that waits behind unsent data.
    Abort,
}

type Body = UnsyncBoxBody<Bytes, io::Error>;
type Sender = SendRequest<Body>;

/// A client of one node. Clones share its kept connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    timeouts: Timeouts,
}

struct Inner {
    node: NodeName,
    address: SocketAddr,
    name: ServerName<'static>,
    tls: TlsConnector,
    dialer: Arc<dyn Dial>,
    idle: Mutex<Vec<Sender>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("node", &self.inner.node)
            .field("address", &self.inner.address)
            .finish_non_exhaustive()
    }
}

/// A streamed answer: pieces of a log or of a tar.
#[derive(Debug)]
pub struct Chunks {
    operation: &'static str,
    client: Client,
    body: Incoming,
}

impl Chunks {
    /// The next piece; `None` at the end. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] when the stream broke off before its end.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await.transpose()
    }
}

impl Stream for Chunks {
    type Item = Result<Bytes, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
                Some(Err(error)) => {
                    return Poll::Ready(Some(Err(self.client.transport_error(self.operation, error))));
                }
            }
        }
    }
}

impl Client {
    /// A client for `node` at `address`. Nothing is connected yet.
    ///
    /// # Errors
    /// [`ClientError::Identity`].
    pub fn new(
        identity: &Identity,
        node: &NodeName,
        address: SocketAddr,
        dialer: Arc<dyn Dial>,
    ) -> Result<Self, ClientError> {
        let fail = |source| ClientError::Identity { node: node.clone(), source };
        let config = tls::client_config(identity).map_err(fail)?;
        Ok(Self {
            inner: Arc::new(Inner {
                node: node.clone(),
                address,
                name: tls::server_name(node).map_err(fail)?,
                tls: TlsConnector::from(config),
                dialer,
                idle: Mutex::default(),
            }),
            timeouts: Timeouts::default(),
        })
    }
    /// The same client (and connections) with other time limits.
    pub fn with_timeouts(&self, timeouts: Timeouts) -> Self {
        Self { inner: Arc::clone(&self.inner), timeouts }
    }
    /// The node it speaks to.
    pub fn node(&self) -> &NodeName {
        &self.inner.node
    }

    /// How the node is.
    ///
    /// # Errors
    /// [`ClientError`], as for every request.
    pub async fn status(&self) -> Result<NodeStatus, ClientError> {
        self.get("read status", "/v1/status").await
    }

    /// A log: of a service, or the node's own when `service` is `None`. `tail`: only so many last lines. `follow`: it
    /// goes on until the stream is dropped.
    ///
    /// # Errors
    /// As for every request; 404 for a service that does not exist, with the names as hint.
    pub async fn logs(
        &self,
        service: Option<&str>,
        tail: Option<u64>,
        follow: bool,
    ) -> Result<Chunks, ClientError> {
        let mut target =
            format!("/v1/logs?service={}&follow={follow}", query::encode(service.unwrap_or("node")));
        if let Some(lines) = tail {
            target.push_str(&format!("&tail={lines}"));
        }
        self.stream("read logs", &target).await
    }

    /// Starts a command.
    ///
    /// # Errors
    /// As for every request. A command that cannot be run is no error: it ends with 126 or 127.
    pub async fn exec(&self, request: &ExecRequest) -> Result<ExecSession, ClientError> {
        let operation = "run a command";
        let head = Request::post("/v1/exec")
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, "stead-exec");
        let upgrade = self.build(operation, head, empty())?;
        let mut sender = self.connect_closing(operation, Closing::Abort).await?;
        let answer = self.answer(operation, &mut sender, upgrade, self.timeouts.request).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.protocol(operation, format!("status {} instead of 101", answer.status())));
        }
        let upgraded =
            hyper::upgrade::on(answer).await.map_err(|error| self.transport_error(operation, error))?;
        let mut session = ExecSession::new(TokioIo::new(upgraded));
        let input: &mut ExecInput = session.input();
        input.send(&Frame::Request(request.clone())).await.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => self.protocol(operation, error),
            _ => self.unreachable(operation, error),
        })?;
        Ok(session)
    }

    /// A tar of the file or tree at `path`, as it comes. The top entry has the last part of `path` as its name.
    ///
    /// # Errors
    /// As for every request; 404 when there is no such path.
    pub async fn get_files_stream(&self, path: &str) -> Result<Chunks, ClientError> {
        self.stream("read files", &format!("/v1/files?path={}", query::encode(path))).await
    }

    /// Writes a tar of the file or tree at `path` to `writer`; how many bytes.
    ///
    /// # Errors
    /// As for every request, and [`ClientError::Local`] when `writer` fails.
    pub async fn get_files(
        &self,
        path: &str,
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Result<u64, ClientError> {
        let local =
            |source| ClientError::Local { operation: "read files", node: self.node().clone(), source };
        let mut chunks = self.get_files_stream(path).await?;
        let mut total = 0;
        while let Some(chunk) = chunks.next_chunk().await? {
            writer.write_all(&chunk).await.map_err(local)?;
            total += chunk.len() as u64;
        }
        writer.flush().await.map_err(local)?;
        Ok(total)
    }

    /// Unpacks a tar in the directory `path`. A tar that leaves that directory is refused.
    ///
    /// # Errors
    /// As for every request, and [`ClientError::Local`] when `tar` fails.
    pub async fn put_files(&self, path: &str, tar: &mut (impl AsyncRead + Unpin)) -> Result<(), ClientError> {
        let operation = "write files";
        // Two pieces on their way: the next one is read while one is sent.
        let (pieces, receiver) = mpsc::channel::<io::Result<hyper::body::Frame<Bytes>>>(1);
        let body = StreamBody::new(stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|piece| (piece, receiver))
        }));
        let head = Request::put(format!("/v1/files?path={}", query::encode(path)))
            .header(header::CONTENT_TYPE, "application/x-tar");
        let request = self.build(operation, head, BodyExt::boxed_unsync(body))?;
        let mut sender = self.connect(operation).await?;
        let mut answer = pin!(async {
            match sender.send_request(request).await {
                Ok(answer) => self.check(operation, answer).await,
                Err(error) => Err(self.transport_error(operation, error)),
            }
        });
        let feed = async {
            let mut buffer = BytesMut::new();
            loop {
                buffer.reserve(CHUNK);
                match tar.read_buf(&mut buffer).await {
                    Ok(0) => return Ok(()),
                    Ok(_) => {
                        let piece = hyper::body::Frame::data(buffer.split().freeze());
                        if pieces.send(Ok(piece)).await.is_err() {
                            return Ok(());
                        }
                    }
                    Err(source) => {
                        // The node must not take half a tar for a whole one.
                        let _ = pieces.send(Err(io::Error::other("the sender failed"))).await;
                        return Err(ClientError::Local { operation, node: self.node().clone(), source });
                    }
                }
            }
        };
        tokio::select! {
            early = &mut answer => return early.map(drop),
            fed = feed => fed?,
        }
        drop(pieces);
        match timeout(self.timeouts.unpack, answer).await {
            Ok(answer) => answer.map(drop),
            Err(_) => Err(self.unreachable(operation, io::ErrorKind::TimedOut.into())),
        }
    }

    /// How the node's engine is now: it is asked, unlike for [`Self::status`], which tells what was seen last.
    ///
    /// # Errors
    /// As for every request; 404 when the node has none.
    pub async fn engine(&self) -> Result<EngineStatus, ClientError> {
        self.get("read the engine's status", "/v1/engine").await
    }
    /// A one-time token with which another member may join.
    ///
    /// # Errors
    /// As for every request; 502 when the engine refuses (so for all engine actions).
    pub async fn join_token(&self, request: &JoinTokenRequest) -> Result<Token, ClientError> {
        self.post("make a join token", "/v1/engine/join-token", request, self.timeouts.engine).await
    }
    /// Has the node join; returns when it is a member.
    ///
    /// # Errors
    /// As [`Self::join_token`].
    pub async fn join(&self, request: &JoinRequest) -> Result<EngineStatus, ClientError> {
        self.post("join the engine's cluster", "/v1/engine/join", request, self.timeouts.engine).await
    }
    /// A one-time token with which a client certificate may be added.
    ///
    /// # Errors
    /// As [`Self::join_token`].
    pub async fn trust_token(&self, request: &TrustTokenRequest) -> Result<Token, ClientError> {
        self.post("make a trust token", "/v1/engine/trust-token", request, self.timeouts.engine).await
    }
    /// Removes another member from the engine's cluster.
    ///
    /// # Errors
    /// As [`Self::join_token`].
    pub async fn remove_member(&self, request: &RemoveMemberRequest) -> Result<(), ClientError> {
        self.post_empty("remove a member", "/v1/engine/remove", request, self.timeouts.engine).await
    }
    /// Takes back a member whose removal was begun and not ended.
    ///
    /// # Errors
    /// As [`Self::join_token`].
    pub async fn restore_member(&self, request: &RestoreMemberRequest) -> Result<(), ClientError> {
        self.post_empty("restore a member", "/v1/engine/restore", request, self.timeouts.engine).await
    }
    /// Instances of the whole cluster.
    ///
    /// # Errors
    /// As [`Self::join_token`].
    pub async fn instances(&self) -> Result<Vec<InstanceStatus>, ClientError> {
        self.get("list instances", "/v1/engine/instances").await
    }
    /// Boots the node again. It has begun when this returns.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn reboot(&self, request: &StopRequest) -> Result<(), ClientError> {
        self.post_empty("reboot", "/v1/reboot", request, self.timeouts.request).await
    }
    /// Shuts the node down. It has begun when this returns.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn shutdown(&self, request: &StopRequest) -> Result<(), ClientError> {
        self.post_empty("shut down", "/v1/shutdown", request, self.timeouts.request).await
    }

    /// A quick request without effects, on a kept connection when there is one.
    async fn get<T: DeserializeOwned>(
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
                // The node may have closed it meanwhile, or have gone and come again: a new connection tells.
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

    async fn post<T: DeserializeOwned>(
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

    async fn post_empty(
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

    async fn stream(&self, operation: &'static str, target: &str) -> Result<Chunks, ClientError> {
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

    async fn connect(&self, operation: &'static str) -> Result<Sender, ClientError> {
        self.connect_closing(operation, Closing::Orderly).await
    }

    async fn connect_closing(
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
        // Its errors come out at the request that meets them.
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
            // Ready again: the connection's task has seen the end of the answer too.
            let _ = sender.ready().await;
            serde_json::from_slice(&bytes).map_err(|error| self.protocol(operation, error))
        };
        timeout(limit, whole)
            .await
            .unwrap_or_else(|_| Err(self.unreachable(operation, io::ErrorKind::TimedOut.into())))
    }

    /// Sends a request and reads the head of the answer.
    async fn answer(
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

    /// An answer that is an error becomes one.
    async fn check(
        &self,
        operation: &'static str,
        answer: Response<Incoming>,
    ) -> Result<Response<Incoming>, ClientError> {
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

    fn build(
        &self,
        operation: &'static str,
        head: http::request::Builder,
        body: Body,
    ) -> Result<Request<Body>, ClientError> {
        head.header(header::HOST, self.inner.node.as_str())
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

    fn protocol(
        &self,
        operation: &'static str,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> ClientError {
        ClientError::Protocol { operation, node: self.node().clone(), source: source.into() }
    }

    fn unreachable(&self, operation: &'static str, source: io::Error) -> ClientError {
        let Inner { node, address, .. } = &*self.inner;
        ClientError::Unreachable { operation, node: node.clone(), address: *address, source }
    }

    /// Sorts a failure below HTTP: no trust, no connection, or no sense. With TLS 1.3 the node's refusal of our
    /// certificate arrives only after our side of the handshake, so it may come out of any read.
    fn transport_error(
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

fn prepare(tcp: &TcpStream, closing: Closing) -> io::Result<()> {
    use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl};
    // Small requests and keystrokes must not wait for an acknowledgement.
    tcp.set_nodelay(true)?;
    // A node that vanished (a VM killed) says nothing: a stream from it ends after some half a minute.
    set_socket_keepalive(tcp, true)?;
    set_tcp_keepidle(tcp, Duration::from_secs(15))?;
    set_tcp_keepintvl(tcp, Duration::from_secs(5))?;
    set_tcp_keepcnt(tcp, 3)?;
    if closing == Closing::Abort {
        tcp.set_zero_linger()?;
    }
    Ok(())
}

fn empty() -> Body {
    Full::default().map_err(|never| match never {}).boxed_unsync()
}
