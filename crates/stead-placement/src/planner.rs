//! Computes a plan from a snapshot and a policy.
//!
//! Owns the order of the phases, and the guarantee that a second plan after the first has no moves. Does not own the
//! phases.

use crate::{
    audit::{Breach, breaches},
    balance::Balance,
    exact::{self, Exact},
    levels::{Levels, utilisation_ppm},
    plan::{GroupReport, Imbalance, Move, Plan, Reason, Refusal, Report, Verdict},
    policy::Policy,
    problem::{Problem, UNCOUNTED},
    repair, schedule,
    snapshot::{Snapshot, SnapshotError},
    state::{State, Step},
};
use std::collections::BTreeSet;

/// Limit on the rounds through all phases. Each round starts from the result of the last; usually the second changes
/// nothing.
const ROUNDS: usize = 32;

/// How many end points are tried when a plan is cut to `max_moves`: after each of its last moves.
const LAST: usize = 64;

/// Computes a plan.
///
/// # Errors
/// The snapshot is inconsistent.
pub fn plan(snapshot: &Snapshot, policy: &Policy) -> Result<Plan, SnapshotError> {
    snapshot.check()?;
    let p = Problem::new(snapshot, policy);
    let levels = Levels::new(&p);
    Ok(Planner { p: &p, levels: &levels, begin: Vec::new(), exact: None }.run())
}

/// Context of a planning run.
#[derive(Debug)]
struct Planner<'p> {
    p: &'p Problem<'p>,
    levels: &'p Levels,
    /// The violations at the beginning.
    begin: Vec<Breach>,
    /// Result of the exhaustive search from the beginning.
    exact: Option<Exact>,
}

impl<'p> Planner<'p> {
    fn run(mut self) -> Plan {
        let p = self.p;
        let state = State::new(p, self.levels, &p.start);
        self.begin = breaches(&state);
        let mut at = p.start.clone();
        let mut balance = Balance::new(&state);
        let mut journal: Vec<Step> = Vec::new();
        for round in 0..ROUNDS {
            let mut state = State::new(p, self.levels, &at);
            self.round(&mut state, &mut balance, round == 0);
            if state.at == at {
                state.journal = self.begun_anew(&at);
                state.journal.iter().for_each(|(i, _, to)| state.at[*i as usize] = *to);
            }
            let settled = state.at == at;
            at.clone_from(&state.at);
            journal.append(&mut state.journal);
            if settled {
                break;
            }
        }
        let direct = schedule::schedule(&mut State::new(p, self.levels, &p.start), &at);
        // The planner's own sequence of moves is always possible.
        let mut steps =
            direct.unwrap_or_else(|| schedule::shorten(&mut State::new(p, self.levels, &p.start), journal));
        if let Some(most) = p.policy.max_moves {
            self.cut(&mut steps, most);
        }
        self.report(&steps)
    }

    /// The moves of a plan that begins at this placement: instances that were moved may now be tied to their members.
    fn begun_anew(&self, at: &[u32]) -> Vec<Step> {
        let p = self.p.begun_at(at);
        let mut state = State::new(&p, self.levels, at);
        let begin = breaches(&state);
        let mut balance = Balance::new(&state);
        Planner { p: &p, levels: self.levels, begin, exact: None }.round(&mut state, &mut balance, false);
        state.journal
    }

    fn round(&mut self, state: &mut State<'p>, balance: &mut Balance, first: bool) {
        let begin = state.at.clone();
        if !breaches(state).is_empty() {
            repair::repair(state);
            let left = breaches(state);
            // A later round would not find more.
            if first && !left.is_empty() {
                let mut small = State::new(self.p, self.levels, &begin);
                if let Some(exact) = exact::search(&mut small) {
                    let amount = |state: &State<'_>, left: &[Breach]| -> (usize, u64) {
                        (left.len(), left.iter().map(|a| a.amount(state)).sum())
                    };
                    exact.path.iter().for_each(|(i, _, to)| small.go(*i, *to));
                    if amount(&small, &exact.left) < amount(state, &left) {
                        *state = small;
                    }
                    self.exact = Some(exact);
                }
            }
        }
        repair::prefer(state);
        balance.resume(state);
        balance.run(state);
        balance.prune(state);
    }

    /// Cuts the plan to at most `most` moves, and to fewer if fewer are as good.
    fn cut(&self, steps: &mut Vec<Step>, most: usize) {
        if steps.len() <= most {
            return;
        }
        steps.truncate(most);
        let mut state = State::new(self.p, self.levels, &self.p.start);
        let mut gauge = Gauge::new(&state);
        let mut best = (self.goodness(&state, &gauge), 0);
        for n in 0..steps.len() {
            let (i, from, to) = steps[n];
            state.put(i, to);
            gauge.update(&state, [from, to]);
            if n + LAST >= steps.len() && self.is_no_worse(&state) {
                best = best.min((self.goodness(&state, &gauge), n + 1));
            }
        }
        steps.truncate(best.1);
    }

    /// Whether there is no new or larger violation than at the beginning: a strictly compact group may be split in the
    /// middle of a plan, but not at its end.
    fn is_no_worse(&self, state: &State<'_>) -> bool {
        let begin = State::new(self.p, self.levels, &self.p.start);
        breaches(state).into_iter().all(|a| self.begin.contains(&a) && a.amount(state) <= a.amount(&begin))
    }

    fn goodness(&self, state: &State<'_>, gauge: &Gauge) -> (usize, u64, u64, u64) {
        let left = breaches(state);
        let pairs = (0..self.p.groups.len() as u32).map(|g| state.violating_pairs(g)).sum();
        (left.len(), left.iter().map(|a| a.amount(state)).sum(), pairs, gauge.imbalance_ppm())
    }

    fn report(&self, steps: &[Step]) -> Plan {
        let p = self.p;
        let mut state = State::new(p, self.levels, &p.start);
        let violations = self.begin.iter().map(|a| a.violation(&state)).collect();
        let pairs = |state: &State<'_>| -> Vec<u64> {
            (0..p.groups.len() as u32).map(|g| state.violating_pairs(g)).collect()
        };
        let pairs_before = pairs(&state);
        let mut gauge = Gauge::new(&state);
        let before_ppm = gauge.imbalance_ppm();
        let after = schedule::dependencies(steps);
        let mut moves = Vec::with_capacity(steps.len());
        for ((i, from, to), after) in steps.iter().zip(after) {
            let n = *i as usize;
            let reasons = self.reasons(&state, *i, *from, *to);
            let (before, from_before, to_before) =
                (gauge.imbalance_ppm(), level_ppm(&state, *from), level_ppm(&state, *to));
            state.put(*i, *to);
            gauge.update(&state, [*from, *to]);
            moves.push(Move {
                instance: p.instances[n].workload.id.clone(),
                from: p.members[*from as usize].name.clone(),
                to: p.members[*to as usize].name.clone(),
                downtime: p.downtime(n),
                size_mib: p.instances[n].size_mib,
                at_least_mib: p.instances[n].at_least_mib,
                reasons,
                imbalance_before_ppm: before,
                imbalance_after_ppm: gauge.imbalance_ppm(),
                from_level_ppm: (from_before, level_ppm(&state, *from)),
                to_level_ppm: (to_before, level_ppm(&state, *to)),
                after,
            });
        }
        let refusals = breaches(&state).into_iter().map(|a| self.refusal(&state, a, steps.len())).collect();
        let groups = pairs_before
            .into_iter()
            .zip(pairs(&state))
            .zip(&p.groups)
            .filter(|((before, after), _)| before + after > 0)
            .map(|((pairs_before, pairs_after), g)| GroupReport {
                group: g.id.clone(),
                mode: g.mode,
                strength: g.strength,
                pairs_before,
                pairs_after,
            })
            .collect();
        let after_ppm = gauge.imbalance_ppm();
        let bound_ppm = self.levels.bound_ppm(p);
        Plan {
            moves,
            report: Report {
                imbalance: Imbalance { before_ppm, after_ppm, bound_ppm },
                violations,
                refusals,
                groups,
                findings: p.findings.clone(),
            },
        }
    }

    fn refusal(&self, state: &State<'_>, breach: Breach, moves: usize) -> Refusal {
        let proof = self.exact.as_ref().map(|exact| match exact.repairable.contains(&breach) {
            true => Verdict::AtOdds,
            false => Verdict::Impossible,
        });
        let mut refusal = breach.refusal(state, proof);
        if refusal.verdict != Verdict::Impossible && self.p.policy.max_moves.is_some_and(|most| moves >= most)
        {
            refusal.verdict = Verdict::NotFound;
            refusal.why = format!("the plan has reached max_moves; {}", refusal.why);
        }
        refusal
    }

    /// The purposes of a move.
    fn reasons(&self, state: &State<'_>, i: u32, from: u32, to: u32) -> Vec<Reason> {
        let p = self.p;
        let demand = p.demand_of(i as usize);
        let mut reasons = Vec::new();
        if repair::is_misplaced(state, i as usize) {
            reasons.push(Reason::Misplaced);
        }
        for (r, d) in demand.iter().enumerate() {
            let at = from as usize * p.width() + r;
            if *d > 0 && state.used[at] > p.usable[at] {
                reasons.push(Reason::Overload(p.resources[r].clone()));
            }
        }
        if let Some((_, group)) = state.group_of(i).filter(|_| state.pairs_change(i, to) < 0) {
            reasons.push(Reason::Group(group.id.clone()));
        }
        let imbalance = |m: u32, used: &[u64]| self.levels.imbalance_ppm(p, m as usize, used);
        let less: Vec<u64> = state.used_of(from as usize).iter().zip(demand).map(|(u, d)| u - d).collect();
        let more: Vec<u64> = state.used_of(to as usize).iter().zip(demand).map(|(u, d)| u + d).collect();
        let now =
            imbalance(from, state.used_of(from as usize)).max(imbalance(to, state.used_of(to as usize)));
        if imbalance(from, &less).max(imbalance(to, &more)) < now {
            reasons.push(Reason::Balance);
        }
        if reasons.is_empty() {
            reasons.push(Reason::MakesRoom);
        }
        reasons
    }
}

/// Utilisation of a member's scarcest resource, in millionths.
fn level_ppm(state: &State<'_>, m: u32) -> u64 {
    let usable = state.p.usable_of(m as usize).iter();
    usable
        .zip(state.used_of(m as usize))
        .filter(|(usable, _)| **usable != UNCOUNTED)
        .map(|(usable, used)| utilisation_ppm(*used, *usable))
        .max()
        .unwrap_or(0)
}

/// Tracks the imbalance of a changing placement.
#[derive(Debug)]
struct Gauge {
    of: Vec<u64>,
    largest: BTreeSet<(u64, u32)>,
}

impl Gauge {
    fn new(state: &State<'_>) -> Self {
        let of: Vec<u64> = (0..state.p.members.len())
            .map(|m| state.levels.imbalance_ppm(state.p, m, state.used_of(m)))
            .collect();
        let largest = of.iter().enumerate().map(|(m, of)| (*of, m as u32)).collect();
        Self { of, largest }
    }

    fn update(&mut self, state: &State<'_>, members: [u32; 2]) {
        for m in members {
            let now = state.levels.imbalance_ppm(state.p, m as usize, state.used_of(m as usize));
            self.largest.remove(&(self.of[m as usize], m));
            self.largest.insert((now, m));
            self.of[m as usize] = now;
        }
    }

    fn imbalance_ppm(&self) -> u64 {
        self.largest.last().map_or(crate::levels::PPM as u64, |(of, _)| *of)
    }
}
