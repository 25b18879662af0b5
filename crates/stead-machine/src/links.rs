//! A machine's links on the host: their names, and the cluster's network namespace that they are in.

use crate::{MachineError, MachineSpec, netns};
use sha2::{Digest, Sha256};
use std::os::fd::OwnedFd;
use stead_model::NodeName;

/// What stands at the host's end of a machine's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkKind {
    /// One end of a veth pair.
    Veth,
    /// A tap.
    Tap,
}

impl LinkKind {
    fn letter(self) -> char {
        match self {
            Self::Veth => 'v',
            Self::Tap => 't',
        }
    }
}

/// Name of the host's end of an interface: unique in the cluster's namespace, within the kernel's 15 characters.
pub(crate) fn link_name(kind: LinkKind, node: &NodeName, index: usize) -> String {
    let digest = Sha256::digest(node.as_str());
    let hex: String = digest[..5].iter().map(|b| format!("{b:02x}")).collect();
    format!("{}{hex}{index}", kind.letter())
}

/// Opens the network namespace of the machine's cluster.
pub(crate) fn open_netns(spec: &MachineSpec) -> Result<OwnedFd, MachineError> {
    netns::open(&spec.netns).map_err(|source| MachineError::NoNetwork { netns: spec.netns.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_are_short_and_differ() {
        let long = "n".repeat(48).parse().unwrap();
        let a = link_name(LinkKind::Veth, &long, 12);
        assert!(a.len() <= 15, "{a}");
        let (one, eleven) = ("node1".parse().unwrap(), "node11".parse().unwrap());
        assert_ne!(link_name(LinkKind::Veth, &one, 1), link_name(LinkKind::Veth, &eleven, 0));
        assert_ne!(link_name(LinkKind::Veth, &one, 0), link_name(LinkKind::Tap, &one, 0));
    }
}
