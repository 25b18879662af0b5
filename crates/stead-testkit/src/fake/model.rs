//! The state of the fake cluster, and its JSON as the real servers write it.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use stead_incus::{
    Dialect,
    types::{Config, Devices},
};

/// The size of a member; its usage is the sum of its instances'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberSize {
    /// CPU threads.
    pub cpus: u32,
    /// Memory.
    pub memory_mib: u64,
    /// Size of its storage pool.
    pub disk_gib: u64,
}

impl Default for MemberSize {
    fn default() -> Self {
        Self { cpus: 8, memory_mib: 16 * 1024, disk_gib: 100 }
    }
}

/// What a running instance uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Memory.
    pub memory_mib: u64,
    /// Disk.
    pub disk_mib: u64,
    /// CPU time since its start.
    pub cpu_ns: u64,
}

impl Default for Usage {
    fn default() -> Self {
        Self { memory_mib: 64, disk_mib: 256, cpu_ns: 1_000_000_000 }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Member {
    pub status: &'static str,
    pub address: String,
    pub roles: Vec<String>,
    pub failure_domain: String,
    pub description: String,
    pub config: Config,
    pub architecture: String,
    pub size: MemberSize,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Group {
    pub description: String,
    pub members: BTreeSet<String>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Project {
    pub description: String,
    pub config: Config,
    pub profiles: BTreeMap<String, Profile>,
    pub images: BTreeMap<String, Image>,
    pub aliases: BTreeMap<String, Alias>,
    pub instances: BTreeMap<String, Instance>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Profile {
    pub description: String,
    pub config: Config,
    pub devices: Devices,
}

#[derive(Debug, Clone)]
pub(super) struct Image {
    pub properties: Config,
    pub public: bool,
    pub auto_update: bool,
    pub profiles: Vec<String>,
    pub expires_at: String,
    pub size: u64,
    pub uploaded_at: String,
    pub contents: bytes::Bytes,
}

#[derive(Debug, Clone)]
pub(super) struct Alias {
    pub target: String,
    pub description: String,
}

#[derive(Debug, Clone)]
pub(super) struct Instance {
    pub kind: String,
    pub location: String,
    pub status: &'static str,
    pub architecture: String,
    pub description: String,
    pub ephemeral: bool,
    pub stateful: bool,
    pub config: Config,
    pub devices: Devices,
    pub profiles: Vec<String>,
    pub created_at: String,
    pub snapshots: BTreeMap<String, Snapshot>,
    pub usage: Usage,
}

#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    pub created_at: String,
    pub expires_at: String,
    pub stateful: bool,
    pub config: Config,
    pub devices: Devices,
    pub profiles: Vec<String>,
}

/// A volume of its own, or what is left of an instance's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its project.
    pub project: String,
    /// Its member.
    pub member: String,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: VolumeKind,
}

/// What a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeKind {
    /// Attached to instances.
    Custom,
    /// Left over of an instance, and in the database.
    LeftOver,
    /// Left over of an instance, and on the disk alone.
    Hidden,
}

/// Go's zero time, which servers write for "never".
pub(super) const NEVER: &str = "0001-01-01T00:00:00Z";
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The whole cluster, except its running operations.
#[derive(Debug)]
pub(super) struct World {
    pub dialect: Dialect,
    pub extensions: Vec<String>,
    pub config: Config,
    pub members: BTreeMap<String, Member>,
    pub groups: BTreeMap<String, Group>,
    pub projects: BTreeMap<String, Project>,
    pub warnings: BTreeMap<String, Value>,
    /// Volumes besides those of instances.
    pub volumes: Vec<Volume>,
    /// Driver of its one storage pool.
    pub pool_driver: String,
    ticks: u64,
}

impl World {
    pub fn new(dialect: Dialect, extensions: Vec<String>) -> Self {
        let engine = match dialect {
            Dialect::Incus => "Incus",
            Dialect::Lxd => "LXD",
        };
        let mut default = Project { description: format!("Default {engine} project"), ..Project::default() };
        for feature in ["images", "profiles", "storage.volumes"] {
            default.config.insert(format!("features.{feature}"), "true".into());
        }
        let root = [("path", "/"), ("pool", "default"), ("type", "disk")];
        let nic = [("name", "eth0"), ("nictype", "bridged"), ("parent", "br0"), ("type", "nic")];
        let device = |keys: &[(&str, &str)]| -> Config {
            keys.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        default.profiles.insert(
            "default".into(),
            Profile {
                description: format!("Default {engine} profile"),
                config: Config::new(),
                devices: Devices::from([("root".into(), device(&root)), ("eth0".into(), device(&nic))]),
            },
        );
        let group = Group { description: "Default cluster group".into(), members: BTreeSet::new() };
        Self {
            dialect,
            extensions,
            config: Config::new(),
            members: BTreeMap::new(),
            groups: BTreeMap::from([("default".into(), group)]),
            projects: BTreeMap::from([("default".into(), default)]),
            warnings: BTreeMap::new(),
            volumes: Vec::new(),
            pool_driver: "btrfs".into(),
            ticks: 0,
        }
    }

    /// Its own clock, which advances one second at each reading, so that runs are deterministic.
    pub fn now(&mut self) -> String {
        self.ticks += 1;
        let t = self.ticks;
        format!("2026-01-{:02}T{:02}:{:02}:{:02}Z", 1 + t / 86_400, t / 3600 % 24, t / 60 % 60, t % 60)
    }
    pub fn uuid(&mut self) -> String {
        self.ticks += 1;
        format!("00000000-0000-4000-8000-{:012x}", self.ticks)
    }
    pub fn clustered(&self) -> bool {
        self.members.len() > 1 || self.config.contains_key("cluster.https_address")
    }

    /// The project that has a project's profiles (or images): itself or the default project.
    pub fn home<'p>(&self, project: &'p str, feature: &str) -> &'p str {
        let own = self
            .projects
            .get(project)
            .is_some_and(|p| p.config.get(&format!("features.{feature}")).is_none_or(|v| v == "true"));
        if own { project } else { "default" }
    }
    pub fn instances(&self) -> impl Iterator<Item = (&String, &String, &Instance)> {
        self.projects.iter().flat_map(|(p, project)| project.instances.iter().map(move |(n, i)| (p, n, i)))
    }
    fn instances_on<'a>(&'a self, member: &'a str) -> impl Iterator<Item = &'a Instance> {
        self.instances().map(|(_, _, i)| i).filter(move |i| i.location == member)
    }
    /// The member for a new instance: the one with the fewest, as the servers choose without a scriptlet.
    pub fn emptiest(&self, group: Option<&str>, but: Option<&str>) -> Option<String> {
        self.members
            .iter()
            .filter(|(name, m)| m.status == "Online" && but != Some(name.as_str()))
            .filter(|(name, m)| match (group, m.config.get("scheduler.instance").map(String::as_str)) {
                (Some(group), _) => self.groups.get(group).is_some_and(|g| g.members.contains(*name)),
                (None, Some("manual" | "group")) => false,
                (None, _) => true,
            })
            .min_by_key(|(name, _)| (self.instances_on(name).count(), (*name).clone()))
            .map(|(name, _)| name.clone())
    }

    pub fn server(&self) -> Value {
        let name = match self.dialect {
            Dialect::Incus => ("incus", "6.0.4"),
            Dialect::Lxd => ("lxd", "5.0.2"),
        };
        let (member, address) = match self.members.iter().next() {
            Some((member, m)) => (member.clone(), m.address.clone()),
            None => (String::new(), String::new()),
        };
        json!({
            "config": self.config,
            "api_extensions": self.extensions,
            "api_status": "stable",
            "api_version": "1.0",
            "auth": "trusted",
            "public": false,
            "environment": {
                "addresses": [address],
                "architectures": ["x86_64"],
                "certificate": "",
                "certificate_fingerprint": "",
                "kernel_version": "6.1.0",
                "server": name.0,
                "server_version": name.1,
                "server_clustered": self.clustered(),
                "server_name": member,
            },
        })
    }
    pub fn member(&self, name: &str) -> Option<Value> {
        let m = self.members.get(name)?;
        let groups: Vec<&String> =
            self.groups.iter().filter(|(_, g)| g.members.contains(name)).map(|(n, _)| n).collect();
        let message = match m.status {
            "Online" => "Fully operational",
            "Evacuated" => "Unavailable due to maintenance",
            _ => "No heartbeat for 21s (2026-01-01 00:00:00 +0000 UTC)",
        };
        Some(json!({
            "roles": m.roles,
            "failure_domain": m.failure_domain,
            "description": m.description,
            "config": m.config,
            "groups": groups,
            "server_name": name,
            "url": format!("https://{}", m.address),
            "database": m.roles.iter().any(|r| r.starts_with("database")),
            "status": m.status,
            "message": message,
            "architecture": m.architecture,
        }))
    }
    pub fn group(&self, name: &str) -> Option<Value> {
        let g = self.groups.get(name)?;
        Some(json!({ "description": g.description, "members": g.members, "name": name }))
    }
    fn used(&self, member: &str) -> Usage {
        let mut used = Usage { memory_mib: 512, disk_mib: 0, cpu_ns: 0 };
        for i in self.instances_on(member) {
            used.disk_mib += i.usage.disk_mib;
            if i.status == "Running" {
                used.memory_mib += i.usage.memory_mib;
            }
        }
        used
    }
    pub fn resources(&self, member: &str) -> Option<Value> {
        let m = self.members.get(member)?;
        let threads: Vec<Value> = (0..m.size.cpus)
            .map(|id| {
                json!({ "core": id, "threads": [
                    { "id": id, "numa_node": 0, "thread": 0, "online": true, "isolated": false }
                ] })
            })
            .collect();
        let mut resources = json!({
            "cpu": {
                "architecture": m.architecture,
                "total": m.size.cpus,
                "sockets": [{ "name": "Fake", "vendor": "Stead", "socket": 0, "cores": threads }],
            },
            "memory": {
                "nodes": null,
                "hugepages_total": 0,
                "hugepages_used": 0,
                "used": self.used(member).memory_mib * MIB,
                "total": m.size.memory_mib * MIB,
            },
            "system": { "uuid": "", "vendor": "Stead", "product": "Fake", "type": "virtual-machine" },
        });
        if self.extensions.iter().any(|e| e == "resources_load") {
            resources["load"] =
                json!({ "Average1Min": 0.5, "Average5Min": 0.5, "Average10Min": 0.5, "Processes": 100 });
        }
        Some(resources)
    }
    pub fn pool_space(&self, member: &str) -> Option<Value> {
        let m = self.members.get(member)?;
        Some(json!({
            "space": { "used": self.used(member).disk_mib * MIB, "total": m.size.disk_gib * GIB },
            "inodes": { "used": 0, "total": 0 },
        }))
    }
    pub fn member_state(&self, member: &str) -> Option<Value> {
        let m = self.members.get(member)?;
        let total = m.size.memory_mib * MIB;
        Some(json!({
            "sysinfo": {
                "uptime": 1000,
                "load_averages": [0.5, 0.5, 0.5],
                "total_ram": total,
                "free_ram": total.saturating_sub(self.used(member).memory_mib * MIB),
                "shared_ram": 0,
                "buffered_ram": 0,
                "total_swap": 0,
                "free_swap": 0,
                "processes": 100,
            },
            "storage_pools": { "default": self.pool_space(member) },
        }))
    }
    pub fn pool(&self) -> Value {
        let used_by: Vec<String> = self.instances().map(|(p, n, _)| instance_path(p, n)).collect();
        let locations: Vec<&String> = self.members.keys().collect();
        json!({
            "config": {},
            "description": "",
            "name": "default",
            "driver": self.pool_driver,
            "used_by": used_by,
            "status": "Created",
            "locations": if self.clustered() { json!(locations) } else { Value::Null },
        })
    }
    /// The volumes of its pool.
    pub fn volumes(&self) -> Vec<Value> {
        let volume = |project: &str, member: &str, name: &str, kind: &str| {
            json!({
                "name": name, "type": kind, "content_type": "filesystem", "config": {}, "description": "",
                "location": member, "project": project, "used_by": [],
            })
        };
        let of_instances = self.instances().map(|(p, n, i)| volume(p, &i.location, n, &i.kind));
        let others = self.volumes.iter().filter(|v| v.kind != VolumeKind::Hidden).map(|v| {
            let kind = if v.kind == VolumeKind::Custom { "custom" } else { "container" };
            volume(&v.project, &v.member, &v.name, kind)
        });
        of_instances.chain(others).collect()
    }
    pub fn project(&self, name: &str) -> Option<Value> {
        let p = self.projects.get(name)?;
        let mut used_by: Vec<String> = p.instances.keys().map(|n| instance_path(name, n)).collect();
        used_by.extend(p.images.keys().map(|f| in_project(format!("/1.0/images/{f}"), name)));
        used_by.extend(p.profiles.keys().map(|n| in_project(format!("/1.0/profiles/{n}"), name)));
        Some(json!({ "config": p.config, "description": p.description, "name": name, "used_by": used_by }))
    }
    pub fn profile(&self, project: &str, name: &str) -> Option<Value> {
        let home = self.home(project, "profiles");
        let p = self.projects.get(home)?.profiles.get(name)?;
        let used_by: Vec<String> = self
            .instances()
            .filter(|(owner, _, i)| {
                self.home(owner, "profiles") == home && i.profiles.iter().any(|n| n == name)
            })
            .map(|(owner, n, _)| instance_path(owner, n))
            .collect();
        Some(json!({
            "config": p.config, "description": p.description, "devices": p.devices, "name": name,
            "used_by": used_by, "project": home,
        }))
    }
    pub fn image(&self, project: &str, fingerprint: &str) -> Option<Value> {
        let home = self.projects.get(project)?;
        let i = home.images.get(fingerprint)?;
        let aliases: Vec<Value> = home
            .aliases
            .iter()
            .filter(|(_, a)| a.target == fingerprint)
            .map(|(name, a)| json!({ "name": name, "description": a.description }))
            .collect();
        Some(json!({
            "auto_update": i.auto_update,
            "properties": i.properties,
            "public": i.public,
            "expires_at": i.expires_at,
            "profiles": i.profiles,
            "aliases": aliases,
            "architecture": "x86_64",
            "cached": false,
            "filename": "image.tar",
            "fingerprint": fingerprint,
            "size": i.size,
            "type": "container",
            "created_at": "2025-01-01T00:00:00Z",
            "last_used_at": NEVER,
            "uploaded_at": i.uploaded_at,
            "project": project,
        }))
    }
    pub fn alias(&self, project: &str, name: &str) -> Option<Value> {
        let a = self.projects.get(project)?.aliases.get(name)?;
        Some(json!({
            "description": a.description, "target": a.target, "name": name, "type": "container",
        }))
    }
    pub fn expanded(
        &self,
        project: &str,
        profiles: &[String],
        config: &Config,
        devices: &Devices,
    ) -> (Config, Devices) {
        let (mut all_config, mut all_devices) = (Config::new(), Devices::new());
        let home = &self.projects[self.home(project, "profiles")];
        for profile in profiles.iter().filter_map(|name| home.profiles.get(name)) {
            all_config.extend(profile.config.clone());
            all_devices.extend(profile.devices.clone());
        }
        all_config.extend(config.clone());
        all_devices.extend(devices.clone());
        (all_config, all_devices)
    }
    pub fn instance(&self, project: &str, name: &str, with_state: bool) -> Option<Value> {
        let i = self.projects.get(project)?.instances.get(name)?;
        let (expanded_config, expanded_devices) = self.expanded(project, &i.profiles, &i.config, &i.devices);
        let reachable = self.members.get(&i.location).is_none_or(|m| m.status != "Offline");
        let status = if reachable { i.status } else { "Error" };
        let mut instance = json!({
            "architecture": i.architecture,
            "config": i.config,
            "devices": i.devices,
            "ephemeral": i.ephemeral,
            "profiles": i.profiles,
            "stateful": i.stateful,
            "description": i.description,
            "created_at": i.created_at,
            "expanded_config": expanded_config,
            "expanded_devices": expanded_devices,
            "name": name,
            "status": status,
            "status_code": match status { "Running" => 103, "Stopped" => 102, "Frozen" => 110, _ => 112 },
            "last_used_at": NEVER,
            "location": if self.clustered() { i.location.as_str() } else { "none" },
            "type": i.kind,
            "project": project,
        });
        if with_state {
            let snapshots: Vec<Value> =
                i.snapshots.keys().filter_map(|s| self.snapshot(project, name, s)).collect();
            instance["backups"] = Value::Null;
            instance["snapshots"] = if snapshots.is_empty() { Value::Null } else { snapshots.into() };
            instance["state"] = if reachable { instance_state(i) } else { Value::Null };
        }
        Some(instance)
    }
    pub fn snapshot(&self, project: &str, name: &str, snapshot: &str) -> Option<Value> {
        let i = self.projects.get(project)?.instances.get(name)?;
        let s = i.snapshots.get(snapshot)?;
        let (expanded_config, expanded_devices) = self.expanded(project, &s.profiles, &s.config, &s.devices);
        Some(json!({
            "expires_at": s.expires_at,
            "architecture": i.architecture,
            "config": s.config,
            "created_at": s.created_at,
            "devices": s.devices,
            "ephemeral": i.ephemeral,
            "expanded_config": expanded_config,
            "expanded_devices": expanded_devices,
            "last_used_at": NEVER,
            "name": snapshot,
            "profiles": s.profiles,
            "stateful": s.stateful,
            "size": -1,
        }))
    }
}

pub(super) fn instance_state(i: &Instance) -> Value {
    if i.status == "Stopped" {
        return json!({
            "status": "Stopped", "status_code": 102, "disk": {}, "network": null, "pid": 0, "processes": 0,
            "memory": { "usage": 0, "usage_peak": 0, "total": 0, "swap_usage": 0, "swap_usage_peak": 0 },
            "cpu": { "usage": 0 },
        });
    }
    json!({
        "status": i.status,
        "status_code": if i.status == "Frozen" { 110 } else { 103 },
        "disk": { "root": { "usage": i.usage.disk_mib * MIB, "total": 0 } },
        "memory": {
            "usage": i.usage.memory_mib * MIB, "usage_peak": i.usage.memory_mib * MIB, "total": 0,
            "swap_usage": 0, "swap_usage_peak": 0,
        },
        "network": { "lo": {
            "addresses": [{ "family": "inet", "address": "127.0.0.1", "netmask": "8", "scope": "local" }],
            "counters": { "bytes_received": 0, "bytes_sent": 0, "packets_received": 0, "packets_sent": 0 },
            "hwaddr": "", "host_name": "", "mtu": 65536, "state": "up", "type": "loopback",
        } },
        "pid": 1000,
        "processes": 1,
        "cpu": { "usage": i.usage.cpu_ns },
    })
}

/// The ETag of an object, made of the keys that a `PUT` can change.
pub(super) fn etag(object: &Value, keys: &[&str]) -> String {
    let part: Map<String, Value> =
        keys.iter().filter_map(|k| Some(((*k).to_owned(), object.get(*k)?.clone()))).collect();
    let digest = Sha256::digest(Value::Object(part).to_string());
    let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
    format!("\"{hex}\"")
}

pub(super) fn in_project(path: String, project: &str) -> String {
    if project == "default" { path } else { format!("{path}?project={project}") }
}
pub(super) fn instance_path(project: &str, name: &str) -> String {
    in_project(format!("/1.0/instances/{name}"), project)
}
