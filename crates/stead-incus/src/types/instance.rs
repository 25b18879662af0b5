//! Instances.

use super::{Config, Devices, config, nullable};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Container or machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceKind {
    /// System container.
    #[default]
    Container,
    /// Virtual machine.
    VirtualMachine,
}

/// An instance, with its state where that was asked for (recursion 2).
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Instance {
    /// Its name.
    pub name: String,
    /// Its project.
    #[serde(default)]
    pub project: String,
    /// `container` or `virtual-machine`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// `Running`, `Stopped`, …
    #[serde(default)]
    pub status: String,
    /// Member it is on; `none` when not clustered.
    #[serde(default)]
    pub location: String,
    /// Architecture.
    #[serde(default)]
    pub architecture: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Deleted when it stops.
    #[serde(default)]
    pub ephemeral: bool,
    /// Has a saved state to go on from.
    #[serde(default)]
    pub stateful: bool,
    /// Own settings.
    #[serde(default, deserialize_with = "config")]
    pub config: Config,
    /// With those of its profiles.
    #[serde(default, deserialize_with = "config")]
    pub expanded_config: Config,
    /// Own devices.
    #[serde(default, deserialize_with = "nullable")]
    pub devices: Devices,
    /// With those of its profiles.
    #[serde(default, deserialize_with = "nullable")]
    pub expanded_devices: Devices,
    /// Profiles.
    #[serde(default, deserialize_with = "nullable")]
    pub profiles: Vec<String>,
    /// When it was made.
    #[serde(default)]
    pub created_at: String,
    /// When it was started last; 1970: never.
    #[serde(default)]
    pub last_used_at: String,
    /// Its state, when it was asked for and could be given.
    #[serde(default)]
    pub state: Option<InstanceState>,
    /// Its snapshots, when they were asked for.
    #[serde(default)]
    pub snapshots: Option<Vec<Snapshot>>,
}

impl Instance {
    /// What a `PUT` changes.
    pub fn writable(&self) -> InstancePut {
        InstancePut {
            architecture: self.architecture.clone(),
            config: self.config.clone(),
            devices: self.devices.clone(),
            ephemeral: self.ephemeral,
            profiles: self.profiles.clone(),
            stateful: self.stateful,
            description: self.description.clone(),
        }
    }
    /// Global addresses of its interfaces, loopback left out.
    pub fn global_addresses(&self) -> Vec<String> {
        self.state
            .iter()
            .flat_map(|s| &s.network)
            .filter(|(name, _)| name.as_str() != "lo")
            .flat_map(|(_, n)| &n.addresses)
            .filter(|a| a.scope == "global")
            .map(|a| a.address.clone())
            .collect()
    }
}

/// What can be changed of an [`Instance`].
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct InstancePut {
    /// Architecture.
    pub architecture: String,
    /// Own settings.
    pub config: Config,
    /// Own devices.
    pub devices: Devices,
    /// Deleted when it stops.
    pub ephemeral: bool,
    /// Profiles.
    pub profiles: Vec<String>,
    /// Has a saved state.
    pub stateful: bool,
    /// For people.
    pub description: String,
}

/// How an instance is right now.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct InstanceState {
    /// `Running`, …
    pub status: String,
    /// Process 1 of it, as the member sees it; 0 when stopped.
    pub pid: i64,
    /// Number of processes; -1: not known.
    pub processes: i64,
    /// Processor time.
    pub cpu: InstanceCpu,
    /// Memory.
    pub memory: InstanceMemory,
    /// Disks by device.
    #[serde(deserialize_with = "nullable")]
    pub disk: BTreeMap<String, InstanceDisk>,
    /// Interfaces.
    #[serde(deserialize_with = "nullable")]
    pub network: BTreeMap<String, InstanceNetwork>,
    /// When it was started; empty: the server does not say.
    pub started_at: String,
}

/// Part of [`InstanceState`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct InstanceCpu {
    /// Nanoseconds of processor time since it was started; -1: not known.
    #[serde(rename = "usage")]
    pub usage_ns: i64,
}

/// Part of [`InstanceState`]; bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct InstanceMemory {
    /// In use.
    pub usage: i64,
    /// The most there was.
    pub usage_peak: i64,
    /// The limit; 0: the server does not say.
    pub total: i64,
    /// Swapped out.
    pub swap_usage: i64,
}

/// Part of [`InstanceState`]; bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct InstanceDisk {
    /// In use.
    pub usage: i64,
    /// The limit; 0: none or not said.
    pub total: i64,
}

/// Part of [`InstanceState`].
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct InstanceNetwork {
    /// Addresses.
    #[serde(deserialize_with = "nullable")]
    pub addresses: Vec<InstanceAddress>,
    /// Traffic.
    #[serde(deserialize_with = "nullable")]
    pub counters: Traffic,
    /// Hardware address.
    pub hwaddr: String,
    /// The other end, on the member.
    pub host_name: String,
    /// Bytes.
    pub mtu: i64,
    /// `up` or `down`.
    pub state: String,
}

/// Traffic since the interface was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// Bytes.
    pub bytes_received: i64,
    /// Bytes.
    pub bytes_sent: i64,
    /// Packets.
    pub packets_received: i64,
    /// Packets.
    pub packets_sent: i64,
}

/// Part of [`InstanceNetwork`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct InstanceAddress {
    /// `inet` or `inet6`.
    pub family: String,
    /// The address.
    pub address: String,
    /// `global`, `link`, `local`.
    pub scope: String,
}

/// A snapshot of an instance.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Snapshot {
    /// Its name, without the instance's.
    pub name: String,
    /// With the state of the processes.
    #[serde(default)]
    pub stateful: bool,
    /// When it was made.
    #[serde(default)]
    pub created_at: String,
    /// When it goes away by itself; year 1: never.
    #[serde(default)]
    pub expires_at: String,
    /// Bytes; -1 or 0: not known.
    #[serde(default)]
    pub size: i64,
}
