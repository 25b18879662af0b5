//! Clusters made by Stead: turns a cluster file into machines, networks and one engine, and keeps them so.
//!
//! observe -> plan -> check -> execute: [`desired`] computes what should be, [`observe`] what is, [`plan`] (pure) the
//! steps and their order, [`check`] (pure and independent) whether the plan is sound, and [`up`] executes it. State is
//! files under one directory ([`layout`]), written atomically and guarded by a lock; whatever is killed at whatever
//! moment, `up` can continue and `down` can clean up.
//!
//! Does not own machines and networks (`stead-machine`), nodes (`stead-node`) or images (`stead-image`).

mod blocking;
pub mod check;
mod claim;
pub mod client_env;
pub mod desired;
pub mod dial;
pub mod down;
pub mod error;
pub mod event;
mod execute;
pub mod files;
#[cfg(test)]
mod fixtures;
mod health;
mod identities;
pub mod layout;
mod machines;
mod members;
pub mod observe;
pub mod plan;
mod prepare;
pub mod record;
pub mod remote;
#[cfg(test)]
mod scenarios;
mod site;
mod starts;
pub mod status;
pub mod up;
mod wait;

pub use error::ClusterError;
pub use event::{Event, Events};
pub use layout::Layout;
pub use plan::Plan;
pub use record::Record;

use std::path::PathBuf;
use stead_image::Store;

/// Paths on this host: everything a verb needs besides its arguments.
#[derive(Debug, Clone)]
pub struct Host {
    /// State directory, e.g. `/var/lib/stead`.
    pub state_dir: PathBuf,
    /// The `stead` binary, from which supervisors are started.
    pub exe: PathBuf,
}

impl Host {
    /// The image store.
    ///
    /// # Errors
    /// It cannot be opened or made.
    pub fn store(&self) -> Result<Store, ClusterError> {
        Ok(Store::open(&self.state_dir.join("images"))?)
    }
    /// The files of one cluster.
    pub fn layout(&self, cluster: &stead_model::ClusterName) -> Layout {
        Layout::new(&self.state_dir, cluster)
    }
    /// Names of the clusters that have a record here, sorted.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn clusters(&self) -> Result<Vec<stead_model::ClusterName>, ClusterError> {
        Layout::list(&self.state_dir)
    }
}
