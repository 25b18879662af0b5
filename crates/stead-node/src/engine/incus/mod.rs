//! Incus and LXD, through the API on their unix socket: initialises or joins, issues tokens, reads their state.
//!
//! Owns the node's requests to the engine and the engine's status. Its parts: bootstrap ([`bootstrap`]: observe -> plan
//! -> apply, [`plan`]) and recovery from an interruption ([`journal`], [`reset`]). After a failed join the engine is
//! reset first, so that the next join starts from an untouched server.

mod access;
mod act;
mod bootstrap;
mod cluster;
mod daemon;
mod disk;
mod error;
mod hubs;
mod journal;
mod plan;
mod preseed;
mod reset;
mod scalars;

use super::{Engine, EngineError, Work};
use crate::{blocking::blocking, chain, handle::Handle};
use cluster::Who;
pub use error::IncusError;
use journal::{Journal, Phase};
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use stead_incus::{Client, Dialect, Endpoint, Error, requests, types::Member, types::Server};
use stead_model::{
    NodeName,
    agent::{
        Access, AccessRequest, EngineState, EngineStatus, EventKind, InstanceStatus, JoinRequest,
        JoinTokenRequest, RemoveMemberRequest, RestoreMemberRequest, Token,
    },
    node::EngineSpec,
};
use tokio::{
    sync::Mutex as AsyncMutex,
    time::{Instant, sleep, timeout},
};

/// Interval while the engine starts or forms: every millisecond counts and a request costs little.
const EAGER_POLL: Duration = Duration::from_millis(4);
/// Interval otherwise: frequent enough for a person, cheap enough to go on for ever.
const WATCH_POLL: Duration = Duration::from_secs(1);
/// Interval at which a member that was just started is asked whether it is online: a rolling change waits for that.
const RETURN_POLL: Duration = Duration::from_millis(20);
/// How long after the start. A member that takes longer waits for others.
const RETURN_PATIENCE: Duration = Duration::from_secs(30);
/// Time limit for reading the state: an engine without quorum never answers, a healthy one takes milliseconds.
const WATCH_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a request for the present state waits for a join to end; with two requests to the engine it stays within
/// the ten seconds of a request to the agent.
const LOOK_PATIENCE: Duration = Duration::from_secs(3);
/// How long `join` waits for the API of an engine that is just starting.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long a new member may take to be online: it is with its first heartbeat, usually at once, at the latest after
/// ten seconds.
const ONLINE_PATIENCE: Duration = Duration::from_secs(30);

/// Role of the member that leads the cluster's database; the engine assigns it.
const LEADER: &str = "database-leader";

/// Adds the action to the engine's error.
fn engine(action: &'static str) -> impl FnOnce(Error) -> IncusError {
    move |source| IncusError::Engine { action, source }
}
fn step(action: &'static str) -> impl FnOnce(act::ActError) -> IncusError {
    move |source| IncusError::Step { action, source }
}

/// An Incus or an LXD.
#[derive(Debug)]
pub struct Incus {
    spec: EngineSpec,
    node: NodeName,
    handle: Handle,
    socket: PathBuf,
    /// The engine's directory.
    directory: PathBuf,
    /// `/dev` and `/sys`.
    dev: PathBuf,
    sys: PathBuf,
    journal: Journal,
    client: Client,
    state: Mutex<EngineStatus>,
    /// Held while this engine's own membership changes.
    forming: AsyncMutex<()>,
    /// Held while another member is removed, which may outlive the request, or restored.
    removing: AsyncMutex<()>,
}

impl Incus {
    /// The engine of `dialect`, at the paths in its row of the table of engines.
    ///
    /// # Errors
    /// None known: a unix socket needs no certificate that could be wrong.
    pub fn new(
        spec: EngineSpec,
        dialect: Dialect,
        node: NodeName,
        handle: Handle,
    ) -> Result<Arc<Self>, Error> {
        let facts = dialect.facts();
        let (socket, directory) = (PathBuf::from(facts.node_socket()), PathBuf::from(facts.directory));
        Ok(Arc::new(Self {
            state: Mutex::new(EngineStatus {
                kind: spec.kind,
                state: EngineState::Starting,
                version: None,
                detail: None,
                certificate: None,
                leads: false,
                refused: false,
            }),
            journal: Journal::new(&directory),
            client: Client::new(dialect, Endpoint::Unix(socket.clone()))?,
            spec,
            node,
            handle,
            socket,
            directory,
            dev: "/dev".into(),
            sys: "/sys".into(),
            forming: AsyncMutex::new(()),
            removing: AsyncMutex::new(()),
        }))
    }

    /// Notes the first start, and makes the link by which the engine finds its storage disk. Blocks.
    fn make_ready(&self) {
        if let Err(e) = self.begin_anew_if_cut_short() {
            self.handle.warn(format!("engine: cannot prepare the first start: {}", chain(&e)));
        }
        if let Some(device) = self.device()
            && let Some(uuid) = disk::btrfs_uuid(&device)
            && let Err(e) = disk::link_by_uuid(&uuid, &device, &self.dev)
        {
            self.handle
                .warn(format!("engine: cannot link storage disk {} by its UUID: {e}", device.display()));
        }
    }

    /// Bootstraps, then watches; returns only when the node stops.
    async fn run(&self) {
        let work = async {
            self.bootstrap().await;
            let begun = Instant::now();
            loop {
                if self.is_unfinished() && self.forming.try_lock().is_ok() {
                    // A join failed and the engine could not be reset.
                    self.bootstrap().await;
                }
                self.look().await;
                let returns =
                    self.last_seen().state == EngineState::Offline && begun.elapsed() < RETURN_PATIENCE;
                sleep(if returns { RETURN_POLL } else { WATCH_POLL }).await;
            }
        };
        tokio::select! {
            () = work => {}
            _ = self.handle.stop_requested() => {}
        }
    }

    fn last_seen(&self) -> EngineStatus {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn seen_now(&self) -> EngineStatus {
        if let Ok(_settled) = timeout(LOOK_PATIENCE, self.forming.lock()).await {
            self.look_now().await;
        }
        self.last_seen()
    }

    async fn token_for(&self, request: &JoinTokenRequest) -> Result<Token, IncusError> {
        let JoinTokenRequest { member, address } = request;
        cluster::make_way(&self.client, Who { name: member.as_str(), address: *address }).await?;
        let token = self.client.join_token(member.as_str()).await.map_err(engine("ask for a join token"))?;
        Ok(Token { token: token.encode() })
    }

    async fn join_by(&self, token: &Token) -> Result<EngineStatus, IncusError> {
        let _forming = self.forming.lock().await;
        let server = self.await_api(START_PATIENCE).await?;
        if !server.environment.server_clustered {
            let joined = self.join_with(&server, &token.token).await;
            if let Err(e) = joined {
                self.set(EngineState::Waiting, Some(format!("the last join failed: {}", chain(&e))));
                self.handle.note(EventKind::Engine, format!("engine: join failed: {}", chain(&e)));
                return Err(e);
            }
        }
        self.await_online(ONLINE_PATIENCE).await?;
        self.joined().await?;
        if let Err(e) = hubs::appoint(&self.client).await {
            // The cluster works without: only joins cost more. The next one tries again.
            self.handle.warn(format!("engine: cannot appoint event hubs: {}", chain(&e)));
        }
        self.look_now().await;
        Ok(self.last_seen())
    }

    async fn instances(&self) -> Result<Vec<InstanceStatus>, IncusError> {
        let found = self.client.instances().await.map_err(engine("list instances"))?;
        Ok(found
            .into_iter()
            .map(|i| InstanceStatus {
                addresses: i.global_addresses(),
                node: if i.location == "none" { self.node.to_string() } else { i.location },
                name: i.name,
                state: i.status,
            })
            .collect())
    }

    fn set(&self, state: EngineState, detail: Option<String>) {
        let mut s = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        s.state = state;
        s.detail = detail;
        s.leads = false;
        s.refused = false;
    }

    /// The state of a member that the cluster counts as there.
    fn set_member(&self, state: EngineState, member: &Member) {
        let mut s = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        s.state = state;
        s.detail = None;
        s.leads = member.roles.iter().any(|r| r == LEADER);
        s.refused = false;
    }

    /// It failed for good, unless the world changes.
    fn set_refused(&self, why: String) {
        self.set(EngineState::Failed, Some(why));
        self.state.lock().unwrap_or_else(PoisonError::into_inner).refused = true;
    }

    fn learn(&self, server: &Server) {
        let mut s = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let e = &server.environment;
        s.version = Some(e.server_version.clone()).filter(|v| !v.is_empty());
        s.certificate = Some(e.certificate.clone()).filter(|c| !c.is_empty());
    }

    /// Writes the journal, which is on disk when this returns.
    async fn write_journal(&self, phase: Phase) -> Result<(), IncusError> {
        let journal = self.journal.clone();
        let written = blocking(move || journal.write(phase)).await;
        written.map_err(|source| IncusError::Journal { directory: self.directory.clone(), source })
    }

    /// The storage disk's device, if the spec names one and it is attached.
    fn device(&self) -> Option<PathBuf> {
        disk::find(self.spec.storage_disk.as_deref()?, &self.dev, &self.sys)
    }

    async fn ask_server(&self) -> Result<Server, Error> {
        self.client.fetch(&requests::server::get().within(WATCH_TIMEOUT)).await
    }

    async fn own_member(&self) -> Result<Member, Error> {
        let called = async |name: &str| {
            self.client.fetch::<Member>(&requests::cluster::member(name).within(WATCH_TIMEOUT)).await
        };
        match called(self.node.as_str()).await {
            Ok(member) if cluster::is_at(&member, self.spec.address) => Ok(member),
            Err(e) if !e.is_not_found() => Err(e),
            // It was renamed in the engine: the engine knows itself under which name.
            _ => called(&self.ask_server().await?.environment.server_name).await,
        }
    }

    async fn joined(&self) -> Result<(), IncusError> {
        if self.journal.read() != Phase::Member {
            self.write_journal(Phase::Member).await?;
            self.handle.note(EventKind::Engine, "engine: a member and online");
        }
        Ok(())
    }

    async fn was_removed(&self) -> Result<(), IncusError> {
        if self.journal.read() != Phase::Removed {
            self.handle.note(EventKind::Engine, "engine: no longer a member of its cluster");
            self.write_journal(Phase::Removed).await?;
        }
        self.set(EngineState::Waiting, Some("was removed from its cluster; waits for a join token".into()));
        Ok(())
    }

    /// Refreshes the state, unless the membership is changing.
    async fn look(&self) {
        if let Ok(_settled) = self.forming.try_lock() {
            self.look_now().await;
        }
    }

    async fn look_now(&self) {
        match self.ask_server().await {
            Err(Error::Connect { .. }) => {
                self.set(EngineState::Starting, Some("the engine is not running".into()));
            }
            Err(e) => self.set(EngineState::Offline, Some(chain(&e))),
            Ok(server) => {
                self.learn(&server);
                if server.environment.server_clustered {
                    self.look_at_member().await;
                } else if matches!(self.journal.read(), Phase::Member | Phase::Removed) {
                    if let Err(e) = self.was_removed().await {
                        self.set(EngineState::Failed, Some(chain(&e)));
                    }
                } else if self.last_seen().state != EngineState::Waiting {
                    self.set(EngineState::Waiting, Some("waits for a join token".into()));
                }
            }
        }
    }

    async fn look_at_member(&self) {
        match self.own_member().await {
            Ok(m) if is_online(&m) => {
                if let Err(e) = self.joined().await {
                    self.handle.warn(chain(&e));
                }
                self.set_member(EngineState::Online, &m);
            }
            Ok(m) if m.status == "Evacuated" => self.set_member(EngineState::Evacuated, &m),
            Ok(m) => self.set(EngineState::Offline, Some(m.message).filter(|s| !s.is_empty())),
            Err(e) => self.set(EngineState::Offline, Some(chain(&e))),
        }
    }
}

fn is_online(member: &Member) -> bool {
    member.status == "Online"
}

impl Engine for Incus {
    fn prepare(self: Arc<Self>) -> Work<'static, ()> {
        Box::pin(blocking(move || self.make_ready()))
    }
    fn settle(self: Arc<Self>) -> Work<'static, ()> {
        Box::pin(async move { self.run().await })
    }
    fn status(&self) -> EngineStatus {
        self.last_seen()
    }
    fn status_now(&self) -> Work<'_, EngineStatus> {
        Box::pin(self.seen_now())
    }
    fn join_token<'a>(&'a self, request: &'a JoinTokenRequest) -> Work<'a, Result<Token, EngineError>> {
        Box::pin(async { self.token_for(request).await.map_err(EngineError::new) })
    }
    fn join<'a>(&'a self, request: &'a JoinRequest) -> Work<'a, Result<EngineStatus, EngineError>> {
        Box::pin(async { self.join_by(&request.token).await.map_err(EngineError::new) })
    }
    fn remove<'a>(&'a self, request: &'a RemoveMemberRequest) -> Work<'a, Result<(), EngineError>> {
        Box::pin(async {
            let _one_at_a_time = self.removing.lock().await;
            let removed = cluster::remove(
                &self.client,
                Who { name: request.member.as_str(), address: request.address },
                request.force,
            )
            .await;
            removed.map_err(EngineError::new)
        })
    }
    fn restore<'a>(&'a self, request: &'a RestoreMemberRequest) -> Work<'a, Result<(), EngineError>> {
        Box::pin(async {
            let _one_at_a_time = self.removing.lock().await;
            let who = Who { name: request.member.as_str(), address: request.address };
            cluster::restore(&self.client, who).await.map_err(EngineError::new)
        })
    }
    fn workloads(&self) -> Work<'_, Result<Vec<InstanceStatus>, EngineError>> {
        Box::pin(async { self.instances().await.map_err(EngineError::new) })
    }
    fn access<'a>(&'a self, request: &'a AccessRequest) -> Work<'a, Result<Access, EngineError>> {
        Box::pin(async { access::give(&self.client, request).await.map_err(EngineError::new) })
    }
}
