//! What a cluster's API reports: asked in one go, kept in the engine's words.
//!
//! Owns the requests. Does not own what the answers mean for placement: that is [`crate::snapshot`].

use crate::{
    ground::Ground,
    power::is_evacuated,
    quorum::{self, Known, KnownMember, NoQuorum},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::{
    path::Path,
    time::{Duration, Instant},
};
use stead_incus::{
    Client, Error, Feature,
    types::{Instance, Member, MemberState, Resources},
};
use stead_model::{Failure, FailureKind};
use tokio::time::sleep;

/// How many members are asked at the same time: each request is forwarded to the member, over few connections.
const AT_ONCE: usize = 8;

/// After this long without an answer the user is told who does not answer, and the members themselves are asked.
const SILENCE: Duration = Duration::from_millis(1500);

/// How often the cluster is asked whether a silent member is offline by now: after 20 s without a heartbeat it is.
const LOOK: Duration = Duration::from_secs(1);

/// How long a member may take that the cluster lists as online.
const PATIENCE: Duration = Duration::from_secs(60);

/// The same for an evacuated member, which is never listed as offline and may well be switched off.
const REBOOT: Duration = Duration::from_secs(10);

/// A member and what it reports.
#[derive(Debug, Clone)]
pub struct MemberFacts {
    /// As the cluster has it.
    pub member: Member,
    /// None when it does not answer.
    pub resources: Option<Resources>,
    /// None when it does not answer, or the server does not support the request.
    pub state: Option<MemberState>,
}

impl MemberFacts {
    /// Whether it answers.
    pub fn answers(&self) -> bool {
        self.resources.is_some()
    }
}

/// A cluster.
#[derive(Debug, Clone)]
pub struct Facts {
    /// SHA-256 of the certificate that all its members share: the identity of the cluster.
    pub fingerprint: String,
    /// Whether the member that answered runs virtual machines.
    pub virtual_machines: bool,
    /// Whether running containers can be moved by copying what has changed.
    pub refresh_migration: bool,
    /// Its members.
    pub members: Vec<MemberFacts>,
    /// What they have that instances need.
    pub ground: Ground,
    /// Instances of all projects, with their states.
    pub instances: Vec<Instance>,
}

impl Facts {
    /// The members, as the cluster has them.
    pub fn all_members(&self) -> Vec<&Member> {
        self.members.iter().map(|m| &m.member).collect()
    }
    /// A member, as the cluster has it.
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().map(|m| &m.member).find(|m| m.server_name == name)
    }
}

/// How a cluster is asked.
#[derive(Clone, Copy)]
pub struct Asking<'a> {
    /// Where the members of clusters are remembered, so that they can be named when the cluster cannot name them. None:
    /// nowhere.
    pub memory: Option<&'a Path>,
    /// Is told, in words, who is waited for.
    pub tell: &'a dyn Fn(String),
}

impl std::fmt::Debug for Asking<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asking").field("memory", &self.memory).finish_non_exhaustive()
    }
}

impl Asking<'_> {
    /// Remembers nothing and says nothing.
    pub const QUIETLY: Self = Self { memory: None, tell: &|_| {} };
}

/// Why a cluster could not be observed.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// The server is not in a cluster.
    #[error("the server at {0} is not in a cluster, so there is nowhere to move instances to")]
    NotClustered(String),
    /// The server does not trust us.
    #[error("the server at {0} does not trust this client")]
    Untrusted(String),
    /// Its database has no majority.
    #[error(transparent)]
    NoQuorum(#[from] NoQuorum),
    /// A request failed.
    #[error("cannot ask the cluster for its {what}")]
    Ask {
        /// What was asked for.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<Error>,
    },
}

/// Which cluster was meant is part of the request.
impl Failure for FactsError {
    fn failure_kind(&self) -> FailureKind {
        match self {
            Self::NotClustered(_) => FailureKind::BadInput,
            Self::Untrusted(_) | Self::NoQuorum(_) => FailureKind::Failed,
            Self::Ask { source, .. } => source.failure_kind(),
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            Self::NotClustered(_) => None,
            Self::NoQuorum(source) => source.hint(),
            Self::Untrusted(_) => {
                Some("`stead fleet trust NAME` takes a token that one of its members makes".into())
            }
            Self::Ask { source, .. } => source.hint(),
        }
    }
}

fn asked(what: &'static str) -> impl Fn(Error) -> FactsError {
    move |e| FactsError::Ask { what, source: Box::new(e) }
}

/// Asks a cluster for everything a snapshot needs.
///
/// # Errors
/// [`FactsError`]. A member that does not answer is not an error, as long as the others have a majority: it counts as
/// offline.
pub async fn gather(client: &Client, asking: Asking<'_>) -> Result<Facts, FactsError> {
    let server = client.server_info().await.map_err(asked("server information"))?;
    if server.auth != "trusted" {
        return Err(FactsError::Untrusted(client.endpoint().to_string()));
    }
    if !server.environment.server_clustered {
        return Err(FactsError::NotClustered(client.endpoint().to_string()));
    }
    let fingerprint = server.environment.certificate_fingerprint.clone();
    let known = asking.memory.map(|directory| Known::of(directory, &fingerprint));
    let listed = listed(client, known.as_ref(), asking).await?;
    if let Some(known) = &known {
        let members = listed.iter().map(KnownMember::of).collect();
        // It only helps to name members later.
        let _ = known.remember(members);
    }
    let has_state = client.has(Feature::MemberState).await.map_err(asked("API extensions"))?;
    let members: Vec<MemberFacts> = stream::iter(listed)
        .map(|member| of_member(client, member, has_state, asking))
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    let instances = client.instances();
    tokio::pin!(instances);
    let instances = tokio::select! {
        listed = &mut instances => listed,
        () = sleep(SILENCE) => {
            for silent in members.iter().filter(|m| !m.answers()) {
                (asking.tell)(format!("{} does not answer: its instances are waited for", silent.member.server_name));
            }
            instances.await
        }
    };
    let instances = instances.map_err(asked("instances"))?;
    let answering: Vec<&str> =
        members.iter().filter(|m| m.answers()).map(|m| m.member.server_name.as_str()).collect();
    let ground = Ground::gather(client, &answering, &instances.iter().collect::<Vec<_>>()).await;
    Ok(Facts {
        fingerprint,
        virtual_machines: server.environment.driver.contains("qemu"),
        refresh_migration: client.has(Feature::RefreshMigration).await.map_err(asked("API extensions"))?,
        ground: ground.map_err(asked("pools, volumes and networks"))?,
        members,
        instances,
    })
}

/// The members. The first request that needs the database: without a majority it is refused late, or never answered.
async fn listed(
    client: &Client,
    known: Option<&Known>,
    asking: Asking<'_>,
) -> Result<Vec<Member>, FactsError> {
    let members = client.members();
    tokio::pin!(members);
    let early = tokio::select! {
        listed = &mut members => Some(listed),
        () = sleep(SILENCE) => None,
    };
    let listed = match early {
        Some(Ok(listed)) => return Ok(listed),
        Some(Err(e)) => Err(e),
        None => {
            // It may only be slow: it is waited for while the members are asked.
            let probed = async {
                let found = quorum::probe(client, known).await;
                match found.is_lost() {
                    true => found,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                listed = &mut members => listed,
                lost = probed => return Err(NoQuorum::from(lost).into()),
                never = waiting(known, asking) => match never {},
            }
        }
    };
    match listed {
        Ok(listed) => Ok(listed),
        Err(e) => {
            let found = quorum::probe(client, known).await;
            match found.is_lost() {
                true => Err(NoQuorum::from(found).into()),
                false => Err(asked("members")(e)),
            }
        }
    }
}

/// Says once that the database is waited for.
async fn waiting(known: Option<&Known>, asking: Asking<'_>) -> std::convert::Infallible {
    let names = known.map(Known::names).unwrap_or_default();
    let of = if names.is_empty() { String::new() } else { format!(" of {}", names.join(", ")) };
    (asking.tell)(format!("waiting for the cluster's database: a majority{of} must be online"));
    std::future::pending().await
}

/// What a member reports, unless it is offline, or becomes so before it answers.
async fn of_member(
    client: &Client,
    member: Member,
    has_state: bool,
    asking: Asking<'_>,
) -> Result<MemberFacts, FactsError> {
    let name = member.server_name.clone();
    if member.status == "Offline" {
        return Ok(MemberFacts { member, resources: None, state: None });
    }
    let answered = async {
        loop {
            match report(client, &name, has_state).await {
                // The one that was asked does not reach it: the heartbeats will show whether it is gone.
                Err(e) if e.is_silence() || e.code().is_some_and(|code| code >= 500) => sleep(LOOK).await,
                done => return done,
            }
        }
    };
    let gone = async {
        sleep(SILENCE).await;
        (asking.tell)(format!("waiting for {name}, which does not answer"));
        let deadline = Instant::now() + if is_evacuated(&member) { REBOOT } else { PATIENCE };
        while Instant::now() < deadline && !is_offline(client, &name).await {
            sleep(LOOK).await;
        }
    };
    tokio::select! {
        reported = answered => {
            let (resources, state) = reported.map_err(asked("members' resources"))?;
            Ok(MemberFacts { member, resources: Some(resources), state })
        }
        () = gone => Ok(MemberFacts { member, resources: None, state: None }),
    }
}

async fn report(
    client: &Client,
    name: &str,
    has_state: bool,
) -> Result<(Resources, Option<MemberState>), Error> {
    let resources = client.resources(Some(name)).await?;
    let state = match has_state {
        true => Some(client.member_state(name).await?),
        false => None,
    };
    Ok((resources, state))
}

async fn is_offline(client: &Client, name: &str) -> bool {
    client.member(name).await.is_ok_and(|m| m.value.status == "Offline")
}
