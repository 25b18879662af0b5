//! The table of engines: what is known of each kind without asking it.
//!
//! Facts only, no effects, so that everyone who meets an engine (the node, the cluster, `stead fleet`, the OpenNebula
//! driver) reads the same row. How its API is spoken is a crate's own affair: `stead_incus::Dialect` for Incus and LXD. A
//! kind without a row does not compile.

use crate::cluster::EngineKind;

/// One row: the facts of one kind of engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineFacts {
    /// Which.
    pub kind: EngineKind,
    /// Its name as its makers write it.
    pub title: &'static str,
    /// Name of its daemon's executable.
    pub daemon: &'static str,
    /// Where the daemon keeps its state in a node.
    pub directory: &'static str,
    /// Environment variable by which the daemon is told of another directory.
    pub directory_variable: &'static str,
    /// Where its unix socket may be on any host, most likely first. In a node it is the one in `directory`.
    pub sockets: &'static [&'static str],
    /// Environment variable by which its stock client is told of its configuration: the only one that a node may set
    /// for a client.
    pub client_variable: &'static str,
    /// Kernel modules that a VM loads before the daemon starts, so that it need not wait for them one by one. A kernel
    /// that has them built in, or an image without, is no worse off.
    pub kernel_modules: &'static [&'static str],
    /// Bridge of each of its nodes, on which instances are beside the node itself.
    pub bridge: Option<&'static str>,
    /// Seconds for a clean stop of one of its nodes.
    pub stop_seconds: u32,
}

/// What containers, VMs as instances, and their firewall need.
const INSTANCE_MODULES: &[&str] =
    &["bridge", "veth", "tun", "nf_tables", "nft_chain_nat", "vhost_net", "vhost_vsock", "loop"];

/// Instances get 30 s by default; the daemon itself needs the rest.
const INSTANCE_STOP_SECONDS: u32 = 60;

/// Seconds for a clean stop of a node without an engine: its services get 20 s each by default, in an order.
const PLAIN_STOP_SECONDS: u32 = 60;

/// Seconds after which a node with any engine, or without one, has stopped cleanly.
pub const LONGEST_STOP_SECONDS: u32 = {
    let (mut longest, mut i) = (PLAIN_STOP_SECONDS, 0);
    while i < TABLE.len() {
        if TABLE[i].stop_seconds > longest {
            longest = TABLE[i].stop_seconds;
        }
        i += 1;
    }
    longest
};

/// Every engine, in the order in which a host is searched for one.
const TABLE: [&EngineFacts; 2] = [&EngineFacts::INCUS, &EngineFacts::LXD];

impl EngineFacts {
    /// Incus 6 and later.
    pub const INCUS: Self = Self {
        kind: EngineKind::Incus,
        title: "Incus",
        daemon: "incusd",
        directory: "/var/lib/incus",
        directory_variable: "INCUS_DIR",
        sockets: &["/var/lib/incus/unix.socket", "/run/incus/unix.socket"],
        client_variable: "INCUS_CONF",
        kernel_modules: INSTANCE_MODULES,
        bridge: Some("br0"),
        stop_seconds: INSTANCE_STOP_SECONDS,
    };
    /// LXD 5.0.
    pub const LXD: Self = Self {
        kind: EngineKind::Lxd,
        title: "LXD",
        daemon: "lxd",
        directory: "/var/lib/lxd",
        directory_variable: "LXD_DIR",
        // As a snap it keeps it in the snap's own directory.
        sockets: &["/var/snap/lxd/common/lxd/unix.socket", "/var/lib/lxd/unix.socket"],
        client_variable: "LXD_CONF",
        kernel_modules: INSTANCE_MODULES,
        bridge: Some("br0"),
        stop_seconds: INSTANCE_STOP_SECONDS,
    };

    /// Every engine, in the order in which a host is searched for one.
    pub fn all() -> impl Iterator<Item = &'static Self> {
        TABLE.into_iter()
    }
    /// The daemon's unix socket in a node.
    pub fn node_socket(&self) -> String {
        format!("{}/unix.socket", self.directory)
    }
}

impl EngineKind {
    /// Its row; `None` for [`EngineKind::None`].
    pub fn facts(self) -> Option<&'static EngineFacts> {
        match self {
            Self::None => None,
            Self::Incus => Some(&EngineFacts::INCUS),
            Self::Lxd => Some(&EngineFacts::LXD),
        }
    }
    /// Seconds for a clean stop of a node with this engine, or without one.
    pub fn stop_seconds(self) -> u32 {
        self.facts().map_or(PLAIN_STOP_SECONDS, |f| f.stop_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kind that a cluster file may name.
    fn kinds() -> Vec<EngineKind> {
        let schema = serde_json::to_value(schemars::schema_for!(EngineKind)).unwrap();
        let variants = schema["oneOf"].as_array().unwrap().iter().map(|v| v["const"].clone());
        variants.map(|word| serde_json::from_value(word).unwrap()).collect()
    }

    #[test]
    fn every_kind_has_one_row() {
        let kinds = kinds();
        assert!(kinds.contains(&EngineKind::None) && kinds.len() > 1, "{kinds:?}");
        for kind in kinds {
            let rows: Vec<_> = EngineFacts::all().filter(|f| f.kind == kind).collect();
            match kind.facts() {
                None => assert!(kind.is_none() && rows.is_empty(), "{kind}"),
                Some(facts) => assert_eq!((facts.kind, rows), (kind, vec![facts]), "{kind}"),
            }
        }
    }

    #[test]
    fn rows_do_not_share_what_tells_engines_apart() {
        for (i, a) in EngineFacts::all().enumerate() {
            assert!(a.sockets.contains(&a.node_socket().as_str()), "{}", a.title);
            for b in EngineFacts::all().skip(i + 1) {
                assert_ne!(a.daemon, b.daemon);
                assert_ne!(a.directory, b.directory);
                assert_ne!(a.client_variable, b.client_variable);
                assert!(!a.sockets.iter().any(|s| b.sockets.contains(s)), "{} {}", a.title, b.title);
            }
        }
    }
}
