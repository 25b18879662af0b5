//! The cluster file: machines, networks and one engine.

mod check;

use crate::{
    names::{ClusterName, ImageName, MacAddress, NodeName},
    preseed,
    recipe::{OverlaySource, Scalar, Service},
    sizes::{Bytes, Memory},
    text::{self, SpecError},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::IntoDeserializer as _};
use serde_untagged::UntaggedEnumVisitor;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
};

/// Limit on the nodes of a cluster file: one /24's worth, as in xcluster.
pub const MAX_NODES: u32 = 250;

/// Kind of the engine that runs on the nodes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema, Default,
)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// No engine.
    #[default]
    None,
    /// Incus.
    Incus,
    /// LXD.
    Lxd,
}

impl EngineKind {
    /// Whether there is no engine.
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}
impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Incus => "incus",
            Self::Lxd => "lxd",
        })
    }
}

/// How a machine is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Hash)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Linux namespaces on this host's kernel.
    Namespace,
    /// QEMU, with KVM where it works.
    Qemu,
}
impl Backend {
    /// Whether its machines run a kernel of their own, which needs memory.
    pub(crate) fn has_kernel(self) -> bool {
        match self {
            Self::Namespace => false,
            Self::Qemu => true,
        }
    }
}
impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// The backend chosen in a cluster file: `auto`, or a backend's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema, Default, Hash)]
#[serde(rename_all = "lowercase")]
pub enum BackendChoice {
    /// The best backend that works on this host; `stead doctor` says which one and why.
    #[default]
    Auto,
    /// A backend by name.
    #[serde(untagged)]
    Fixed(Backend),
}
impl BackendChoice {
    /// The chosen backend, or `auto` if the choice is automatic.
    pub fn or(self, auto: Backend) -> Backend {
        match self {
            Self::Auto => auto,
            Self::Fixed(backend) => backend,
        }
    }
}
impl From<Backend> for BackendChoice {
    fn from(backend: Backend) -> Self {
        Self::Fixed(backend)
    }
}
impl fmt::Display for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}
/// Implemented by hand: the error of a derived untagged variant would not list the valid names.
impl<'de> Deserialize<'de> for BackendChoice {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let word = String::deserialize(d)?;
        if word == "auto" {
            return Ok(Self::Auto);
        }
        let named: Result<_, serde::de::value::Error> = Backend::deserialize(word.into_deserializer());
        named.map(Self::Fixed).map_err(|e| serde::de::Error::custom(format_args!("{e}, or `auto`")))
    }
}

/// A cluster file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterSpec {
    /// Name of the cluster, also its DNS domain.
    pub name: ClusterName,
    /// Image the nodes boot: a name in the store.
    pub image: ImageName,
    /// Number of nodes (named node1, node2, …), or a list of them.
    pub nodes: Nodes,
    /// Resources of each machine.
    #[serde(default)]
    pub machine: MachineDefaults,
    /// Networks; if absent, one named `lan` with private prefixes. Agents, engine and instances use the first network.
    #[serde(default)]
    pub networks: Vec<Network>,
    /// The engine; if absent, the image's.
    #[serde(default)]
    pub engine: Option<Engine>,
    /// Overlays put over the image at boot, in order.
    #[serde(default)]
    pub overlays: Vec<OverlaySource>,
    /// Kernel parameters on every node.
    #[serde(default)]
    pub sysctl: BTreeMap<String, Scalar>,
    /// Services on every node, in addition to the image's.
    #[serde(default)]
    pub services: Vec<Service>,
    /// Ports of nodes published on this host: `127.0.0.1:8443:node1:8443`.
    #[serde(default)]
    pub publish: Vec<Publish>,
}

/// A number of nodes, or a list of them.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Nodes {
    /// A number of nodes, named node1 … nodeN.
    Count(u32),
    /// Named nodes with overrides.
    List(Vec<NodeEntry>),
}

impl<'de> Deserialize<'de> for Nodes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        UntaggedEnumVisitor::new()
            .expecting("a number of nodes or a list of them")
            .u32(|n| Ok(Self::Count(n)))
            .seq(|list| list.deserialize().map(Self::List))
            .deserialize(deserializer)
    }
}

/// One node of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeEntry {
    /// Its name.
    pub name: NodeName,
    /// Overrides of the cluster's `machine`, key by key.
    #[serde(default)]
    pub machine: MachineDefaults,
    /// Overlays, in addition to the cluster's.
    #[serde(default)]
    pub overlays: Vec<OverlaySource>,
    /// Fixed addresses on the first network, instead of the computed ones.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// Resources of a machine. Every key may be left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
pub struct MachineDefaults {
    /// `auto` or a backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendChoice>,
    /// Number of CPUs; for namespaces a limit on CPU time. If absent, 2 for qemu and unlimited for namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Memory, as an amount or a share of the host's. If absent, 2GiB for qemu and unlimited for namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// Disks: sparse files, created blank at the first `up` and kept until `down`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<Vec<Disk>>,
    /// Whether changes to the root are kept on the disk of role `data` instead of in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_root: Option<bool>,
}

/// Purpose of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum DiskRole {
    /// The engine's state directory (and the root's changes with `persistent_root`): ext4, kept over reboots.
    Data,
    /// The engine's storage pool (btrfs).
    Storage,
    /// For the user: attached with its name as serial, and otherwise unused unless the image has a rule for it.
    #[default]
    Other,
}

/// A disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Name and serial: letters, digits and '-', at most 20 characters (virtio's limit).
    pub name: String,
    /// Its size.
    pub size: Bytes,
    /// Its purpose.
    #[serde(default)]
    pub role: DiskRole,
}

/// A network: one bridge in the cluster's network namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Name, at most 10 characters.
    pub name: String,
    /// IPv4 prefix, /8 to /28; the host has its first address. Absent for none (the default network has 10.88.0.0/24).
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub ipv4: Option<Ipv4Net>,
    /// IPv6 prefix, /64. Absent for none (the default network has fd88::/64).
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub ipv6: Option<Ipv6Net>,
    /// MTU in bytes, at least 1280; 1500 if absent.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Whether this host does NAT for outgoing connections; false if absent.
    #[serde(default)]
    pub nat: bool,
    /// Whether dnsmasq serves DHCP and router advertisements, besides DNS; true if absent.
    #[serde(default = "yes")]
    pub dhcp: bool,
    /// Nodes on it; all if absent.
    #[serde(default)]
    pub nodes: Option<Vec<NodeName>>,
}

fn yes() -> bool {
    true
}

/// The engine of a cluster: its kind, or its kind with options.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Engine {
    /// The kind only.
    Kind(EngineKind),
    /// The kind with options.
    Full(EngineOptions),
}

impl<'de> Deserialize<'de> for Engine {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        UntaggedEnumVisitor::new()
            .expecting("an engine's kind, or its kind with options")
            .string(|kind| EngineKind::deserialize(kind.into_deserializer()).map(Self::Kind))
            .map(|options| options.deserialize().map(Self::Full))
            .deserialize(deserializer)
    }
}

/// Options of an engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EngineOptions {
    /// Its kind.
    pub kind: EngineKind,
    /// Preseed in the engine's format (config, networks, storage_pools, profiles), deep-merged over the generated one.
    /// Its scalars are those of [`preseed::Written`].
    #[serde(default, deserialize_with = "preseed::shaped")]
    pub preseed: serde_json::Value,
}

/// A published port: `HOST_ADDRESS:HOST_PORT:NODE:NODE_PORT`; an IPv6 host address is in brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Address and port on this host; port 0 stands for any free port.
    pub listen: SocketAddr,
    /// The node.
    pub node: NodeName,
    /// Port on the node.
    pub port: u16,
}

impl std::str::FromStr for Publish {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let bad = |why: &str| {
            format!(
                "publish {:?} {why}; write HOST_ADDRESS:HOST_PORT:NODE:NODE_PORT",
                s.chars().take(120).collect::<String>()
            )
        };
        let mut parts = s.rsplitn(3, ':');
        let (port, node, listen) = match (parts.next(), parts.next(), parts.next()) {
            (Some(p), Some(n), Some(l)) => (p, n, l),
            _ => return Err(bad("has too few parts")),
        };
        Ok(Self {
            listen: listen.parse().map_err(|_| bad("has no host address and port"))?,
            node: node.parse().map_err(|e| bad(&format!("{e}")))?,
            port: port.parse().ok().filter(|p| *p != 0).ok_or_else(|| bad("has no node port"))?,
        })
    }
}
impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.listen, self.node, self.port)
    }
}
impl Serialize for Publish {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Publish {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}
impl JsonSchema for Publish {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Publish".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "description": "HOST_ADDRESS:HOST_PORT:NODE:NODE_PORT" })
    }
}

/// A node with defaults and overrides applied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResolvedNode {
    /// Its name.
    pub name: NodeName,
    /// Position in the cluster, from 0; its addresses derive from it.
    pub index: u32,
    /// Backend, which may still be `auto`.
    pub backend: BackendChoice,
    /// CPUs, if set.
    pub cpus: Option<u32>,
    /// Memory, if set.
    pub memory: Option<Memory>,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// See [`MachineDefaults::persistent_root`].
    pub persistent_root: bool,
    /// Boot overlays: the cluster's, then its own.
    pub overlays: Vec<OverlaySource>,
    /// Its interfaces, one per network it is on.
    pub nics: Vec<ResolvedNic>,
}

/// One interface of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResolvedNic {
    /// `eth0`, `eth1`, … in the order of the networks.
    pub name: String,
    /// The network's name.
    pub network: String,
    /// Hardware address.
    pub mac: MacAddress,
    /// Addresses with prefix lengths.
    pub addresses: Vec<IpNet>,
    /// MTU.
    pub mtu: u16,
}

impl ClusterSpec {
    /// Parses a cluster file and checks the rules that types cannot express.
    ///
    /// # Errors
    /// [`SpecError`] with file, line and key.
    pub fn from_yaml(file: &str, yaml: &str) -> Result<Self, SpecError> {
        let mut spec: Self = text::from_yaml(file, yaml)?;
        if let Some(Engine::Full(options)) = &mut spec.engine
            && !options.preseed.is_null()
        {
            options.preseed = preseed::as_written(file, yaml)?;
        }
        if spec.networks.is_empty() {
            spec.networks.push(Network::default_lan());
        }
        spec.check().map_err(|(key, why)| SpecError::about(file, yaml, &key, why))?;
        Ok(spec)
    }

    /// Checks the rules that types cannot express; the error is (key, message).
    pub fn check(&self) -> Result<(), (String, String)> {
        let fail = |key: &str, why: String| Err((key.to_owned(), why));
        match &self.nodes {
            Nodes::Count(n) if *n == 0 || *n > MAX_NODES => {
                return fail("nodes", format!("{n} is not between 1 and {MAX_NODES}"));
            }
            Nodes::List(l) if l.is_empty() || l.len() > MAX_NODES as usize => {
                return fail("nodes", format!("{} entries are not between 1 and {MAX_NODES}", l.len()));
            }
            _ => {}
        }
        let names = self.node_names();
        let mut seen = BTreeSet::new();
        if let Some(twice) = names.iter().find(|n| !seen.insert(*n)) {
            return fail("nodes", format!("{twice} is listed twice"));
        }
        let mut nets = BTreeSet::new();
        for (i, n) in self.networks.iter().enumerate() {
            let of = |key: &str| format!("networks[{i}].{key}");
            let ok = !n.name.is_empty()
                && n.name.len() <= 10
                && n.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            if !ok {
                return fail(
                    "networks",
                    format!("name {:?} must be 1 to 10 characters of a-z, 0-9 and '-'", n.name),
                );
            }
            if !nets.insert(&n.name) {
                return fail("networks", format!("{} is listed twice", n.name));
            }
            if n.ipv4.is_some_and(|p| p.prefix_len() > 28 || p.prefix_len() < 8) {
                return fail(&of("ipv4"), format!("{}: prefix length must be 8 to 28", n.name));
            }
            if n.ipv6.is_some_and(|p| p.prefix_len() != 64) {
                return fail(&of("ipv6"), format!("{}: prefix length must be 64", n.name));
            }
            if n.mtu.is_some_and(|m| m < 1280) {
                return fail(&of("mtu"), format!("{}: must be at least 1280", n.name));
            }
            if let Some(unknown) = n.nodes.iter().flatten().find(|x| !names.contains(x)) {
                return fail("networks", format!("{}: {unknown} is not a node of this cluster", n.name));
            }
            if let Some(v4) = n.ipv4
                && u64::from(names.len() as u32) + 10 > (1u64 << (32 - v4.prefix_len()))
            {
                return fail(&of("ipv4"), format!("{}: {v4} has no room for {} nodes", n.name, names.len()));
            }
        }
        if self.networks.first().is_some_and(|n| n.ipv4.is_none() && n.ipv6.is_none()) {
            return fail(
                "networks",
                "the first network needs ipv4 or ipv6: agents are reached on it".to_owned(),
            );
        }
        if self.networks.first().is_some_and(|n| n.nodes.is_some()) {
            return fail(
                "networks",
                "the first network cannot have \"nodes\": every node is on it".to_owned(),
            );
        }
        if let Some(p) = self.publish.iter().find(|p| !names.contains(&p.node)) {
            return fail("publish", format!("{} is not a node of this cluster", p.node));
        }
        for node in self.resolve() {
            let mut disks = BTreeSet::new();
            for d in &node.disks {
                if d.name.is_empty()
                    || d.name.len() > 20
                    || !d.name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                {
                    return fail(
                        "disks",
                        format!("name {:?} must be 1 to 20 letters, digits and '-'", d.name),
                    );
                }
                if d.name.starts_with("layer") || d.name == "spec" || !disks.insert(&d.name) {
                    return fail("disks", format!("name {:?} is reserved or used twice", d.name));
                }
                if d.size < Bytes::mib(128) || d.size > Bytes(1 << 46) {
                    return fail(
                        "disks",
                        format!("{}: size {} is not between 128MiB and 64TiB", d.name, d.size),
                    );
                }
            }
            for role in [DiskRole::Data, DiskRole::Storage] {
                if node.disks.iter().filter(|d| d.role == role).count() > 1 {
                    return fail(
                        "disks",
                        format!("{}: more than one disk of role {role:?}", node.name).to_lowercase(),
                    );
                }
            }
            if node.persistent_root && !node.disks.iter().any(|d| d.role == DiskRole::Data) {
                return fail("persistent_root", format!("{} has no disk of role data", node.name));
            }
        }
        check::check(self)
    }

    /// Names of the nodes, in order.
    pub fn node_names(&self) -> Vec<NodeName> {
        match &self.nodes {
            #[allow(clippy::missing_panics_doc)] // "node" and a number is always a name
            Nodes::Count(n) => {
                (1..=*n.min(&MAX_NODES)).map(|i| NodeName::new(format!("node{i}")).expect("a name")).collect()
            }
            Nodes::List(l) => l.iter().map(|e| e.name.clone()).collect(),
        }
    }

    /// The engine's kind, if the file gives one.
    pub fn engine_kind(&self) -> Option<EngineKind> {
        self.engine.as_ref().map(|e| match e {
            Engine::Kind(k) => *k,
            Engine::Full(o) => o.kind,
        })
    }

    /// The user's preseed; null if there is none.
    pub fn preseed(&self) -> serde_json::Value {
        match &self.engine {
            Some(Engine::Full(o)) => o.preseed.clone(),
            _ => serde_json::Value::Null,
        }
    }

    /// All nodes with defaults, overrides and addresses. Node i (from 0) has host part i + 2 on each network, and the
    /// hardware address `02:ad:<net>:<i + 2, 3 bytes>`.
    pub fn resolve(&self) -> Vec<ResolvedNode> {
        let entries: Vec<NodeEntry> = match &self.nodes {
            Nodes::Count(_) => self
                .node_names()
                .into_iter()
                .map(|name| NodeEntry {
                    name,
                    machine: MachineDefaults::default(),
                    overlays: vec![],
                    addresses: vec![],
                })
                .collect(),
            Nodes::List(l) => l.clone(),
        };
        let mut out = Vec::with_capacity(entries.len());
        for (index, e) in entries.into_iter().enumerate() {
            let index = index as u32;
            let m = &self.machine;
            let mut nics = Vec::new();
            for (net, n) in self.networks.iter().enumerate() {
                if n.nodes.as_ref().is_some_and(|l| !l.contains(&e.name)) {
                    continue;
                }
                let [_, b, c, d] = (index + 2).to_be_bytes();
                let addresses = if net == 0 && !e.addresses.is_empty() {
                    e.addresses.iter().map(|a| n.with_prefix_len(*a)).collect()
                } else {
                    n.addresses(index + 2)
                };
                nics.push(ResolvedNic {
                    name: format!("eth{}", nics.len()),
                    network: n.name.clone(),
                    mac: MacAddress([0x02, 0xad, net as u8, b, c, d]),
                    addresses,
                    mtu: n.mtu.unwrap_or(1500),
                });
            }
            out.push(ResolvedNode {
                index,
                backend: e.machine.backend.or(m.backend).unwrap_or_default(),
                cpus: e.machine.cpus.or(m.cpus),
                memory: e.machine.memory.or(m.memory),
                disks: e.machine.disks.clone().or_else(|| m.disks.clone()).unwrap_or_default(),
                persistent_root: e.machine.persistent_root.or(m.persistent_root).unwrap_or(false),
                overlays: self.overlays.iter().chain(&e.overlays).cloned().collect(),
                nics,
                name: e.name,
            });
        }
        out
    }
}

impl Network {
    /// The network of a cluster file without networks.
    pub fn default_lan() -> Self {
        Self {
            name: "lan".into(),
            ipv4: "10.88.0.0/24".parse().ok(),
            ipv6: "fd88::/64".parse().ok(),
            mtu: None,
            nat: false,
            dhcp: true,
            nodes: None,
        }
    }

    /// The addresses with host part `host`, one per address family of this network. Host part 1 is the host's.
    pub fn addresses(&self, host: u32) -> Vec<IpNet> {
        let v4 = self.ipv4.and_then(|p| {
            let a = u32::from(p.network()).checked_add(host)?;
            Some(IpNet::V4(Ipv4Net::new(a.into(), p.prefix_len()).ok()?))
        });
        let v6 = self.ipv6.and_then(|p| {
            Some(IpNet::V6(
                Ipv6Net::new((u128::from(p.network()) | u128::from(host)).into(), p.prefix_len()).ok()?,
            ))
        });
        v4.into_iter().chain(v6).collect()
    }

    fn with_prefix_len(&self, a: IpAddr) -> IpNet {
        match a {
            IpAddr::V4(a) => IpNet::V4(
                Ipv4Net::new(a, self.ipv4.map_or(32, |p| p.prefix_len())).unwrap_or_else(|_| a.into()),
            ),
            IpAddr::V6(a) => IpNet::V6(
                Ipv6Net::new(a, self.ipv6.map_or(128, |p| p.prefix_len())).unwrap_or_else(|_| a.into()),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn resolves_a_count() {
        let c = ClusterSpec::from_yaml(
            "c",
            "name: demo\nimage: incus-node\nnodes: 3\npublish: ['[::1]:0:node2:8443']\n",
        )
        .unwrap();
        let nodes = c.resolve();
        assert_eq!(nodes[2].name.as_str(), "node3");
        assert_eq!(nodes[2].nics[0].addresses[0].to_string(), "10.88.0.4/24");
        assert_eq!(nodes[2].nics[0].addresses[1].to_string(), "fd88::4/64");
        assert_eq!(nodes[2].nics[0].mac.to_string(), "02:ad:00:00:00:04");
        assert_eq!(c.publish[0].to_string(), "[::1]:0:node2:8443");
    }

    #[test]
    fn refuses_what_types_cannot_say() {
        let err = |t: &str| {
            ClusterSpec::from_yaml("c.yaml", &format!("name: demo\nimage: x\n{t}")).unwrap_err().to_string()
        };
        assert_eq!(err("nodes: 0"), "c.yaml:3: nodes: 0 is not between 1 and 250");
        assert!(err("nodes: [{name: a}, {name: a}]").contains("a is listed twice"));
        // Errors below a key with two forms look like other errors.
        insta::assert_snapshot!(err("nodes:\n  - name: a\n    disk: []"), @r#"c.yaml:5:5: unknown key "disk", expected one of name, machine, overlays, addresses"#);
        insta::assert_snapshot!(err("nodes:\n  - {name: a, machine: {memmory: 1GiB}}"), @r#"c.yaml:4:25: unknown key "memmory", expected one of backend, cpus, memory, disks, persistent_root; did you mean "memory"?"#);
        insta::assert_snapshot!(err("nodes: many"), @r#"c.yaml:3:1: invalid type: string "many", expected a number of nodes or a list of them"#);
        insta::assert_snapshot!(err("nodes: -1"), @"c.yaml:3:1: invalid type: integer `-1`, expected a number of nodes or a list of them");
        insta::assert_snapshot!(err("engine: docker"), @r#"c.yaml:3:1: unknown variant "docker", expected one of none, incus, lxd"#);
        insta::assert_snapshot!(err("nodes: 1\nmachine: {backend: quemu}"), @r#"c.yaml:4:20: unknown variant "quemu", expected "namespace" or "qemu", or "auto"; did you mean "qemu"?"#);
        insta::assert_snapshot!(err("engine: {kind: incus, pressed: {}}"), @r#"c.yaml:3:23: unknown key "pressed", expected one of kind, preseed; did you mean "preseed"?"#);
        insta::assert_snapshot!(err("overlays: [{paht: x}]"), @r#"c.yaml:3:13: unknown key "paht", expected one of path, environment, inputs, keep_owners; did you mean "path"?"#);
        assert!(err("nodes: 1\npublish: ['127.0.0.1:1:b:2']").contains("b is not a node"));
        assert!(
            err("nodes: 40\nnetworks: [{name: lan, ipv4: 10.0.0.0/28}]").contains("no room for 40 nodes")
        );
        assert!(err("nodes: 1\nmachine: {persistent_root: true}").contains("no disk of role data"));
        assert_eq!(
            err("nodes: 1\nnetworks:\n- {name: a, ipv4: 10.0.0.0/24}\n- name: b\n  mtu: 1\n"),
            "c.yaml:7: networks[1].mtu: b: must be at least 1280"
        );
        assert!(err("nodes: 4294967296").starts_with("c.yaml:3"));
        assert!(err("nodes: 1\nmachine: {memry: 1GiB}").contains("did you mean \"memory\"?"));
    }

    #[test]
    fn a_backend_is_auto_or_named() {
        let choice = |s: &str| serde_json::from_str::<BackendChoice>(s).unwrap();
        for (text, choice, auto) in [
            ("\"auto\"", choice("\"auto\""), Backend::Namespace),
            ("\"qemu\"", choice("\"qemu\""), Backend::Qemu),
        ] {
            assert_eq!(serde_json::to_string(&choice).unwrap(), text);
            assert_eq!(format!("\"{choice}\""), text);
            assert_eq!(choice.or(Backend::Namespace), auto);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(s in "(?s).{0,200}") { let _ = ClusterSpec::from_yaml("x", &s); }
        #[test]
        fn addresses_differ(n in 1u32..=250) {
            let c = ClusterSpec::from_yaml("c", &format!("name: demo\nimage: x\nnodes: {n}\nnetworks: [{{name: lan, ipv4: 10.0.0.0/22}}]")).unwrap();
            let all: BTreeSet<_> = c.resolve().iter().map(|n| (n.nics[0].mac, n.nics[0].addresses[0])).collect();
            prop_assert_eq!(all.len(), n as usize);
        }
    }
}
