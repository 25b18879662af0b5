//! Why there is no room, in numbers and names.
//!
//! Owns the sentences of refusals that are about room. Does not own whether there is any.

use crate::{
    plan::Hindrance,
    problem::{self, Problem, UNCOUNTED},
    settings::Wishes,
    state::State,
};
use std::collections::BTreeMap;

/// How many members are named before the rest is only counted.
const NAMED: usize = 3;

/// What is free of a resource on a member.
pub fn free(state: &State<'_>, m: usize, r: usize) -> u64 {
    let at = m * state.p.width() + r;
    match state.p.usable[at] {
        UNCOUNTED => UNCOUNTED,
        usable => usable.saturating_sub(state.used[at]),
    }
}

/// Amounts of all resources that are asked: `4 GiB of memory and 2 CPUs`.
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

/// Why an instance finds no room: what is free at most of what no member has enough of. `certain` takes away only
/// what can never be moved.
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
            "others of its group, or what would have to move first, stand in the way".to_owned()
        })
        + &elsewhere(p, i)
}

/// Which resource is lacking, and where the most of it is; None when some member has enough of each.
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
    // What is lacking on the most members; of those the first.
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
            "no member has {} free together: where there are {}{of}, other things are lacking",
            amounts(p, demand),
            resource.show(demand[r])
        ),
    })
}

/// Why no member may take an instance at all.
pub fn nowhere(p: &Problem<'_>, i: usize) -> String {
    format!("no other member may take it{}", elsewhere(p, i))
}

/// The members that may not take an instance, by reason.
fn elsewhere(p: &Problem<'_>, i: usize) -> String {
    let workload = &p.instances[i].workload;
    let roles = Wishes::of(workload).roles;
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

/// `; n1, n2 and 7 others have no pool fast; n4 is offline`.
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
