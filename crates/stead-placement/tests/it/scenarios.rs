//! Full plans of clusters that are easy to understand.

use crate::common::{instance, member};
use stead_placement::{
    Plan, Policy, Snapshot, check, plan,
    policy::{Downtime, Stopped},
    settings,
    snapshot::{Bar, Evacuation, Instance, MemberState, Migration, PoolName},
};

fn planned(s: &Snapshot, p: &Policy) -> Plan {
    let made = plan(s, p).expect("a snapshot without contradictions");
    check(s, p, &made).expect("the checker agrees");
    made
}

/// A plan as lines: the moves with their reasons, the refusals, the findings, then the imbalance.
fn lines(made: &Plan) -> String {
    let mut out = String::new();
    for m in &made.moves {
        let why: Vec<String> = m.reasons.iter().map(ToString::to_string).collect();
        let after = if m.after.is_empty() { String::new() } else { format!(" after {:?}", m.after) };
        out += &format!("{}: {} -> {} ({}){after}\n", m.instance, m.from, m.to, why.join(", "));
    }
    for refusal in &made.report.refusals {
        out += &format!("refused: {refusal}\n");
    }
    for finding in &made.report.findings {
        out += &format!("note: {finding}\n");
    }
    let i = made.report.imbalance;
    let percent = |ppm: u64| ppm as f64 / 1e6;
    out + &format!(
        "imbalance {:.2} -> {:.2}, bound {:.2}\n",
        percent(i.before_ppm),
        percent(i.after_ppm),
        percent(i.bound_ppm)
    )
}

/// Members by memory in GiB, and instances by (member, memory in GiB); disks and processors do not matter.
fn cluster(members: &[u64], instances: &[(usize, u64)]) -> Snapshot {
    Snapshot {
        members: members.iter().enumerate().map(|(n, gib)| member(n, gib << 10, 64_000)).collect(),
        instances: instances
            .iter()
            .enumerate()
            .map(|(n, (on, gib))| instance(n, *on, gib << 10, 0))
            .collect(),
    }
}

fn group(i: &mut Instance, name: &str, mode: &str, strength: &str) {
    for (key, value) in
        [(settings::GROUP, name), (settings::GROUP_MODE, mode), (settings::GROUP_STRENGTH, strength)]
    {
        i.workload.settings.insert(key.to_owned(), value.to_owned());
    }
}

#[test]
fn ten_instances_piled_on_one_member() {
    let s = cluster(&[16, 16, 16], &[(0, 1); 10]);
    insta::assert_snapshot!(lines(&planned(&s, &Policy::default())), @r"
    i0: n0 -> n2 (balance)
    i1: n0 -> n2 (balance)
    i2: n0 -> n1 (balance)
    i3: n0 -> n1 (balance)
    i5: n0 -> n2 (balance)
    other/i4: n0 -> n1 (balance)
    imbalance 3.00 -> 1.20, bound 1.20
    ");
    let quiet = Policy { downtime: Downtime::None, ..Policy::default() };
    insta::assert_snapshot!(lines(&planned(&s, &quiet)), @"imbalance 1.00 -> 1.00, bound 1.00");
}

/// Two full members exchange instances by way of a third member with room.
#[test]
fn an_exchange_goes_by_a_third_member() {
    let mut s = cluster(&[8, 8, 8], &[(0, 8), (1, 8), (2, 1)]);
    s.members[0].roles.insert("red".to_owned());
    s.members[1].roles.insert("blue".to_owned());
    s.members[2].roles.extend(["red".to_owned(), "blue".to_owned()]);
    s.instances[2].pinned = true;
    for (n, role) in ["blue", "red"].into_iter().enumerate() {
        s.instances[n].workload.settings.insert(settings::ROLES.to_owned(), role.to_owned());
    }
    insta::assert_snapshot!(lines(&planned(&s, &Policy::default())), @r"
    refused: i0 should not be on n0, which lacks the role blue: impossible: no member has 8 GiB of memory free: the most is 7 GiB, on n2
    refused: i1 should not be on n1, which lacks the role red: impossible: no member has 8 GiB of memory free: the most is 7 GiB, on n2
    imbalance 1.41 -> 1.41, bound 1.00
    ");
    s.members[2].memory_mib = 9 << 10;
    insta::assert_snapshot!(lines(&planned(&s, &Policy::default())), @r"
    i0: n0 -> n2 (must leave its member)
    i1: n1 -> n0 (must leave its member) after [0]
    imbalance 1.47 -> 1.47, bound 1.00
    ");
}

#[test]
fn a_member_is_drained_as_far_as_there_is_room() {
    let mut s = cluster(&[16, 16, 8], &[(0, 12), (0, 2), (1, 6), (2, 2)]);
    s.instances[1].pinned = true;
    let p = Policy { drain: [s.members[0].name.clone()].into(), ..Policy::default() };
    insta::assert_snapshot!(lines(&planned(&s, &p)), @r"
    i2: n1 -> n2 (makes room)
    i0: n0 -> n1 (must leave its member) after [0]
    i3: n2 -> n1 (balance) after [0]
    refused: i1 should not be on n0, which is being drained: impossible: it is tied to its member
    imbalance 1.00 -> 1.05, bound 1.00
    ");
}

#[test]
fn groups_are_repaired_before_balance() {
    let mut s = cluster(&[16, 16, 16], &[(0, 2), (0, 2), (1, 2), (2, 2), (1, 1), (2, 1)]);
    group(&mut s.instances[0], "web", "spread", "strict");
    group(&mut s.instances[1], "web", "spread", "strict");
    group(&mut s.instances[4], "db", "compact", "preferred");
    group(&mut s.instances[5], "db", "compact", "preferred");
    insta::assert_snapshot!(lines(&planned(&s, &Policy::default())), @r"
    i0: n0 -> n1 (group web)
    i2: n1 -> n0 (balance) after [0]
    imbalance 1.20 -> 1.20, bound 1.20
    ");
    for n in 2..4 {
        group(&mut s.instances[n], "web", "compact", "preferred");
    }
    insta::assert_snapshot!(lines(&planned(&s, &Policy::default())), @r"
    refused: instances of the strictly spread group web share a member: impossible: it has 4 instances, but only 3 members may accept them
    note: group web: i0 and i2 have different values of user.stead.group.mode; that of i0 is used
    note: group web: i0 and i2 have different values of user.stead.group.strength; that of i0 is used
    imbalance 1.20 -> 1.20, bound 1.20
    ");
}

#[test]
fn what_cannot_be_moved_counts_against_nobody() {
    let mut s = cluster(&[16, 16, 16], &[(0, 12), (1, 3), (1, 3), (2, 3), (2, 3)]);
    s.instances[0].workload.settings.insert(settings::PIN.to_owned(), "true".to_owned());
    insta::assert_snapshot!(lines(&planned(&s, &Policy::default())), @"imbalance 1.01 -> 1.01, bound 1.01");
}

/// n1 could be repaired with the room that draining n0 needs too, so its overload is not impossible to repair.
#[test]
fn what_only_a_choice_leaves_is_not_called_impossible() {
    let s = cluster(&[8, 8, 12], &[(0, 9), (1, 7), (1, 7), (0, 9), (0, 9)]);
    let made = planned(&s, &Policy { drain: [s.members[0].name.clone()].into(), ..Policy::default() });
    insta::assert_snapshot!(lines(&made), @r"
    i0: n0 -> n2 (must leave its member, too much memory promised)
    refused: i3 should not be on n0, which is being drained: not possible together with the rest: no member has 9 GiB of memory free: the most is 3 GiB, on n2
    refused: other/i4 should not be on n0, which is being drained: not possible together with the rest: no member has 9 GiB of memory free: the most is 3 GiB, on n2
    refused: n0 has promised 18 GiB of memory but has only 8 GiB: impossible: 10 GiB must be moved away, but all other members together have only 3 GiB free
    refused: n1 has promised 14 GiB of memory but has only 8 GiB: not possible together with the rest: 6 GiB must be moved away, but the most that another member has free is 3 GiB, on n2
    imbalance 1.00 -> 1.00, bound 1.00
    ");
}

/// Of three instances on one member, those whose stop would destroy them stay; one that can be moved live, or is stopped
/// anyway, does not.
#[test]
fn ephemeral_instances_are_moved_only_live() {
    let mut s = cluster(&[16, 16, 16], &[(0, 2), (0, 2), (0, 2), (0, 2)]);
    for i in &mut s.instances {
        i.ephemeral = true;
    }
    s.instances[1].migration = Migration::Refresh;
    insta::assert_snapshot!(lines(&planned(&s, &Policy::default())), @"imbalance 1.00 -> 1.00, bound 1.00");
    s.instances[2].migration = Migration::Live;
    s.instances[3].running = false;
    insta::assert_snapshot!(lines(&planned(&s, &Policy::default())), @r"
    i2: n0 -> n1 (balance)
    i3: n0 -> n2 (balance)
    imbalance 2.50 -> 1.00, bound 1.00
    ");
    let drain = Policy { drain: [s.members[0].name.clone()].into(), ..Policy::default() };
    insta::assert_snapshot!(lines(&planned(&s, &drain)), @r"
    i2: n0 -> n1 (must leave its member)
    i3: n0 -> n2 (must leave its member)
    refused: i0 should not be on n0, which is being drained: impossible: it is ephemeral: stopping it for a move would delete it
    refused: i1 should not be on n0, which is being drained: impossible: it is ephemeral: stopping it for a move would delete it
    imbalance 1.00 -> 1.00, bound 1.00
    ");

    // A plan that moves one all the same is refused, whoever made it.
    s.instances[0].ephemeral = false;
    let harmful = planned(&s, &drain);
    assert!(harmful.moves.iter().any(|m| m.instance == s.instances[0].workload.id));
    s.instances[0].ephemeral = true;
    let faults = check(&s, &drain, &harmful).unwrap_err();
    assert!(faults.iter().any(|f| f.what.contains("i0 cannot or may not be moved")), "{faults:?}");
}

/// An evacuated member is drained: what its evacuation stopped counts as running, and leaves; what is to be stopped rather
/// than moved stays.
#[test]
fn what_an_evacuation_stopped_leaves_and_what_is_to_stay_stays() {
    let mut s = cluster(&[16, 16, 16], &[(0, 4), (0, 4), (0, 4), (1, 4)]);
    s.members[0].state = MemberState::Evacuated;
    for i in &mut s.instances[..3] {
        (i.running, i.resumes) = (false, true);
    }
    s.instances[1].evacuation = Evacuation::Stop;
    s.instances[2].evacuation = Evacuation::LiveOnly;
    let drain = Policy {
        drain: [s.members[0].name.clone()].into(),
        stopped: Stopped::Ignore,
        downtime: Downtime::None,
        ..Policy::default()
    };
    insta::assert_snapshot!(lines(&planned(&s, &drain)), @r"
    i0: n0 -> n2 (must leave its member)
    i2: n0 -> n1 (must leave its member)
    refused: i1 should not be on n0, which is being drained: impossible: its cluster.evacuate has it stay on its member
    imbalance 1.00 -> 1.33, bound 1.00
    ");
    // In an ordinary plan too.
    s.members[0].state = MemberState::Online;
    for i in &mut s.instances[..3] {
        (i.running, i.resumes) = (true, false);
    }
    insta::assert_snapshot!(lines(&planned(&s, &Policy::default())), @r"
    i0: n0 -> n2 (balance)
    imbalance 1.75 -> 1.00, bound 1.00
    ");
}

/// A member that would refuse an instance is gone round.
#[test]
fn a_member_that_is_barred_to_an_instance_is_gone_round() {
    let mut s = cluster(&[16, 16, 16], &[(0, 8), (0, 8), (2, 2)]);
    let n1 = s.members[1].name.clone();
    for i in &mut s.instances[..2] {
        i.workload.barred.insert(n1.clone(), Bar::LeftOver(PoolName::from("local")));
    }
    insta::assert_snapshot!(lines(&planned(&s, &Policy::default())), @r"
    i0: n0 -> n2 (balance)
    i2: n2 -> n1 (balance)
    imbalance 2.67 -> 1.33, bound 1.33
    ");
    let n2 = s.members[2].name.clone();
    s.instances[0].workload.barred.insert(n2.clone(), Bar::Parent("br7".to_owned()));
    s.instances[1]
        .workload
        .barred
        .insert(n2, Bar::Volume { pool: PoolName::from("local"), name: "data".to_owned() });
    let drain = Policy { drain: [s.members[0].name.clone()].into(), ..Policy::default() };
    insta::assert_snapshot!(lines(&planned(&s, &drain)), @r"
    refused: i0 should not be on n0, which is being drained: impossible: no other member may accept it; n1: has a left-over volume of its name in pool local; n2: has no interface br7
    refused: i1 should not be on n0, which is being drained: impossible: no other member may accept it; n1: has a left-over volume of its name in pool local; n2: has no volume data in pool local
    imbalance 2.00 -> 2.00, bound 2.00
    ");
}

/// Nothing is known of an offline member but that it is offline: that is said, and the others are planned for.
#[test]
fn an_offline_member_is_named_and_the_others_are_planned_for() {
    let mut s = cluster(&[16, 16, 0], &[(0, 4), (0, 4), (2, 4), (2, 4)]);
    s.members[2].state = MemberState::Offline;
    (s.members[2].cpu_milli, s.members[2].pools_mib) = (0, Default::default());
    insta::assert_snapshot!(lines(&planned(&s, &Policy::default())), @r"
    i0: n0 -> n1 (balance)
    note: n2 is offline: its 2 instances stay, and are not counted
    imbalance 2.00 -> 1.00, bound 1.00
    ");
    let drain = Policy { drain: [s.members[2].name.clone()].into(), ..Policy::default() };
    insta::assert_snapshot!(lines(&planned(&s, &drain)), @r"
    i0: n0 -> n1 (balance)
    refused: i2 should not be on n2, which has no pool local and is being drained: impossible: its member is offline
    refused: i3 should not be on n2, which has no pool local and is being drained: impossible: its member is offline
    note: n2 is offline: its 2 instances stay, and are not counted
    imbalance 2.00 -> 1.00, bound 1.00
    ");
}
