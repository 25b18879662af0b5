//! What is to be done so that what is becomes what should be. Pure: a plan can be printed, tested and refused.

use crate::{
    Record,
    desired::{Desired, DesiredNode},
    observe::{Observed, ObservedNode},
};
use serde::{Deserialize, Serialize};
use std::fmt;
use stead_model::{ClusterName, EngineKind, NodeName, NodeSpec, agent::EngineState, node::EngineRole};

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// To which cluster.
    pub cluster: ClusterName,
    /// With which engine.
    pub engine: EngineKind,
    /// The host network.
    pub network: NetworkAction,
    /// Every node that should be, in order.
    pub nodes: Vec<NodePlan>,
    /// Nodes that should go, after the others are well.
    pub removals: Vec<Removal>,
    /// What the operator should know before.
    pub warnings: Vec<String>,
}

/// What happens to the host network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkAction {
    /// It is as it should be.
    Keep,
    /// It is made.
    Make,
    /// It is changed in place.
    Update,
}

/// What happens to one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePlan {
    /// Which.
    pub name: NodeName,
    /// To its machine.
    pub action: NodeAction,
    /// Its way into the engine's cluster.
    pub engine: EngineStep,
}

/// What happens to a node's machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeAction {
    /// It runs as it should.
    Keep,
    /// It is started.
    Start,
    /// It is stopped and started, for these reasons.
    Restart {
        /// What changed.
        why: Vec<String>,
    },
}

/// A node's way into the engine's cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineStep {
    /// There is no engine.
    None,
    /// It initialises the cluster.
    Initialise,
    /// It joins by a one-time token.
    Join,
    /// It is a member and comes back by itself (or joins anew when its state was lost).
    Member,
}

/// A node that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// Which.
    pub name: NodeName,
    /// It is a member of the engine's cluster: evacuated and removed from it first.
    pub member: bool,
    /// It does not run, so it cannot be evacuated: what is on it is lost.
    pub force: bool,
}

impl Plan {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.network == NetworkAction::Keep
            && self.removals.is_empty()
            && self
                .nodes
                .iter()
                .all(|n| n.action == NodeAction::Keep && matches!(n.engine, EngineStep::None | EngineStep::Member))
    }
    /// The plan for one node.
    pub fn node(&self, name: &NodeName) -> Option<&NodePlan> {
        self.nodes.iter().find(|n| &n.name == name)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return writeln!(f, "cluster {}: nothing to do", self.cluster);
        }
        writeln!(f, "cluster {}:", self.cluster)?;
        match self.network {
            NetworkAction::Keep => {}
            NetworkAction::Make => writeln!(f, "  make the network")?,
            NetworkAction::Update => writeln!(f, "  update the network")?,
        }
        for n in &self.nodes {
            let engine = match n.engine {
                EngineStep::None | EngineStep::Member => String::new(),
                EngineStep::Initialise => format!(", initialise {}", self.engine),
                EngineStep::Join => format!(", join {}", self.engine),
            };
            match &n.action {
                NodeAction::Keep if engine.is_empty() => {}
                NodeAction::Keep => writeln!(f, "  {}: keep{engine}", n.name)?,
                NodeAction::Start => writeln!(f, "  {}: start{engine}", n.name)?,
                NodeAction::Restart { why } => writeln!(f, "  {}: restart ({}){engine}", n.name, why.join(", "))?,
            }
        }
        for r in &self.removals {
            let how = match (r.member, r.force) {
                (true, false) => "evacuate, remove from the engine, stop, delete",
                (true, true) => "remove from the engine by force (it does not run), delete",
                (false, _) => "stop, delete",
            };
            writeln!(f, "  {}: {how}", r.name)?;
        }
        self.warnings.iter().try_for_each(|w| writeln!(f, "  warning: {w}"))
    }
}

/// Makes the plan.
pub fn plan(record: &Record, desired: &Desired, observed: &Observed) -> Plan {
    let mut warnings = Vec::new();
    let nodes: Vec<(&DesiredNode, NodeAction)> =
        desired.nodes.iter().map(|d| (d, action(d, observed.nodes.get(&d.machine.name)))).collect();

    // Members whose engine state is there now or will be after their machine starts.
    let survives = |d: &DesiredNode, action: &NodeAction| {
        let seen = observed.nodes.get(&d.machine.name);
        let lost = seen
            .and_then(|o| o.status.as_ref()?.engine.as_ref())
            .is_some_and(|e| e.state == EngineState::Waiting);
        record.members.contains(&d.machine.name) && !lost && (*action == NodeAction::Keep || d.keeps_state)
    };
    let any_survives = nodes.iter().any(|(d, a)| survives(d, a));
    // A rolling restart keeps the cluster alive as long as one member is left to join anew through.
    let rolling = nodes.len() > 1
        && nodes.iter().any(|(d, a)| {
            matches!(a, NodeAction::Restart { .. }) && record.members.contains(&d.machine.name)
        });
    let formed = any_survives || rolling;
    if !record.members.is_empty() && !formed && !record.engine.is_none() {
        warnings.push(format!(
            "no member kept the state of {}: its cluster is formed anew, empty (give nodes a disk of role data to keep it)",
            record.engine
        ));
    }
    let mut nodes: Vec<NodePlan> = nodes
        .into_iter()
        .enumerate()
        .map(|(i, (d, action))| {
            let name = d.machine.name.clone();
            let engine = if record.engine.is_none() {
                EngineStep::None
            } else if !formed && i == 0 {
                EngineStep::Initialise
            } else if formed && record.members.contains(&name) {
                EngineStep::Member
            } else {
                EngineStep::Join
            };
            if matches!(action, NodeAction::Restart { .. }) && !d.keeps_state && !record.engine.is_none() {
                warnings.push(format!("{name} has no disk of role data: what {} keeps on it is lost by the restart", record.engine));
            }
            NodePlan { name, action, engine }
        })
        .collect();
    // A node that is up but booted to join cannot initialise: its spec must say so.
    for (n, d) in nodes.iter_mut().zip(&desired.nodes) {
        let seen = observed.nodes.get(&d.machine.name);
        let role = seen.and_then(|o| o.spec.as_ref()?.engine.as_ref()).map(|e| e.role);
        if n.engine == EngineStep::Initialise && n.action == NodeAction::Keep && role != Some(EngineRole::Init) {
            n.action = NodeAction::Restart { why: vec!["it initialises the engine's cluster now".into()] };
        }
    }
    let removals = observed
        .nodes
        .iter()
        .filter(|(name, _)| !desired.nodes.iter().any(|d| d.machine.name == **name))
        .map(|(name, o)| Removal {
            name: name.clone(),
            member: formed && record.members.contains(name),
            force: o.running.is_none(),
        })
        .collect();
    let network = match &observed.network {
        Some(n) if observed.network_runs && *n == desired.network => NetworkAction::Keep,
        Some(_) if observed.network_runs => NetworkAction::Update,
        _ => NetworkAction::Make,
    };
    Plan { cluster: record.spec.name.clone(), engine: record.engine, network, nodes, removals, warnings }
}

fn action(desired: &DesiredNode, observed: Option<&ObservedNode>) -> NodeAction {
    let Some(o) = observed.filter(|o| o.running.is_some()) else { return NodeAction::Start };
    let mut why = Vec::new();
    match &o.machine {
        None => why.push("its machine.json is damaged".to_owned()),
        Some(m) => {
            let (a, b) = (serde_json::to_value(m), serde_json::to_value(&desired.machine));
            if let (Ok(serde_json::Value::Object(a)), Ok(serde_json::Value::Object(b))) = (a, b) {
                why.extend(b.iter().filter(|(k, v)| a.get(*k) != Some(v)).map(|(k, _)| match k.as_str() {
                    "layers" => "layers changed".to_owned(),
                    "stead_node" => "stead-node changed".to_owned(),
                    k => format!("{k} changed"),
                }));
            }
        }
    }
    match &o.spec {
        None => why.push("its node.json is damaged".to_owned()),
        Some(s) if without_role(s) != without_role(&desired.spec) => why.push("its node spec changed".to_owned()),
        Some(_) => {}
    }
    if why.is_empty() { NodeAction::Keep } else { NodeAction::Restart { why } }
}

/// The spec without what the plan itself decides.
fn without_role(spec: &NodeSpec) -> NodeSpec {
    let mut spec = spec.clone();
    if let Some(e) = &mut spec.engine {
        e.role = EngineRole::Join;
    }
    spec
}
