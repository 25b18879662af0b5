//! Small cases, whole: every placement that moves can reach, so that what is called impossible is.
//!
//! Owns the search through all of them. Does not own the quick ways that are tried first.

use crate::{
    audit::{Amiss, amiss},
    state::{State, Step},
};
use std::collections::{HashMap, HashSet, VecDeque};

/// Up to how many placements a case is small: about half a second's work.
const PLACEMENTS: usize = 100_000;
/// A placement is a number with four bits an instance.
const INSTANCES: usize = 16;
const MEMBERS: usize = 16;

/// What was found by looking at everything.
#[derive(Debug)]
pub struct Exact {
    /// The shortest way to the best placement.
    pub path: Vec<Step>,
    /// What is amiss there.
    pub left: Vec<Amiss>,
    /// Of what is amiss at the beginning, all that is mended in some placement or other.
    pub mendable: HashSet<Amiss>,
}

/// Looks at every placement that can be reached from this one; None when there may be too many. What may be too many does
/// not depend on where instances are, so that a second plan knows no more than the first.
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
    let begin = amiss(state);
    let before: HashMap<Amiss, u64> = begin.iter().map(|v| (*v, v.amount(state))).collect();
    let code = |state: &State<'_>| {
        movable.iter().enumerate().map(|(n, i)| u64::from(state.at[*i as usize]) << (4 * n)).sum::<u64>()
    };
    let origin = code(state);
    let mut came: HashMap<u64, Option<(u64, Step)>> = HashMap::from([(origin, None)]);
    let mut queue = VecDeque::from([origin]);
    let mut mendable = HashSet::new();
    let mut best = (weight(state, &begin), origin, begin.clone());
    while let Some(now) = queue.pop_front() {
        arrange(state, &movable, now);
        let left = amiss(state);
        mendable.extend(begin.iter().filter(|v| !left.contains(v)).cloned());
        // The first found needs the fewest moves. What was not amiss before must not be then.
        let no_worse = |v: &Amiss| before.get(v).is_some_and(|amount| v.amount(state) <= *amount);
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
    Some(Exact { path, left: best.2, mendable })
}

/// How bad what is amiss is: first how many things, then how much.
fn weight(state: &State<'_>, amiss: &[Amiss]) -> (usize, u64) {
    (amiss.len(), amiss.iter().map(|a| a.amount(state)).sum())
}

/// Makes the placement that a number stands for.
fn arrange(state: &mut State<'_>, movable: &[u32], code: u64) {
    for (n, i) in movable.iter().enumerate() {
        let to = (code >> (4 * n) & 15) as u32;
        if state.at[*i as usize] != to {
            state.put(*i, to);
        }
    }
}
