//! The other side of the lock: starting a supervisor, asking it, ending it, and clearing up after a killed one.

use super::MachineError;
use crate::{
    MachineSpec, MachineState, TeardownError, daemon,
    files::{self, Durability},
    namespace,
};
use rustix::process::Signal;
use std::{ffi::OsStr, path::Path, time::Duration};

/// A supervisor says who it is at once; this is for a host with far too much to do.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long a supervisor may take, beyond its machine, to take down what it made.
const TEARDOWN_PATIENCE: Duration = Duration::from_secs(30);

/// Writes `<dir>/machine.json` and starts `exe machine run <dir>/machine.json` detached; returns its pid once it holds
/// the lock.
///
/// # Errors
/// [`MachineError::AlreadyRuns`]; or [`MachineError::Daemon`] with the end of `supervisor.log` when it ended early.
pub fn spawn(exe: &Path, spec: &MachineSpec) -> Result<i32, MachineError> {
    let dir = &spec.dir;
    files::private_dir(dir).map_err(MachineError::file("make", dir))?;
    if files::is_locked(dir, "lock") {
        return Err(MachineError::AlreadyRuns(dir.clone()));
    }
    let file = dir.join("machine.json");
    files::write_json(&file, spec, Durability::Durable).map_err(MachineError::file("write", &file))?;
    let args = [OsStr::new("machine"), OsStr::new("run"), file.as_os_str()];
    let is_up = |pid| observe(dir).is_some_and(|s| s.supervisor_pid == pid);
    Ok(daemon::start(exe, &args, dir, START_PATIENCE, is_up)?)
}

/// What the supervisor says, or `None` when none holds the lock.
pub fn observe(dir: &Path) -> Option<MachineState> {
    files::is_locked(dir, "lock").then(|| last_state(dir)).flatten()
}

/// What the last supervisor said, whether or not it lives: for why a machine ended.
pub fn last_state(dir: &Path) -> Option<MachineState> {
    files::read_json(&dir.join("state.json"))
}

/// Stops cleanly, waiting until the supervisor is gone; after `timeout` the machine is killed. Nothing running: nothing
/// done.
///
/// # Errors
/// [`MachineError::Daemon`] when even a killed one does not end.
pub fn stop(dir: &Path, timeout: Duration) -> Result<(), MachineError> {
    Ok(daemon::end(dir, &[(Signal::TERM, timeout), (Signal::QUIT, TEARDOWN_PATIENCE)])?)
}

/// Kills machine and supervisor at once and waits until the lock is free.
///
/// # Errors
/// [`MachineError::Daemon`] when it does not end.
pub fn kill(dir: &Path) -> Result<(), MachineError> {
    Ok(daemon::end(dir, &[(Signal::QUIT, TEARDOWN_PATIENCE)])?)
}

/// Removes what a killed supervisor may have left: cgroups, processes in them, links. Idempotent. The machine must not
/// run.
///
/// # Errors
/// Everything that could not be removed.
pub fn cleanup(spec: &MachineSpec) -> Result<(), TeardownError> {
    namespace::cleanup(spec)
}
