//! Exhaustive search of small cases: it visits every reachable placement, so it can prove that a repair is impossible.
//!
//! Owns this search. Does not own the fast heuristics that run first.

use crate::{
    audit::{Breach, breaches},
    state::{State, Step},
};
use std::collections::{HashMap, HashSet, VecDeque};

/// Limit on the placements of a small case: about half a second's work.
const PLACEMENTS: usize = 100_000;
/// A placement is encoded as a number with four bits per instance.
const INSTANCES: usize = 16;
const MEMBERS: usize = 16;

/// Result of an exhaustive search.
#[derive(Debug)]
pub struct Exact {
    /// The shortest sequence of moves to the best placement.
    pub path: Vec<Step>,
    /// The violations of that placement.
    pub left: Vec<Breach>,
    /// The violations at the beginning that at least one reachable placement repairs.
    pub repairable: HashSet<Breach>,
}

/// Visits every placement that can be reached from this one; returns none if there may be too many. The limit does not
/// depend on where instances are, so that a second plan knows no more than the first.
pub fn search(state: &mut State<'_>) -> Option<Exact> {
    let p = state.p;
    let movable: Vec<u32> =
        (0..p.instances.len() as u32).filter(|i| p.fixed[*i as usize].is_none()).collect();
    let places = |i: &u32| match p.classes[p.class[*i as usize] as usize].enter.len() {
        1 => 1,
        n => n + 1,
    };
    let most = movable.iter().try_fold(1usize, |most, i| most.checked_mul(places(i)))?;
    if most > PLACEMENTS || movable.len() > INSTANCES || p.members.len() > MEMBERS {
        return None;
    }
    let begin = breaches(state);
    let before: HashMap<Breach, u64> = begin.iter().map(|v| (*v, v.amount(state))).collect();
    let code = |state: &State<'_>| {
        movable.iter().enumerate().map(|(n, i)| u64::from(state.at[*i as usize]) << (4 * n)).sum::<u64>()
    };
    let origin = code(state);
    let mut came: HashMap<u64, Option<(u64, Step)>> = HashMap::from([(origin, None)]);
    let mut queue = VecDeque::from([origin]);
    let mut repairable = HashSet::new();
    let mut best = (weight(state, &begin), origin, begin.clone());
    while let Some(now) = queue.pop_front() {
        arrange(state, &movable, now);
        let left = breaches(state);
        repairable.extend(begin.iter().filter(|v| !left.contains(v)).cloned());
        // The first one found needs the fewest moves. It must not have new or larger violations.
        let no_worse = |v: &Breach| before.get(v).is_some_and(|amount| v.amount(state) <= *amount);
        if left.iter().all(no_worse) && weight(state, &left) < best.0 {
            best = (weight(state, &left), now, left);
        }
        for (n, i) in movable.iter().enumerate() {
            for to in p.classes[p.class[*i as usize] as usize].enter.iter() {
                if state.can_go(*i, to as u32) {
                    let next = now & !(15 << (4 * n)) | (to as u64) << (4 * n);
                    came.entry(next).or_insert_with(|| {
                        queue.push_back(next);
                        Some((now, (*i, state.at[*i as usize], to as u32)))
                    });
                }
            }
        }
    }
    arrange(state, &movable, origin);
    let mut path = Vec::new();
    let mut at = best.1;
    while let Some(Some((before, step))) = came.get(&at) {
        path.push(*step);
        at = *before;
    }
    path.reverse();
    Some(Exact { path, left: best.2, repairable })
}

/// Severity of violations: first their number, then their total amount.
fn weight(state: &State<'_>, breaches: &[Breach]) -> (usize, u64) {
    (breaches.len(), breaches.iter().map(|a| a.amount(state)).sum())
}

/// Sets the placement that a number encodes.
fn arrange(state: &mut State<'_>, movable: &[u32], code: u64) {
    for (n, i) in movable.iter().enumerate() {
        let to = (code >> (4 * n) & 15) as u32;
        if state.at[*i as usize] != to {
            state.put(*i, to);
        }
    }
}
