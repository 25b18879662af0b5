//! The client of the agent API: one value per node.
//!
//! Owns the requests and, in [`transport`], their connections. Does not own routes into the node's network: a [`Dial`]
//! makes the connection.

mod transport;

use crate::{
    error::ClientError,
    exec::{ExecInput, ExecSession},
    frame::{self, Frame, FrameError},
    query,
    tls::{self, Identity},
};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    Request, StatusCode,
    body::{Body as _, Incoming},
    header,
};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
    time::Duration,
};
use stead_model::{
    NodeName,
    agent::{
        Access, AccessRequest, EngineStatus, ExecRequest, InstanceStatus, JoinRequest, JoinTokenRequest,
        NodeStatus, RemoveMemberRequest, RestoreMemberRequest, StopRequest, Token,
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use transport::{Closing, Sender, empty};

/// Size of the pieces in which files are sent, in bytes.
const CHUNK: usize = 64 * 1024;

/// A connection being made.
pub type DialFuture<'a> = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send + 'a>>;

/// Opens TCP connections to nodes, e.g. from another network namespace.
pub trait Dial: Send + Sync {
    /// Connects. The caller sets the time limit.
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

/// Time limits of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For TCP and TLS.
    pub connect: Duration,
    /// For the answer to a quick request, and for the headers of an answer that streams.
    pub request: Duration,
    /// For the answer to an engine action: making a token, joining, removing.
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

/// A client of one node. Clones share its idle connections.
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

/// A streamed answer: pieces of a log or of a tar archive.
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
    /// [`ClientError::Unreachable`] when the stream ends early.
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
    /// The same client, sharing its connections, with other time limits.
    pub fn with_timeouts(&self, timeouts: Timeouts) -> Self {
        Self { inner: Arc::clone(&self.inner), timeouts }
    }
    /// The node's name.
    pub fn node(&self) -> &NodeName {
        &self.inner.node
    }

    /// The node's status, as the agent last observed it.
    ///
    /// # Errors
    /// [`ClientError`], as for every request.
    pub async fn status(&self) -> Result<NodeStatus, ClientError> {
        self.get("read status", "/v1/status").await
    }

    /// The log of a service, or the node's own when `service` is `None`. `tail` keeps only that many last lines; with
    /// `follow` the stream goes on until it is dropped.
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
    /// As for every request; [`ClientError::TooLong`]. A command that cannot be run is not an error: it exits with 126 or
    /// 127.
    pub async fn exec(&self, request: &ExecRequest) -> Result<ExecSession, ClientError> {
        let operation = "run a command";
        let first = Frame::Request(request.clone());
        // Before the connection, so that the node is not left waiting.
        if let Err(FrameError::TooLong { length }) = frame::encode(&first, &mut BytesMut::new()) {
            return Err(ClientError::TooLong { operation, node: self.node().clone(), length });
        }
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
        input.send(&first).await.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => self.protocol(operation, error),
            _ => self.unreachable(operation, error),
        })?;
        Ok(session)
    }

    /// A tar archive of the file or tree at `path`, as a stream. The top entry is named by the last part of `path`.
    ///
    /// # Errors
    /// As for every request; 404 when there is no such path.
    pub async fn get_files_stream(&self, path: &str) -> Result<Chunks, ClientError> {
        self.stream("read files", &format!("/v1/files?path={}", query::encode(path))).await
    }

    /// Writes a tar archive of the file or tree at `path` to `writer`; returns its length in bytes.
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

    /// Whether `path` is a directory or a link to one; false when it is something else or nothing.
    ///
    /// # Errors
    /// As for every request.
    pub async fn is_directory(&self, path: &str) -> Result<bool, ClientError> {
        // The kernel finds "." in directories only. Nobody takes the tar, so that the node stops packing at once.
        match self.get_files_stream(&format!("{}/.", path.trim_end_matches('/'))).await {
            Ok(_) => Ok(true),
            Err(ClientError::Status { code: 400 | 404, .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Unpacks a tar archive in the directory `path`. An archive with entries outside that directory is refused.
    ///
    /// # Errors
    /// As for every request, and [`ClientError::Local`] when `tar` fails.
    pub async fn put_files(&self, path: &str, tar: &mut (impl AsyncRead + Unpin)) -> Result<(), ClientError> {
        let operation = "write files";
        // The next piece is read while one is sent.
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
                        // The node must see an error, or it would take half an archive for a whole one.
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

    /// The status of the node's engine, asked for now; [`Self::status`] reports what was last observed.
    ///
    /// # Errors
    /// As for every request; 404 when the node has no engine.
    pub async fn engine(&self) -> Result<EngineStatus, ClientError> {
        self.get("read the engine's status", "/v1/engine").await
    }
    /// A one-time token with which another member may join.
    ///
    /// # Errors
    /// As for every request; 502 when the engine refuses, as for all engine actions.
    pub async fn join_token(&self, request: &JoinTokenRequest) -> Result<Token, ClientError> {
        self.post("make a join token", "/v1/engine/join-token", request, self.timeouts.engine).await
    }
    /// Makes the node join a cluster; returns once it is a member.
    ///
    /// # Errors
    /// As [`Self::join_token`].
    pub async fn join(&self, request: &JoinRequest) -> Result<EngineStatus, ClientError> {
        self.post("join the engine's cluster", "/v1/engine/join", request, self.timeouts.engine).await
    }
    /// What the engine's own client needs. The engine then trusts the client's certificate.
    ///
    /// # Errors
    /// As [`Self::join_token`].
    pub async fn access(&self, request: &AccessRequest) -> Result<Access, ClientError> {
        self.post("get access to the engine", "/v1/engine/access", request, self.timeouts.engine).await
    }
    /// Removes another member from the engine's cluster.
    ///
    /// # Errors
    /// As [`Self::join_token`].
    pub async fn remove_member(&self, request: &RemoveMemberRequest) -> Result<(), ClientError> {
        self.post_empty("remove a member", "/v1/engine/remove", request, self.timeouts.engine).await
    }
    /// Restores a member whose removal began and did not finish.
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
    /// Reboots the node. The reboot has begun when this returns.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn reboot(&self, request: &StopRequest) -> Result<(), ClientError> {
        self.post_empty("reboot", "/v1/reboot", request, self.timeouts.request).await
    }
    /// Shuts the node down. The shutdown has begun when this returns.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn shutdown(&self, request: &StopRequest) -> Result<(), ClientError> {
        self.post_empty("shut down", "/v1/shutdown", request, self.timeouts.request).await
    }
}
