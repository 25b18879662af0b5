//! The imbalance, computed a second time from the definition in docs/placement.md.
//!
//! Owns the checker's computation of even shares, which shares no code with the planner's.

use super::World;
use crate::{
    problem::Resource,
    snapshot::{InstanceId, MemberState, Schedulable},
};
use std::collections::{BTreeMap, BTreeSet};

/// The even shares of all members.
pub struct Even {
    /// For each member, the level of its domain, and its even share of each resource.
    shares: BTreeMap<String, (u128, Vec<Option<u128>>)>,
}

/// Levels are in millionths.
pub const MILLION: u128 = 1_000_000;

impl Even {
    /// Computes the even shares at the beginning.
    pub fn new(world: &World<'_>) -> Self {
        let receives = |name: &&str| {
            let m = world.members[*name];
            m.state == MemberState::Online
                && m.schedulable != Schedulable::Manual
                && !world.drained(name)
                && !m.roles.iter().any(|role| world.policy.avoid_roles.contains(role))
        };
        let receiving: Vec<&str> = world.members.keys().copied().filter(receives).collect();
        // An instance with only one possible member is held there; otherwise all its possible members are in one domain.
        let mut domain: BTreeMap<&str, usize> = receiving.iter().enumerate().map(|(n, m)| (*m, n)).collect();
        let mut held: Vec<(&InstanceId, &str)> = Vec::new();
        let mut free: Vec<(&InstanceId, &str)> = Vec::new();
        let mut known: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for (id, start) in &world.start {
            // Instances with the same requirements have the same possible members.
            let w = &world.instances[*id].workload;
            let alike = format!(
                "{:?}",
                (
                    w.kind,
                    &w.architecture,
                    &w.cluster_group,
                    world.roles(id),
                    w.disk_mib.keys().collect::<Vec<_>>(),
                    &w.networks,
                    &w.barred
                )
            );
            let places = known
                .entry(alike)
                .or_insert_with(|| receiving.iter().copied().filter(|m| world.enters(id, m)).collect());
            let elsewhere = places.iter().any(|m| m != start);
            match places.as_slice() {
                _ if !world.movable(id) || !elsewhere => held.push((id, start)),
                [only] if world.must_leave(id) => held.push((id, only)),
                [first, others @ ..] => {
                    free.push((id, first));
                    for other in others {
                        let (a, b) = (domain[first], domain[other]);
                        if a != b {
                            domain.values_mut().filter(|d| **d == b).for_each(|d| *d = a);
                        }
                    }
                }
                [] => {}
            }
        }
        let mut shares = BTreeMap::new();
        for d in domain.values().copied().collect::<BTreeSet<_>>() {
            let members: Vec<&str> = receiving.iter().copied().filter(|m| domain[m] == d).collect();
            let columns: Vec<(u128, Vec<Option<u128>>)> =
                world.resources.iter().map(|r| column(world, r, &members, &held, &free)).collect();
            let scale = columns.iter().map(|(scale, _)| *scale).max().unwrap_or(0);
            for (n, m) in members.into_iter().enumerate() {
                let row = columns.iter().map(|(_, column)| column[n]).collect();
                shares.insert(m.to_owned(), (scale, row));
            }
        }
        Self { shares }
    }

    /// The imbalance of one member.
    pub fn member_ppm(&self, world: &World<'_>, member: &str) -> u64 {
        let Some((scale, row)) = self.shares.get(member).filter(|(scale, _)| *scale > 0) else {
            return MILLION as u64;
        };
        let overhang = world.resources.iter().zip(row).filter_map(|(r, share)| {
            let share = (*share)?;
            let level =
                u128::from(world.promised(member, r)) * MILLION / u128::from(world.usable(member, r)?);
            Some(u128::from(weight(world, r)) * level.saturating_sub(share) / 100)
        });
        let most = overhang.max().unwrap_or(0);
        u64::try_from(MILLION + most * MILLION / scale).unwrap_or(u64::MAX)
    }
}

fn weight(world: &World<'_>, resource: &Resource) -> u32 {
    let w = world.policy.weight_percent;
    match resource {
        Resource::Memory => w.memory,
        Resource::Cpu => w.cpu,
        Resource::Disk(_) => w.disk,
    }
}

/// For one resource in one domain: its weighted mean level, and each member's even share.
fn column(
    world: &World<'_>,
    resource: &Resource,
    members: &[&str],
    held: &[(&InstanceId, &str)],
    free: &[(&InstanceId, &str)],
) -> (u128, Vec<Option<u128>>) {
    let mut fixed: BTreeMap<&str, u128> = BTreeMap::new();
    let mut total = 0u128;
    let inside: BTreeSet<&str> = members.iter().copied().collect();
    for (n, (id, at)) in held.iter().chain(free).enumerate() {
        if inside.contains(at) {
            let demand = u128::from(world.demand(id, resource));
            total += demand;
            if n < held.len() {
                *fixed.entry(at).or_default() += demand;
            }
        }
    }
    let counted: Vec<Option<(u128, u128)>> = members
        .iter()
        .map(|m| {
            let usable = world.usable(m, resource).filter(|usable| *usable > 0)?;
            Some((u128::from(usable), fixed.get(m).copied().unwrap_or(0)))
        })
        .collect();
    let room: u128 = counted.iter().flatten().map(|(usable, _)| usable).sum();
    if room == 0 {
        return (0, vec![None; members.len()]);
    }
    let rows: Vec<(u128, u128)> = counted.iter().flatten().copied().collect();
    let level = water(&rows, total);
    let share =
        counted.into_iter().map(|c| c.map(|(usable, fixed)| level.max(fixed * MILLION / usable))).collect();
    (u128::from(weight(world, resource)) * (total * MILLION / room) / 100, share)
}

/// The least integer level at which the members hold the total, with none below its held load. Members whose held load is
/// above the level are left out one round after another.
fn water(rows: &[(u128, u128)], total: u128) -> u128 {
    let mut under: Vec<(u128, u128)> = rows.to_vec();
    let mut rest = total;
    loop {
        let room: u128 = under.iter().map(|(usable, _)| usable).sum();
        if room == 0 {
            // No load is left to spread.
            return 0;
        }
        let level = (rest * MILLION).div_ceil(room);
        let (stay, out): (Vec<_>, Vec<_>) =
            under.iter().copied().partition(|(usable, fixed)| fixed * MILLION <= level * usable);
        if out.is_empty() {
            let holds = |level: u128| {
                rows.iter().map(|(usable, fixed)| (level * usable).max(fixed * MILLION)).sum::<u128>()
                    >= total * MILLION
            };
            if holds(0) {
                return 0;
            }
            // Rounding up may have passed another member's held load.
            return (0..=level).rev().take_while(|level| holds(*level)).last().unwrap_or(level);
        }
        rest -= out.iter().map(|(_, fixed)| fixed).sum::<u128>();
        under = stay;
    }
}
