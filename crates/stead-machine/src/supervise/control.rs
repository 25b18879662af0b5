//! The other side of the lock: starts a supervisor, reads its state, ends it, and cleans up after a killed one.

use crate::{
    MachineError, MachinePhase, MachineSpec, MachineState, TeardownError, backend,
    daemon::{self, End},
    files::{self, Durability},
};
use rustix::process::Signal;
use std::{ffi::OsStr, path::Path, time::Duration};
use stead_os::PathContext;

/// A supervisor writes its state at once; the rest is for an overloaded host.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long a supervisor may take to remove what it made, after its machine has ended.
const TEARDOWN_PATIENCE: Duration = Duration::from_secs(30);

/// How long a machine that is stopping may take; its supervisor kills it after `stop_timeout_s`.
const FINISH_PATIENCE: Duration = Duration::from_secs(65);

/// Writes `<dir>/machine.json` and starts `exe machine run <dir>/machine.json` detached; returns its pid once it holds
/// the lock.
///
/// # Errors
/// [`MachineError::AlreadyRuns`]; [`MachineError::Teardown`] when the directory's last machine was of another backend
/// and cannot be cleaned up; or [`MachineError::Daemon`] with the end of `supervisor.log` when it ended early.
pub fn spawn(exe: &Path, spec: &MachineSpec) -> Result<i32, MachineError> {
    let dir = &spec.dir;
    files::private_dir(dir).at("make", dir)?;
    if files::is_supervised(dir) {
        return Err(MachineError::AlreadyRuns(dir.clone()));
    }
    let file = dir.join("machine.json");
    // A machine of another backend neither uses nor removes what a killed supervisor left.
    if let Some(old) = files::read_json::<MachineSpec>(&file).filter(|old| old.backend != spec.backend) {
        cleanup(&old).map_err(MachineError::Teardown)?;
    }
    files::write_json(&file, spec, Durability::Durable).at("write", &file)?;
    let args = [OsStr::new("machine"), OsStr::new("run"), file.as_os_str()];
    let is_up = |pid| observe(dir).is_some_and(|s| s.supervisor_pid == pid);
    Ok(daemon::start(exe, &args, dir, START_PATIENCE, is_up)?)
}

/// The supervisor's state, or `None` when none holds the lock. After [`announce_end`], [`stop`] or [`kill`] the phase is
/// [`MachinePhase::Stopping`], even before the signal has arrived.
pub fn observe(dir: &Path) -> Option<MachineState> {
    let mut state = files::is_supervised(dir).then(|| last_state(dir)).flatten()?;
    if daemon::announced_end(dir).is_some() {
        state.phase = MachinePhase::Stopping;
    }
    Some(state)
}

/// Notes that the running machine is to end. Call it before ending the machine by other means than [`stop`], such as
/// through its agent.
///
/// # Errors
/// The note cannot be written.
pub fn announce_end(dir: &Path) -> Result<(), MachineError> {
    Ok(daemon::announce_end(dir, End::Stop).at("note the end of", dir)?)
}

/// The last state that a supervisor wrote, whether or not it lives: it has the reason why a machine ended.
pub fn last_state(dir: &Path) -> Option<MachineState> {
    files::read_json(&dir.join("state.json"))
}

/// Stops the machine cleanly and waits until the supervisor is gone; after `timeout` the machine is killed. Does nothing
/// when none runs.
///
/// # Errors
/// [`MachineError::Daemon`] when even a killed one does not end.
pub fn stop(dir: &Path, timeout: Duration) -> Result<(), MachineError> {
    Ok(daemon::end(dir, End::Stop, &[(Signal::TERM, timeout), (Signal::QUIT, TEARDOWN_PATIENCE)])?)
}

/// Kills machine and supervisor at once and waits until the lock is free.
///
/// # Errors
/// [`MachineError::Daemon`] when it does not end.
pub fn kill(dir: &Path) -> Result<(), MachineError> {
    Ok(daemon::end(dir, End::Kill, &[(Signal::QUIT, TEARDOWN_PATIENCE)])?)
}

/// Finishes what an interrupted command began: a machine that is [`MachinePhase::Stopping`] is gone when this returns.
/// Any other is left alone.
///
/// # Errors
/// [`MachineError::Daemon`] when it does not end.
pub fn finish_end(dir: &Path) -> Result<(), MachineError> {
    let Some(state) = observe(dir) else { return Ok(()) };
    if matches!(state.phase, MachinePhase::Starting | MachinePhase::Running) {
        return Ok(());
    }
    match daemon::announced_end(dir) {
        Some(End::Kill) => kill(dir),
        // No note: it ended by itself and is being cleaned up.
        Some(End::Stop) | None => stop(dir, FINISH_PATIENCE),
    }
}

/// Removes what a killed supervisor may have left: processes, cgroups, links, sockets. Idempotent. The machine must not
/// run.
///
/// # Errors
/// Everything that could not be removed.
pub fn cleanup(spec: &MachineSpec) -> Result<(), TeardownError> {
    backend::driver(spec.backend).cleanup(spec)
}
