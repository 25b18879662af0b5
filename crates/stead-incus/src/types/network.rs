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
    /// Managed by the engine.
    #[serde(default)]
    pub managed: bool,
    /// Settings.
    #[serde(default, deserialize_with = "config")]
    pub config: Config,
    /// Free-text description.
    #[serde(default)]
    pub description: String,
    /// `Created`, …
    #[serde(default)]
    pub status: String,
    /// API paths of the objects that use it.
    #[serde(default, deserialize_with = "nullable")]
    pub used_by: Vec<String>,
    /// Members it is on.
    #[serde(default, deserialize_with = "nullable")]
    pub locations: Vec<String>,
}

impl Network {
    /// The fields a `PUT` can change.
    pub fn writable(&self) -> NetworkPut {
        NetworkPut { config: self.config.clone(), description: self.description.clone() }
    }
}

/// The fields of [`Network`] that a `PUT` can change.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct NetworkPut {
    /// Settings.
    pub config: Config,
    /// Free-text description.
    pub description: String,
}

/// `GET /1.0/networks/NAME/state`: the state on one member.
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
    /// MTU in bytes.
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
    /// Prefix length, as a string.
    #[serde(default)]
    pub netmask: String,
    /// `global`, `link`, `local`.
    #[serde(default)]
    pub scope: String,
}

/// An address leased by a network.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct NetworkLease {
    /// Host name of the holder.
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
    /// Member the holder is on.
    #[serde(default)]
    pub location: String,
}
