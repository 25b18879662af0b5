//! Generates clusters of ten shapes, the same in each run.

use std::collections::{BTreeMap, BTreeSet};
use stead_placement::{
    Snapshot, settings,
    snapshot::{
        Amounts, Evacuation, Instance, InstanceId, InstanceKind, Member, MemberName, MemberState, Migration,
        PoolName, Schedulable, Workload,
    },
};

/// Pseudo-random numbers from a fixed seed (SplitMix64).
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    /// One of the given values.
    fn of<T: Copy>(&mut self, these: &[T]) -> T {
        these[self.below(these.len())]
    }
}

const GIB: u64 = 1024;
/// Usual sizes of instances, in MiB of memory and thousandths of a CPU thread.
const SIZES: [(u64, u64); 7] = [
    (GIB / 2, 500),
    (GIB, 500),
    (GIB, 1000),
    (2 * GIB, 1000),
    (4 * GIB, 2000),
    (8 * GIB, 2000),
    (12 * GIB, 4000),
];

fn member(n: usize, memory_gib: u64, threads: u64) -> Member {
    Member {
        name: MemberName(format!("member{n:04}")),
        architectures: BTreeSet::from(["x86_64".to_owned()]),
        state: MemberState::Online,
        schedulable: Schedulable::All,
        cluster_groups: BTreeSet::from(["default".to_owned()]),
        roles: BTreeSet::new(),
        virtual_machines: true,
        memory_mib: memory_gib * GIB,
        cpu_milli: threads * 1000,
        pools_mib: BTreeMap::from([(PoolName::from("local"), Some(memory_gib * 16 * GIB))]),
        networks: BTreeSet::from(["br0".to_owned()]),
    }
}

fn instance(n: usize, on: usize, (memory_mib, cpu_milli): (u64, u64), disk_gib: u64) -> Instance {
    Instance {
        workload: Workload {
            id: InstanceId { project: "default".to_owned(), name: format!("instance{n:05}") },
            kind: InstanceKind::Container,
            architecture: "x86_64".to_owned(),
            cluster_group: None,
            limits: Amounts { memory_mib: Some(memory_mib), cpu_milli: Some(cpu_milli) },
            disk_mib: BTreeMap::from([(PoolName::from("local"), disk_gib * GIB)]),
            networks: BTreeSet::from(["br0".to_owned()]),
            settings: BTreeMap::new(),
            barred: BTreeMap::new(),
        },
        member: MemberName(format!("member{on:04}")),
        running: true,
        resumes: false,
        ephemeral: false,
        evacuation: Evacuation::Move,
        pinned: false,
        migration: Migration::Stopped,
        size_mib: Some(disk_gib * GIB / 4),
        at_least_mib: 0,
        measured: Amounts::default(),
    }
}

/// `instances` instances of usual sizes, each on one of the first `on` members.
fn usual(random: &mut Random, instances: usize, on: usize) -> Vec<Instance> {
    (0..instances)
        .map(|n| {
            let (at, size, disk) = (random.below(on), random.of(&SIZES), random.of(&[8, 16, 32, 64]));
            instance(n, at, size, disk)
        })
        .collect()
}

fn even_members(n: usize) -> Vec<Member> {
    (0..n).map(|n| member(n, 128, 32)).collect()
}

/// The cluster of the goal: 1,000 members and 20,000 instances, each on a random member.
pub fn large() -> Snapshot {
    let random = &mut Random(1);
    Snapshot { members: even_members(1000), instances: usual(random, 20_000, 1000) }
}

fn group(i: &mut Instance, name: &str, mode: &str, strength: &str) {
    for (key, value) in
        [(settings::GROUP, name), (settings::GROUP_MODE, mode), (settings::GROUP_STRENGTH, strength)]
    {
        i.workload.settings.insert(key.to_owned(), value.to_owned());
    }
}

/// Ten clusters: name, snapshot, members to be emptied.
pub fn ten() -> Vec<(String, Snapshot, BTreeSet<MemberName>)> {
    let random = &mut Random(2);
    let mut all = Vec::new();
    let mut add = |name: &str, members: Vec<Member>, instances: Vec<Instance>, drain: &[usize]| {
        let drain = drain.iter().map(|n| members[*n].name.clone()).collect();
        all.push((name.to_owned(), Snapshot { members, instances }, drain));
    };
    add("piled on one", even_members(20), usual(random, 400, 1), &[]);

    let members = (0..50).map(|n| member(n, [32, 64, 128, 256][n % 4], [16, 16, 48, 64][n % 4])).collect();
    add("unlike members", members, usual(random, 800, 50), &[]);

    let small = (0..3000)
        .map(|n| {
            let size = random.of(&[(128, 100), (256, 100), (512, 250), (GIB, 500)]);
            let at = random.below(50);
            instance(n, at, size, 1)
        })
        .collect();
    add("many small", even_members(50), small, &[]);

    let big = (0..120)
        .map(|n| {
            let size = random.of(&[(16 * GIB, 4000), (24 * GIB, 8000), (48 * GIB, 8000), (64 * GIB, 16000)]);
            let at = random.below(50);
            instance(n, at, size, 200)
        })
        .collect();
    add("few big", even_members(50), big, &[]);

    let mut grouped = usual(random, 800, 50);
    for (n, i) in grouped.iter_mut().enumerate().take(600) {
        let (mode, strength) =
            [("spread", "strict"), ("spread", "preferred"), ("compact", "strict"), ("compact", "preferred")]
                [n / 3 % 4];
        group(i, &format!("group{}", n / 3), mode, strength);
    }
    add("groups of three", even_members(50), grouped, &[]);

    let mut pinned = usual(random, 800, 50);
    pinned.iter_mut().enumerate().for_each(|(n, i)| i.pinned = n % 3 == 0);
    for (n, i) in pinned.iter_mut().enumerate().take(60) {
        i.member = MemberName(format!("member{:04}", n % 4));
    }
    add("a third pinned", even_members(50), pinned, &[]);

    let lopsided = (0..800)
        .map(|n| {
            let hot = n % 2 == 0;
            let size = if hot { (GIB, 6000) } else { (6 * GIB, 500) };
            let at = random.below(25);
            instance(n, if hot { at } else { at + 25 }, size, 16)
        })
        .collect();
    add("hot CPU, cold memory", even_members(50), lopsided, &[]);

    add("five members added", even_members(50), usual(random, 800, 45), &[]);
    add("three members drained", even_members(50), usual(random, 800, 50), &[3, 17, 41]);

    let members = (0..50).map(|n| member(n, [64, 128, 256][n % 3], [16, 32, 64][n % 3])).collect();
    let mut mixed = usual(random, 900, 40);
    for (n, i) in mixed.iter_mut().enumerate() {
        i.pinned = n % 11 == 0;
        if n % 10 < 4 {
            let mode = if n / 10 % 2 == 0 { "spread" } else { "compact" };
            group(i, &format!("group{}", n / 10), mode, if n / 20 % 2 == 0 { "strict" } else { "preferred" });
        }
        if n % 4 == 1 {
            i.workload.kind = InstanceKind::VirtualMachine;
            i.migration = Migration::Live;
        }
    }
    add("mixed", members, mixed, &[7]);
    all
}
