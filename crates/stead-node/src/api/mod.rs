//! The agent API's server side (see `stead_model::agent` for the routes).
//!
//! Owns the listener, its limits, and the way from a request to an answer. Does not own the node's state (the
//! [`Handle`] does), the engine (an [`Engine`] does), nor children (the reaper does). One thread serves all; what
//! blocks (disks) goes to threads: logs through the runtime's pool, file transfers through a few of their own.

mod addresses;
mod answer;
mod exec;
mod files;
mod handlers;
mod logs;
mod process;
pub mod route;
#[cfg(test)]
mod tests;

pub use files::unpack;
pub use route::{Route, RouteError, route};

use crate::{engine::Engine, handle::Handle};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use stead_agent::{Identity, tls};
use stead_model::node::AgentSpec;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

/// Connections of clients that have shown their certificate. Each costs some 50 KiB at most while it is quick.
const MAX_CONNECTIONS: usize = 64;
/// Connections that have not (yet): strangers may hold these, for [`HANDSHAKE`] each.
const MAX_HANDSHAKES: usize = 32;
/// Time for TLS; an emulated node needs some 100 ms.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Time for a refused client to close.
const LINGER: Duration = Duration::from_secs(1);
/// Encrypted data that waits for a slow client, per connection; two records' worth.
const TLS_BUFFER: usize = 32 * 1024;
/// Time for the head of a request, and how long a kept connection may be idle.
const HEAD: Duration = Duration::from_secs(60);
/// Headers of one request. Our client sends five.
const MAX_HEADERS: usize = 32;
/// Size of a request's head: a path of 4096 bytes, percent-encoded, and headers.
const MAX_HEAD: usize = 16 * 1024;
/// Read at once from a connection.
const MAX_BUFFER: usize = 64 * 1024;
/// An address may come late (DHCP, a bridge): binding is tried again this often.
const BIND_AGAIN: Duration = Duration::from_millis(100);
/// A client whose machine is gone is noticed after this plus five probes.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Serves the agent API; goes on while the node stops, until it is dropped. Binding is retried while the address is
/// not there yet.
///
/// # Errors
/// The certificates are unusable, or the port is taken.
pub async fn serve(spec: AgentSpec, handle: Handle, engine: Option<Arc<dyn Engine>>) -> io::Result<()> {
    let listener = bind(spec.listen).await?;
    serve_on(listener, &spec, handle, engine).await
}

/// Listens where the agent API is to be served.
///
/// # Errors
/// The port is taken, or no such address can ever be.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let mut address = address;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(e) if e.kind() == io::ErrorKind::AddrNotAvailable => sleep(BIND_AGAIN).await,
            // A kernel without IPv6.
            Err(e)
                if e.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
                    && address.is_ipv6()
                    && address.ip().is_unspecified() =>
            {
                address = (Ipv4Addr::UNSPECIFIED, address.port()).into();
            }
            Err(e) => return Err(io::Error::new(e.kind(), format!("cannot listen on {address}: {e}"))),
        }
    }
}

/// Serves the agent API on a socket that listens already (its `spec.listen` is not looked at).
///
/// # Errors
/// The certificates are unusable.
pub async fn serve_on(
    listener: TcpListener,
    spec: &AgentSpec,
    handle: Handle,
    engine: Option<Arc<dyn Engine>>,
) -> io::Result<()> {
    let config = tls::server_config(&Identity::from(spec)).map_err(io::Error::other)?;
    let acceptor = TlsAcceptor::from(config);
    let api = Arc::new(handlers::Api::new(handle, engine));
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(_) => {
                // Out of descriptors, most likely: others will end. A connection that died in the queue is gone.
                sleep(BIND_AGAIN).await;
                continue;
            }
        };
        // Over the limit a connection is closed at once, so that who is served already stays served.
        let Ok(shaking) = Arc::clone(&handshakes).try_acquire_owned() else { continue };
        let (acceptor, connections, api) = (acceptor.clone(), Arc::clone(&connections), Arc::clone(&api));
        tokio::spawn(async move {
            let _ = prepare(&stream);
            let mut stream = match timeout(HANDSHAKE, acceptor.accept(stream).into_fallible()).await {
                Ok(Ok(stream)) => stream,
                Ok(Err((_, refused))) => return linger(refused).await,
                Err(_) => return,
            };
            drop(shaking);
            stream.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
            let Ok(_connected) = connections.try_acquire_owned() else { return };
            let service = service_fn(move |request| {
                let api = Arc::clone(&api);
                async move { io::Result::Ok(api.answer(request).await) }
            });
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .max_headers(MAX_HEADERS)
                .max_header_size(MAX_HEAD)
                .max_buf_size(MAX_BUFFER)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
                .await;
        });
    }
}

/// Lets a client that was refused hear why: closing while its request is unread would reset the connection.
async fn linger(mut refused: TcpStream) {
    let _ = timeout(LINGER, async {
        refused.shutdown().await?;
        tokio::io::copy(&mut refused, &mut tokio::io::sink()).await
    })
    .await;
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl};
    stream.set_nodelay(true)?;
    set_socket_keepalive(stream, true)?;
    set_tcp_keepidle(stream, KEEPALIVE)?;
    set_tcp_keepintvl(stream, Duration::from_secs(10))?;
    Ok(set_tcp_keepcnt(stream, 5)?)
}
