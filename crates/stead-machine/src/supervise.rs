//! One process per machine: start it, watch it, start it again on reboot, take everything down with it.

use crate::{MachineSpec, MachineState, TeardownError};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// Why a machine could not be started, watched or stopped.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Another supervisor holds the lock.
    #[error("machine in {} already runs", .0.display())]
    AlreadyRuns(PathBuf),
}

/// Body of `stead machine run FILE`: supervises the machine until it powers off or is stopped. Blocks.
pub fn run(spec: MachineSpec) -> Result<(), MachineError> {
    let _ = spec;
    unimplemented!()
}
/// Writes `<dir>/machine.json` and starts `exe machine run <dir>/machine.json` detached; returns its pid once it holds
/// the lock. A supervisor that ends early is an error that carries the end of `supervisor.log`.
pub fn spawn(exe: &Path, spec: &MachineSpec) -> Result<i32, MachineError> {
    let _ = (exe, spec);
    unimplemented!()
}
/// What the supervisor says, or `None` when none holds the lock.
pub fn observe(dir: &Path) -> Option<MachineState> {
    let _ = dir;
    unimplemented!()
}
/// Stops cleanly, waiting until the supervisor is gone; after `timeout` it is killed. Nothing running: nothing done.
pub fn stop(dir: &Path, timeout: Duration) -> Result<(), MachineError> {
    let _ = (dir, timeout);
    unimplemented!()
}
/// Kills machine and supervisor at once and waits until the lock is free.
pub fn kill(dir: &Path) -> Result<(), MachineError> {
    let _ = dir;
    unimplemented!()
}
/// Removes what a killed supervisor may have left: cgroups, processes in them. Idempotent. The machine must not run.
pub fn cleanup(spec: &MachineSpec) -> Result<(), TeardownError> {
    let _ = spec;
    unimplemented!()
}
