//! Snapshot and policy as numbered tables, in an order that does not depend on theirs.
//!
//! Owns the demand of each instance, the members it may be on, whether it may be moved, and the groups. Makes no choices:
//! the planner does.

use crate::{
    plan::{Finding, Fixed, Hindrance},
    policy::{Downtime, GroupMode, GroupStrength, Policy},
    settings::{self, GroupId, InstanceSettings},
    snapshot::{
        Bar, Evacuation, Instance, InstanceKind, Member, MemberName, MemberState, Migration, PoolName,
        Schedulable, Snapshot, Workload,
    },
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
};

/// Usable amount that is not counted: that of an offline member, of a shared pool, or of a pool that the member lacks (a
/// hindrance, not a lack of room).
pub const UNCOUNTED: u64 = u64::MAX;

/// A resource of members.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resource {
    /// Memory, in MiB.
    Memory,
    /// Processor threads, in thousandths.
    Cpu,
    /// A storage pool, in MiB.
    Disk(PoolName),
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::Cpu => f.write_str("CPU"),
            Self::Disk(pool) => write!(f, "space in pool {pool}"),
        }
    }
}

impl Resource {
    /// An amount of it as text: `1.5 GiB`, `0.5 CPUs`.
    pub fn show(&self, amount: u64) -> String {
        match self {
            Self::Cpu => format!("{} CPUs", amount as f64 / 1000.0),
            _ if amount >= 1 << 20 => format!("{} TiB", round(amount, 1 << 20)),
            _ if amount >= 1 << 10 => format!("{} GiB", round(amount, 1 << 10)),
            _ => format!("{amount} MiB"),
        }
    }
}

fn round(amount: u64, unit: u64) -> f64 {
    (amount as f64 / unit as f64 * 100.0).round() / 100.0
}

/// A set of members.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bits(Vec<u64>);

impl Bits {
    fn none(members: usize) -> Self {
        Self(vec![0; members.div_ceil(64)])
    }
    fn insert(&mut self, m: usize) {
        self.0[m / 64] |= 1 << (m % 64);
    }
    /// Whether the set contains `m`.
    pub fn has(&self, m: usize) -> bool {
        self.0[m / 64] >> (m % 64) & 1 == 1
    }
    /// Number of members in the set.
    pub fn len(&self) -> usize {
        self.0.iter().map(|w| w.count_ones() as usize).sum()
    }
    /// The members, in order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(n, &word)| {
            std::iter::successors((word != 0).then_some(word), |w| {
                let rest = w & (w - 1);
                (rest != 0).then_some(rest)
            })
            .map(move |w| n * 64 + w.trailing_zeros() as usize)
        })
    }
    /// The intersection with another set.
    pub fn and(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a & b).collect())
    }
    /// Whether `other` contains every member of this set.
    pub fn within(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(a, b)| a & !b == 0)
    }
}

/// Members for instances with the same requirements.
#[derive(Debug, Clone)]
pub struct Class {
    /// Members that may accept them.
    pub enter: Bits,
    /// Members on which they may stay if they are there already.
    pub stay: Bits,
}

/// A group, with the mode and strength that result from its instances' settings.
#[derive(Debug, Clone)]
pub struct Group {
    /// Its project and name.
    pub id: GroupId,
    /// Spread or compact.
    pub mode: GroupMode,
    /// Strict or preferred.
    pub strength: GroupStrength,
    /// Numbers of its instances, in order.
    pub instances: Vec<u32>,
}

impl Group {
    /// Whether it is strict and spread.
    pub fn strictly_spread(&self) -> bool {
        self.strength == GroupStrength::Strict && self.mode == GroupMode::Spread
    }
    /// Whether it is strict and compact.
    pub fn strictly_compact(&self) -> bool {
        self.strength == GroupStrength::Strict && self.mode == GroupMode::Compact
    }
    /// Number of pairs of its instances that violate its mode, given the number of instances on each member.
    pub fn violating_pairs(&self, counts: impl Iterator<Item = u64>) -> u64 {
        let pairs = |n: u64| n * n.saturating_sub(1) / 2;
        let together: u64 = counts.map(pairs).sum();
        match self.mode {
            GroupMode::Spread => together,
            GroupMode::Compact => pairs(self.instances.len() as u64) - together,
        }
    }
}

/// The tables. Members and instances are numbered in the order of their names.
#[derive(Debug, Clone)]
pub struct Problem<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// Members, ordered by name.
    pub members: Vec<&'a Member>,
    /// Instances, ordered by project and name.
    pub instances: Vec<&'a Instance>,
    /// Memory, processor, and each pool that is local to some member.
    pub resources: Vec<Resource>,
    /// Amount of each resource that each member can promise, including overcommitment; [`UNCOUNTED`] if not counted.
    pub usable: Vec<u64>,
    /// Amount of each resource committed to each instance.
    pub demand: Vec<u64>,
    /// Each instance's class.
    pub class: Vec<u32>,
    /// The classes.
    pub classes: Vec<Class>,
    /// Whether each member takes part: it is online, scheduled by the engine and not being drained.
    pub receives: Vec<bool>,
    /// Why each instance cannot be moved; none if it can.
    pub fixed: Vec<Option<Fixed>>,
    /// Whether each instance must leave the member it starts on.
    pub must_leave: Vec<bool>,
    /// Cost of moving each instance: MiB to copy, plus a price of its downtime in MiB.
    pub cost: Vec<u64>,
    /// Each instance's group.
    pub group: Vec<Option<u32>>,
    /// The groups, ordered by project and name.
    pub groups: Vec<Group>,
    /// The member each instance starts on.
    pub start: Vec<u32>,
    /// Problems with settings.
    pub findings: Vec<Finding>,
}

impl<'a> Problem<'a> {
    /// Builds the tables of a checked snapshot.
    pub fn new(snapshot: &'a Snapshot, policy: &'a Policy) -> Self {
        let mut members: Vec<&Member> = snapshot.members.iter().collect();
        members.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let mut instances: Vec<&Instance> = snapshot.instances.iter().collect();
        instances.sort_unstable_by(|a, b| a.workload.id.cmp(&b.workload.id));
        let number: HashMap<&str, u32> =
            members.iter().enumerate().map(|(n, m)| (m.name.0.as_str(), n as u32)).collect();
        let start: Vec<u32> = instances.iter().map(|i| number[i.member.0.as_str()]).collect();

        let resources = resources(&members);
        let usable = members.iter().flat_map(|m| resources.iter().map(|r| usable(policy, m, r))).collect();
        let mut demand = Vec::with_capacity(instances.len() * resources.len());
        for i in &instances {
            let committed = policy.committed(i);
            demand.extend(resources.iter().map(|r| match r {
                Resource::Memory => committed.memory_mib,
                Resource::Cpu => committed.cpu_milli,
                Resource::Disk(pool) => i.workload.disk_mib.get(pool).copied().unwrap_or(0),
            }));
        }
        let settings_of: Vec<InstanceSettings> =
            instances.iter().map(|i| InstanceSettings::of(&i.workload)).collect();
        let (classes, class) =
            classes(policy, &members, instances.iter().map(|i| &i.workload).zip(settings_of.iter()));
        let receives: Vec<bool> = members.iter().map(|m| receives(policy, m)).collect();

        let mut problem = Self {
            policy,
            resources,
            usable,
            demand,
            receives,
            fixed: Vec::with_capacity(instances.len()),
            must_leave: Vec::with_capacity(instances.len()),
            cost: instances.iter().map(|i| cost(i)).collect(),
            group: vec![None; instances.len()],
            groups: Vec::new(),
            findings: Vec::new(),
            members,
            instances,
            class,
            classes,
            start,
        };
        for (n, m) in problem.members.iter().enumerate().filter(|(_, m)| m.state == MemberState::Offline) {
            let instances = problem.start.iter().filter(|at| **at == n as u32).count();
            problem.findings.push(Finding::Offline { member: m.name.clone(), instances });
        }
        for (i, own) in settings_of.iter().enumerate() {
            let must_leave = problem.must_leave_now(i);
            let fixed = problem.why_fixed(i, own, must_leave);
            problem.must_leave.push(must_leave);
            problem.fixed.push(fixed);
            problem.findings.extend(own.bad.iter().map(|(key, value)| Finding::BadSetting {
                instance: problem.instances[i].workload.id.clone(),
                key: (*key).to_owned(),
                value: value.clone(),
            }));
        }
        problem.gather_groups(&settings_of);
        problem
    }

    /// The same problem with instances starting on the members `at`.
    pub fn begun_at(&self, at: &[u32]) -> Self {
        let mut there = self.clone();
        there.start = at.to_vec();
        for i in (0..at.len()).filter(|i| at[*i] != self.start[*i]) {
            let must_leave = there.must_leave_now(i);
            there.must_leave[i] = must_leave;
            there.fixed[i] =
                there.why_fixed(i, &InstanceSettings::of(&self.instances[i].workload), must_leave);
        }
        there
    }

    /// Number of resources.
    pub fn width(&self) -> usize {
        self.resources.len()
    }

    /// The demand of an instance, by resource.
    pub fn demand_of(&self, i: usize) -> &[u64] {
        &self.demand[i * self.width()..][..self.width()]
    }

    /// The amounts a member can promise, by resource.
    pub fn usable_of(&self, m: usize) -> &[u64] {
        &self.usable[m * self.width()..][..self.width()]
    }

    /// Whether a resource is a shared pool on a member: instances may use it there, but its use is not counted.
    pub fn is_shared(&self, m: usize, r: usize) -> bool {
        matches!(&self.resources[r], Resource::Disk(pool) if self.members[m].pools_mib.get(pool) == Some(&None))
    }

    /// Whether a member may accept an instance, regardless of room.
    pub fn may_enter(&self, i: usize, m: usize) -> bool {
        self.classes[self.class[i] as usize].enter.has(m)
    }

    /// Downtime of an instance in a move.
    pub fn downtime(&self, i: usize) -> Downtime {
        downtime(self.instances[i])
    }

    fn must_leave_now(&self, i: usize) -> bool {
        let m = self.start[i] as usize;
        let member = self.members[m];
        self.policy.drain.contains(&member.name)
            || (member.state == MemberState::Online
                && member.schedulable != Schedulable::Manual
                && !self.classes[self.class[i] as usize].stay.has(m))
    }

    fn why_fixed(&self, i: usize, own: &InstanceSettings, must_leave: bool) -> Option<Fixed> {
        let (instance, m) = (self.instances[i], self.start[i] as usize);
        let member = self.members[m];
        let drained = self.policy.drain.contains(&member.name);
        let enter = &self.classes[self.class[i] as usize].enter;
        match (instance.pinned, own.pinned, instance.migration) {
            (true, _, _) => return Some(Fixed::Pinned),
            (_, true, _) => return Some(Fixed::PinnedBySetting),
            (_, _, Migration::Never) => return Some(Fixed::CannotMigrate),
            _ => {}
        }
        let stopped_for_it = instance.running && instance.migration != Migration::Live;
        match instance.evacuation {
            _ if instance.ephemeral && stopped_for_it => return Some(Fixed::Ephemeral),
            Evacuation::Stop => return Some(Fixed::StopsInPlace),
            Evacuation::LiveOnly if stopped_for_it => return Some(Fixed::OnlyLive),
            Evacuation::LiveOnly | Evacuation::Move => {}
        }
        match member.state {
            MemberState::Online => {}
            MemberState::Evacuated if drained => {}
            state => return Some(Fixed::MemberIs(state)),
        }
        if member.schedulable == Schedulable::Manual && !drained {
            return Some(Fixed::ManualMember);
        }
        let downtime = downtime(instance);
        if downtime > self.policy.downtime {
            return Some(Fixed::Downtime(downtime));
        }
        // Somebody placed it on a member that the engine's scheduler would not choose.
        if !must_leave && !enter.has(m) {
            return Some(Fixed::ByHand);
        }
        let elsewhere = enter.len() - usize::from(enter.has(m));
        (elsewhere == 0).then_some(Fixed::NowhereElse)
    }

    fn gather_groups(&mut self, settings_of: &[InstanceSettings]) {
        let mut groups: BTreeMap<&GroupId, Vec<u32>> = BTreeMap::new();
        for (i, own) in settings_of.iter().enumerate() {
            if let Some(group) = &own.group {
                groups.entry(group).or_default().push(i as u32);
            }
        }
        for (id, instances) in groups {
            let number = self.groups.len() as u32;
            instances.iter().for_each(|i| self.group[*i as usize] = Some(number));
            let mode = agreed(settings_of, &instances, |w| w.mode);
            let strength = agreed(settings_of, &instances, |w| w.strength);
            for (key, said) in [
                (settings::GROUP_MODE, mode.map(|(_, a, b)| (a, b))),
                (settings::GROUP_STRENGTH, strength.map(|(_, a, b)| (a, b))),
            ] {
                if let Some((one, other)) = said.filter(|(a, b)| a != b) {
                    self.findings.push(Finding::GroupDisagrees {
                        group: id.clone(),
                        key: key.to_owned(),
                        one: self.instances[one as usize].workload.id.clone(),
                        other: self.instances[other as usize].workload.id.clone(),
                    });
                }
            }
            self.groups.push(Group {
                id: id.clone(),
                mode: mode.map_or(self.policy.group.mode, |(v, ..)| v),
                strength: strength.map_or(self.policy.group.strength, |(v, ..)| v),
                instances,
            });
        }
    }
}

/// The least value set by a group's instances (spread before compact, strict before preferred), an instance that sets it
/// and one that sets another value (the same instance twice if they agree). None if no instance sets a value.
fn agreed<T: Ord + Copy>(
    settings_of: &[InstanceSettings],
    instances: &[u32],
    of: impl Fn(&InstanceSettings) -> Option<T>,
) -> Option<(T, u32, u32)> {
    let said = || instances.iter().filter_map(|i| of(&settings_of[*i as usize]).map(|v| (v, *i)));
    let (least, one) = said().min()?;
    let other = said().find(|(v, _)| *v != least).map_or(one, |(_, i)| i);
    Some((least, one, other))
}

/// Price of a stop. The true price of downtime is unknown; a stop is made as expensive as copying 64 GiB, so that of two
/// moves with the same gain, the one without interruption is chosen.
const STOP_MIB: u64 = 64 << 10;
/// Price of a short interruption.
const PAUSE_MIB: u64 = 1 << 10;

/// Price of a copy of unknown size: the engines' default size of a root disk that needs one.
const UNKNOWN_MIB: u64 = 10 << 10;

/// Cost of moving an instance.
fn cost(instance: &Instance) -> u64 {
    let downtime = match downtime(instance) {
        Downtime::None => 0,
        Downtime::Short => PAUSE_MIB,
        Downtime::Full => STOP_MIB,
    };
    instance.size_mib.unwrap_or(UNKNOWN_MIB.max(instance.at_least_mib)) + downtime
}

/// Downtime of an instance in a move.
fn downtime(instance: &Instance) -> Downtime {
    match instance.migration {
        _ if !instance.running => Downtime::None,
        Migration::Live => Downtime::None,
        Migration::Refresh => Downtime::Short,
        Migration::Stopped | Migration::Never => Downtime::Full,
    }
}

/// Whether a member takes part in placement.
pub fn receives(policy: &Policy, m: &Member) -> bool {
    m.state == MemberState::Online
        && m.schedulable != Schedulable::Manual
        && !policy.drain.contains(&m.name)
        && m.roles.is_disjoint(&policy.avoid_roles)
}

/// Memory, processor, and the pools that are local to some member.
pub fn resources(members: &[&Member]) -> Vec<Resource> {
    let pools: BTreeSet<&PoolName> = members
        .iter()
        .flat_map(|m| m.pools_mib.iter().filter(|(_, s)| s.is_some()).map(|(p, _)| p))
        .collect();
    [Resource::Memory, Resource::Cpu]
        .into_iter()
        .chain(pools.into_iter().map(|p| Resource::Disk(p.clone())))
        .collect()
}

/// Amount of a resource that a member can promise.
pub fn usable(policy: &Policy, m: &Member, resource: &Resource) -> u64 {
    if m.state == MemberState::Offline {
        return UNCOUNTED;
    }
    let ratio = policy.overcommit_percent;
    let (has, percent) = match resource {
        Resource::Memory => (m.memory_mib, ratio.memory),
        Resource::Cpu => (m.cpu_milli, ratio.cpu),
        Resource::Disk(pool) => match m.pools_mib.get(pool) {
            Some(Some(size)) => (*size, ratio.disk),
            Some(None) | None => return UNCOUNTED,
        },
    };
    has.saturating_mul(u64::from(percent)) / 100
}

/// Why a workload should not be on a member, regardless of room and the member's state.
pub fn hindrances(policy: &Policy, m: &Member, w: &Workload, roles: &BTreeSet<String>) -> Vec<Hindrance> {
    let mut why = Vec::new();
    if !m.architectures.contains(&w.architecture) {
        why.push(Hindrance::Architecture(w.architecture.clone()));
    }
    if w.kind == InstanceKind::VirtualMachine && !m.virtual_machines {
        why.push(Hindrance::VirtualMachines);
    }
    why.extend(
        w.cluster_group
            .iter()
            .filter(|g| !m.cluster_groups.contains(*g))
            .cloned()
            .map(Hindrance::ClusterGroup),
    );
    why.extend(roles.difference(&m.roles).cloned().map(Hindrance::RoleMissing));
    why.extend(m.roles.intersection(&policy.avoid_roles).cloned().map(Hindrance::RoleAvoided));
    why.extend(w.disk_mib.keys().filter(|p| !m.pools_mib.contains_key(*p)).cloned().map(Hindrance::Pool));
    why.extend(w.networks.difference(&m.networks).cloned().map(Hindrance::Network));
    if policy.drain.contains(&m.name) {
        why.push(Hindrance::Drained);
    }
    why.extend(w.barred.get(&m.name).cloned().map(Hindrance::Barred));
    why
}

/// Why a member's state or scheduler setting keeps this workload out.
pub fn closed(m: &Member, w: &Workload) -> Option<Hindrance> {
    match (m.state, m.schedulable) {
        (MemberState::Online, Schedulable::All) => None,
        (MemberState::Online, Schedulable::Group) => match &w.cluster_group {
            Some(group) if m.cluster_groups.contains(group) => None,
            _ => Some(Hindrance::GroupOnly),
        },
        (MemberState::Online, Schedulable::Manual) => Some(Hindrance::Manual),
        (state, _) => Some(Hindrance::MemberIs(state)),
    }
}

/// The requirements that decide which members may accept a workload.
type ClassKey<'a> = (
    InstanceKind,
    &'a str,
    Option<&'a str>,
    &'a BTreeSet<String>,
    Vec<&'a PoolName>,
    &'a BTreeSet<String>,
    &'a BTreeMap<MemberName, Bar>,
);

/// The classes of workloads, and the class of each workload.
pub fn classes<'a>(
    policy: &Policy,
    members: &[&Member],
    workloads: impl Iterator<Item = (&'a Workload, &'a InstanceSettings)>,
) -> (Vec<Class>, Vec<u32>) {
    let mut known: HashMap<ClassKey<'_>, u32> = HashMap::new();
    let (mut classes, mut of) = (Vec::new(), Vec::new());
    for (w, own) in workloads {
        let key: ClassKey<'_> = (
            w.kind,
            &w.architecture,
            w.cluster_group.as_deref(),
            &own.roles,
            w.disk_mib.keys().collect(),
            &w.networks,
            &w.barred,
        );
        let next = classes.len() as u32;
        let number = *known.entry(key).or_insert(next);
        if number == next {
            let (mut enter, mut stay) = (Bits::none(members.len()), Bits::none(members.len()));
            for (n, m) in members.iter().enumerate() {
                if hindrances(policy, m, w, &own.roles).is_empty() {
                    stay.insert(n);
                    if closed(m, w).is_none() {
                        enter.insert(n);
                    }
                }
            }
            classes.push(Class { enter, stay });
        }
        of.push(number);
    }
    (classes, of)
}
