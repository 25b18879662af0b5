//! The engine on this node: waits for its API, initialises or joins, hands out tokens, tells its state.
//!
//! Owns bootstrap (observe -> plan -> apply, [`plan`]) and what becomes of it when power fails half-way ([`journal`],
//! [`reset`]). Does not own the daemon itself: that is a service of the image.
//!
//! ```text
//!            API answers        journal written     bootstrap done, own member online
//! Starting ---------------+---> Forming (init) ------------------> Online <--> Offline, Evacuated
//!                         |                                          ^
//!                         +---> Waiting (join) --token--> Forming ---+
//! ```
//! Anything that fails on the way is `Failed` with the reason, and tried again; a join that failed is put away first, so
//! that it starts from an untouched server.

mod act;
mod cluster;
mod disk;
mod journal;
mod plan;
mod preseed;
mod reset;

use crate::handle::Handle;
use journal::{Journal, Phase};
use preseed::Preseed;
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use stead_incus::{
    Client, Dialect, Endpoint, Error, JoinToken, requests, requests::cluster::Join, types::Member,
    types::Server,
};
use stead_model::{
    EngineKind, NodeName,
    agent::{EngineState, EngineStatus, InstanceStatus, Token},
    node::{EngineRole, EngineSpec},
};
use tokio::{
    sync::Mutex as AsyncMutex,
    time::{Instant, sleep, timeout},
};

/// While the engine starts or forms, every millisecond counts and asking costs little.
const EAGER_POLL: Duration = Duration::from_millis(4);
/// Otherwise: fresh enough for a person, cheap enough for ever.
const WATCH_POLL: Duration = Duration::from_secs(1);
/// An engine that has lost its quorum never answers; a healthy one takes milliseconds.
const WATCH_TIMEOUT: Duration = Duration::from_secs(3);
/// A half-formed engine that has not come to anything by then is put away; the next time it gets twice as long. Under
/// emulation a daemon takes 30 s from its start to its first answer.
const HALF_FORMED_PATIENCE: Duration = Duration::from_secs(45);
/// `join` waits so long for the API of an engine that is only just being started.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// A new member counts as online with its first heartbeat, at once as a rule, after ten seconds at the latest.
const ONLINE_PATIENCE: Duration = Duration::from_secs(30);
/// Pause after a failure, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));

/// An engine action failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Asking the engine failed.
    #[error("cannot {action}")]
    Engine {
        /// What was tried.
        action: &'static str,
        /// Why.
        #[source]
        source: Error,
    },
    /// A step of bootstrap failed.
    #[error("cannot {action}")]
    Step {
        /// What was tried.
        action: &'static str,
        /// Why.
        #[source]
        source: act::ActError,
    },
    /// The preseed.
    #[error("cannot use the preseed")]
    Preseed(#[from] preseed::PreseedError),
    /// No way from here.
    #[error("cannot form")]
    Plan(#[from] plan::PlanError),
    /// The half-formed engine cannot be put away.
    #[error("cannot put the half-formed engine away")]
    Reset(#[from] reset::ResetError),
    /// The journal.
    #[error("cannot write the journal in {directory}")]
    Journal {
        /// The engine's directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The storage disk is not there.
    #[error("storage disk {0:?} is not attached")]
    NoDisk(String),
    /// Not a token.
    #[error("cannot read the join token")]
    Token(#[from] stead_incus::token::TokenError),
    /// A token for somebody else.
    #[error("join token is for {wanted:?}, this node is {node:?}")]
    OtherName {
        /// The token's.
        wanted: String,
        /// Ours.
        node: String,
    },
    /// The member is there and well.
    #[error("{0:?} is a member already and answers")]
    AlreadyMember(String),
    /// Its name is taken by a member that is gone but not empty.
    #[error("{member:?} is a member that does not answer and still holds {holds}: remove it first")]
    StaleMember {
        /// Its name.
        member: String,
        /// What it holds.
        holds: String,
    },
    /// Took too long.
    #[error("{what} did not happen within {} s", after.as_secs())]
    Patience {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// The node has no engine.
    #[error("this node has no engine")]
    NoEngine,
}

/// Adds what was tried to the engine's error.
fn engine(action: &'static str) -> impl FnOnce(Error) -> EngineError {
    move |source| EngineError::Engine { action, source }
}
fn step(action: &'static str) -> impl FnOnce(act::ActError) -> EngineError {
    move |source| EngineError::Step { action, source }
}

/// An error with its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// Owns the engine's bootstrap and answers for it.
#[derive(Debug)]
pub struct Manager {
    spec: EngineSpec,
    node: NodeName,
    handle: Handle,
    socket: PathBuf,
    /// The engine's directory.
    directory: PathBuf,
    /// `/dev` and `/sys`, elsewhere in tests.
    dev: PathBuf,
    sys: PathBuf,
    journal: Journal,
    client: Option<Client>,
    state: Mutex<EngineStatus>,
    /// Held by whoever changes the engine's membership.
    forming: AsyncMutex<()>,
}

impl Manager {
    /// `socket`: the engine's unix socket (`/var/lib/incus/unix.socket`, `/var/lib/lxd/unix.socket`). Make it before the
    /// engine's service is started: it notes a first start, and makes the link by which the engine finds its storage disk.
    pub fn new(spec: EngineSpec, node: NodeName, handle: Handle, socket: PathBuf) -> Arc<Self> {
        Self::with_paths(spec, node, handle, socket, "/dev".into(), "/sys".into())
    }

    /// As [`Self::new`] with other places for device nodes and sysfs.
    pub fn with_paths(
        spec: EngineSpec,
        node: NodeName,
        handle: Handle,
        socket: PathBuf,
        dev: PathBuf,
        sys: PathBuf,
    ) -> Arc<Self> {
        let dialect = match spec.kind {
            EngineKind::Incus => Some(Dialect::Incus),
            EngineKind::Lxd => Some(Dialect::Lxd),
            EngineKind::None => None,
        };
        // A unix socket needs no certificate, so nothing can be wrong with it.
        let client = dialect.and_then(|d| Client::new(d, Endpoint::Unix(socket.clone())).ok());
        let directory = socket.parent().unwrap_or(Path::new("/")).to_owned();
        let manager = Self {
            state: Mutex::new(EngineStatus {
                kind: spec.kind,
                state: EngineState::Starting,
                version: None,
                detail: None,
                certificate: None,
            }),
            journal: Journal::new(&directory),
            spec,
            node,
            handle,
            socket,
            directory,
            dev,
            sys,
            client,
            forming: AsyncMutex::new(()),
        };
        if let Err(e) = manager.journal.note_first_start() {
            manager.handle.warn(format!("engine: cannot write its journal: {e}"));
        }
        if let Some(device) = manager.device()
            && let Some(uuid) = disk::btrfs_uuid(&device)
            && let Err(e) = disk::link_by_uuid(&uuid, &device, &manager.dev)
        {
            manager
                .handle
                .warn(format!("engine: cannot link storage disk {} by its UUID: {e}", device.display()));
        }
        Arc::new(manager)
    }

    /// Bootstraps, then watches; returns only when the node stops.
    pub async fn run(self: Arc<Self>) {
        let Some(client) = &self.client else { return };
        let work = async {
            self.bootstrap(client).await;
            loop {
                if self.is_unfinished() && self.forming.try_lock().is_ok() {
                    // A join failed and could not be put away.
                    self.bootstrap(client).await;
                }
                self.look(client).await;
                sleep(WATCH_POLL).await;
            }
        };
        tokio::select! {
            () = work => {}
            _ = self.handle.stop_requested() => {}
        }
    }

    /// The last known state, at once.
    pub fn status(&self) -> EngineStatus {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A one-time token for `member` to join with. What an interrupted join of the same name left in the cluster is
    /// removed first.
    ///
    /// # Errors
    /// The member is there and well, or not empty, or the engine refuses.
    pub async fn join_token(&self, member: &NodeName) -> Result<Token, EngineError> {
        let client = self.client()?;
        cluster::make_way(client, member.as_str()).await?;
        let token = client.join_token(member.as_str()).await.map_err(engine("ask for a join token"))?;
        Ok(Token { token: token.encode() })
    }

    /// Joins; returns when this node is a member and online. A second call with the node a member already succeeds.
    ///
    /// # Errors
    /// The token is unusable, or the join failed; then the node is ready for another token.
    pub async fn join(&self, token: &Token) -> Result<EngineStatus, EngineError> {
        let client = self.client()?;
        let _forming = self.forming.lock().await;
        let server = self.await_api(client, START_PATIENCE).await?;
        if !server.environment.server_clustered {
            let joined = self.join_with(client, &server, &token.token).await;
            if let Err(e) = joined {
                self.set(EngineState::Waiting, Some(format!("last join failed: {}", chain(&e))));
                self.handle.note(format!("engine: join failed: {}", chain(&e)));
                return Err(e);
            }
        }
        self.await_online(client, ONLINE_PATIENCE).await?;
        self.joined()?;
        self.look_now(client).await;
        Ok(self.status())
    }

    /// A one-time token to add a client certificate with.
    ///
    /// # Errors
    /// The engine refuses or does not answer.
    pub async fn trust_token(&self, client_name: &str) -> Result<Token, EngineError> {
        let token = self.client()?.trust_token(client_name).await.map_err(engine("ask for a trust token"))?;
        Ok(Token { token: token.encode() })
    }

    /// Evacuates (unless forced) and removes a member. A member that is not there succeeds.
    ///
    /// # Errors
    /// The engine refuses or does not answer.
    pub async fn remove_member(&self, member: &NodeName, force: bool) -> Result<(), EngineError> {
        cluster::remove(self.client()?, member.as_str(), force).await
    }

    /// Instances of the whole cluster, all projects.
    ///
    /// # Errors
    /// The engine refuses or does not answer.
    pub async fn instances(&self) -> Result<Vec<InstanceStatus>, EngineError> {
        let found = self.client()?.instances().await.map_err(engine("list instances"))?;
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

    fn client(&self) -> Result<&Client, EngineError> {
        self.client.as_ref().ok_or(EngineError::NoEngine)
    }

    fn set(&self, state: EngineState, detail: Option<String>) {
        let mut s = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        s.state = state;
        s.detail = detail;
    }

    fn learn(&self, server: &Server) {
        let mut s = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let e = &server.environment;
        s.version = Some(e.server_version.clone()).filter(|v| !v.is_empty());
        s.certificate = Some(e.certificate.clone()).filter(|c| !c.is_empty());
    }

    fn write_journal(&self, phase: Phase) -> Result<(), EngineError> {
        self.journal
            .write(phase)
            .map_err(|source| EngineError::Journal { directory: self.directory.clone(), source })
    }

    /// The storage disk's device, when the spec names one and it is attached.
    fn device(&self) -> Option<PathBuf> {
        disk::find(self.spec.storage_disk.as_deref()?, &self.dev, &self.sys)
    }
    fn attached_device(&self) -> Result<Option<PathBuf>, EngineError> {
        match (&self.spec.storage_disk, self.device()) {
            (Some(serial), None) => Err(EngineError::NoDisk(serial.clone())),
            (_, device) => Ok(device),
        }
    }
    fn wanted(&self, device: Option<&Path>) -> Result<Preseed, EngineError> {
        let source = device.map(|d| d.to_string_lossy().into_owned());
        Ok(preseed::wanted(&self.spec, source.as_deref())?)
    }

    /// Until the engine is settled: a member, or waiting for a token.
    async fn bootstrap(&self, client: &Client) {
        let (mut pause, mut patience) = (RETRY.0, HALF_FORMED_PATIENCE);
        loop {
            match self.settle(client, &mut patience).await {
                Ok(()) => return,
                Err(e) => {
                    let why = chain(&e);
                    if self.status().detail.as_deref() != Some(&why) {
                        self.handle.note(format!("engine: {why}"));
                    }
                    self.set(EngineState::Failed, Some(why));
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }

    async fn settle(&self, client: &Client, patience: &mut Duration) -> Result<(), EngineError> {
        let _forming = self.forming.lock().await;
        while self.is_unfinished() && timeout(*patience, self.await_formed(client)).await.is_err() {
            *patience *= 2;
            self.handle.note("engine: it was interrupted and comes to nothing: starting over");
            self.put_away().await?;
        }
        let server = self.await_api(client, Duration::MAX).await?;
        if server.environment.server_clustered {
            // Whether it is online is for the watch to tell, once it has been.
            if self.is_unfinished() {
                self.await_online(client, ONLINE_PATIENCE).await?;
            }
            return self.joined();
        }
        match (self.spec.role, self.journal.read()) {
            (_, Phase::Joining) => {
                // Its database may hold any part of what a join leaves there; a fresh one is a second's work.
                self.handle.note("engine: a join was interrupted: starting over");
                self.put_away().await?;
                self.await_api(client, Duration::MAX).await?;
                self.await_token()
            }
            (_, Phase::Member | Phase::Removed) => self.was_removed(),
            (EngineRole::Init, _) => self.initialise(client, &server).await,
            _ => self.await_token(),
        }
    }

    fn await_token(&self) -> Result<(), EngineError> {
        if self.journal.read() == Phase::Removed {
            return self.was_removed();
        }
        self.write_journal(Phase::Fresh)?;
        self.set(EngineState::Waiting, Some("waits for a join token".into()));
        Ok(())
    }

    /// Begun, by the engine or by us, and not seen to succeed.
    fn is_unfinished(&self) -> bool {
        matches!(self.journal.read(), Phase::Starting | Phase::Initialising | Phase::Joining)
    }

    /// An untouched engine again; the supervisor starts it.
    async fn put_away(&self) -> Result<(), EngineError> {
        // A first node that joins was removed before, and must not begin a cluster of its own now.
        let then = match (self.spec.role, self.journal.read()) {
            (EngineRole::Init, Phase::Joining) => Phase::Removed,
            _ => Phase::Starting,
        };
        reset::reset(&self.socket, &self.directory).await?;
        self.write_journal(then)
    }

    /// An interrupted forming has come to a good end either way: not clustered, or a member and online.
    async fn await_formed(&self, client: &Client) {
        loop {
            if let Ok(server) = self.ask_server(client).await {
                if !server.environment.server_clustered {
                    return;
                }
                if self.own_member(client).await.is_ok_and(|m| is_online(&m)) {
                    return;
                }
            }
            sleep(EAGER_POLL * 10).await;
        }
    }

    async fn initialise(&self, client: &Client, server: &Server) -> Result<(), EngineError> {
        self.set(EngineState::Forming, None);
        let device = self.attached_device()?;
        let wanted = self.wanted(device.as_deref())?;
        let observed = act::observe(client, server, device.as_deref(), &self.directory)
            .await
            .map_err(step("look at the engine"))?;
        let steps = plan::init(&wanted, self.node.as_str(), &observed)?;
        self.write_journal(Phase::Initialising)?;
        self.handle.note("engine: initialising");
        for s in &steps {
            let done = self.beside_linking(device.as_deref(), act::apply(client, s)).await;
            if let Err(e) = done {
                let broken = matches!(s, plan::Step::Bootstrap { .. });
                if broken {
                    self.put_away().await?;
                }
                return Err(EngineError::Step { action: action_of(s), source: e });
            }
        }
        self.await_online(client, ONLINE_PATIENCE).await?;
        self.joined()
    }

    async fn join_with(&self, client: &Client, server: &Server, text: &str) -> Result<(), EngineError> {
        let token = JoinToken::decode(text)?;
        if token.server_name != self.node.as_str() {
            return Err(EngineError::OtherName { wanted: token.server_name, node: self.node.to_string() });
        }
        self.set(EngineState::Forming, None);
        let device = self.attached_device()?;
        let wanted = self.wanted(device.as_deref())?;
        let (_, certificate) = tokio::try_join!(self.clear_way(client, server), async {
            act::cluster_certificate(&token).await.map_err(step("find the cluster to join"))
        })?;
        let (cluster_address, cluster_certificate) = certificate;
        let address = self.spec.address.to_string();
        let server_address = wanted.config.get("cluster.https_address").unwrap_or(&address);
        let join = Join {
            server_name: self.node.as_str(),
            server_address,
            cluster_address: &cluster_address,
            cluster_certificate: &cluster_certificate,
            token: text.trim(),
            member_config: &wanted.member_config(),
        };
        let before = self.journal.read();
        self.write_journal(Phase::Joining)?;
        self.handle.note("engine: joining");
        if let Err(e) = self.beside_linking(device.as_deref(), client.join_cluster(&join)).await {
            if untouched_by(&e) {
                self.write_journal(before)?;
            } else {
                self.put_away().await?;
            }
            return Err(EngineError::Engine { action: "join", source: e });
        }
        let mut own = wanted.member_settings();
        own.retain(|k, v| {
            k != "cluster.https_address" && !(k == "core.https_address" && v == server_address)
        });
        if !own.is_empty() {
            client
                .run(&requests::server::patch_config(&own), WATCH_TIMEOUT)
                .await
                .map_err(engine("change the member's own settings"))?;
        }
        Ok(())
    }

    /// Nothing that was left by an earlier try stands in the way of a join.
    async fn clear_way(&self, client: &Client, server: &Server) -> Result<(), EngineError> {
        let device = self.device();
        let observed = act::observe(client, server, device.as_deref(), &self.directory)
            .await
            .map_err(step("look at the engine"))?;
        for s in plan::before_join(&observed)? {
            act::apply(client, &s).await.map_err(step(action_of(&s)))?;
        }
        Ok(())
    }

    /// Does `work` while the storage disk's link is made as soon as it can be.
    async fn beside_linking<T>(&self, device: Option<&Path>, work: impl Future<Output = T>) -> T {
        match device {
            None => work.await,
            Some(device) => tokio::select! {
                done = work => done,
                never = act::link_when_formatted(device, &self.dev) => match never {},
            },
        }
    }

    /// The API answers; the server as it is.
    async fn await_api(&self, client: &Client, patience: Duration) -> Result<Server, EngineError> {
        let begun = Instant::now();
        loop {
            match self.ask_server(client).await {
                Ok(server) => {
                    self.learn(&server);
                    return Ok(server);
                }
                Err(e) if begun.elapsed() > patience => {
                    return Err(EngineError::Engine { action: "wait for the engine's API", source: e });
                }
                Err(Error::Timeout { .. }) if self.journal.read() == Phase::Member => {
                    self.set(EngineState::Offline, Some("the engine does not answer: no quorum?".into()));
                }
                Err(_) => {}
            }
            sleep(EAGER_POLL).await;
        }
    }

    async fn ask_server(&self, client: &Client) -> Result<Server, Error> {
        client.fetch(&requests::server::get().within(WATCH_TIMEOUT)).await
    }
    async fn own_member(&self, client: &Client) -> Result<Member, Error> {
        client.fetch(&requests::cluster::member(self.node.as_str()).within(WATCH_TIMEOUT)).await
    }

    async fn await_online(&self, client: &Client, patience: Duration) -> Result<(), EngineError> {
        let wait = async {
            while !self.own_member(client).await.is_ok_and(|m| is_online(&m)) {
                sleep(EAGER_POLL).await;
            }
        };
        timeout(patience, wait)
            .await
            .map_err(|_| EngineError::Patience { what: "coming online in the cluster", after: patience })
    }

    fn joined(&self) -> Result<(), EngineError> {
        if self.journal.read() != Phase::Member {
            self.write_journal(Phase::Member)?;
            self.handle.note("engine: a member and online");
        }
        Ok(())
    }

    fn was_removed(&self) -> Result<(), EngineError> {
        if self.journal.read() != Phase::Removed {
            self.handle.note("engine: no longer a member of its cluster");
            self.write_journal(Phase::Removed)?;
        }
        self.set(EngineState::Waiting, Some("was removed from its cluster; waits for a join token".into()));
        Ok(())
    }

    /// Refreshes the state, unless somebody is changing it.
    async fn look(&self, client: &Client) {
        if let Ok(_settled) = self.forming.try_lock() {
            self.look_now(client).await;
        }
    }

    async fn look_now(&self, client: &Client) {
        match self.ask_server(client).await {
            Err(Error::Connect { .. }) => {
                self.set(EngineState::Starting, Some("the engine does not run".into()));
            }
            Err(e) => self.set(EngineState::Offline, Some(chain(&e))),
            Ok(server) => {
                self.learn(&server);
                if server.environment.server_clustered {
                    self.look_at_member(client).await;
                } else if matches!(self.journal.read(), Phase::Member | Phase::Removed) {
                    if let Err(e) = self.was_removed() {
                        self.set(EngineState::Failed, Some(chain(&e)));
                    }
                } else if self.status().state != EngineState::Waiting {
                    self.set(EngineState::Waiting, Some("waits for a join token".into()));
                }
            }
        }
    }

    async fn look_at_member(&self, client: &Client) {
        match self.own_member(client).await {
            Ok(m) if is_online(&m) => {
                if let Err(e) = self.joined() {
                    self.handle.warn(chain(&e));
                }
                self.set(EngineState::Online, None);
            }
            Ok(m) if m.status == "Evacuated" => self.set(EngineState::Evacuated, None),
            Ok(m) => self.set(EngineState::Offline, Some(m.message).filter(|s| !s.is_empty())),
            Err(e) => self.set(EngineState::Offline, Some(chain(&e))),
        }
    }
}

fn is_online(member: &Member) -> bool {
    member.status == "Online"
}

/// Whether a failed join has changed nothing on this server: the request itself was refused, or trust was.
fn untouched_by(error: &Error) -> bool {
    match error {
        Error::Api { .. } | Error::Connect { .. } => true,
        Error::Operation { message, .. } => {
            message.starts_with("Failed to setup cluster trust")
                || message.starts_with("Failed to update cluster trust")
        }
        _ => false,
    }
}

fn action_of(step: &plan::Step) -> &'static str {
    use plan::Step;
    match step {
        Step::SetConfig { .. } => "change the server's settings",
        Step::RemoveLeftover { .. } => "remove what is left of a storage pool",
        Step::WipeDisk { .. } => "take the unused pool off the storage disk",
        Step::CreatePool { .. } => "make the storage pool",
        Step::PatchPool { .. } => "change the storage pool",
        Step::DeletePool { .. } => "delete the storage pool of an earlier try",
        Step::CreateNetwork { .. } => "make the network",
        Step::PatchNetwork { .. } => "change the network",
        Step::DeleteNetwork { .. } => "delete the network of an earlier try",
        Step::CreateProject { .. } => "make the project",
        Step::PatchProject { .. } => "change the project",
        Step::CreateProfile { .. } => "make the profile",
        Step::PatchProfile { .. } => "change the profile",
        Step::Bootstrap { .. } => "begin the cluster",
    }
}
