//! Brings a started daemon to be a member of a cluster, or to wait for a token; also after an interruption at any
//! point.

use super::{
    EAGER_POLL, Incus, IncusError, ONLINE_PATIENCE, WATCH_TIMEOUT, act, chain, daemon, engine, is_online,
    journal::Phase,
    plan,
    preseed::{self, Preseed},
    reset,
    scalars::Readings,
    step,
};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use stead_incus::{Error, JoinToken, requests, requests::cluster::Join, types::Server};
use stead_model::{
    agent::{EngineState, EventKind},
    node::EngineRole,
};
use tokio::time::{Instant, sleep, timeout};

/// A half-formed engine that makes no progress for this long is reset; the next attempt gets twice as long. Under
/// emulation a daemon takes 30 s from its start to its first answer.
const HALF_FORMED_PATIENCE: Duration = Duration::from_secs(45);
/// Pause after a failure: the first and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
/// What the engine answers to so many attempts in a row, word by word, it answers for good.
const SAME_ANSWERS: u32 = 3;

impl Incus {
    fn attached_device(&self) -> Result<Option<PathBuf>, IncusError> {
        match (&self.spec.storage_disk, self.device()) {
            (Some(serial), None) => Err(IncusError::NoDisk(serial.clone())),
            (_, device) => Ok(device),
        }
    }
    fn wanted(&self, server: &Server, device: Option<&Path>) -> Result<Preseed, IncusError> {
        let source = device.map(|d| d.to_string_lossy().into_owned());
        let readings = Readings::of(self.client.dialect(), &server.environment.server_version);
        Ok(preseed::wanted(&self.spec, source.as_deref(), readings)?)
    }

    /// Notes that the first start is still to come. The remains of an interrupted first start are removed, since the
    /// daemon may wait for ever on its half-made state. To be called while the daemon does not run. Blocks.
    pub(super) fn begin_anew_if_cut_short(&self) -> Result<(), IncusError> {
        let journal = |source| IncusError::Journal { directory: self.directory.clone(), source };
        self.journal.note_first_start().map_err(journal)?;
        if self.journal.read() == Phase::Starting && self.directory.join("database").exists() {
            self.handle.note(EventKind::Engine, "engine: the first start was interrupted: starting over");
            reset::discard(&self.directory)?;
        }
        Ok(())
    }

    /// Runs until the engine is settled: a member, or waiting for a token.
    pub(super) async fn bootstrap(&self) {
        let (mut pause, mut patience) = (RETRY.0, HALF_FORMED_PATIENCE);
        let (mut last, mut same) = (String::new(), 0);
        loop {
            match self.settle(&mut patience).await {
                Ok(()) => return,
                Err(e) => {
                    let why = chain(&e);
                    if why == last {
                        same += 1;
                    } else {
                        (last, same) = (why.clone(), 1);
                        self.handle.note(EventKind::Engine, format!("engine: {why}"));
                    }
                    if e.is_final() || e.is_answer() && same >= SAME_ANSWERS {
                        self.set_refused(why);
                        // Whoever removes the cause runs `up` again, which should not see the old answer.
                        pause = RETRY.0;
                    } else {
                        self.set(EngineState::Failed, Some(why));
                    }
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }

    async fn settle(&self, patience: &mut Duration) -> Result<(), IncusError> {
        let _forming = self.forming.lock().await;
        while self.is_unfinished() {
            let what = tokio::select! {
                () = self.await_formed() => break,
                what = daemon::comes_to_nothing(&self.directory, *patience) => what,
            };
            *patience *= 2;
            self.handle
                .note(EventKind::Engine, format!("engine: it was interrupted and {what}: starting over"));
            self.put_away().await?;
        }
        let server = self.await_api(Duration::MAX).await?;
        if server.environment.server_clustered {
            // Once it has been a member, the watch reports whether it is online.
            if self.is_unfinished() {
                self.await_online(ONLINE_PATIENCE).await?;
            }
            return self.joined().await;
        }
        match (self.spec.role, self.journal.read()) {
            (_, Phase::Joining) => {
                // Its database may contain any part of a join; a fresh one takes a second.
                self.handle.note(EventKind::Engine, "engine: a join was interrupted: starting over");
                self.put_away().await?;
                self.await_api(Duration::MAX).await?;
                self.await_token().await
            }
            (_, Phase::Member | Phase::Removed) => self.was_removed().await,
            (EngineRole::Init, _) => self.initialise(&server).await,
            _ => self.await_token().await,
        }
    }

    async fn await_token(&self) -> Result<(), IncusError> {
        if self.journal.read() == Phase::Removed {
            return self.was_removed().await;
        }
        self.write_journal(Phase::Fresh).await?;
        self.set(EngineState::Waiting, Some("waits for a join token".into()));
        Ok(())
    }

    /// Whether bootstrap was begun, by the engine or by us, and has not succeeded yet.
    pub(super) fn is_unfinished(&self) -> bool {
        matches!(self.journal.read(), Phase::Starting | Phase::Initialising | Phase::Joining)
    }

    /// Resets the engine to an untouched one; the supervisor starts it.
    async fn put_away(&self) -> Result<(), IncusError> {
        // A first node that joins was removed before, and must not form a cluster of its own now.
        let then = match (self.spec.role, self.journal.read()) {
            (EngineRole::Init, Phase::Joining) => Phase::Removed,
            _ => Phase::Starting,
        };
        reset::reset(&self.socket, &self.directory).await?;
        self.write_journal(then).await
    }

    /// Waits for the result of an interrupted bootstrap: not clustered, or a member and online.
    async fn await_formed(&self) {
        loop {
            if let Ok(server) = self.ask_server().await {
                if !server.environment.server_clustered {
                    return;
                }
                if self.own_member().await.is_ok_and(|m| is_online(&m)) {
                    return;
                }
            }
            sleep(EAGER_POLL * 10).await;
        }
    }

    async fn initialise(&self, server: &Server) -> Result<(), IncusError> {
        self.set(EngineState::Forming, None);
        let device = self.attached_device()?;
        let wanted = self.wanted(server, device.as_deref())?;
        let observed = act::observe(&self.client, server, device.as_deref(), &self.directory)
            .await
            .map_err(step("look at the engine"))?;
        let steps = plan::init(&wanted, self.node.as_str(), &observed)?;
        self.write_journal(Phase::Initialising).await?;
        self.handle.note(EventKind::Engine, "engine: initialising");
        for s in &steps {
            let done = self.beside_linking(device.as_deref(), act::apply(&self.client, s)).await;
            if let Err(e) = done {
                let broken = matches!(s, plan::Step::Bootstrap { .. });
                if broken {
                    self.put_away().await?;
                }
                return Err(IncusError::Step { action: action_of(s), source: e });
            }
        }
        self.await_online(ONLINE_PATIENCE).await?;
        self.joined().await
    }

    pub(super) async fn join_with(&self, server: &Server, text: &str) -> Result<(), IncusError> {
        let token = JoinToken::decode(text)?;
        if token.server_name != self.node.as_str() {
            return Err(IncusError::OtherName { wanted: token.server_name, node: self.node.to_string() });
        }
        self.set(EngineState::Forming, None);
        let device = self.attached_device()?;
        let wanted = self.wanted(server, device.as_deref())?;
        let (_, certificate) = tokio::try_join!(self.clear_way(server), async {
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
        self.write_journal(Phase::Joining).await?;
        self.handle.note(EventKind::Engine, "engine: joining");
        let joined = tokio::select! {
            joined = self.beside_linking(device.as_deref(), self.client.join_cluster(&join)) => {
                joined.map_err(|e| (left_by(&e), engine("join")(e)))
            }
            what = daemon::interrupted_for_good(&self.directory, HALF_FORMED_PATIENCE) => {
                Err((Left::HalfFormed, IncusError::Interrupted { action: "join", what }))
            }
        };
        if let Err((left, e)) = joined {
            let a_member = left == Left::Unknown && self.is_member_after_all().await;
            match left {
                _ if a_member => {}
                Left::Untouched => self.write_journal(before).await?,
                Left::Unknown | Left::HalfFormed => self.put_away().await?,
            }
            if !a_member {
                return Err(e);
            }
        }
        let mut own = wanted.member_settings();
        own.retain(|k, v| {
            k != "cluster.https_address" && !(k == "core.https_address" && v == server_address)
        });
        if !own.is_empty() {
            self.client
                .run(&requests::server::patch_config(&own), WATCH_TIMEOUT)
                .await
                .map_err(engine("change the member's own settings"))?;
        }
        Ok(())
    }

    /// Whether an engine whose join was not answered becomes an online member.
    async fn is_member_after_all(&self) -> bool {
        tokio::select! {
            () = self.await_formed() => {
                self.ask_server().await.is_ok_and(|s| s.environment.server_clustered)
            }
            _ = daemon::comes_to_nothing(&self.directory, HALF_FORMED_PATIENCE) => false,
        }
    }

    /// Removes the remains of an earlier attempt that would prevent a join.
    async fn clear_way(&self, server: &Server) -> Result<(), IncusError> {
        let device = self.device();
        let observed = act::observe(&self.client, server, device.as_deref(), &self.directory)
            .await
            .map_err(step("look at the engine"))?;
        for s in plan::before_join(&observed)? {
            act::apply(&self.client, &s).await.map_err(step(action_of(&s)))?;
        }
        Ok(())
    }

    /// Does `work`, and makes the storage disk's link meanwhile, as soon as possible.
    async fn beside_linking<T>(&self, device: Option<&Path>, work: impl Future<Output = T>) -> T {
        match device {
            None => work.await,
            Some(device) => tokio::select! {
                done = work => done,
                never = act::link_when_formatted(device, &self.dev) => match never {},
            },
        }
    }

    /// Waits until the API answers; returns the server's description.
    pub(super) async fn await_api(&self, patience: Duration) -> Result<Server, IncusError> {
        let begun = Instant::now();
        loop {
            match self.ask_server().await {
                Ok(server) => {
                    self.learn(&server);
                    return Ok(server);
                }
                Err(e) if begun.elapsed() > patience => {
                    return Err(IncusError::Engine { action: "wait for the engine's API", source: e });
                }
                Err(Error::Timeout { .. }) if self.journal.read() == Phase::Member => {
                    self.set(EngineState::Offline, Some("the engine does not answer: no quorum?".into()));
                }
                Err(_) => {}
            }
            sleep(EAGER_POLL).await;
        }
    }

    pub(super) async fn await_online(&self, patience: Duration) -> Result<(), IncusError> {
        let wait = async {
            while !self.own_member().await.is_ok_and(|m| is_online(&m)) {
                sleep(EAGER_POLL).await;
            }
        };
        timeout(patience, wait)
            .await
            .map_err(|_| IncusError::Patience { what: "coming online in the cluster", after: patience })
    }
}

/// State of this server after a failed join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// Unchanged: the request or the trust was refused.
    Untouched,
    /// Unknown: the join was not answered.
    Unknown,
    /// Changed, but not a member.
    HalfFormed,
}

fn left_by(error: &Error) -> Left {
    match error {
        Error::Api { .. } => Left::Untouched,
        Error::Operation { message, .. }
            if message.starts_with("Failed to setup cluster trust")
                || message.starts_with("Failed to update cluster trust") =>
        {
            Left::Untouched
        }
        Error::Connect { .. } | Error::Http { .. } | Error::Timeout { .. } | Error::OutcomeUnknown { .. } => {
            Left::Unknown
        }
        _ => Left::HalfFormed,
    }
}

fn action_of(step: &plan::Step) -> &'static str {
    use plan::Step;
    match step {
        Step::SetConfig { .. } => "change the server's settings",
        Step::RemoveLeftover { .. } => "remove the remains of a storage pool",
        Step::WipeDisk { .. } => "wipe the unused pool from the storage disk",
        Step::CreatePool { .. } => "make the storage pool",
        Step::PatchPool { .. } => "change the storage pool",
        Step::DeletePool { .. } => "delete the storage pool of an earlier attempt",
        Step::CreateNetwork { .. } => "make the network",
        Step::PatchNetwork { .. } => "change the network",
        Step::DeleteNetwork { .. } => "delete the network of an earlier attempt",
        Step::CreateProject { .. } => "make the project",
        Step::PatchProject { .. } => "change the project",
        Step::CreateProfile { .. } => "make the profile",
        Step::PatchProfile { .. } => "change the profile",
        Step::Bootstrap { .. } => "form the cluster",
    }
}
