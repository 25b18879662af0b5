//! Access to a node's agent, with certificates of a CA made here, from inside the node's network namespace.

use super::Node;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::{
    fs::File,
    io,
    net::{SocketAddr, TcpStream},
    os::fd::AsFd,
    sync::Arc,
};
use stead_agent::{
    Client, Dial, Identity,
    client::DialFuture,
    pki::{ClusterCa, OffsetDateTime},
};
use stead_model::NodeName;

/// The node in every test here.
const NAME: &str = "n1";

/// Identities of a node and its client.
pub struct Trust {
    node: Identity,
    client: Identity,
}

impl Trust {
    pub fn new() -> Self {
        let now = OffsetDateTime::now_utc();
        let ca = ClusterCa::create(&"c".parse().unwrap(), now).unwrap();
        let name: NodeName = NAME.parse().unwrap();
        Self { node: ca.issue_node(&name, &[], now).unwrap(), client: ca.issue_client("test", now).unwrap() }
    }

    /// The `agent` of a node spec.
    pub fn spec(&self) -> String {
        let agent = serde_json::json!({
            "listen": "[::]:8484",
            "ca_pem": self.node.ca_pem,
            "certificate_pem": self.node.certificate_pem,
            "key_pem": self.node.key_pem,
        });
        format!(r#""agent":{agent}"#)
    }

    /// A client of a node that booted with it.
    pub fn client(&self, node: &mut Node) -> Client {
        let netns = File::open(format!("/proc/{}/ns/net", node.init().as_raw_nonzero())).unwrap();
        let address = "127.0.0.1:8484".parse().unwrap();
        let name = NAME.parse().unwrap();
        Client::new(&self.client, &name, address, Arc::new(Inside(Arc::new(netns)))).unwrap()
    }
}

/// Dials from inside a network namespace.
#[derive(Debug)]
struct Inside(Arc<File>);

impl Dial for Inside {
    fn dial(&self, address: SocketAddr) -> DialFuture<'_> {
        let netns = Arc::clone(&self.0);
        Box::pin(async move {
            // A separate thread: the namespace is entered by the thread and left at its end.
            let dialled = tokio::task::spawn_blocking(move || {
                std::thread::spawn(move || {
                    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
                    TcpStream::connect(address)
                })
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the dialling thread panicked")))
            });
            let stream = dialled.await.map_err(io::Error::other)??;
            stream.set_nonblocking(true)?;
            tokio::net::TcpStream::from_std(stream)
        })
    }
}
