//! The engine on this node: waits for its API, initialises or joins, hands out tokens, tells its state.
//!
//! Owns what the agent asks of the engine and tells of it. Below it, bootstrap ([`bootstrap`]: observe -> plan -> apply,
//! [`plan`]) and what becomes of it when power fails half-way ([`journal`], [`reset`]). Does not own the daemon itself: that
//! is a service of the image.
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
mod bootstrap;
mod cluster;
mod daemon;
mod disk;
mod journal;
mod plan;
mod preseed;
mod reset;

use crate::handle::Handle;
use journal::{Journal, Phase};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use stead_incus::{Client, Dialect, Endpoint, Error, requests, types::Member, types::Server};
use stead_model::{
    NodeName,
    agent::{EngineState, EngineStatus, EventKind, InstanceStatus, Token},
    node::EngineSpec,
};
use tokio::{
    sync::Mutex as AsyncMutex,
    time::{sleep, timeout},
};

/// While the engine starts or forms, every millisecond counts and asking costs little.
const EAGER_POLL: Duration = Duration::from_millis(4);
/// Otherwise: fresh enough for a person, cheap enough for ever.
const WATCH_POLL: Duration = Duration::from_secs(1);
/// An engine that has lost its quorum never answers; a healthy one takes milliseconds.
const WATCH_TIMEOUT: Duration = Duration::from_secs(3);
/// Who asks for the state of now waits so long for a join to end; with two questions to the engine it stays within the ten
/// seconds that a request to the agent is given.
const LOOK_PATIENCE: Duration = Duration::from_secs(3);
/// `join` waits so long for the API of an engine that is only just being started.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// A new member counts as online with its first heartbeat, at once as a rule, after ten seconds at the latest.
const ONLINE_PATIENCE: Duration = Duration::from_secs(30);

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
    #[error("{member:?} is a member already and {sign}")]
    AlreadyMember {
        /// Its name.
        member: String,
        /// How it shows that.
        sign: String,
    },
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
    /// The daemon died on the way and is not what it was.
    #[error("cannot {action}: the engine was killed meanwhile and {what} since")]
    Interrupted {
        /// What was under way.
        action: &'static str,
        /// What the engine does instead.
        what: &'static str,
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
    /// Held by whoever changes this engine's own membership.
    forming: AsyncMutex<()>,
    /// Held by whoever removes another member, which may outlive the request, or takes one back.
    removing: AsyncMutex<()>,
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
        // A unix socket needs no certificate, so nothing can be wrong with it.
        let client = Dialect::of(spec.kind).and_then(|d| Client::new(d, Endpoint::Unix(socket.clone())).ok());
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
            removing: AsyncMutex::new(()),
        };
        if let Err(e) = manager.begin_anew_if_cut_short() {
            manager.handle.warn(format!("engine: cannot begin its first start: {}", chain(&e)));
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

    /// The state as the engine says now; as last known while it is being formed.
    pub async fn status_now(&self) -> EngineStatus {
        if let Some(client) = &self.client
            && let Ok(_settled) = timeout(LOOK_PATIENCE, self.forming.lock()).await
        {
            self.look_now(client).await;
        }
        self.status()
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
                self.handle.note(EventKind::Engine, format!("engine: join failed: {}", chain(&e)));
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
        let client = self.client()?;
        let _one_at_a_time = self.removing.lock().await;
        cluster::remove(client, member.as_str(), force).await
    }

    /// Takes a member back whose removal was begun, by this node (then its end is waited for) or another: one that is
    /// evacuated is restored. A member that is not there succeeds: it was removed.
    ///
    /// # Errors
    /// The engine refuses or does not answer.
    pub async fn restore_member(&self, member: &NodeName) -> Result<(), EngineError> {
        let client = self.client()?;
        let _one_at_a_time = self.removing.lock().await;
        cluster::restore(client, member.as_str()).await
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
    async fn ask_server(&self, client: &Client) -> Result<Server, Error> {
        client.fetch(&requests::server::get().within(WATCH_TIMEOUT)).await
    }
    async fn own_member(&self, client: &Client) -> Result<Member, Error> {
        client.fetch(&requests::cluster::member(self.node.as_str()).within(WATCH_TIMEOUT)).await
    }

    fn joined(&self) -> Result<(), EngineError> {
        if self.journal.read() != Phase::Member {
            self.write_journal(Phase::Member)?;
            self.handle.note(EventKind::Engine, "engine: a member and online");
        }
        Ok(())
    }

    fn was_removed(&self) -> Result<(), EngineError> {
        if self.journal.read() != Phase::Removed {
            self.handle.note(EventKind::Engine, "engine: no longer a member of its cluster");
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
