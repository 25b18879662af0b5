//! What is wrong with a plan.

use crate::plan::StepId;
use stead_model::NodeName;

/// What is wrong with a plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // The fields are the step, and the nodes that its message names.
pub enum Flaw {
    /// A number is used twice.
    #[error("two steps have the number {step}")]
    SameNumber { step: StepId },
    /// A wait for nothing.
    #[error("step {step} waits for step {on}, which is not in the plan")]
    WaitsForUnknown { step: StepId, on: StepId },
    /// Steps stand in an order in which nothing waits on itself.
    #[error("step {step} waits for step {on}, which does not stand before it")]
    WaitsForLater { step: StepId, on: StepId },
    /// A node that neither should be nor is.
    #[error("step {step} names {node}, which neither is in the cluster file nor exists")]
    UnknownNode { step: StepId, node: NodeName },
    /// A node that should not be is brought up.
    #[error("step {step} brings up {node}, which is not in the cluster file")]
    NotWanted { step: StepId, node: NodeName },
    /// A node that should be is removed.
    #[error("step {step} removes {node}, which is in the cluster file")]
    StillWanted { step: StepId, node: NodeName },
    /// There is no engine.
    #[error("step {step} is about an engine, and the cluster has none")]
    NoEngine { step: StepId },
    /// The network does not become what it should be.
    #[error("the network is not made what it should be, by one step")]
    Network,
    /// Something happens before the network is as it should be.
    #[error("step {step} does not wait for the network")]
    BeforeNetwork { step: StepId },
    /// Two steps of one machine could run at the same time.
    #[error("steps {first} and {second} are about the same machine and do not wait for each other")]
    Unordered { first: StepId, second: StepId },
    /// A machine that runs is started.
    #[error("step {step} starts {node}, which runs then")]
    StartsRunning { step: StepId, node: NodeName },
    /// Nobody waits for a machine that was started.
    #[error("step {step} starts {node}, and no later step waits for its agent or services")]
    NotAwaited { step: StepId, node: NodeName },
    /// A node that should be does not run at the end.
    #[error("{node} is not known to run at the end")]
    NotRunning { node: NodeName },
    /// A node that should be runs with something else.
    #[error("{node} does not run at the end with what it should run with")]
    NotAsWanted { node: NodeName },
    /// A machine that could be stopped cleanly is killed.
    #[error("step {step} kills {node}, which has something to lose")]
    KillsData { step: StepId, node: NodeName },
    /// Two clusters would be formed.
    #[error("step {step} initialises the engine's cluster a second time")]
    InitialisesTwice { step: StepId },
    /// A node boots for another part than it plays.
    #[error("step {step}: {node} does not boot for its part in forming the engine's cluster")]
    WrongRole { step: StepId, node: NodeName },
    /// A cluster that lives on would be forgotten.
    #[error("step {step} forms the engine's cluster anew, and {node} has kept its state")]
    ForgetsState { step: StepId, node: NodeName },
    /// A node is waited for as a member that is none.
    #[error("step {step} waits for {node} as a member, and it is none")]
    NoMember { step: StepId, node: NodeName },
    /// A member with its state would be removed to join anew.
    #[error("step {step} removes the membership of {node}, which has not lost its state")]
    HasState { step: StepId, node: NodeName },
    /// A node that should be is not in the engine's cluster at the end.
    #[error("{node} is not known to be an online member at the end")]
    NeverMember { node: NodeName },
    /// A removal that nobody began is undone.
    #[error("step {step} takes {node} back, and its removal was not begun")]
    NotLeaving { step: StepId, node: NodeName },
    /// A removal that was begun is not undone.
    #[error("the removal of {node} was cut short and is not undone before it is built on")]
    NotReadmitted { node: NodeName },
    /// A node would go through itself.
    #[error("step {step} goes through {node} itself")]
    ThroughItself { step: StepId, node: NodeName },
    /// The way goes through a node that is no member then.
    #[error("step {step} goes through {through}, which is not sure to be an online member then")]
    ThroughNoMember { step: StepId, through: NodeName },
    /// Members are away at the same time that need not be.
    #[error("step {step} stops {node} while {away} is not sure to be an online member")]
    QuorumAtRisk { step: StepId, node: NodeName, away: NodeName },
    /// Membership changes while a member is restarted.
    #[error("step {step} changes who is a member while {node} is restarted")]
    ChangesMeanwhile { step: StepId, node: NodeName },
    /// Nobody looks at all members at the end.
    #[error("the plan does not end when all members are online at once")]
    NotSteady,
    /// A node that should not be stays.
    #[error("{node} is not in the cluster file and is not deleted")]
    NotDeleted { node: NodeName },
    /// A node is deleted that was not stopped.
    #[error("step {step} deletes {node}, which was not stopped")]
    DeletesRunning { step: StepId, node: NodeName },
    /// A member is stopped for good before it is out of the engine's cluster.
    #[error("step {step} stops {node} for good, before it is evacuated and removed from the engine")]
    StopsMember { step: StepId, node: NodeName },
    /// A node goes before those that stay are well.
    #[error("step {step} removes {node} before the nodes that stay are well")]
    RemovesTooEarly { step: StepId, node: NodeName },
}
