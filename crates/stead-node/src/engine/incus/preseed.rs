//! The wanted configuration of the engine: the generated preseed with the user's merged over it, as types.
//!
//! Pure. The format is that of `incus admin init --preseed`.

use super::scalars::Readings;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use stead_incus::types::{Config, Devices};
use stead_model::node::EngineSpec;

/// Settings of a pool that belong to one member and are given when it joins (Incus and LXD agree).
pub(super) const MEMBER_POOL_KEYS: [&str; 6] =
    ["size", "source", "source.wipe", "zfs.pool_name", "lvm.thinpool_name", "lvm.vg_name"];
/// Settings of a network that belong to one member and are given when it joins.
const MEMBER_NETWORK_KEYS: [&str; 5] =
    ["bridge.external_interfaces", "parent", "bgp.ipv4.nexthop", "bgp.ipv6.nexthop", "vlan"];
/// Server settings that are each member's own; all others are the cluster's.
const MEMBER_SERVER_KEYS: [&str; 8] = [
    "cluster.https_address",
    "core.bgp_address",
    "core.bgp_routerid",
    "core.debug_address",
    "core.dns_address",
    "core.https_address",
    "storage.backups_volume",
    "storage.images_volume",
];

/// The user's preseed cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PreseedError {
    /// It does not have the format; the source names the key.
    #[error("the engine's preseed does not have the format of `admin init --preseed`")]
    Shape(#[source] serde_json::Error),
}

/// A parsed preseed.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Preseed {
    /// Server settings.
    #[serde(deserialize_with = "texts")]
    pub config: Config,
    /// Storage pools.
    pub storage_pools: Vec<Pool>,
    /// Networks.
    pub networks: Vec<Network>,
    /// Projects.
    pub projects: Vec<Project>,
    /// Profiles.
    pub profiles: Vec<Profile>,
    /// Accepted because preseeds for the engines' own tool have it, but not used: Stead chooses name, addresses and
    /// token of a member.
    pub cluster: Value,
}

/// A storage pool.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Its driver.
    pub driver: String,
    /// Settings.
    #[serde(default, deserialize_with = "texts")]
    pub config: Config,
    /// Description for people.
    #[serde(default)]
    pub description: String,
}

/// A network.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Its type; the engine's default when empty.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Settings.
    #[serde(default, deserialize_with = "texts")]
    pub config: Config,
    /// Description for people.
    #[serde(default)]
    pub description: String,
    /// Its project.
    #[serde(default = "default_project")]
    pub project: String,
}

/// A project.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Project {
    /// Its name.
    pub name: String,
    /// Settings.
    #[serde(default, deserialize_with = "texts")]
    pub config: Config,
    /// Description for people.
    #[serde(default)]
    pub description: String,
}

/// A profile.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// Settings.
    #[serde(default, deserialize_with = "texts")]
    pub config: Config,
    /// Devices.
    #[serde(default, deserialize_with = "device_texts")]
    pub devices: Devices,
    /// Description for people.
    #[serde(default)]
    pub description: String,
    /// Its project.
    #[serde(default = "default_project")]
    pub project: String,
}

fn default_project() -> String {
    "default".to_owned()
}

fn text(v: Value) -> String {
    match v {
        Value::String(s) => s,
        Value::Null => String::new(),
        other => other.to_string(),
    }
}
/// Reads any scalar as text, as the engines' own tool does.
fn texts<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Config, D::Error> {
    let raw = BTreeMap::<String, Value>::deserialize(d)?;
    Ok(raw.into_iter().map(|(k, v)| (k, text(v))).collect())
}
fn device_texts<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Devices, D::Error> {
    let raw = BTreeMap::<String, BTreeMap<String, Value>>::deserialize(d)?;
    Ok(raw
        .into_iter()
        .map(|(name, device)| (name, device.into_iter().map(|(k, v)| (k, text(v))).collect()))
        .collect())
}

/// Stead's own preseed. `source`: the storage disk as the engine names it.
pub fn generated(spec: &EngineSpec, source: Option<&str>) -> Value {
    let address = spec.address.to_string();
    let pool = match source {
        Some(source) => {
            json!({ "name": "default", "driver": "btrfs", "config": { "source": source } })
        }
        None => json!({ "name": "default", "driver": "dir" }),
    };
    json!({
        "config": { "core.https_address": address, "cluster.https_address": address },
        "storage_pools": [pool],
        "profiles": [{
            "name": "default",
            "devices": {
                "root": { "type": "disk", "path": "/", "pool": "default" },
                "eth0": { "type": "nic", "nictype": "bridged", "parent": spec.bridge, "name": "eth0" },
            },
        }],
    })
}

/// The user's preseed merged over the generated one, its scalars as this engine's tool reads them.
///
/// # Errors
/// [`PreseedError`] when the user's does not have the format.
pub fn wanted(spec: &EngineSpec, source: Option<&str>, readings: Readings) -> Result<Preseed, PreseedError> {
    let mut merged = readings.apply(merge(generated(spec, source), spec.preseed.clone()));
    if let Value::Object(map) = &mut merged {
        map.retain(|_, v| !v.is_null());
    }
    Preseed::deserialize(merged).map_err(PreseedError::Shape)
}

/// `over` merged into `base`: maps key by key, lists of named objects by name (and project), anything else replaced.
/// `null` in a map removes the key. A pool with another driver, and a device or network with a `type`, replaces ours as
/// a whole, since their settings do not fit together.
pub fn merge(base: Value, over: Value) -> Value {
    match (base, over) {
        (base, Value::Null) => base,
        (Value::Object(base), Value::Object(over)) => Value::Object(merge_maps(base, over)),
        (_, Value::Object(over)) => Value::Object(merge_maps(Map::new(), over)),
        (Value::Array(base), Value::Array(over)) if named(&base) && named(&over) => {
            Value::Array(merge_named(base, over))
        }
        (_, Value::Array(over)) if named(&over) => Value::Array(merge_named(Vec::new(), over)),
        (_, over) => over,
    }
}

fn merge_maps(mut base: Map<String, Value>, over: Map<String, Value>) -> Map<String, Value> {
    if over.contains_key("type") || over.get("driver").is_some_and(|d| base.get("driver") != Some(d)) {
        base.clear();
    }
    for (key, value) in over {
        if value.is_null() {
            base.shift_remove(&key);
        } else {
            let merged = merge(base.get(&key).cloned().unwrap_or(Value::Null), value);
            base.insert(key, merged);
        }
    }
    base
}

fn named(list: &[Value]) -> bool {
    list.iter().all(|v| v.get("name").is_some_and(Value::is_string))
}

fn merge_named(mut base: Vec<Value>, over: Vec<Value>) -> Vec<Value> {
    let id = |v: &Value| {
        let project = v.get("project").and_then(Value::as_str).unwrap_or("default").to_owned();
        (v.get("name").cloned(), project)
    };
    for item in over {
        match base.iter_mut().find(|b| id(b) == id(&item)) {
            Some(b) => *b = merge(b.take(), item),
            None => base.push(merge(Value::Null, item)),
        }
    }
    base
}

impl Preseed {
    /// Settings that a joining member provides for itself.
    pub fn member_config(&self) -> Vec<stead_incus::types::MemberConfigKey> {
        let pools =
            self.storage_pools.iter().map(|p| ("storage-pool", &p.name, &p.config, &MEMBER_POOL_KEYS[..]));
        let networks = self
            .networks
            .iter()
            .filter(|n| n.project == "default")
            .map(|n| ("network", &n.name, &n.config, &MEMBER_NETWORK_KEYS[..]));
        pools
            .chain(networks)
            .flat_map(|(entity, name, config, keys)| {
                config.iter().filter(|(k, _)| keys.contains(&k.as_str())).map(move |(key, value)| {
                    stead_incus::types::MemberConfigKey {
                        entity: entity.to_owned(),
                        name: name.clone(),
                        key: key.clone(),
                        value: value.clone(),
                    }
                })
            })
            .collect()
    }
    /// Server settings that belong to this member.
    pub fn member_settings(&self) -> Config {
        self.config
            .iter()
            .filter(|(k, _)| MEMBER_SERVER_KEYS.contains(&k.as_str()))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use stead_model::{EngineKind, node::EngineRole};

    fn spec(preseed: Value) -> EngineSpec {
        EngineSpec {
            kind: EngineKind::Incus,
            role: EngineRole::Init,
            address: "10.0.0.1:8443".parse().unwrap(),
            bridge: "br0".into(),
            storage_disk: None,
            preseed,
        }
    }

    fn read(spec: &EngineSpec, source: Option<&str>) -> Result<Preseed, PreseedError> {
        wanted(spec, source, Readings::of(stead_incus::Dialect::Incus, "6.0.4"))
    }

    #[test]
    fn generated_alone() {
        let p = read(&spec(Value::Null), Some("/dev/vdb")).unwrap();
        assert_eq!(p.config["core.https_address"], "10.0.0.1:8443");
        assert_eq!(p.config["cluster.https_address"], "10.0.0.1:8443");
        assert_eq!(
            (p.storage_pools[0].driver.as_str(), p.storage_pools[0].config["source"].as_str()),
            ("btrfs", "/dev/vdb")
        );
        assert_eq!(p.profiles[0].devices["eth0"]["parent"], "br0");
        assert_eq!(
            p.member_config().iter().map(|k| (k.entity.as_str(), k.key.as_str())).collect::<Vec<_>>(),
            [("storage-pool", "source")]
        );
        assert_eq!(read(&spec(Value::Null), None).unwrap().storage_pools[0].driver, "dir");
    }

    #[test]
    fn the_user_wins_key_by_key() {
        let user = json!({
            "config": { "images.auto_update_interval": 0, "core.https_address": null },
            "storage_pools": [{ "name": "fast", "driver": "dir" }],
            "profiles": [
                { "name": "default", "config": { "limits.memory": "1GiB" }, "devices": { "eth0": null } },
                { "name": "default", "project": "p", "description": "d" },
            ],
            "projects": [{ "name": "p" }],
        });
        let p = read(&spec(user), None).unwrap();
        assert_eq!(p.config["images.auto_update_interval"], "0");
        assert!(!p.config.contains_key("core.https_address"));
        assert_eq!(p.storage_pools.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["default", "fast"]);
        assert_eq!(p.profiles.len(), 2);
        assert_eq!(p.profiles[0].config["limits.memory"], "1GiB");
        assert_eq!(p.profiles[0].devices.keys().collect::<Vec<_>>(), ["root"]);
    }

    #[test]
    fn other_drivers_and_types_replace_whole() {
        let user = json!({
            "storage_pools": [{ "name": "default", "driver": "zfs", "config": { "size": "5GiB" } }],
            "profiles": [{ "name": "default", "devices": { "eth0": { "type": "nic", "network": "lan" } } }],
        });
        let p = read(&spec(user), Some("/dev/vdb")).unwrap();
        assert_eq!(p.storage_pools[0].config, Config::from([("size".into(), "5GiB".into())]));
        assert!(!p.profiles[0].devices["eth0"].contains_key("parent"));
    }

    #[test]
    fn other_formats_are_refused() {
        assert!(read(&spec(json!({ "storagepools": [] })), None).is_err());
        assert!(read(&spec(json!([1])), None).is_err());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-c]{0,2}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::vec(
                    (prop_oneof![Just("name".to_owned()), Just("type".to_owned()), "[a-c]"], inner),
                    0..3
                )
                .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn merging_twice_is_merging_once(base in any_json(), over in any_json()) {
            let once = merge(base, over.clone());
            prop_assert_eq!(merge(once.clone(), over), once);
        }
        #[test]
        fn any_user_preseed_is_answered(user in any_json()) { let _ = read(&spec(user), None); }
    }
}
