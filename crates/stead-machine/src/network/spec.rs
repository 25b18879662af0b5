//! The host network of one cluster, as a value.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};
use stead_model::{ClusterName, MacAddress, NodeName, cluster::Publish};

/// One cluster's network on this host. Written as `<dir>/network.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostNetworkSpec {
    /// The cluster; its name is the DNS domain.
    pub cluster: ClusterName,
    /// Its directory, 0700: `network.json`, `lock`, `state.json`, `dnsmasq.conf`, `dnsmasq.log`, `supervisor.log`.
    pub dir: PathBuf,
    /// Bridges.
    pub bridges: Vec<BridgeSpec>,
    /// Published ports, listened on in the host's own network namespace.
    pub publish: Vec<PublishTarget>,
}

impl HostNetworkSpec {
    /// Name of the network namespace, as `ip netns` lists it.
    pub fn netns(&self) -> String {
        format!("stead-{}", self.cluster)
    }
}

/// A bridge in the cluster's network namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeSpec {
    /// Interface name of the bridge: the network's name.
    pub name: String,
    /// The host side's addresses, e.g. 10.88.0.1/24 and fd88::1/64.
    pub addresses: Vec<IpNet>,
    /// MTU.
    pub mtu: u16,
    /// DHCP, router advertisements and DNS.
    pub dhcp: bool,
    /// Outgoing NAT through the host.
    pub nat: bool,
    /// Nodes with fixed addresses, for DNS and so that DHCP does not give them away.
    pub hosts: Vec<HostEntry>,
}

/// A node's fixed addresses on a bridge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostEntry {
    /// Its name.
    pub name: NodeName,
    /// Hardware address.
    pub mac: MacAddress,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
}

/// A published port with its target worked out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishTarget {
    /// As written in the cluster file.
    pub publish: Publish,
    /// Address and port inside the cluster's network namespace.
    pub target: SocketAddr,
}

/// What the network's supervisor says in `<dir>/state.json`. Believe it only while the lock is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkState {
    /// The supervisor's process id.
    pub supervisor_pid: i32,
    /// True once dnsmasq answers and every published port listens.
    pub ready: bool,
    /// Where each published port really listens (port 0 resolved), in the order of the spec.
    pub listening: Vec<SocketAddr>,
    /// How often it has come to do as `network.json` says, or failed to: at its start and at each SIGHUP.
    pub attempts: u32,
    /// SHA-256 of the `network.json` this state is of.
    pub spec_digest: String,
    /// Why it failed.
    pub error: Option<String>,
}
