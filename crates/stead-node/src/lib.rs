//! PID 1 and agent of every Stead node.
//!
//! In a VM it is `/init` of the initrd, in a namespace machine the first process of fresh namespaces: [`boot::first`]
//! makes the node's root and starts the same program in it as `stead-node run`, which is [`run`]: network, agent,
//! disks, services, engine, and at last an ordered stop by [`power`]. What cannot be booted ends in [`rescue`], which
//! still answers. Nothing here ends PID 1 but [`power`].

pub mod api;
pub mod blocking;
pub mod boot;
pub mod cgroups;
pub mod command;
pub mod disks;
pub mod engine;
pub mod handle;
#[cfg(test)]
mod layers;
pub mod log;
pub mod modules;
pub mod mounts;
pub mod network;
pub mod power;
pub mod reaper;
pub mod rescue;
pub mod run;
pub mod services;
pub mod state;
pub mod sysctl;

use stead_os::chain;
