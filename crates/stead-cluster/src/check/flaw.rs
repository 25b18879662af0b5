//! Flaws of plans.

use crate::plan::StepId;
use stead_model::NodeName;

/// A flaw of a plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // The fields are the step, and the nodes that its message names.
pub enum Flaw {
    /// A number is used twice.
    #[error("two steps have the number {step}")]
    SameNumber { step: StepId },
    /// A step waits for a missing step.
    #[error("step {step} waits for step {on}, which is not in the plan")]
    WaitsForUnknown { step: StepId, on: StepId },
    /// A step waits for a later one, or for itself.
    #[error("step {step} waits for step {on}, which does not come before it")]
    WaitsForLater { step: StepId, on: StepId },
    /// A node that is neither wanted nor exists.
    #[error("step {step} names {node}, which is not in the cluster file and does not exist")]
    UnknownNode { step: StepId, node: NodeName },
    /// An unwanted node is brought up.
    #[error("step {step} brings up {node}, which is not in the cluster file")]
    NotWanted { step: StepId, node: NodeName },
    /// A wanted node is removed.
    #[error("step {step} removes {node}, which is in the cluster file")]
    StillWanted { step: StepId, node: NodeName },
    /// There is no engine.
    #[error("step {step} concerns an engine, but the cluster has none")]
    NoEngine { step: StepId },
    /// The network does not become as desired.
    #[error("the plan does not bring the network to its desired state with exactly one step")]
    Network,
    /// A step may run before the network is as desired.
    #[error("step {step} does not wait for the network")]
    BeforeNetwork { step: StepId },
    /// Two steps of one machine could run at the same time.
    #[error("steps {first} and {second} concern the same machine, but neither waits for the other")]
    Unordered { first: StepId, second: StepId },
    /// A running machine is started.
    #[error("step {step} starts {node}, which is already running then")]
    StartsRunning { step: StepId, node: NodeName },
    /// No step waits for a started machine.
    #[error("step {step} starts {node}, and no later step waits for its agent or services")]
    NotAwaited { step: StepId, node: NodeName },
    /// A wanted node may not run at the end.
    #[error("{node} may not be running at the end")]
    NotRunning { node: NodeName },
    /// A wanted node runs with another configuration.
    #[error("{node} does not run with its desired configuration at the end")]
    NotAsWanted { node: NodeName },
    /// A machine that could be stopped cleanly is killed.
    #[error("step {step} kills {node}, which has data to lose")]
    KillsData { step: StepId, node: NodeName },
    /// Two clusters would be formed.
    #[error("step {step} initialises the engine's cluster a second time")]
    InitialisesTwice { step: StepId },
    /// A node boots for another role than it gets.
    #[error("step {step}: {node} does not boot for its role in forming the engine's cluster")]
    WrongRole { step: StepId, node: NodeName },
    /// A surviving cluster would be lost.
    #[error("step {step} forms a new engine cluster, although {node} has kept its state")]
    ForgetsState { step: StepId, node: NodeName },
    /// A step waits for a member that is not one.
    #[error("step {step} waits for {node} as a member, which it is not")]
    NoMember { step: StepId, node: NodeName },
    /// A member with its state would be removed to join again.
    #[error("step {step} removes the membership of {node}, which has not lost its state")]
    HasState { step: StepId, node: NodeName },
    /// A wanted node may not be in the engine's cluster at the end.
    #[error("{node} may not be an online member at the end")]
    NeverMember { node: NodeName },
    /// A removal that was not begun is undone.
    #[error("step {step} takes {node} back, although its removal was not begun")]
    NotLeaving { step: StepId, node: NodeName },
    /// An interrupted removal is not undone.
    #[error("the interrupted removal of {node} is not undone before other steps rely on it")]
    NotReadmitted { node: NodeName },
    /// A node would go through itself.
    #[error("step {step} goes through {node} itself")]
    ThroughItself { step: StepId, node: NodeName },
    /// A step goes through a node that may not be a member then.
    #[error("step {step} goes through {through}, which may not be an online member then")]
    ThroughNoMember { step: StepId, through: NodeName },
    /// Members are unnecessarily offline at the same time.
    #[error("step {step} stops {node} while {away} may not be an online member")]
    QuorumAtRisk { step: StepId, node: NodeName, away: NodeName },
    /// Membership changes while a member is restarted.
    #[error("step {step} changes the membership while {node} is restarted")]
    ChangesMeanwhile { step: StepId, node: NodeName },
    /// The plan does not check all members at its end.
    #[error("the plan does not wait at its end until all members are online at once")]
    NotSteady,
    /// An unwanted node stays.
    #[error("{node} is not in the cluster file and is not deleted")]
    NotDeleted { node: NodeName },
    /// A node is deleted without being stopped.
    #[error("step {step} deletes {node}, which was not stopped")]
    DeletesRunning { step: StepId, node: NodeName },
    /// A member is stopped permanently before it has left the engine's cluster.
    #[error("step {step} stops {node} permanently before it is evacuated and removed from the engine")]
    StopsMember { step: StepId, node: NodeName },
    /// A node is removed before the remaining ones are healthy.
    #[error("step {step} removes {node} before the remaining nodes are healthy")]
    RemovesTooEarly { step: StepId, node: NodeName },
}
