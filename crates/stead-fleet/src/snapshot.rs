//! From an engine's answers to the snapshot that placement plans with.
//!
//! Owns how the engine's words map to the snapshot's: limits to amounts, devices to what ties an instance to its member.
//! A function of [`Facts`], without effects.

use crate::{
    amounts,
    facts::{Facts, MemberFacts},
    ground::project_of,
    power,
    size::{Size, Sizes},
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use stead_incus::types::{Config, Devices, Instance as EngineInstance};
use stead_placement::snapshot::{
    Amounts, Bar, Evacuation, Instance, InstanceId, InstanceKind, Member, MemberName, MemberState, Migration,
    PoolName, Schedulable, Snapshot, Workload,
};

/// Devices that belong to one host: an instance with one of these cannot be moved.
const HOST_DEVICES: [&str; 8] =
    ["gpu", "infiniband", "pci", "tpm", "unix-block", "unix-char", "unix-hotplug", "usb"];

/// The setting in which an engine keeps the cluster group that an instance was created for.
pub(crate) const CLUSTER_GROUP: &str = "volatile.cluster.group";

/// Members that refused an instance in a way that the cluster does not show.
pub type Learned = BTreeMap<(InstanceId, MemberName), Bar>;

/// The snapshot of a cluster.
pub fn snapshot(facts: &Facts) -> Snapshot {
    with_learned(facts, &Sizes::new(), &Learned::new())
}

/// The snapshot of a cluster, with what was asked or learned besides.
pub fn with_learned(facts: &Facts, sizes: &Sizes, learned: &Learned) -> Snapshot {
    let members: Vec<Member> = facts.members.iter().map(|m| member(m, facts)).collect();
    let memory: HashMap<&str, u64> = members.iter().map(|m| (m.name.0.as_str(), m.memory_mib)).collect();
    let mut instances: Vec<Instance> = facts
        .instances
        .iter()
        .map(|i| instance(i, facts, memory.get(i.location.as_str()).copied().unwrap_or(0)))
        .collect();
    for i in &mut instances {
        if let Some(size) = sizes.get(&i.workload.id).filter(|_| i.size_mib.is_none()) {
            (i.size_mib, i.at_least_mib) = (size.mib, size.at_least_mib);
        }
    }
    for ((id, member), bar) in learned {
        let found = instances.iter_mut().find(|i| i.workload.id == *id && i.member != *member);
        if let Some(i) = found {
            i.workload.barred.entry(member.clone()).or_insert_with(|| bar.clone());
        }
    }
    Snapshot { members, instances }
}

/// The identity of an instance.
pub fn id_of(instance: &EngineInstance) -> InstanceId {
    InstanceId { project: project_of(instance).to_owned(), name: instance.name.clone() }
}

fn member(m: &MemberFacts, facts: &Facts) -> Member {
    let name = &m.member.server_name;
    let here = |locations: &[String]| locations.is_empty() || locations.contains(name);
    let pools = facts.ground.pools.iter().filter(|p| here(&p.locations)).map(|pool| {
        let space = m.state.as_ref().and_then(|s| s.storage_pools.get(&pool.name));
        let size = space
            .map(|s| s.space.total >> 20)
            .filter(|total| *total > 0 && !facts.ground.is_shared(&pool.name));
        (PoolName(pool.name.clone()), size)
    });
    let networks =
        facts.ground.networks.iter().filter(|n| n.managed && here(&n.locations)).map(|n| n.name.clone());
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
            _ if !m.answers() => MemberState::Offline,
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

fn instance(i: &EngineInstance, facts: &Facts, member_mib: u64) -> Instance {
    let running = power::is_running(i);
    let kind = match i.kind.as_str() {
        "virtual-machine" => InstanceKind::VirtualMachine,
        _ => InstanceKind::Container,
    };
    let usage = |n: i64| u64::try_from(n).ok().filter(|n| *n > 0).map(|n| n.div_ceil(1 << 20));
    let state = i.state.as_ref();
    let Size { mib: size_mib, at_least_mib } = size(i, facts);
    let mut workload =
        workload(id_of(i), kind, &i.architecture, &i.expanded_config, &i.expanded_devices, member_mib);
    workload.barred = facts.ground.bars(i, &facts.all_members());
    Instance {
        workload,
        member: MemberName(i.location.clone()),
        running,
        resumes: power::was_stopped_by_evacuation(i, facts.member(&i.location)),
        ephemeral: i.ephemeral,
        evacuation: evacuation(i),
        pinned: is_tied(i),
        migration: migration(i, kind, running, facts),
        size_mib,
        at_least_mib,
        measured: Amounts { memory_mib: state.and_then(|s| usage(s.memory.usage)), cpu_milli: None },
    }
}

/// How much a move copies: the root disk, if its pool is local. Volumes that are attached stay where they are.
fn size(i: &EngineInstance, facts: &Facts) -> Size {
    let usage = |n: i64| u64::try_from(n).ok().filter(|n| *n > 0).map(|n| n.div_ceil(1 << 20));
    let mut size = Size { mib: Some(0), at_least_mib: 0 };
    for (device, pool, _) in disks(&i.expanded_devices) {
        let is_root = i.expanded_devices[device].get("path").is_some_and(|p| p == "/");
        if is_root && !facts.ground.is_shared(pool) {
            let used = i.state.as_ref().and_then(|s| s.disk.get(device)).and_then(|d| usage(d.usage));
            size.mib = size.mib.zip(used).map(|(sum, used)| sum + used);
        }
    }
    size
}

/// What its owner wants when its member is emptied. Every way to stop it there has it stay (`stop`, `stateful-stop`,
/// `force-stop`).
fn evacuation(i: &EngineInstance) -> Evacuation {
    match i.expanded_config.get("cluster.evacuate").map_or("", String::as_str) {
        "" | "auto" | "migrate" => Evacuation::Move,
        "live-migrate" => Evacuation::LiveOnly,
        _ => Evacuation::Stop,
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
        barred: BTreeMap::new(),
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
pub(crate) fn disks(devices: &Devices) -> impl Iterator<Item = (&str, &str, u64)> {
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
    match (kind, running) {
        (_, false) => Migration::Stopped,
        (InstanceKind::VirtualMachine, true) if moves_live(i) => Migration::Live,
        (InstanceKind::Container, true) if facts.refresh_migration => Migration::Refresh,
        _ => Migration::Stopped,
    }
}

/// Whether a running instance is moved live: a virtual machine that is set up for it and whose owner does not want it
/// moved stopped.
pub(crate) fn moves_live(i: &EngineInstance) -> bool {
    let says = |key: &str, value: &str| i.expanded_config.get(key).is_some_and(|v| v == value);
    i.kind == "virtual-machine" && says("migration.stateful", "true") && !says("cluster.evacuate", "migrate")
}

/// Why an instance may not be moved at all, whatever its target: as placement decides it, asked again when the move begins.
pub(crate) fn unmovable(i: &EngineInstance) -> Option<&'static str> {
    let stopped_for_it = power::may_run(i) && !moves_live(i);
    let pinned = i.expanded_config.get(stead_placement::settings::PIN).map_or("", String::as_str);
    match evacuation(i) {
        _ if i.ephemeral && stopped_for_it => Some("it is ephemeral: stopping it for a move would delete it"),
        Evacuation::Stop => Some("its cluster.evacuate has it stay on its member"),
        Evacuation::LiveOnly if stopped_for_it => {
            Some("its cluster.evacuate allows only a live migration, which the server cannot do")
        }
        _ if is_tied(i) => Some("it is tied to its member"),
        _ if !matches!(pinned, "" | "false" | "0" | "no" | "off") => Some("user.stead.pin is set on it"),
        _ => None,
    }
}
