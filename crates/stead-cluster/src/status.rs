//! `status`: the state of a cluster, for people and programs.

use crate::{ClusterError, Host, Record, health::word, identities, observe};
use serde::Serialize;
use std::time::Duration;
use stead_model::{
    ClusterName, EngineKind, NodeName,
    agent::{EngineState, InstanceStatus, NodePhase, NodeStatus},
    cluster::BackendChoice,
};

/// Time limit for the engine's list of instances: without a quorum it never answers.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);

/// The state of a cluster.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClusterStatus {
    /// Its name.
    pub cluster: ClusterName,
    /// Its nodes, in order.
    pub nodes: Vec<NodeLine>,
    /// Instances of its engine.
    pub instances: Vec<InstanceStatus>,
    /// Problems.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeLine {
    /// Its name.
    pub name: NodeName,
    /// `stopped`, `unreachable`, or the agent's own value: `booting`, `starting`, `running`, `degraded`, `rescue`,
    /// `stopping`.
    pub phase: String,
    /// Its backend.
    pub backend: BackendChoice,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// The engine on it.
    pub engine: EngineLine,
    /// The agent's whole status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<NodeStatus>,
}

/// The engine on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EngineLine {
    /// Its kind.
    pub kind: EngineKind,
    /// `none`, `unknown`, or the agent's value: `starting`, `waiting`, `forming`, `online`, `offline`, `evacuated`,
    /// `failed`.
    pub state: String,
}

/// Asks all agents.
///
/// # Errors
/// There is no such cluster.
pub async fn status(host: &Host, cluster: &ClusterName) -> Result<ClusterStatus, ClusterError> {
    let layout = host.layout(cluster);
    let record = Record::require(&layout)?;
    let operator = identities::operator(&layout).ok();
    let (observed, agents) = observe::observe(&layout, operator.as_ref()).await?;
    let mut nodes = Vec::new();
    let mut warnings = Vec::new();
    for resolved in record.spec.resolve() {
        let seen = observed.nodes.get(&resolved.name);
        let agent = seen.and_then(|o| o.status.clone());
        let running = seen.is_some_and(|o| o.running.is_some());
        let phase = match (&agent, running) {
            (Some(s), _) => word(&s.phase),
            (None, true) => "unreachable".to_owned(),
            (None, false) => "stopped".to_owned(),
        };
        let state = match agent.as_ref().and_then(|s| s.engine.as_ref()) {
            _ if record.engine.is_none() => "none".to_owned(),
            Some(e) => word(&e.state),
            None => "unknown".to_owned(),
        };
        let fixed = resolved.nics.iter().flat_map(|n| n.addresses.iter().map(|a| a.addr().to_string()));
        warnings.extend(seen.and_then(|o| o.other_version.clone()));
        if let Some(s) = &agent {
            warnings.extend(s.rescue.iter().map(|r| format!("{}: rescue: {r}", resolved.name)));
            if s.phase == NodePhase::Degraded {
                warnings.extend(s.services.iter().filter_map(|v| {
                    Some(format!("{}: service {}: {}", resolved.name, v.name, v.last_exit.as_ref()?))
                }));
            }
        }
        nodes.push(NodeLine {
            phase,
            backend: seen.and_then(|o| o.machine.as_ref()).map_or(resolved.backend, |m| m.backend.into()),
            addresses: fixed.collect(),
            engine: EngineLine { kind: record.engine, state },
            name: resolved.name,
            agent,
        });
    }
    let mut instances = Vec::new();
    let online = nodes.iter().find(|n| {
        n.agent.as_ref().and_then(|s| s.engine.as_ref()).is_some_and(|e| e.state == EngineState::Online)
    });
    if let Some(agent) = online.and_then(|n| agents.get(&n.name)) {
        match tokio::time::timeout(LIST_TIMEOUT, agent.instances()).await {
            Ok(Ok(list)) => instances = list,
            Ok(Err(e)) => warnings.push(format!("instances: {}", crate::error::chain(&e))),
            Err(_) => warnings.push("instances: the engine did not answer within 5 s".to_owned()),
        }
    }
    Ok(ClusterStatus { cluster: cluster.clone(), nodes, instances, warnings })
}
