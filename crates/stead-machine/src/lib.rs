//! Machine spec to invocation to supervised process; the host networks machines are on; `doctor`.
//!
//! A machine is supervised by its own process (`stead machine run FILE`, [`supervise::run`]); the command line that
//! started it may die and come back. That process holds an exclusive `flock` on `<dir>/lock` for as long as it lives:
//! the lock, not a pid, says whether a machine runs.

pub mod backend;
mod cgroup;
mod console;
mod daemon;
mod disks;
pub mod doctor;
mod error;
mod files;
mod guest;
pub mod host;
pub mod layers;
mod links;
mod netlink;
pub mod netns;
pub mod network;
pub mod spec;
pub mod supervise;
mod sys;
pub mod teardown;
mod tether;

pub use cgroup::CgroupError;
pub use daemon::DaemonError;
pub use error::MachineError;
pub use netlink::LinkError;
pub use spec::{Accelerator, MachinePhase, MachineSpec, MachineState};
pub use teardown::TeardownError;
