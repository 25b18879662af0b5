//! The process behind a cluster's network: dnsmasq, started again when it dies, and the published ports.
//!
//! Owns these two while the network's lock is held. Does not own the namespace, which stays when this process dies.

use super::{
    HostNetworkSpec, NetworkError, NetworkState, digest, dnsmasq,
    forward::{Forwarder, Gate},
    probe,
};
use crate::{
    daemon,
    files::{self, Durability},
    netns,
    tether::Tethered,
};
use rustix::process::Signal;
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use stead_os::{PathContext, chain, command};
use tokio::signal::unix::{SignalKind, signal};

/// dnsmasq's log turns over at this size.
const MAX_LOG_BYTES: u64 = 4 << 20;
/// How long dnsmasq may take to answer.
const DNS_PATIENCE: Duration = Duration::from_secs(10);
/// Pause before a dnsmasq that died is started again.
const RESTART_PAUSE: Duration = Duration::from_millis(500);
/// How long dnsmasq may take to end before it is killed.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// Body of `stead network run FILE`: dnsmasq and the published ports, until SIGTERM. SIGHUP: reads `network.json` again.
/// Blocks; for the process's first thread, outside of any runtime.
///
/// # Errors
/// [`NetworkError::AlreadyRuns`], or what kept it from coming up the first time.
pub fn run(spec: HostNetworkSpec) -> Result<(), NetworkError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .at("supervise the network in", &spec.dir)?;
    runtime.block_on(supervise(spec))
}

struct Supervisor {
    spec: HostNetworkSpec,
    gate: Gate,
    forwarders: Vec<Forwarder>,
    /// Where ports published with port 0 were, by how they are published.
    ports: BTreeMap<String, SocketAddr>,
    config: Option<String>,
    dnsmasq: Option<Tethered>,
    attempts: u32,
}

async fn supervise(spec: HostNetworkSpec) -> Result<(), NetworkError> {
    let dir = spec.dir.clone();
    let taken = |signals: io::Result<_>| signals.at("take signals for", &dir);
    let mut end = taken(signal(SignalKind::terminate()))?;
    let mut interrupt = taken(signal(SignalKind::interrupt()))?;
    let mut quit = taken(signal(SignalKind::quit()))?;
    let mut reload = taken(signal(SignalKind::hangup()))?;
    let _lock = daemon::hold(&dir)
        .at("lock", &dir)?
        .ok_or_else(|| NetworkError::AlreadyRuns(spec.cluster.to_string()))?;
    let netns = netns::open(&spec.netns()).map_err(|source| NetworkError::Namespace {
        operation: "enter",
        netns: spec.netns(),
        source,
    })?;
    let mut me = Supervisor {
        gate: Gate::open(netns).at("publish ports of", &dir)?,
        forwarders: Vec::new(),
        ports: files::read_json(&dir.join("ports.json")).unwrap_or_default(),
        config: None,
        dnsmasq: None,
        attempts: 0,
        spec,
    };
    me.tell(false, None)?;
    let up = me.converge().await;
    me.tell(up.is_ok(), up.as_ref().err())?;
    let ended = loop {
        if let Err(e) = up {
            break Err(e);
        }
        tokio::select! {
            _ = end.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            _ = quit.recv() => break Ok(()),
            _ = reload.recv() => {
                if let Some(new) = files::read_json(&dir.join("network.json")) {
                    me.spec = new;
                }
                me.tell(false, None)?;
                let outcome = me.converge().await;
                me.tell(outcome.is_ok(), outcome.as_ref().err())?;
            }
            () = died(&mut me.dnsmasq) => {
                me.dnsmasq = None;
                me.tell(false, None)?;
                tokio::time::sleep(RESTART_PAUSE).await;
                let outcome = me.serve_names().await;
                me.tell(outcome.is_ok(), outcome.as_ref().err())?;
            }
        }
    };
    me.end_dnsmasq().await;
    ended
}

/// Waits for the end of dnsmasq; for ever when none runs.
async fn died(dnsmasq: &mut Option<Tethered>) {
    match dnsmasq {
        Some(child) => drop(child.ended().await),
        None => std::future::pending().await,
    }
}

impl Supervisor {
    fn tell(&self, ready: bool, error: Option<&NetworkError>) -> Result<(), NetworkError> {
        let state = NetworkState {
            supervisor_pid: std::process::id() as i32,
            ready,
            listening: self.forwarders.iter().map(|f| f.listening).collect(),
            attempts: self.attempts,
            spec_digest: digest(&self.spec),
            error: error.map(|e| chain(e)),
        };
        let path = self.spec.dir.join("state.json");
        Ok(files::write_json(&path, &state, Durability::Volatile).at("write", &path)?)
    }

    /// Serves names and publishes ports as the spec asks.
    async fn converge(&mut self) -> Result<(), NetworkError> {
        let outcome = match self.publish().await {
            Ok(()) => self.serve_names().await,
            failed => failed,
        };
        self.attempts += 1;
        outcome
    }

    async fn publish(&mut self) -> Result<(), NetworkError> {
        let mut old = std::mem::take(&mut self.forwarders);
        // A port that moves from one node to another goes on listening.
        let mut kept: Vec<Option<Forwarder>> =
            self.spec.publish.iter().map(|wish| take(&mut old, |f| f.is_for(wish))).collect();
        for (wish, kept) in self.spec.publish.iter().zip(&mut kept) {
            if kept.is_none() && wish.publish.listen.port() != 0 {
                *kept = take(&mut old, |f| f.listening == wish.publish.listen);
            }
        }
        // Ports that are no longer published are closed before any is opened: a new one may need the address.
        for forwarder in old {
            forwarder.close().await;
        }
        let mut first_failure = None;
        for (wish, kept) in self.spec.publish.iter().zip(kept) {
            let mut forwarder = match kept {
                Some(forwarder) => forwarder,
                None => {
                    let before = self.ports.get(&wish.publish.to_string()).copied();
                    match Forwarder::listen(&self.gate, wish, before).await {
                        Ok(forwarder) => forwarder,
                        // The other ports are published all the same.
                        Err(source) => {
                            let address = wish.publish.listen;
                            first_failure.get_or_insert(NetworkError::Listen { address, source });
                            continue;
                        }
                    }
                }
            };
            forwarder.aim(wish);
            self.ports.insert(wish.publish.to_string(), forwarder.listening);
            self.forwarders.push(forwarder);
        }
        let path = self.spec.dir.join("ports.json");
        files::write_json(&path, &self.ports, Durability::Volatile).at("write", &path)?;
        first_failure.map_or(Ok(()), Err)
    }

    async fn serve_names(&mut self) -> Result<(), NetworkError> {
        let upstream = if self.spec.bridges.iter().any(|b| b.nat) { upstream() } else { Vec::new() };
        let config = dnsmasq::config(&self.spec, &upstream);
        if config == self.config && self.dnsmasq.is_some() == config.is_some() {
            return Ok(());
        }
        self.end_dnsmasq().await;
        self.config = config;
        let Some(config) = &self.config else { return Ok(()) };
        let path = self.spec.dir.join("dnsmasq.conf");
        files::write(&path, config.as_bytes(), Durability::Volatile).at("write", &path)?;
        let mut child = start(&self.spec, path).await?;
        let answered = answering(&self.spec, &mut child).await;
        self.dnsmasq = Some(child);
        answered
    }

    async fn end_dnsmasq(&mut self) {
        let Some(mut child) = self.dnsmasq.take() else { return };
        child.signal(Signal::TERM);
        if tokio::time::timeout(END_PATIENCE, child.ended()).await.is_err() {
            child.signal(Signal::KILL);
            let _ = tokio::time::timeout(END_PATIENCE, child.ended()).await;
        }
    }
}

/// Takes the first one that fits out of a list.
fn take(from: &mut Vec<Forwarder>, fits: impl Fn(&Forwarder) -> bool) -> Option<Forwarder> {
    from.iter().position(fits).map(|i| from.swap_remove(i))
}

async fn start(spec: &HostNetworkSpec, config: PathBuf) -> Result<Tethered, NetworkError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => NetworkError::Missing { program: "dnsmasq", package: "dnsmasq-base" },
        _ => NetworkError::Dnsmasq { why: source.to_string(), log: String::new() },
    };
    let netns = netns::open(&spec.netns()).map_err(failed)?;
    let (log, writer) = io::pipe().map_err(failed)?;
    files::log_from(log, spec.dir.join("dnsmasq.log"), MAX_LOG_BYTES).map_err(failed)?;
    let mut command = Command::new(command::find("dnsmasq").unwrap_or_else(|| "dnsmasq".into()));
    command
        .args(dnsmasq::arguments(spec, &config))
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(writer.try_clone().map_err(failed)?)
        .stderr(writer);
    Tethered::start(command, Some(netns), Vec::new()).await.map_err(failed)
}

/// Waits until dnsmasq answers on every bridge it serves.
async fn answering(spec: &HostNetworkSpec, child: &mut Tethered) -> Result<(), NetworkError> {
    let log = || files::tail(&spec.dir.join("dnsmasq.log"), 1000);
    let deadline = Instant::now() + DNS_PATIENCE;
    let addresses: Vec<IpAddr> =
        spec.bridges.iter().filter_map(|b| Some(b.addresses.first()?.addr())).collect();
    for address in addresses {
        loop {
            let name = spec.netns();
            let ask = tokio::task::spawn_blocking(move || {
                netns::inside(netns::open(&name)?.as_fd(), || probe::answers(address))
            });
            if ask.await.is_ok_and(|answer| answer.is_ok()) {
                break;
            }
            if let Some(ended) = child.has_ended() {
                let why = ended.map_or_else(|e| e.to_string(), |status| status.to_string());
                return Err(NetworkError::Dnsmasq { why: format!("it ended: {why}"), log: log() });
            }
            if Instant::now() > deadline {
                let why = format!("no answer on {address} within {} s", DNS_PATIENCE.as_secs());
                return Err(NetworkError::Dnsmasq { why, log: log() });
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    Ok(())
}

/// The host's name servers that can be reached from the cluster's namespace.
fn upstream() -> Vec<IpAddr> {
    // systemd-resolved's stub listens on a loopback address; the servers behind it are in the second file.
    for file in ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"] {
        let found = dnsmasq::nameservers(&std::fs::read_to_string(file).unwrap_or_default());
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}
