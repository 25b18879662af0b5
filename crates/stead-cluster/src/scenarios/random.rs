//! Random stories and worlds: plans pass their check and reach the desired state, and broken plans do not pass.

use super::{data, town::Town};
use crate::{
    Events,
    check::{Flaw, check},
    desired::Desired,
    fixtures::{as_applied, name, want},
    observe::Observed,
    plan::{Action, Plan, Step, StepId, StopHow, plan},
};
use proptest::{prelude::*, sample::Index};
use stead_model::{EngineKind, agent::EngineState};

/// An event in a story.
#[derive(Debug, Clone)]
enum Turn {
    Up { nodes: u32, data: bool, image: u8 },
    Crash(Index),
    LoseDisk(Index),
    Reboot,
    CutRemovalShort { node: Index, through: Index, removed: bool },
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        4 => (1u32..5, any::<bool>(), 1u8..3).prop_map(|(nodes, data, image)| Turn::Up { nodes, data, image }),
        2 => any::<Index>().prop_map(Turn::Crash),
        1 => any::<Index>().prop_map(Turn::LoseDisk),
        1 => Just(Turn::Reboot),
        1 => (any::<Index>(), any::<Index>(), any::<bool>())
            .prop_map(|(node, through, removed)| Turn::CutRemovalShort { node, through, removed }),
    ]
}

fn file(nodes: u32, with_data: bool) -> String {
    if with_data { data(nodes) } else { format!("nodes: {nodes}") }
}

fn engine() -> impl Strategy<Value = EngineKind> {
    prop_oneof![3 => Just(EngineKind::Incus), 1 => Just(EngineKind::None)]
}

/// A random world and a file for it.
fn world() -> impl Strategy<Value = (Desired, Observed)> {
    let state = prop_oneof![
        4 => Just(Some(EngineState::Online)),
        1 => Just(Some(EngineState::Evacuated)),
        1 => Just(Some(EngineState::Waiting)),
        1 => Just(Some(EngineState::Offline)),
        1 => Just(Some(EngineState::Starting)),
        1 => Just(Some(EngineState::Failed)),
        1 => Just(None),
    ];
    let node = (any::<bool>(), state, prop::bool::weighted(0.8), prop::bool::weighted(0.1), any::<bool>());
    (
        engine(),
        (1u32..5, any::<bool>(), 1u8..3),
        (0u32..6, any::<bool>()),
        prop::collection::vec(node, 6),
        prop::bool::weighted(0.8),
    )
        .prop_map(|(engine, (nodes, with_data, image), (had, had_data), seen, network_runs)| {
            let desired = want(&file(nodes, with_data), image, engine);
            let old = want(&file(had.max(1), had_data), 1, engine);
            let mut observed = as_applied(&old, EngineState::Online, &[]);
            if had == 0 {
                observed.nodes.clear();
            }
            observed.network_runs = network_runs;
            let all: Vec<_> = observed.nodes.keys().cloned().collect();
            for (i, (node, (down, state, member, leaving, other))) in all.iter().zip(seen).enumerate() {
                let at = observed.nodes.get_mut(node).unwrap();
                match (&mut at.status, state) {
                    (Some(status), Some(state)) => match &mut status.engine {
                        _ if engine.is_none() => status.engine = None,
                        Some(e) => {
                            e.state = state;
                            e.certificate = Some(if other && !member { "other" } else { "one" }.into());
                        }
                        None => {}
                    },
                    (status, _) => *status = None,
                }
                if down && i % 2 == 0 {
                    (at.running, at.status) = (None, None);
                }
                if member && !engine.is_none() {
                    observed.members.insert(node.clone());
                    if leaving {
                        let through = all[(i + 1) % all.len()].clone();
                        observed.leaving.insert(node.clone(), through);
                    }
                }
            }
            observed.leaving.retain(|node, through| node != through);
            (desired, observed)
        })
}

/// The plan without one step; the steps that waited for it inherit its waits.
fn without(plan: &Plan, id: StepId) -> Plan {
    let mut broken = plan.clone();
    let after = broken.steps.iter().find(|s| s.id == id).unwrap().after.clone();
    broken.steps.retain(|s| s.id != id);
    for step in &mut broken.steps {
        if step.after.contains(&id) {
            step.after.retain(|s| *s != id);
            step.after.extend(&after);
        }
    }
    broken
}

/// Whether `then` waits for `first`, directly or indirectly.
fn waits(plan: &Plan, then: StepId, first: StepId) -> bool {
    let step: &Step = plan.steps.iter().find(|s| s.id == then).unwrap();
    step.after.iter().any(|s| *s == first || waits(plan, *s, first))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// For every world the plan passes the check, and planning again gives the same plan.
    #[test]
    fn every_plan_is_sound((desired, observed) in world()) {
        let made = plan(&desired, &observed);
        prop_assert_eq!(check(&made, &desired, &observed), Ok(()), "{}", made);
        prop_assert_eq!(&plan(&desired, &observed), &made);
        let numbers: Vec<u32> = made.steps.iter().map(|s| s.id.0).collect();
        prop_assert_eq!(numbers, (1..=made.steps.len() as u32).collect::<Vec<_>>());
    }

    /// Whatever happens between commands, `up` leads to the desired cluster and keeps an existing quorum all the time;
    /// afterwards there is nothing to do.
    #[test]
    fn every_story_ends_well(engine in engine(), turns in prop::collection::vec(turn(), 1..12)) {
        let mut town = Town::new(engine);
        let mut last = ("nodes: 1".to_owned(), 1);
        let up = |town: &mut Town, (yaml, image): &(String, u8)| {
            town.file(yaml, *image);
            let mut result = town.converge(&Events::none());
            if let Err(crate::ClusterError::LostMeanwhile { .. }) = result {
                result = town.converge(&Events::none());
            }
            prop_assert!(result.is_ok(), "{}", crate::error::chain(&result.unwrap_err()));
            prop_assert!(town.is_well(), "{}", town.state());
            prop_assert_eq!(town.outages(), Vec::<String>::new());
            Ok(())
        };
        up(&mut town, &last)?;
        for turn in turns {
            let nodes = town.nodes();
            match turn {
                Turn::Up { nodes, data, image } => {
                    // Missing voters are not given up.
                    let there = if town.has_quorum() { 0 } else { town.nodes().len() as u32 };
                    last = (file(nodes.max(there), data), image);
                    up(&mut town, &last)?;
                }
                Turn::Crash(at) => town.crash(at.get(&nodes).as_str()),
                // No plan restores a majority of voters that is lost with its disks.
                Turn::LoseDisk(at) if !town.votes(at.get(&nodes)) => town.lose_disk(at.get(&nodes).as_str()),
                Turn::LoseDisk(_) => {}
                Turn::Reboot => town.reboot(),
                Turn::CutRemovalShort { node, through, removed } => {
                    let (node, through) = (node.get(&nodes), through.get(&nodes));
                    if town.may_remove(node, through) {
                        town.cut_removal_short(node.as_str(), through.as_str(), removed);
                    }
                }
            }
        }
        up(&mut town, &last)?;
        let settled = plan(town.desired(), &town.observed());
        prop_assert!(settled.is_empty(), "{}", settled);
    }

    /// A plan that lacks one of its steps is refused.
    #[test]
    fn a_plan_that_lacks_a_step_is_refused((desired, observed) in world()) {
        let made = plan(&desired, &observed);
        for step in &made.steps {
            let broken = without(&made, step.id);
            prop_assert!(check(&broken, &desired, &observed).is_err(), "without {}:\n{}", step.id, made);
        }
    }

    /// A plan in which a step lacks a necessary wait is refused.
    #[test]
    fn a_plan_that_does_not_wait_is_refused((desired, observed) in world()) {
        let made = plan(&desired, &observed);
        // A permanently missing member may be removed at any time.
        let bound = |s: &&Step| !matches!(s.action, Action::Remove { .. });
        for step in made.steps.iter().filter(bound) {
            let at = step.id.0 as usize - 1;
            for on in &step.after {
                let mut broken = made.clone();
                broken.steps[at].after.retain(|s| s != on);
                // It may still wait for it indirectly.
                if !waits(&broken, step.id, *on) {
                    let checked = check(&broken, &desired, &observed);
                    prop_assert!(checked.is_err(), "{} not after {}:\n{}", step.id, on, made);
                }
            }
        }
    }

    /// A plan whose steps contradict their waits in order is refused.
    #[test]
    fn a_plan_in_another_order_is_refused((desired, observed) in world()) {
        let made = plan(&desired, &observed);
        for (at, step) in made.steps.iter().enumerate() {
            for on in &step.after {
                let other = made.steps.iter().position(|s| s.id == *on).unwrap();
                let mut broken = made.clone();
                broken.steps.swap(at, other);
                prop_assert!(check(&broken, &desired, &observed).is_err());
                let mut circle = made.clone();
                circle.steps[other].after.push(step.id);
                let flaw = Flaw::WaitsForLater { step: *on, on: step.id };
                prop_assert_eq!(check(&circle, &desired, &observed), Err(flaw));
            }
        }
    }

    /// A plan that goes through another node, or in another manner, is refused.
    #[test]
    fn a_plan_that_goes_astray_is_refused((desired, observed) in world()) {
        let made = plan(&desired, &observed);
        let refused = |at: usize, action: Action| {
            let mut broken = made.clone();
            broken.steps[at].action = action.clone();
            prop_assert!(check(&broken, &desired, &observed).is_err(), "{:?} in\n{}", action, made);
            Ok(())
        };
        let joins_later = |at: usize| made.steps[at + 1..].iter().filter_map(|s| match &s.action {
            Action::Join { node, .. } => Some(node.clone()),
            _ => None,
        });
        for (at, step) in made.steps.iter().enumerate() {
            match step.action.clone() {
                Action::Join { node, anew, .. } => {
                    refused(at, Action::Join { node: node.clone(), through: node.clone(), anew })?;
                    refused(at, Action::Join { node: node.clone(), through: name("nobody"), anew })?;
                    if let Some(through) = joins_later(at).find(|n| !observed.members.contains(n)) {
                        refused(at, Action::Join { node, through, anew })?;
                    }
                }
                Action::Evacuate { node, through } => {
                    refused(at, Action::Evacuate { node: node.clone(), through: node.clone() })?;
                    refused(at, Action::Evacuate { node: through.clone(), through: node })?;
                }
                Action::Stop { node, how: StopHow::Clean, why } => {
                    let runs = observed.nodes[&node].running.is_some();
                    let data = desired.nodes.iter().any(|d| d.machine.name == node && d.data_disk.is_some());
                    let had = observed.nodes[&node].machine.as_ref().is_some_and(|m| !m.disks.is_empty());
                    if runs && data && had {
                        refused(at, Action::Stop { node: node.clone(), how: StopHow::Kill, why })?;
                    }
                    refused(at, Action::Start { node, initialises: false })?;
                }
                Action::Start { node, initialises } => {
                    if !desired.engine.is_none() {
                        refused(at, Action::Start { node: node.clone(), initialises: !initialises })?;
                    }
                    refused(at, Action::Start { node: name("nobody"), initialises })?;
                }
                Action::Delete { .. } => {
                    refused(at, Action::Delete { node: desired.nodes[0].machine.name.clone() })?;
                }
                Action::AwaitSteady { mut nodes } => {
                    nodes.pop();
                    refused(at, Action::AwaitSteady { nodes })?;
                }
                _ => {}
            }
        }
    }
}
