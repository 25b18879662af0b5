//! What a cluster's API reports: asked in one go, kept in the engine's words.
//!
//! Owns the requests. Does not own what the answers mean for placement: that is [`crate::snapshot`].

use futures_util::{StreamExt, TryStreamExt, stream};
use stead_incus::{
    Client, Error, Feature,
    types::{Instance, Member, MemberState, Network, Resources, StoragePool},
};
use stead_model::{Failure, FailureKind};

/// How many members are asked at the same time: each request is forwarded to the member, over few connections.
const AT_ONCE: usize = 8;

/// A member and what it reports.
#[derive(Debug, Clone)]
pub struct MemberFacts {
    /// As the cluster has it.
    pub member: Member,
    /// None when it is offline.
    pub resources: Option<Resources>,
    /// None when it is offline, or the server does not support the request.
    pub state: Option<MemberState>,
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
    /// Their pools.
    pub pools: Vec<StoragePool>,
    /// Networks of all projects.
    pub networks: Vec<Network>,
    /// Instances of all projects, with their states.
    pub instances: Vec<Instance>,
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
            Self::Untrusted(_) => FailureKind::Failed,
            Self::Ask { source, .. } => source.failure_kind(),
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            Self::NotClustered(_) => None,
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
/// [`FactsError`]. A member that the cluster lists as offline is not an error; one that it lists as online but that does not
/// answer is.
pub async fn gather(client: &Client) -> Result<Facts, FactsError> {
    let server = client.server().await.map_err(asked("server information"))?.value;
    if server.auth != "trusted" {
        return Err(FactsError::Untrusted(client.endpoint().to_string()));
    }
    if !server.environment.server_clustered {
        return Err(FactsError::NotClustered(client.endpoint().to_string()));
    }
    let has_state = client.has(Feature::MemberState).await.map_err(asked("API extensions"))?;
    let listed = client.members().await.map_err(asked("members"))?;
    let members = stream::iter(listed)
        .map(|member| async move {
            let name = member.server_name.clone();
            if member.status == "Offline" {
                return Ok(MemberFacts { member, resources: None, state: None });
            }
            let resources = client.resources(Some(&name)).await.map_err(asked("members' resources"))?;
            let state = match has_state {
                true => Some(client.member_state(&name).await.map_err(asked("members' states"))?),
                false => None,
            };
            Ok::<_, FactsError>(MemberFacts { member, resources: Some(resources), state })
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    let mut networks = Vec::new();
    for project in client.projects().await.map_err(asked("projects"))? {
        // Projects without networks of their own list those of the default project; duplicates do no harm.
        networks.extend(client.networks(&project.name).await.map_err(asked("networks"))?);
    }
    Ok(Facts {
        fingerprint: server.environment.certificate_fingerprint.clone(),
        virtual_machines: server.environment.driver.contains("qemu"),
        refresh_migration: client.has(Feature::RefreshMigration).await.map_err(asked("API extensions"))?,
        members,
        pools: client.storage_pools().await.map_err(asked("storage pools"))?,
        networks,
        instances: client.instances().await.map_err(asked("instances"))?,
    })
}
