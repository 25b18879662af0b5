//! Networks.

use super::{Config, Traffic, config, nullable};
use serde::{Deserialize, Serialize};

/// A network.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// `bridge`, `physical`, …
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Made by the engine.
    #[serde(default)]
    pub managed: bool,
    /// Settings.
    #[serde(default, deserialize_with = "config")]
    pub config: Config,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// `Created`, …
    #[serde(default)]
    pub status: String,
    /// Paths of what uses it.
    #[serde(default, deserialize_with = "nullable")]
    pub used_by: Vec<String>,
    /// Members it is on.
    #[serde(default, deserialize_with = "nullable")]
    pub locations: Vec<String>,
}

impl Network {
    /// What a `PUT` changes.
    pub fn writable(&self) -> NetworkPut {
        NetworkPut { config: self.config.clone(), description: self.description.clone() }
    }
}

/// What can be changed of a [`Network`].
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct NetworkPut {
    /// Settings.
    pub config: Config,
    /// For people.
    pub description: String,
}

/// `GET /1.0/networks/NAME/state`: on one member.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct NetworkState {
    /// Addresses.
    #[serde(default, deserialize_with = "nullable")]
    pub addresses: Vec<NetworkAddress>,
    /// Traffic.
    #[serde(default, deserialize_with = "nullable")]
    pub counters: Traffic,
    /// Hardware address.
    #[serde(default)]
    pub hwaddr: String,
    /// Bytes.
    #[serde(default)]
    pub mtu: i64,
    /// `up` or `down`.
    #[serde(default)]
    pub state: String,
    /// `broadcast`, `loopback`, …
    #[serde(rename = "type", default)]
    pub kind: String,
}

/// Part of [`NetworkState`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct NetworkAddress {
    /// `inet` or `inet6`.
    pub family: String,
    /// The address.
    pub address: String,
    /// Length of the prefix, as text.
    #[serde(default)]
    pub netmask: String,
    /// `global`, `link`, `local`.
    #[serde(default)]
    pub scope: String,
}

/// An address given out by a network.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct NetworkLease {
    /// Who has it.
    #[serde(default)]
    pub hostname: String,
    /// Hardware address.
    #[serde(default)]
    pub hwaddr: String,
    /// The address.
    pub address: String,
    /// `static`, `dynamic`, `gateway`, `uplink`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Member.
    #[serde(default)]
    pub location: String,
}
