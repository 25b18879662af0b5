//! The cluster, its members and their groups.

use super::{Config, StorageSpace, config, nullable};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `GET /1.0/cluster`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Cluster {
    /// Name of the member that answers.
    #[serde(default)]
    pub server_name: String,
    /// Whether the server is clustered.
    pub enabled: bool,
    /// Keys for which a joining member must give values.
    #[serde(default, deserialize_with = "nullable")]
    pub member_config: Vec<MemberConfigKey>,
}

/// A setting that differs between members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberConfigKey {
    /// `storage-pool` or `network`.
    pub entity: String,
    /// Name of the pool or network.
    pub name: String,
    /// Key of the setting: `source`.
    pub key: String,
    /// Value for the joining member.
    #[serde(default)]
    pub value: String,
}

/// A cluster member.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Member {
    /// Its name.
    pub server_name: String,
    /// `https://address:port`.
    #[serde(default)]
    pub url: String,
    /// Whether it holds the database.
    #[serde(default)]
    pub database: bool,
    /// `Online`, `Offline`, `Evacuated`, `Blocked`, `Evacuating`, `Restoring`.
    pub status: String,
    /// The reason for the status.
    #[serde(default)]
    pub message: String,
    /// `database-leader`, `database`, …
    #[serde(default, deserialize_with = "nullable")]
    pub roles: Vec<String>,
    /// Settings: `scheduler.instance`, `user.*`.
    #[serde(default, deserialize_with = "config")]
    pub config: Config,
    /// Architecture.
    #[serde(default)]
    pub architecture: String,
    /// Failure domain; `default` unless set.
    #[serde(default)]
    pub failure_domain: String,
    /// Free-text description.
    #[serde(default)]
    pub description: String,
    /// Groups it is in.
    #[serde(default, deserialize_with = "nullable")]
    pub groups: Vec<String>,
}

impl Member {
    /// The fields a `PUT` can change.
    pub fn writable(&self) -> MemberPut {
        MemberPut {
            roles: self.roles.clone(),
            failure_domain: self.failure_domain.clone(),
            description: self.description.clone(),
            config: self.config.clone(),
            groups: self.groups.clone(),
        }
    }
}

/// The fields of [`Member`] that a `PUT` can change.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct MemberPut {
    /// Roles. Roles that the engine assigns itself must stay unchanged.
    pub roles: Vec<String>,
    /// Failure domain.
    pub failure_domain: String,
    /// Free-text description.
    pub description: String,
    /// Settings.
    pub config: Config,
    /// Groups; at least one.
    pub groups: Vec<String>,
}

/// `GET /1.0/cluster/members/NAME/state`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct MemberState {
    /// Load, memory and uptime, as from `sysinfo(2)`.
    pub sysinfo: SystemInfo,
    /// Pools, with their space on this member.
    #[serde(default, deserialize_with = "nullable")]
    pub storage_pools: BTreeMap<String, StorageSpace>,
}

/// Part of [`MemberState`].
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct SystemInfo {
    /// Seconds since boot.
    #[serde(rename = "uptime")]
    pub uptime_s: i64,
    /// Load averages over 1, 5 and 15 minutes.
    #[serde(deserialize_with = "nullable")]
    pub load_averages: Vec<f64>,
    /// Memory in bytes.
    pub total_ram: u64,
    /// Free memory in bytes, without caches and buffers.
    pub free_ram: u64,
    /// Shared memory in bytes.
    pub shared_ram: u64,
    /// Memory used by buffers, in bytes.
    pub buffered_ram: u64,
    /// Swap in bytes.
    pub total_swap: u64,
    /// Free swap in bytes.
    pub free_swap: u64,
    /// Number of processes.
    pub processes: u32,
}

/// A group of members.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct ClusterGroup {
    /// Its name.
    pub name: String,
    /// Free-text description.
    #[serde(default)]
    pub description: String,
    /// Names of its members.
    #[serde(default, deserialize_with = "nullable")]
    pub members: Vec<String>,
    /// Settings; servers without the extension `clustering_groups_config` have none.
    #[serde(default)]
    pub config: Option<Config>,
}

impl ClusterGroup {
    /// The fields a `PUT` can change.
    pub fn writable(&self) -> ClusterGroupPut {
        ClusterGroupPut {
            description: self.description.clone(),
            members: self.members.clone(),
            config: self.config.clone(),
        }
    }
}

/// The fields of [`ClusterGroup`] that a `PUT` can change.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ClusterGroupPut {
    /// Free-text description.
    pub description: String,
    /// Names of its members.
    pub members: Vec<String>,
    /// Settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<Config>,
}
