//! Baselines for comparison: the rule by which engines place instances, a script that moves instances to random
//! members, and the automatic rebalancing of Incus.
//!
//! Owns these rules. Like the originals, they ignore free space and groups. They never do what a server would refuse,
//! such as starting an instance on a member without its pool.

use super::workloads::Random;
use std::collections::BTreeMap;
use stead_placement::{
    Policy, Snapshot,
    snapshot::{Instance, Member, MemberName, MemberState, Schedulable},
};

/// A rule: from a cluster to the cluster after it.
type Rule = fn(&Snapshot, &Policy) -> Snapshot;

/// The rules by name.
pub const RULES: [(&str, Rule); 3] =
    [("fewest instances", fewest), ("random", shuffled), ("incus rebalance", incus)];

/// Members on which the server would place an instance.
fn open<'a>(s: &'a Snapshot, policy: &Policy, i: &Instance) -> Vec<&'a Member> {
    s.members
        .iter()
        .filter(|m| {
            m.state == MemberState::Online
                && m.schedulable == Schedulable::All
                && !policy.drain.contains(&m.name)
                && m.architectures.contains(&i.workload.architecture)
                && i.workload.disk_mib.keys().all(|p| m.pools_mib.contains_key(p))
                && i.workload.networks.is_subset(&m.networks)
        })
        .collect()
}

/// All instances recreated one after the other, each on the member with the fewest.
fn fewest(s: &Snapshot, policy: &Policy) -> Snapshot {
    let mut after = s.clone();
    let mut count: BTreeMap<&MemberName, usize> = s.members.iter().map(|m| (&m.name, 0)).collect();
    s.instances.iter().filter(|i| i.pinned).for_each(|i| *count.entry(&i.member).or_default() += 1);
    for (n, i) in s.instances.iter().enumerate().filter(|(_, i)| !i.pinned) {
        if let Some(m) = open(s, policy, i).into_iter().min_by_key(|m| count[&m.name]) {
            after.instances[n].member = m.name.clone();
            *count.entry(&m.name).or_default() += 1;
        }
    }
    after
}

/// Each instance moved to a random member.
fn shuffled(s: &Snapshot, policy: &Policy) -> Snapshot {
    let mut after = s.clone();
    let mut random = Random(3);
    for (n, i) in s.instances.iter().enumerate().filter(|(_, i)| !i.pinned) {
        let open = open(s, policy, i);
        if !open.is_empty() {
            after.instances[n].member = open[random.below(open.len())].name.clone();
        }
    }
    after
}

/// Default of `cluster.rebalance.threshold`: the least difference of scores, in per cent of the larger.
const THRESHOLD: i64 = 20;
/// The most runs of the task; each moves one instance (`cluster.rebalance.batch`).
const RUNS: usize = 5000;

/// Incus' automatic rebalancing, run until it does nothing more. The real one moves only virtual machines that migrate
/// live; here every instance counts as one. Usage is the committed amount. Two of its traits are kept: an instance's
/// memory is added to the CPU load and its CPUs to the memory, and scores have eight bits. An instance that was moved
/// is not moved again (`cluster.rebalance.cooldown`).
fn incus(s: &Snapshot, policy: &Policy) -> Snapshot {
    let mut after = s.clone();
    let mut moved = vec![false; s.instances.len()];
    let commitment = |i: &Instance| {
        let c = policy.committed(i);
        ((c.memory_mib << 20) as f64, c.cpu_milli as f64 / 1000.0)
    };
    let score = |m: &Member, (memory, cpu): (f64, f64)| -> u8 {
        // A conversion that overflows keeps the lowest eight bits.
        let eight_bits = |x: f64| x as i64 as u8;
        let memory = eight_bits(memory * 100.0 / (m.memory_mib << 20) as f64);
        let cpu = eight_bits(cpu * 100.0 / (m.cpu_milli / 1000) as f64);
        memory.wrapping_add(cpu) / 2
    };
    for _ in 0..RUNS {
        let mut servers: Vec<(u8, &Member, (f64, f64))> = s
            .members
            .iter()
            .filter(|m| m.state == MemberState::Online && m.schedulable != Schedulable::Manual)
            .filter(|m| !policy.drain.contains(&m.name))
            .map(|m| {
                let on = after.instances.iter().filter(|i| i.member == m.name).map(commitment);
                let used = on.fold((0.0, 0.0), |sum, c| (sum.0 + c.0, sum.1 + c.1));
                (score(m, used), m, used)
            })
            .collect();
        servers.sort_by_key(|(score, m, _)| (std::cmp::Reverse(*score), &m.name));
        let (Some(most), Some(least)) = (servers.first(), servers.last()) else { break };
        if most.0 == 0
            || i64::from(most.0 - least.0) * 100 / i64::from(most.0) < THRESHOLD
            || most.0 == least.0
        {
            break;
        }
        let target = most.0.wrapping_add(least.0) / 2;
        let next = (0..after.instances.len()).find(|n| {
            let i = &after.instances[*n];
            let (memory, cpu) = commitment(i);
            i.member == most.1.name
                && !moved[*n]
                && !i.pinned
                && open(s, policy, i).iter().any(|m| m.name == least.1.name)
                && least.0 < target
                && score(least.1, (least.2.0 + cpu.trunc(), least.2.1 + memory)) < target
        });
        let Some(n) = next else { break };
        after.instances[n].member = least.1.name.clone();
        moved[n] = true;
    }
    after
}
