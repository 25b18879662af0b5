//! The engine's objects, with the fields that Stead uses. Unknown keys are ignored, because newer servers add keys. Times
//! are RFC 3339 strings as the servers write them; sizes are bytes.
//!
//! The fields of an object that a `PUT` can change have a separate type (`…Put`), returned by the object's `writable`:
//! get the object, change these fields, put them back with the ETag.

mod cluster;
mod event;
mod image;
mod instance;
mod network;
mod operation;
mod resources;
mod server;
mod storage;

pub use cluster::{
    Cluster, ClusterGroup, ClusterGroupPut, Member, MemberConfigKey, MemberPut, MemberState, SystemInfo,
};
pub use event::{Event, EventKind, Lifecycle};
pub use image::{Image, ImageAlias, ImagePut};
pub use instance::{
    Backup, Instance, InstanceAddress, InstanceCpu, InstanceDisk, InstanceKind, InstanceMemory,
    InstanceNetwork, InstancePut, InstanceState, Snapshot, Traffic,
};
pub use network::{Network, NetworkAddress, NetworkLease, NetworkPut, NetworkState};
pub use operation::{OperationStatus, Outcome, Progress};
pub use resources::{Cpu, CpuCore, CpuSocket, CpuThread, Load, Memory, MemoryNode, Resources, System};
pub use server::{
    Certificate, Environment, Profile, ProfilePut, Project, ProjectPut, ProjectState, ProjectUsage, Server,
    Warning,
};
pub use storage::{Amount, StoragePool, StoragePoolPut, StorageSpace, Volume, VolumePut, VolumeState};

use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::collections::BTreeMap;

/// Configuration: values by key.
pub type Config = BTreeMap<String, String>;
/// Devices: configuration by device name.
pub type Devices = BTreeMap<String, Config>;

/// Reads `null` as the default: Go writes nil maps and lists as `null`.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// Reads configuration: values are strings, but old LXD answers `GET /1.0` with other scalars as well.
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
