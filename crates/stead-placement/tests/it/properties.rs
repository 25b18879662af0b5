//! Properties of every plan, over random clusters; verdicts of impossibility are compared with an exhaustive search.

use crate::common::{Oracle, Wrong, policy, snapshot};
use proptest::prelude::*;
use std::collections::BTreeSet;
use stead_placement::{
    Plan, Policy, Snapshot, check, plan,
    plan::{Verdict, Violation},
};

fn planned(s: &Snapshot, p: &Policy) -> Plan {
    let made = plan(s, p).expect("a snapshot without contradictions");
    if let Err(faults) = check(s, p, &made) {
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        panic!("{}\nplan: {made:#?}", faults.join("\n"));
    }
    made
}

fn after(s: &Snapshot, made: &Plan) -> Snapshot {
    s.with_moves(made.moves.iter().map(|m| (&m.instance, &m.to)))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_plan_passes_the_checker_and_a_second_is_empty(s in snapshot(1..=9, 0..=40), p in policy()) {
        let made = planned(&s, &p);
        let again = planned(&after(&s, &made), &p);
        prop_assert!(again.moves.is_empty(), "first {:#?}\nthen {:#?}", made.moves, again.moves);
        prop_assert_eq!(again.report.imbalance.before_ppm, made.report.imbalance.after_ppm);
    }

    #[test]
    fn the_order_of_a_snapshot_changes_nothing(
        (s, mixed) in snapshot(1..=6, 0..=24).prop_flat_map(|s| {
            let members = Just(s.members.clone()).prop_shuffle();
            let instances = Just(s.instances.clone()).prop_shuffle();
            (Just(s), (members, instances).prop_map(|(members, instances)| Snapshot { members, instances }))
        }),
        p in policy(),
    ) {
        prop_assert_eq!(planned(&s, &p), planned(&mixed, &p));
    }

    #[test]
    fn no_more_moves_than_are_allowed(s in snapshot(2..=6, 4..=30), mut p in policy(), most in 0usize..6) {
        p.max_moves = Some(most);
        let made = planned(&s, &p);
        prop_assert!(made.moves.len() <= most);
    }

    /// Moves that run at the same time, as `after` permits, never need more room than there is.
    #[test]
    fn what_does_not_wait_can_run_at_once(s in snapshot(2..=6, 4..=30), p in policy(), order in any::<u64>()) {
        let made = planned(&s, &p);
        let (mut begun, mut ended) = (vec![false; made.moves.len()], vec![false; made.moves.len()]);
        let mut random = order | 1;
        let mut next = move |n: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            usize::try_from(random % n as u64).unwrap()
        };
        let memory = |id: &stead_placement::snapshot::InstanceId| {
            let i = s.instances.iter().find(|i| i.workload.id == *id).unwrap();
            p.committed(i).memory_mib
        };
        while !ended.iter().all(|e| *e) {
            let mut can: Vec<(usize, bool)> = Vec::new();
            for n in 0..made.moves.len() {
                match (begun[n], ended[n]) {
                    (false, _) if made.moves[n].after.iter().all(|a| ended[*a]) => can.push((n, false)),
                    (true, false) => can.push((n, true)),
                    _ => {}
                }
            }
            let (n, ends) = can[next(can.len())];
            if ends {
                ended[n] = true;
                continue;
            }
            begun[n] = true;
            // During the move the instance counts on both members.
            let to = &made.moves[n].to;
            let member = s.members.iter().find(|m| m.name == *to).unwrap();
            let mut used: u64 = 0;
            for i in &s.instances {
                let id = &i.workload.id;
                let mut at: BTreeSet<_> = BTreeSet::from([&i.member]);
                for (k, m) in made.moves.iter().enumerate().filter(|(_, m)| m.instance == *id) {
                    if begun[k] { at.insert(&m.to); }
                    if ended[k] { at.remove(&m.from); }
                }
                used += if at.contains(to) { memory(id) } else { 0 };
            }
            let usable = member.memory_mib * u64::from(p.overcommit_percent.memory) / 100;
            prop_assert!(used <= usable || memory(&made.moves[n].instance) == 0, "{used} of {usable} on {to}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Compared with an exhaustive search.
    #[test]
    fn impossible_is_impossible_and_what_can_be_repaired_is(s in snapshot(1..=4, 1..=5), p in policy()) {
        let made = planned(&s, &p);
        let oracle = Oracle::new(&s, &p);
        let reachable = oracle.reachable();
        let begin = oracle.wrong(oracle.start());
        let reported: BTreeSet<Wrong> = made.report.violations.iter().map(Wrong::of).collect();
        prop_assert_eq!(begin.keys().cloned().collect::<BTreeSet<_>>(), reported);
        let no_worse = |(w, amount): (&Wrong, &u64)| begin.get(w).is_some_and(|before| amount <= before);
        let fewest = reachable.values().filter(|w| w.iter().all(no_worse)).map(|w| w.len()).min().unwrap();
        prop_assert_eq!(made.report.refusals.len(), fewest, "{:#?}", made);
        for refusal in &made.report.refusals {
            let wrong = Wrong::of(&refusal.violation);
            let ever = reachable.values().any(|w| !w.contains_key(&wrong));
            match refusal.verdict {
                Verdict::Impossible => prop_assert!(!ever, "{refusal}"),
                Verdict::AtOdds => prop_assert!(ever, "{refusal}"),
                Verdict::NotFound => prop_assert!(false, "a small case was not searched exhaustively: {refusal}"),
            }
        }
        // No placement is more even than the bound says.
        let least = reachable
            .keys()
            .map(|at| {
                // An instance that must leave counts on its target, so the measure does not change when it leaves.
                plan(&oracle.snapshot(at), &p).unwrap().report.imbalance.before_ppm
            })
            .min()
            .unwrap();
        prop_assert!(made.report.imbalance.bound_ppm <= least, "{} > {least}", made.report.imbalance.bound_ppm);
    }
}

/// Small clusters check that the proofs without a search are right; this test checks that they are found in a cluster too
/// large for an exhaustive search.
#[test]
fn large_clusters_report_what_is_impossible() {
    let mut s = Snapshot {
        members: (0..40).map(|n| crate::common::member(n, 16, 16)).collect(),
        instances: (0..60).map(|n| crate::common::instance(n, n % 20, 2, 1)).collect(),
    };
    s.instances[0].workload.limits.memory_mib = Some(17);
    s.instances[1].pinned = true;
    let p =
        Policy { drain: [s.members[0].name.clone(), s.members[1].name.clone()].into(), ..Policy::default() };
    let made = planned(&s, &p);
    let reported: Vec<String> = made.report.refusals.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(reported.join("\n"), @r"
    i0 should not be on n0, which is being drained: impossible: no member has 17 MiB of memory free: the most is 16 MiB, on n10, even if everything movable were moved away; n1: is being drained
    i1 should not be on n1, which is being drained: impossible: it is tied to its member
    n0 has promised 17 MiB of memory but has only 16 MiB: impossible: i0 cannot be moved away: no member has 17 MiB of memory free: the most is 16 MiB, on n10, even if everything movable were moved away; n1: is being drained
    ");
    assert!(
        made.report
            .refusals
            .iter()
            .all(|r| matches!(r.violation, Violation::Misplaced { .. } | Violation::Overload { .. }))
    );
}
