//! Instances.

use super::{Config, Devices, config, nullable};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Kind of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceKind {
    /// System container.
    #[default]
    Container,
    /// Virtual machine.
    VirtualMachine,
}

/// An instance, with its state if that was requested (recursion 2).
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
    /// Free-text description.
    #[serde(default)]
    pub description: String,
    /// Deleted when it stops.
    #[serde(default)]
    pub ephemeral: bool,
    /// Has a saved state to resume from.
    #[serde(default)]
    pub stateful: bool,
    /// Its own settings.
    #[serde(default, deserialize_with = "config")]
    pub config: Config,
    /// Settings including those of its profiles.
    #[serde(default, deserialize_with = "config")]
    pub expanded_config: Config,
    /// Its own devices.
    #[serde(default, deserialize_with = "nullable")]
    pub devices: Devices,
    /// Devices including those of its profiles.
    #[serde(default, deserialize_with = "nullable")]
    pub expanded_devices: Devices,
    /// Profiles.
    #[serde(default, deserialize_with = "nullable")]
    pub profiles: Vec<String>,
    /// When it was created.
    #[serde(default)]
    pub created_at: String,
    /// When it was last started; 1970 means never.
    #[serde(default)]
    pub last_used_at: String,
    /// Its state, if it was requested and available.
    #[serde(default)]
    pub state: Option<InstanceState>,
    /// Its snapshots, if they were requested.
    #[serde(default)]
    pub snapshots: Option<Vec<Snapshot>>,
    /// Its backups on the server, if they were requested.
    #[serde(default)]
    pub backups: Option<Vec<Backup>>,
}

impl Instance {
    /// The fields a `PUT` can change.
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
    /// Global addresses of its interfaces, without loopback.
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

/// The fields of [`Instance`] that a `PUT` can change.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct InstancePut {
    /// Architecture.
    pub architecture: String,
    /// Its own settings.
    pub config: Config,
    /// Its own devices.
    pub devices: Devices,
    /// Deleted when it stops.
    pub ephemeral: bool,
    /// Profiles.
    pub profiles: Vec<String>,
    /// Has a saved state to resume from.
    pub stateful: bool,
    /// Free-text description.
    pub description: String,
}

/// Current state of an instance.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct InstanceState {
    /// `Running`, …
    pub status: String,
    /// Process id of its init, as the member sees it; 0 when stopped.
    pub pid: i64,
    /// Number of processes; -1 if unknown.
    pub processes: i64,
    /// Processor time.
    pub cpu: InstanceCpu,
    /// Memory.
    pub memory: InstanceMemory,
    /// Disks by device name.
    #[serde(deserialize_with = "nullable")]
    pub disk: BTreeMap<String, InstanceDisk>,
    /// Network interfaces by name.
    #[serde(deserialize_with = "nullable")]
    pub network: BTreeMap<String, InstanceNetwork>,
    /// When it was started; empty if the server does not report it.
    pub started_at: String,
}

/// Part of [`InstanceState`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct InstanceCpu {
    /// Processor time since it was started, in nanoseconds; -1 if unknown.
    #[serde(rename = "usage")]
    pub usage_ns: i64,
}

/// Part of [`InstanceState`]; bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct InstanceMemory {
    /// In use.
    pub usage: i64,
    /// Highest usage so far.
    pub usage_peak: i64,
    /// The limit; 0 if the server does not report it.
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
    /// The limit; 0 if there is none or the server does not report it.
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
    /// Name of the interface's other end on the member.
    pub host_name: String,
    /// MTU in bytes.
    pub mtu: i64,
    /// `up` or `down`.
    pub state: String,
}

/// Traffic since the interface was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// Bytes received.
    pub bytes_received: i64,
    /// Bytes sent.
    pub bytes_sent: i64,
    /// Packets received.
    pub packets_received: i64,
    /// Packets sent.
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

/// A backup of an instance, kept on its server.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Backup {
    /// Its name.
    pub name: String,
}

/// A snapshot of an instance.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Snapshot {
    /// Its name, without the instance's.
    pub name: String,
    /// Includes the state of the processes.
    #[serde(default)]
    pub stateful: bool,
    /// When it was created.
    #[serde(default)]
    pub created_at: String,
    /// When it expires; year 1 means never.
    #[serde(default)]
    pub expires_at: String,
    /// Size in bytes; -1 or 0 if unknown.
    #[serde(default)]
    pub size: i64,
}
