//! The real server and the real client over loopback, with certificates of a real CA.

mod exec;
mod files;
mod http;
mod logs;
mod protocol;
mod trust;

use super::serve_on;
use crate::{
    handle::{Handle, Stop},
    reaper::Reaper,
};
use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use stead_agent::{
    Client, ClientError, Dial, DirectDialer, Identity,
    client::DialFuture,
    pki::{ClusterCa, OffsetDateTime},
};
use stead_model::{
    ClusterName, NodeName, NodeSpec,
    agent::{EventKind, NodePhase, ServiceState, ServiceStatus, StopRequest},
    node::AgentSpec,
};
use tokio::net::TcpListener;

/// A node's agent, serving on loopback.
pub struct Node {
    pub ca: ClusterCa,
    pub address: SocketAddr,
    pub handle: Handle,
    pub client: Client,
    pub dir: tempfile::TempDir,
}

pub fn name(node: &str) -> NodeName {
    NodeName::new(node).unwrap()
}

pub fn ca() -> ClusterCa {
    ClusterCa::create(&ClusterName::new("demo").unwrap(), OffsetDateTime::now_utc()).unwrap()
}

pub fn client(identity: &Identity, address: SocketAddr) -> Client {
    Client::new(identity, &name("n1"), address, Arc::new(DirectDialer)).unwrap()
}

pub async fn node() -> Node {
    let (ca, now) = (ca(), OffsetDateTime::now_utc());
    let identity = ca.issue_node(&name("n1"), &[], now).unwrap();
    let (address, handle, dir) = serve_as(identity).await;
    let client = client(&ca.issue_client("test", now).unwrap(), address);
    Node { ca, address, handle, client, dir }
}

/// Serves with this identity.
pub async fn serve_as(identity: Identity) -> (SocketAddr, Handle, tempfile::TempDir) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let Identity { ca_pem, certificate_pem, key_pem } = identity;
    let spec = AgentSpec { listen: address, ca_pem, certificate_pem, key_pem };
    let dir = tempfile::tempdir().unwrap();
    let node = NodeSpec::from_json("t", r#"{"schema":1,"cluster":"demo","name":"n1"}"#).unwrap();
    let log_dir: PathBuf = dir.path().join("log");
    std::fs::create_dir(&log_dir).unwrap();
    let reaper = Reaper::start(false).unwrap();
    let handle = Handle::new(node, Instant::now(), "boot".into(), log_dir, reaper);
    let serving = handle.clone();
    tokio::spawn(async move { serve_on(listener, &spec, serving, None).await.unwrap() });
    (address, handle, dir)
}

/// The HTTP status of an error.
pub fn code(error: &ClientError) -> u16 {
    match error {
        ClientError::Status { code, .. } => *code,
        other => panic!("no answer: {other:?}"),
    }
}

#[tokio::test]
async fn status_describes_the_node_and_keeps_its_connection() {
    let node = node().await;
    node.handle.note(EventKind::Boot, "root mounted");
    node.handle.set_phase(NodePhase::Running);
    node.handle.set_service(ServiceStatus {
        name: "ntp".into(),
        state: ServiceState::Ready,
        since_ms: 3,
        checked: true,
        pid: Some(7),
        restarts: 0,
        last_exit: None,
    });
    let status = node.client.status().await.unwrap();
    assert_eq!(
        (status.name.as_str(), status.cluster.as_str(), status.phase),
        ("n1", "demo", NodePhase::Running)
    );
    let first = &status.timeline[0];
    assert_eq!((first.kind, first.event.as_str()), (EventKind::Boot, "root mounted"));
    let service = &status.services[0];
    assert_eq!((service.name.as_str(), service.since_ms, service.checked), ("ntp", 3, true));
    assert!(status.engine.is_none() && status.agent_rss_bytes > 0);
    assert!(status.addresses.iter().all(|a| a != "127.0.0.1" && !a.starts_with("fe80")));

    let dials = Arc::new(CountingDialer::default());
    let identity = node.ca.issue_client("poller", OffsetDateTime::now_utc()).unwrap();
    let client = Client::new(&identity, &name("n1"), node.address, dials.clone()).unwrap();
    for _ in 0..200 {
        client.status().await.unwrap();
    }
    assert_eq!(dials.0.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[derive(Default)]
struct CountingDialer(std::sync::atomic::AtomicU32);
impl Dial for CountingDialer {
    fn dial(&self, address: SocketAddr) -> DialFuture<'_> {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        DirectDialer.dial(address)
    }
}

#[tokio::test]
async fn many_requests_are_answered_at_once() {
    let node = node().await;
    let asked: Vec<_> = (0..20)
        .map(|_| {
            let client = node.client.clone();
            tokio::spawn(async move { client.status().await.map(|s| s.name) })
        })
        .collect();
    for answer in asked {
        assert_eq!(answer.await.unwrap().unwrap().as_str(), "n1");
    }
}

#[tokio::test]
async fn a_restarted_node_is_found_again() {
    let ca = ca();
    let now = OffsetDateTime::now_utc();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let Identity { ca_pem, certificate_pem, key_pem } = ca.issue_node(&name("n1"), &[], now).unwrap();
    let spec = AgentSpec { listen: address, ca_pem, certificate_pem, key_pem };
    let client = client(&ca.issue_client("test", now).unwrap(), address);
    let spec_json = NodeSpec::from_json("t", r#"{"schema":1,"cluster":"demo","name":"n1"}"#).unwrap();
    let mut listener = Some(listener);
    for boot in ["first", "second"] {
        // With its own runtime, the connections end too.
        let (spec, node, taken) = (spec.clone(), spec_json.clone(), listener.take());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let reaper = Reaper::start(false).unwrap();
                let handle = Handle::new(node, Instant::now(), boot.into(), "/nonexistent".into(), reaper);
                let listener = match taken {
                    Some(l) => {
                        let std = l.into_std().unwrap();
                        TcpListener::from_std(std).unwrap()
                    }
                    None => super::bind(spec.listen).await.unwrap(),
                };
                tokio::select! {
                    _ = serve_on(listener, &spec, handle, None) => {}
                    _ = stopped => {}
                }
            });
        });
        let mut seen = None;
        for _ in 0..300 {
            match client.status().await {
                Ok(status) => {
                    seen = Some(status.boot_id);
                    break;
                }
                Err(e) => assert!(e.is_unreachable(), "{e:?}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(seen.as_deref(), Some(boot));
        stop.send(()).unwrap();
        server.join().unwrap();
        assert!(client.status().await.unwrap_err().is_unreachable());
    }
}

#[tokio::test]
async fn stops_are_passed_on_and_the_first_counts() {
    let node = node().await;
    let error = node.client.reboot(&StopRequest { deadline_s: 100_000 }).await.unwrap_err();
    assert_eq!(code(&error), 400);
    node.client.reboot(&StopRequest { deadline_s: 7 }).await.unwrap();
    node.client.shutdown(&StopRequest { deadline_s: 1 }).await.unwrap();
    assert_eq!(node.handle.stop_requested().await, Stop::Reboot(Duration::from_secs(7)));
}

#[tokio::test]
async fn a_node_without_engine_says_so() {
    let node = node().await;
    let error = node.client.engine().await.unwrap_err();
    assert_eq!(code(&error), 404);
    assert_eq!(error.to_string(), "cannot read the engine's status on n1: this node has no engine");
    let request = stead_model::agent::JoinTokenRequest { member: name("n2"), address: None };
    assert_eq!(code(&node.client.join_token(&request).await.unwrap_err()), 404);
    assert_eq!(code(&node.client.instances().await.unwrap_err()), 404);
}

#[tokio::test]
async fn a_late_address_is_waited_for_and_a_taken_port_is_an_error() {
    // TEST-NET-3: assigned to no host.
    let late = super::bind("203.0.113.254:8484".parse().unwrap());
    assert!(tokio::time::timeout(Duration::from_millis(300), late).await.is_err());
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let error = super::bind(taken.local_addr().unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    let both = super::bind("[::]:0".parse().unwrap()).await.unwrap();
    let v4 = SocketAddr::from(([127, 0, 0, 1], both.local_addr().unwrap().port()));
    tokio::net::TcpStream::connect(v4).await.unwrap();
}
