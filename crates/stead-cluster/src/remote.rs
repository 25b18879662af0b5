//! Access to one node of a cluster, for exec, logs, cp and reboot.

use crate::{ClusterError, Host, Record, dial, files, identities, observe};
use stead_agent::client::Client;
use stead_machine::MachineSpec;
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
    let machine: Option<MachineSpec> = files::read_json(&layout.node(&name).join("machine.json"))?;
    let (Some(address), Some(machine)) = (spec.as_ref().and_then(observe::agent_address), machine) else {
        return Err(ClusterError::NotUp(format!("node {name} was never started")));
    };
    dial::agent(&operator, &machine.netns, &name, address).map_err(|e| ClusterError::Agent {
        action: "prepare a connection",
        node: name,
        source: Box::new(e),
    })
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
