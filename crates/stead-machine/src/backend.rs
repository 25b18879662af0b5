//! Which backend `auto` means on this host.

use crate::doctor::HostFacts;
use stead_model::cluster::Backend;

/// A backend and the reason for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// `namespace` or `qemu`.
    pub backend: Backend,
    /// Why, a sentence fragment for people.
    pub why: String,
}

/// Decision 10 of the design. Pure.
pub fn choose(facts: &HostFacts) -> Choice {
    let _ = facts;
    unimplemented!()
}
