//! Operations on Linux that more than one crate of Stead needs.
//!
//! Owns mechanism only: reading the mount table, attaching loop devices, entering cgroups, running programs, speaking
//! QMP, and errors that show their file and causes. Makes no decisions, keeps no state, and depends on no other crate
//! of Stead.

pub mod cgroup;
pub mod command;
mod error;
pub mod loops;
pub mod mountinfo;
pub mod origin;
#[cfg(feature = "qmp")]
pub mod qmp;

pub use command::{CommandError, Output, Program};
pub use error::{Chain, PathContext, PathError, chain};
pub use loops::LoopDevice;
