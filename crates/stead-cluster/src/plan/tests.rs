//! Plans for worlds built by hand; whole stories are in `scenarios`.

use super::{Plan, plan};
use crate::{
    check::check,
    desired::Desired,
    fixtures::{DATA, as_applied, name, want},
    observe::{Observed, ObservedNode},
};
use stead_machine::{Accelerator, MachinePhase};
use stead_model::{
    Bytes, EngineKind, Memory,
    agent::{EngineState, NodePhase},
    node::AgentSpec,
};

fn incus(yaml: &str, layer: u8) -> Desired {
    want(yaml, layer, EngineKind::Incus)
}

/// The plan, after its check.
#[track_caller]
fn sound(desired: &Desired, observed: &Observed) -> Plan {
    let plan = plan(desired, observed);
    assert_eq!(check(&plan, desired, observed), Ok(()), "{plan}");
    plan
}

fn node<'a>(observed: &'a mut Observed, node: &str) -> &'a mut ObservedNode {
    observed.nodes.get_mut(&name(node)).unwrap()
}

#[test]
fn nodes_as_desired_are_left_unchanged() {
    let d = incus("nodes: 3", 7);
    let observed = as_applied(&d, EngineState::Online, &["node1", "node2", "node3"]);
    let p = sound(&d, &observed);
    assert!(p.is_empty() && p.to_string() == "cluster demo: nothing to do\n", "{p}");
    let mut unwell = observed.clone();
    node(&mut unwell, "node2").status = None;
    assert_eq!(sound(&d, &unwell).to_string(), "cluster demo: nothing to do but to wait for node2\n");
}

#[test]
fn a_new_ca_is_a_reason_to_restart_but_a_renewed_certificate_is_not() {
    let d = incus("nodes: 1", 7);
    let mut observed = as_applied(&d, EngineState::Online, &["node1"]);
    let agent = |o: &mut Observed, change: fn(&mut AgentSpec)| {
        change(node(o, "node1").spec.as_mut().unwrap().agent.as_mut().unwrap());
    };
    agent(&mut observed, |a| a.certificate_pem = "older".into());
    assert!(sound(&d, &observed).is_empty());
    agent(&mut observed, |a| a.ca_pem = "another".into());
    assert!(sound(&d, &observed).to_string().contains("node1: kill (its node spec changed)"));
}

#[test]
fn an_ending_machine_is_restarted_and_not_relied_on() {
    let d = incus("nodes: 2", 7);
    let mut observed = as_applied(&d, EngineState::Online, &["node1", "node2"]);
    node(&mut observed, "node2").running.as_mut().unwrap().phase = MachinePhase::Stopping;
    let down = sound(&d, &observed).to_string();
    assert!(down.contains("node2: stop cleanly (it was already ending)"), "{down}");
    node(&mut observed, "node2").running.as_mut().unwrap().phase = MachinePhase::Running;
    node(&mut observed, "node2").status.as_mut().unwrap().phase = NodePhase::Stopping;
    assert_eq!(sound(&d, &observed).to_string(), down);
}

#[test]
fn a_member_of_another_cluster_starts_over() {
    let d = incus("nodes: 2", 7);
    let mut observed = as_applied(&d, EngineState::Online, &["node1"]);
    let show = |o: &mut Observed, at: &str, certificate: &str| {
        let engine = node(o, at).status.as_mut().unwrap().engine.as_mut().unwrap();
        engine.certificate = Some(certificate.into());
    };
    show(&mut observed, "node1", "one");
    show(&mut observed, "node2", "one");
    assert_eq!(sound(&d, &observed).to_string(), "cluster demo: nothing to do but to wait for node2\n");
    show(&mut observed, "node2", "two");
    insta::assert_snapshot!(sound(&d, &observed), @r"
    cluster demo:
      1  node2: kill (its engine is in a cluster that no longer exists)
      2  node2: start                                                    after 1
      3  node2: wait for its agent                                       after 2
      4  node2: join incus through node1                                 after 3
      5  wait until all members are online at once                       after 4
      warning: node2 has no disk of role data: the restart loses its incus state
    ");
}

/// A member may be unhealthy because of its configuration, so it gets a new one without being waited for.
#[test]
fn an_unhealthy_member_is_restarted_without_waiting_for_it() {
    let mut observed = as_applied(
        &incus(&format!("nodes: 3\n{DATA}"), 7),
        EngineState::Online,
        &["node1", "node2", "node3"],
    );
    node(&mut observed, "node3").status.as_mut().unwrap().engine.as_mut().unwrap().state =
        EngineState::Failed;
    let d = incus(&format!("nodes: 3\n{DATA}"), 8);
    insta::assert_snapshot!(sound(&d, &observed), @r"
    cluster demo:
       1  node3: stop cleanly (layers changed)
       2  node3: start                               after 1
       3  node3: wait for its agent                  after 2
       4  node3: wait until incus is online          after 3
       5  node1: stop cleanly (layers changed)       after 4
       6  node1: start                               after 5
       7  node1: wait for its agent                  after 6
       8  node1: wait until incus is online          after 7
       9  node2: stop cleanly (layers changed)       after 8
      10  node2: start                               after 9
      11  node2: wait for its agent                  after 10
      12  node2: wait until incus is online          after 11
      13  wait until all members are online at once  after 12
    ");
    // None of them comes online alone.
    for n in ["node1", "node2", "node3"] {
        node(&mut observed, n).status = None;
    }
    insta::assert_snapshot!(sound(&d, &observed), @r"
    cluster demo:
       1  node1: stop cleanly (layers changed)
       2  node1: start                               after 1
       3  node1: wait for its agent                  after 2
       4  node2: stop cleanly (layers changed)
       5  node2: start                               after 4
       6  node2: wait for its agent                  after 5
       7  node3: stop cleanly (layers changed)
       8  node3: start                               after 7
       9  node3: wait for its agent                  after 8
      10  node1: wait until incus is online          after 3
      11  node2: wait until incus is online          after 6
      12  node3: wait until incus is online          after 9
      13  wait until all members are online at once  after 10-12
    ");
}

#[test]
fn a_plan_is_a_value() {
    let d = incus("nodes: 2", 7);
    let p = sound(&d, &Observed::default());
    let text = serde_json::to_string(&p).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), p);
    let join = serde_json::to_value(&p.steps[p.steps.len() - 2]).unwrap();
    let expected = serde_json::json!({
        "id": 7, "do": "join", "node": "node2", "through": "node1", "after": [4, 6]
    });
    assert_eq!(join, expected);
}

#[test]
fn qemu_gets_what_it_needs() {
    let d = incus("nodes: 1\nmachine: {backend: qemu, memory: 25%}", 7);
    let m = &d.nodes[0].machine;
    assert_eq!(m.memory, Some("25%".parse::<Memory>().unwrap().of(Bytes::gib(8))));
    assert!(m.cpus.is_some() && m.vmlinux.is_some());
    // The host has no KVM.
    assert_eq!(m.accelerator, Some(Accelerator::Tcg));
}
