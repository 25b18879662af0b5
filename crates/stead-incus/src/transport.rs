//! Sends a [`Request`] to an engine and receives the answer: HTTP/1.1 over a unix socket or over TLS, and websockets over
//! both. Owns connections; the client interprets the answers.

use crate::{
    error::Error,
    request::{Body, Part, Request, Source},
    tls,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::Frame,
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use std::{
    fmt, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{self, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpStream, UnixStream},
    time::Instant,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, client::IntoClientRequest, protocol::WebSocketConfig},
};

/// Limit on idle connections kept for later requests; more than a handful of requests at once is rare.
const MAX_IDLE: usize = 4;
/// A connection that was idle for longer is not reused: the engines close idle connections after some tens of seconds,
/// and a runtime that was held up has not noticed.
const FRESH: Duration = Duration::from_secs(10);
/// Files are read in chunks of this size.
const CHUNK: usize = 128 * 1024;
/// Boundary of multipart bodies. Long and unusual enough not to occur in an image, as in browsers and Go; fixed, so that
/// equal requests are equal values.
const BOUNDARY: &str = "stead-8f1b6f0a7d3c4e52b9c1-4d0e9a6b3f7c2e58a1d4";

/// Length limit of a websocket message. Events and chunks of files are some KiB; migrations send chunks of 4 MiB.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// Length limit of an error answer, which is a sentence or two in an envelope.
const MAX_REFUSAL_BYTES: u64 = 64 << 10;

/// A websocket over either transport.
pub(crate) type WebSocket = WebSocketStream<ReadsOn<Box<dyn Stream>>>;

/// The byte stream under a connection.
pub(crate) trait Stream: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin> Stream for S {}

/// The byte stream under a websocket: what is written to a peer that has hung up is dropped, and what the peer had sent
/// before can still be read, up to the end. The websocket answers pings while it reads; an engine that pings, sends
/// the last output and closes would otherwise cost that output, because the answer to the ping can no longer be sent.
#[derive(Debug)]
pub(crate) struct ReadsOn<S> {
    inner: S,
    /// A unix socket: after a reset everything that the peer had sent was still read, so a reset is an end. Over TCP it
    /// is not: a reset discards what has arrived.
    local: bool,
    hung_up: bool,
}

impl<S> ReadsOn<S> {
    fn new(inner: S, local: bool) -> Self {
        Self { inner, local, hung_up: false }
    }

    /// The result of writing: a hang-up becomes `instead`.
    fn dropped<T>(&mut self, result: Poll<io::Result<T>>, instead: T) -> Poll<io::Result<T>> {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
        match result {
            Poll::Ready(Err(e)) if matches!(e.kind(), BrokenPipe | ConnectionReset | NotConnected) => {
                self.hung_up = true;
                Poll::Ready(Ok(instead))
            }
            other => other,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadsOn<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.inner).poll_read(cx, buffer) {
            Poll::Ready(Err(e)) if self.local && e.kind() == io::ErrorKind::ConnectionReset => {
                Poll::Ready(Ok(()))
            }
            other => other,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadsOn<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.hung_up {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.dropped(written, bytes.len())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        if self.hung_up {
            return Poll::Ready(Ok(()));
        }
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.dropped(flushed, ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        if self.hung_up {
            return Poll::Ready(Ok(()));
        }
        let shut = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.dropped(shut, ())
    }
}

/// Body of an outgoing request.
type OutBody = BoxBody<Bytes, io::Error>;

/// Address of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// Its unix socket.
    Unix(PathBuf),
    /// HTTPS with a pinned server certificate.
    Https {
        /// `address:port`.
        address: String,
        /// SHA-256 of the only certificate that is accepted, hexadecimal.
        fingerprint: String,
        /// The client certificate; without one the server treats the client as untrusted.
        identity: Option<Identity>,
    },
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Https { address, .. } => write!(f, "https://{address}"),
        }
    }
}

/// A client certificate and its key, PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate.
    pub certificate_pem: String,
    /// Its key, a secret.
    pub key_pem: String,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(…)")
    }
}

/// A raw answer, not yet parsed.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: http::StatusCode,
    /// HTTP headers.
    pub headers: http::HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Answer {
    /// Value of a header, if it is there and is text.
    pub fn header(&self, name: impl http::header::AsHeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }
}

/// Sends requests to one endpoint. Connections are kept and reused.
pub struct Transport {
    endpoint: Endpoint,
    tls: Option<tokio_rustls::TlsConnector>,
    /// Idle connections, each with the time it became idle.
    idle: Mutex<Vec<(Instant, SendRequest<OutBody>)>>,
    losses: AtomicU64,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Transport {
    /// Makes a transport; it connects with the first request.
    ///
    /// # Errors
    /// The identity is unusable.
    pub fn new(endpoint: Endpoint) -> Result<Self, Error> {
        let tls = match &endpoint {
            Endpoint::Unix(_) => None,
            Endpoint::Https { fingerprint, identity, .. } => {
                let identity = identity.as_ref().map(|i| (i.certificate_pem.as_str(), i.key_pem.as_str()));
                Some(tokio_rustls::TlsConnector::from(Arc::new(tls::pinned(fingerprint, identity)?)))
            }
        };
        Ok(Self { endpoint, tls, idle: Mutex::new(Vec::new()), losses: AtomicU64::new(0) })
    }

    /// The endpoint it sends to.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
    /// Number of connections that could not be made or broke. While it stays the same, the server was not restarted.
    pub fn losses(&self) -> u64 {
        self.losses.load(Ordering::Relaxed)
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// [`Error::Timeout`] and [`Error::TooLong`] beyond the request's limits; any error of connecting and of HTTP.
    pub async fn send(&self, request: &Request) -> Result<Answer, Error> {
        self.in_time(request, self.exchange(request, None)).await
    }

    /// Sends a request and writes the body of a successful answer to a file, whole or not at all. The body of any other
    /// answer is returned with it.
    ///
    /// # Errors
    /// As [`Self::send`]; [`Error::Write`] for the file.
    pub async fn download(&self, request: &Request, to: &Path) -> Result<Answer, Error> {
        let mut beside = to.as_os_str().to_owned();
        beside.push(".part");
        let beside = PathBuf::from(beside);
        let failed = |source| Error::Write { path: to.display().to_string(), source };
        let answer = self.in_time(request, self.exchange(request, Some(&beside))).await;
        match answer {
            Ok(answer) if answer.status.is_success() => {
                tokio::fs::rename(&beside, to).await.map_err(failed)?;
                Ok(answer)
            }
            other => {
                // The file may not exist yet.
                let _ = tokio::fs::remove_file(&beside).await;
                other
            }
        }
    }

    async fn exchange(&self, request: &Request, to: Option<&Path>) -> Result<Answer, Error> {
        let (connection, response) = self.begin(request).await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let mut body = response.into_body();
        let answer = match to {
            Some(path) if status.is_success() => {
                let failed = |source| Error::Write { path: path.display().to_string(), source };
                let mut file = tokio::fs::File::create(path).await.map_err(failed)?;
                let mut left = request.limit_bytes();
                while let Some(piece) = self.piece(request, &mut body, &mut left).await? {
                    file.write_all(&piece).await.map_err(failed)?;
                }
                file.sync_all().await.map_err(failed)?;
                Bytes::new()
            }
            _ => {
                let mut whole = Vec::new();
                // An error answer is read even if the request allows only a short one.
                let mut left = match status.is_success() {
                    true => request.limit_bytes(),
                    false => request.limit_bytes().max(MAX_REFUSAL_BYTES),
                };
                while let Some(piece) = self.piece(request, &mut body, &mut left).await? {
                    whole.extend_from_slice(&piece);
                }
                whole.into()
            }
        };
        self.keep(connection);
        Ok(Answer { status, headers, body: answer })
    }

    /// Opens a websocket; the inner error is the answer of a server that refused to.
    ///
    /// # Errors
    /// Any error of connecting and of HTTP.
    pub(crate) async fn websocket(&self, request: &Request) -> Result<Result<WebSocket, Answer>, Error> {
        self.in_time(request, async {
            let stream = self.connect().await.inspect_err(|_| self.lost())?;
            let broke = |source| Error::WebSocket { request: request.to_string(), source: Box::new(source) };
            // Only the handshake uses the scheme: the stream below has TLS already, if it is to have it.
            let http =
                format!("ws://{}{}", self.host(), request.path()).into_client_request().map_err(broke)?;
            let config = WebSocketConfig::default()
                .max_message_size(Some(MAX_MESSAGE_BYTES))
                .max_frame_size(Some(MAX_MESSAGE_BYTES));
            let stream = ReadsOn::new(stream, matches!(self.endpoint, Endpoint::Unix(_)));
            match tokio_tungstenite::client_async_with_config(http, stream, Some(config)).await {
                Ok((socket, _)) => Ok(Ok(socket)),
                Err(tungstenite::Error::Http(response)) => {
                    let (parts, body) = response.into_parts();
                    Ok(Err(Answer {
                        status: parts.status,
                        headers: parts.headers,
                        body: body.unwrap_or_default().into(),
                    }))
                }
                Err(source) => {
                    self.lost();
                    Err(broke(source))
                }
            }
        })
        .await
    }

    /// Opens a new connection, outside the pool.
    async fn connect(&self) -> Result<Box<dyn Stream>, Error> {
        let failed = |source| Error::Connect { endpoint: self.endpoint.to_string(), source };
        match &self.endpoint {
            Endpoint::Unix(path) => Ok(Box::new(UnixStream::connect(path).await.map_err(failed)?)),
            Endpoint::Https { address, .. } => {
                let tcp = TcpStream::connect(address).await.map_err(failed)?;
                let _ = tcp.set_nodelay(true);
                let Some(tls) = &self.tls else {
                    return Err(failed(io::Error::other("TLS is not configured for this endpoint")));
                };
                Ok(Box::new(tls.connect(tls::server_name(address), tcp).await.map_err(failed)?))
            }
        }
    }

    async fn in_time<T>(
        &self,
        request: &Request,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(request.timeout(), work).await {
            Ok(done) => done,
            Err(_) => {
                self.lost();
                Err(Error::Timeout { request: request.to_string(), after: request.timeout() })
            }
        }
    }

    /// Sends a request and reads the head of the answer. The server may just have closed a kept connection: the request
    /// is then sent again on a new one, if the server cannot have received it or it changes nothing (`GET`).
    async fn begin(
        &self,
        request: &Request,
    ) -> Result<(SendRequest<OutBody>, http::Response<hyper::body::Incoming>), Error> {
        let broken = |source| {
            self.lost();
            Error::Http { request: request.to_string(), source }
        };
        while let Some(mut connection) = self.kept().await {
            match connection.try_send_request(self.to_http(request).await?).await {
                Ok(response) => return Ok((connection, response)),
                Err(mut e) => {
                    let unsent = e.take_message().is_some();
                    if !unsent && request.method() != http::Method::GET {
                        return Err(broken(e.into_error()));
                    }
                    self.lost();
                }
            }
        }
        let stream = self.connect().await.inspect_err(|_| self.lost())?;
        let mut connection = shake_hands(stream).await.map_err(|source| {
            self.lost();
            Error::Connect { endpoint: self.endpoint.to_string(), source }
        })?;
        let http = self.to_http(request).await?;
        let response = connection.send_request(http).await.map_err(broken)?;
        Ok((connection, response))
    }

    /// The next piece of an answer's body; fails when it is longer than `left` allows.
    async fn piece(
        &self,
        request: &Request,
        body: &mut hyper::body::Incoming,
        left: &mut u64,
    ) -> Result<Option<Bytes>, Error> {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|source| {
                self.lost();
                Error::Http { request: request.to_string(), source }
            })?;
            let Ok(piece) = frame.into_data() else { continue };
            *left = left.checked_sub(piece.len() as u64).ok_or_else(|| Error::TooLong {
                request: request.to_string(),
                limit_bytes: request.limit_bytes(),
            })?;
            return Ok(Some(piece));
        }
        Ok(None)
    }

    /// Takes a kept connection that is still usable.
    async fn kept(&self) -> Option<SendRequest<OutBody>> {
        loop {
            let (since, mut connection) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            if since.elapsed() < FRESH && connection.ready().await.is_ok() {
                return Some(connection);
            }
            self.lost();
        }
    }
    fn keep(&self, connection: SendRequest<OutBody>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.push((Instant::now(), connection));
        }
    }
    fn lost(&self) {
        self.losses.fetch_add(1, Ordering::Relaxed);
    }

    /// Value of the `Host` header. The engines ignore it, but HTTP/1.1 requires one.
    fn host(&self) -> &str {
        match &self.endpoint {
            Endpoint::Unix(_) => "localhost",
            Endpoint::Https { address, .. } => address,
        }
    }

    async fn to_http(&self, request: &Request) -> Result<http::Request<OutBody>, Error> {
        let mut builder = http::Request::builder()
            .method(request.method().clone())
            .uri(request.path())
            .header(http::header::HOST, self.host())
            .header(http::header::USER_AGENT, concat!("stead/", env!("CARGO_PKG_VERSION")));
        if let Some(etag) = request.etag() {
            builder = builder.header(http::header::IF_MATCH, etag.as_str());
        }
        for (name, value) in request.headers() {
            builder = builder.header(*name, value);
        }
        let body = match request.body() {
            Body::None => full(Bytes::new()),
            Body::Json(value) => {
                builder = builder.header(http::header::CONTENT_TYPE, "application/json");
                full(Bytes::from(value.to_string()))
            }
            Body::Raw(source) => {
                builder = builder.header(http::header::CONTENT_TYPE, "application/octet-stream");
                let (length, body) = open(source).await?;
                builder = builder.header(http::header::CONTENT_LENGTH, length);
                body
            }
            Body::Multipart(parts) => {
                builder = builder
                    .header(http::header::CONTENT_TYPE, format!("multipart/form-data; boundary={BOUNDARY}"));
                multipart(parts).await?
            }
        };
        builder.body(body).map_err(|source| Error::Request { request: request.to_string(), source })
    }
}

async fn shake_hands<S>(stream: S) -> io::Result<SendRequest<OutBody>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Ends when the sender is dropped or the server closes; its error then reaches the request in flight.
    tokio::spawn(connection);
    Ok(sender)
}

fn full(bytes: Bytes) -> OutBody {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

/// Length of a source in bytes, and a body that streams it.
async fn open(source: &Source) -> Result<(u64, OutBody), Error> {
    match source {
        Source::Bytes(bytes) => Ok((bytes.len() as u64, full(bytes.clone()))),
        Source::File(path) => {
            let (length, chunks) = open_file(path).await?;
            Ok((length, BodyExt::boxed(StreamBody::new(chunks.map(|c| c.map(Frame::data))))))
        }
    }
}

async fn open_file(
    path: &Path,
) -> Result<(u64, impl futures_util::Stream<Item = io::Result<Bytes>> + Send + Sync + use<>), Error> {
    let failed = |source| Error::File { path: path.display().to_string(), source };
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let length = file.metadata().await.map_err(failed)?.len();
    let chunks = stream::unfold(Some(file), |file| async {
        let mut file = file?;
        let mut buffer = bytes::BytesMut::with_capacity(CHUNK);
        match file.read_buf(&mut buffer).await {
            Ok(0) => None,
            Ok(_) => Some((Ok(buffer.freeze()), Some(file))),
            Err(e) => Some((Err(e), None)),
        }
    });
    Ok((length, SyncStream(Mutex::new(Box::pin(chunks)))))
}

/// Makes a stream `Sync`, as hyper's boxed body requires. The lock is never contended: the stream is polled by `&mut`.
struct SyncStream<S>(Mutex<Pin<Box<S>>>);

impl<S: futures_util::Stream> futures_util::Stream for SyncStream<S> {
    type Item = S::Item;
    fn poll_next(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<Option<S::Item>> {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut().poll_next(context)
    }
}

async fn multipart(parts: &[Part]) -> Result<OutBody, Error> {
    let mut pieces: Vec<Pin<Box<dyn futures_util::Stream<Item = io::Result<Bytes>> + Send + Sync>>> =
        Vec::new();
    let text = |s: String| stream::iter([Ok(Bytes::from(s))]);
    for part in parts {
        pieces.push(Box::pin(text(part_head(part))));
        match &part.source {
            Source::Bytes(bytes) => pieces.push(Box::pin(stream::iter([Ok(bytes.clone())]))),
            Source::File(path) => pieces.push(Box::pin(open_file(path).await?.1)),
        }
        pieces.push(Box::pin(text("\r\n".into())));
    }
    pieces.push(Box::pin(text(format!("--{BOUNDARY}--\r\n"))));
    Ok(BodyExt::boxed(StreamBody::new(stream::iter(pieces).flatten().map(|c| c.map(Frame::data)))))
}

/// The header lines of a part. Quotes, backslashes and line ends in file names become `_`.
fn part_head(part: &Part) -> String {
    let name = part.file_name.replace(['"', '\\', '\r', '\n'], "_");
    format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{}\"; filename=\"{name}\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n",
        part.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::SinkExt;

    async fn bytes_of(body: OutBody) -> Vec<u8> {
        body.collect().await.unwrap().to_bytes().to_vec()
    }

    /// Both ways in which an engine can be gone when its ping is answered: it has closed the connection before the
    /// answer (the write fails), or with the answer unread (the next read is a reset).
    #[tokio::test]
    async fn output_after_a_ping_survives_a_hang_up() {
        use tokio_tungstenite::tungstenite::{Message, protocol::Role};
        for reads_the_answer in [false, true] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let ours: Box<dyn Stream> = Box::new(ours);
            let mut client = WebSocket::from_raw_socket(ReadsOn::new(ours, true), Role::Client, None).await;
            let mut server = WebSocketStream::from_raw_socket(theirs, Role::Server, None).await;
            let ping = || Message::Ping(Bytes::from_static(b"still there?"));
            server.send(ping()).await.unwrap();
            server.send(Message::Binary(Bytes::from_static(b"first"))).await.unwrap();
            if reads_the_answer {
                assert_eq!(client.next().await.unwrap().unwrap(), ping());
                assert_eq!(client.next().await.unwrap().unwrap(), Message::Binary("first".into()));
            }
            server.send(ping()).await.unwrap();
            server.send(Message::Binary(Bytes::from_static(b"last"))).await.unwrap();
            drop(server);
            let mut output = Vec::new();
            while let Some(message) = client.next().await {
                match message {
                    Ok(Message::Binary(bytes)) => output.extend_from_slice(&bytes),
                    Ok(Message::Ping(_)) => {}
                    Err(tungstenite::Error::Protocol(
                        tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
                    )) => break,
                    other => panic!("{other:?}"),
                }
            }
            let expected: &[u8] = if reads_the_answer { b"last" } else { b"firstlast" };
            assert_eq!(output, expected);
            // What is written from now on is dropped.
            client.send(Message::Binary(Bytes::from_static(b"input"))).await.ok();
        }
    }

    #[tokio::test]
    async fn multipart_streams_files() {
        let file = std::env::temp_dir().join(format!("stead-incus-part-{}", std::process::id()));
        std::fs::write(&file, vec![7u8; CHUNK + 5]).unwrap();
        let body = multipart(&[
            Part {
                name: "metadata",
                file_name: "a\"b".into(),
                source: Source::Bytes(Bytes::from_static(b"META")),
            },
            Part { name: "rootfs", file_name: "r".into(), source: Source::File(file.clone()) },
        ])
        .await
        .unwrap();
        let bytes = bytes_of(body).await;
        std::fs::remove_file(&file).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with(&format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"metadata\"; filename=\"a_b\"\r\n"
        )));
        assert!(text.contains("\r\n\r\nMETA\r\n--"));
        assert!(text.ends_with(&format!("\r\n--{BOUNDARY}--\r\n")));
        assert_eq!(bytes.iter().filter(|b| **b == 7).count(), CHUNK + 5);
    }

    #[tokio::test]
    async fn a_missing_socket_is_named() {
        let t = Transport::new(Endpoint::Unix("/nowhere/unix.socket".into())).unwrap();
        let e = t.send(&Request::get("/1.0")).await.unwrap_err();
        assert_eq!(e.to_string(), "cannot connect to /nowhere/unix.socket");
        assert!(e.is_silence());
    }

    /// A server that answers every request on every connection; returns the count of connections.
    fn server(socket: &Path) -> Arc<AtomicU64> {
        use std::io::{BufRead, BufReader, Write};
        let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
        let connections = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&connections);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::spawn(move || {
                    let mut out = stream.try_clone().unwrap();
                    for line in BufReader::new(stream).lines().map_while(Result::ok) {
                        if line.is_empty()
                            && out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").is_err()
                        {
                            return;
                        }
                    }
                });
            }
        });
        connections
    }

    #[tokio::test]
    async fn a_connection_is_used_again_while_it_is_fresh() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("unix.socket");
        let connections = server(&socket);
        let t = Transport::new(Endpoint::Unix(socket)).unwrap();
        for _ in 0..3 {
            t.send(&Request::get("/1.0")).await.unwrap();
        }
        assert_eq!((connections.load(Ordering::Relaxed), t.losses()), (1, 0));
        for (since, _) in t.idle.lock().unwrap().iter_mut() {
            *since -= FRESH;
        }
        t.send(&Request::get("/1.0")).await.unwrap();
        // An old connection counts as lost: the server may have been restarted.
        assert_eq!((connections.load(Ordering::Relaxed), t.losses()), (2, 1));
    }

    #[test]
    fn identities_hide_their_key() {
        let i = Identity { certificate_pem: "C".into(), key_pem: "SECRET".into() };
        assert!(!format!("{i:?}").contains("SECRET"));
    }
}
