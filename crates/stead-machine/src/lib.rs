//! Machine spec to invocation to supervised process; the host networks machines are on; `doctor`.
//!
//! A machine is supervised by its own process (`stead machine run FILE`, [`supervise::run`]); the command line that
//! started it may die and come back. That process holds an exclusive `flock` on `<dir>/lock` for as long as it lives:
//! the lock, not a pid, says whether a machine runs.

pub mod backend;
mod cgroup;
mod daemon;
mod disks;
pub mod doctor;
mod files;
pub mod layers;
mod mountinfo;
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
pub use netlink::LinkError;
pub use spec::{MachinePhase, MachineSpec, MachineState};
pub use teardown::TeardownError;
