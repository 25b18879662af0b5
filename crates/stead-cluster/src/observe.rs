//! What is: read from the state files, the locks, and the agents that answer.

use crate::{ClusterError, Events, Layout, Record, dial, files};
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

/// An agent that is silent for this long does not answer.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);

/// An engine that has lost its leader has another one within this: an election takes one to a few seconds. If it has none
/// by then, it has lost its quorum.
const ELECTION_PATIENCE: Duration = Duration::from_secs(15);
/// A leader of the engines' database that has lost its quorum goes on answering until it notices, after 3 s without a word
/// of the others (the election timeout of dqlite and cowsql).
const STEP_DOWN_PATIENCE: Duration = Duration::from_secs(5);
/// After this, what is waited for is reported.
const REPORT_AFTER: Duration = Duration::from_secs(1);
/// Pause between two looks at an engine that is not settled.
const SETTLE_POLL: Duration = Duration::from_millis(50);

/// What is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// The network as it was last made; `None` when there is none.
    pub network: Option<HostNetworkSpec>,
    /// Whether the network's supervisor runs.
    pub network_runs: bool,
    /// Members of the engine's cluster, as far as the record knows.
    pub members: BTreeSet<NodeName>,
    /// Members whose removal was begun and cut short, and the node that drove it, by the record.
    pub leaving: BTreeMap<NodeName, NodeName>,
    /// Every node that has a directory.
    pub nodes: BTreeMap<NodeName, ObservedNode>,
}

/// What is there of one node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ObservedNode {
    /// What its supervisor reports, when it runs.
    pub running: Option<MachineState>,
    /// The machine as it was last started.
    pub machine: Option<MachineSpec>,
    /// The spec it was last given.
    pub spec: Option<NodeSpec>,
    /// What its agent reports, when it answers.
    pub status: Option<NodeStatus>,
    /// Why its agent cannot be understood: it speaks another version of the protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_version: Option<String>,
}

/// Clients of the agents of the nodes that run; their connections are kept.
pub type Agents = BTreeMap<NodeName, Client>;

/// Looks at everything of a cluster; with the agents that can be asked for more. Damaged state files of a node count as
/// missing: it is then made anew. What the record knows is not looked up.
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
            other_version: None,
        };
        nodes.insert(name, node);
    }
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

/// Looks at everything as plans need it: with what the record knows, and engines that have settled.
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
    /// Whether its machine runs and is not on its way down, as far as anybody knows.
    pub fn is_up(&self) -> bool {
        let stopping = self.status.as_ref().is_some_and(|s| s.phase == NodePhase::Stopping);
        let runs = |s: &MachineState| matches!(s.phase, MachinePhase::Starting | MachinePhase::Running);
        self.running.as_ref().is_some_and(runs) && !stopping
    }
    /// How far its engine is, when its agent answers.
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

/// Waits until the engines of nodes that run have come to an end of what an interrupted command began or ended, so that a
/// plan builds on members that are: asks each one, past what its agent has seen last. `members`: those of the engine's
/// cluster as far as is known.
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
                // It will not speak another one later.
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
                events.node(name, "engine", "asked until it has settled");
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

/// Where a node with this spec serves its agent: its first address.
pub fn agent_address(spec: &NodeSpec) -> Option<SocketAddr> {
    let address = spec.network.interfaces.iter().find_map(|i| i.addresses.first())?.addr();
    Some(SocketAddr::new(address, spec.agent.as_ref().map_or(AGENT_PORT, |a| a.listen.port())))
}
