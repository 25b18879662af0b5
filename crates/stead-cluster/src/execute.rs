//! Executes plans and makes no choices: a step starts when the steps it waits for have succeeded, steps that change the
//! membership take turns, and steps that depend on a failed one are not started.
//!
//! When the world does not match the plan any more, no further step starts, and [`converge`] observes and plans again,
//! a bounded number of times.

use crate::{
    ClusterError, Events, Plan, check,
    desired::Desired,
    observe::Observed,
    plan::{self, Action, Step, StepId},
};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use std::collections::BTreeSet;

/// How often one command plans again. It is rare that a chosen member dies; four times in a row has another cause.
const REPLANS: usize = 3;

/// Why a step did not succeed.
#[derive(Debug)]
pub(crate) enum Setback {
    /// The world does not match the plan any more, with the difference.
    Moved(String),
    /// The step failed.
    Failed(ClusterError),
}

impl From<ClusterError> for Setback {
    fn from(error: ClusterError) -> Self {
        Self::Failed(error)
    }
}

/// What plans are made from and executed on: the cluster on this host, or one in memory.
pub(crate) trait World {
    /// Observes everything that plans need.
    async fn look(&mut self) -> Result<Observed, ClusterError>;
    /// Records that this plan starts, before anything is changed.
    async fn begin(&mut self, plan: &Plan) -> Result<(), ClusterError>;
    /// Executes a step.
    async fn perform(&self, action: &Action) -> Result<(), Setback>;
}

/// Plans, checks and executes until the world is as desired. Returns the first plan, and the later ones made because
/// the world had changed.
///
/// # Errors
/// Each node's failure; [`ClusterError::Unsound`] before anything is changed; [`ClusterError::Unsettled`] when the
/// world changed too often.
pub(crate) async fn converge(
    world: &mut impl World,
    desired: &Desired,
    events: &Events,
) -> Result<(Plan, Vec<Plan>), ClusterError> {
    let mut plan = planned(desired, &world.look().await?)?;
    let mut later = Vec::new();
    let first = plan.clone();
    loop {
        world.begin(&plan).await?;
        for w in &plan.warnings {
            events.warning(w);
        }
        let Outcome { failed, moved } = execute(&plan, world).await;
        ClusterError::all(failed)?;
        if moved.is_empty() {
            return Ok((first, later));
        }
        let why = moved.join("; ");
        if later.len() == REPLANS {
            let cluster = desired.network.cluster.clone();
            return Err(ClusterError::Unsettled { cluster, plans: later.len() + 1, why });
        }
        plan = planned(desired, &world.look().await?)?;
        if plan.initialises().is_some() && first.initialises().is_none() {
            let cluster = desired.network.cluster.clone();
            return Err(ClusterError::LostMeanwhile { cluster, why });
        }
        events.warning(format!("planned again: {why}"));
        later.push(plan.clone());
    }
}

/// The checked plan for the observed state.
///
/// # Errors
/// [`ClusterError::Unsound`].
pub(crate) fn planned(desired: &Desired, observed: &Observed) -> Result<Plan, ClusterError> {
    let plan = plan::plan(desired, observed);
    check::check(&plan, desired, observed)
        .map_err(|flaw| ClusterError::Unsound { cluster: plan.cluster.clone(), flaw: Box::new(flaw) })?;
    Ok(plan)
}

/// Result of executing a plan.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Failures.
    pub(crate) failed: Vec<ClusterError>,
    /// Differences between the world and the plan.
    pub(crate) moved: Vec<String>,
}

/// Executes a plan as far as possible.
pub(crate) async fn execute(plan: &Plan, world: &impl World) -> Outcome {
    let mut outcome = Outcome::default();
    let mut done: BTreeSet<StepId> = BTreeSet::new();
    let mut waiting: Vec<&Step> = plan.steps.iter().collect();
    let mut turn: Option<StepId> = None;
    let mut running = FuturesUnordered::new();
    loop {
        if outcome.moved.is_empty() {
            waiting.retain(|step| {
                let ready = step.after.iter().all(|s| done.contains(s));
                let its_turn = !step.action.takes_turns() || turn.is_none();
                if !(ready && its_turn) {
                    return true;
                }
                if step.action.takes_turns() {
                    turn = Some(step.id);
                }
                running.push(async { (step.id, world.perform(&step.action).await) });
                false
            });
        }
        let Some((id, result)) = running.next().await else { return outcome };
        if turn == Some(id) {
            turn = None;
        }
        match result {
            Ok(()) => drop(done.insert(id)),
            Err(Setback::Moved(why)) => outcome.moved.push(why),
            Err(Setback::Failed(e)) => outcome.failed.push(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{name, want};
    use std::cell::RefCell;
    use stead_model::EngineKind;

    /// Logs when steps begin and end; each takes a few turns of the others.
    #[derive(Default)]
    struct Watched {
        log: RefCell<Vec<String>>,
        under_way: RefCell<Vec<Action>>,
        fails: Option<Action>,
        moves: Option<Action>,
    }

    impl World for Watched {
        async fn look(&mut self) -> Result<Observed, ClusterError> {
            Ok(Observed::default())
        }
        async fn begin(&mut self, _: &Plan) -> Result<(), ClusterError> {
            Ok(())
        }
        async fn perform(&self, action: &Action) -> Result<(), Setback> {
            let text = plan::text(action, EngineKind::Incus);
            self.log.borrow_mut().push(format!("begin {text}"));
            self.under_way.borrow_mut().push(action.clone());
            let changing = self.under_way.borrow().iter().filter(|a| a.takes_turns()).count();
            assert!(changing <= 1, "{:?}", self.under_way.borrow());
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
            self.under_way.borrow_mut().retain(|a| a != action);
            self.log.borrow_mut().push(format!("end {text}"));
            match action {
                a if Some(a) == self.fails.as_ref() => {
                    let (node, why) = (name("node2"), "broken".to_owned());
                    Err(Setback::Failed(ClusterError::Node { node, why, tail: String::new() }))
                }
                a if Some(a) == self.moves.as_ref() => Err(Setback::Moved("elsewhere".into())),
                _ => Ok(()),
            }
        }
    }

    /// Executes the first `up` of four nodes.
    fn carried_out(world: &Watched) -> (Plan, Outcome, Vec<String>) {
        let plan = planned(&want("nodes: 4", 1, EngineKind::Incus), &Observed::default()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let outcome = runtime.block_on(execute(&plan, world));
        (plan, outcome, world.log.take())
    }

    fn at(log: &[String], line: &str) -> usize {
        log.iter().position(|l| l == line).unwrap_or_else(|| panic!("{line} is not in {log:#?}"))
    }

    #[test]
    fn steps_wait_only_for_their_dependencies() {
        let (plan, outcome, log) = carried_out(&Watched::default());
        assert!(outcome.failed.is_empty() && outcome.moved.is_empty());
        assert_eq!(log.len(), plan.steps.len() * 2);
        let text = |id: &StepId| plan::text(&plan.steps[id.0 as usize - 1].action, plan.engine);
        for step in &plan.steps {
            for on in &step.after {
                let (first, then) = (format!("end {}", text(on)), format!("begin {}", text(&step.id)));
                assert!(at(&log, &first) < at(&log, &then), "{first}, {then}");
            }
        }
        // All machines are started before the first of them is up.
        assert!(at(&log, "begin node4: start") < at(&log, "end node1: start as the first of incus"));
    }

    #[test]
    fn steps_independent_of_a_failure_go_on() {
        let fails = Some(Action::AwaitAgent { node: name("node2") });
        let (_, outcome, log) = carried_out(&Watched { fails, ..Watched::default() });
        assert_eq!(outcome.failed.len(), 1);
        at(&log, "end node3: join incus through node1");
        at(&log, "end node4: join incus through node1");
        assert!(!log.iter().any(|l| l.contains("node2: join") || l.contains("at once")), "{log:#?}");
    }

    #[test]
    fn no_step_starts_after_the_world_has_moved() {
        let moves = Some(Action::Start { node: name("node4"), initialises: false });
        let (_, outcome, log) = carried_out(&Watched { moves, ..Watched::default() });
        assert_eq!(outcome.moved, ["elsewhere"]);
        let moved = at(&log, "end node4: start");
        assert!(!log[moved..].iter().any(|l| l.starts_with("begin")), "{log:#?}");
        // Running steps are waited for.
        at(&log, "end node1: start as the first of incus");
    }

    #[test]
    fn a_world_that_keeps_moving_is_an_error() {
        let moves = Some(Action::Network { change: plan::NetworkChange::Make });
        let mut world = Watched { moves, ..Watched::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let desired = want("nodes: 1", 1, EngineKind::Incus);
        let error = runtime.block_on(converge(&mut world, &desired, &Events::none())).unwrap_err();
        assert!(matches!(error, ClusterError::Unsettled { plans: 4, .. }), "{error}");
    }
}
