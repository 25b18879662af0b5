//! From an engine's answers to the snapshot that placement plans with.
//!
//! Owns how the engine's words map to the snapshot's: limits to amounts, devices to what ties an instance to its member.
//! A function of [`Facts`], without effects.

use crate::{
    amounts,
    facts::{Facts, MemberFacts},
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use stead_incus::types::{Config, Devices, Instance as EngineInstance, StoragePool};
use stead_placement::snapshot::{
    Amounts, Instance, InstanceId, InstanceKind, Member, MemberName, MemberState, Migration, PoolName,
    Schedulable, Snapshot, Workload,
};

/// Storage that every member reaches: moving an instance in it copies nothing (Incus: "Remote storage").
const SHARED_DRIVERS: [&str; 6] = ["ceph", "cephfs", "cephobject", "lvmcluster", "linstor", "truenas"];

/// Devices that belong to one host: an instance with one of these cannot be moved.
const HOST_DEVICES: [&str; 8] =
    ["gpu", "infiniband", "pci", "tpm", "unix-block", "unix-char", "unix-hotplug", "usb"];

/// The setting in which an engine keeps the cluster group that an instance was created for.
pub(crate) const CLUSTER_GROUP: &str = "volatile.cluster.group";

/// The snapshot of a cluster.
pub fn snapshot(facts: &Facts) -> Snapshot {
    let members: Vec<Member> = facts.members.iter().map(|m| member(m, facts)).collect();
    let memory: HashMap<&str, u64> = members.iter().map(|m| (m.name.0.as_str(), m.memory_mib)).collect();
    let instances = facts
        .instances
        .iter()
        .map(|i| instance(i, facts, memory.get(i.location.as_str()).copied().unwrap_or(0)))
        .collect();
    Snapshot { members, instances }
}

fn member(m: &MemberFacts, facts: &Facts) -> Member {
    let name = &m.member.server_name;
    let here = |locations: &[String]| locations.is_empty() || locations.contains(name);
    let pools = facts.pools.iter().filter(|p| here(&p.locations)).map(|pool| {
        let space = m.state.as_ref().and_then(|s| s.storage_pools.get(&pool.name));
        let size = space.map(|s| s.space.total >> 20).filter(|total| *total > 0 && !is_shared(pool));
        (PoolName(pool.name.clone()), size)
    });
    let networks = facts.networks.iter().filter(|n| n.managed && here(&n.locations)).map(|n| n.name.clone());
    let mut architectures = BTreeSet::from([m.member.architecture.clone()]);
    match m.member.architecture.as_str() {
        "x86_64" => architectures.insert("i686".to_owned()),
        "aarch64" => architectures.insert("armv7l".to_owned()),
        _ => false,
    };
    Member {
        name: MemberName(name.clone()),
        architectures,
        state: match m.member.status.as_str() {
            "Online" => MemberState::Online,
            "Evacuated" | "Evacuating" | "Restoring" => MemberState::Evacuated,
            "Blocked" => MemberState::Blocked,
            _ => MemberState::Offline,
        },
        schedulable: match m.member.config.get("scheduler.instance").map(String::as_str) {
            Some("manual") => Schedulable::Manual,
            Some("group") => Schedulable::Group,
            _ => Schedulable::All,
        },
        cluster_groups: m.member.groups.iter().cloned().collect(),
        roles: m.member.roles.iter().cloned().collect(),
        virtual_machines: facts.virtual_machines,
        memory_mib: m.resources.as_ref().map_or(0, |r| r.memory.total >> 20),
        cpu_milli: m.resources.as_ref().map_or(0, |r| r.cpu.total.saturating_mul(1000)),
        pools_mib: pools.collect(),
        networks: networks.collect(),
    }
}

fn is_shared(pool: &StoragePool) -> bool {
    SHARED_DRIVERS.contains(&pool.driver.as_str())
}

fn instance(i: &EngineInstance, facts: &Facts, member_mib: u64) -> Instance {
    let running = !matches!(i.status.as_str(), "Stopped" | "Error" | "");
    let kind = match i.kind.as_str() {
        "virtual-machine" => InstanceKind::VirtualMachine,
        _ => InstanceKind::Container,
    };
    let usage = |n: i64| u64::try_from(n).ok().filter(|n| *n > 0).map(|n| n.div_ceil(1 << 20));
    let state = i.state.as_ref();
    let mut size_mib = 0;
    for (device, pool, size) in disks(&i.expanded_devices) {
        let shared = facts.pools.iter().any(|p| p.name == pool && is_shared(p));
        if !shared {
            let used = state.and_then(|s| s.disk.get(device)).and_then(|d| usage(d.usage));
            size_mib += used.unwrap_or(size);
        }
    }
    let id = InstanceId {
        project: if i.project.is_empty() { "default".to_owned() } else { i.project.clone() },
        name: i.name.clone(),
    };
    Instance {
        workload: workload(id, kind, &i.architecture, &i.expanded_config, &i.expanded_devices, member_mib),
        member: MemberName(i.location.clone()),
        running,
        pinned: is_tied(i),
        migration: migration(i, kind, running, facts),
        size_mib,
        measured: Amounts { memory_mib: state.and_then(|s| usage(s.memory.usage)), cpu_milli: None },
    }
}

/// What an instance with these settings and devices (including those of its profiles) needs of a member with so much memory.
pub fn workload(
    id: InstanceId,
    kind: InstanceKind,
    architecture: &str,
    config: &Config,
    devices: &Devices,
    member_mib: u64,
) -> Workload {
    let mut disk_mib: BTreeMap<PoolName, u64> = BTreeMap::new();
    for (_, pool, size) in disks(devices) {
        *disk_mib.entry(PoolName(pool.to_owned())).or_default() += size;
    }
    let networks = devices.values().filter_map(|d| d.get("network").cloned());
    let settings = config.iter().filter(|(key, _)| key.starts_with("user.stead."));
    Workload {
        id,
        kind,
        architecture: architecture.to_owned(),
        cluster_group: config.get(CLUSTER_GROUP).filter(|g| !g.is_empty()).cloned(),
        limits: limits(config, member_mib),
        disk_mib,
        networks: networks.collect(),
        settings: settings.map(|(key, value)| (key.clone(), value.clone())).collect(),
    }
}

/// The limits of an instance, where it has any.
pub fn limits(config: &Config, member_mib: u64) -> Amounts {
    let get = |key: &str| config.get(key).map(String::as_str).filter(|v| !v.is_empty());
    let threads = get("limits.cpu").and_then(amounts::cpu_milli);
    let allowed = get("limits.cpu.allowance").and_then(amounts::allowance_milli);
    Amounts {
        memory_mib: get("limits.memory").and_then(|text| amounts::memory_mib(text, member_mib)),
        cpu_milli: threads.into_iter().chain(allowed).min(),
    }
}

/// Disks in a pool: device, pool, and size limit in MiB (0 when none is set).
fn disks(devices: &Devices) -> impl Iterator<Item = (&str, &str, u64)> {
    devices.iter().filter(|(_, d)| d.get("type").is_some_and(|t| t == "disk")).filter_map(|(name, d)| {
        let size = d.get("size").and_then(|s| amounts::mib(s)).unwrap_or(0);
        Some((name.as_str(), d.get("pool")?.as_str(), size))
    })
}

/// Whether one of its devices belongs to its host.
fn is_tied(i: &EngineInstance) -> bool {
    i.expanded_devices.values().any(|d| {
        let value = |key: &str| d.get(key).map_or("", String::as_str);
        match value("type") {
            "nic" => matches!(value("nictype"), "physical" | "sriov"),
            // A directory or device of the host rather than a volume of a pool.
            "disk" => value("pool").is_empty() && value("source").starts_with('/'),
            other => HOST_DEVICES.contains(&other),
        }
    })
}

fn migration(i: &EngineInstance, kind: InstanceKind, running: bool, facts: &Facts) -> Migration {
    let stateful = i.expanded_config.get("migration.stateful").is_some_and(|v| v == "true");
    match (kind, running) {
        (_, false) => Migration::Stopped,
        (InstanceKind::VirtualMachine, true) if stateful => Migration::Live,
        (InstanceKind::Container, true) if facts.refresh_migration => Migration::Refresh,
        _ => Migration::Stopped,
    }
}
