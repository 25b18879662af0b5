//! Items, the units of a move: an instance, or a compact group whose instances are on one member.
//!
//! Owns which groups are moved as a whole, and the choice of a member for one item. Does not decide why it is moved.

use crate::{
    policy::GroupMode,
    problem::Problem,
    state::{State, key},
};

/// How many of the emptiest members are tried before all members.
const NEAREST: usize = 12;

/// An instance (its number) or a whole group (its number plus the number of instances).
pub type Item = u32;

/// The groups that are moved as a whole, with their demands.
#[derive(Debug)]
pub struct Items {
    instances: u32,
    whole: Vec<bool>,
    demand: Vec<u64>,
    width: usize,
}

impl Items {
    /// Finds the compact groups on one member whose instances can all be moved.
    pub fn new(state: &State<'_>) -> Self {
        let p = state.p;
        let width = p.width();
        let mut demand = vec![0; p.groups.len() * width];
        let whole = p
            .groups
            .iter()
            .enumerate()
            .map(|(g, group)| {
                let whole = group.mode == GroupMode::Compact
                    && group.instances.len() > 1
                    && state.spread_of(g as u32).len() == 1
                    && group.instances.iter().all(|i| p.fixed[*i as usize].is_none());
                if whole {
                    for i in &group.instances {
                        for (r, d) in p.demand_of(*i as usize).iter().enumerate() {
                            demand[g * width + r] += d;
                        }
                    }
                }
                whole
            })
            .collect();
        Self { instances: p.instances.len() as u32, whole, demand, width }
    }

    /// The demand of an item, by resource.
    pub fn demand<'a>(&'a self, p: &'a Problem<'_>, item: Item) -> &'a [u64] {
        match item.checked_sub(self.instances) {
            None => p.demand_of(item as usize),
            Some(g) => &self.demand[g as usize * self.width..][..self.width],
        }
    }

    /// The instances of an item.
    pub fn parts<'a>(&self, p: &'a Problem<'_>, item: Item) -> Parts<'a> {
        match item.checked_sub(self.instances) {
            None => Parts::One(item),
            Some(g) => Parts::Group(&p.groups[g as usize].instances),
        }
    }

    /// Cost of moving an item: MiB to copy, plus a price of its downtime in MiB.
    pub fn cost(&self, p: &Problem<'_>, item: Item) -> u64 {
        match self.parts(p, item) {
            Parts::One(i) => p.cost[i as usize],
            Parts::Group(instances) => instances.iter().map(|i| p.cost[*i as usize]).sum(),
        }
    }

    /// The movable items on a member, at most `limit`, in descending order of number.
    pub fn on(&self, state: &State<'_>, m: u32, limit: usize) -> Vec<Item> {
        let p = state.p;
        state.on[m as usize]
            .iter()
            .rev()
            .filter(|i| p.fixed[**i as usize].is_none())
            .filter_map(|i| match p.group[*i as usize].filter(|g| self.whole[*g as usize]) {
                None => Some(*i),
                Some(g) => (p.groups[g as usize].instances[0] == *i).then_some(self.instances + g),
            })
            .take(limit)
            .collect()
    }

    /// Whether an item may go to a member, regardless of room.
    pub fn may_go(&self, state: &State<'_>, item: Item, to: u32) -> bool {
        match self.parts(state.p, item) {
            Parts::One(i) => state.may_go(i, to),
            Parts::Group(instances) => instances.iter().all(|i| state.may_go(*i, to)),
        }
    }

    /// Whether an item can go to a member now.
    pub fn can_go(&self, state: &State<'_>, item: Item, to: u32) -> bool {
        self.may_go(state, item, to) && state.has_room(to as usize, None, self.demand(state.p, item))
    }

    /// By how many violating pairs the move makes groups worse; 0 for a group that moves as a whole.
    pub fn pairs_change(&self, state: &State<'_>, item: Item, to: u32) -> i64 {
        match self.parts(state.p, item) {
            Parts::One(i) => state.pairs_change(i, to),
            Parts::Group(_) => 0,
        }
    }

    /// Moves an item.
    pub fn go(&self, state: &mut State<'_>, item: Item, to: u32) {
        match self.parts(state.p, item) {
            Parts::One(i) => state.go(i, to),
            Parts::Group(instances) => instances.iter().for_each(|i| state.go(*i, to)),
        }
    }

    /// The member an item is on.
    pub fn at(&self, state: &State<'_>, item: Item) -> u32 {
        match self.parts(state.p, item) {
            Parts::One(i) => state.at[i as usize],
            Parts::Group(instances) => state.at[instances[0] as usize],
        }
    }

    /// The best member for an item that has to move: the best one for its group, then the least full. Does not split a
    /// strictly compact group.
    pub fn best_target(&self, state: &State<'_>, item: Item, not: Option<u32>) -> Option<u32> {
        let p = state.p;
        let first = self.parts(p, item).first()?;
        let enter = &p.classes[p.class[first as usize] as usize].enter;
        let score = |m: u32| {
            (Some(m) != not && self.can_go(state, item, m) && !self.tears(state, item, m)).then(|| {
                let over = state.over_with(m as usize, None, Some(self.demand(p, item)));
                (self.pairs_change(state, item, m), key(over), m)
            })
        };
        let domain = enter.iter().find_map(|m| state.levels.domain[m]);
        let grouped = p.group[first as usize].is_some();
        if let (Some(d), false) = (domain, grouped) {
            let near = state.by_over[d as usize].iter().take(NEAREST).filter_map(|(_, m)| score(*m)).min();
            if let Some((_, _, m)) = near {
                return Some(m);
            }
        }
        enter.iter().filter_map(|m| score(m as u32)).min().map(|(_, _, m)| m)
    }

    /// Whether the move separates an instance from the rest of its strictly compact group.
    pub fn tears(&self, state: &State<'_>, item: Item, to: u32) -> bool {
        match self.parts(state.p, item) {
            Parts::One(i) => {
                state.group_of(i).is_some_and(|(_, g)| g.strictly_compact()) && state.pairs_change(i, to) > 0
            }
            Parts::Group(_) => false,
        }
    }
}

/// The instances of an item.
#[derive(Debug, Clone, Copy)]
pub enum Parts<'a> {
    /// A single instance.
    One(u32),
    /// All instances of a group.
    Group(&'a [u32]),
}

impl Parts<'_> {
    fn first(&self) -> Option<u32> {
        match self {
            Self::One(i) => Some(*i),
            Self::Group(instances) => instances.first().copied(),
        }
    }
}
