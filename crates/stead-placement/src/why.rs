//! Explains in numbers and names why there is no room.
//!
//! Owns the texts of refusals about room. Does not decide whether there is room.

use crate::{
    plan::Hindrance,
    problem::{self, Problem, UNCOUNTED},
    settings::InstanceSettings,
    state::State,
};
use std::collections::BTreeMap;

/// How many members are named; the others are only counted.
const NAMED: usize = 3;

/// Free amount of a resource on a member.
pub fn free(state: &State<'_>, m: usize, r: usize) -> u64 {
    let at = m * state.p.width() + r;
    match state.p.usable[at] {
        UNCOUNTED => UNCOUNTED,
        usable => usable.saturating_sub(state.used[at]),
    }
}

/// A demand as text: `4 GiB of memory and 2 CPUs`.
pub fn amounts(p: &Problem<'_>, demand: &[u64]) -> String {
    let asked: Vec<String> = demand
        .iter()
        .zip(&p.resources)
        .filter(|(d, _)| **d > 0)
        .map(|(d, r)| match r {
            problem::Resource::Cpu => r.show(*d),
            r => format!("{} of {r}", r.show(*d)),
        })
        .collect();
    if asked.is_empty() { "nothing".to_owned() } else { asked.join(" and ") }
}

/// Why no member has room for an instance: names the scarcest resource and the member with the most of it free. With
/// `certain`, only instances that can never be moved count as used.
pub fn no_room(state: &State<'_>, i: usize, certain: bool) -> String {
    let p = state.p;
    let enter: Vec<usize> = p.classes[p.class[i] as usize].enter.iter().collect();
    let at = state.at[i] as usize;
    let free = |m: usize, r: usize| match certain {
        true => match p.usable[m * p.width() + r] {
            UNCOUNTED => UNCOUNTED,
            usable => usable.saturating_sub(state.levels.certain[m * p.width() + r]),
        },
        false => free(state, m, r),
    };
    lacking(p, &enter.into_iter().filter(|m| *m != at).collect::<Vec<_>>(), p.demand_of(i), &free)
        .unwrap_or_else(|| {
            "every member with room is blocked by its group, or by instances that would have to move first"
                .to_owned()
        })
        + if certain { ", even if everything movable were moved away" } else { "" }
        + &elsewhere(p, i)
}

/// Which resource is lacking, and which member has the most of it free; none if some member has enough of each.
pub fn lacking(
    p: &Problem<'_>,
    members: &[usize],
    demand: &[u64],
    free: &dyn Fn(usize, usize) -> u64,
) -> Option<String> {
    let without: Vec<usize> = members
        .iter()
        .copied()
        .filter(|m| demand.iter().enumerate().any(|(r, d)| *d > 0 && free(*m, r) < *d))
        .collect();
    if without.len() < members.len() || members.is_empty() {
        return None;
    }
    // The resource that is lacking on the most members; the first of several.
    let (r, _) = (0..p.width())
        .map(|r| (r, without.iter().filter(|m| demand[r] > 0 && free(**m, r) < demand[r]).count()))
        .max_by_key(|(r, n)| (*n, std::cmp::Reverse(*r)))?;
    let (most, m) =
        members.iter().map(|m| (free(*m, r), *m)).max_by_key(|(f, m)| (*f, std::cmp::Reverse(*m)))?;
    let resource = &p.resources[r];
    let of = if *resource == problem::Resource::Cpu { String::new() } else { format!(" of {resource}") };
    Some(match most >= demand[r] {
        false => format!(
            "no member has {}{of} free: the most is {}, on {}",
            resource.show(demand[r]),
            resource.show(most),
            p.members[m].name
        ),
        true => format!(
            "no member has {} free at once: members with {}{of} lack something else",
            amounts(p, demand),
            resource.show(demand[r])
        ),
    })
}

/// Why no member may accept an instance at all.
pub fn nowhere(p: &Problem<'_>, i: usize) -> String {
    format!("no other member may accept it{}", elsewhere(p, i))
}

/// The members that may not accept an instance, by reason, as text.
fn elsewhere(p: &Problem<'_>, i: usize) -> String {
    let workload = &p.instances[i].workload;
    let roles = InstanceSettings::of(workload).roles;
    let mut reasons: BTreeMap<Hindrance, Vec<&str>> = BTreeMap::new();
    for (m, member) in p.members.iter().enumerate() {
        if m != p.start[i] as usize {
            let first = problem::hindrances(p.policy, member, workload, &roles).into_iter().next();
            if let Some(why) = first.or_else(|| problem::closed(member, workload)) {
                reasons.entry(why).or_default().push(&member.name.0);
            }
        }
    }
    hindered(&reasons)
}

/// Members by hindrance as text: `; n1, n2, n3 and 7 more: has no pool fast; n4: is offline`.
pub fn hindered(reasons: &BTreeMap<Hindrance, Vec<&str>>) -> String {
    reasons
        .iter()
        .map(|(why, names)| {
            let named = names[..names.len().min(NAMED)].join(", ");
            match names.len().checked_sub(NAMED).filter(|n| *n > 0) {
                None => format!("; {named}: {why}"),
                Some(more) => format!("; {named} and {more} more: {why}"),
            }
        })
        .collect()
}
