//! `down`: removes everything of a cluster, in reverse order, and reports every error, not only the first.

use crate::{
    ClusterError, Events, Host, Layout, blocking::blocking, claim, dial, files, identities, machines, observe,
};
use futures_util::future::join_all;
use std::fs;
use stead_machine::{MachineSpec, network::HostNetworkSpec};
use stead_model::{ClusterName, NodeName, NodeSpec};

/// How a cluster is taken down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownMode {
    /// Everything is deleted, including disks; machines are killed, since nothing of them is needed any more.
    Delete,
    /// Machines are stopped cleanly; disks, certificates and the record stay, and `up` continues with them.
    KeepDisks,
}

/// Takes a cluster down. A missing cluster is an error; an incomplete one is cleaned up.
///
/// # Errors
/// [`ClusterError::Several`] with everything that could not be removed.
pub async fn down(
    host: &Host,
    cluster: &ClusterName,
    mode: DownMode,
    events: &Events,
) -> Result<(), ClusterError> {
    let layout = host.layout(cluster);
    if !layout.dir().exists() && !layout.trash().exists() {
        return Err(ClusterError::NoCluster(cluster.clone()));
    }
    let _lock = layout.take_lock()?;
    if !layout.dir().exists() {
        let _ = fs::remove_file(layout.lock());
        return Ok(());
    }
    events.step("nodes");
    let nodes = layout.existing_nodes()?;
    let mut errors = Vec::new();
    let stops = nodes.iter().map(|node| async {
        events.node(node, "stopping", "");
        let result = match mode {
            DownMode::Delete => machines::kill(&layout.node(node), node).await,
            DownMode::KeepDisks => stop_cleanly(&layout, node).await,
        };
        match &result {
            Ok(()) => events.node(node, "stopped", ""),
            Err(e) => events.node(node, "failed", crate::error::chain(e)),
        }
        result
    });
    errors.extend(join_all(stops).await.into_iter().filter_map(Result::err));
    // The machines' locks are held until their directories are gone.
    let mut guards = Vec::new();
    for node in &nodes {
        match machines::hold(&layout.node(node), node) {
            Ok(guard) => guards.extend(guard),
            Err(e) => errors.push(e),
        }
    }
    for node in &nodes {
        if let Err(e) = machines::clean_up(&layout.node(node), node).await {
            errors.push(e);
        }
    }
    events.step("network");
    if let Err(e) = network_down(&layout, cluster).await {
        errors.push(e);
    }
    let layers = layout.layers();
    let unmounted = blocking("unmount layers", move || stead_machine::layers::unmount_all(&layers)).await?;
    if let Err(e) = unmounted {
        errors.push(ClusterError::Layers { cluster: cluster.clone(), source: e });
    }
    if !errors.is_empty() {
        // The files stay: they record what is left, and another `down` tries again.
        return ClusterError::all(errors);
    }
    claim::release(&layout);
    if mode == DownMode::KeepDisks {
        return Ok(());
    }
    events.step("files");
    let (dir, trash) = (layout.dir(), layout.trash());
    fs::rename(&dir, &trash).map_err(ClusterError::file("remove", &dir))?;
    drop(guards);
    fs::remove_dir_all(&trash).map_err(ClusterError::file("remove", &trash))?;
    let _ = fs::remove_file(layout.lock());
    Ok(())
}

async fn stop_cleanly(layout: &Layout, node: &NodeName) -> Result<(), ClusterError> {
    let spec: Option<NodeSpec> =
        files::read_json(&layout.node_spec_dir(node).join("node.json")).unwrap_or_default();
    let machine: Option<MachineSpec> =
        files::read_json(&layout.node(node).join("machine.json")).unwrap_or_default();
    let address = spec.as_ref().and_then(observe::agent_address);
    let agent = match (identities::operator(layout), address, machine) {
        (Ok(operator), Some(address), Some(m)) => dial::agent(&operator, &m.netns, node, address).ok(),
        _ => None,
    };
    machines::stop(&layout.node(node), node, agent.as_ref()).await
}

async fn network_down(layout: &Layout, cluster: &ClusterName) -> Result<(), ClusterError> {
    // Without a readable spec an empty one is enough: all names derive from the cluster's.
    let spec =
        files::read_json::<HostNetworkSpec>(&layout.network().join("network.json")).unwrap_or_default();
    let spec = spec.unwrap_or_else(|| HostNetworkSpec {
        cluster: cluster.clone(),
        dir: layout.network(),
        bridges: Vec::new(),
        publish: Vec::new(),
    });
    blocking("take the network down", move || stead_machine::network::down(&spec))
        .await?
        .map_err(|e| ClusterError::Network { cluster: cluster.clone(), source: Box::new(e) })
}
