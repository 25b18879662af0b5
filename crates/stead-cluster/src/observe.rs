//! The observed state: from the state files, the locks, and the agents that answer.

use crate::{ClusterError, Events, Layout, Record, blocking::blocking, dial, files};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};
use stead_agent::{Client, Identity};
use stead_machine::{MachinePhase, MachineSpec, MachineState, backend, network::HostNetworkSpec, supervise};
use stead_model::{
    Failure, NodeName, NodeSpec,
    agent::{EngineState, NodePhase, NodeStatus},
    node::AGENT_PORT,
};

/// How long an agent may take to answer.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);

/// How long an engine may be without a leader: an election takes one to a few seconds. After this, it has lost its
/// quorum.
const ELECTION_PATIENCE: Duration = Duration::from_secs(15);
/// A leader of the engines' database that has lost its quorum keeps answering until it notices, after 3 s without the
/// others (the election timeout of dqlite and cowsql).
const STEP_DOWN_PATIENCE: Duration = Duration::from_secs(5);
/// After this, what is waited for is reported.
const REPORT_AFTER: Duration = Duration::from_secs(1);
/// A machine that boots again has its links again after this.
const RELINK_PAUSE: Duration = Duration::from_millis(500);
/// Pause between two looks at an engine that is not settled.
const SETTLE_POLL: Duration = Duration::from_millis(50);

/// The observed state of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// The network as last made; `None` when there is none.
    pub network: Option<HostNetworkSpec>,
    /// Whether the network's supervisor runs.
    pub network_runs: bool,
    /// Members of the engine's cluster, by the record.
    pub members: BTreeSet<NodeName>,
    /// Members whose removal was interrupted, with the node that drove it, by the record.
    pub leaving: BTreeMap<NodeName, NodeName>,
    /// Every node that has a directory.
    pub nodes: BTreeMap<NodeName, ObservedNode>,
}

/// The observed state of one node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ObservedNode {
    /// Its supervisor's report, when it runs.
    pub running: Option<MachineState>,
    /// The machine as last started.
    pub machine: Option<MachineSpec>,
    /// The node spec it last got.
    pub spec: Option<NodeSpec>,
    /// Its agent's status, when it answers.
    pub status: Option<NodeStatus>,
    /// It runs without its links to the cluster's network, which were removed by hand.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unlinked: bool,
    /// The error of an agent that speaks another version of the protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_version: Option<String>,
}

/// Clients of the running nodes' agents, which keep their connections.
pub type Agents = BTreeMap<NodeName, Client>;

/// Observes everything of a cluster; also returns the agents, for further requests. Damaged state files of a node count
/// as missing, so that it is made again. The record is not read.
///
/// # Errors
/// The cluster's directory cannot be read.
pub async fn observe(
    layout: &Layout,
    operator: Option<&Identity>,
) -> Result<(Observed, Agents), ClusterError> {
    let network: Option<HostNetworkSpec> =
        files::read_json(&layout.network().join("network.json")).unwrap_or_default();
    let network_runs =
        network.as_ref().is_some_and(|n| stead_machine::network::observe(n).is_some_and(|s| s.ready));
    let mut nodes = BTreeMap::new();
    for name in layout.existing_nodes()? {
        let dir = layout.node(&name);
        let node = ObservedNode {
            running: supervise::observe(&dir),
            machine: files::read_json(&dir.join("machine.json")).unwrap_or_default(),
            spec: files::read_json(&layout.node_spec_dir(&name).join("node.json")).unwrap_or_default(),
            status: None,
            unlinked: false,
            other_version: None,
        };
        nodes.insert(name, node);
    }
    note_unlinked(&mut nodes).await?;
    let agents: Agents =
        nodes.iter().filter_map(|(name, node)| Some((name.clone(), node.agent(operator?, name)?))).collect();
    let looks = agents.values().map(|agent| tokio::time::timeout(LOOK_TIMEOUT, agent.status()));
    for (name, look) in agents.keys().zip(join_all(looks).await) {
        let Some(node) = nodes.get_mut(name) else { continue };
        match look {
            Ok(Ok(status)) => node.status = Some(status),
            Ok(Err(e)) if e.is_version() => {
                node.other_version = Some(format!("{e}: {}", e.hint().unwrap_or_default()));
            }
            _ => {}
        }
    }
    let observed = Observed { network, network_runs, nodes, ..Observed::default() };
    Ok((observed, agents))
}

/// Notes machines that run without their links. A machine that boots again has none for a moment: only what is twice without
/// them counts.
async fn note_unlinked(nodes: &mut BTreeMap<NodeName, ObservedNode>) -> Result<(), ClusterError> {
    let runs = |node: &ObservedNode| node.running.as_ref().is_some_and(|s| s.phase == MachinePhase::Running);
    let mut suspects: Vec<(NodeName, MachineSpec)> = nodes
        .iter()
        .filter(|(_, node)| runs(node))
        .filter_map(|(name, node)| Some((name.clone(), node.machine.clone()?)))
        .collect();
    for look in 0..2 {
        if suspects.is_empty() {
            return Ok(());
        }
        if look > 0 {
            tokio::time::sleep(RELINK_PAUSE).await;
        }
        suspects = blocking("look at the links of machines", move || {
            let machines: Vec<&MachineSpec> = suspects.iter().map(|(_, machine)| machine).collect();
            // What cannot be looked at is not suspected.
            let linked = backend::linked(&machines).unwrap_or_else(|_| vec![true; machines.len()]);
            suspects.into_iter().zip(linked).filter(|(_, linked)| !linked).map(|(one, _)| one).collect()
        })
        .await?;
    }
    for (name, _) in suspects {
        if let Some(node) = nodes.get_mut(&name) {
            node.unlinked = true;
        }
    }
    Ok(())
}

/// Observes everything that plans need: with the record, and after engines have settled.
///
/// # Errors
/// As [`observe`].
pub(crate) async fn settled(
    layout: &Layout,
    record: &Record,
    operator: &Identity,
    events: &Events,
) -> Result<Observed, ClusterError> {
    let (mut observed, agents) = observe(layout, Some(operator)).await?;
    if !record.engine.is_none() {
        settle_engines(&mut observed, &record.members, &agents, events).await;
    }
    observed.members.clone_from(&record.members);
    observed.leaving.clone_from(&record.leaving);
    Ok(observed)
}

impl ObservedNode {
    /// Whether its machine runs, has its links, and is not known to be ending.
    pub fn is_up(&self) -> bool {
        let stopping = self.status.as_ref().is_some_and(|s| s.phase == NodePhase::Stopping);
        let runs = |s: &MachineState| matches!(s.phase, MachinePhase::Starting | MachinePhase::Running);
        self.running.as_ref().is_some_and(runs) && !stopping && !self.unlinked
    }
    /// State of its engine, when its agent answers.
    pub fn engine(&self) -> Option<EngineState> {
        Some(self.status.as_ref()?.engine.as_ref()?.state)
    }
    /// A client of its agent, when it runs.
    fn agent(&self, operator: &Identity, name: &NodeName) -> Option<Client> {
        self.is_up().then_some(())?;
        let address = agent_address(self.spec.as_ref()?)?;
        dial::agent(operator, &self.machine.as_ref()?.netns, name, address).ok()
    }
}

/// Waits until the engines of running nodes have finished what an interrupted command began, so that a plan builds on
/// real members. Asks each engine for its present state. `members`: the known members of the engine's cluster.
async fn settle_engines(
    observed: &mut Observed,
    members: &BTreeSet<NodeName>,
    agents: &Agents,
    events: &Events,
) {
    let one_is_gone = members.iter().any(|m| !observed.nodes.get(m).is_some_and(ObservedNode::is_up));
    let online_patience = if one_is_gone { STEP_DOWN_PATIENCE } else { Duration::ZERO };
    let looks = agents.iter().map(|(name, agent)| async {
        let machine = observed.nodes.get(name).and_then(|n| n.machine.as_ref());
        let start_patience = machine.map_or(Duration::ZERO, |m| backend::patience(m).agent);
        let (began, mut reported) = (Instant::now(), false);
        loop {
            let engine = match agent.engine().await {
                // Its version will not change later.
                Err(e) if e.is_version() => return None,
                engine => engine.ok(),
            };
            let patience = match engine.as_ref().map(|e| e.state) {
                Some(EngineState::Waiting) => Duration::ZERO,
                Some(EngineState::Online | EngineState::Evacuated) => online_patience,
                Some(EngineState::Offline | EngineState::Failed) => ELECTION_PATIENCE,
                _ => start_patience,
            };
            if began.elapsed() >= patience {
                let status = agent.status().await.ok()?;
                return Some(NodeStatus { engine, ..status });
            }
            if !reported && began.elapsed() > REPORT_AFTER {
                reported = true;
                events.node(name, "engine", "waiting until it has settled");
            }
            tokio::time::sleep(SETTLE_POLL).await;
        }
    });
    for (name, status) in agents.keys().zip(join_all(looks).await) {
        if let (Some(status), Some(node)) = (status, observed.nodes.get_mut(name)) {
            node.status = Some(status);
        }
    }
}

/// Address of the agent of a node with this spec: the node's first address.
pub fn agent_address(spec: &NodeSpec) -> Option<SocketAddr> {
    let address = spec.network.interfaces.iter().find_map(|i| i.addresses.first())?.addr();
    Some(SocketAddr::new(address, spec.agent.as_ref().map_or(AGENT_PORT, |a| a.listen.port())))
}
