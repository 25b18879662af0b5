//! The placement during planning, with its sums, changed by one possible move at a time.
//!
//! Owns the sums, the conditions of a single move, and the journal of moves. Does not choose moves.

use crate::{
    levels::Levels,
    policy::GroupMode,
    problem::{Group, Problem, UNCOUNTED},
};
use std::collections::BTreeSet;

/// One move: instance, from, to.
pub type Step = (u32, u32, u32);

/// A placement that is being changed.
#[derive(Debug)]
pub struct State<'p> {
    /// The tables.
    pub p: &'p Problem<'p>,
    /// The even shares.
    pub levels: &'p Levels,
    /// Each instance's member.
    pub at: Vec<u32>,
    /// Each member's instances, in order, so that choices among them depend only on the placement and not on its history.
    pub on: Vec<Vec<u32>>,
    /// Amount of each resource promised on each member.
    pub used: Vec<u64>,
    /// For each group, its members with the number of its instances on them.
    mates: Vec<Vec<(u32, u32)>>,
    /// Each member's overhang over its even share, as a fraction of the domain's level; negative if it has room.
    pub over: Vec<f64>,
    /// For each domain, its members ordered by overhang in billionths.
    pub by_over: Vec<BTreeSet<(i64, u32)>>,
    /// For each member and resource: the overhang is `promised * slope - share`.
    slope: Vec<f64>,
    /// See `slope`.
    share: Vec<f64>,
    /// The moves made so far.
    pub journal: Vec<Step>,
    /// Number of instances that are not on the member they started on.
    pub displaced: usize,
    /// Remaining attempts to make room by moving others.
    pub fuel: u32,
}

/// Limit on attempts to make room in one round: with 1,000 members, about a second's work if nothing fits anywhere.
const FUEL: u32 = 20_000;

impl<'p> State<'p> {
    /// The state with each instance on the member given by `at`.
    pub fn new(p: &'p Problem<'p>, levels: &'p Levels, at: &[u32]) -> Self {
        let (n, width) = (p.members.len(), p.width());
        let (mut slope, mut share) = (vec![0.0; n * width], vec![f64::INFINITY; n * width]);
        for m in 0..n {
            let Some(d) = levels.domain[m] else { continue };
            let scale = levels.domains[d as usize].scale_ppm as f64;
            for r in 0..width {
                let at = m * width + r;
                let (usable, weight) = (p.usable[at], levels.weight(r));
                if usable != 0 && usable != UNCOUNTED && weight > 0.0 && scale > 0.0 {
                    slope[at] = weight * 1e6 / usable as f64 / scale;
                    share[at] = weight * levels.even_ppm[at] as f64 / scale;
                }
            }
        }
        let mut state = Self {
            p,
            levels,
            at: at.to_vec(),
            on: vec![Vec::new(); n],
            used: vec![0; n * width],
            mates: vec![Vec::new(); p.groups.len()],
            over: vec![f64::NEG_INFINITY; n],
            by_over: vec![BTreeSet::new(); levels.domains.len()],
            slope,
            share,
            journal: Vec::new(),
            displaced: at.iter().zip(&p.start).filter(|(a, b)| a != b).count(),
            fuel: FUEL,
        };
        for (i, m) in at.iter().enumerate() {
            let m = *m as usize;
            state.on[m].push(i as u32);
            for (r, d) in p.demand_of(i).iter().enumerate() {
                state.used[m * width + r] += d;
            }
            if let Some(g) = p.group[i] {
                state.count_mate(g, m as u32, 1);
            }
        }
        for m in 0..n {
            state.over[m] = state.over_with(m, None, None);
            if let Some(d) = levels.domain[m] {
                state.by_over[d as usize].insert((key(state.over[m]), m as u32));
            }
        }
        state
    }

    /// The amounts promised on a member, by resource.
    pub fn used_of(&self, m: usize) -> &[u64] {
        &self.used[m * self.p.width()..][..self.p.width()]
    }

    /// The overhang of a member after the demand `less` has left and `more` has arrived.
    pub fn over_with(&self, m: usize, less: Option<&[u64]>, more: Option<&[u64]>) -> f64 {
        let width = self.p.width();
        let base = m * width;
        let mut most = f64::NEG_INFINITY;
        for r in 0..width {
            let mut used = self.used[base + r];
            if let Some(less) = less {
                used = used.saturating_sub(less[r]);
            }
            if let Some(more) = more {
                used += more[r];
            }
            most = most.max(used as f64 * self.slope[base + r] - self.share[base + r]);
        }
        most
    }

    /// For each resource, the slope of a member's overhang over the promised amount, and the current overhang.
    pub fn slopes(&self, m: u32) -> impl Iterator<Item = (f64, f64)> {
        let base = m as usize * self.p.width();
        (base..base + self.p.width())
            .map(|at| (self.slope[at], self.used[at] as f64 * self.slope[at] - self.share[at]))
    }

    /// Whether a member has room for `more` after `less` has left. Only resources with a demand count.
    pub fn has_room(&self, m: usize, less: Option<&[u64]>, more: &[u64]) -> bool {
        let base = m * self.p.width();
        more.iter().enumerate().all(|(r, more)| {
            *more == 0 || {
                let less = less.map_or(0, |l| l[r]);
                self.used[base + r].saturating_sub(less).saturating_add(*more) <= self.p.usable[base + r]
            }
        })
    }

    /// Number of instances of a group on a member.
    pub fn mates(&self, g: u32, m: u32) -> u32 {
        self.mates[g as usize].iter().find(|(at, _)| *at == m).map_or(0, |(_, n)| *n)
    }

    /// The members with instances of a group, with the number on each.
    pub fn spread_of(&self, g: u32) -> &[(u32, u32)] {
        &self.mates[g as usize]
    }

    /// Number of pairs of a group that violate its mode.
    pub fn violating_pairs(&self, g: u32) -> u64 {
        self.p.groups[g as usize].violating_pairs(self.mates[g as usize].iter().map(|(_, n)| u64::from(*n)))
    }

    /// An instance's group.
    pub fn group_of(&self, i: u32) -> Option<(u32, &'p Group)> {
        self.p.group[i as usize].map(|g| (g, &self.p.groups[g as usize]))
    }

    /// By how many violating pairs a move makes the instance's group worse; negative if it gets better.
    pub fn pairs_change(&self, i: u32, to: u32) -> i64 {
        let Some((g, group)) = self.group_of(i) else { return 0 };
        let change = i64::from(self.mates(g, to)) - (i64::from(self.mates(g, self.at[i as usize])) - 1);
        match group.mode {
            GroupMode::Spread => change,
            GroupMode::Compact => -change,
        }
    }

    /// Whether an instance may be moved to a member, regardless of room.
    pub fn may_go(&self, i: u32, to: u32) -> bool {
        self.p.fixed[i as usize].is_none()
            && self.at[i as usize] != to
            && self.p.may_enter(i as usize, to as usize)
            && self.group_of(i).is_none_or(|(g, group)| !group.strictly_spread() || self.mates(g, to) == 0)
    }

    /// Whether an instance can be moved to a member now.
    pub fn can_go(&self, i: u32, to: u32) -> bool {
        self.may_go(i, to) && self.has_room(to as usize, None, self.p.demand_of(i as usize))
    }

    /// Makes a move and records it in the journal.
    pub fn go(&mut self, i: u32, to: u32) {
        let from = self.at[i as usize];
        self.journal.push((i, from, to));
        self.put(i, to);
    }

    /// Undoes the moves made since the journal had this length.
    pub fn back_to(&mut self, length: usize) {
        while self.journal.len() > length {
            if let Some((i, from, _)) = self.journal.pop() {
                self.put(i, from);
            }
        }
    }

    /// Puts an instance on a member without a journal entry.
    pub fn put(&mut self, i: u32, to: u32) {
        let (i, from) = (i as usize, self.at[i as usize]);
        let (a, b, width) = (from as usize, to as usize, self.p.width());
        let start = self.p.start[i];
        self.displaced = self.displaced + usize::from(from == start) - usize::from(to == start);
        self.at[i] = to;
        if let Ok(slot) = self.on[a].binary_search(&(i as u32)) {
            self.on[a].remove(slot);
        }
        if let Err(slot) = self.on[b].binary_search(&(i as u32)) {
            self.on[b].insert(slot, i as u32);
        }
        for r in 0..width {
            let d = self.p.demand[i * width + r];
            self.used[a * width + r] -= d;
            self.used[b * width + r] += d;
        }
        if let Some(g) = self.p.group[i] {
            self.count_mate(g, from, -1);
            self.count_mate(g, to, 1);
        }
        for m in [a, b] {
            let over = self.over_with(m, None, None);
            if let Some(d) = self.levels.domain[m] {
                let members = &mut self.by_over[d as usize];
                members.remove(&(key(self.over[m]), m as u32));
                members.insert((key(over), m as u32));
            }
            self.over[m] = over;
        }
    }

    fn count_mate(&mut self, g: u32, m: u32, change: i32) {
        let mates = &mut self.mates[g as usize];
        match mates.iter().position(|(at, _)| *at == m) {
            Some(n) => {
                mates[n].1 = mates[n].1.saturating_add_signed(change);
                if mates[n].1 == 0 {
                    mates.swap_remove(n);
                }
            }
            None => mates.push((m, change.unsigned_abs())),
        }
    }
}

/// An overhang as an integer in billionths, for ordering: finer than any difference that matters.
pub fn key(over: f64) -> i64 {
    (over * 1e9) as i64
}
