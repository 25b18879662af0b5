//! Violations in a placement, whether they can be repaired, and why not, in numbers.
//!
//! Owns the list of violations and the proofs that need no search. Does not search for repairs.

use crate::{
    plan::{Refusal, Verdict, Violation},
    policy::GroupMode,
    problem::{self, Problem, UNCOUNTED},
    repair::is_misplaced,
    settings::InstanceSettings,
    state::State,
    why,
};

/// A violation, by number of instance, member, resource or group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Breach {
    /// An instance on a member it must leave.
    Misplaced(u32),
    /// A member that has promised too much of a resource.
    Overload(u32, u32),
    /// A strict group that is not spread or compact as required.
    Group(u32),
}

/// All violations of a placement, in order.
pub fn breaches(state: &State<'_>) -> Vec<Breach> {
    let p = state.p;
    let misplaced =
        (0..p.instances.len()).filter(|i| is_misplaced(state, *i)).map(|i| Breach::Misplaced(i as u32));
    let width = p.width();
    let overloads = (0..state.used.len())
        .filter(|at| state.used[*at] > p.usable[*at])
        .map(|at| Breach::Overload((at / width) as u32, (at % width) as u32));
    let groups = (0..p.groups.len())
        .filter(|g| {
            p.groups[*g].strength == crate::policy::GroupStrength::Strict
                && state.violating_pairs(*g as u32) > 0
        })
        .map(|g| Breach::Group(g as u32));
    misplaced.chain(overloads).chain(groups).collect()
}

impl Breach {
    /// Amount of the violation, for comparing placements.
    pub fn amount(self, state: &State<'_>) -> u64 {
        match self {
            Self::Misplaced(_) => 1,
            Self::Overload(m, r) => {
                let at = m as usize * state.p.width() + r as usize;
                state.used[at].saturating_sub(state.p.usable[at])
            }
            Self::Group(g) => state.violating_pairs(g),
        }
    }

    /// The violation with the names of the snapshot.
    pub fn violation(self, state: &State<'_>) -> Violation {
        let p = state.p;
        match self {
            Self::Misplaced(i) => {
                let workload = &p.instances[i as usize].workload;
                let member = p.members[state.at[i as usize] as usize];
                Violation::Misplaced {
                    instance: workload.id.clone(),
                    member: member.name.clone(),
                    why: problem::hindrances(
                        p.policy,
                        member,
                        workload,
                        &InstanceSettings::of(workload).roles,
                    ),
                }
            }
            Self::Overload(m, r) => {
                let at = m as usize * p.width() + r as usize;
                Violation::Overload {
                    member: p.members[m as usize].name.clone(),
                    resource: p.resources[r as usize].clone(),
                    promised: state.used[at],
                    usable: p.usable[at],
                }
            }
            Self::Group(g) => {
                let group = &p.groups[g as usize];
                Violation::Group {
                    group: group.id.clone(),
                    mode: group.mode,
                    pairs: state.violating_pairs(g),
                }
            }
        }
    }

    /// Why it remains. `proof` is the verdict of an exhaustive search, if there was one.
    pub fn refusal(self, state: &State<'_>, proof: Option<Verdict>) -> Refusal {
        let (verdict, why) = match self.impossible(state) {
            Some(why) => (Verdict::Impossible, why),
            None => (proof.unwrap_or(Verdict::NotFound), self.hint(state)),
        };
        Refusal { violation: self.violation(state), verdict, why }
    }

    /// Why it can never be repaired, if that can be proved without a search.
    fn impossible(self, state: &State<'_>) -> Option<String> {
        let p = state.p;
        match self {
            Self::Misplaced(i) => {
                if let Some(fixed) = &p.fixed[i as usize] {
                    return Some(match fixed {
                        crate::plan::Fixed::NowhereElse => why::nowhere(p, i as usize),
                        fixed => fixed.to_string(),
                    });
                }
                let enter = &p.classes[p.class[i as usize] as usize].enter;
                let full = enter.iter().all(|m| !fits(state, m, p.demand_of(i as usize)));
                full.then(|| why::no_room(state, i as usize, true))
            }
            Self::Overload(m, r) => {
                let at = m as usize * p.width() + r as usize;
                let (resource, certain) = (&p.resources[r as usize], state.levels.certain[at]);
                if certain > p.usable[at] {
                    return Some(format!("{} of it cannot be moved away", resource.show(certain)));
                }
                let stuck = stuck(state, m);
                let kept: u64 = stuck.iter().map(|i| p.demand_of(*i)[r as usize]).sum();
                if let Some(largest) = stuck.iter().max_by_key(|i| p.demand_of(**i)[r as usize])
                    && certain.saturating_add(kept) > p.usable[at]
                {
                    return Some(format!(
                        "{} cannot be moved away: {}",
                        p.instances[*largest].workload.id,
                        why::no_room(state, *largest, true)
                    ));
                }
                let excess = state.used[at] - p.usable[at];
                // A member may keep an overload from the beginning, which leaves room on others.
                let begin = promised_at_the_beginning(p, r);
                let free: u128 = (0..p.members.len())
                    .filter(|other| *other != m as usize)
                    .map(|other| (other * p.width() + r as usize, begin[other]))
                    .map(|(at, begin)| match p.usable[at] {
                        UNCOUNTED => u128::from(u64::MAX),
                        usable => usable.max(begin).saturating_sub(state.used[at]).into(),
                    })
                    .sum();
                (u128::from(excess) > free).then(|| {
                    let free = u64::try_from(free).unwrap_or(u64::MAX);
                    format!(
                        "{} must be moved away, but all other members together have only {} free",
                        resource.show(excess),
                        resource.show(free)
                    )
                })
            }
            Self::Group(g) => group_impossible(state, g),
        }
    }

    /// The obstacle in the current placement.
    fn hint(self, state: &State<'_>) -> String {
        match self {
            Self::Misplaced(i) => why::no_room(state, i as usize, false),
            Self::Overload(m, r) => {
                let p = state.p;
                let at = m as usize * p.width() + r as usize;
                let resource = &p.resources[r as usize];
                let most = (0..p.members.len())
                    .filter(|other| *other != m as usize && p.receives[*other])
                    .map(|other| (why::free(state, other, r as usize), other))
                    .max_by_key(|(free, other)| (*free, std::cmp::Reverse(*other)));
                let excess = resource.show(state.used[at] - p.usable[at]);
                match most {
                    None => format!("{excess} must be moved away, but no other member accepts instances"),
                    Some((free, other)) => format!(
                        "{excess} must be moved away, but the most that another member has free is {}, on {}",
                        resource.show(free),
                        p.members[other].name
                    ),
                }
            }
            Self::Group(g) => {
                let group = &state.p.groups[g as usize];
                let alone = group
                    .instances
                    .iter()
                    .find(|i| group.mode == GroupMode::Compact || state.mates(g, state.at[**i as usize]) > 1);
                match (group.mode, alone) {
                    (GroupMode::Spread, Some(i)) => why::no_room(state, *i as usize, false),
                    _ => "no member has room for all its instances".to_owned(),
                }
            }
        }
    }
}

/// Amount of a resource promised on each member at the beginning.
fn promised_at_the_beginning(p: &Problem<'_>, r: u32) -> Vec<u64> {
    let mut promised = vec![0; p.members.len()];
    for (i, m) in p.start.iter().enumerate() {
        promised[*m as usize] += p.demand_of(i)[r as usize];
    }
    promised
}

/// Whether a member could hold `demand` if all movable instances were moved away.
fn fits(state: &State<'_>, m: usize, demand: &[u64]) -> bool {
    let base = m * state.p.width();
    demand.iter().enumerate().all(|(r, d)| {
        *d == 0 || state.levels.certain[base + r].saturating_add(*d) <= state.p.usable[base + r]
    })
}

/// Instances that have been on a member from the beginning and could be moved if any other member were large enough.
fn stuck(state: &State<'_>, m: u32) -> Vec<usize> {
    let p = state.p;
    (0..p.instances.len())
        .filter(|i| p.start[*i] == m && state.at[*i] == m && p.fixed[*i].is_none())
        .filter(|i| {
            let enter = &p.classes[p.class[*i] as usize].enter;
            enter.iter().all(|other| other == m as usize || !fits(state, other, p.demand_of(*i)))
        })
        .collect()
}

fn group_impossible(state: &State<'_>, g: u32) -> Option<String> {
    let p = state.p;
    let group = &p.groups[g as usize];
    let fixed = || group.instances.iter().filter(|i| p.fixed[**i as usize].is_some());
    // The member it is on, or was on at the beginning: it need not have left.
    let is_there = |i: u32, m: usize| [state.at[i as usize], p.start[i as usize]].contains(&(m as u32));
    let places = |i: u32| {
        let class = &p.classes[p.class[i as usize] as usize];
        let movable = p.fixed[i as usize].is_none();
        (0..p.members.len()).filter(move |m| is_there(i, *m) || (movable && class.enter.has(*m)))
    };
    match group.mode {
        GroupMode::Spread => {
            let mut held: Vec<u32> = fixed().map(|i| state.at[*i as usize]).collect();
            held.sort_unstable();
            if let Some(twice) = held.windows(2).find(|w| w[0] == w[1]) {
                return Some(format!(
                    "two of its instances are on {} and cannot be moved",
                    p.members[twice[0] as usize].name
                ));
            }
            let mut anywhere: Vec<usize> = group.instances.iter().flat_map(|i| places(*i)).collect();
            anywhere.sort_unstable();
            anywhere.dedup();
            (anywhere.len() < group.instances.len()).then(|| {
                format!(
                    "it has {} instances, but only {} members may accept them",
                    group.instances.len(),
                    anywhere.len()
                )
            })
        }
        GroupMode::Compact => {
            let mut demand = vec![0u64; p.width()];
            for i in group.instances.iter().filter(|i| p.fixed[**i as usize].is_none()) {
                demand.iter_mut().zip(p.demand_of(*i as usize)).for_each(|(sum, d)| *sum += d);
            }
            let shared: Vec<usize> = (0..p.members.len())
                .filter(|m| group.instances.iter().all(|i| places(*i).any(|at| at == *m)))
                .collect();
            if shared.is_empty() {
                return Some("no member may accept all its instances".to_owned());
            }
            // Instances that are there already need no room, even on an overloaded member.
            let holds = |m: &usize| {
                let mut needed = demand.clone();
                for i in group.instances.iter().filter(|i| is_there(**i, *m)) {
                    if p.fixed[*i as usize].is_none() {
                        needed.iter_mut().zip(p.demand_of(*i as usize)).for_each(|(sum, d)| *sum -= d);
                    }
                }
                fits(state, *m, &needed)
            };
            (!shared.iter().any(holds)).then(|| {
                format!("no member has room for all its instances, which need {}", why::amounts(p, &demand))
            })
        }
    }
}
