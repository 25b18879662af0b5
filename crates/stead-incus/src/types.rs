//! The engine's objects, as far as Stead looks at them. Unknown keys are ignored: servers grow.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Configuration: keys to text.
pub type Config = BTreeMap<String, String>;
/// Devices: name to configuration.
pub type Devices = BTreeMap<String, Config>;

/// Go writes nil maps and lists as `null`.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// Config as servers give it: texts, but old LXD answers `GET /1.0` with other scalars as well.
fn config<'de, D: Deserializer<'de>>(d: D) -> Result<Config, D::Error> {
    let raw: BTreeMap<String, Value> = nullable(d)?;
    Ok(raw
        .into_iter()
        .map(|(k, v)| match v {
            Value::String(s) => (k, s),
            Value::Null => (k, String::new()),
            other => (k, other.to_string()),
        })
        .collect())
}

/// `GET /1.0`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
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
    /// Addresses it is reached at.
    #[serde(default, deserialize_with = "nullable")]
    pub addresses: Vec<String>,
    /// PEM.
    #[serde(default)]
    pub certificate: String,
    /// SHA-256 of it, hexadecimal.
    #[serde(default)]
    pub certificate_fingerprint: String,
    /// `incus` or `lxd`.
    #[serde(default)]
    pub server: String,
    /// A member of a cluster.
    #[serde(default)]
    pub server_clustered: bool,
    /// Name as member.
    #[serde(default)]
    pub server_name: String,
    /// Version.
    #[serde(default)]
    pub server_version: String,
}

/// `GET /1.0/cluster`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Cluster {
    /// Name of the member that answers.
    #[serde(default)]
    pub server_name: String,
    /// Clustered or not.
    pub enabled: bool,
    /// Keys a joining member gives values for.
    #[serde(default, deserialize_with = "nullable")]
    pub member_config: Vec<MemberConfigKey>,
}

/// A setting that differs between members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberConfigKey {
    /// `storage-pool` or `network`.
    pub entity: String,
    /// Which.
    pub name: String,
    /// Its key: `source`.
    pub key: String,
    /// The joining member's value.
    #[serde(default)]
    pub value: String,
}

/// A cluster member.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Member {
    /// Its name.
    pub server_name: String,
    /// `https://address:port`.
    #[serde(default)]
    pub url: String,
    /// Whether it holds the database.
    #[serde(default)]
    pub database: bool,
    /// `Online`, `Offline`, `Evacuated`, `Blocked`.
    pub status: String,
    /// Why.
    #[serde(default)]
    pub message: String,
    /// `database-leader`, `database`, …
    #[serde(default, deserialize_with = "nullable")]
    pub roles: Vec<String>,
    /// Settings.
    #[serde(default, deserialize_with = "config")]
    pub config: Config,
    /// Architecture.
    #[serde(default)]
    pub architecture: String,
}

/// A storage pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
}

/// A network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
}

/// A project.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Project {
    /// Its name.
    pub name: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Settings.
    #[serde(default, deserialize_with = "config")]
    pub config: Config,
}

/// A profile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
}

/// An operation.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct OperationStatus {
    /// UUID.
    pub id: String,
    /// `task`, `websocket`, `token`.
    #[serde(default)]
    pub class: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// 103 running, 200 success, 400 failure, 401 cancelled.
    pub status_code: u16,
    /// Depends on what it does.
    #[serde(default)]
    pub metadata: Value,
    /// Why it failed.
    #[serde(default)]
    pub err: String,
    /// What it works on: kind to paths.
    #[serde(default, deserialize_with = "nullable")]
    pub resources: BTreeMap<String, Option<Vec<String>>>,
}

/// An instance with its state (recursion 2).
#[derive(Debug, Clone, PartialEq, Deserialize)]
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
    /// Own settings.
    #[serde(default, deserialize_with = "config")]
    pub config: Config,
    /// With those of its profiles.
    #[serde(default, deserialize_with = "config")]
    pub expanded_config: Config,
    /// Own devices.
    #[serde(default, deserialize_with = "nullable")]
    pub devices: Devices,
    /// Profiles.
    #[serde(default, deserialize_with = "nullable")]
    pub profiles: Vec<String>,
    /// Its state, when it could be asked.
    #[serde(default)]
    pub state: Option<InstanceState>,
}

impl Instance {
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

/// Part of [`Instance`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct InstanceState {
    /// `Running`, …
    #[serde(default)]
    pub status: String,
    /// Interfaces.
    #[serde(default, deserialize_with = "nullable")]
    pub network: BTreeMap<String, InstanceNetwork>,
}

/// Part of [`InstanceState`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct InstanceNetwork {
    /// Addresses.
    #[serde(default, deserialize_with = "nullable")]
    pub addresses: Vec<InstanceAddress>,
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

/// An image.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Image {
    /// SHA-256, hexadecimal.
    pub fingerprint: String,
    /// Names for it.
    #[serde(default, deserialize_with = "nullable")]
    pub aliases: Vec<ImageAlias>,
    /// Properties.
    #[serde(default, deserialize_with = "config")]
    pub properties: Config,
    /// Bytes.
    #[serde(default)]
    pub size: u64,
}

/// A name for an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageAlias {
    /// The name.
    pub name: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Fingerprint; absent inside [`Image`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target: String,
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
