//! What is: read from the state files, the locks, and the agents that answer.

use crate::{ClusterError, Layout, dial, files};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};
use stead_agent::Identity;
use stead_machine::{MachineSpec, MachineState, network::HostNetworkSpec, supervise};
use stead_model::{NodeName, NodeSpec, agent::NodeStatus, node::AGENT_PORT};

/// An agent that does not answer within this is taken as not answering, in a mere look.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);

/// A machine that was told to stop is gone within this: killed ones at once, others within their own time limit.
const STOPPING_PATIENCE: Duration = Duration::from_secs(70);

/// What is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// The network as it was last made; `None` when there is none.
    pub network: Option<HostNetworkSpec>,
    /// Whether the network's supervisor runs.
    pub network_runs: bool,
    /// Every node that has a directory.
    pub nodes: BTreeMap<NodeName, ObservedNode>,
}

/// What is there of one node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ObservedNode {
    /// Its supervisor's word, when it runs.
    pub running: Option<MachineState>,
    /// The machine as it was last started.
    pub machine: Option<MachineSpec>,
    /// The spec it was last given.
    pub spec: Option<NodeSpec>,
    /// Its agent's word, when it answers.
    pub status: Option<NodeStatus>,
}

/// Looks at everything of a cluster. Damaged state files of a node count as not there: it is then made anew.
///
/// # Errors
/// The cluster's directory cannot be read.
pub async fn observe(layout: &Layout, operator: Option<&Identity>) -> Result<Observed, ClusterError> {
    let network: Option<HostNetworkSpec> =
        files::read_json(&layout.network().join("network.json")).unwrap_or_default();
    let network_runs =
        network.as_ref().is_some_and(|n| stead_machine::network::observe(n).is_some_and(|s| s.ready));
    let mut nodes = BTreeMap::new();
    for name in layout.existing_nodes()? {
        let dir = layout.node(&name);
        let node = ObservedNode {
            running: settled(&dir).await,
            machine: files::read_json(&dir.join("machine.json")).unwrap_or_default(),
            spec: files::read_json(&layout.node_spec_dir(&name).join("node.json")).unwrap_or_default(),
            status: None,
        };
        nodes.insert(name, node);
    }
    if let Some(operator) = operator {
        let looks = nodes.iter().map(|(name, node)| async move {
            node.running.as_ref()?;
            let netns = &node.machine.as_ref()?.netns;
            let client = dial::agent(operator, netns, name, agent_address(node.spec.as_ref()?)?).ok()?;
            tokio::time::timeout(LOOK_TIMEOUT, client.status()).await.ok()?.ok()
        });
        let statuses = join_all(looks).await;
        for (node, status) in nodes.values_mut().zip(statuses) {
            node.status = status;
        }
    }
    Ok(Observed { network, network_runs, nodes })
}

/// Whether a machine runs; one that is stopping is waited for, so that nobody builds on it.
async fn settled(dir: &Path) -> Option<MachineState> {
    let deadline = Instant::now() + STOPPING_PATIENCE;
    loop {
        let state = supervise::observe(dir)?;
        if state.phase != "stopping" || Instant::now() > deadline {
            return Some(state);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Where a node with this spec serves its agent: its first address.
pub fn agent_address(spec: &NodeSpec) -> Option<SocketAddr> {
    let address = spec.network.interfaces.iter().find_map(|i| i.addresses.first())?.addr();
    Some(SocketAddr::new(address, spec.agent.as_ref().map_or(AGENT_PORT, |a| a.listen.port())))
}
