//! Makes plans.
//!
//! In this order, each part only if it is needed:
//! 1. the network;
//! 2. nodes that do not run, or are useless to the engine's cluster in their present state, are started, all at once;
//!    members that come back by themselves are waited for, the others join through a member that is online by then;
//! 3. unwanted members that do not run are removed, because they count as missing voters;
//! 4. members that need a restart are restarted one at a time, while all others are online, the leader of
//!    the database last;
//! 5. unwanted nodes are evacuated, removed and deleted;
//! 6. all members are online at the same time.

use super::{
    steps::{Action, NetworkChange, Plan, Step, StepId, StopHow},
    view::{Standing, View},
};
use crate::{
    desired::Desired,
    health,
    observe::{Observed, ObservedNode},
};
use std::collections::BTreeMap;
use stead_model::{NodeName, agent::EngineState, node::EngineRole};

/// Makes the plan that leads from the observed to the desired state.
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    let views: Vec<View<'_>> = desired.nodes.iter().map(|want| View::new(want, observed)).collect();
    let mut plan = Plan {
        cluster: desired.network.cluster.clone(),
        engine: desired.engine,
        steps: Vec::new(),
        warnings: Vec::new(),
    };
    let network = network_change(desired, observed).map(|change| plan.push(Action::Network { change }, &[]));
    let quorum = views.iter().any(|v| v.standing == Standing::Online);
    let mut maker = Maker { plan, observed, views, first: network.into_iter().collect(), quorum };
    if desired.engine.is_none() {
        maker.without_engine();
    } else if maker.views.iter().any(|v| v.survives(desired.nodes.len())) {
        maker.on_what_survives();
    } else {
        maker.anew();
    }
    maker.plan
}

fn network_change(desired: &Desired, observed: &Observed) -> Option<NetworkChange> {
    match &observed.network {
        Some(n) if observed.network_runs => (*n != desired.network).then_some(NetworkChange::Update),
        _ => Some(NetworkChange::Make),
    }
}

impl Plan {
    fn push(&mut self, action: Action, after: &[StepId]) -> StepId {
        let id = StepId(self.steps.len() as u32 + 1);
        let mut after = after.to_vec();
        after.sort_unstable();
        after.dedup();
        self.steps.push(Step { id, action, after });
        id
    }
}

struct Maker<'a> {
    plan: Plan,
    observed: &'a Observed,
    views: Vec<View<'a>>,
    /// Steps that all others wait for: the network, if it changes.
    first: Vec<StepId>,
    /// Whether a member is online: then there is a quorum, which restarts must keep.
    quorum: bool,
}

impl<'a> Maker<'a> {
    fn push(&mut self, action: Action, after: &[StepId]) -> StepId {
        let after = if after.is_empty() { self.first.clone() } else { after.to_vec() };
        self.plan.push(action, &after)
    }
    /// Stops the machine of the view at this index, if it runs, and starts it; returns the last step.
    fn restart(&mut self, at: usize, how: StopHow, why: Vec<String>, initialises: bool) -> StepId {
        self.restart_after(at, how, why, initialises, &[])
    }
    fn restart_after(
        &mut self,
        at: usize,
        how: StopHow,
        why: Vec<String>,
        initialises: bool,
        after: &[StepId],
    ) -> StepId {
        let view = &self.views[at];
        let node = view.name().clone();
        let stop =
            view.is_supervised().then(|| self.push(Action::Stop { node: node.clone(), how, why }, after));
        let after = stop.map_or(after.to_vec(), |s| vec![s]);
        self.push(Action::Start { node, initialises }, &after)
    }
    /// Adds a warning about state that a restart loses.
    fn warn_of_loss(&mut self, at: usize) {
        let (view, engine) = (&self.views[at], self.plan.engine);
        if !view.keeps_state {
            self.plan.warnings.push(format!(
                "{} has no disk of role data: the restart loses its {engine} state",
                view.name()
            ));
        }
    }
    /// As [`Self::restart`], for a node that is not up: a machine that is ending ends cleanly first.
    fn start(&mut self, at: usize, initialises: bool) -> StepId {
        let unlinked = self.views[at].seen.is_some_and(|o| o.unlinked);
        let why = if unlinked { "its link to the network is gone" } else { "it was already ending" };
        self.restart(at, StopHow::Clean, vec![why.into()], initialises)
    }

    fn without_engine(&mut self) {
        let mut ends = Vec::new();
        for at in 0..self.views.len() {
            let view = &self.views[at];
            let node = view.name().clone();
            let started = match &view.changes {
                None => Some(self.start(at, false)),
                Some(why) if !why.is_empty() => {
                    let (how, why) = (how_to_stop(view.keeps_state), why.clone());
                    Some(self.restart(at, how, why, false))
                }
                Some(_) => None,
            };
            let settled = || self.views[at].status().is_some_and(health::runs);
            if started.is_some() || !settled() {
                ends.push(self.push(Action::AwaitServices { node }, started.as_slice()));
            }
        }
        self.removals(&ends, None, &BTreeMap::new());
    }

    /// No member has kept the state of the engine's cluster, so the first node forms a new one.
    fn anew(&mut self) {
        let engine = self.plan.engine;
        if !self.observed.members.is_empty() {
            self.plan.warnings.push(format!(
                "no member kept the state of {engine}: a new, empty cluster is formed (give nodes a disk of role data to keep it)"
            ));
        }
        let mut first: Option<(NodeName, StepId)> = None;
        // The new cluster's certificate, if the first node runs and has already begun.
        let mut cluster = None;
        let mut ends = Vec::new();
        for at in 0..self.views.len() {
            let view = &self.views[at];
            let (node, keeps_state) = (view.name().clone(), view.keeps_state);
            let is_first = first.is_none();
            let why = match &view.changes {
                None => None,
                Some(why) if !why.is_empty() => Some(why.clone()),
                Some(_) => fresh_start(view, is_first, cluster).map(|why| vec![why.into()]),
            };
            if is_first && view.is_kept() && why.is_none() {
                cluster = view.cluster();
            }
            let is_member = !is_first && view.is_kept() && why.is_none() && view.cluster().is_some();
            let started = match why {
                Some(why) => Some(self.restart(at, how_to_stop(keeps_state), why, is_first)),
                None if self.views[at].changes.is_none() => Some(self.start(at, is_first)),
                None => None,
            };
            let mut after: Vec<StepId> = started
                .map(|s| self.push(Action::AwaitAgent { node: node.clone() }, &[s]))
                .into_iter()
                .collect();
            let end = match &first {
                None => self.push(Action::Initialise { node: node.clone() }, &after),
                Some((through, initialised)) => {
                    after.push(*initialised);
                    let action = match is_member {
                        true => Action::AwaitMember { node: node.clone() },
                        false => Action::Join { node: node.clone(), through: through.clone(), anew: false },
                    };
                    self.push(action, &after)
                }
            };
            first.get_or_insert((node, end));
            ends.push(end);
        }
        let ends = self.removals(&ends, None, &BTreeMap::new());
        self.steady(&ends);
    }

    /// The engine's cluster survives in at least one node.
    fn on_what_survives(&mut self) {
        // Started, restored, waited for.
        let count = self.views.len();
        let the_cluster = self.the_cluster();
        let mut fresh = vec![false; count];
        let mut before: Vec<Vec<StepId>> = vec![Vec::new(); count];
        for at in 0..count {
            let view = &self.views[at];
            let node = view.name().clone();
            let started = if view.changes.is_none() {
                Some(self.start(at, false))
            } else if self.is_rolled(view) {
                None
            } else {
                let why = match &view.changes {
                    Some(why) if !why.is_empty() => Some(why.clone()),
                    _ => other_cluster(view, the_cluster).map(|why| vec![why.to_owned()]),
                };
                let how = match view.standing {
                    Standing::Stranger => how_to_stop(view.keeps_state),
                    _ => StopHow::Clean,
                };
                if why.is_some() {
                    self.warn_of_loss(at);
                }
                why.map(|why| self.restart(at, how, why, false))
            };
            fresh[at] = started.is_some();
            let mut steps: Vec<StepId> = started
                .map(|s| self.push(Action::AwaitAgent { node: node.clone() }, &[s]))
                .into_iter()
                .collect();
            let view = &self.views[at];
            if let Some(through) = self.readmits(at)
                && (!self.is_rolled(view) || view.standing == Standing::Online)
            {
                steps = vec![self.push(Action::Readmit { node, through }, &steps)];
            }
            before[at] = steps;
        }
        // Members that come back by themselves.
        let mut member_since: Vec<Option<Vec<StepId>>> = vec![None; count];
        for at in 0..count {
            let view = &self.views[at];
            let rolled = self.is_rolled(view);
            if self.is_member(at, fresh[at]) && (!rolled || view.standing == Standing::Online) {
                let well = view.standing == Standing::Online
                    && before[at].is_empty()
                    && (rolled || view.status().is_some_and(health::is_running));
                let step = (!well).then(|| {
                    self.push(Action::AwaitMember { node: self.views[at].name().clone() }, &before[at])
                });
                member_since[at] = Some(step.into_iter().collect());
            }
        }
        // The others join through one of them.
        if let Some(seed) = self.seed(&member_since) {
            let through = self.views[seed].name().clone();
            let online = member_since[seed].clone().unwrap_or_default();
            for at in 0..count {
                let view = &self.views[at];
                if member_since[at].is_none() && !self.is_rolled(view) {
                    let (node, anew) = (view.name().clone(), view.standing == Standing::Lost);
                    let after: Vec<StepId> = before[at].iter().chain(&online).copied().collect();
                    let step = self.push(Action::Join { node, through: through.clone(), anew }, &after);
                    member_since[at] = Some(vec![step]);
                }
            }
        }
        // Members that need a restart take turns, once all others are online; those that are not online come first.
        let mut ends: Vec<StepId> = member_since.into_iter().flatten().flatten().collect();
        let through = self.remover();
        let removed = self.expulsions(&ends, through.as_ref());
        let (online, unwell): (Vec<usize>, Vec<usize>) = (0..count)
            .filter(|at| self.is_rolled(&self.views[*at]))
            .partition(|at| self.views[*at].standing == Standing::Online);
        // The leader of the database last: each stop of a leader hands the lead over, maybe to the next that stops.
        let (leader, others): (Vec<usize>, Vec<usize>) =
            online.into_iter().partition(|at| self.views[*at].leads());
        let rolls: Vec<usize> = unwell.into_iter().chain(others).chain(leader).collect();
        if !rolls.is_empty() {
            ends.extend(removed.values());
        }
        for at in rolls {
            ends = vec![self.roll(at, &ends)];
        }
        let ends = self.removals(&ends, through.as_ref(), &removed);
        self.steady(&ends);
    }

    /// Restarts a member while all others are online.
    fn roll(&mut self, at: usize, after: &[StepId]) -> StepId {
        let view = &self.views[at];
        let (node, keeps_state) = (view.name().clone(), view.keeps_state);
        let why = view.changes.clone().unwrap_or_default();
        // Preferably one that is not restarted itself.
        let rank = |v: &&View<'_>| (self.is_rolled(v), v.standing != Standing::Online);
        let others = self.views.iter().filter(|v| v.name() != &node);
        let through = others.min_by_key(rank).map(|v| v.name().clone());
        self.warn_of_loss(at);
        // Cleanly even if its state is lost, so that it hands over its role in the database.
        let started = self.restart_after(at, StopHow::Clean, why, false, after);
        let mut answers = self.push(Action::AwaitAgent { node: node.clone() }, &[started]);
        if let Some(through) = self.readmits(at).filter(|_| self.views[at].standing != Standing::Online) {
            answers = self.push(Action::Readmit { node: node.clone(), through }, &[answers]);
        }
        let back = match through {
            Some(through) if !keeps_state => Action::Join { node, through, anew: true },
            _ => Action::AwaitMember { node },
        };
        self.push(back, &[answers])
    }

    /// Whether a node is a member that needs a restart while all others are online. Without a quorum there is nothing
    /// to keep: members are then restarted at the same time, because none comes online alone.
    fn is_rolled(&self, view: &View<'_>) -> bool {
        let up = matches!(view.standing, Standing::Online | Standing::Unsure | Standing::Offline);
        self.quorum && up && view.is_changed()
    }

    /// Whether a node is a member without joining.
    fn is_member(&self, at: usize, fresh: bool) -> bool {
        let view = &self.views[at];
        match view.standing {
            Standing::Online | Standing::Away => true,
            Standing::Unsure | Standing::Offline => view.keeps_state || !fresh,
            Standing::Lost => false,
            Standing::Stranger => !fresh && view.cluster().is_some(),
        }
    }

    /// The member that others join through: one that is online and stays so, or the next best.
    fn seed(&self, member_since: &[Option<Vec<StepId>>]) -> Option<usize> {
        let leaving = |v: &View<'_>| self.observed.leaving.contains_key(v.name());
        let rank = |at: usize| {
            let v = &self.views[at];
            let rank = match v.standing {
                Standing::Online if leaving(v) => 5,
                Standing::Online if v.is_kept() => 0,
                Standing::Online => 1,
                Standing::Unsure => 2,
                Standing::Away => 3,
                Standing::Offline => 4,
                Standing::Lost | Standing::Stranger => 6,
            };
            (rank, at)
        };
        (0..self.views.len()).filter(|at| member_since[*at].is_some()).min_by_key(|at| rank(*at))
    }

    /// The node that undoes an interrupted removal. The node that drove it may still be at work, and knows when it has
    /// ended; if it no longer runs, the member itself is asked, unless it has lost its state.
    fn readmits(&self, at: usize) -> Option<NodeName> {
        let view = &self.views[at];
        let driver = self.observed.leaving.get(view.name())?;
        let running = |v: &&View<'_>| v.name() == driver && v.standing == Standing::Online;
        match self.views.iter().find(running) {
            Some(driver) if driver.name() != view.name() => Some(driver.name().clone()),
            _ => (view.standing != Standing::Lost).then(|| view.name().clone()),
        }
    }

    /// The surviving engine cluster, identified by its certificate.
    fn the_cluster(&self) -> Option<Option<&'a String>> {
        let members = self.views.iter().filter(|v| v.standing == Standing::Online);
        members
            .filter(|v| v.is_kept())
            .chain(self.views.iter().filter(|v| v.standing == Standing::Online))
            .find_map(View::cluster)
    }

    /// The member that removals go through.
    fn remover(&self) -> Option<NodeName> {
        let rank = |v: &View<'_>| match v.standing {
            Standing::Online if v.is_kept() => 0,
            Standing::Online => 1,
            Standing::Unsure | Standing::Away | Standing::Offline => 2,
            Standing::Lost | Standing::Stranger => 3,
        };
        self.views.iter().min_by_key(|v| rank(v)).map(|v| v.name().clone())
    }

    /// Unwanted nodes, and whether their engines can be evacuated.
    fn surplus(&self) -> Vec<(NodeName, bool)> {
        let wanted = |name: &NodeName| self.views.iter().any(|v| v.name() == name);
        let there = |o: &ObservedNode| o.is_up() && o.engine() != Some(EngineState::Waiting);
        let surplus = self.observed.nodes.iter().filter(|(name, _)| !wanted(name));
        surplus.map(|(name, o)| (name.clone(), there(o))).collect()
    }

    /// Removes unwanted members that are not running by force.
    fn expulsions(&mut self, after: &[StepId], through: Option<&NodeName>) -> BTreeMap<NodeName, StepId> {
        let mut removed = BTreeMap::new();
        for (node, there) in self.surplus() {
            if let Some(through) = through.filter(|_| !there && self.observed.members.contains(&node)) {
                let remove = Action::Remove { node: node.clone(), through: through.clone() };
                removed.insert(node, self.push(remove, after));
            }
        }
        removed
    }

    /// Removes unwanted nodes, once all wanted ones are healthy. `through`: the member that removes members; `None` if
    /// their cluster does not survive. `removed`: those already removed. Returns the last steps of the plan so far.
    fn removals(
        &mut self,
        after: &[StepId],
        through: Option<&NodeName>,
        removed: &BTreeMap<NodeName, StepId>,
    ) -> Vec<StepId> {
        let mut ends = Vec::new();
        for (node, there) in self.surplus() {
            let is_member = self.observed.members.contains(&node);
            let mut last: Vec<StepId> = after.iter().chain(removed.get(&node)).copied().collect();
            if let Some(through) = through.filter(|_| is_member && there) {
                let evacuate = Action::Evacuate { node: node.clone(), through: through.clone() };
                last = vec![self.push(evacuate, &last)];
            }
            // Only the engine's data mattered, which has been evacuated, and the engine may ignore a clean stop while
            // it resets itself. Without an engine, its services may have something to finish.
            let how = if self.plan.engine.is_none() { StopHow::Clean } else { StopHow::Kill };
            let why = vec!["no longer in the cluster".to_owned()];
            let stopped = self.push(Action::Stop { node: node.clone(), how, why }, &last);
            ends.push(self.push(Action::Delete { node }, &[stopped]));
        }
        if ends.is_empty() { after.to_vec() } else { ends }
    }

    fn steady(&mut self, after: &[StepId]) {
        let nodes = self.views.iter().map(|v| v.name().clone()).collect();
        self.push(Action::AwaitSteady { nodes }, after);
    }
}

fn how_to_stop(keeps_state: bool) -> StopHow {
    if keeps_state { StopHow::Clean } else { StopHow::Kill }
}

/// Why a node that runs as desired must still be restarted when a new engine cluster is formed.
fn fresh_start(view: &View<'_>, is_first: bool, cluster: Option<Option<&String>>) -> Option<&'static str> {
    let role = view.seen.and_then(|o| o.spec.as_ref()?.engine.as_ref()).map(|e| e.role);
    if is_first && role != Some(EngineRole::Init) {
        return Some("it initialises the engine's cluster now");
    }
    if view.engine() == Some(EngineState::Offline) {
        return Some("its engine's cluster has lost its quorum");
    }
    (!is_first && view.cluster().is_some_and(|c| Some(c) != cluster))
        .then_some("its engine is in a cluster that no longer exists")
}

/// Why a node that runs as desired cannot join the engine's cluster in its present state.
fn other_cluster(view: &View<'_>, the_cluster: Option<Option<&String>>) -> Option<&'static str> {
    if view.standing != Standing::Stranger {
        return None;
    }
    if view.engine() == Some(EngineState::Offline) {
        return Some("its engine's cluster has lost its quorum");
    }
    view.cluster()
        .is_some_and(|c| Some(c) != the_cluster)
        .then_some("its engine is in a cluster that no longer exists")
}
