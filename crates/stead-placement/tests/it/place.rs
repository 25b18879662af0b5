//! Batches of new instances, compared with an exhaustive search.

use crate::common::{Oracle, policy, snapshot, workloads};
use proptest::prelude::*;
use std::collections::BTreeSet;
use stead_placement::{
    Policy, Snapshot,
    place::{Placement, place},
    plan::Verdict,
    policy::{GroupMode, GroupStrength},
    snapshot::{Amounts, Evacuation, Instance, Migration, Workload},
};

/// The cluster with the batch on its first member, for the oracle.
fn with(s: &Snapshot, batch: &[Workload]) -> Snapshot {
    let mut all = s.clone();
    all.instances.extend(batch.iter().map(|w| Instance {
        workload: w.clone(),
        member: s.members[0].name.clone(),
        running: true,
        pinned: false,
        migration: Migration::Stopped,
        size_mib: None,
        at_least_mib: 0,
        resumes: false,
        ephemeral: false,
        evacuation: Evacuation::Move,
        measured: Amounts::default(),
    }));
    all
}

/// Whether the chosen instances of the batch can be on the members given by `at`, which covers the whole cluster.
/// Instances of the batch that are not chosen do not count.
fn allowed(oracle: &Oracle<'_>, at: &[usize], old: usize, chosen: &[usize]) -> bool {
    let there = |i: usize| i < old || chosen.contains(&i);
    let used = |m: usize| {
        let mut sum = [0; 3];
        for i in (0..at.len()).filter(|i| at[*i] == m && there(*i)) {
            let d = oracle.demand(i);
            (0..3).for_each(|r| sum[r] += d[r]);
        }
        sum
    };
    chosen.iter().all(|i| {
        let (m, d) = (at[*i], oracle.demand(*i));
        let (used, usable) = (used(m), oracle.usable(m));
        oracle.enters(*i, m)
            && (0..3).all(|r| d[r] == 0 || used[r] <= usable[r])
            && oracle.groups.iter().filter(|(.., of)| of.contains(i)).all(|(_, mode, strength, of)| {
                let mates = || of.iter().filter(|mate| there(**mate) && *mate != i);
                match (strength, mode) {
                    (GroupStrength::Preferred, _) => true,
                    (_, GroupMode::Spread) => mates().all(|mate| at[*mate] != m),
                    (_, GroupMode::Compact) => mates().all(|mate| at[*mate] == m),
                }
            })
    })
}

/// Whether all chosen instances can be placed.
fn any_way(oracle: &Oracle<'_>, old: usize, chosen: &[usize]) -> bool {
    let members = oracle.members.len();
    (0..members.pow(chosen.len() as u32)).any(|way| {
        let mut at = oracle.start().to_vec();
        let mut rest = way;
        for i in chosen {
            at[*i] = rest % members;
            rest /= members;
        }
        allowed(oracle, &at, old, chosen)
    })
}

fn placed(s: &Snapshot, p: &Policy, batch: &[Workload]) -> Placement {
    place(s, p, batch).expect("a snapshot without contradictions")
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_trying_everything(s in snapshot(1..=4, 0..=6), batch in workloads(1..=5, 100), p in policy()) {
        let made = placed(&s, &p, &batch);
        prop_assert_eq!(made.placed.len() + made.refused.len(), batch.len());
        let (all, old) = (with(&s, &batch), s.instances.len());
        let oracle = Oracle::new(&all, &p);
        let number = |id| old + batch.iter().position(|w| w.id == id).unwrap();
        // Placed instances are on members that may accept them.
        let mut at = oracle.start().to_vec();
        let chosen: Vec<usize> = made.placed.iter().map(|x| number(x.instance.clone())).collect();
        for (x, i) in made.placed.iter().zip(&chosen) {
            at[*i] = all.members.iter().position(|m| m.name == x.member).unwrap();
        }
        prop_assert!(allowed(&oracle, &at, old, &chosen), "{made:#?}");
        // A strictly compact group is placed as one lot.
        let lot = |i: usize| -> Vec<usize> {
            let strict = oracle.groups.iter().find(|(_, mode, strength, of)| {
                of.contains(&i) && (*mode, *strength) == (GroupMode::Compact, GroupStrength::Strict)
            });
            strict.map_or(vec![i], |(.., of)| of.iter().copied().filter(|i| *i >= old).collect())
        };
        let everything: Vec<usize> = (old..all.instances.len()).collect();
        let placeable: Vec<usize> =
            everything.iter().copied().filter(|i| any_way(&oracle, old, &lot(*i))).collect();
        let reported: BTreeSet<usize> = made
            .refused
            .iter()
            .filter(|r| r.verdict == Verdict::Impossible)
            .map(|r| number(r.instance.clone()))
            .collect();
        let impossible: BTreeSet<usize> = everything.iter().copied().filter(|i| !placeable.contains(i)).collect();
        prop_assert_eq!(reported, impossible, "{:#?}", made);
        // The rest is placed if it can be placed together; otherwise the verdict says that it cannot.
        let together = any_way(&oracle, old, &placeable);
        let left: Vec<_> = made.refused.iter().filter(|r| r.verdict != Verdict::Impossible).collect();
        prop_assert_eq!(left.is_empty(), together, "{:#?}", made);
        prop_assert!(left.iter().all(|r| r.verdict == Verdict::AtOdds));
    }

    #[test]
    fn the_order_of_a_batch_changes_nothing(
        s in snapshot(1..=6, 0..=12),
        (batch, mixed) in workloads(0..=12, 100).prop_flat_map(|b| (Just(b.clone()), Just(b).prop_shuffle())),
        p in policy(),
    ) {
        prop_assert_eq!(placed(&s, &p, &batch), placed(&s, &p, &mixed));
    }
}

#[test]
fn a_refusal_says_why_with_numbers() {
    let mut s = Snapshot {
        members: (0..4).map(|n| crate::common::member(n, 16 << 10, 8000)).collect(),
        instances: (0..3).map(|n| crate::common::instance(n, n, (10 + n as u64) << 10, 1000)).collect(),
    };
    s.members[3].networks.clear();
    let batch = [crate::common::workload(50, 12 << 10, 1000), crate::common::workload(51, 4 << 10, 1000)];
    let made = placed(&s, &Policy::default(), &batch);
    insta::assert_json_snapshot!(made, @r#"
    {
      "placed": [
        {
          "instance": {
            "project": "default",
            "name": "i51"
          },
          "member": "n0",
          "level_ppm": 875000
        }
      ],
      "refused": [
        {
          "instance": {
            "project": "default",
            "name": "i50"
          },
          "verdict": "impossible",
          "why": "no member has 12 GiB of memory free: the most is 6 GiB, on n0; n3: has no network br0"
        }
      ],
      "findings": []
    }
    "#);
}
