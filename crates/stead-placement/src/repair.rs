//! Repairs violations: strict groups, misplaced instances, overloaded members; then follows the preferences of groups.
//!
//! Owns the search for room, including moving others out of the way. Does not own balance, or proofs of impossibility.

use crate::{
    item::{Item, Items},
    policy::{GroupMode, GroupStrength},
    state::State,
};
use std::cmp::Reverse;

/// Recursion depth of moving others out of the way.
const DEPTH: u32 = 3;
/// How many members or instances are tried at each depth.
const WIDTH: usize = 8;
/// Passes over all violations: repairing one may make room for another.
const PASSES: usize = 4;

/// Repairs all violations it can.
pub fn repair(state: &mut State<'_>) {
    for _ in 0..PASSES {
        let before = state.journal.len();
        strict_groups(state);
        misplaced(state);
        overloads(state);
        if state.journal.len() == before {
            break;
        }
    }
}

/// Whether an instance is on a member it must leave.
pub fn is_misplaced(state: &State<'_>, i: usize) -> bool {
    state.p.must_leave[i] && state.at[i] == state.p.start[i]
}

fn misplaced(state: &mut State<'_>) {
    let p = state.p;
    let mut leaving: Vec<u32> = (0..p.instances.len() as u32)
        .filter(|i| is_misplaced(state, *i as usize) && p.fixed[*i as usize].is_none())
        .collect();
    leaving.sort_by_key(|i| (Reverse(size(state, *i)), *i));
    for i in leaving {
        // It may have left with its group.
        if !is_misplaced(state, i as usize) {
            continue;
        }
        let items = Items::new(state);
        match state.group_of(i).filter(|(_, g)| g.strictly_compact()) {
            Some((g, _)) => drop(gather(state, g)),
            None => drop(settle(state, &items, i, None, DEPTH)),
        }
    }
}

/// The demand of an instance as a share of the largest member, in millionths. Large instances are hard to place, so they
/// are placed first.
fn size(state: &State<'_>, i: u32) -> u64 {
    let p = state.p;
    let demand = p.demand_of(i as usize);
    (0..p.width())
        .map(|r| {
            let largest = (0..p.members.len()).map(|m| p.usable[m * p.width() + r]).max().unwrap_or(0);
            crate::levels::utilisation_ppm(demand[r], largest)
        })
        .max()
        .unwrap_or(0)
}

/// Moves an item to a member with room, or to one where room can be made, but never to `not`.
fn settle(state: &mut State<'_>, items: &Items, item: Item, not: Option<u32>, depth: u32) -> bool {
    if let Some(to) = items.best_target(state, item, not) {
        items.go(state, item, to);
        return true;
    }
    if depth == 0 || state.fuel == 0 {
        return false;
    }
    state.fuel -= 1;
    let from = items.at(state, item);
    let mut places: Vec<(u64, u32)> = (0..state.p.members.len() as u32)
        .filter(|m| *m != from && Some(*m) != not && could_go(state, items, item, *m))
        .map(|m| (lack(state, m, items.demand(state.p, item)), m))
        .collect();
    places.sort_unstable();
    places.truncate(WIDTH);
    for (_, to) in places {
        let mark = state.journal.len();
        // The moves of others may have moved this item too, or may have changed where its group is.
        if make_room(state, items, item, to, depth - 1)
            && items.at(state, item) == from
            && !items.tears(state, item, to)
        {
            items.go(state, item, to);
            return true;
        }
        state.back_to(mark);
    }
    false
}

/// Whether an item could go to a member if all movable instances made room.
fn could_go(state: &State<'_>, items: &Items, item: Item, to: u32) -> bool {
    let p = state.p;
    let enters = match items.parts(p, item) {
        crate::item::Parts::One(i) => p.may_enter(i as usize, to as usize),
        crate::item::Parts::Group(instances) => {
            instances.iter().all(|i| p.may_enter(*i as usize, to as usize))
        }
    };
    let base = to as usize * p.width();
    enters
        && !items.tears(state, item, to)
        && items
            .demand(p, item)
            .iter()
            .enumerate()
            .all(|(r, d)| *d == 0 || state.levels.certain[base + r].saturating_add(*d) <= p.usable[base + r])
}

/// The amount that a member lacks for a demand, in millionths of its usable amounts, summed over resources.
fn lack(state: &State<'_>, m: u32, demand: &[u64]) -> u64 {
    let p = state.p;
    let usable = p.usable_of(m as usize);
    demand
        .iter()
        .enumerate()
        .filter(|(_, d)| **d > 0)
        .map(|(r, d)| {
            let used = state.used[m as usize * p.width() + r] + d;
            crate::levels::utilisation_ppm(used.saturating_sub(usable[r]), usable[r])
        })
        .fold(0, u64::saturating_add)
}

/// Moves others away from `to` until the item has room there.
fn make_room(state: &mut State<'_>, items: &Items, item: Item, to: u32, depth: u32) -> bool {
    let p = state.p;
    for _ in 0..WIDTH {
        if items.can_go(state, item, to) {
            return true;
        }
        // For a strictly spread group its instance there has to move; else the item that reduces the lack most, then the
        // cheapest.
        let mate = match items.parts(p, item) {
            crate::item::Parts::One(i) => state
                .group_of(i)
                .filter(|(g, group)| group.strictly_spread() && state.mates(*g, to) > 0)
                .map(|(g, _)| g),
            crate::item::Parts::Group(_) => None,
        };
        let demand = items.demand(p, item);
        let now = lack(state, to, demand);
        let mut others: Vec<(u64, u64, Item)> = items
            .on(state, to, usize::MAX)
            .into_iter()
            .filter(|o| mate.is_none_or(|g| p.group.get(*o as usize).copied().flatten() == Some(g)))
            .filter_map(|o| {
                let away = items.demand(p, o);
                let helps = mate.is_some()
                    || demand.iter().enumerate().any(|(r, d)| {
                        let at = to as usize * p.width() + r;
                        *d > 0 && away[r] > 0 && state.used[at] + d > p.usable[at]
                    });
                let rest = demand
                    .iter()
                    .enumerate()
                    .filter(|(_, d)| **d > 0)
                    .map(|(r, d)| {
                        let at = to as usize * p.width() + r;
                        let used = state.used[at].saturating_sub(away[r]) + d;
                        crate::levels::utilisation_ppm(used.saturating_sub(p.usable[at]), p.usable[at])
                    })
                    .fold(0, u64::saturating_add);
                (helps && (rest < now || mate.is_some())).then(|| (rest, items.cost(p, o), o))
            })
            .collect();
        others.sort_unstable();
        others.truncate(WIDTH);
        let gone = others.into_iter().any(|(_, _, o)| settle(state, items, o, Some(to), depth));
        if !gone {
            return false;
        }
    }
    items.can_go(state, item, to)
}

/// Moves load away from members that have promised too much.
fn overloads(state: &mut State<'_>) {
    let p = state.p;
    for m in 0..p.members.len() as u32 {
        let mut stuck = vec![false; p.width()];
        let mut leaving: (Option<usize>, Vec<Item>) = (None, Vec::new());
        let mut items = Items::new(state);
        while let Some(r) = overloaded(state, m).into_iter().find(|r| !stuck[*r]) {
            let wanted = |o: &Item| items.demand(p, *o)[r];
            if leaving.0 != Some(r) {
                let mut all = items.on(state, m, usize::MAX);
                all.retain(|o| wanted(o) > 0);
                all.sort_unstable_by_key(|o| (wanted(o), Reverse(items.cost(p, *o)), *o));
                leaving = (Some(r), all);
            }
            let at = m as usize * p.width() + r;
            let excess = state.used[at] - p.usable[at];
            // The best item is the smallest that suffices alone, else the largest.
            let enough = leaving.1.partition_point(|o| wanted(o) < excess);
            let order: Vec<usize> =
                (enough..leaving.1.len()).take(WIDTH).chain((0..enough).rev().take(2 * WIDTH)).collect();
            let direct = order.iter().copied().find(|n| {
                let to = items.best_target(state, leaving.1[*n], Some(m));
                to.inspect(|to| items.go(state, leaving.1[*n], *to)).is_some()
            });
            if let Some(n) = direct {
                leaving.1.remove(n);
                continue;
            }
            // Next, move others out of the way. As a last resort, split a compact group.
            let moved = order.into_iter().any(|n| settle(state, &items, leaving.1[n], Some(m), DEPTH))
                || torn(state, &items, m, r);
            stuck[r] = !moved;
            if moved {
                items = Items::new(state);
                leaving.0 = None;
            }
        }
    }
}

/// Splits a compact group: moves one of its instances away from an overloaded member.
fn torn(state: &mut State<'_>, items: &Items, m: u32, r: usize) -> bool {
    let p = state.p;
    let mut parts: Vec<u32> = state.on[m as usize]
        .iter()
        .copied()
        .filter(|i| p.fixed[*i as usize].is_none() && p.demand_of(*i as usize)[r] > 0)
        .filter(|i| state.group_of(*i).is_some_and(|(_, g)| g.mode == GroupMode::Compact))
        .collect();
    parts.sort_unstable();
    parts.into_iter().any(|i| settle(state, items, i, Some(m), 0))
}

/// The resources of which a member has promised too much.
fn overloaded(state: &State<'_>, m: u32) -> Vec<usize> {
    let p = state.p;
    let base = m as usize * p.width();
    (0..p.width()).filter(|r| state.used[base + r] > p.usable[base + r]).collect()
}

fn strict_groups(state: &mut State<'_>) {
    for g in 0..state.p.groups.len() as u32 {
        let group = &state.p.groups[g as usize];
        if group.strength != GroupStrength::Strict || state.violating_pairs(g) == 0 {
            continue;
        }
        match group.mode {
            GroupMode::Compact => drop(gather(state, g)),
            GroupMode::Spread => {
                let mut cheapest = group.instances.clone();
                cheapest.sort_by_key(|i| (state.p.cost[*i as usize], *i));
                let items = Items::new(state);
                for i in cheapest {
                    if state.p.fixed[i as usize].is_none() && state.mates(g, state.at[i as usize]) > 1 {
                        settle(state, &items, i, None, DEPTH);
                    }
                }
            }
        }
    }
}

/// Gathers a group on one member, or leaves everything unchanged.
fn gather(state: &mut State<'_>, g: u32) -> bool {
    let p = state.p;
    let group = &p.groups[g as usize];
    let stays = |i: &u32| p.fixed[*i as usize].is_some();
    let held: Vec<u32> = group.instances.iter().filter(|i| stays(i)).map(|i| state.at[*i as usize]).collect();
    let mut places: Vec<(u64, u64, i64, u32)> = (0..p.members.len() as u32)
        .filter(|m| held.iter().all(|h| h == m))
        .filter(|m| {
            group.instances.iter().all(|i| {
                stays(i)
                    || (state.at[*i as usize] == *m && !is_misplaced(state, *i as usize))
                    || p.may_enter(*i as usize, *m as usize)
            })
        })
        .map(|m| {
            let coming = || group.instances.iter().filter(|i| state.at[**i as usize] != m);
            let mut demand = vec![0; p.width()];
            for i in coming() {
                demand.iter_mut().zip(p.demand_of(*i as usize)).for_each(|(sum, d)| *sum += d);
            }
            (
                lack(state, m, &demand),
                coming().map(|i| p.cost[*i as usize]).sum(),
                crate::state::key(state.over[m as usize]),
                m,
            )
        })
        .collect();
    places.sort_unstable();
    places.truncate(2 * WIDTH);
    for (_, _, _, to) in places {
        let mark = state.journal.len();
        let items = Items::new(state);
        let together = group.instances.iter().all(|i| {
            state.at[*i as usize] == to
                || (make_room(state, &items, *i, to, DEPTH - 1) && state.can_go(*i, to) && {
                    state.go(*i, to);
                    true
                })
        });
        if together && group.instances.iter().all(|i| state.at[*i as usize] == to) {
            return true;
        }
        state.back_to(mark);
    }
    false
}

/// Follows the preferences of groups as far as there is room.
pub fn prefer(state: &mut State<'_>) {
    let p = state.p;
    loop {
        let before = state.journal.len();
        for g in 0..p.groups.len() as u32 {
            let group = &p.groups[g as usize];
            if group.strength != GroupStrength::Preferred || state.violating_pairs(g) == 0 {
                continue;
            }
            if group.mode == GroupMode::Compact && gather_for_less(state, g) {
                continue;
            }
            let mut cheapest = group.instances.clone();
            cheapest.sort_by_key(|i| (p.cost[*i as usize], *i));
            let items = Items::new(state);
            for i in cheapest {
                if let Some(to) =
                    items.best_target(state, i, None).filter(|to| state.pairs_change(i, *to) < 0)
                {
                    state.go(i, to);
                }
            }
        }
        if state.journal.len() == before {
            return;
        }
    }
}

/// Gathers a group if that lowers the violating pairs of all groups together.
fn gather_for_less(state: &mut State<'_>, g: u32) -> bool {
    let (mark, before) = (state.journal.len(), all_pairs(state));
    if gather(state, g) && all_pairs(state) < before {
        return true;
    }
    state.back_to(mark);
    false
}

/// Violating pairs of all groups.
fn all_pairs(state: &State<'_>) -> u64 {
    (0..state.p.groups.len() as u32).map(|g| state.violating_pairs(g)).sum()
}
