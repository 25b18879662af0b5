//! Access to one node of a cluster, for exec, logs, cp and reboot.

use crate::{ClusterError, Host, Layout, Record, dial, files, identities, observe};
use std::time::Duration;
use stead_agent::client::Client;
use stead_machine::{MachineSpec, backend};
use stead_model::{ClusterName, NodeName, NodeSpec};

/// A client of the named node's agent.
///
/// # Errors
/// No such cluster or node, or it was never started.
pub fn connect(host: &Host, cluster: &ClusterName, node: &str) -> Result<Client, ClusterError> {
    let layout = host.layout(cluster);
    let name = require_node(host, cluster, node)?;
    let operator = identities::operator(&layout)?;
    let spec: Option<NodeSpec> = files::read_json(&layout.node_spec_dir(&name).join("node.json"))?;
    let Some(address) = spec.as_ref().and_then(observe::agent_address) else {
        return Err(never_started(&name));
    };
    let machine = machine(&layout, &name)?;
    dial::agent(&operator, &machine.netns, &name, address).map_err(|e| ClusterError::Agent {
        action: "prepare a connection",
        node: name,
        source: Box::new(e),
    })
}

/// How long the named node may take to be running after a start.
///
/// # Errors
/// No such cluster or node, or it was never started.
pub fn patience(host: &Host, cluster: &ClusterName, node: &str) -> Result<Duration, ClusterError> {
    let name = require_node(host, cluster, node)?;
    Ok(backend::patience(&machine(&host.layout(cluster), &name)?).running)
}

fn machine(layout: &Layout, node: &NodeName) -> Result<MachineSpec, ClusterError> {
    files::read_json(&layout.node(node).join("machine.json"))?.ok_or_else(|| never_started(node))
}

fn never_started(node: &NodeName) -> ClusterError {
    ClusterError::NotUp(format!("node {node} was never started"))
}

/// The node's name, if the cluster has it.
///
/// # Errors
/// [`ClusterError::NoCluster`] or [`ClusterError::NoNode`].
pub fn require_node(host: &Host, cluster: &ClusterName, node: &str) -> Result<NodeName, ClusterError> {
    let record = Record::require(&host.layout(cluster))?;
    let names = record.spec.node_names();
    names.iter().find(|n| n.as_str() == node).cloned().ok_or_else(|| ClusterError::NoNode {
        cluster: cluster.clone(),
        node: node.to_owned(),
        have: names.iter().map(ToString::to_string).collect(),
    })
}
