//! Machines of a cluster on this host: starts, stops, kills and deletes them.
//!
//! Owns the actions on a machine's supervisor and files. Does not own when or why they happen (`plan`), or what runs in
//! the machine.

use crate::{ClusterError, Layout, blocking::blocking, files};
use futures_util::future::join_all;
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};
use stead_agent::Client;
use stead_files::Lock;
use stead_machine::{MachineSpec, supervise};
use stead_model::{NodeName, NodeSpec, agent::StopRequest};

/// Time limit for a node to stop its services.
const STOP_SECONDS: u32 = stead_model::engine::LONGEST_STOP_SECONDS;
/// Time limit for a machine to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(STOP_SECONDS as u64 + 5);

fn machine<E: std::error::Error + Send + Sync + 'static>(
    action: &'static str,
    node: &NodeName,
) -> impl FnOnce(E) -> ClusterError + use<E> {
    let node = node.clone();
    move |e| ClusterError::Machine { action, node, source: Box::new(e) }
}

/// Starts a machine with this spec; returns when its supervisor runs.
///
/// # Errors
/// Its files cannot be written, or the supervisor does not start.
pub(crate) async fn start(exe: PathBuf, spec: MachineSpec, node: &NodeSpec) -> Result<(), ClusterError> {
    files::private_dir(&spec.spec_dir)?;
    files::private_dir(&spec.dir.join("disks"))?;
    files::write_json(&spec.spec_dir.join("node.json"), node)?;
    let name = spec.name.clone();
    blocking("start a machine", move || supervise::spawn(&exe, &spec))
        .await?
        .map_err(machine("start", &name))?;
    Ok(())
}

/// Stops a machine: its agent, if there is one, ends the services in order; what is left after the deadline is killed.
/// Does nothing to a machine that does not run.
///
/// # Errors
/// It still runs.
pub(crate) async fn stop(dir: &Path, node: &NodeName, agent: Option<&Client>) -> Result<(), ClusterError> {
    if let Some(agent) = agent
        && supervise::observe(dir).is_some()
    {
        // Recorded before the agent is asked: a machine that is told to end does not crash.
        supervise::announce_end(dir).map_err(machine("stop", node))?;
        // If the agent does not answer, the supervisor's signal ends the machine.
        let _ = agent.shutdown(&StopRequest { deadline_s: STOP_SECONDS }).await;
    }
    let dir = dir.to_owned();
    blocking("stop a machine", move || supervise::stop(&dir, STOP_PATIENCE))
        .await?
        .map_err(machine("stop", node))
}

/// Kills a machine. Does nothing to a machine that does not run.
///
/// # Errors
/// It still runs.
pub(crate) async fn kill(dir: &Path, node: &NodeName) -> Result<(), ClusterError> {
    let dir = dir.to_owned();
    blocking("kill a machine", move || supervise::kill(&dir)).await?.map_err(machine("kill", node))
}

/// Ends the machines that an interrupted command had begun to end.
///
/// # Errors
/// One does not end.
pub(crate) async fn finish_ends(layout: &Layout) -> Result<(), ClusterError> {
    let nodes = layout.existing_nodes()?;
    let ends = nodes.iter().map(|node| async {
        let dir = layout.node(node);
        blocking("stop a machine", move || supervise::finish_end(&dir)).await?.map_err(machine("stop", node))
    });
    ClusterError::all(join_all(ends).await.into_iter().filter_map(Result::err).collect())
}

/// Takes the lock of a stopped machine, so that no process can start it. `None` when it never had a directory.
///
/// # Errors
/// It runs, or the lock cannot be opened.
pub(crate) fn hold(dir: &Path, node: &NodeName) -> Result<Option<Lock>, ClusterError> {
    match files::try_lock(&dir.join("lock")) {
        Ok(Some(lock)) => Ok(Some(lock)),
        Ok(None) => Err(ClusterError::Machine {
            action: "stop",
            node: node.clone(),
            source: Box::new(io::Error::other("it was started again")),
        }),
        Err(ClusterError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Removes the remains of a killed supervisor from the host. The machine must not run.
///
/// # Errors
/// Something cannot be removed.
pub(crate) async fn clean_up(dir: &Path, node: &NodeName) -> Result<(), ClusterError> {
    let Some(spec) = files::read_json::<MachineSpec>(&dir.join("machine.json")).unwrap_or_default() else {
        return Ok(());
    };
    blocking("clean up after a machine", move || supervise::cleanup(&spec))
        .await?
        .map_err(machine("clean up after", node))
}

/// Deletes the files of a stopped machine, including its disks.
///
/// # Errors
/// It runs again, or something cannot be removed.
pub(crate) async fn delete(dir: &Path, node: &NodeName) -> Result<(), ClusterError> {
    let guard = hold(dir, node)?;
    clean_up(dir, node).await?;
    fs::remove_dir_all(dir).map_err(ClusterError::file("remove", dir))?;
    drop(guard);
    Ok(())
}
