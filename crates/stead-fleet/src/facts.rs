//! What a cluster's API says of it: asked in one go, kept as the engine said it.
//!
//! Owns the questions. Does not own what the answers mean for placement: that is [`crate::snapshot`].

use futures_util::{StreamExt, TryStreamExt, stream};
use stead_incus::{
    Client, Error, Feature,
    types::{Instance, Member, MemberState, Network, Resources, StoragePool},
};
use stead_model::{Failure, FailureKind};

/// Members asked at the same time: each question is passed on to the member, and a cluster has few connections for that.
const AT_ONCE: usize = 8;

/// A member and what it says of itself.
#[derive(Debug, Clone)]
pub struct MemberFacts {
    /// As the cluster has it.
    pub member: Member,
    /// None: it is offline.
    pub resources: Option<Resources>,
    /// None: it is offline, or the server cannot say.
    pub state: Option<MemberState>,
}

/// A cluster.
#[derive(Debug, Clone)]
pub struct Facts {
    /// SHA-256 of the certificate of its API, which all members share: what tells it from other clusters.
    pub fingerprint: String,
    /// Whether it runs virtual machines, as far as the member that answered says.
    pub virtual_machines: bool,
    /// Whether running containers can be moved by copies of what has changed.
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

/// Why a cluster cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// The server is a single one.
    #[error("the server at {0} is not in a cluster, so there is nowhere to move instances to")]
    NotClustered(String),
    /// The server does not trust us.
    #[error("the server at {0} does not trust this client")]
    Untrusted(String),
    /// A question was not answered.
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

/// Asks.
///
/// # Errors
/// [`FactsError`]. A member that the cluster knows to be offline is no error; one that it takes for online and that does not
/// answer is.
pub async fn gather(client: &Client) -> Result<Facts, FactsError> {
    let server = client.server().await.map_err(asked("server information"))?.value;
    if server.auth != "trusted" {
        return Err(FactsError::Untrusted(client.endpoint().to_string()));
    }
    if !server.environment.server_clustered {
        return Err(FactsError::NotClustered(client.endpoint().to_string()));
    }
    let has_state = client.has(Feature::MemberState).await.map_err(asked("abilities"))?;
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
        // Projects without networks of their own show those of the default project: twice the same does no harm.
        networks.extend(client.networks(&project.name).await.map_err(asked("networks"))?);
    }
    Ok(Facts {
        fingerprint: server.environment.certificate_fingerprint.clone(),
        virtual_machines: server.environment.driver.contains("qemu"),
        refresh_migration: client.has(Feature::RefreshMigration).await.map_err(asked("abilities"))?,
        members,
        pools: client.storage_pools().await.map_err(asked("storage pools"))?,
        networks,
        instances: client.instances().await.map_err(asked("instances"))?,
    })
}
