//! A desired node beside its observed state, and the consequences for plans.

use crate::{
    desired::DesiredNode,
    observe::{Observed, ObservedNode},
};
use std::collections::BTreeMap;
use stead_model::{
    NodeName, NodeSpec,
    agent::{EngineState, NodeStatus},
    node::EngineRole,
};

/// A node's relation to the engine's cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// A member that runs and is online (or was evacuated by hand).
    Online,
    /// A member that runs but whose engine has no clear state yet.
    Unsure,
    /// A member that runs but has no quorum, even after waiting.
    Offline,
    /// A member that does not run and will come back with its state.
    Away,
    /// It was a member and has lost its state, or has lost it by not running.
    Lost,
    /// Not a known member.
    Stranger,
}

/// A desired node and its observed state.
pub(super) struct View<'a> {
    pub(super) want: &'a DesiredNode,
    pub(super) seen: Option<&'a ObservedNode>,
    pub(super) standing: Standing,
    /// Whether its engine's state survives a restart: on a disk that it should have and, if the node exists, has.
    pub(super) keeps_state: bool,
    /// How its machine differs from the desired one; `None` when it is not up.
    pub(super) changes: Option<Vec<String>>,
}

impl<'a> View<'a> {
    pub(super) fn new(want: &'a DesiredNode, observed: &'a Observed) -> Self {
        let seen = observed.nodes.get(&want.machine.name);
        let up = seen.filter(|o| o.is_up());
        let state = seen.and_then(ObservedNode::engine);
        let keeps_state = want.data_disk.as_ref().is_some_and(|disk| {
            let machine = seen.and_then(|o| o.machine.as_ref());
            machine.is_none_or(|m| m.disks.iter().any(|d| d.serial == *disk))
        });
        let standing = if !observed.members.contains(&want.machine.name) {
            Standing::Stranger
        } else {
            match (up, state) {
                (_, Some(EngineState::Waiting)) => Standing::Lost,
                (None, _) if keeps_state => Standing::Away,
                (None, _) => Standing::Lost,
                (Some(_), Some(EngineState::Online | EngineState::Evacuated)) => Standing::Online,
                (Some(_), Some(EngineState::Offline)) => Standing::Offline,
                (Some(_), _) => Standing::Unsure,
            }
        };
        Self { want, seen, standing, keeps_state, changes: up.map(|o| changes(want, o)) }
    }
    pub(super) fn name(&self) -> &'a NodeName {
        &self.want.machine.name
    }
    /// Whether it runs as desired.
    pub(super) fn is_kept(&self) -> bool {
        self.changes.as_ref().is_some_and(Vec::is_empty)
    }
    /// Whether it runs and must be restarted.
    pub(super) fn is_changed(&self) -> bool {
        self.changes.as_ref().is_some_and(|c| !c.is_empty())
    }
    pub(super) fn engine(&self) -> Option<EngineState> {
        self.seen.and_then(ObservedNode::engine)
    }
    /// It leads the database of the engine's cluster, as far as it says so.
    pub(super) fn leads(&self) -> bool {
        self.status().and_then(|s| s.engine.as_ref()).is_some_and(|e| e.leads)
    }
    /// What its agent reports.
    pub(super) fn status(&self) -> Option<&'a NodeStatus> {
        self.seen?.status.as_ref()
    }
    /// Whether its supervisor runs, even if the machine is ending.
    pub(super) fn is_supervised(&self) -> bool {
        self.seen.is_some_and(|o| o.running.is_some())
    }
    /// Whether the engine's cluster survives in this node. It survives a restart of a node that does not keep its state
    /// if there is another node to join through again.
    pub(super) fn survives(&self, nodes: usize) -> bool {
        match self.standing {
            Standing::Online => self.is_kept() || self.keeps_state || nodes > 1,
            Standing::Unsure => self.is_kept() || self.keeps_state,
            Standing::Offline => self.keeps_state,
            Standing::Away => true,
            Standing::Lost | Standing::Stranger => false,
        }
    }
    /// The certificate of the engine's cluster that it is in, as far as known; `None` when it is in none.
    pub(super) fn cluster(&self) -> Option<Option<&'a String>> {
        let engine = self.seen?.status.as_ref()?.engine.as_ref()?;
        matches!(engine.state, EngineState::Online | EngineState::Evacuated)
            .then_some(engine.certificate.as_ref())
    }
}

/// The differences between a running machine and the desired one; empty when there are none.
fn changes(desired: &DesiredNode, observed: &ObservedNode) -> Vec<String> {
    let mut why = Vec::new();
    match &observed.machine {
        None => why.push("its machine.json is damaged".to_owned()),
        Some(m) => {
            let fields = |spec| match serde_json::to_value(spec) {
                Ok(serde_json::Value::Object(fields)) => fields.into_iter().collect(),
                _ => BTreeMap::new(),
            };
            let (is, should) = (fields(m), fields(&desired.machine));
            let differs = |key: &&String| is.get(*key) != should.get(*key);
            let mut keys: Vec<&String> =
                should.keys().chain(is.keys().filter(|k| !should.contains_key(*k))).collect();
            keys.retain(differs);
            why.extend(keys.iter().map(|k| match k.as_str() {
                "layers" => "layers changed".to_owned(),
                "stead_node" => "stead-node changed".to_owned(),
                k => format!("{k} changed"),
            }));
        }
    }
    match &observed.spec {
        None => why.push("its node.json is damaged".to_owned()),
        Some(s) if comparable(s) != comparable(&desired.spec) => why.push("its node spec changed".to_owned()),
        Some(_) => {}
    }
    why
}

/// The spec without the parts that need no restart: the engine's role, which the plan decides, and the node's own
/// certificate, which takes effect at its next boot.
fn comparable(spec: &NodeSpec) -> NodeSpec {
    let mut spec = spec.clone();
    if let Some(e) = &mut spec.engine {
        e.role = EngineRole::Join;
    }
    if let Some(a) = &mut spec.agent {
        a.certificate_pem.clear();
        a.key_pem.clear();
    }
    spec
}
