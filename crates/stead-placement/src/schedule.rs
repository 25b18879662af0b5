//! Orders moves from the current placement to the goal, so that each is possible once the earlier ones are done.
//!
//! Owns the order, detours over a third member for exchanges without room, and the shortening of a sequence of moves that
//! was found in another way.

use crate::{
    repair::is_misplaced,
    state::{State, Step},
};
use std::collections::BinaryHeap;

/// Order of moves: instances that must leave, then those on overloaded members, then those on the fullest members, then
/// the lowest number.
type Urgency = (bool, bool, i64, std::cmp::Reverse<u32>);

/// The moves that bring `state` (at the beginning) to `goal`; none if no order was found.
pub fn schedule(state: &mut State<'_>, goal: &[u32]) -> Option<Vec<Step>> {
    let p = state.p;
    let pending: Vec<u32> =
        (0..goal.len() as u32).filter(|i| state.at[*i as usize] != goal[*i as usize]).collect();
    let mut left = pending.len();
    let urgency = |state: &State<'_>, i: u32| -> Urgency {
        let from = state.at[i as usize] as usize;
        let base = from * p.width();
        let overloaded = (0..p.width()).any(|r| state.used[base + r] > p.usable[base + r]);
        let fullness = crate::state::key(state.over[from].max(-1.0));
        (is_misplaced(state, i as usize), overloaded, fullness, std::cmp::Reverse(i))
    };
    let mut ready: BinaryHeap<(Urgency, u32)> = pending.iter().map(|i| (urgency(state, *i), *i)).collect();
    // For each member, the instances that wait for room on it.
    let mut waiting: Vec<Vec<u32>> = vec![Vec::new(); p.members.len()];
    let mut detours = pending.len();
    while left > 0 {
        let mover = match ready.pop() {
            Some((_, i)) if state.can_go(i, goal[i as usize]) => Some((i, goal[i as usize])),
            Some((_, i)) => {
                waiting[goal[i as usize] as usize].push(i);
                None
            }
            None if detours == 0 => return None,
            None => {
                detours -= 1;
                Some(detour(state, goal, waiting.iter().flatten().copied())?)
            }
        };
        if let Some((i, to)) = mover {
            let from = state.at[i as usize];
            state.go(i, to);
            left -= usize::from(to == goal[i as usize]);
            for w in std::mem::take(&mut waiting[from as usize]) {
                ready.push((urgency(state, w), w));
            }
        }
    }
    Some(std::mem::take(&mut state.journal))
}

/// The cheapest waiting instance whose place another one waits for, and a third member with room for it.
fn detour(state: &State<'_>, goal: &[u32], waiting: impl Iterator<Item = u32>) -> Option<(u32, u32)> {
    let p = state.p;
    let mut cheapest: Vec<u32> = waiting.collect();
    cheapest.sort_by_key(|i| (p.cost[*i as usize], *i));
    let wanted: std::collections::BTreeSet<u32> = cheapest.iter().map(|i| goal[*i as usize]).collect();
    cheapest.into_iter().filter(|i| wanted.contains(&state.at[*i as usize])).find_map(|i| {
        let class = &p.classes[p.class[i as usize] as usize];
        let third = class
            .enter
            .iter()
            .map(|m| m as u32)
            // Prefer a member that nobody else waits for.
            .filter(|m| *m != goal[i as usize] && state.can_go(i, *m))
            .min_by_key(|m| (wanted.contains(m), crate::state::key(state.over[*m as usize]), *m))?;
        Some((i, third))
    })
}

/// Limit on the moves tried for shortening a plan: some hundredths of a second.
const TRIED: usize = 300_000;

/// Shortens a sequence of moves: an instance that is moved more than once goes directly to its last member if possible.
/// `state` is at the beginning before and after the call.
pub fn shorten(state: &mut State<'_>, mut steps: Vec<Step>) -> Vec<Step> {
    let mut tried = 0;
    loop {
        let mut count = std::collections::BTreeMap::<u32, usize>::new();
        steps.iter().for_each(|(i, ..)| *count.entry(*i).or_default() += 1);
        let mut often: Vec<u32> = count.into_iter().filter(|(_, n)| *n > 1).map(|(i, _)| i).collect();
        often.sort_by_key(|i| (std::cmp::Reverse(state.p.cost[*i as usize]), *i));
        let shorter = often.into_iter().flat_map(|i| [(i, true), (i, false)]).find_map(|(i, late)| {
            tried += steps.len();
            let candidate = at_once(&steps, i, late);
            (tried <= TRIED && is_possible(state, &candidate)).then_some(candidate)
        });
        match shorter {
            Some(shorter) => steps = shorter,
            None => return steps,
        }
    }
}

/// The steps with all moves of an instance merged into one, in the position of its last (`late`) or first move.
fn at_once(steps: &[Step], i: u32, late: bool) -> Vec<Step> {
    let of_it = || steps.iter().enumerate().filter(|(_, (j, ..))| *j == i);
    let (Some((first, (_, from, _))), Some((last, (_, _, to)))) = (of_it().next(), of_it().next_back())
    else {
        return steps.to_vec();
    };
    let stays = if late { last } else { first };
    let one = |(n, step): (usize, &Step)| match step.0 == i {
        false => Some(*step),
        true => (n == stays && from != to).then_some((i, *from, *to)),
    };
    steps.iter().enumerate().filter_map(one).collect()
}

fn is_possible(state: &mut State<'_>, steps: &[Step]) -> bool {
    let begin = state.journal.len();
    let possible = steps.iter().all(|(i, _, to)| {
        let can = state.can_go(*i, *to);
        if can {
            state.go(*i, *to);
        }
        can
    });
    state.back_to(begin);
    possible
}

/// For each move, the earlier moves that must end first: those that leave its target, which make room there, and the last
/// move of the same instance.
pub fn dependencies(steps: &[Step]) -> Vec<Vec<usize>> {
    let mut out_of: std::collections::HashMap<u32, Vec<usize>> = std::collections::HashMap::new();
    let mut last: std::collections::HashMap<u32, usize> = std::collections::HashMap::new();
    steps
        .iter()
        .enumerate()
        .map(|(n, (i, from, to))| {
            let mut after = out_of.get(to).cloned().unwrap_or_default();
            if let Some(before) = last.insert(*i, n)
                && !after.contains(&before)
            {
                after.push(before);
                after.sort_unstable();
            }
            out_of.entry(*from).or_default().push(n);
            after
        })
        .collect()
}
