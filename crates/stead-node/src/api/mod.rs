//! The agent API's server side (see `stead_model::agent` for the routes).
//!
//! Owns the listener, its limits, and the handling of requests. Does not own the node's state ([`Handle`]), the engine
//! ([`Engine`]) or child processes (the reaper). One thread serves all; blocking work on disks has threads: logs use
//! the runtime's pool, file transfers a few of their own.

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

/// Connections of authenticated clients. Each needs at most about 50 KiB for quick requests.
const MAX_CONNECTIONS: usize = 64;
/// Connections not authenticated yet: strangers may hold these, for [`HANDSHAKE`] each.
const MAX_HANDSHAKES: usize = 32;
/// Time limit for the TLS handshake; an emulated node needs about 100 ms.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Time a refused client has to close.
const LINGER: Duration = Duration::from_secs(1);
/// Encrypted data buffered for a slow client, per connection: two records.
const TLS_BUFFER: usize = 32 * 1024;
/// Time limit for the headers of a request, and for an idle connection.
const HEAD: Duration = Duration::from_secs(60);
/// Most headers of one request. Our client sends five.
const MAX_HEADERS: usize = 32;
/// Largest size of a request's headers: a path of 4096 bytes, percent-encoded, and the header lines.
const MAX_HEAD: usize = 16 * 1024;
/// Largest read buffer of a connection.
const MAX_BUFFER: usize = 64 * 1024;
/// An address may appear late (DHCP, a bridge): pause between attempts to bind.
const BIND_AGAIN: Duration = Duration::from_millis(100);
/// Idle time before keepalive probes; a client whose machine is gone is noticed after five of them.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Serves the agent API until it is dropped, also while the node stops. Binding is retried while the address does not
/// exist yet.
///
/// # Errors
/// The certificates are unusable, or the port is taken.
pub async fn serve(spec: AgentSpec, handle: Handle, engine: Option<Arc<dyn Engine>>) -> io::Result<()> {
    let listener = bind(spec.listen).await?;
    serve_on(listener, &spec, handle, engine).await
}

/// Listens on the agent API's address.
///
/// # Errors
/// The port is taken, or the address is invalid.
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

/// Serves the agent API on a listening socket; `spec.listen` is ignored.
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
                // Most likely out of descriptors: other connections will end. Or the connection died in the queue.
                sleep(BIND_AGAIN).await;
                continue;
            }
        };
        // Over the limit a connection is closed at once, so that present clients stay served.
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

/// Lets a refused client read the reason: closing with its request unread would reset the connection.
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
