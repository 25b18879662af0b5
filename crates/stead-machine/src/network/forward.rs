//! Published ports: listening in the host's network namespace, connecting inside the cluster's.
//!
//! Owns the listeners and the connections through them. Does not own which ports are published.

use crate::{netns, network::PublishTarget};
use std::{
    io,
    net::{SocketAddr, TcpStream as StdStream},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    thread,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::JoinHandle,
};

/// Timeout of a connection to a node.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// Connections through all published ports together; each takes two descriptors of the supervisor.
const MAX_CONNECTIONS: usize = 400;
/// Pause after a failed accept, e.g. when no descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

struct Accepted {
    client: StdStream,
    target: SocketAddr,
    _permit: OwnedSemaphorePermit,
}

/// The thread inside the cluster's network namespace through which connections are made.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    accepted: mpsc::UnboundedSender<Accepted>,
    room: Arc<Semaphore>,
}

impl std::fmt::Debug for Accepted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "connection to {}", self.target)
    }
}

impl Gate {
    /// Starts the thread; it ends when the last clone of the gate is gone.
    pub(crate) fn open(netns: OwnedFd) -> io::Result<Self> {
        let (accepted, mut arriving) = mpsc::unbounded_channel::<Accepted>();
        let (ready, is_ready) = std::sync::mpsc::channel();
        thread::Builder::new().name("gate".to_owned()).spawn(move || {
            let runtime = netns::enter(netns.as_fd())
                .and_then(|()| tokio::runtime::Builder::new_current_thread().enable_all().build());
            match runtime {
                Err(e) => drop(ready.send(Err(e))),
                Ok(runtime) => {
                    let _ = ready.send(Ok(()));
                    runtime.block_on(async {
                        while let Some(one) = arriving.recv().await {
                            tokio::spawn(carry(one));
                        }
                    });
                }
            }
        })?;
        is_ready.recv().map_err(|_| io::Error::other("the thread for published ports is gone"))??;
        Ok(Self { accepted, room: Arc::new(Semaphore::new(MAX_CONNECTIONS)) })
    }
}

/// Connects and copies both ways. Each direction is closed by itself when its sender is done.
async fn carry(one: Accepted) {
    let go = async {
        one.client.set_nonblocking(true)?;
        let mut client = TcpStream::from_std(one.client)?;
        let connecting = tokio::time::timeout(CONNECT_PATIENCE, TcpStream::connect(one.target)).await;
        let mut node = match connecting.map_err(|_| io::ErrorKind::TimedOut.into()).flatten() {
            Ok(node) => node,
            Err(e) => {
                // With a reset the client sees a refusal; an orderly end would look like an empty answer.
                let _ = client.set_zero_linger();
                return Err(e);
            }
        };
        // Small requests and answers are sent at once.
        let _ = (client.set_nodelay(true), node.set_nodelay(true));
        tokio::io::copy_bidirectional(&mut client, &mut node).await
    };
    // A broken connection concerns its two ends only.
    let _: io::Result<_> = go.await;
}

/// One published port.
#[derive(Debug)]
pub(crate) struct Forwarder {
    /// The address it listens on, with the port resolved.
    pub listening: SocketAddr,
    publish: String,
    target: watch::Sender<SocketAddr>,
    task: JoinHandle<()>,
}

impl Forwarder {
    /// Listens as published; with port 0 on the port it had `before`, if that is free.
    pub(crate) async fn listen(
        gate: &Gate,
        wish: &PublishTarget,
        before: Option<SocketAddr>,
    ) -> io::Result<Self> {
        let wanted = wish.publish.listen;
        let listener = match before.filter(|b| wanted.port() == 0 && b.ip() == wanted.ip()) {
            Some(again) => match TcpListener::bind(again).await {
                Ok(listener) => listener,
                Err(_) => TcpListener::bind(wanted).await?,
            },
            None => TcpListener::bind(wanted).await?,
        };
        let listening = listener.local_addr()?;
        let (target, aim) = watch::channel(wish.target);
        let task = tokio::spawn(accept(listener, aim, gate.clone()));
        Ok(Self { listening, publish: wish.publish.to_string(), target, task })
    }

    /// Whether it is the one for `wish`, as published.
    pub(crate) fn is_for(&self, wish: &PublishTarget) -> bool {
        self.publish == wish.publish.to_string()
    }

    /// Makes it the one for `wish`: new connections go to its target.
    pub(crate) fn aim(&mut self, wish: &PublishTarget) {
        self.publish = wish.publish.to_string();
        self.target.send_replace(wish.target);
    }

    /// Stops listening; when this returns, the address is free. Connections stay.
    pub(crate) async fn close(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, aim: watch::Receiver<SocketAddr>, gate: Gate) {
    loop {
        let Ok(permit) = Arc::clone(&gate.room).acquire_owned().await else { return };
        match listener.accept().await.and_then(|(client, _)| client.into_std()) {
            Ok(client) => {
                let target = *aim.borrow();
                if gate.accepted.send(Accepted { client, target, _permit: permit }).is_err() {
                    return;
                }
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}
