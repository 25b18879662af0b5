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
    /// Its removal was begun and cut short: it is taken back, or joins anew when it was removed already.
    Readmit,
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
            && self.nodes.iter().all(|n| {
                n.action == NodeAction::Keep && matches!(n.engine, EngineStep::None | EngineStep::Member)
            })
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
                EngineStep::Readmit => format!(", take back into {}: its removal was cut short", self.engine),
            };
            match &n.action {
                NodeAction::Keep if engine.is_empty() => {}
                NodeAction::Keep => writeln!(f, "  {}: keep{engine}", n.name)?,
                NodeAction::Start => writeln!(f, "  {}: start{engine}", n.name)?,
                NodeAction::Restart { why } => {
                    writeln!(f, "  {}: restart ({}){engine}", n.name, why.join(", "))?
                }
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

    let engine_of = |d: &DesiredNode| observed.nodes.get(&d.machine.name).and_then(ObservedNode::engine);
    // Members whose engine state is there now or will be after their machine starts. One that runs and is still offline
    // after all the time it was given has lost its quorum: alone, what it keeps is of no use.
    let survives = |d: &DesiredNode, action: &NodeAction| {
        let state = engine_of(d);
        let kept = *action == NodeAction::Keep && state != Some(EngineState::Offline);
        record.members.contains(&d.machine.name)
            && state != Some(EngineState::Waiting)
            && (kept || d.keeps_state)
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
            } else if formed && record.leaving.contains_key(&name) {
                EngineStep::Readmit
            } else if formed && record.members.contains(&name) {
                EngineStep::Member
            } else {
                EngineStep::Join
            };
            if matches!(action, NodeAction::Restart { .. }) && !d.keeps_state && !record.engine.is_none() {
                warnings.push(format!(
                    "{name} has no disk of role data: what {} keeps on it is lost by the restart",
                    record.engine
                ));
            }
            NodePlan { name, action, engine }
        })
        .collect();
    // The engine's cluster that a node is a member of, told by its certificate.
    let cluster_of = |d: &DesiredNode| {
        let engine = observed.nodes.get(&d.machine.name)?.status.as_ref()?.engine.as_ref()?;
        let member = matches!(engine.state, EngineState::Online | EngineState::Evacuated);
        member.then(|| engine.certificate.clone())
    };
    let kept = |n: &NodePlan| n.action == NodeAction::Keep;
    let the_cluster = nodes
        .iter()
        .zip(&desired.nodes)
        .filter(|(n, _)| kept(n) && matches!(n.engine, EngineStep::Initialise | EngineStep::Member))
        .find_map(|(_, d)| cluster_of(d));
    for (n, d) in nodes.iter_mut().zip(&desired.nodes).filter(|(n, _)| kept(n)) {
        let seen = observed.nodes.get(&d.machine.name);
        let role = seen.and_then(|o| o.spec.as_ref()?.engine.as_ref()).map(|e| e.role);
        let why = match n.engine {
            // A node that is up but booted to join cannot initialise: its spec must say so.
            EngineStep::Initialise if role != Some(EngineRole::Init) => {
                "it initialises the engine's cluster now"
            }
            EngineStep::Initialise | EngineStep::Join if engine_of(d) == Some(EngineState::Offline) => {
                "its engine's cluster has lost its quorum"
            }
            EngineStep::Join if cluster_of(d).is_some_and(|c| Some(c) != the_cluster) => {
                "its engine is in a cluster that is no more"
            }
            _ => continue,
        };
        n.action = NodeAction::Restart { why: vec![why.into()] };
    }
    let removals = observed
        .nodes
        .iter()
        .filter(|(name, _)| !desired.nodes.iter().any(|d| d.machine.name == **name))
        .map(|(name, o)| Removal {
            name: name.clone(),
            member: formed && record.members.contains(name),
            force: !o.is_up(),
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
    let Some(o) = observed.filter(|o| o.is_up()) else { return NodeAction::Start };
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
        Some(s) if comparable(s) != comparable(&desired.spec) => why.push("its node spec changed".to_owned()),
        Some(_) => {}
    }
    if why.is_empty() { NodeAction::Keep } else { NodeAction::Restart { why } }
}

/// The spec without what is no reason for a restart: the engine's role, which the plan decides, and the node's own
/// certificate, which it takes at its next boot.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Layout,
        desired::{Inputs, desired},
    };
    use proptest::prelude::*;
    use std::{collections::BTreeMap, path::Path};
    use stead_agent::Identity;
    use stead_machine::{Accelerator, MachinePhase, MachineState, host::HostFacts};
    use stead_model::{
        Artifact, Bytes, ClusterSpec, Digest, Manifest, Memory,
        agent::{EngineStatus, NodePhase, NodeStatus},
        cluster::Backend,
        manifest::{Boot, FlatArtifact, Layer},
        recipe::RecipeKind,
    };

    fn digest(n: u8) -> Digest {
        Digest::from_bytes(&[n; 32])
    }

    fn manifest(layer: u8) -> Manifest {
        let artifact = |n| Artifact { digest: digest(n), size: Bytes(1) };
        Manifest {
            schema: 1,
            name: "incus-node".parse().unwrap(),
            kind: RecipeKind::Node,
            architecture: "amd64".into(),
            recipe: digest(0),
            engine: EngineKind::Incus,
            layers: vec![Layer {
                name: "base".into(),
                artifact: FlatArtifact { digest: digest(layer), size: Bytes(1) },
                inputs: digest(0),
            }],
            boot: Some(Boot {
                kernel_release: Some("6.12".into()),
                vmlinux: Some(artifact(1)),
                bzimage: None,
                initrd: Some(artifact(2)),
                stead_node: artifact(3),
            }),
            instance: None,
            packages: BTreeMap::new(),
        }
    }

    fn record(yaml: &str, members: &[&str]) -> Record {
        Record {
            schema: 1,
            spec: ClusterSpec::from_yaml("c", &format!("name: demo\nimage: incus-node\n{yaml}")).unwrap(),
            base_dir: "/".into(),
            image: digest(9),
            engine: EngineKind::Incus,
            members: members.iter().map(|m| m.parse().unwrap()).collect(),
            leaving: BTreeMap::new(),
        }
    }

    fn want(record: &Record, layer: u8) -> Desired {
        let identity = Identity { ca_pem: "ca".into(), certificate_pem: "c".into(), key_pem: "k".into() };
        desired(&Inputs {
            layout: &Layout::new(Path::new("/s"), &record.spec.name),
            record,
            manifest: &manifest(layer),
            blobs: "/b".into(),
            overlays: &BTreeMap::new(),
            identities: &record.spec.node_names().into_iter().map(|n| (n, identity.clone())).collect(),
            host: &HostFacts { memory: Bytes::gib(8), ..HostFacts::default() },
            auto: Backend::Namespace,
        })
        .unwrap()
    }

    fn status(node: &NodeName, engine: EngineState) -> NodeStatus {
        NodeStatus {
            name: node.clone(),
            cluster: "demo".into(),
            phase: NodePhase::Running,
            boot_id: "b".into(),
            uptime_ms: 1,
            timeline: vec![],
            services: vec![],
            disks: vec![],
            warnings: vec![],
            rescue: None,
            engine: Some(EngineStatus {
                kind: EngineKind::Incus,
                state: engine,
                version: None,
                detail: None,
                certificate: None,
            }),
            addresses: vec![],
            kernel: String::new(),
            agent_rss_bytes: 0,
            version: String::new(),
        }
    }

    /// The world as it is once `desired` was applied, with every engine in this state.
    fn as_applied(desired: &Desired, engine: EngineState) -> Observed {
        let running = MachineState {
            supervisor_pid: 1,
            machine_pid: Some(2),
            boots: 1,
            phase: MachinePhase::Running,
            error: None,
        };
        Observed {
            network: Some(desired.network.clone()),
            network_runs: true,
            nodes: desired
                .nodes
                .iter()
                .map(|d| {
                    let node = ObservedNode {
                        running: Some(running.clone()),
                        machine: Some(d.machine.clone()),
                        spec: Some(d.spec.clone()),
                        status: Some(status(&d.machine.name, engine)),
                    };
                    (d.machine.name.clone(), node)
                })
                .collect(),
        }
    }

    #[test]
    fn a_new_cluster_is_started_and_formed() {
        let r = record("nodes: 3", &[]);
        insta::assert_snapshot!(plan(&r, &want(&r, 7), &Observed::default()), @r"
        cluster demo:
          make the network
          node1: start, initialise incus
          node2: start, join incus
          node3: start, join incus
        ");
    }

    #[test]
    fn what_is_as_it_should_be_is_left_alone() {
        let r = record("nodes: 3", &["node1", "node2", "node3"]);
        let d = want(&r, 7);
        assert!(plan(&r, &d, &as_applied(&d, EngineState::Online)).is_empty());
    }

    #[test]
    fn a_changed_layer_restarts_and_says_what_is_lost() {
        let r = record("nodes: 2", &["node1", "node2"]);
        let observed = as_applied(&want(&r, 7), EngineState::Online);
        insta::assert_snapshot!(plan(&r, &want(&r, 8), &observed), @r"
        cluster demo:
          node1: restart (layers changed)
          node2: restart (layers changed)
          warning: node1 has no disk of role data: what incus keeps on it is lost by the restart
          warning: node2 has no disk of role data: what incus keeps on it is lost by the restart
        ");
    }

    #[test]
    fn a_renewed_certificate_is_no_reason_to_restart_but_a_new_ca_is() {
        let r = record("nodes: 1", &["node1"]);
        let d = want(&r, 7);
        let mut observed = as_applied(&d, EngineState::Online);
        let agent = |o: &mut Observed, change: fn(&mut stead_model::node::AgentSpec)| {
            for node in o.nodes.values_mut() {
                change(node.spec.as_mut().unwrap().agent.as_mut().unwrap());
            }
        };
        agent(&mut observed, |a| a.certificate_pem = "older".into());
        assert!(plan(&r, &d, &observed).is_empty());
        agent(&mut observed, |a| a.ca_pem = "another".into());
        assert!(plan(&r, &d, &observed).to_string().contains("node1: restart (its node spec changed)"));
    }

    #[test]
    fn a_surplus_node_is_removed_last() {
        let r = record("nodes: 2", &["node1", "node2", "node3"]);
        let three = want(&record("nodes: 3", &[]), 7);
        let mut observed = as_applied(&three, EngineState::Online);
        insta::assert_snapshot!(plan(&r, &want(&r, 7), &observed), @r"
        cluster demo:
          update the network
          node3: evacuate, remove from the engine, stop, delete
        ");
        observed.nodes.get_mut(&"node3".parse::<NodeName>().unwrap()).unwrap().running = None;
        assert!(plan(&r, &want(&r, 7), &observed).to_string().contains("by force"));
    }

    #[test]
    fn a_cluster_that_lost_all_state_is_formed_anew() {
        let r = record("nodes: 2", &["node1", "node2"]);
        let d = want(&r, 7);
        insta::assert_snapshot!(plan(&r, &d, &as_applied(&d, EngineState::Waiting)), @r"
        cluster demo:
          node1: restart (it initialises the engine's cluster now), initialise incus
          node2: keep, join incus
          warning: no member kept the state of incus: its cluster is formed anew, empty (give nodes a disk of role data to keep it)
        ");
        // With data disks nothing is formed anew while no node was seen to have lost its state.
        let r =
            record("nodes: 2\nmachine: {disks: [{name: data, size: 1GiB, role: data}]}", &["node1", "node2"]);
        let p = plan(&r, &want(&r, 7), &Observed::default());
        assert!(
            p.nodes.iter().all(|n| n.engine == EngineStep::Member && n.action == NodeAction::Start),
            "{p}"
        );
    }

    #[test]
    fn a_member_without_a_quorum_does_not_keep_a_cluster() {
        let r = record("nodes: 2", &["node1", "node2"]);
        let d = want(&r, 7);
        // The database's one voter is gone, and its state with it.
        let mut observed = as_applied(&d, EngineState::Offline);
        *observed.nodes.get_mut(&"node1".parse::<NodeName>().unwrap()).unwrap() = ObservedNode::default();
        insta::assert_snapshot!(plan(&r, &d, &observed), @r"
        cluster demo:
          node1: start, initialise incus
          node2: restart (its engine's cluster has lost its quorum), join incus
          warning: no member kept the state of incus: its cluster is formed anew, empty (give nodes a disk of role data to keep it)
        ");
        // The other one can do without it.
        let mut observed = as_applied(&d, EngineState::Online);
        *observed.nodes.get_mut(&"node1".parse::<NodeName>().unwrap()).unwrap() = ObservedNode::default();
        insta::assert_snapshot!(plan(&r, &d, &observed), @r"
        cluster demo:
          node1: start
        ");
        // With data disks the voter comes back with its state.
        let r =
            record("nodes: 2\nmachine: {disks: [{name: data, size: 1GiB, role: data}]}", &["node1", "node2"]);
        let d = want(&r, 7);
        let mut observed = as_applied(&d, EngineState::Offline);
        *observed.nodes.get_mut(&"node1".parse::<NodeName>().unwrap()).unwrap() = ObservedNode::default();
        insta::assert_snapshot!(plan(&r, &d, &observed), @r"
        cluster demo:
          node1: start
        ");
    }

    #[test]
    fn a_machine_on_its_way_down_is_started_and_not_built_on() {
        let r = record("nodes: 2", &["node1", "node2"]);
        let d = want(&r, 7);
        let mut observed = as_applied(&d, EngineState::Online);
        let node = observed.nodes.get_mut(&"node2".parse::<NodeName>().unwrap()).unwrap();
        node.running.as_mut().unwrap().phase = MachinePhase::Stopping;
        assert!(plan(&r, &d, &observed).to_string().contains("node2: start"));
        let node = observed.nodes.get_mut(&"node2".parse::<NodeName>().unwrap()).unwrap();
        node.running.as_mut().unwrap().phase = MachinePhase::Running;
        node.status.as_mut().unwrap().phase = NodePhase::Stopping;
        assert!(plan(&r, &d, &observed).to_string().contains("node2: start"));
    }

    #[test]
    fn a_removal_that_was_cut_short_is_taken_back() {
        let mut r = record("nodes: 2", &["node1", "node2"]);
        let d = want(&r, 7);
        r.leaving.insert("node2".parse().unwrap(), "node1".parse().unwrap());
        insta::assert_snapshot!(plan(&r, &d, &as_applied(&d, EngineState::Online)), @r"
        cluster demo:
          node2: keep, take back into incus: its removal was cut short
        ");
    }

    #[test]
    fn a_member_of_another_cluster_begins_anew() {
        let r = record("nodes: 2", &["node1"]);
        let d = want(&r, 7);
        let mut observed = as_applied(&d, EngineState::Online);
        let show = |o: &mut Observed, node: &str, certificate: &str| {
            let node = o.nodes.get_mut(&node.parse::<NodeName>().unwrap()).unwrap();
            let engine = node.status.as_mut().unwrap().engine.as_mut().unwrap();
            engine.certificate = Some(certificate.into());
        };
        show(&mut observed, "node1", "one");
        show(&mut observed, "node2", "one");
        assert!(plan(&r, &d, &observed).to_string().contains("node2: keep, join incus"));
        show(&mut observed, "node2", "two");
        insta::assert_snapshot!(plan(&r, &d, &observed), @r"
        cluster demo:
          node2: restart (its engine is in a cluster that is no more), join incus
        ");
    }

    #[test]
    fn qemu_gets_what_it_needs() {
        let r = record("nodes: 1\nmachine: {backend: qemu, memory: 25%}", &[]);
        let m = &want(&r, 7).nodes[0].machine;
        assert_eq!(m.memory, Some("25%".parse::<Memory>().unwrap().of(Bytes::gib(8))));
        assert!(m.cpus.is_some() && m.vmlinux.is_some());
        // The host has no KVM.
        assert_eq!(m.accelerator, Some(Accelerator::Tcg));
    }

    proptest! {
        /// Whoever is there in whatever state: every node that should be is in the plan once, nothing else but
        /// removals of what should not; at most one node initialises, and never beside a member that kept its state.
        #[test]
        fn plans_are_sound(n in 1u32..6, had in 0u32..8, members in proptest::collection::btree_set(1u32..8, 0..8),
                           layer in 7u8..9, down in proptest::collection::btree_set(1u32..8, 0..8), disks: bool) {
            let machine = if disks { "\nmachine: {disks: [{name: data, size: 1GiB, role: data}]}" } else { "" };
            let names: Vec<String> = members.iter().map(|m| format!("node{m}")).collect();
            let refs: Vec<&str> = names.iter().map(String::as_str).collect();
            let r = record(&format!("nodes: {n}{machine}"), &refs);
            let old = record(&format!("nodes: {}{machine}", had.max(1)), &[]);
            let mut observed = as_applied(&want(&old, 7), EngineState::Online);
            if had == 0 { observed = Observed::default(); }
            for (i, (_, node)) in observed.nodes.iter_mut().enumerate() {
                if down.contains(&(i as u32 + 1)) { node.running = None; node.status = None; }
            }
            let d = want(&r, layer);
            let p = plan(&r, &d, &observed);
            let planned: Vec<_> = p.nodes.iter().map(|n| n.name.clone()).collect();
            prop_assert_eq!(&planned, &r.spec.node_names());
            prop_assert!(p.removals.iter().all(|x| !planned.contains(&x.name) && observed.nodes.contains_key(&x.name)));
            let initialise = p.nodes.iter().filter(|n| n.engine == EngineStep::Initialise).count();
            prop_assert!(initialise <= 1);
            let kept = p.nodes.iter().any(|n| n.action == NodeAction::Keep && r.members.contains(&n.name));
            prop_assert!(!(kept && initialise > 0), "{}", p);
            prop_assert!(initialise == 1 || p.nodes.iter().any(|n| n.engine == EngineStep::Member));
            // Carried out, there is nothing left to do.
            let mut after = r.clone();
            after.members = planned.into_iter().collect();
            prop_assert!(plan(&after, &d, &as_applied(&d, EngineState::Online)).is_empty());
        }
    }
}
