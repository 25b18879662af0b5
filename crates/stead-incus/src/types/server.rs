//! The server itself, projects, profiles, certificates and warnings.

use super::{Config, Devices, config, nullable};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `GET /1.0`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Server {
    /// Settings.
    #[serde(default, deserialize_with = "config")]
    pub config: Config,
    /// Its API extensions.
    #[serde(default, deserialize_with = "nullable")]
    pub api_extensions: Vec<String>,
    /// `trusted` or `untrusted`.
    #[serde(default)]
    pub auth: String,
    /// Its environment; empty for untrusted clients.
    #[serde(default)]
    pub environment: Environment,
}

impl Server {
    /// Whether it has this API extension.
    pub fn has(&self, extension: &str) -> bool {
        self.api_extensions.iter().any(|e| e == extension)
    }
}

/// Part of [`Server`].
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Environment {
    /// Addresses it listens on, `address:port`.
    #[serde(default, deserialize_with = "nullable")]
    pub addresses: Vec<String>,
    /// Architectures it runs, the native one first.
    #[serde(default, deserialize_with = "nullable")]
    pub architectures: Vec<String>,
    /// Instance drivers: `lxc`, `qemu`, or `lxc | qemu`.
    #[serde(default)]
    pub driver: String,
    /// Its certificate, PEM.
    #[serde(default)]
    pub certificate: String,
    /// SHA-256 of the certificate, hexadecimal.
    #[serde(default)]
    pub certificate_fingerprint: String,
    /// Kernel version.
    #[serde(default)]
    pub kernel_version: String,
    /// `incus` or `lxd`.
    #[serde(default)]
    pub server: String,
    /// Whether it is a member of a cluster.
    #[serde(default)]
    pub server_clustered: bool,
    /// Its name as a member.
    #[serde(default)]
    pub server_name: String,
    /// Process id of its daemon, which changes with a restart; 0 if not reported.
    #[serde(default)]
    pub server_pid: i64,
    /// Version of the engine.
    #[serde(default)]
    pub server_version: String,
}

/// A project.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Project {
    /// Its name.
    pub name: String,
    /// Free-text description.
    #[serde(default)]
    pub description: String,
    /// Settings.
    #[serde(default, deserialize_with = "config")]
    pub config: Config,
    /// API paths of the objects in it.
    #[serde(default, deserialize_with = "nullable")]
    pub used_by: Vec<String>,
}

impl Project {
    /// The fields a `PUT` can change.
    pub fn writable(&self) -> ProjectPut {
        ProjectPut { config: self.config.clone(), description: self.description.clone() }
    }
}

/// The fields of [`Project`] that a `PUT` can change.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ProjectPut {
    /// Settings.
    pub config: Config,
    /// Free-text description.
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
    /// The limit; -1 if there is none.
    pub limit: i64,
    /// The current usage.
    pub usage: i64,
}

/// A profile.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// Free-text description.
    #[serde(default)]
    pub description: String,
    /// Settings.
    #[serde(default, deserialize_with = "config")]
    pub config: Config,
    /// Devices.
    #[serde(default, deserialize_with = "nullable")]
    pub devices: Devices,
    /// API paths of the instances that use it.
    #[serde(default, deserialize_with = "nullable")]
    pub used_by: Vec<String>,
}

impl Profile {
    /// The fields a `PUT` can change.
    pub fn writable(&self) -> ProfilePut {
        ProfilePut {
            config: self.config.clone(),
            description: self.description.clone(),
            devices: self.devices.clone(),
        }
    }
}

/// The fields of [`Profile`] that a `PUT` can change.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ProfilePut {
    /// Settings.
    pub config: Config,
    /// Free-text description.
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
    /// The certificate, PEM.
    #[serde(default)]
    pub certificate: String,
}

/// A warning of the server.
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
    /// Kind of the warning: `Offline cluster member`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The latest message.
    #[serde(default)]
    pub last_message: String,
    /// How often it occurred.
    #[serde(default)]
    pub count: i64,
    /// Member it comes from; empty for all members.
    #[serde(default)]
    pub location: String,
    /// Project.
    #[serde(default)]
    pub project: String,
    /// API path of the object it is about.
    #[serde(default)]
    pub entity_url: String,
    /// When it first occurred.
    #[serde(default)]
    pub first_seen_at: String,
    /// When it last occurred.
    #[serde(default)]
    pub last_seen_at: String,
}
