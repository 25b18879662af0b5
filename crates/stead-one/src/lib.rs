//! The OpenNebula driver: the scripts that `one_vmm_exec` and the monitoring probes call on a host, on Incus and LXD.
//!
//! Owns the scripts' protocol ([`scripts`], [`payload`], [`say`]), OpenNebula's documents ([`document`]) and
//! configuration ([`lxdrc`]), the mapping to instances ([`instance`]), the disks of a VM on its host ([`disks`]),
//! monitoring ([`monitor`]), the console and the installation. Does not own the engines' API (`stead-incus`) or the
//! work of OpenNebula's transfer and network drivers.

pub mod check;
pub mod console;
pub mod context;
pub mod disks;
pub mod document;
pub mod engine;
pub mod ids;
pub mod install;
pub mod instance;
pub mod lxdrc;
pub mod monitor;
pub mod payload;
pub mod raw;
pub mod say;
pub mod scripts;

pub use context::Context;
