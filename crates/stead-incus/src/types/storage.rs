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
    /// Free-text description.
    #[serde(default)]
    pub description: String,
    /// `Created`, `Pending`, `Errored`.
    #[serde(default)]
    pub status: String,
    /// API paths of the objects that use it.
    #[serde(default, deserialize_with = "nullable")]
    pub used_by: Vec<String>,
    /// Members it is on; empty when not clustered.
    #[serde(default, deserialize_with = "nullable")]
    pub locations: Vec<String>,
}

impl StoragePool {
    /// The fields a `PUT` can change.
    pub fn writable(&self) -> StoragePoolPut {
        StoragePoolPut { config: self.config.clone(), description: self.description.clone() }
    }
}

/// The fields of [`StoragePool`] that a `PUT` can change.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct StoragePoolPut {
    /// Settings.
    pub config: Config,
    /// Free-text description.
    pub description: String,
}

/// `GET /1.0/storage-pools/NAME/resources`: the space on one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct StorageSpace {
    /// Space in bytes.
    pub space: Amount,
    /// Inodes; zero where the driver has none.
    pub inodes: Amount,
}

/// Part of [`StorageSpace`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Amount {
    /// Amount in use.
    pub used: u64,
    /// Total amount.
    pub total: u64,
}

/// A volume of a pool.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Volume {
    /// Its name; `instance/snapshot` for the volume of a snapshot.
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
    /// Free-text description.
    #[serde(default)]
    pub description: String,
    /// Member it is on; `none` when not clustered, empty on shared storage.
    #[serde(default)]
    pub location: String,
    /// Its project; empty on old servers.
    #[serde(default)]
    pub project: String,
    /// API paths of the objects that use it.
    #[serde(default, deserialize_with = "nullable")]
    pub used_by: Vec<String>,
}

impl Volume {
    /// The fields a `PUT` can change.
    pub fn writable(&self) -> VolumePut {
        VolumePut { config: self.config.clone(), description: self.description.clone() }
    }
}

/// The fields of [`Volume`] that a `PUT` can change.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct VolumePut {
    /// Settings.
    pub config: Config,
    /// Free-text description.
    pub description: String,
}

/// `GET …/volumes/TYPE/NAME/state`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct VolumeState {
    /// Space in bytes; none if the driver does not measure it.
    #[serde(default)]
    pub usage: Option<Amount>,
}
