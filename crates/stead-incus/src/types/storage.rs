//! Storage pools and volumes.

use super::{Config, config, nullable};
use serde::{Deserialize, Serialize};

/// A storage pool.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct StoragePool {
    /// Its name.
    pub name: String,
    /// `btrfs`, `dir`, …
    pub driver: String,
    /// Settings.
    #[serde(default, deserialize_with = "config")]
    pub config: Config,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// `Created`, `Pending`, `Errored`.
    #[serde(default)]
    pub status: String,
    /// Paths of what uses it.
    #[serde(default, deserialize_with = "nullable")]
    pub used_by: Vec<String>,
    /// Members it is on; none when not clustered.
    #[serde(default, deserialize_with = "nullable")]
    pub locations: Vec<String>,
}

impl StoragePool {
    /// What a `PUT` changes.
    pub fn writable(&self) -> StoragePoolPut {
        StoragePoolPut { config: self.config.clone(), description: self.description.clone() }
    }
}

/// What can be changed of a [`StoragePool`].
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct StoragePoolPut {
    /// Settings.
    pub config: Config,
    /// For people.
    pub description: String,
}

/// `GET /1.0/storage-pools/NAME/resources`: of one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct StorageSpace {
    /// Bytes.
    pub space: Amount,
    /// Inodes; zero where the driver has none.
    pub inodes: Amount,
}

/// Part of [`StorageSpace`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Amount {
    /// In use.
    pub used: u64,
    /// In all.
    pub total: u64,
}

/// A volume of a pool.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Volume {
    /// Its name; `instance/snapshot` for one of a snapshot.
    pub name: String,
    /// `container`, `virtual-machine`, `image`, `custom`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// `filesystem`, `block`, `iso`.
    #[serde(default)]
    pub content_type: String,
    /// Settings.
    #[serde(default, deserialize_with = "config")]
    pub config: Config,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Member it is on; `none` when not clustered, empty on shared storage.
    #[serde(default)]
    pub location: String,
    /// Project; old servers do not say.
    #[serde(default)]
    pub project: String,
    /// Paths of what uses it.
    #[serde(default, deserialize_with = "nullable")]
    pub used_by: Vec<String>,
}

impl Volume {
    /// What a `PUT` changes.
    pub fn writable(&self) -> VolumePut {
        VolumePut { config: self.config.clone(), description: self.description.clone() }
    }
}

/// What can be changed of a [`Volume`].
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct VolumePut {
    /// Settings.
    pub config: Config,
    /// For people.
    pub description: String,
}

/// `GET …/volumes/TYPE/NAME/state`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct VolumeState {
    /// Space; none where the driver does not count.
    #[serde(default)]
    pub usage: Option<Amount>,
}
