//! Places a batch of new instances by the rules that plans follow.
//!
//! Owns the choice of a member for each, and the certainty of a refusal. Does not move existing instances: a batch is
//! placed on the cluster as it is.

use crate::{
    levels::{Levels, utilisation_ppm},
    plan::{Finding, Hindrance, Verdict},
    policy::{GroupMode, GroupStrength, Policy},
    problem::{self, Bits, Problem, Resource, UNCOUNTED},
    settings::{GroupId, InstanceSettings},
    snapshot::{Amounts, InstanceId, MemberName, Snapshot, SnapshotError, Workload},
    state::State,
    why,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// Limit on the choices of the exhaustive search, which runs if the greedy one leaves instances out: at most a second's
/// work.
const CHOICES: u32 = 300_000;

/// Limit on the lots in an exhaustive search: with more, the choices are used up before the first few lots are varied.
const LOTS: usize = 64;

/// A new instance with its member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placed {
    /// The instance.
    pub instance: InstanceId,
    /// The member it goes to.
    pub member: MemberName,
    /// The weighted utilisation of that member's scarcest resource after the whole batch is placed, in millionths.
    pub level_ppm: u64,
}

/// A new instance that cannot be placed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refused {
    /// The instance.
    pub instance: InstanceId,
    /// Impossible: not even alone. At odds: not together with the rest of the batch. Not found: the search was cut short.
    pub verdict: Verdict,
    /// The reason as text, with numbers.
    pub why: String,
}

/// The placement of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// Placed instances, ordered by project and name.
    pub placed: Vec<Placed>,
    /// Refused instances, ordered by project and name.
    pub refused: Vec<Refused>,
    /// Problems with settings.
    pub findings: Vec<Finding>,
}

/// Finds members for a batch of new instances.
///
/// # Errors
/// The snapshot is inconsistent, or a new instance has the name of another one.
pub fn place(snapshot: &Snapshot, policy: &Policy, batch: &[Workload]) -> Result<Placement, SnapshotError> {
    snapshot.check()?;
    let mut names: std::collections::HashSet<&InstanceId> =
        snapshot.instances.iter().map(|i| &i.workload.id).collect();
    for w in batch {
        w.check()?;
        if !names.insert(&w.id) {
            return Err(SnapshotError::Twice { what: "instance", name: w.id.to_string() });
        }
    }
    let p = Problem::new(snapshot, policy);
    let levels = Levels::new(&p);
    let state = State::new(&p, &levels, &p.start);
    Ok(Batch::new(&state, batch).run())
}

/// New instances placed as a unit: a single one, or all of a strictly compact group.
#[derive(Debug)]
struct Lot {
    /// Numbers in the batch.
    of: Vec<usize>,
    demand: Vec<u64>,
    group: Option<usize>,
    enter: Bits,
}

#[derive(Debug)]
struct Mates {
    mode: GroupMode,
    strength: GroupStrength,
    on: BTreeMap<usize, u64>,
}

struct Batch<'p> {
    p: &'p Problem<'p>,
    new: Vec<&'p Workload>,
    settings_of: Vec<InstanceSettings>,
    lots: Vec<Lot>,
    used: Vec<u64>,
    groups: Vec<Mates>,
    findings: Vec<Finding>,
}

impl<'p> Batch<'p> {
    fn new(state: &State<'p>, batch: &'p [Workload]) -> Self {
        let p = state.p;
        let mut new: Vec<&Workload> = batch.iter().collect();
        new.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        let settings_of: Vec<InstanceSettings> = new.iter().map(|w| InstanceSettings::of(w)).collect();
        let mut findings = Vec::new();
        for (w, own) in new.iter().zip(&settings_of) {
            findings.extend(own.bad.iter().map(|(key, value)| Finding::BadSetting {
                instance: w.id.clone(),
                key: (*key).to_owned(),
                value: value.clone(),
            }));
        }
        let mut batch = Self {
            p,
            new,
            settings_of,
            lots: Vec::new(),
            used: state.used.clone(),
            groups: Vec::new(),
            findings,
        };
        let group_of = batch.gather_groups();
        batch.gather_lots(&group_of);
        batch
    }

    /// Collects the groups of the new instances, including their existing instances.
    fn gather_groups(&mut self) -> Vec<Option<usize>> {
        let mut number: HashMap<&GroupId, usize> = HashMap::new();
        let group_of: Vec<Option<usize>> = self
            .settings_of
            .iter()
            .map(|own| {
                own.group.as_ref().map(|id| {
                    let next = number.len();
                    *number.entry(id).or_insert(next)
                })
            })
            .collect();
        let mut said: Vec<(Option<GroupMode>, Option<GroupStrength>)> = vec![(None, None); number.len()];
        let mut on: Vec<BTreeMap<usize, u64>> = vec![BTreeMap::new(); number.len()];
        let mut note = |g: usize, own: &InstanceSettings| {
            said[g].0 = [said[g].0, own.mode].into_iter().flatten().min();
            said[g].1 = [said[g].1, own.strength].into_iter().flatten().min();
        };
        for (own, g) in self.settings_of.iter().zip(&group_of) {
            if let Some(g) = g {
                note(*g, own);
            }
        }
        for group in &self.p.groups {
            let Some(g) = number.get(&group.id) else { continue };
            for i in &group.instances {
                note(*g, &InstanceSettings::of(&self.p.instances[*i as usize].workload));
                *on[*g].entry(self.p.start[*i as usize] as usize).or_default() += 1;
            }
        }
        let default = self.p.policy.group;
        self.groups = said
            .into_iter()
            .zip(on)
            .map(|((mode, strength), on)| Mates {
                mode: mode.unwrap_or(default.mode),
                strength: strength.unwrap_or(default.strength),
                on,
            })
            .collect();
        group_of
    }

    fn gather_lots(&mut self, group_of: &[Option<usize>]) {
        let p = self.p;
        let (classes, class) =
            problem::classes(p.policy, &p.members, self.new.iter().copied().zip(self.settings_of.iter()));
        let mut whole: HashMap<usize, usize> = HashMap::new();
        for (n, w) in self.new.iter().enumerate() {
            let asked = p.policy.asked(w, Amounts::default());
            let demand: Vec<u64> = p
                .resources
                .iter()
                .map(|r| match r {
                    Resource::Memory => asked.memory_mib,
                    Resource::Cpu => asked.cpu_milli,
                    Resource::Disk(pool) => w.disk_mib.get(pool).copied().unwrap_or(0),
                })
                .collect();
            let enter = &classes[class[n] as usize].enter;
            let strict = |g: &usize| {
                (self.groups[*g].mode, self.groups[*g].strength)
                    == (GroupMode::Compact, GroupStrength::Strict)
            };
            if let Some(g) = group_of[n].filter(strict) {
                if let Some(lot) = whole.get(&g) {
                    let lot: &mut Lot = &mut self.lots[*lot];
                    lot.of.push(n);
                    lot.demand.iter_mut().zip(&demand).for_each(|(sum, d)| *sum += d);
                    lot.enter = lot.enter.and(enter);
                    continue;
                }
                whole.insert(g, self.lots.len());
            }
            self.lots.push(Lot { of: vec![n], demand, group: group_of[n], enter: enter.clone() });
        }
        let largest: Vec<u64> = (0..p.width())
            .map(|r| (0..p.members.len()).map(|m| p.usable[m * p.width() + r]).max().unwrap_or(0))
            .collect();
        let size = |lot: &Lot| lot.demand.iter().zip(&largest).map(|(d, l)| utilisation_ppm(*d, *l)).max();
        self.lots.sort_by_key(|lot| (std::cmp::Reverse(size(lot)), lot.of[0]));
    }

    /// Whether a member can accept a lot now.
    fn takes(&self, lot: &Lot, m: usize) -> bool {
        lot.enter.has(m) && self.has_room(lot, m) && self.group_allows(lot, m)
    }

    fn has_room(&self, lot: &Lot, m: usize) -> bool {
        let base = m * self.p.width();
        lot.demand
            .iter()
            .enumerate()
            .all(|(r, d)| *d == 0 || self.used[base + r].saturating_add(*d) <= self.p.usable[base + r])
    }

    fn group_allows(&self, lot: &Lot, m: usize) -> bool {
        let Some(mates) = lot.group.map(|g| &self.groups[g]) else { return true };
        match (mates.strength, mates.mode) {
            (GroupStrength::Preferred, _) => true,
            (GroupStrength::Strict, GroupMode::Spread) => !mates.on.contains_key(&m),
            (GroupStrength::Strict, GroupMode::Compact) => mates.on.keys().all(|at| *at == m),
        }
    }

    /// Order of candidate members: by the group's mode, the scarcest resource, all resources, the name.
    fn score(&self, lot: &Lot, m: usize) -> (i64, u64, u64, usize) {
        let pairs = lot.group.map_or(0, |g| {
            let mates = &self.groups[g];
            let there = i64::try_from(mates.on.get(&m).copied().unwrap_or(0)).unwrap_or(i64::MAX);
            match mates.mode {
                GroupMode::Spread => there,
                GroupMode::Compact => -there,
            }
        });
        let (scarcest, all) = self.level(lot, m);
        (pairs, scarcest, all, m)
    }

    /// Weighted utilisation of a member with the lot: of the scarcest resource, and the sum. Only the lot's pools count.
    fn level(&self, lot: &Lot, m: usize) -> (u64, u64) {
        let (p, base) = (self.p, m * self.p.width());
        let w = p.policy.weight_percent;
        let mut levels = (0, 0u64);
        for (r, resource) in p.resources.iter().enumerate() {
            let weight = match resource {
                Resource::Memory => w.memory,
                Resource::Cpu => w.cpu,
                Resource::Disk(pool) if self.new[lot.of[0]].disk_mib.contains_key(pool) => w.disk,
                Resource::Disk(_) => continue,
            };
            let usable = p.usable[base + r];
            if usable == UNCOUNTED {
                continue;
            }
            let ppm = utilisation_ppm(self.used[base + r] + lot.demand[r], usable);
            let level = u64::try_from(u128::from(weight) * u128::from(ppm) / 100).unwrap_or(u64::MAX);
            levels = (levels.0.max(level), levels.1.saturating_add(level));
        }
        levels
    }

    fn put(&mut self, lot: usize, m: usize, back: bool) {
        let (width, lot) = (self.p.width(), &self.lots[lot]);
        for (r, d) in lot.demand.iter().enumerate() {
            let used = &mut self.used[m * width + r];
            *used = if back { *used - d } else { *used + d };
        }
        if let Some(g) = lot.group {
            let (on, n) = (&mut self.groups[g].on, lot.of.len() as u64);
            let there = on.entry(m).or_default();
            *there = if back { *there - n } else { *there + n };
            if *there == 0 {
                on.remove(&m);
            }
        }
    }

    fn run(mut self) -> Placement {
        let members = self.p.members.len();
        // Each lot alone on the cluster as it is.
        let alone: Vec<bool> = self.lots.iter().map(|lot| (0..members).any(|m| self.takes(lot, m))).collect();
        let placeable: Vec<usize> = (0..self.lots.len()).filter(|n| alone[*n]).collect();
        let mut at: Vec<Option<usize>> = vec![None; self.lots.len()];
        for n in &placeable {
            let lot = &self.lots[*n];
            let best = (0..members).filter(|m| self.takes(lot, *m)).min_by_key(|m| self.score(lot, *m));
            if let Some(m) = best {
                self.put(*n, m, false);
                at[*n] = Some(m);
            }
        }
        let mut verdict = Verdict::AtOdds;
        if placeable.iter().any(|n| at[*n].is_none()) {
            let greedy = at.clone();
            self.take_back(&at);
            at.fill(None);
            let mut choices = if placeable.len() <= LOTS { CHOICES } else { 0 };
            if choices == 0 || !self.all(&placeable, &mut at, &mut choices) {
                if choices == 0 {
                    verdict = Verdict::NotFound;
                }
                at = greedy;
                for (n, m) in at.iter().enumerate() {
                    if let Some(m) = m {
                        self.put(n, *m, false);
                    }
                }
            }
        }
        self.result(&at, &alone, verdict)
    }

    fn take_back(&mut self, at: &[Option<usize>]) {
        for (n, m) in at.iter().enumerate() {
            if let Some(m) = m {
                self.put(n, *m, true);
            }
        }
    }

    /// Places all of these lots by exhaustive search, while there are choices left.
    fn all(&mut self, lots: &[usize], at: &mut [Option<usize>], choices: &mut u32) -> bool {
        let Some((first, rest)) = lots.split_first() else { return true };
        let lot = &self.lots[*first];
        let mut places: Vec<_> =
            (0..self.p.members.len()).filter(|m| self.takes(lot, *m)).map(|m| self.score(lot, m)).collect();
        places.sort_unstable();
        for (_, _, _, m) in places {
            if *choices == 0 {
                return false;
            }
            *choices -= 1;
            self.put(*first, m, false);
            at[*first] = Some(m);
            if self.all(rest, at, choices) {
                return true;
            }
            self.put(*first, m, true);
            at[*first] = None;
        }
        false
    }

    fn result(mut self, at: &[Option<usize>], alone: &[bool], together: Verdict) -> Placement {
        let (mut placed, mut refused) = (Vec::new(), Vec::new());
        // Explain lots that cannot be placed even alone without counting the batch.
        let with_batch = self.used.clone();
        for (n, lot) in self.lots.iter().enumerate() {
            if let Some(m) = at[n] {
                // The lot is counted on its member already.
                let level_ppm = self
                    .level(
                        &Lot {
                            demand: vec![0; lot.demand.len()],
                            of: lot.of.clone(),
                            group: None,
                            enter: Bits::default(),
                        },
                        m,
                    )
                    .0;
                placed.extend(lot.of.iter().map(|i| Placed {
                    instance: self.new[*i].id.clone(),
                    member: self.p.members[m].name.clone(),
                    level_ppm,
                }));
            }
        }
        self.take_back(at);
        for (n, lot) in self.lots.iter().enumerate() {
            if at[n].is_none() {
                let (verdict, used) = match alone[n] {
                    true => (together, &with_batch),
                    false => (Verdict::Impossible, &self.used),
                };
                let why = self.why(lot, used, alone[n]);
                refused.extend(lot.of.iter().map(|i| Refused {
                    instance: self.new[*i].id.clone(),
                    verdict,
                    why: why.clone(),
                }));
            }
        }
        placed.sort_unstable_by(|a, b| a.instance.cmp(&b.instance));
        refused.sort_unstable_by(|a, b| a.instance.cmp(&b.instance));
        Placement { placed, refused, findings: self.findings }
    }

    /// Why no member can accept a lot when the amounts `used` are promised.
    fn why(&self, lot: &Lot, used: &[u64], alone: bool) -> String {
        let p = self.p;
        let (w, roles) = (self.new[lot.of[0]], &self.settings_of[lot.of[0]].roles);
        let mut reasons: BTreeMap<Hindrance, Vec<&str>> = BTreeMap::new();
        let mut open = Vec::new();
        for (m, member) in p.members.iter().enumerate() {
            let first = problem::hindrances(p.policy, member, w, roles).into_iter().next();
            match first.or_else(|| problem::closed(member, w)) {
                Some(why) => reasons.entry(why).or_default().push(&member.name.0),
                None => open.push(m),
            }
        }
        let free = |m: usize, r: usize| match p.usable[m * p.width() + r] {
            UNCOUNTED => UNCOUNTED,
            usable => usable.saturating_sub(used[m * p.width() + r]),
        };
        let strict = lot.group.map(|g| &self.groups[g]).filter(|g| g.strength == GroupStrength::Strict);
        let why = match (why::lacking(p, &open, &lot.demand, &free), strict) {
            _ if open.is_empty() => "no member may accept it".to_owned(),
            (Some(lacking), _) => lacking,
            (None, Some(Mates { mode: GroupMode::Spread, .. })) => {
                "every member with room already has an instance of its strictly spread group".to_owned()
            }
            (None, Some(Mates { on, .. })) if on.len() > 1 => {
                "its strictly compact group is on several members".to_owned()
            }
            (None, Some(_)) => "the member of its strictly compact group has no room".to_owned(),
            (None, None) => "no member has room".to_owned(),
        };
        let batch = if alone { " once the rest of the batch is placed" } else { "" };
        format!("{why}{batch}{}", why::hindered(&reasons))
    }
}
