//! Connections to agents, which listen inside the cluster's own network namespace.

use std::{future::Future, io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};
use stead_agent::Identity;
use stead_agent::{Client, ClientError, Dial};
use stead_model::NodeName;

/// Time limit for connecting to a node on this host: no cable is involved, so a slower connection never succeeds.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(2500);

/// Dials from inside a network namespace.
#[derive(Debug, Clone)]
pub struct NetnsDialer {
    netns: String,
}

impl NetnsDialer {
    /// A dialler inside the network namespace with this name, as in `ip netns`.
    pub fn new(netns: impl Into<String>) -> Self {
        Self { netns: netns.into() }
    }
}

impl Dial for NetnsDialer {
    fn dial(
        &self,
        address: SocketAddr,
    ) -> Pin<Box<dyn Future<Output = io::Result<tokio::net::TcpStream>> + Send + '_>> {
        let netns = self.netns.clone();
        Box::pin(async move {
            let stream = tokio::task::spawn_blocking(move || {
                stead_machine::netns::dial(&netns, address, CONNECT_TIMEOUT)
            })
            .await
            .map_err(io::Error::other)??;
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            tokio::net::TcpStream::from_std(stream)
        })
    }
}

/// A client of one node's agent.
///
/// # Errors
/// The certificates are unusable.
pub fn agent(
    identity: &Identity,
    netns: &str,
    node: &NodeName,
    address: SocketAddr,
) -> Result<Client, ClientError> {
    Client::new(identity, node, address, Arc::new(NetnsDialer::new(netns)))
}
