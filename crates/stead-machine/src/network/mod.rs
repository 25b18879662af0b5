//! A cluster's host network: one network namespace with bridges, dnsmasq, NAT and published ports.

pub mod spec;
pub use spec::*;

use crate::TeardownError;
use std::path::Path;

/// Why a network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Another supervisor holds the lock.
    #[error("network of {0} is already supervised")]
    AlreadyRuns(String),
}

/// Makes the network as the spec says, starting from whatever is there; idempotent. Returns once dnsmasq answers and
/// published ports listen.
pub fn up(exe: &Path, spec: &HostNetworkSpec) -> Result<NetworkState, NetworkError> {
    let _ = (exe, spec);
    unimplemented!()
}
/// Body of `stead network run FILE`: dnsmasq and the published ports. Blocks until SIGTERM.
pub fn run(spec: HostNetworkSpec) -> Result<(), NetworkError> {
    let _ = spec;
    unimplemented!()
}
/// What the supervisor says, or `None` when the network is not (wholly) there.
pub fn observe(spec: &HostNetworkSpec) -> Option<NetworkState> {
    let _ = spec;
    unimplemented!()
}
/// Removes everything: supervisor, namespace, NAT. Idempotent.
pub fn down(spec: &HostNetworkSpec) -> Result<(), TeardownError> {
    let _ = spec;
    unimplemented!()
}
