//! Random small clusters, and an oracle that finds every reachable placement by trying all moves.
#![allow(dead_code)] // Each test program uses only part of it.

use proptest::{collection::vec, option, prelude::*, sample::select};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use stead_placement::{
    Policy, Snapshot,
    policy::{
        Commitment, Downtime, GroupDefaults, GroupMode, GroupStrength, PerResource, Stopped, Unlimited,
    },
    settings,
    snapshot::{
        Amounts, Bar, Evacuation, Instance, InstanceId, InstanceKind, Member, MemberName, MemberState,
        Migration, PoolName, Schedulable, Workload,
    },
};

pub fn id(n: usize) -> InstanceId {
    InstanceId {
        project: if n % 5 == 4 { "other".to_owned() } else { "default".to_owned() },
        name: format!("i{n}"),
    }
}

pub fn member(n: usize, memory_mib: u64, cpu_milli: u64) -> Member {
    Member {
        name: MemberName(format!("n{n}")),
        architectures: BTreeSet::from(["x86_64".to_owned()]),
        state: MemberState::Online,
        schedulable: Schedulable::All,
        cluster_groups: BTreeSet::from(["default".to_owned()]),
        roles: BTreeSet::new(),
        virtual_machines: true,
        memory_mib,
        cpu_milli,
        pools_mib: BTreeMap::from([(PoolName::from("local"), Some(40)), (PoolName::from("shared"), None)]),
        networks: BTreeSet::from(["br0".to_owned()]),
    }
}

pub fn workload(n: usize, memory_mib: u64, cpu_milli: u64) -> Workload {
    Workload {
        id: id(n),
        kind: InstanceKind::Container,
        architecture: "x86_64".to_owned(),
        cluster_group: None,
        limits: Amounts { memory_mib: Some(memory_mib), cpu_milli: Some(cpu_milli) },
        disk_mib: BTreeMap::from([(PoolName::from("local"), 1)]),
        networks: BTreeSet::from(["br0".to_owned()]),
        settings: BTreeMap::new(),
        barred: BTreeMap::new(),
    }
}

pub fn instance(n: usize, on: usize, memory_mib: u64, cpu_milli: u64) -> Instance {
    Instance {
        workload: workload(n, memory_mib, cpu_milli),
        member: MemberName(format!("n{on}")),
        running: true,
        pinned: false,
        migration: Migration::Stopped,
        size_mib: Some(10 + n as u64),
        at_least_mib: 0,
        resumes: false,
        ephemeral: false,
        evacuation: Evacuation::Move,
        measured: Amounts::default(),
    }
}

/// Mostly the first, now and then the second.
fn rarely<T: Clone + std::fmt::Debug + 'static>(
    mostly: T,
    now_and_then: T,
) -> impl Strategy<Value = T> + Clone {
    prop_oneof![8 => Just(mostly), 1 => Just(now_and_then)]
}

fn members(n: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Vec<Member>> {
    let one = (
        select(vec![8u64, 12, 16, 20]),
        select(vec![4u64, 8, 12]),
        prop_oneof![
            12 => Just(MemberState::Online),
            1 => Just(MemberState::Offline),
            1 => Just(MemberState::Evacuated),
            1 => Just(MemberState::Blocked)
        ],
        prop_oneof![10 => Just(Schedulable::All), 1 => Just(Schedulable::Group), 1 => Just(Schedulable::Manual)],
        rarely(false, true),
        rarely(true, false),
        rarely(true, false),
        rarely(Some(40u64), None),
    );
    vec(one, n).prop_map(|all| {
        all.into_iter()
            .enumerate()
            .map(|(n, (memory, cpu, state, schedulable, special, pool, network, size))| {
                let mut m = member(n, memory, cpu);
                (m.state, m.schedulable) = (state, schedulable);
                if special {
                    m.roles.insert("special".to_owned());
                    m.cluster_groups.insert("east".to_owned());
                    m.architectures.insert("aarch64".to_owned());
                }
                m.pools_mib.insert(PoolName::from("local"), size);
                if !pool {
                    m.pools_mib.remove(&PoolName::from("local"));
                }
                if !network {
                    m.networks.clear();
                }
                m
            })
            .collect()
    })
}

pub fn workloads(n: std::ops::RangeInclusive<usize>, first: usize) -> impl Strategy<Value = Vec<Workload>> {
    let group = (
        select(vec!["web", "db"]),
        option::of(select(vec!["spread", "compact", "spraed"])),
        option::of(select(vec!["strict", "preferred"])),
    );
    let one = (
        (0u64..10, 0u64..6, 0u64..12),
        option::weighted(0.5, group),
        rarely(false, true),
        rarely(true, false),
        rarely(false, true),
        rarely(true, false),
    );
    vec(one, n).prop_map(move |all| {
        all.into_iter()
            .enumerate()
            .map(|(n, ((memory, cpu, disk), group, special, local, role, network))| {
                let mut w = workload(first + n, memory, cpu);
                w.disk_mib = match local {
                    true => BTreeMap::from([(PoolName::from("local"), disk)]),
                    false => BTreeMap::from([(PoolName::from("shared"), disk)]),
                };
                if !network {
                    w.networks.clear();
                }
                if special {
                    match n % 2 {
                        0 => w.cluster_group = Some("east".to_owned()),
                        _ => w.architecture = "aarch64".to_owned(),
                    }
                }
                if role {
                    w.settings.insert(settings::ROLES.to_owned(), "special".to_owned());
                }
                if let Some((name, mode, strength)) = group {
                    w.settings.insert(settings::GROUP.to_owned(), name.to_owned());
                    let mut say = |key: &str, value: Option<&str>| {
                        value.map(|v| w.settings.insert(key.to_owned(), v.to_owned()))
                    };
                    say(settings::GROUP_MODE, mode);
                    say(settings::GROUP_STRENGTH, strength);
                }
                w
            })
            .collect()
    })
}

/// A cluster with `n` members and `instances` instances.
pub fn snapshot(
    n: std::ops::RangeInclusive<usize>,
    instances: std::ops::RangeInclusive<usize>,
) -> impl Strategy<Value = Snapshot> {
    let more = (
        (0usize..64, rarely(false, true), rarely(false, true), rarely(true, false), 0u8..8),
        (rarely(false, true), rarely(false, true), 0u8..12, option::weighted(0.2, 0usize..64)),
    );
    (members(n), workloads(instances, 0)).prop_flat_map(move |(members, workloads)| {
        let count = workloads.len();
        (Just(members), Just(workloads), vec(more.clone(), count..=count)).prop_map(
            |(members, workloads, more)| {
                let instances = workloads
                    .into_iter()
                    .zip(more)
                    .map(|(mut workload, ((at, pinned, pin, running, migration), rest))| {
                        let (ephemeral, resumes, evacuation, barred) = rest;
                        let bar = barred.filter(|n| n % members.len() != at % members.len());
                        workload.barred = bar
                            .map(|n| (members[n % members.len()].name.clone(), Bar::Parent("br1".to_owned())))
                            .into_iter()
                            .collect();
                        if pin {
                            workload.settings.insert(settings::PIN.to_owned(), "true".to_owned());
                        }
                        Instance {
                            member: members[at % members.len()].name.clone(),
                            running,
                            pinned,
                            migration: match migration {
                                0 => Migration::Live,
                                1 => Migration::Refresh,
                                2 => Migration::Never,
                                _ => Migration::Stopped,
                            },
                            size_mib: (at % 7 > 0).then_some(10 + at as u64),
                            at_least_mib: at as u64 % 5,
                            resumes: resumes && !running,
                            ephemeral,
                            evacuation: match evacuation {
                                0 => Evacuation::Stop,
                                1 => Evacuation::LiveOnly,
                                _ => Evacuation::Move,
                            },
                            measured: Amounts { memory_mib: Some(1), cpu_milli: None },
                            workload,
                        }
                    })
                    .collect();
                Snapshot { members, instances }
            },
        )
    })
}

pub fn policy() -> impl Strategy<Value = Policy> {
    (
        select(vec![0u32, 1, 5, 20]),
        0u32..3,
        select(vec![100u32, 100, 150]),
        vec(0usize..8, 0..=1),
        prop_oneof![1 => Just(Downtime::None), 1 => Just(Downtime::Short), 8 => Just(Downtime::Full)],
        rarely(Stopped::Count, Stopped::Ignore),
        select(vec![0u32, 50, 100]),
        rarely(false, true),
        any::<(bool, bool)>(),
    )
        .prop_map(|(tolerance, gain, over, drain, downtime, stopped, disk, avoid, (compact, strict))| {
            Policy {
                overcommit_percent: PerResource { memory: over, cpu: 100, disk: 100 },
                weight_percent: PerResource { memory: 100, cpu: 100, disk },
                unlimited: Unlimited::Default,
                container: Commitment { memory_mib: 2, cpu_milli: 1 },
                virtual_machine: Commitment { memory_mib: 4, cpu_milli: 2 },
                stopped,
                group: GroupDefaults {
                    mode: if compact { GroupMode::Compact } else { GroupMode::Spread },
                    strength: if strict { GroupStrength::Strict } else { GroupStrength::Preferred },
                },
                tolerance_percent: tolerance,
                least_gain_percent: gain,
                max_moves: None,
                downtime,
                drain: drain.into_iter().map(|n| MemberName(format!("n{n}"))).collect(),
                avoid_roles: avoid.then(|| "special".to_owned()).into_iter().collect(),
            }
        })
}

/// A violation, as the oracle identifies it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Wrong {
    Misplaced(InstanceId),
    Overload(MemberName, String),
    Group(String),
}

impl Wrong {
    pub fn of(violation: &stead_placement::plan::Violation) -> Self {
        use stead_placement::plan::Violation;
        match violation {
            Violation::Misplaced { instance, .. } => Self::Misplaced(instance.clone()),
            Violation::Overload { member, resource, .. } => {
                Self::Overload(member.clone(), resource.to_string())
            }
            Violation::Group { group, .. } => Self::Group(group.to_string()),
        }
    }
}

/// A cluster in the simplest form: without classes or stored sums.
pub struct Oracle<'a> {
    policy: &'a Policy,
    pub members: Vec<&'a Member>,
    instances: Vec<&'a Instance>,
    start: Vec<usize>,
    pub groups: Vec<(String, GroupMode, GroupStrength, Vec<usize>)>,
}

impl<'a> Oracle<'a> {
    pub fn new(snapshot: &'a Snapshot, policy: &'a Policy) -> Self {
        let members: Vec<&Member> = snapshot.members.iter().collect();
        let instances: Vec<&Instance> = snapshot.instances.iter().collect();
        let start =
            instances.iter().map(|i| members.iter().position(|m| m.name == i.member).unwrap()).collect();
        let mut groups: BTreeMap<(&str, &str), Vec<usize>> = BTreeMap::new();
        for (n, i) in instances.iter().enumerate() {
            if let Some(g) = i.workload.settings.get(settings::GROUP) {
                groups.entry((&i.workload.id.project, g)).or_default().push(n);
            }
        }
        let groups = groups
            .into_iter()
            .map(|((project, name), of)| {
                let says = |key: &str, value: &str| {
                    of.iter().any(|i| instances[*i].workload.settings.get(key).is_some_and(|v| v == value))
                };
                let mode = if says(settings::GROUP_MODE, "spread") {
                    GroupMode::Spread
                } else if says(settings::GROUP_MODE, "compact") {
                    GroupMode::Compact
                } else {
                    policy.group.mode
                };
                let strength = if says(settings::GROUP_STRENGTH, "strict") {
                    GroupStrength::Strict
                } else if says(settings::GROUP_STRENGTH, "preferred") {
                    GroupStrength::Preferred
                } else {
                    policy.group.strength
                };
                let name = if project == "default" { name.to_owned() } else { format!("{project}/{name}") };
                (name, mode, strength, of)
            })
            .collect();
        Self { policy, members, instances, start, groups }
    }

    fn stays(&self, i: usize, m: usize) -> bool {
        let (w, m) = (&self.instances[i].workload, self.members[m]);
        let roles = w.settings.get(settings::ROLES);
        m.architectures.contains(&w.architecture)
            && (w.kind == InstanceKind::Container || m.virtual_machines)
            && w.cluster_group.as_ref().is_none_or(|g| m.cluster_groups.contains(g))
            && roles.is_none_or(|r| m.roles.contains(r))
            && m.roles.is_disjoint(&self.policy.avoid_roles)
            && w.disk_mib.keys().all(|p| m.pools_mib.contains_key(p))
            && w.networks.is_subset(&m.networks)
            && !self.policy.drain.contains(&m.name)
            && !w.barred.contains_key(&m.name)
    }

    pub fn enters(&self, i: usize, m: usize) -> bool {
        let member = self.members[m];
        self.stays(i, m)
            && member.state == MemberState::Online
            && match member.schedulable {
                Schedulable::All => true,
                Schedulable::Group => self.instances[i].workload.cluster_group.is_some(),
                Schedulable::Manual => false,
            }
    }

    fn must_leave(&self, i: usize) -> bool {
        let m = self.members[self.start[i]];
        self.policy.drain.contains(&m.name)
            || (m.state == MemberState::Online
                && m.schedulable != Schedulable::Manual
                && !self.stays(i, self.start[i]))
    }

    fn movable(&self, i: usize) -> bool {
        let (instance, m) = (self.instances[i], self.members[self.start[i]]);
        let drained = self.policy.drain.contains(&m.name);
        let downtime = match instance.migration {
            _ if !instance.running => Downtime::None,
            Migration::Live => Downtime::None,
            Migration::Refresh => Downtime::Short,
            _ => Downtime::Full,
        };
        let stopped = instance.running && instance.migration != Migration::Live;
        !instance.pinned
            && !(stopped && (instance.ephemeral || instance.evacuation == Evacuation::LiveOnly))
            && instance.evacuation != Evacuation::Stop
            && !instance.workload.settings.contains_key(settings::PIN)
            && instance.migration != Migration::Never
            && (m.state == MemberState::Online || drained && m.state == MemberState::Evacuated)
            && (m.schedulable != Schedulable::Manual || drained)
            && downtime <= self.policy.downtime
            && (self.must_leave(i) || self.enters(i, self.start[i]))
    }

    /// Memory, processor, the pool "local".
    pub fn demand(&self, i: usize) -> [u64; 3] {
        let w = &self.instances[i].workload;
        let i = self.instances[i];
        let counts = u64::from(i.running || i.resumes || self.policy.stopped == Stopped::Count);
        let disk = w.disk_mib.get(&PoolName::from("local")).copied().unwrap_or(0);
        [w.limits.memory_mib.unwrap() * counts, w.limits.cpu_milli.unwrap() * counts, disk]
    }

    pub fn usable(&self, m: usize) -> [u64; 3] {
        let (m, o) = (self.members[m], self.policy.overcommit_percent);
        if m.state == MemberState::Offline {
            return [u64::MAX / 1000; 3];
        }
        let disk = match m.pools_mib.get(&PoolName::from("local")) {
            None | Some(None) => u64::MAX / 1000,
            Some(Some(size)) => *size,
        };
        [
            m.memory_mib * u64::from(o.memory) / 100,
            m.cpu_milli * u64::from(o.cpu) / 100,
            disk * u64::from(o.disk) / 100,
        ]
    }

    pub fn used(&self, at: &[usize], m: usize) -> [u64; 3] {
        let mut sum = [0; 3];
        for i in (0..at.len()).filter(|i| at[*i] == m) {
            let d = self.demand(i);
            (0..3).for_each(|r| sum[r] += d[r]);
        }
        sum
    }

    fn violating_pairs(&self, at: &[usize], g: usize) -> u64 {
        let (_, mode, _, of) = &self.groups[g];
        let violates = |a: usize, b: usize| (at[a] == at[b]) == (*mode == GroupMode::Spread);
        of.iter().map(|a| of.iter().filter(|b| *b > a && violates(*a, **b)).count() as u64).sum()
    }

    /// The violations of a placement, with their amounts.
    pub fn wrong(&self, at: &[usize]) -> BTreeMap<Wrong, u64> {
        let mut all = BTreeMap::new();
        for (i, member) in at.iter().enumerate() {
            if *member == self.start[i] && self.must_leave(i) {
                all.insert(Wrong::Misplaced(self.instances[i].workload.id.clone()), 1);
            }
        }
        for m in 0..self.members.len() {
            let (used, usable) = (self.used(at, m), self.usable(m));
            for (r, name) in ["memory", "CPU", "space in pool local"].into_iter().enumerate() {
                if used[r] > usable[r] {
                    let which = Wrong::Overload(self.members[m].name.clone(), name.to_owned());
                    all.insert(which, used[r] - usable[r]);
                }
            }
        }
        for (g, (name, _, strength, _)) in self.groups.iter().enumerate() {
            let pairs = self.violating_pairs(at, g);
            if *strength == GroupStrength::Strict && pairs > 0 {
                all.insert(Wrong::Group(name.clone()), pairs);
            }
        }
        all
    }

    fn can_go(&self, at: &[usize], i: usize, to: usize) -> bool {
        let (used, usable, d) = (self.used(at, to), self.usable(to), self.demand(i));
        self.movable(i)
            && at[i] != to
            && self.enters(i, to)
            && (0..3).all(|r| d[r] == 0 || used[r] + d[r] <= usable[r])
            && self.groups.iter().all(|(_, mode, strength, of)| {
                (*mode, *strength) != (GroupMode::Spread, GroupStrength::Strict)
                    || !of.contains(&i)
                    || of.iter().all(|mate| at[*mate] != to)
            })
    }

    /// Every reachable placement with its violations.
    pub fn reachable(&self) -> HashMap<Vec<usize>, BTreeMap<Wrong, u64>> {
        let mut seen = HashMap::from([(self.start.clone(), self.wrong(&self.start))]);
        let mut queue = VecDeque::from([self.start.clone()]);
        while let Some(at) = queue.pop_front() {
            for i in 0..at.len() {
                for to in 0..self.members.len() {
                    if self.can_go(&at, i, to) {
                        let mut next = at.clone();
                        next[i] = to;
                        if !seen.contains_key(&next) {
                            seen.insert(next.clone(), self.wrong(&next));
                            queue.push_back(next);
                        }
                    }
                }
            }
        }
        seen
    }

    pub fn start(&self) -> &[usize] {
        &self.start
    }

    /// The snapshot of another placement.
    pub fn snapshot(&self, at: &[usize]) -> Snapshot {
        Snapshot {
            members: self.members.iter().map(|m| (*m).clone()).collect(),
            instances: self
                .instances
                .iter()
                .zip(at)
                .map(|(i, m)| Instance { member: self.members[*m].name.clone(), ..(*i).clone() })
                .collect(),
        }
    }
}
