//! The steps of a plan.

use serde::{Deserialize, Serialize};
use std::fmt;
use stead_model::{ClusterName, EngineKind, NodeName};

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// To which cluster.
    pub cluster: ClusterName,
    /// With which engine.
    pub engine: EngineKind,
    /// The steps. Each waits only for steps that stand before it; those that wait for nothing more run at the same time.
    pub steps: Vec<Step>,
    /// What the operator should know before.
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
    /// What is done.
    #[serde(flatten)]
    pub action: Action,
    /// The steps that must have succeeded before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<StepId>,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Action {
    /// The host network is made or changed in place.
    Network {
        /// Which of the two.
        change: NetworkChange,
    },
    /// A machine is stopped.
    Stop {
        /// Its node.
        node: NodeName,
        /// Cleanly or at once.
        how: StopHow,
        /// For what reasons.
        why: Vec<String>,
    },
    /// A machine is started.
    Start {
        /// Its node.
        node: NodeName,
        /// It boots to initialise the engine's cluster, not to join one.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        initialises: bool,
    },
    /// Waits until all services of a node run. For nodes without an engine.
    AwaitServices {
        /// Which.
        node: NodeName,
    },
    /// Waits until a node's agent answers, and its engine answers the agent.
    AwaitAgent {
        /// Which.
        node: NodeName,
    },
    /// Waits until a node that boots to initialise the engine's cluster is its first member, and online.
    Initialise {
        /// Which.
        node: NodeName,
    },
    /// Waits until a node that is a member is online, and remembers it as a member.
    AwaitMember {
        /// Which.
        node: NodeName,
    },
    /// Undoes the removal of a member that was cut short: once the node that drove it has ended its work, a member that is
    /// still there is restored.
    Readmit {
        /// Who stays.
        node: NodeName,
        /// The node that drove the removal while it can be asked, otherwise the member itself.
        through: NodeName,
    },
    /// A node joins the engine's cluster by a one-time token, and is waited for until it is online.
    Join {
        /// Who.
        node: NodeName,
        /// The member that gives the token.
        through: NodeName,
        /// It was a member and has lost its state: its old membership is removed first.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        anew: bool,
    },
    /// The instances of a member go elsewhere, then it is removed from the engine's cluster.
    Evacuate {
        /// Who goes.
        node: NodeName,
        /// The member that is asked for it.
        through: NodeName,
    },
    /// A member that does not run, or has lost its state, is removed from the engine's cluster by force.
    Remove {
        /// Who goes.
        node: NodeName,
        /// The member that is asked for it.
        through: NodeName,
    },
    /// All files of a stopped node are deleted, its disks too.
    Delete {
        /// Which.
        node: NodeName,
    },
    /// Waits until all services of all members run, and all members say at the same time that they are online.
    AwaitSteady {
        /// All of them.
        nodes: Vec<NodeName>,
    },
}

/// What happens to the host network.
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
    /// Its services end in order; what is left after their time is killed.
    Clean,
    /// At once: nothing on it is wanted any more.
    Kill,
}

impl Action {
    /// The node that the step is about; `None` for what concerns the whole cluster.
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
    /// The node that is asked to do it for another.
    pub fn through(&self) -> Option<&NodeName> {
        match self {
            Self::Readmit { through, .. }
            | Self::Join { through, .. }
            | Self::Evacuate { through, .. }
            | Self::Remove { through, .. } => Some(through),
            _ => None,
        }
    }
    /// Whether it changes who is a member. Such steps take turns, in any order: the engines' databases take one change at
    /// a time.
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
    /// Whether nothing is to be done but to wait.
    pub fn is_empty(&self) -> bool {
        self.steps.iter().all(|s| s.action.only_waits())
    }
    /// The node that initialises the engine's cluster, when it is formed anew.
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
