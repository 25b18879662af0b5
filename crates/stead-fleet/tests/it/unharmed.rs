//! No instance is harmed: what would be destroyed is not moved, what does not start is undone, and what could not be undone
//! is not forgotten.

use crate::rebalance::{CLUSTER, planned};
use jiff::Zoned;
use std::{cell::RefCell, num::NonZeroU64, path::Path};
use stead_fleet::{
    facts::{self, Asking},
    journal::Journal,
    plan::{Sight, of_cluster},
    power::Power,
    rebalance::{
        Event, Executor, Limits, Opening, Outcome, Outside, RebalanceError, Report, Request, Summary,
    },
    repair::left_overs,
    shell::NoShell,
};
use stead_incus::{
    Client, Dialect,
    requests::{
        cluster::{EvacuationMode, MemberAction},
        instances::NewInstance,
    },
    types::Config,
};
use stead_placement::{Policy, snapshot::MemberName};
use stead_testkit::fake::{Fake, Fault, Usage, Volume, VolumeKind};
use tokio::sync::watch;

/// Three members, and so many running instances of 1 GiB on the first.
fn piled(instances: usize, change: impl Fn(usize, &mut NewInstance)) -> Fake {
    let fake = Fake::cluster(Dialect::Incus, 3).start();
    for n in 0..instances {
        let mut new = NewInstance {
            name: format!("c{n}"),
            config: Config::from([("limits.memory".into(), "1GiB".into())]),
            ..NewInstance::default()
        };
        change(n, &mut new);
        fake.put_instance("default", "node1", &new, true, Usage::default());
    }
    fake
}

fn at(fake: &Fake, name: &str) -> (String, String) {
    fake.whereabouts("default", name).expect("it is not lost")
}

fn drain(member: &str) -> Policy {
    Policy { drain: [MemberName(member.to_owned())].into(), ..Policy::default() }
}

/// As the command does it, without windows. What happens is told in words.
async fn rebalance(
    client: &Client,
    policy: &Policy,
    dir: &Path,
    limits: Limits,
) -> (Result<Report, RebalanceError>, Vec<Event>) {
    let (_keep, stop) = watch::channel(false);
    let told = RefCell::new(Vec::new());
    let request = Request {
        client,
        policy,
        windows: &[],
        outside: Outside::End,
        limits: &limits,
        journals: dir,
        shell: &NoShell,
    };
    let tell = |event| told.borrow_mut().push(event);
    let report = stead_fleet::rebalance::rebalance(request, &Zoned::now, stop, tell).await;
    (report, told.into_inner())
}

async fn rebalanced(fake: &Fake, policy: &Policy, dir: &Path) -> (Summary, Vec<Event>) {
    let (report, told) = rebalance(&fake.client(), policy, dir, Limits::default()).await;
    (report.unwrap().summary, told)
}

#[tokio::test]
async fn ephemeral_instances_are_not_destroyed() {
    let (fake, dir) = (piled(6, |n, new| new.ephemeral = n < 3), tempfile::tempdir().unwrap());
    for policy in [Policy::default(), drain("node1")] {
        rebalanced(&fake, &policy, dir.path()).await;
        for n in 0..3 {
            assert_eq!(at(&fake, &format!("c{n}")), ("node1".into(), "Running".into()));
        }
    }
    assert!((3..6).all(|n| at(&fake, &format!("c{n}")).0 != "node1"));

    // It may have become so since the plan was made.
    let (fake, dir) = (piled(3, |_, _| {}), tempfile::tempdir().unwrap());
    let client = fake.client();
    let plan = planned(&client).await;
    for n in 0..3 {
        let Some(old) = fake.whereabouts("default", &format!("c{n}")) else { panic!("c{n} is lost") };
        let new = NewInstance { name: format!("c{n}"), ephemeral: true, ..NewInstance::default() };
        fake.put_instance("default", &old.0, &new, true, Usage::default());
    }
    let (journal, past) = Journal::open(dir.path(), CLUSTER).unwrap();
    let (_keep, stop) = watch::channel(false);
    let run = Executor::new(&client, journal, &past, Limits::default(), &Zoned::now, stop, |_| {});
    let summary = run.run(CLUSTER, &plan, Opening::Always).await.unwrap();
    let refused = |o: &Outcome| matches!(o, Outcome::Failed(why) if why.contains("stopping it for a move would delete it"));
    assert!(summary.count(refused) > 0, "{summary:?}");
    for n in 0..3 {
        assert_eq!(at(&fake, &format!("c{n}")), ("node1".into(), "Running".into()));
    }
    assert!(
        !fake.requests().iter().any(|r| r.contains("/state") && r.starts_with("PUT")),
        "something was stopped"
    );
}

#[tokio::test]
async fn nothing_is_stopped_for_a_target_that_lacks_what_it_needs() {
    let device = |keys: &[(&str, &str)]| -> Config {
        keys.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    let data = device(&[("type", "disk"), ("path", "/srv"), ("pool", "default"), ("source", "data")]);
    let nic = device(&[("type", "nic"), ("nictype", "macvlan"), ("parent", "br7")]);
    let fake = piled(2, |n, new| {
        new.devices.insert("extra".into(), if n == 0 { data.clone() } else { nic.clone() });
    });
    let volume = |member: &str| Volume {
        project: "default".into(),
        member: member.into(),
        name: "data".into(),
        kind: VolumeKind::Custom,
    };
    fake.put_volume(volume("node1"));
    let dir = tempfile::tempdir().unwrap();
    let (report, _) = rebalance(&fake.client(), &drain("node1"), dir.path(), Limits::default()).await;
    let report = report.unwrap();
    assert_eq!(report.plan.moves, []);
    let said: Vec<String> = report.plan.report.refusals.iter().map(ToString::to_string).collect();
    assert!(said[0].contains("node2, node3: has no volume data in pool default"), "{said:?}");
    assert!(said[1].contains("node2, node3: has no interface br7"), "{said:?}");
    assert!(
        !fake.requests().iter().any(|r| r.contains("/state") && r.starts_with("PUT")),
        "something was stopped"
    );
    // Where the volume is, it may go.
    fake.put_volume(volume("node3"));
    rebalanced(&fake, &drain("node1"), dir.path()).await;
    assert_eq!(at(&fake, "c0"), ("node3".into(), "Running".into()));
    assert_eq!(at(&fake, "c1"), ("node1".into(), "Running".into()));
}

#[tokio::test]
async fn what_does_not_start_at_its_target_is_moved_back_and_started() {
    let (fake, dir) = (piled(1, |_, _| {}), tempfile::tempdir().unwrap());
    fake.inject(Fault::Fail { operation: "Starting".into(), message: "Missing parent".into() }, 1);
    let (summary, told) = rebalanced(&fake, &drain("node1"), dir.path()).await;
    assert!(told.iter().any(|e| matches!(e, Event::MovesBack { why, .. } if why.contains("Missing parent"))));
    assert!(
        matches!(&summary.moves[..], [(_, Outcome::Failed(why))] if why.ends_with("it was moved back to node1")),
        "{summary:?}"
    );
    assert!(!summary.is_whole());
    assert_eq!(at(&fake, "c0"), ("node1".into(), "Running".into()));
}

#[tokio::test]
async fn what_ran_and_cannot_be_started_is_owed_by_every_later_run() {
    let (fake, dir) = (piled(1, |_, _| {}), tempfile::tempdir().unwrap());
    let broken = || Fault::Fail { operation: "Starting".into(), message: "No such profile".into() };
    fake.inject(broken(), 2);
    let (summary, _) = rebalanced(&fake, &drain("node1"), dir.path()).await;
    assert!(
        matches!(&summary.moves[..], [(_, Outcome::Stranded(why))] if why.contains("moved back to node1; it does not start")),
        "{summary:?}"
    );
    assert_eq!(summary.owed.len(), 1);
    assert_eq!(at(&fake, "c0"), ("node1".into(), "Stopped".into()));
    assert_eq!(Journal::peek(dir.path(), "").unwrap().owed[0].power, Power::Running);

    // Nothing is to be moved, but the run is not done.
    fake.inject(broken(), 1);
    let (summary, told) = rebalanced(&fake, &Policy::default(), dir.path()).await;
    assert!(summary.moves.is_empty() && !summary.is_whole(), "{summary:?}");
    assert!(
        told.iter()
            .any(|e| matches!(e, Event::Debt { still: Some(why), .. } if why.contains("No such profile")))
    );

    // The next one that can start it does.
    let (summary, _) = rebalanced(&fake, &Policy::default(), dir.path()).await;
    assert!(summary.is_whole(), "{summary:?}");
    assert_eq!(at(&fake, "c0"), ("node1".into(), "Running".into()));
    assert_eq!(Journal::peek(dir.path(), "").unwrap().owed, []);
}

#[tokio::test]
async fn an_instance_that_is_owed_is_started_by_the_move_that_takes_it_away() {
    let (fake, dir) = (piled(1, |_, _| {}), tempfile::tempdir().unwrap());
    let broken = || Fault::Fail { operation: "Starting".into(), message: "No such profile".into() };
    fake.inject(broken(), 2);
    rebalanced(&fake, &drain("node1"), dir.path()).await;
    fake.inject(broken(), 1);
    let (summary, _) = rebalanced(&fake, &drain("node1"), dir.path()).await;
    assert!(summary.is_whole(), "{summary:?}");
    assert_eq!(at(&fake, "c0").1, "Running");
    assert_ne!(at(&fake, "c0").0, "node1");
    assert_eq!(Journal::peek(dir.path(), "").unwrap().owed, []);
}

#[tokio::test]
async fn a_member_with_a_left_over_volume_is_gone_round() {
    let left = |member: &str, kind| Volume {
        project: "default".into(),
        member: member.into(),
        name: "c0".into(),
        kind,
    };
    // The engine shows it.
    let (fake, dir) = (piled(1, |_, _| {}), tempfile::tempdir().unwrap());
    fake.put_volume(left("node2", VolumeKind::LeftOver));
    let (summary, _) = rebalanced(&fake, &drain("node1"), dir.path()).await;
    assert!(summary.is_whole(), "{summary:?}");
    assert_eq!(at(&fake, "c0"), ("node3".into(), "Running".into()));
    let found = facts::gather(&fake.client(), Asking::QUIETLY).await.unwrap();
    let found = left_overs(&found, &Journal::peek(dir.path(), "").unwrap(), Dialect::Incus);
    assert_eq!((found.len(), found[0].member.0.as_str(), found[0].recorded), (1, "node2", true));

    // It is on the disk alone: the first try fails, the second goes elsewhere, and that is remembered.
    let (fake, dir) = (piled(1, |_, _| {}), tempfile::tempdir().unwrap());
    let first = planned_to(&fake).await;
    fake.put_volume(left(&first, VolumeKind::Hidden));
    let (summary, told) = rebalanced(&fake, &drain("node1"), dir.path()).await;
    assert!(summary.is_whole() && told.contains(&Event::GoesRound), "{summary:?} {told:?}");
    let (place, status) = at(&fake, "c0");
    assert!(place != first && place != "node1" && status == "Running", "{place} {status}");
    let past = Journal::peek(dir.path(), "").unwrap();
    assert_eq!(past.barred[0].member.0, first);
    let facts = facts::gather(&fake.client(), Asking::QUIETLY).await.unwrap();
    assert!(!left_overs(&facts, &past, Dialect::Incus)[0].recorded);

    // Everywhere: it stays, and runs, and nothing is stopped in vain by the next run.
    let (fake, dir) = (piled(1, |_, _| {}), tempfile::tempdir().unwrap());
    fake.put_volume(left("node2", VolumeKind::Hidden));
    fake.put_volume(left("node3", VolumeKind::Hidden));
    let (summary, _) = rebalanced(&fake, &drain("node1"), dir.path()).await;
    assert!(summary.moves.is_empty(), "{summary:?}");
    assert_eq!(at(&fake, "c0"), ("node1".into(), "Running".into()));
    let stops = || fake.requests().iter().filter(|r| r.starts_with("PUT") && r.contains("/state")).count();
    let before = stops();
    rebalanced(&fake, &drain("node1"), dir.path()).await;
    assert_eq!(stops(), before, "stopped in vain");
    assert_eq!(at(&fake, "c0"), ("node1".into(), "Running".into()));
}

/// LXD gives an instance another name while it moves it, and may leave it so.
#[tokio::test]
async fn an_instance_that_a_cut_move_renamed_gets_its_name_back() {
    let (fake, dir) = (Fake::cluster(Dialect::Lxd, 3).start(), tempfile::tempdir().unwrap());
    let config = Config::from([("volatile.uuid".into(), "5eed".into())]);
    let new = NewInstance { name: "c0".into(), config, ..NewInstance::default() };
    fake.put_instance("default", "node1", &new, true, Usage::default());
    let first = planned_to(&fake).await;
    let left = Volume {
        project: "default".into(),
        member: first.clone(),
        name: "c0".into(),
        kind: VolumeKind::Hidden,
    };
    fake.put_volume(left);
    let (summary, told) = rebalanced(&fake, &drain("node1"), dir.path()).await;
    assert!(summary.is_whole() && told.contains(&Event::GoesRound), "{summary:?} {told:?}");
    let (place, status) = at(&fake, "c0");
    assert!(place != first && place != "node1" && status == "Running", "{place} {status}");
    assert_eq!(fake.whereabouts("default", "lxd-move-of-5eed"), None);
}

async fn planned_to(fake: &Fake) -> String {
    let plan = of_cluster(&fake.client(), &drain("node1"), Sight::PLAIN).await.unwrap().plan;
    plan.moves[0].to.0.clone()
}

#[tokio::test]
async fn what_an_evacuation_stopped_runs_again_elsewhere() {
    let (fake, dir) = (piled(4, |_, _| {}), tempfile::tempdir().unwrap());
    fake.set_status("default", "c3", "Stopped");
    let client = fake.client();
    client.set_member_state("node1", MemberAction::EvacuateAs(Some(EvacuationMode::Stop))).await.unwrap();
    assert_eq!(at(&fake, "c0"), ("node1".into(), "Stopped".into()));
    let (summary, _) = rebalanced(&fake, &drain("node1"), dir.path()).await;
    assert!(summary.is_whole() && summary.moves.len() == 4, "{summary:?}");
    for n in 0..4 {
        let (place, status) = at(&fake, &format!("c{n}"));
        assert_ne!(place, "node1");
        assert_eq!(status, if n < 3 { "Running" } else { "Stopped" }, "c{n}");
    }
}

#[tokio::test]
async fn frozen_instances_come_back_frozen() {
    let (fake, dir) = (piled(2, |_, _| {}), tempfile::tempdir().unwrap());
    fake.set_status("default", "c0", "Frozen");
    let (summary, _) = rebalanced(&fake, &drain("node1"), dir.path()).await;
    assert!(summary.is_whole() && summary.moves.len() == 2, "{summary:?}");
    assert_eq!((at(&fake, "c0").1.as_str(), at(&fake, "c1").1.as_str()), ("Frozen", "Running"));
    // One that does not start at its target is frozen again where it was.
    fake.inject(Fault::Fail { operation: "Starting".into(), message: "Missing parent".into() }, 1);
    let before = at(&fake, "c0");
    rebalanced(&fake, &drain(&before.0), dir.path()).await;
    assert_eq!(at(&fake, "c0"), before);
}

#[tokio::test]
async fn what_is_to_stay_when_its_member_is_emptied_stays() {
    let evacuate = ["stop", "stateful-stop", "force-stop", "live-migrate", "migrate", "auto"];
    let fake = piled(evacuate.len(), |n, new| {
        new.config.insert("cluster.evacuate".into(), evacuate[n].into());
    });
    let dir = tempfile::tempdir().unwrap();
    rebalanced(&fake, &drain("node1"), dir.path()).await;
    for (n, how) in evacuate.iter().enumerate() {
        let (place, status) = at(&fake, &format!("c{n}"));
        assert_eq!((place == "node1", status.as_str()), (n < 4, "Running"), "{how}");
    }
}

#[tokio::test]
async fn an_offline_member_is_planned_round() {
    let fake = piled(4, |_, _| {});
    let new = NewInstance { name: "far".into(), ..NewInstance::default() };
    fake.put_instance("default", "node3", &new, true, Usage::default());
    fake.set_online("node3", false);
    let plan = of_cluster(&fake.client(), &Policy::default(), Sight::PLAIN).await.unwrap().plan;
    assert!(!plan.moves.is_empty() && plan.moves.iter().all(|m| m.to.0 == "node2"), "{plan:?}");
    assert_eq!(plan.report.violations, []);
    let said: Vec<String> = plan.report.findings.iter().map(ToString::to_string).collect();
    assert_eq!(said, ["node3 is offline: its instance stays, and is not counted"]);
}

#[tokio::test]
async fn a_rate_that_cannot_be_kept_is_refused() {
    let (fake, dir) = (piled(3, |_, _| {}), tempfile::tempdir().unwrap());
    let client = fake.client();
    let limits = Limits { mib_per_s: NonZeroU64::new(1000), ..Limits::default() };
    let (report, told) = rebalance(&client, &drain("node1"), dir.path(), limits.clone()).await;
    assert!(report.unwrap().summary.is_whole());
    // 256 MiB each: also the first waits until its whole copy is due.
    let waits = told.iter().filter(|e| matches!(e, Event::WaitsForRate { .. })).count();
    assert_eq!((waits, told.iter().any(|e| matches!(e, Event::WaitsForRate { .. }))), (3, true), "{told:?}");

    // Nobody knows how large they are.
    for n in 0..3 {
        fake.set_usage("default", &format!("c{n}"), Usage { disk_mib: 0, ..Usage::default() });
    }
    let on: Vec<String> = (0..3).map(|n| at(&fake, &format!("c{n}")).0).collect();
    let (report, _) = rebalance(&client, &drain(&on[0]), dir.path(), limits).await;
    let error = report.unwrap_err();
    assert!(
        matches!(&error, RebalanceError::UnknownSizes { mib_per_s: 1000, .. })
            && error.to_string().contains("c0"),
        "{error}"
    );
    let plan = of_cluster(&client, &drain(&on[0]), Sight::PLAIN).await.unwrap().plan;
    assert!(plan.moves.iter().all(|m| m.size_mib.is_none()), "unknown is not 0: {plan:?}");
}
