//! A cluster's host network: one network namespace with bridges, dnsmasq, NAT and published ports.

pub mod spec;
pub use spec::*;
