//! The server itself, and what it keeps that belongs to nothing else.

use super::{Config, Devices, config, nullable};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `GET /1.0`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Server {
    /// Settings.
    #[serde(default, deserialize_with = "config")]
    pub config: Config,
    /// What it can do.
    #[serde(default, deserialize_with = "nullable")]
    pub api_extensions: Vec<String>,
    /// `trusted` or `untrusted`.
    #[serde(default)]
    pub auth: String,
    /// What it runs on; absent for strangers.
    #[serde(default)]
    pub environment: Environment,
}

impl Server {
    /// Whether it can do this.
    pub fn has(&self, extension: &str) -> bool {
        self.api_extensions.iter().any(|e| e == extension)
    }
}

/// Part of [`Server`].
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Environment {
    /// Addresses it is reached at, `address:port`.
    #[serde(default, deserialize_with = "nullable")]
    pub addresses: Vec<String>,
    /// Architectures it runs, the native one first.
    #[serde(default, deserialize_with = "nullable")]
    pub architectures: Vec<String>,
    /// What it runs instances with: `lxc`, `qemu`, or `lxc | qemu`.
    #[serde(default)]
    pub driver: String,
    /// PEM.
    #[serde(default)]
    pub certificate: String,
    /// SHA-256 of it, hexadecimal.
    #[serde(default)]
    pub certificate_fingerprint: String,
    /// Version of the kernel.
    #[serde(default)]
    pub kernel_version: String,
    /// `incus` or `lxd`.
    #[serde(default)]
    pub server: String,
    /// A member of a cluster.
    #[serde(default)]
    pub server_clustered: bool,
    /// Name as member.
    #[serde(default)]
    pub server_name: String,
    /// Process of its daemon: another one after a restart. 0: not told.
    #[serde(default)]
    pub server_pid: i64,
    /// Version.
    #[serde(default)]
    pub server_version: String,
}

/// A project.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Project {
    /// Its name.
    pub name: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Settings.
    #[serde(default, deserialize_with = "config")]
    pub config: Config,
    /// Paths of what is in it.
    #[serde(default, deserialize_with = "nullable")]
    pub used_by: Vec<String>,
}

impl Project {
    /// What a `PUT` changes.
    pub fn writable(&self) -> ProjectPut {
        ProjectPut { config: self.config.clone(), description: self.description.clone() }
    }
}

/// What can be changed of a [`Project`].
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ProjectPut {
    /// Settings.
    pub config: Config,
    /// For people.
    pub description: String,
}

/// `GET /1.0/projects/NAME/state`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ProjectState {
    /// Usage by kind: `containers`, `memory`, `cpu`, `disk`, …
    #[serde(default, deserialize_with = "nullable")]
    pub resources: BTreeMap<String, ProjectUsage>,
}

/// Part of [`ProjectState`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ProjectUsage {
    /// How much there may be; -1: no limit.
    pub limit: i64,
    /// How much there is.
    pub usage: i64,
}

/// A profile.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Settings.
    #[serde(default, deserialize_with = "config")]
    pub config: Config,
    /// Devices.
    #[serde(default, deserialize_with = "nullable")]
    pub devices: Devices,
    /// Paths of the instances that have it.
    #[serde(default, deserialize_with = "nullable")]
    pub used_by: Vec<String>,
}

impl Profile {
    /// What a `PUT` changes.
    pub fn writable(&self) -> ProfilePut {
        ProfilePut {
            config: self.config.clone(),
            description: self.description.clone(),
            devices: self.devices.clone(),
        }
    }
}

/// What can be changed of a [`Profile`].
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ProfilePut {
    /// Settings.
    pub config: Config,
    /// For people.
    pub description: String,
    /// Devices.
    pub devices: Devices,
}

/// A trusted certificate.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Certificate {
    /// SHA-256, hexadecimal.
    pub fingerprint: String,
    /// Its name.
    pub name: String,
    /// `client`, `server`, `metrics`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// PEM.
    #[serde(default)]
    pub certificate: String,
}

/// Something the server warns of.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Warning {
    /// UUID.
    pub uuid: String,
    /// `new`, `acknowledged`, `resolved`.
    #[serde(default)]
    pub status: String,
    /// `low`, `moderate`, `high`.
    #[serde(default)]
    pub severity: String,
    /// What is wrong, as a kind: `Offline cluster member`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// What was said last.
    #[serde(default)]
    pub last_message: String,
    /// How often.
    #[serde(default)]
    pub count: i64,
    /// Member that says so; empty: all.
    #[serde(default)]
    pub location: String,
    /// Project.
    #[serde(default)]
    pub project: String,
    /// Path of what it is about.
    #[serde(default)]
    pub entity_url: String,
    /// First time.
    #[serde(default)]
    pub first_seen_at: String,
    /// Last time.
    #[serde(default)]
    pub last_seen_at: String,
}
