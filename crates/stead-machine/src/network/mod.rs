//! A cluster's host network: one network namespace with bridges, dnsmasq, NAT and published ports.
//!
//! Owns the namespace `stead-<cluster>`, what is in it, and the one veth and nftables table on the host that lead out of
//! it. Does not own the machines' interfaces: each machine's supervisor attaches its own.

mod dnsmasq;
mod forward;
mod nat;
mod probe;
pub mod spec;
mod supervisor;

pub use nat::NatError;
pub use spec::*;
pub use supervisor::run;

use crate::{
    DaemonError, LinkError, TeardownError,
    daemon::{self, End},
    files::{self, Durability, Lock},
    netlink::{self, Links},
    netns,
    teardown::Failures,
};
use rtnetlink::packet_route::link::InfoKind;
use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest, Sha256};
use std::{
    ffi::OsStr,
    fs, io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    thread,
    time::{Duration, Instant},
};
use stead_model::{Failure, MacAddress};
use stead_os::{PathContext, PathError};

/// dnsmasq answers within milliseconds; the rest is for an overloaded host.
const UP_PATIENCE: Duration = Duration::from_secs(30);
/// The supervisor ends dnsmasq and goes.
const DOWN_PATIENCE: Duration = Duration::from_secs(10);

impl Failure for NetworkError {}

/// Why a network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Another supervisor holds the lock.
    #[error("network of {0} is already supervised")]
    AlreadyRuns(String),
    /// A file of the network's directory.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The network namespace.
    #[error("cannot {operation} network namespace {netns}")]
    Namespace {
        /// `make`, `enter`, …
        operation: &'static str,
        /// Its name.
        netns: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A kernel parameter inside it.
    #[error("cannot set {key} in network namespace {netns}")]
    Sysctl {
        /// The parameter.
        key: String,
        /// The namespace.
        netns: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A bridge or address.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The way out.
    #[error(transparent)]
    Nat(#[from] NatError),
    /// Its process.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// A published port.
    #[error("cannot listen on {address} for a published port")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// dnsmasq does not work.
    #[error("dnsmasq does not serve names: {why}; {log}")]
    Dnsmasq {
        /// What happened.
        why: String,
        /// The end of its log.
        log: String,
    },
    /// A program is not installed.
    #[error("{program} is not installed; it comes with the package {package}")]
    Missing {
        /// The program.
        program: &'static str,
        /// Debian's package.
        package: &'static str,
    },
    /// The running supervisor could not bring about what the spec asks for.
    #[error("the network's supervisor reports: {0}")]
    Reported(String),
}

fn digest(spec: &HostNetworkSpec) -> String {
    // A spec is a plain tree: it always serialises.
    let json = serde_json::to_vec(spec).unwrap_or_default();
    Sha256::digest(json).iter().map(|b| format!("{b:02x}")).collect()
}

/// Makes the network as the spec says, starting from whatever is there; idempotent. Machines and connections on it are
/// left alone. Returns once dnsmasq answers and published ports listen.
///
/// # Errors
/// [`NetworkError`]; what was made so far stays, for the next `up` or `down`.
pub fn up(exe: &Path, spec: &HostNetworkSpec) -> Result<NetworkState, NetworkError> {
    files::private_dir(&spec.dir).at("make", &spec.dir)?;
    let _one_at_a_time = Lock::wait(&spec.dir.join("up.lock")).at("lock", spec.dir.join("up.lock"))?;
    let name = spec.netns();
    let made = netns::create(&name).map_err(|source| NetworkError::Namespace {
        operation: "make",
        netns: name.clone(),
        source,
    })?;
    if made {
        // Somebody removed the name of the namespace that a supervisor is still in.
        end_supervisor(spec)?;
    }
    make_links(spec)?;
    nat::ensure(spec)?;
    let file = spec.dir.join("network.json");
    files::write_json(&file, spec, Durability::Durable).at("write", &file)?;
    let wanted = digest(spec);
    if daemon::announced_end(&spec.dir).is_some() {
        // A `down` was killed.
        end_supervisor(spec)?;
    }
    let now = supervisor_state(spec);
    if let Some(state) = now.as_ref().filter(|s| s.ready && s.spec_digest == wanted) {
        return Ok(state.clone());
    }
    // A state from before the signal is not the answer.
    let mut attempts_before = 0;
    match files::supervisor(&spec.dir).and_then(Pid::from_raw) {
        Some(pid) => {
            attempts_before = now.map_or(0, |s| s.attempts);
            let _ = kill_process(pid, Signal::HUP);
        }
        None => {
            let args = [OsStr::new("network"), OsStr::new("run"), file.as_os_str()];
            let has_begun = |pid| supervisor_state(spec).is_some_and(|s| s.supervisor_pid == pid);
            daemon::start(exe, &args, &spec.dir, UP_PATIENCE, has_begun)?;
        }
    }
    let answer =
        || supervisor_state(spec).filter(|s| s.spec_digest == wanted && s.attempts > attempts_before);
    let deadline = Instant::now() + UP_PATIENCE;
    loop {
        match answer() {
            Some(state) if state.ready => return Ok(state),
            Some(NetworkState { error: Some(error), .. }) => return Err(NetworkError::Reported(error)),
            _ if !files::is_supervised(&spec.dir) => {
                let last: Option<NetworkState> = files::read_json(&spec.dir.join("state.json"));
                let why = last.and_then(|s| s.error).unwrap_or_else(|| "it ended".to_owned());
                return Err(NetworkError::Reported(why));
            }
            _ if Instant::now() > deadline => {
                let why = format!("not ready after {} s", UP_PATIENCE.as_secs());
                return Err(NetworkError::Reported(why));
            }
            _ => thread::sleep(Duration::from_millis(3)),
        }
    }
}

fn end_supervisor(spec: &HostNetworkSpec) -> Result<(), DaemonError> {
    daemon::end(&spec.dir, End::Stop, &[(Signal::TERM, DOWN_PATIENCE)])
}

/// The supervisor's state, when one runs and is not about to end.
fn supervisor_state(spec: &HostNetworkSpec) -> Option<NetworkState> {
    if daemon::announced_end(&spec.dir).is_some() {
        return None;
    }
    files::is_supervised(&spec.dir).then(|| files::read_json(&spec.dir.join("state.json"))).flatten()
}

/// Kernel parameters inside the namespace, set before there is a link. The later ones need not exist.
const SYSCTLS: [(&str, &str, bool); 6] = [
    ("net/ipv4/ip_forward", "1", true),
    ("net/ipv6/conf/all/forwarding", "1", false),
    // The addresses are ours and unique: duplicate detection would only cost a second each.
    ("net/ipv6/conf/default/accept_dad", "0", false),
    ("net/ipv6/conf/default/accept_ra", "0", false),
    // Where br_netfilter is loaded: nftables does not filter what stays on a bridge.
    ("net/bridge/bridge-nf-call-iptables", "0", false),
    ("net/bridge/bridge-nf-call-ip6tables", "0", false),
];

/// How long the host waits before it asks again for a node's hardware address. With the kernel's default of a second, a
/// node would be reached up to a second after it is up.
const NEIGHBOUR_RETRY_MS: &str = "50";

/// The host's number on every network; nodes have numbers from 2 (`ClusterSpec::resolve`).
const HOST_PART: u8 = 1;

fn make_links(spec: &HostNetworkSpec) -> Result<(), NetworkError> {
    let name = spec.netns();
    let enter = |source| NetworkError::Namespace { operation: "enter", netns: name.clone(), source };
    let ns = netns::open(&name).map_err(enter)?;
    set_sysctls(spec, ns.as_fd(), SYSCTLS.map(|(key, value, needed)| (key.to_owned(), value, needed)))?;
    netlink::with(Some(ns.as_fd()), async |links: Links| {
        links.up("lo").await?;
        for (name, _, kind) in links.list().await? {
            if kind == Some(InfoKind::Bridge) && !spec.bridges.iter().any(|b| b.name == name) {
                links.delete(&name).await?;
            }
        }
        for (net, bridge) in spec.bridges.iter().enumerate() {
            let mac = MacAddress([0x02, 0xad, net as u8, 0, 0, HOST_PART]);
            links.ensure_bridge(&bridge.name, mac, bridge.mtu, &bridge.addresses).await?;
        }
        Ok(())
    })?;
    let neighbours = spec.bridges.iter().flat_map(|bridge| {
        ["ipv4", "ipv6"].map(|family| {
            (format!("net/{family}/neigh/{}/retrans_time_ms", bridge.name), NEIGHBOUR_RETRY_MS, false)
        })
    });
    set_sysctls(spec, ns.as_fd(), neighbours)
}

/// Sets kernel parameters of the namespace: key below `/proc/sys`, value, and whether it has to exist.
fn set_sysctls(
    spec: &HostNetworkSpec,
    ns: BorrowedFd<'_>,
    parameters: impl IntoIterator<Item = (String, &'static str, bool)> + Send,
) -> Result<(), NetworkError> {
    let name = spec.netns();
    let mut refused = None;
    netns::inside(ns, || {
        for (key, value, needed) in parameters {
            match fs::write(Path::new("/proc/sys").join(&key), value) {
                Err(source) if needed || source.kind() != io::ErrorKind::NotFound => {
                    let netns = name.clone();
                    refused = Some(NetworkError::Sysctl { key: key.replace('/', "."), netns, source });
                    break;
                }
                _ => {}
            }
        }
        Ok(())
    })
    .map_err(|source| NetworkError::Namespace { operation: "enter", netns: name.clone(), source })?;
    refused.map_or(Ok(()), Err)
}

/// The supervisor's state, or `None` when the network is not complete.
pub fn observe(spec: &HostNetworkSpec) -> Option<NetworkState> {
    netns::open(&spec.netns()).ok()?;
    supervisor_state(spec)
}

/// Removes everything: supervisor, NAT, namespace. Idempotent; machines must be gone, or they lose their network.
///
/// # Errors
/// Everything that could not be removed.
pub fn down(spec: &HostNetworkSpec) -> Result<(), TeardownError> {
    let mut failures = Failures::default();
    // Without the directory there was no `up` to exclude.
    let _one_at_a_time = Lock::wait(&spec.dir.join("up.lock")).ok();
    failures.note(end_supervisor(spec));
    failures.absorb(nat::remove(spec));
    let netns = spec.netns();
    failures.note(netns::remove(&netns).map_err(|source| NetworkError::Namespace {
        operation: "remove",
        netns,
        source,
    }));
    failures.into_result()
}
