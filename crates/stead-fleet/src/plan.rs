//! From a cluster to the plan for it: ask, plan, check.
//!
//! Owns the order of these and their errors. Does not own where instances should be: that is `stead-placement`.

use crate::{
    facts::{self, Asking, FactsError},
    shell::{NoShell, Shell},
    size::{self, Images, Sizes},
    snapshot::{Learned, id_of, with_learned},
};
use stead_incus::{Client, Error};
use stead_model::{Failure, FailureKind};
use stead_placement::{Plan, Policy, check, plan, snapshot::SnapshotError};

/// How often a plan is made anew because the sizes of the instances it moves became known.
const ROUNDS: usize = 4;

/// A plan for a cluster as it was a moment ago. The checker has agreed to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// SHA-256 of the cluster's certificate.
    pub fingerprint: String,
    /// The plan.
    pub plan: Plan,
}

/// How the cluster is looked at.
#[derive(Clone, Copy)]
pub struct Sight<'a> {
    /// How it is asked.
    pub asking: Asking<'a>,
    /// A way to run programs on members.
    pub shell: &'a dyn Shell,
    /// Members that refused instances before.
    pub learned: &'a Learned,
}

impl std::fmt::Debug for Sight<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sight").field("asking", &self.asking).finish_non_exhaustive()
    }
}

impl Sight<'_> {
    /// By its API alone.
    pub const PLAIN: Self = Self { asking: Asking::QUIETLY, shell: &NoShell, learned: &Learned::new() };
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The cluster cannot be asked.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// The sizes of instances cannot be asked for.
    #[error("cannot ask the cluster for the sizes of instances")]
    Size(#[source] Box<Error>),
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
            Self::Size(source) => source.failure_kind(),
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

/// Asks the cluster, and plans with what it answers. Sizes that the engine does not report are asked for, of the instances
/// that the plan moves.
///
/// # Errors
/// [`PlanError`].
pub async fn of_cluster(client: &Client, policy: &Policy, sight: Sight<'_>) -> Result<Planned, PlanError> {
    let facts = facts::gather(client, sight.asking).await?;
    let (mut sizes, mut images) = (Sizes::new(), Images::new());
    let mut rounds = 0;
    let (snapshot, plan) = loop {
        let snapshot = with_learned(&facts, &sizes, sight.learned);
        let plan = plan(&snapshot, policy).map_err(PlanError::Inconsistent)?;
        let unknown: Vec<_> = plan
            .moves
            .iter()
            .filter(|m| m.size_mib.is_none() && !sizes.contains_key(&m.instance))
            .map(|m| m.instance.clone())
            .collect();
        rounds += 1;
        if unknown.is_empty() || rounds > ROUNDS {
            break (snapshot, plan);
        }
        for instance in facts.instances.iter().filter(|i| unknown.contains(&id_of(i))) {
            let size = size::ask(client, &facts, sight.shell, &mut images, instance).await;
            sizes.insert(id_of(instance), size.map_err(|e| PlanError::Size(Box::new(e)))?);
        }
    };
    check(&snapshot, policy, &plan)
        .map_err(|faults| PlanError::Refused(faults.iter().map(ToString::to_string).collect()))?;
    Ok(Planned { fingerprint: facts.fingerprint, plan })
}
