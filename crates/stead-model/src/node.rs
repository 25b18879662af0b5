//! The node spec: the typed JSON a node boots with.
//!
//! It travels as `node.json` at the top of the spec drive: in a namespace machine a directory, in a VM a raw block
//! device (serial `spec`) holding a plain tar. Layers and boot overlays are not in it: they are drives of their own,
//! `layer0` (lowest) to `layerN`, boot overlays last.

use crate::{
    cluster::EngineKind,
    names::{ClusterName, MacAddress, NodeName},
    recipe::SystemSpec,
    sizes::Bytes,
    text::{self, SpecError},
};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

/// Port of the agent API on every node.
pub const AGENT_PORT: u16 = 8484;
/// Port of the engine's API on every node.
pub const ENGINE_PORT: u16 = 8443;
/// Where an image keeps its [`SystemSpec`].
pub const SYSTEM_SPEC_PATH: &str = "/usr/lib/stead/system.json";
/// Label of the filesystem on a data disk (role `data`).
pub const DATA_LABEL: &str = "stead-data";
/// Label of the filesystem on a storage disk (role `storage`).
pub const STORAGE_LABEL: &str = "stead-pool";

/// What one node boots with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeSpec {
    /// Version of this format: 1.
    pub schema: u32,
    /// The cluster it belongs to.
    pub cluster: ClusterName,
    /// Its name; hostname too unless `system.hostname` says otherwise.
    pub name: NodeName,
    /// Network.
    #[serde(default)]
    pub network: NetworkSpec,
    /// Added to the image's own system spec (`merged`).
    #[serde(default)]
    pub system: SystemSpec,
    /// Where the root's changes go.
    #[serde(default)]
    pub root: RootUpper,
    /// The engine and this node's part in it.
    #[serde(default)]
    pub engine: Option<EngineSpec>,
    /// The agent API; none is served without it.
    #[serde(default)]
    pub agent: Option<AgentSpec>,
}

/// Where the root's changes go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum RootUpper {
    /// Memory: gone at reboot.
    #[default]
    Tmpfs,
    /// The filesystem labelled [`DATA_LABEL`] on the disk with serial of this name: kept.
    Disk(String),
}

/// A node's network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// Interfaces, physical ones and bridges.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// For /etc/resolv.conf.
    #[serde(default)]
    pub nameservers: Vec<IpAddr>,
    /// For /etc/resolv.conf.
    #[serde(default)]
    pub search: Vec<String>,
    /// For /etc/hosts: name to addresses.
    #[serde(default)]
    pub hosts: BTreeMap<String, Vec<IpAddr>>,
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Its name; a physical interface found by `mac` is renamed to it.
    pub name: String,
    /// Which physical interface is meant; absent: the one that has the name.
    #[serde(default)]
    pub mac: Option<MacAddress>,
    /// A bridge is made, with these interfaces in it; absent: a physical interface.
    #[serde(default)]
    pub bridge_ports: Option<Vec<String>>,
    /// MTU; left alone when absent.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Addresses.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub addresses: Vec<IpNet>,
    /// Ask by DHCPv4 for an address, routes and nameservers.
    #[serde(default)]
    pub dhcp: bool,
    /// Take router advertisements (IPv6 autoconfiguration).
    #[serde(default)]
    pub accept_ra: bool,
    /// Routes.
    #[serde(default)]
    pub routes: Vec<Route>,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Destination; `0.0.0.0/0` and `::/0` are the default routes.
    #[schemars(with = "String")]
    pub to: IpNet,
    /// Gateway; absent: on link.
    #[serde(default)]
    pub via: Option<IpAddr>,
}

/// How `stead machine run` starts a node in namespaces: the JSON file given to `stead-node namespace FILE`, which then is
/// PID 1 of fresh pid, mount, uts, ipc, net and cgroup namespaces, already in its cgroups, with its interfaces moved in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamespaceBoot {
    /// Mounted layers (directories on the host), lowest first, boot overlays last.
    pub layers: Vec<PathBuf>,
    /// Directory with `node.json`.
    pub spec_dir: PathBuf,
    /// Attached disks: serial to device node (a loop device).
    pub disks: BTreeMap<String, PathBuf>,
    /// Limit of the root's tmpfs; half of memory when absent.
    pub root_limit: Option<Bytes>,
}

/// How `stead machine run` starts a node in a VM: the file [`VmBoot::FILE`] beside `node.json` on the spec drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmBoot {
    /// How many layers there are. Each is a drive with the serial [`VmBoot::layer_serial`], boot overlays last.
    pub layers: u32,
}

impl VmBoot {
    /// Its name on the spec drive.
    pub const FILE: &str = "boot.json";
    /// Serial of the spec drive.
    pub const SPEC_SERIAL: &str = "spec";

    /// Serial of the drive with layer `n`, counted from 0, the lowest.
    pub fn layer_serial(n: u32) -> String {
        format!("layer{n}")
    }
}

/// This node's part in the engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EngineSpec {
    /// Which engine.
    pub kind: EngineKind,
    /// First node or not.
    pub role: EngineRole,
    /// Address and port the engine serves and clusters on.
    pub address: SocketAddr,
    /// Interface whose bridge instances are put on by the default profile, e.g. `br0`.
    pub bridge: String,
    /// Serial of the storage disk; with one the pool is btrfs on it, else `dir`.
    #[serde(default)]
    pub storage_disk: Option<String>,
    /// The user's preseed, deep-merged over the generated one; null for none.
    #[serde(default)]
    pub preseed: serde_json::Value,
}

/// A node's part in forming the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EngineRole {
    /// Initialises the cluster by itself.
    Init,
    /// Waits for a join token through the agent.
    Join,
}

/// The agent API's endpoint and certificates (PEM).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentSpec {
    /// Where it listens; `[::]:8484` takes IPv4 too.
    pub listen: SocketAddr,
    /// The cluster's CA: clients must present a certificate signed by it that carries the client key usage.
    pub ca_pem: String,
    /// The node's certificate.
    pub certificate_pem: String,
    /// The node's key. A secret.
    pub key_pem: String,
}

impl std::fmt::Debug for AgentSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentSpec").field("listen", &self.listen).finish_non_exhaustive()
    }
}

impl NodeSpec {
    /// Reads a node spec and checks it.
    ///
    /// # Errors
    /// [`SpecError`] with line and key.
    pub fn from_json(file: &str, json: &str) -> Result<Self, SpecError> {
        let spec: Self = text::from_json(file, json)?;
        if spec.schema != 1 {
            let why = format!("{} is not 1, the only version this node knows", spec.schema);
            return Err(SpecError::about_json(file, json, "schema", why));
        }
        for i in &spec.network.interfaces {
            if i.name.is_empty()
                || i.name.len() > 15
                || i.name.contains(['/', ' ', '\0'])
                || i.name == "."
                || i.name == ".."
            {
                return Err(SpecError::about_json(
                    file,
                    json,
                    "interfaces",
                    format!("{:?} is not an interface's name", i.name),
                ));
            }
        }
        spec.system.check_part().map_err(|(key, why)| SpecError::about_json(file, json, &key, why))?;
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn key_stays_out_of_debug() {
        let a = AgentSpec {
            listen: "[::]:8484".parse().unwrap(),
            ca_pem: "CA".into(),
            certificate_pem: "CERT".into(),
            key_pem: "SECRET".into(),
        };
        assert!(!format!("{a:?}").contains("SECRET"));
    }

    #[test]
    fn refuses_other_versions_and_keys() {
        let base = r#"{"schema":1,"cluster":"c","name":"n1"}"#;
        assert!(NodeSpec::from_json("node.json", base).is_ok());
        assert!(
            NodeSpec::from_json("node.json", &base.replace(":1", ":2"))
                .unwrap_err()
                .to_string()
                .contains("schema")
        );
        assert!(
            NodeSpec::from_json("node.json", &base.replace("name", "nme"))
                .unwrap_err()
                .to_string()
                .contains("did you mean")
        );
    }

    proptest! {
        #[test]
        fn a_vm_reads_what_its_supervisor_wrote(layers: u32) {
            let written = serde_json::to_string(&VmBoot { layers }).unwrap();
            prop_assert_eq!(text::from_json::<VmBoot>(VmBoot::FILE, &written).unwrap(), VmBoot { layers });
            // As it is on the spec drives of machines that run.
            prop_assert_eq!(written, format!("{{\"layers\":{layers}}}"));
        }

        #[test]
        fn any_text_is_answered(s in "(?s).{0,200}") { let _ = NodeSpec::from_json("x", &s); }
    }
}
