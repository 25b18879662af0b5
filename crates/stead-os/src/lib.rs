//! What Stead asks of Linux in more than one place, each written once.
//!
//! Owns mechanism only: how a mount table is read, how a loop device is attached, how a process enters a cgroup, how a
//! program is run, how QEMU is spoken to, and how an error names its file and its causes. Decides nothing, keeps no
//! state, and depends on no other crate of Stead.

pub mod cgroup;
pub mod command;
mod error;
pub mod loops;
pub mod mountinfo;
#[cfg(feature = "qmp")]
pub mod qmp;

pub use command::{CommandError, Output, Program};
pub use error::{Chain, PathContext, PathError, chain};
pub use loops::LoopDevice;
