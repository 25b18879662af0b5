//! An independent check of a plan before it is executed. Pure.
//!
//! Owns the rules for every plan, in whatever order its steps run as far as their waits allow. Shares no code with the
//! planner and ignores its reasons, so a plan made by hand or read from a file can be checked too.
//!
//! The rules:
//! - no step waits for itself, and no step names an unknown node;
//! - every wanted node ends up running as desired, waited for, and a member of the engine's cluster;
//! - a member that others go through is a member by then, and is not stopped meanwhile;
//! - members are restarted one at a time, while all others are online, and the membership does not change meanwhile;
//! - a new cluster is formed only when no member has kept its state;
//! - machines with data are stopped cleanly, and only unwanted nodes are deleted, after they were evacuated and
//!   stopped.

mod flaw;
mod order;

pub use flaw::Flaw;

use crate::{
    desired::{Desired, DesiredNode},
    observe::{Observed, ObservedNode},
    plan::{Action, NetworkChange, Plan, Step, StepId, StopHow},
};
use order::Order;
use std::collections::BTreeSet;
use stead_model::{
    NodeName,
    agent::{EngineState, NodePhase},
    node::EngineRole,
};

/// Checks a plan.
///
/// # Errors
/// The first [`Flaw`] found.
pub fn check(plan: &Plan, desired: &Desired, observed: &Observed) -> Result<(), Flaw> {
    let order = Order::new(&plan.steps)?;
    let check = Check { plan, desired, observed, order, anew: plan.initialises().is_some() };
    check.nodes()?;
    check.network()?;
    for node in &desired.nodes {
        check.machine(node)?;
    }
    if !desired.engine.is_none() {
        check.formation()?;
        for node in &desired.nodes {
            check.membership(node)?;
        }
        check.ways()?;
        check.quorum()?;
        check.steady()?;
    }
    check.surplus()
}

struct Check<'a> {
    plan: &'a Plan,
    desired: &'a Desired,
    observed: &'a Observed,
    order: Order,
    /// Whether a new engine cluster is formed.
    anew: bool,
}

impl<'a> Check<'a> {
    fn steps(&self, node: &NodeName) -> impl Iterator<Item = &'a Step> {
        let node = node.clone();
        self.plan.steps.iter().filter(move |s| s.action.node() == Some(&node))
    }
    fn stops(&self, node: &NodeName) -> impl Iterator<Item = &'a Step> {
        self.steps(node).filter(|s| matches!(s.action, Action::Stop { .. }))
    }
    fn starts(&self, node: &NodeName) -> impl Iterator<Item = &'a Step> {
        self.steps(node).filter(|s| matches!(s.action, Action::Start { .. }))
    }
    /// Steps after which the node is a member and online.
    fn arrivals(&self, node: &NodeName) -> impl Iterator<Item = &'a Step> {
        self.steps(node).filter(|s| {
            matches!(s.action, Action::Initialise { .. } | Action::AwaitMember { .. } | Action::Join { .. })
        })
    }
    fn wanted(&self, node: &NodeName) -> Option<&'a DesiredNode> {
        self.desired.nodes.iter().find(|d| &d.machine.name == node)
    }
    fn seen(&self, node: &NodeName) -> Option<&'a ObservedNode> {
        self.observed.nodes.get(node)
    }
    fn is_up(&self, node: &NodeName) -> bool {
        self.seen(node).is_some_and(ObservedNode::is_up)
    }
    fn state(&self, node: &NodeName) -> Option<EngineState> {
        self.seen(node)?.engine()
    }
    /// Whether a node runs and its engine has kept its state.
    fn is_there(&self, node: &NodeName) -> bool {
        self.is_up(node) && self.state(node) != Some(EngineState::Waiting)
    }
    fn seen_online(&self, node: &NodeName) -> bool {
        self.is_up(node) && matches!(self.state(node), Some(EngineState::Online | EngineState::Evacuated))
    }
    fn recorded(&self, node: &NodeName) -> bool {
        self.observed.members.contains(node)
    }
    /// Whether the engine's state on a node survives a restart.
    fn keeps_state(&self, want: &DesiredNode) -> bool {
        let Some(disk) = &want.data_disk else { return false };
        match self.seen(&want.machine.name).map(|o| &o.machine) {
            Some(Some(machine)) => machine.disks.iter().any(|d| &d.serial == disk),
            _ => true,
        }
    }
    fn before(&self, first: &Step, then: &Step) -> bool {
        self.order.before(first.id, then.id)
    }
    /// The last start of a machine before a step, if any.
    fn started_before(&self, node: &NodeName, step: &Step) -> Option<&'a Step> {
        self.starts(node).filter(|s| self.before(s, step)).last()
    }

    fn nodes(&self) -> Result<(), Flaw> {
        for step in &self.plan.steps {
            for node in step.action.node().into_iter().chain(step.action.through()) {
                if self.wanted(node).is_none() && self.seen(node).is_none() {
                    return Err(Flaw::UnknownNode { step: step.id, node: node.clone() });
                }
            }
            let Some(node) = step.action.node() else { continue };
            let wanted = self.wanted(node).is_some();
            match step.action {
                Action::Stop { .. } => {}
                Action::Evacuate { .. } | Action::Remove { .. } | Action::Delete { .. } if wanted => {
                    return Err(Flaw::StillWanted { step: step.id, node: node.clone() });
                }
                Action::Evacuate { .. } | Action::Remove { .. } | Action::Delete { .. } => {}
                _ if !wanted => return Err(Flaw::NotWanted { step: step.id, node: node.clone() }),
                _ => {}
            }
            let of_engine = step.action.through().is_some()
                || matches!(step.action, Action::Initialise { .. } | Action::AwaitMember { .. });
            if of_engine && self.desired.engine.is_none() {
                return Err(Flaw::NoEngine { step: step.id });
            }
        }
        Ok(())
    }

    fn network(&self) -> Result<(), Flaw> {
        let needed = match &self.observed.network {
            Some(_) if !self.observed.network_runs => Some(NetworkChange::Make),
            None => Some(NetworkChange::Make),
            Some(n) if *n == self.desired.network => None,
            Some(_) => Some(NetworkChange::Update),
        };
        let mut found = None;
        for step in &self.plan.steps {
            if let Action::Network { change } = step.action
                && (needed != Some(change) || found.replace(step).is_some())
            {
                return Err(Flaw::Network);
            }
        }
        if needed.is_some() != found.is_some() {
            return Err(Flaw::Network);
        }
        let early =
            |network| self.plan.steps.iter().find(|s| s.id != network && !self.order.before(network, s.id));
        match found.and_then(|n: &Step| early(n.id)) {
            Some(step) => Err(Flaw::BeforeNetwork { step: step.id }),
            None => Ok(()),
        }
    }

    /// Stops and starts of a machine alternate, each has an effect, and they leave it running.
    fn machine(&self, want: &DesiredNode) -> Result<(), Flaw> {
        let node = &want.machine.name;
        let seen = self.seen(node);
        let mut runs = seen.is_some_and(|o| o.running.is_some());
        let mut as_wanted = self.is_up(node) && seen.is_some_and(|o| is_as_wanted(want, o));
        let mut up = self.is_up(node);
        let mut last: Option<&Step> = None;
        for step in self.steps(node) {
            let (stops, how) = match &step.action {
                Action::Stop { how, .. } => (true, Some(*how)),
                Action::Start { .. } => (false, None),
                _ => continue,
            };
            if let Some(last) = last.filter(|l| !self.before(l, step)) {
                return Err(Flaw::Unordered { first: last.id, second: step.id });
            }
            last = Some(step);
            if stops {
                let loses =
                    self.keeps_state(want) || (self.recorded(node) && self.seen_online(node) && !self.anew);
                if how == Some(StopHow::Kill) && runs && loses {
                    return Err(Flaw::KillsData { step: step.id, node: node.clone() });
                }
                (runs, up) = (false, false);
            } else {
                if runs {
                    return Err(Flaw::StartsRunning { step: step.id, node: node.clone() });
                }
                (runs, up, as_wanted) = (true, true, true);
                let awaited = self.steps(node).any(|s| {
                    matches!(s.action, Action::AwaitAgent { .. } | Action::AwaitServices { .. })
                        && self.before(step, s)
                });
                if !awaited {
                    return Err(Flaw::NotAwaited { step: step.id, node: node.clone() });
                }
            }
        }
        if !up {
            return Err(Flaw::NotRunning { node: node.clone() });
        }
        if !as_wanted {
            return Err(Flaw::NotAsWanted { node: node.clone() });
        }
        let running = seen.and_then(|o| o.status.as_ref()).is_some_and(|s| s.phase == NodePhase::Running);
        let awaited = |s: &Step| matches!(s.action, Action::AwaitServices { .. });
        if self.desired.engine.is_none() && last.is_none() && !running && !self.steps(node).any(awaited) {
            return Err(Flaw::NotRunning { node: node.clone() });
        }
        Ok(())
    }

    /// A new cluster is formed by one node that boots for it, and only when no member has kept its state.
    fn formation(&self) -> Result<(), Flaw> {
        let initialise: Vec<&Step> =
            self.plan.steps.iter().filter(|s| matches!(s.action, Action::Initialise { .. })).collect();
        if let [_, second, ..] = initialise[..] {
            return Err(Flaw::InitialisesTwice { step: second.id });
        }
        for step in &self.plan.steps {
            if let Action::Start { node, initialises: true } = &step.action
                && !initialise.iter().any(|i| i.action.node() == Some(node))
            {
                return Err(Flaw::WrongRole { step: step.id, node: node.clone() });
            }
        }
        let Some(step) = initialise.first() else { return Ok(()) };
        let Some(node) = step.action.node() else { return Ok(()) };
        let booted_for_it = match self.started_before(node, step) {
            Some(start) => matches!(start.action, Action::Start { initialises: true, .. }),
            None => self
                .seen(node)
                .and_then(|o| o.spec.as_ref()?.engine.as_ref())
                .is_some_and(|e| e.role == EngineRole::Init),
        };
        if !booted_for_it {
            return Err(Flaw::WrongRole { step: step.id, node: node.clone() });
        }
        let others = self.desired.nodes.len() > 1;
        let has_state = |want: &&DesiredNode| {
            let name = &want.machine.name;
            let unchanged = || self.seen(name).is_some_and(|o| is_as_wanted(want, o));
            self.recorded(name)
                && match self.state(name) {
                    Some(EngineState::Waiting) => false,
                    _ if self.keeps_state(want) => true,
                    _ if !self.is_up(name) => false,
                    Some(EngineState::Offline) => false,
                    Some(EngineState::Online | EngineState::Evacuated) => others || unchanged(),
                    _ => unchanged(),
                }
        };
        match self.desired.nodes.iter().find(has_state) {
            Some(want) => Err(Flaw::ForgetsState { step: step.id, node: want.machine.name.clone() }),
            None => Ok(()),
        }
    }

    /// A wanted node ends up as a member, in a way that fits the state it has kept.
    fn membership(&self, want: &DesiredNode) -> Result<(), Flaw> {
        let node = &want.machine.name;
        let waits = self.state(node) == Some(EngineState::Waiting);
        for step in self.arrivals(node) {
            let restarted = self.started_before(node, step).is_some();
            match &step.action {
                Action::AwaitMember { .. } => {
                    let is_one = if restarted {
                        self.recorded(node) && self.keeps_state(want)
                    } else {
                        self.recorded(node) || self.seen_online(node)
                    };
                    if !is_one || waits {
                        return Err(Flaw::NoMember { step: step.id, node: node.clone() });
                    }
                }
                // The old membership is removed by force.
                Action::Join { anew: true, .. } if !waits && (!restarted || self.keeps_state(want)) => {
                    return Err(Flaw::HasState { step: step.id, node: node.clone() });
                }
                _ => {}
            }
            if let Some(other) = self
                .stops(node)
                .chain(self.starts(node))
                .find(|s| !self.before(s, step) && !self.before(step, s))
            {
                return Err(Flaw::Unordered { first: other.id, second: step.id });
            }
        }
        let arrived = match self.starts(node).last() {
            Some(start) => self.arrivals(node).any(|s| self.before(start, s)),
            None => {
                let running = self
                    .seen(node)
                    .and_then(|o| o.status.as_ref())
                    .is_some_and(|s| s.phase == NodePhase::Running);
                let stays = !self.observed.leaving.contains_key(node);
                (self.recorded(node) && self.seen_online(node) && running && stays)
                    || self.arrivals(node).next().is_some()
            }
        };
        if !arrived {
            return Err(Flaw::NeverMember { node: node.clone() });
        }
        self.readmission(want)
    }

    /// An interrupted removal has ended and is undone before other steps rely on its member.
    fn readmission(&self, want: &DesiredNode) -> Result<(), Flaw> {
        let node = &want.machine.name;
        let readmit = self.steps(node).find(|s| matches!(s.action, Action::Readmit { .. }));
        let Some(driver) = self.observed.leaving.get(node) else {
            return match readmit {
                Some(step) => Err(Flaw::NotLeaving { step: step.id, node: node.clone() }),
                None => Ok(()),
            };
        };
        let lost =
            self.state(node) == Some(EngineState::Waiting) || (!self.is_up(node) && !self.keeps_state(want));
        let at_work = self.wanted(driver).is_some() && self.seen_online(driver) && self.recorded(driver);
        if self.anew || (lost && !at_work) {
            return Ok(());
        }
        // A later wait shows whether it is a member after that.
        let shown = |r: &Step, stop: &Step| {
            !self.before(r, stop) || self.arrivals(node).any(|a| self.before(r, a) && self.before(a, stop))
        };
        let first = readmit.filter(|r| {
            self.arrivals(node).all(|a| self.before(r, a)) && self.stops(node).all(|s| shown(r, s))
        });
        first.map(drop).ok_or_else(|| Flaw::NotReadmitted { node: node.clone() })
    }

    /// Whether a node is a member when a step runs: it has become one, and is not stopped before or meanwhile.
    fn is_member_at(&self, node: &NodeName, step: &Step) -> bool {
        let settled = |s: &Step| s.id == step.id || self.before(s, step) || self.before(step, s);
        if !self.stops(node).chain(self.starts(node)).all(settled) {
            return false;
        }
        let stopped = self.stops(node).filter(|s| self.before(s, step)).last();
        let started = self.started_before(node, step);
        let arrived =
            |since: &Step| self.arrivals(node).any(|a| self.before(since, a) && self.before(a, step));
        match (stopped, started) {
            (Some(stop), start) if start.is_none_or(|s| self.before(s, stop)) => false,
            (_, Some(start)) => arrived(start),
            _ => {
                let stays = !self.observed.leaving.contains_key(node);
                self.seen_online(node) && self.recorded(node) && stays && !self.anew
                    || self.arrivals(node).any(|a| self.before(a, step))
            }
        }
    }

    /// The node that a step goes through is a member then.
    fn ways(&self) -> Result<(), Flaw> {
        for step in &self.plan.steps {
            let (Some(node), Some(through)) = (step.action.node(), step.action.through()) else { continue };
            if node == through {
                match step.action {
                    Action::Readmit { .. } => continue,
                    _ => return Err(Flaw::ThroughItself { step: step.id, node: node.clone() }),
                }
            }
            // The node that drove a removal is asked about it, even if it is about to be removed itself.
            let drove = matches!(step.action, Action::Readmit { .. })
                && self.observed.leaving.get(node) == Some(through)
                && self.recorded(through)
                && self.seen_online(through)
                && self.stops(through).all(|s| self.before(step, s));
            if drove {
                continue;
            }
            if self.wanted(through).is_none() || !self.is_member_at(through, step) {
                return Err(Flaw::ThroughNoMember { step: step.id, through: through.clone() });
            }
        }
        Ok(())
    }

    /// While there is a quorum, a member is stopped only when all others are online, and the membership does not change
    /// until it is back.
    fn quorum(&self) -> Result<(), Flaw> {
        let names = || self.desired.nodes.iter().map(|d| &d.machine.name);
        if self.anew || !names().any(|n| self.recorded(n) && self.seen_online(n)) {
            return Ok(());
        }
        let changes: Vec<&Step> = self
            .plan
            .steps
            .iter()
            .filter(|s| {
                matches!(s.action, Action::Join { .. } | Action::Evacuate { .. } | Action::Remove { .. })
            })
            .collect();
        let member =
            |n: &&NodeName| self.recorded(n) && self.is_up(n) && self.state(n) != Some(EngineState::Waiting);
        for node in names().filter(member) {
            for stop in self.stops(node) {
                for other in names().filter(|n| *n != node) {
                    // Another unhealthy member waits for its own turn.
                    let later = !self.seen_online(other) && self.stops(other).any(|s| self.before(stop, s));
                    if !later && !self.is_member_at(other, stop) {
                        return Err(Flaw::QuorumAtRisk {
                            step: stop.id,
                            node: node.clone(),
                            away: other.clone(),
                        });
                    }
                }
                // A voter that is permanently gone counts until it is removed.
                let gone = |n: &&NodeName| {
                    self.wanted(n).is_none() && self.recorded(n) && !self.is_there(n) && {
                        let mut steps = self.steps(n);
                        !steps.any(|s| matches!(s.action, Action::Remove { .. }) && self.before(s, stop))
                    }
                };
                if let Some(away) = self.observed.nodes.keys().find(gone) {
                    return Err(Flaw::QuorumAtRisk { step: stop.id, node: node.clone(), away: away.clone() });
                }
                let back: Vec<&Step> = self.arrivals(node).filter(|a| self.before(stop, a)).collect();
                let amid = |c: &&&Step| {
                    c.action.node() != Some(node)
                        && !self.before(c, stop)
                        && !back.iter().any(|b| self.before(b, c))
                };
                if let Some(change) = changes.iter().find(amid) {
                    return Err(Flaw::ChangesMeanwhile { step: change.id, node: node.clone() });
                }
            }
        }
        Ok(())
    }

    /// At the end all members are checked at once.
    fn steady(&self) -> Result<(), Flaw> {
        let wanted: BTreeSet<&NodeName> = self.desired.nodes.iter().map(|d| &d.machine.name).collect();
        let all = |s: &&Step| matches!(&s.action, Action::AwaitSteady { nodes } if nodes.iter().collect::<BTreeSet<_>>() == wanted);
        let last = self.plan.steps.iter().find(all).ok_or(Flaw::NotSteady)?;
        let after_all = self.plan.steps.iter().all(|s| s.id == last.id || self.before(s, last));
        if after_all { Ok(()) } else { Err(Flaw::NotSteady) }
    }

    /// Unwanted nodes are deleted: last, stopped, and removed from the engine's cluster.
    fn surplus(&self) -> Result<(), Flaw> {
        for node in self.observed.nodes.keys().filter(|n| self.wanted(n).is_none()) {
            let delete = self.steps(node).find(|s| matches!(s.action, Action::Delete { .. }));
            let delete = delete.ok_or_else(|| Flaw::NotDeleted { node: node.clone() })?;
            let stop = self.stops(node).find(|s| self.before(s, delete));
            let stop = stop.ok_or_else(|| Flaw::DeletesRunning { step: delete.id, node: node.clone() })?;
            if let Action::Stop { how: StopHow::Kill, .. } = stop.action
                && self.desired.engine.is_none()
            {
                return Err(Flaw::KillsData { step: stop.id, node: node.clone() });
            }
            let mut first: StepId = stop.id;
            if self.recorded(node) && !self.anew && !self.desired.engine.is_none() {
                let up = self.is_there(node);
                let out = self.steps(node).find(|s| match s.action {
                    Action::Evacuate { .. } => up,
                    Action::Remove { .. } => !up,
                    _ => false,
                });
                let out = out.filter(|o| self.before(o, stop));
                let out = out.ok_or_else(|| Flaw::StopsMember { step: stop.id, node: node.clone() })?;
                if up {
                    first = out.id;
                }
            }
            let awaited = |s: &&Step| {
                s.action.node().is_some_and(|n| self.wanted(n).is_some())
                    && !matches!(s.action, Action::AwaitAgent { .. })
            };
            if self.plan.steps.iter().filter(awaited).any(|s| !self.order.before(s.id, first)) {
                return Err(Flaw::RemovesTooEarly { step: first, node: node.clone() });
            }
        }
        Ok(())
    }
}

/// Whether a machine runs with the desired configuration. The engine's role and the node's certificate do not count:
/// they take effect at its next boot.
fn is_as_wanted(want: &DesiredNode, seen: &ObservedNode) -> bool {
    let (Some(machine), Some(spec)) = (&seen.machine, &seen.spec) else { return false };
    let mut spec = spec.clone();
    if let (Some(is), Some(should)) = (&mut spec.engine, &want.spec.engine) {
        is.role = should.role;
    }
    if let (Some(is), Some(should)) = (&mut spec.agent, &want.spec.agent) {
        is.certificate_pem.clone_from(&should.certificate_pem);
        is.key_pem.clone_from(&should.key_pem);
    }
    *machine == want.machine && spec == want.spec
}
