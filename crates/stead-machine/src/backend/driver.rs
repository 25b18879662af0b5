//! What every backend is asked, and does.

use crate::{
    MachineError, MachineSpec, TeardownError,
    guest::Guest,
    host::{HostFacts, Tool},
    links::LinkKind,
    spec::Accelerator,
};
use futures_util::future::LocalBoxFuture;
use std::{sync::Arc, time::Duration};
use stead_model::Bytes;

/// What a backend needs, and what its machines get where a cluster file leaves it open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// Whether it boots the image's kernel and initrd.
    pub needs_kernel: bool,
    /// CPUs of a machine; `None` for no limit.
    pub cpus: Option<u32>,
    /// Memory of a machine; `None` for no limit.
    pub memory: Option<Bytes>,
    /// How long its nodes may take to start when nothing is emulated.
    pub patience: Patience,
}

/// How long a node may take from the start of its machine, on a host that has far too much to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Until its agent answers.
    pub agent: Duration,
    /// Until its services and its engine run.
    pub running: Duration,
}

/// One backend. It has no state: what it knows of a machine is in the spec, or in what [`Driver::prepare`] gives.
pub(crate) trait Driver: Sync {
    /// What it needs and gives.
    fn profile(&self) -> Profile;
    /// Programs it runs on the host.
    fn tools(&self) -> &'static [Tool];
    /// What keeps it from working on this host, as fragments for people; empty when nothing does.
    fn obstacles(&self, host: &HostFacts) -> Vec<String>;
    /// What runs the guests' instructions on this host; `None` when they share the host's kernel.
    fn accelerator(&self, host: &HostFacts) -> Option<Accelerator>;
    /// What stands at the host's end of its machines' interfaces.
    fn link_kind(&self) -> LinkKind;
    /// Makes what lasts over the reboots of one machine. What an earlier supervisor left of it is used or replaced.
    fn prepare(&self, spec: &Arc<MachineSpec>) -> Result<Box<dyn Prepared>, MachineError>;
    /// Removes what a machine may have left on the host when its supervisor was killed. Idempotent.
    fn cleanup(&self, spec: &MachineSpec) -> Result<(), TeardownError>;
}

/// A machine between boots.
pub(crate) trait Prepared {
    /// Boots it. The guest dies with the supervisor.
    fn boot(&mut self) -> LocalBoxFuture<'_, Result<Box<dyn Guest>, MachineError>>;
}
