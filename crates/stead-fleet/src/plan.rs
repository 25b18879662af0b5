//! From a cluster to the plan for it: ask, plan, check.
//!
//! Owns the order of these and their errors. Does not own where instances should be: that is `stead-placement`.

use crate::{
    facts::{self, FactsError},
    snapshot::snapshot,
};
use stead_incus::Client;
use stead_model::{Failure, FailureKind};
use stead_placement::{Plan, Policy, check, plan, snapshot::SnapshotError};

/// A plan for a cluster as it was a moment ago. The checker has agreed to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// SHA-256 of the cluster's certificate.
    pub fingerprint: String,
    /// The plan.
    pub plan: Plan,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The cluster cannot be asked.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// The engine's answers do not fit together.
    #[error("the cluster describes itself inconsistently")]
    Inconsistent(#[source] SnapshotError),
    /// The checker, which shares no code with the planner, refuses the plan.
    #[error("the plan breaks its own rules: {}", .0.join("; "))]
    Refused(Vec<String>),
}

impl Failure for PlanError {
    fn failure_kind(&self) -> FailureKind {
        match self {
            Self::Facts(source) => source.failure_kind(),
            Self::Inconsistent(_) => FailureKind::Failed,
            Self::Refused(_) => FailureKind::Internal,
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            Self::Facts(source) => source.hint(),
            _ => None,
        }
    }
}

/// Asks the cluster, and plans with what it answers.
///
/// # Errors
/// [`PlanError`].
pub async fn of_cluster(client: &Client, policy: &Policy) -> Result<Planned, PlanError> {
    let facts = facts::gather(client).await?;
    let snapshot = snapshot(&facts);
    let plan = plan(&snapshot, policy).map_err(PlanError::Inconsistent)?;
    check(&snapshot, policy, &plan)
        .map_err(|faults| PlanError::Refused(faults.iter().map(ToString::to_string).collect()))?;
    Ok(Planned { fingerprint: facts.fingerprint, plan })
}
