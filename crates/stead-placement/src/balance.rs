//! Makes members more even by moves and exchanges between the fullest and the emptiest, then undoes unneeded moves.
//!
//! Owns which moves and exchanges are tried, and when the members are even enough. `levels` defines what even means.
//! It terminates: every step lowers the larger of the two members' overhangs, so the list of overhangs, largest first,
//! falls in lexicographic order.

use crate::{
    exchange::{Fit, ItemTable, Leaving},
    item::{Item, Items, Parts},
    state::{State, key},
};
use std::{cmp::Ordering, collections::BTreeSet};

/// How many items of a member are considered at a time.
const WINDOW: usize = 64;
/// How many of the emptiest members are tried first as targets of a move.
const MOVES: usize = 12;
/// How many of the emptiest members are tried first for an exchange.
const EXCHANGES: usize = 6;
/// Least gain if the policy requires none; far above rounding errors.
const LEAST_GAIN: f64 = 1e-6;
/// How many items of the other member are considered for an exchange.
const CROWD: usize = 256;

/// A possible move or exchange.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    item: Item,
    to: u32,
    /// The item that comes back in an exchange.
    other: Option<Item>,
    /// The larger overhang of the two members afterwards.
    over: f64,
    cost: u64,
}

/// The items that may leave a member, and the search for partners that fit.
type Sought<'a> = (&'a Leaving<'a>, &'a mut Fit);

/// Balancing over all rounds of a plan. Members for which no step was found are not tried again until they change.
#[derive(Debug)]
pub struct Balance {
    goal: f64,
    least_gain: f64,
    max_displaced: usize,
    items: Items,
    /// Logical time, which advances with each step.
    now: u64,
    /// When each member last changed.
    changed: Vec<u64>,
    /// When everything was last tried for a member without success.
    tried: Vec<u64>,
    /// The cached items of each member, and when they were collected.
    tables: Vec<(u64, ItemTable)>,
}

impl Balance {
    /// Starts with the limits of the policy.
    pub fn new(state: &State<'_>) -> Self {
        let policy = state.p.policy;
        Self {
            goal: f64::from(policy.tolerance_percent) / 100.0,
            least_gain: (f64::from(policy.least_gain_percent) / 100.0).max(LEAST_GAIN),
            max_displaced: policy.max_moves.unwrap_or(usize::MAX),
            items: Items::new(state),
            now: 1,
            changed: vec![1; state.p.members.len()],
            tried: vec![0; state.p.members.len()],
            tables: state.p.members.iter().map(|_| (0, ItemTable::default())).collect(),
        }
    }

    /// Continues with a placement that other phases may have changed by the moves in its journal.
    pub fn resume(&mut self, state: &State<'_>) {
        self.items = Items::new(state);
        self.touch_since(state, 0);
        self.tables.iter_mut().for_each(|(looked_up, _)| *looked_up = 0);
    }

    /// Records that an instance was moved.
    fn touch(&mut self, state: &State<'_>, i: u32, from: u32, to: u32) {
        self.changed[from as usize] = self.now;
        self.changed[to as usize] = self.now;
        // The permitted moves of a group's instance depend on all of the group's members.
        if let Some((_, group)) = state.group_of(i) {
            for mate in &group.instances {
                self.changed[state.at[*mate as usize] as usize] = self.now;
            }
        }
    }

    /// Moves and exchanges until every member is within the tolerance or no step helps it.
    pub fn run(&mut self, state: &mut State<'_>) {
        for d in 0..state.by_over.len() {
            if state.levels.domains[d].scale_ppm == 0 || state.by_over[d].len() < 2 {
                continue;
            }
            let mut stuck = BTreeSet::new();
            let mut progress = false;
            loop {
                let hottest = state.by_over[d]
                    .iter()
                    .rev()
                    .map(|(_, m)| *m)
                    .take_while(|m| state.over[*m as usize] > self.goal)
                    .find(|m| !stuck.contains(m));
                let Some(m) = hottest else {
                    if !std::mem::take(&mut progress) {
                        break;
                    }
                    stuck.clear();
                    continue;
                };
                match self.relieve(state, d, m) {
                    Some(step) => {
                        self.carry_out(state, step);
                        progress = true;
                    }
                    None => drop(stuck.insert(m)),
                }
            }
        }
    }

    /// Finds the step that helps a member most.
    fn relieve(&mut self, state: &State<'_>, d: usize, m: u32) -> Option<Candidate> {
        let coldest: Vec<u32> =
            state.by_over[d].iter().map(|(_, b)| *b).filter(|b| *b != m).take(MOVES.max(EXCHANGES)).collect();
        self.look_up(state, m);
        coldest.iter().take(EXCHANGES).for_each(|to| self.look_up(state, *to));
        let leaving = Leaving::new(state, m, self.table(m), WINDOW, self.enough(state, m));
        let mut fit = Fit::default();
        let mut moved: Option<Candidate> = None;
        for to in coldest.iter().take(MOVES) {
            self.moves(state, *to, (&leaving, &mut fit), &mut moved);
        }
        let excess = state.over[m as usize] - self.goal;
        // One move that gains half of the excess is better than two that gain all of it.
        if let Some(best) = moved.filter(|c| state.over[m as usize] - c.over >= excess / 2.0) {
            return Some(best);
        }
        let mut exchanged: Option<Candidate> = None;
        for to in coldest.iter().take(EXCHANGES) {
            self.exchanges(state, m, *to, (&leaving, &mut fit), &mut exchanged);
        }
        match (moved, exchanged) {
            (Some(a), Some(b)) => {
                let gain = |c: &Candidate| state.over[m as usize] - c.over;
                let better = b.over <= self.goal || gain(&b) > 2.0 * gain(&a);
                return Some(if better { b } else { a });
            }
            (Some(only), None) | (None, Some(only)) => return Some(only),
            (None, None) => {}
        }
        let found = self.anywhere(state, d, m);
        if found.is_none() {
            self.tried[m as usize] = self.now;
        }
        found
    }

    /// Tries all members, the emptiest first, and takes the first step that helps.
    fn anywhere(&mut self, state: &State<'_>, d: usize, m: u32) -> Option<Candidate> {
        let tried = self.tried[m as usize];
        let again = self.changed[m as usize] <= tried;
        let fresh: Vec<u32> = state.by_over[d]
            .iter()
            .map(|(_, b)| *b)
            .filter(|b| *b != m && (!again || self.changed[*b as usize] > tried))
            .collect();
        fresh.iter().for_each(|to| self.look_up(state, *to));
        // Usually the cache holds all of them.
        let more = (self.table(m).len() == CROWD).then(|| ItemTable::new(state, &self.items, m, usize::MAX));
        let enough = self.enough(state, m);
        let leaving = Leaving::new(state, m, more.as_ref().unwrap_or(self.table(m)), usize::MAX, enough);
        let mut fit = Fit::default();
        let mut found = None;
        // An arriving item only adds load, so fuller members cannot be targets.
        for to in fresh.iter().take_while(|to| state.over[**to as usize] <= enough) {
            self.moves(state, *to, (&leaving, &mut fit), &mut found);
            if found.is_some() {
                return found;
            }
        }
        for to in fresh {
            self.exchanges(state, m, to, (&leaving, &mut fit), &mut found);
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// Refreshes the cached items of a member.
    fn look_up(&mut self, state: &State<'_>, m: u32) {
        let (looked_up, table) = &mut self.tables[m as usize];
        if *looked_up < self.changed[m as usize] {
            *table = ItemTable::new(state, &self.items, m, CROWD);
            *looked_up = self.now;
        }
    }

    fn table(&self, m: u32) -> &ItemTable {
        &self.tables[m as usize].1
    }

    /// Searches moves to `to`.
    fn moves(&self, state: &State<'_>, to: u32, (leaving, fit): Sought<'_>, best: &mut Option<Candidate>) {
        fit.singles(state, leaving, to, |item, over| {
            let found = Candidate { item, to, other: None, over, cost: self.items.cost(state.p, item) };
            if self.is_better(&found, best)
                && self.items.can_go(state, item, to)
                && self.items.pairs_change(state, item, to) <= 0
                && self.affordable(state, &[(item, to)])
            {
                *best = Some(found);
            }
        });
    }

    /// Searches exchanges between `m` and `to`. The returning item only adds load to `m`, so the move must help without it.
    fn exchanges(
        &self,
        state: &State<'_>,
        m: u32,
        to: u32,
        (leaving, fit): Sought<'_>,
        best: &mut Option<Candidate>,
    ) {
        let p = state.p;
        fit.pairs(state, leaving, to, self.table(to), |item, other, over| {
            if !self.items.may_go(state, item, to) {
                return false;
            }
            let cost = self.items.cost(p, item) + self.items.cost(p, other);
            let found = Candidate { item, to, other: Some(other), over, cost };
            if self.is_better(&found, best) && self.possible(state, m, item, to, other) {
                *best = Some(found);
            }
            true
        });
    }

    /// Whether an exchange is permitted and can start with one of its two moves.
    fn possible(&self, state: &State<'_>, m: u32, item: Item, to: u32, other: Item) -> bool {
        let p = state.p;
        let (out, back) = (self.items.demand(p, item), self.items.demand(p, other));
        let group = |item| match self.items.parts(p, item) {
            Parts::One(i) => p.group[i as usize],
            Parts::Group(_) => None,
        };
        let same_group = group(item).is_some() && group(item) == group(other);
        !same_group
            && self.items.may_go(state, other, m)
            && !self.items.tears(state, item, to)
            && !self.items.tears(state, other, m)
            && state.has_room(to as usize, Some(back), out)
            && state.has_room(m as usize, Some(out), back)
            && (state.has_room(to as usize, None, out) || state.has_room(m as usize, None, back))
            && self.items.pairs_change(state, item, to) + self.items.pairs_change(state, other, m) <= 0
            && self.affordable(state, &[(item, to), (other, m)])
    }

    fn carry_out(&mut self, state: &mut State<'_>, step: Candidate) {
        let (from, mark) = (self.items.at(state, step.item), state.journal.len());
        match step.other {
            Some(other) if !self.items.can_go(state, step.item, step.to) => {
                self.items.go(state, other, from);
                self.items.go(state, step.item, step.to);
            }
            other => {
                self.items.go(state, step.item, step.to);
                other.into_iter().for_each(|o| self.items.go(state, o, from));
            }
        }
        self.touch_since(state, mark);
    }

    /// Records the moves made since the journal had this length.
    fn touch_since(&mut self, state: &State<'_>, mark: usize) {
        self.now += 1;
        for (i, from, to) in &state.journal[mark..] {
            self.touch(state, *i, *from, *to);
        }
    }

    /// The largest overhang after a step that is worth it: below the member's own by the policy's least gain, or within
    /// the tolerance.
    fn enough(&self, state: &State<'_>, m: u32) -> f64 {
        let now = state.over[m as usize];
        (now - self.least_gain).max(self.goal.min(now - LEAST_GAIN))
    }

    /// Whether the plan stays within `max_moves` with these moves.
    fn affordable(&self, state: &State<'_>, moves: &[(Item, u32)]) -> bool {
        if self.max_displaced == usize::MAX {
            return true;
        }
        let p = state.p;
        let mut displaced = state.displaced;
        for (item, to) in moves {
            let mut count = |i: u32| {
                displaced += usize::from(state.at[i as usize] == p.start[i as usize]);
                displaced -= usize::from(*to == p.start[i as usize]);
            };
            match self.items.parts(p, *item) {
                Parts::One(i) => count(i),
                Parts::Group(instances) => instances.iter().for_each(|i| count(*i)),
            }
        }
        displaced <= self.max_displaced
    }

    fn is_better(&self, found: &Candidate, best: &Option<Candidate>) -> bool {
        best.as_ref().is_none_or(|b| self.order(found, b) == Ordering::Less)
    }

    /// Order of candidates: within the goal the cheaper is better, beyond it the more even. Ties are broken by number.
    fn order(&self, a: &Candidate, b: &Candidate) -> Ordering {
        let within = |c: &Candidate| c.over <= self.goal;
        // Rounded, so that floating-point errors do not decide.
        let even = key(a.over).cmp(&key(b.over));
        let tie = (a.item, a.to, a.other).cmp(&(b.item, b.to, b.other));
        match (within(a), within(b)) {
            (true, true) => a.cost.cmp(&b.cost).then(even).then(tie),
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            (false, false) => even.then(a.cost.cmp(&b.cost)).then(tie),
        }
    }

    /// Moves instances back to their first member, and merges moves into and out of a member, if both members then are
    /// within the tolerance or the fuller one becomes less full.
    pub fn prune(&mut self, state: &mut State<'_>) {
        let mark = state.journal.len();
        self.send_home(state);
        self.touch_since(state, mark);
    }

    fn send_home(&self, state: &mut State<'_>) {
        let p = state.p;
        let mut displaced: Vec<u32> =
            (0..p.instances.len() as u32).filter(|i| state.at[*i as usize] != p.start[*i as usize]).collect();
        displaced.sort_by_key(|i| (std::cmp::Reverse(p.cost[*i as usize]), *i));
        for i in &displaced {
            let (at, home) = (state.at[*i as usize], p.start[*i as usize]);
            if at != home && state.can_go(*i, home) && state.pairs_change(*i, home) <= 0 {
                let demand = p.demand_of(*i as usize);
                let after = (
                    state.over_with(at as usize, Some(demand), None),
                    state.over_with(home as usize, None, Some(demand)),
                );
                if self.no_worse(state, (at, home), after) {
                    state.go(*i, home);
                }
            }
        }
        let mut came: Vec<Vec<u32>> = vec![Vec::new(); p.members.len()];
        for i in &displaced {
            came[state.at[*i as usize] as usize].push(*i);
        }
        for j in displaced {
            let (at, home) = (state.at[j as usize], p.start[j as usize]);
            if at == home || p.fixed[j as usize].is_some() || !p.may_enter(j as usize, home as usize) {
                continue;
            }
            // `j` left `home` for `at`; an `i` that came to `home` may go to `at` in its place.
            let stead = came[home as usize]
                .iter()
                .copied()
                .take(WINDOW)
                .find(|i| state.at[*i as usize] == home && self.can_stand_in(state, *i, j));
            if let Some(i) = stead {
                let first = if state.can_go(i, at) { (i, at, j, home) } else { (j, home, i, at) };
                state.go(first.0, first.1);
                state.go(first.2, first.3);
            }
        }
    }

    /// Whether `i` may go to the member of `j`, and `j` back home to the member of `i`.
    fn can_stand_in(&self, state: &State<'_>, i: u32, j: u32) -> bool {
        let p = state.p;
        let (home, at) = (state.at[i as usize], state.at[j as usize]);
        let (out, back) = (p.demand_of(i as usize), p.demand_of(j as usize));
        if p.start[i as usize] == at || !state.may_go(i, at) || !self.possible(state, home, i, at, j) {
            return false;
        }
        let after = (
            state.over_with(home as usize, Some(out), Some(back)),
            state.over_with(at as usize, Some(back), Some(out)),
        );
        self.no_worse(state, (home, at), after)
    }

    /// Whether two members with the overhangs `after` are within the tolerance, or the fuller one is less full than now.
    fn no_worse(&self, state: &State<'_>, members: (u32, u32), after: (f64, f64)) -> bool {
        let clip = |over: f64| over.max(self.goal);
        let now = clip(state.over[members.0 as usize]).max(clip(state.over[members.1 as usize]));
        let then = clip(after.0).max(clip(after.1));
        then <= self.goal || then < now
    }
}
