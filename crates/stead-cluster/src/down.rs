//! `down`: everything of a cluster goes, in reverse order, and every error is reported, not the first.

use crate::{ClusterError, Events, Host, Layout, apply::blocking, claim, dial, files, observe, prepare};
use futures_util::future::join_all;
use std::{fs, io, path::Path, time::Duration};
use stead_files::Lock;
use stead_machine::{MachineSpec, network::HostNetworkSpec, supervise};
use stead_model::{ClusterName, NodeName, agent::StopRequest};

/// What a node has got to stop its services.
pub(crate) const STOP_SECONDS: u32 = 60;
/// What a machine has got to stop, with all that is in it.
pub(crate) const STOP_PATIENCE: Duration = Duration::from_secs(STOP_SECONDS as u64 + 5);

/// How a cluster is taken down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownMode {
    /// Everything is deleted, disks too; machines are killed, for nothing of theirs is wanted any more.
    Delete,
    /// Machines are stopped cleanly and disks, certificates and the record stay: `up` goes on with them.
    KeepDisks,
}

/// Takes a cluster down. One that is not there is an error; one that is half there is cleaned.
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
            DownMode::Delete => end_machine(&layout.node(node), node, End::Kill).await,
            DownMode::KeepDisks => stop_cleanly(&layout, node).await,
        };
        match &result {
            Ok(()) => events.node(node, "stopped", ""),
            Err(e) => events.node(node, "failed", crate::error::chain(e)),
        }
        result
    });
    errors.extend(join_all(stops).await.into_iter().filter_map(Result::err));
    // Locks of the machines are held until their directories are gone.
    let mut guards = Vec::new();
    for node in &nodes {
        match claim(&layout.node(node), node) {
            Ok(guard) => guards.extend(guard),
            Err(e) => errors.push(e),
        }
    }
    for node in &nodes {
        if let Err(e) = cleanup_machine(&layout.node(node), node).await {
            errors.push(e);
        }
    }
    events.step("network");
    if let Err(e) = network_down(&layout, cluster).await {
        errors.push(e);
    }
    let layers = layout.layers();
    if let Err(e) = blocking(move || stead_machine::layers::unmount_all(&layers)).await? {
        errors.push(ClusterError::Layers { cluster: cluster.clone(), source: e });
    }
    if !errors.is_empty() {
        // The files stay: they say what is left, and `down` again tries it again.
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

enum End {
    Stop(Duration),
    Kill,
}

async fn end_machine(dir: &Path, node: &NodeName, end: End) -> Result<(), ClusterError> {
    let (dir, name) = (dir.to_owned(), node.clone());
    blocking(move || match end {
        End::Stop(timeout) => supervise::stop(&dir, timeout),
        End::Kill => supervise::kill(&dir),
    })
    .await?
    .map_err(|e| ClusterError::Machine { action: "stop", node: name, source: Box::new(e) })
}

/// Stops a machine by its supervisor: cleanly within `timeout`, then by force. One that does not run is fine.
///
/// # Errors
/// It still runs.
pub async fn stop_machine(dir: &Path, node: &NodeName, timeout: Duration) -> Result<(), ClusterError> {
    end_machine(dir, node, End::Stop(timeout)).await
}

/// Notes that a machine is to end, before its agent is asked for that.
///
/// # Errors
/// The note cannot be written.
pub(crate) fn announce_end(dir: &Path, node: &NodeName) -> Result<(), ClusterError> {
    supervise::announce_end(dir).map_err(|e| ClusterError::Machine {
        action: "stop",
        node: node.clone(),
        source: Box::new(e),
    })
}

/// Ends a machine at once.
///
/// # Errors
/// It still runs.
pub(crate) async fn kill_machine(dir: &Path, node: &NodeName) -> Result<(), ClusterError> {
    end_machine(dir, node, End::Kill).await
}

async fn stop_cleanly(layout: &Layout, node: &NodeName) -> Result<(), ClusterError> {
    let spec = files::read_json(&layout.node_spec_dir(node).join("node.json")).unwrap_or_default();
    let machine: Option<MachineSpec> =
        files::read_json(&layout.node(node).join("machine.json")).unwrap_or_default();
    if supervise::observe(&layout.node(node)).is_some()
        && let Ok(operator) = prepare::operator_identity(layout)
        && let Some(address) = spec.as_ref().and_then(observe::agent_address)
        && let Some(machine) = machine
        && let Ok(agent) = dial::agent(&operator, &machine.netns, node, address)
    {
        announce_end(&layout.node(node), node)?;
        let _ = agent.shutdown(&StopRequest { deadline_s: STOP_SECONDS }).await;
    }
    stop_machine(&layout.node(node), node, STOP_PATIENCE).await
}

/// Ends the machines that an interrupted command had told to end.
///
/// # Errors
/// One does not end.
pub(crate) async fn finish_ends(layout: &Layout) -> Result<(), ClusterError> {
    let nodes = layout.existing_nodes()?;
    let ends = nodes.iter().map(|node| async {
        let (dir, name) = (layout.node(node), node.clone());
        blocking(move || supervise::finish_end(&dir)).await?.map_err(|e| ClusterError::Machine {
            action: "stop",
            node: name,
            source: Box::new(e),
        })
    });
    ClusterError::all(join_all(ends).await.into_iter().filter_map(Result::err).collect())
}

/// Takes the lock of a machine that was stopped, so that nobody starts it any more. `None` when it never had a directory.
fn claim(dir: &Path, node: &NodeName) -> Result<Option<Lock>, ClusterError> {
    match files::try_lock(&dir.join("lock")) {
        Ok(Some(lock)) => Ok(Some(lock)),
        Ok(None) => Err(ClusterError::Machine {
            action: "stop",
            node: node.clone(),
            source: Box::new(io::Error::other("it was started again meanwhile")),
        }),
        Err(ClusterError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

async fn cleanup_machine(dir: &Path, node: &NodeName) -> Result<(), ClusterError> {
    let Some(spec) = files::read_json::<MachineSpec>(&dir.join("machine.json")).unwrap_or_default() else {
        return Ok(());
    };
    let name = node.clone();
    blocking(move || supervise::cleanup(&spec)).await?.map_err(|e| ClusterError::Machine {
        action: "clean up after",
        node: name,
        source: Box::new(e),
    })
}

async fn network_down(layout: &Layout, cluster: &ClusterName) -> Result<(), ClusterError> {
    // Without a readable spec an empty one does: names follow from the cluster's.
    let spec =
        files::read_json::<HostNetworkSpec>(&layout.network().join("network.json")).unwrap_or_default();
    let spec = spec.unwrap_or_else(|| HostNetworkSpec {
        cluster: cluster.clone(),
        dir: layout.network(),
        bridges: Vec::new(),
        publish: Vec::new(),
    });
    blocking(move || stead_machine::network::down(&spec))
        .await?
        .map_err(|e| ClusterError::Network { cluster: cluster.clone(), source: Box::new(e) })
}

/// Deletes what is left of a stopped node.
///
/// # Errors
/// It runs again, or something cannot be removed.
pub async fn delete_node(layout: &Layout, node: &NodeName) -> Result<(), ClusterError> {
    let dir = layout.node(node);
    let guard = claim(&dir, node)?;
    cleanup_machine(&dir, node).await?;
    fs::remove_dir_all(&dir).map_err(ClusterError::file("remove", &dir))?;
    drop(guard);
    Ok(())
}
