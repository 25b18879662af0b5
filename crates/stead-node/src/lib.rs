//! PID 1 and agent of every Stead node.
//!
//! It is `/init` of the initrd in a VM, and the first process of new namespaces in a namespace machine: [`boot::first`]
//! makes the node's root and enters it; the second stage is [`run`]: network, agent, disks, services, engine, and
//! finally an ordered stop by [`power`]. A failed boot ends in [`rescue`], which still answers. Only [`power`] ends PID
//! 1.

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
