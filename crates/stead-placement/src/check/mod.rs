//! Checks a plan move by move against the snapshot, without knowing how it was made.
//!
//! Owns a second implementation of the rules in docs/placement.md; it shares types with the planner but no code. Does not
//! judge whether a better plan exists.

mod even;

use crate::{
    plan::{GroupReport, Hindrance, Move, Plan, Reason, Violation},
    policy::{Downtime, GroupMode, GroupStrength, Policy, Stopped},
    problem::Resource,
    settings::{self, GroupId},
    snapshot::{Instance, InstanceId, InstanceKind, Member, MemberState, Migration, Schedulable, Snapshot},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// A fault in a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Number of the move, from 0; none for a fault in the report.
    pub at: Option<usize>,
    /// Description of the fault.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Some(n) => write!(f, "move {}: {}", n + 1, self.what),
            None => write!(f, "report: {}", self.what),
        }
    }
}

/// The cluster during the check.
struct World<'a> {
    policy: &'a Policy,
    members: BTreeMap<&'a str, &'a Member>,
    instances: BTreeMap<&'a InstanceId, &'a Instance>,
    place: BTreeMap<&'a InstanceId, &'a str>,
    start: BTreeMap<&'a InstanceId, &'a str>,
    on: BTreeMap<&'a str, BTreeSet<&'a InstanceId>>,
    resources: Vec<Resource>,
    groups: BTreeMap<GroupId, Rule<'a>>,
}

struct Rule<'a> {
    mode: GroupMode,
    strength: GroupStrength,
    instances: Vec<&'a InstanceId>,
}

/// Checks a plan against its snapshot and policy.
///
/// # Errors
/// All faults of the plan.
pub fn check(snapshot: &Snapshot, policy: &Policy, plan: &Plan) -> Result<(), Vec<Fault>> {
    let mut faults = Vec::new();
    if let Err(error) = snapshot.check() {
        return Err(vec![Fault { at: None, what: error.to_string() }]);
    }
    let mut world = World::new(snapshot, policy);
    let even = even::Even::new(&world);
    let begin = world.violations();
    let pairs_begin = world.pairs();
    let mut each: BTreeMap<&str, u64> =
        snapshot.members.iter().map(|m| (m.name.0.as_str(), even.member_ppm(&world, &m.name.0))).collect();
    let worst = |each: &BTreeMap<&str, u64>| each.values().max().copied().unwrap_or(even::MILLION as u64);
    let mut now = worst(&each);
    let begin_ppm = now;
    for (n, step) in plan.moves.iter().enumerate() {
        let mut wrong = |what: String| faults.push(Fault { at: Some(n), what });
        let Some(ready) = world.ready(step, &mut wrong) else { return Err(faults) };
        world.after(&plan.moves[..n], step, &mut wrong);
        let reasons = world.reasons(step, &even);
        if step.reasons != reasons {
            wrong(format!("its reasons should be {reasons:?}, not {:?}", step.reasons));
        }
        let levels = |world: &World<'_>| (world.level_ppm(&step.from.0), world.level_ppm(&step.to.0));
        let before = levels(&world);
        let before_ppm = now;
        world.carry(ready, step);
        let after = levels(&world);
        for m in [&step.from.0, &step.to.0] {
            each.entry(m).and_modify(|of| *of = even.member_ppm(&world, m));
        }
        now = worst(&each);
        if (step.imbalance_before_ppm, step.imbalance_after_ppm) != (before_ppm, now) {
            wrong(format!(
                "imbalance goes from {before_ppm} to {now}, not from {} to {}",
                step.imbalance_before_ppm, step.imbalance_after_ppm
            ));
        }
        if (step.from_level_ppm, step.to_level_ppm) != ((before.0, after.0), (before.1, after.1)) {
            wrong("its utilisation levels are wrong".to_owned());
        }
    }
    world.report(plan, &begin, &pairs_begin, (begin_ppm, now), &mut |what| {
        faults.push(Fault { at: None, what })
    });
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

impl<'a> World<'a> {
    fn new(snapshot: &'a Snapshot, policy: &'a Policy) -> Self {
        let members: BTreeMap<&str, &Member> =
            snapshot.members.iter().map(|m| (m.name.0.as_str(), m)).collect();
        let instances: BTreeMap<&InstanceId, &Instance> =
            snapshot.instances.iter().map(|i| (&i.workload.id, i)).collect();
        let place: BTreeMap<&InstanceId, &str> =
            instances.iter().map(|(id, i)| (*id, i.member.0.as_str())).collect();
        let mut on: BTreeMap<&str, BTreeSet<&InstanceId>> = BTreeMap::new();
        for (id, m) in &place {
            on.entry(m).or_default().insert(id);
        }
        let mut pools = BTreeSet::new();
        for m in members.values() {
            pools.extend(m.pools_mib.iter().filter(|(_, size)| size.is_some()).map(|(pool, _)| pool.clone()));
        }
        let mut resources = vec![Resource::Memory, Resource::Cpu];
        resources.extend(pools.into_iter().map(Resource::Disk));
        let mut groups: BTreeMap<GroupId, Rule<'_>> = BTreeMap::new();
        for (id, i) in &instances {
            let said = |key: &str| i.workload.settings.get(key).map(String::as_str);
            let Some(name) = said(settings::GROUP).filter(|name| (1..=63).contains(&name.len())) else {
                continue;
            };
            let group =
                groups.entry(GroupId { project: id.project.clone(), name: name.to_owned() }).or_insert_with(
                    || Rule { mode: policy.group.mode, strength: policy.group.strength, instances: vec![] },
                );
            group.instances.push(id);
        }
        for rule in groups.values_mut() {
            let says = |key: &str, value: &str| {
                rule.instances
                    .iter()
                    .any(|id| instances[*id].workload.settings.get(key).is_some_and(|said| said == value))
            };
            rule.mode = match (says(settings::GROUP_MODE, "spread"), says(settings::GROUP_MODE, "compact")) {
                (true, _) => GroupMode::Spread,
                (false, true) => GroupMode::Compact,
                (false, false) => policy.group.mode,
            };
            let (strict, preferred) =
                (says(settings::GROUP_STRENGTH, "strict"), says(settings::GROUP_STRENGTH, "preferred"));
            rule.strength = match (strict, preferred) {
                (true, _) => GroupStrength::Strict,
                (false, true) => GroupStrength::Preferred,
                (false, false) => policy.group.strength,
            };
        }
        Self { policy, members, instances, start: place.clone(), place, on, resources, groups }
    }

    /// Amount of a resource committed to an instance.
    fn demand(&self, id: &InstanceId, resource: &Resource) -> u64 {
        let i = self.instances[id];
        let idle = !i.running && !i.resumes;
        if !matches!(resource, Resource::Disk(_)) && idle && self.policy.stopped == Stopped::Ignore {
            return 0;
        }
        let asked = self.policy.asked(&i.workload, i.measured);
        match resource {
            Resource::Memory => asked.memory_mib,
            Resource::Cpu => asked.cpu_milli,
            Resource::Disk(pool) => i.workload.disk_mib.get(pool).copied().unwrap_or_default(),
        }
    }

    /// Amount of a resource promised on a member, summed from its instances.
    fn promised(&self, member: &str, resource: &Resource) -> u64 {
        self.on.get(member).into_iter().flatten().map(|id| self.demand(id, resource)).sum()
    }

    /// Amount of a resource that a member can promise; none if it is not counted.
    fn usable(&self, member: &str, resource: &Resource) -> Option<u64> {
        let (m, ratio) = (self.members[member], self.policy.overcommit_percent);
        if m.state == MemberState::Offline {
            return None;
        }
        let (has, percent) = match resource {
            Resource::Memory => (m.memory_mib, ratio.memory),
            Resource::Cpu => (m.cpu_milli, ratio.cpu),
            Resource::Disk(pool) => match m.pools_mib.get(pool) {
                None | Some(None) => return None,
                Some(Some(size)) => (*size, ratio.disk),
            },
        };
        Some(has * u64::from(percent) / 100)
    }

    /// Utilisation of a member's scarcest resource, in millionths.
    fn level_ppm(&self, member: &str) -> u64 {
        let levels = self.resources.iter().filter_map(|r| {
            let usable = self.usable(member, r).filter(|u| *u > 0)?;
            Some(u128::from(self.promised(member, r)) * 1_000_000 / u128::from(usable))
        });
        levels.max().map_or(0, |level| u64::try_from(level).unwrap_or(u64::MAX))
    }

    fn drained(&self, member: &str) -> bool {
        self.policy.drain.iter().any(|m| m.0 == member)
    }

    fn roles(&self, id: &InstanceId) -> BTreeSet<&'a str> {
        let text = self.instances[id].workload.settings.get(settings::ROLES).map_or("", String::as_str);
        text.split(',').map(str::trim).filter(|role| !role.is_empty()).collect()
    }

    /// Why an instance should not be on a member.
    fn hindrances(&self, id: &InstanceId, member: &str) -> Vec<Hindrance> {
        let (w, m) = (&self.instances[id].workload, self.members[member]);
        let mut why = Vec::new();
        if !m.architectures.contains(&w.architecture) {
            why.push(Hindrance::Architecture(w.architecture.clone()));
        }
        if w.kind == InstanceKind::VirtualMachine && !m.virtual_machines {
            why.push(Hindrance::VirtualMachines);
        }
        if let Some(group) = &w.cluster_group
            && !m.cluster_groups.contains(group)
        {
            why.push(Hindrance::ClusterGroup(group.clone()));
        }
        for role in self.roles(id) {
            if !m.roles.contains(role) {
                why.push(Hindrance::RoleMissing(role.to_owned()));
            }
        }
        for role in &self.policy.avoid_roles {
            if m.roles.contains(role) {
                why.push(Hindrance::RoleAvoided(role.clone()));
            }
        }
        for pool in w.disk_mib.keys() {
            if !m.pools_mib.contains_key(pool) {
                why.push(Hindrance::Pool(pool.clone()));
            }
        }
        for network in &w.networks {
            if !m.networks.contains(network) {
                why.push(Hindrance::Network(network.clone()));
            }
        }
        if self.drained(member) {
            why.push(Hindrance::Drained);
        }
        if let Some((_, bar)) = w.barred.iter().find(|(name, _)| name.0 == member) {
            why.push(Hindrance::Barred(bar.clone()));
        }
        why
    }

    /// Whether a member may accept an instance, regardless of room and groups.
    fn enters(&self, id: &InstanceId, member: &str) -> bool {
        let (w, m) = (&self.instances[id].workload, self.members[member]);
        let open = match m.schedulable {
            Schedulable::All => true,
            Schedulable::Group => w.cluster_group.as_ref().is_some_and(|g| m.cluster_groups.contains(g)),
            Schedulable::Manual => false,
        };
        m.state == MemberState::Online && open && self.hindrances(id, member).is_empty()
    }

    /// Whether an instance must leave the member it started on.
    fn must_leave(&self, id: &InstanceId) -> bool {
        let member = self.start[id];
        let m = self.members[member];
        let ours = m.state == MemberState::Online && m.schedulable != Schedulable::Manual;
        self.drained(member) || (ours && !self.hindrances(id, member).is_empty())
    }

    fn downtime(&self, id: &InstanceId) -> Downtime {
        let i = self.instances[id];
        match (i.running, i.migration) {
            (false, _) | (true, Migration::Live) => Downtime::None,
            (true, Migration::Refresh) => Downtime::Short,
            (true, Migration::Stopped | Migration::Never) => Downtime::Full,
        }
    }

    /// Whether an instance may be moved at all.
    fn movable(&self, id: &InstanceId) -> bool {
        let i = self.instances[id];
        let m = self.members[self.start[id]];
        let pin = i.workload.settings.get(settings::PIN).map_or("", String::as_str);
        let drained = self.drained(&m.name.0);
        // What its owner or the engine forbids.
        let live = i.migration == Migration::Live;
        let harmed =
            i.running && !live && (i.ephemeral || i.evacuation == crate::snapshot::Evacuation::LiveOnly);
        let stays = i.evacuation == crate::snapshot::Evacuation::Stop;
        let reachable = m.state == MemberState::Online || (m.state == MemberState::Evacuated && drained);
        !i.pinned
            && !harmed
            && !stays
            && matches!(pin, "" | "false" | "0" | "no" | "off")
            && i.migration != Migration::Never
            && reachable
            && (m.schedulable != Schedulable::Manual || drained)
            && self.downtime(id) <= self.policy.downtime
            && (self.must_leave(id) || self.enters(id, &m.name.0))
    }

    /// The group of an instance.
    fn group(&self, id: &InstanceId) -> Option<(&GroupId, &Rule<'a>)> {
        self.groups.iter().find(|(g, rule)| g.project == id.project && rule.instances.contains(&id))
    }

    fn pairs_of(&self, rule: &Rule<'_>) -> u64 {
        let mut pairs = 0;
        for (n, a) in rule.instances.iter().enumerate() {
            for b in &rule.instances[n + 1..] {
                let together = self.place[*a] == self.place[*b];
                pairs += u64::from(together == (rule.mode == GroupMode::Spread));
            }
        }
        pairs
    }

    fn pairs(&self) -> BTreeMap<GroupId, u64> {
        self.groups.iter().map(|(g, rule)| (g.clone(), self.pairs_of(rule))).collect()
    }

    fn violations(&self) -> Vec<Violation> {
        let mut all = Vec::new();
        for (id, place) in &self.place {
            if self.must_leave(id) && *place == self.start[*id] {
                all.push(Violation::Misplaced {
                    instance: (*id).clone(),
                    member: self.members[place].name.clone(),
                    why: self.hindrances(id, place),
                });
            }
        }
        for (name, m) in &self.members {
            for resource in &self.resources {
                let promised = self.promised(name, resource);
                if let Some(usable) = self.usable(name, resource).filter(|usable| promised > *usable) {
                    let (member, resource) = (m.name.clone(), resource.clone());
                    all.push(Violation::Overload { member, resource, promised, usable });
                }
            }
        }
        for (group, rule) in self.groups.iter().filter(|(_, rule)| rule.strength == GroupStrength::Strict) {
            let pairs = self.pairs_of(rule);
            if pairs > 0 {
                all.push(Violation::Group { group: group.clone(), mode: rule.mode, pairs });
            }
        }
        all
    }

    /// Checks that a move is possible now; returns its instance and target, or none if the check cannot go on.
    fn ready(&self, step: &Move, wrong: &mut impl FnMut(String)) -> Option<(&'a InstanceId, &'a str)> {
        let (Some((id, i)), Some((to, _))) =
            (self.instances.get_key_value(&step.instance), self.members.get_key_value(step.to.0.as_str()))
        else {
            wrong(format!("{} or {} does not exist", step.instance, step.to));
            return None;
        };
        let from = self.place[*id];
        if step.from.0 != from || from == *to {
            wrong(format!("it moves {id} from {} to {to}, but {id} is on {from}", step.from));
            return None;
        }
        if !self.movable(id) {
            wrong(format!("{id} cannot or may not be moved"));
        }
        if !self.enters(id, to) {
            wrong(format!("{to} may not accept {id}"));
        }
        if (step.downtime, step.size_mib, step.at_least_mib)
            != (self.downtime(id), i.size_mib, i.at_least_mib)
        {
            wrong(format!("downtime or size of {id} is wrong"));
        }
        for resource in &self.resources {
            let (asked, promised) = (self.demand(id, resource), self.promised(to, resource));
            if let Some(usable) = self.usable(to, resource)
                && asked > 0
                && promised + asked > usable
            {
                wrong(format!(
                    "{to} has {usable} of {resource}, {promised} are promised, {id} needs {asked}"
                ));
            }
        }
        if let Some((g, rule)) = self.group(id)
            && (rule.mode, rule.strength) == (GroupMode::Spread, GroupStrength::Strict)
            && rule.instances.iter().any(|mate| self.place[*mate] == *to)
        {
            wrong(format!("{to} already has an instance of the strictly spread group {g}"));
        }
        Some((id, to))
    }

    /// Checks that a move waits for the moves it depends on.
    fn after(&self, earlier: &[Move], step: &Move, wrong: &mut impl FnMut(String)) {
        for (n, before) in earlier.iter().enumerate() {
            if before.from == step.to && !step.after.contains(&n) {
                wrong(format!("it does not wait for move {}, which makes room on {}", n + 1, step.to));
            }
        }
        let last = earlier.iter().rposition(|before| before.instance == step.instance);
        if last.is_some_and(|n| !step.after.contains(&n)) {
            wrong(format!("it does not wait for an earlier move of {}", step.instance));
        }
        if step.after.iter().any(|n| *n >= earlier.len()) {
            wrong("it waits for a later move".to_owned());
        }
    }

    fn carry(&mut self, (id, to): (&'a InstanceId, &'a str), step: &Move) {
        if let Some(there) = self.on.get_mut(step.from.0.as_str()) {
            there.remove(id);
        }
        self.on.entry(to).or_default().insert(id);
        self.place.insert(id, to);
    }

    /// The purposes of a move.
    fn reasons(&mut self, step: &Move, even: &even::Even) -> Vec<Reason> {
        let (from, to) = (step.from.0.as_str(), step.to.0.as_str());
        let Some((id, _)) = self.instances.get_key_value(&step.instance) else { return Vec::new() };
        let id = *id;
        let mut reasons = Vec::new();
        if self.must_leave(id) && self.start[id] == from {
            reasons.push(Reason::Misplaced);
        }
        for resource in &self.resources {
            let over =
                self.usable(from, resource).is_some_and(|usable| self.promised(from, resource) > usable);
            if over && self.demand(id, resource) > 0 {
                reasons.push(Reason::Overload(resource.clone()));
            }
        }
        let pairs = |world: &Self| world.group(id).map(|(g, rule)| (g.clone(), world.pairs_of(rule)));
        let level = |world: &Self| even.member_ppm(world, from).max(even.member_ppm(world, to));
        let (pairs_before, level_before) = (pairs(self), level(self));
        let to = *self.members.get_key_value(to).map_or(&"", |(name, _)| name);
        self.carry((id, to), step);
        let (pairs_after, level_after) = (pairs(self), level(self));
        let home = *self.members.get_key_value(from).map_or(&"", |(name, _)| name);
        let back = Move { from: step.to.clone(), to: step.from.clone(), ..step.clone() };
        self.carry((id, home), &back);
        if let (Some((group, before)), Some((_, after))) = (pairs_before, pairs_after)
            && after < before
        {
            reasons.push(Reason::Group(group));
        }
        if level_after < level_before {
            reasons.push(Reason::Balance);
        }
        if reasons.is_empty() {
            reasons.push(Reason::MakesRoom);
        }
        reasons
    }

    /// Checks the report, and that the plan made nothing worse.
    fn report(
        &self,
        plan: &Plan,
        begin: &[Violation],
        pairs_begin: &BTreeMap<GroupId, u64>,
        (begin_ppm, end_ppm): (u64, u64),
        wrong: &mut impl FnMut(String),
    ) {
        let (report, end, pairs_end) = (&plan.report, self.violations(), self.pairs());
        if self.policy.max_moves.is_some_and(|most| plan.moves.len() > most) {
            wrong(format!("{} moves are more than the policy allows", plan.moves.len()));
        }
        if report.violations != begin {
            wrong(format!("the violations at the beginning are {begin:?}, not {:?}", report.violations));
        }
        let reported: Vec<&Violation> = report.refusals.iter().map(|r| &r.violation).collect();
        if !reported.iter().copied().eq(&end) {
            wrong(format!("the violations at the end are {end:?}, not {reported:?}"));
        }
        for v in &end {
            if !begin.iter().any(|b| no_worse(b, v)) {
                wrong(format!("the plan causes or worsens a violation: {v}"));
            }
        }
        let groups: Vec<GroupReport> = self
            .groups
            .iter()
            .map(|(g, rule)| GroupReport {
                group: g.clone(),
                mode: rule.mode,
                strength: rule.strength,
                pairs_before: pairs_begin[g],
                pairs_after: pairs_end[g],
            })
            .filter(|g| g.pairs_before + g.pairs_after > 0)
            .collect();
        if report.groups != groups {
            wrong(format!("the groups are {groups:?}, not {:?}", report.groups));
        }
        if (report.imbalance.before_ppm, report.imbalance.after_ppm) != (begin_ppm, end_ppm) {
            wrong(format!("the imbalance goes from {begin_ppm} to {end_ppm}, which differs from the report"));
        }
        if report.imbalance.bound_ppm > begin_ppm.min(end_ppm) {
            wrong(format!(
                "the bound of {} is above the imbalance, which goes from {begin_ppm} to {end_ppm}",
                report.imbalance.bound_ppm
            ));
        }
        let total = |pairs: &BTreeMap<GroupId, u64>| pairs.values().sum::<u64>();
        let repaired = end.len() < begin.len() || end != begin;
        if !repaired && total(&pairs_end) > total(pairs_begin) {
            wrong("groups are worse than before, and no violation was repaired".to_owned());
        }
        if !repaired && total(&pairs_end) == total(pairs_begin) && end_ppm > begin_ppm {
            wrong("members are less even than before, and no violation was repaired".to_owned());
        }
    }
}

/// Whether `end` is the same violation as `begin` and not larger.
fn no_worse(begin: &Violation, end: &Violation) -> bool {
    match (begin, end) {
        (
            Violation::Overload { member: a, resource: r, promised: before, .. },
            Violation::Overload { member: b, resource: s, promised: after, .. },
        ) => (a, r) == (b, s) && after <= before,
        (
            Violation::Group { group: a, pairs: before, .. },
            Violation::Group { group: b, pairs: after, .. },
        ) => a == b && after <= before,
        (a, b) => a == b,
    }
}
