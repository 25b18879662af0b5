//! The steps of a plan.

use serde::{Deserialize, Serialize};
use std::fmt;
use stead_model::{ClusterName, EngineKind, NodeName};

/// A plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The cluster.
    pub cluster: ClusterName,
    /// Its engine.
    pub engine: EngineKind,
    /// The steps. Each waits only for earlier ones; steps whose waits are over run at the same time.
    pub steps: Vec<Step>,
    /// Warnings for the operator.
    pub warnings: Vec<String>,
}

/// Number of a step in its plan, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StepId(pub u32);

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Its number.
    pub id: StepId,
    /// The action.
    #[serde(flatten)]
    pub action: Action,
    /// The steps that must have succeeded first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<StepId>,
}

/// The action of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Action {
    /// Makes the host network or changes it in place.
    Network {
        /// Which of the two.
        change: NetworkChange,
    },
    /// Stops a machine.
    Stop {
        /// Its node.
        node: NodeName,
        /// Cleanly or at once.
        how: StopHow,
        /// The reasons.
        why: Vec<String>,
    },
    /// Starts a machine.
    Start {
        /// Its node.
        node: NodeName,
        /// Whether it boots to initialise the engine's cluster, not to join one.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        initialises: bool,
    },
    /// Waits until all services of a node run. For nodes without an engine.
    AwaitServices {
        /// The node.
        node: NodeName,
    },
    /// Waits until a node's agent answers, and its engine answers the agent.
    AwaitAgent {
        /// The node.
        node: NodeName,
    },
    /// Waits until a node that boots to initialise the engine's cluster is its first, online member.
    Initialise {
        /// The node.
        node: NodeName,
    },
    /// Waits until a member is online, and records it as a member.
    AwaitMember {
        /// The node.
        node: NodeName,
    },
    /// Undoes the interrupted removal of a member: once the node that drove it has finished, a member that still exists
    /// is restored.
    Readmit {
        /// The member that stays.
        node: NodeName,
        /// The node that drove the removal if it can be asked, otherwise the member itself.
        through: NodeName,
    },
    /// Makes a node join the engine's cluster with a one-time token, and waits until it is online.
    Join {
        /// The node.
        node: NodeName,
        /// The member that issues the token.
        through: NodeName,
        /// Whether it was a member and has lost its state: then its old membership is removed first.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        anew: bool,
    },
    /// Evacuates a member's instances, then removes it from the engine's cluster.
    Evacuate {
        /// The member to remove.
        node: NodeName,
        /// The member that is asked to do it.
        through: NodeName,
    },
    /// Removes a member that does not run, or has lost its state, from the engine's cluster by force.
    Remove {
        /// The member to remove.
        node: NodeName,
        /// The member that is asked to do it.
        through: NodeName,
    },
    /// Deletes all files of a stopped node, including its disks.
    Delete {
        /// The node.
        node: NodeName,
    },
    /// Waits until all services of all members run, and all members report at the same time that they are online.
    AwaitSteady {
        /// All members.
        nodes: Vec<NodeName>,
    },
}

/// The change of the host network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkChange {
    /// It is made.
    Make,
    /// It is changed in place.
    Update,
}

/// How a machine is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StopHow {
    /// Its services end in order; what is left after the deadline is killed.
    Clean,
    /// At once: nothing on it is needed any more.
    Kill,
}

impl Action {
    /// The node that the action concerns; `None` for the whole cluster.
    pub fn node(&self) -> Option<&NodeName> {
        match self {
            Self::Network { .. } | Self::AwaitSteady { .. } => None,
            Self::Stop { node, .. }
            | Self::Start { node, .. }
            | Self::AwaitServices { node }
            | Self::AwaitAgent { node }
            | Self::Initialise { node }
            | Self::AwaitMember { node }
            | Self::Readmit { node, .. }
            | Self::Join { node, .. }
            | Self::Evacuate { node, .. }
            | Self::Remove { node, .. }
            | Self::Delete { node } => Some(node),
        }
    }
    /// The node that does it for another.
    pub fn through(&self) -> Option<&NodeName> {
        match self {
            Self::Readmit { through, .. }
            | Self::Join { through, .. }
            | Self::Evacuate { through, .. }
            | Self::Remove { through, .. } => Some(through),
            _ => None,
        }
    }
    /// Whether it changes the membership. Such steps take turns, in any order: the engines' databases accept one change
    /// at a time.
    pub fn takes_turns(&self) -> bool {
        matches!(self, Self::Join { .. } | Self::Evacuate { .. } | Self::Remove { .. })
    }
    /// Whether it only waits.
    pub fn only_waits(&self) -> bool {
        matches!(
            self,
            Self::AwaitServices { .. }
                | Self::AwaitAgent { .. }
                | Self::AwaitMember { .. }
                | Self::AwaitSteady { .. }
        )
    }
}

impl Plan {
    /// Whether the plan only waits.
    pub fn is_empty(&self) -> bool {
        self.steps.iter().all(|s| s.action.only_waits())
    }
    /// The node that initialises the engine's cluster, if a new one is formed.
    pub fn initialises(&self) -> Option<&NodeName> {
        self.steps.iter().find_map(|s| match &s.action {
            Action::Initialise { node } => Some(node),
            _ => None,
        })
    }
    /// The nodes whose machines are started.
    pub fn started(&self) -> impl Iterator<Item = &NodeName> {
        self.steps.iter().filter_map(|s| match &s.action {
            Action::Start { node, .. } => Some(node),
            _ => None,
        })
    }
}
