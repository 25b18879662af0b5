//! Rebalancing a fake cluster, with what can go wrong on the way.

use std::{
    cell::RefCell,
    path::Path,
    time::{Duration, SystemTime},
};
use stead_fleet::{
    facts,
    journal::Journal,
    rebalance::{Event, Limits, Outcome, Rebalance, Summary},
    snapshot::snapshot,
};
use stead_incus::{Client, Dialect, requests::instances::NewInstance, types::Config};
use stead_placement::{Plan, Policy, check, plan};
use stead_testkit::fake::{Fake, Fault, Usage};
use tokio::sync::watch;

const CLUSTER: &str = "f00";
/// Running ones, and one more that is stopped.
const RUNNING: usize = 9;

/// Three members, and every instance on the first.
fn piled() -> Fake {
    let fake = Fake::cluster(Dialect::Incus, 3).start();
    for n in 0..=RUNNING {
        let new = NewInstance {
            name: format!("c{n}"),
            config: Config::from([("limits.memory".into(), "1GiB".into())]),
            ..NewInstance::default()
        };
        fake.put_instance("default", "node1", &new, n < RUNNING, Usage::default());
    }
    fake
}

async fn planned(client: &Client) -> Plan {
    let snapshot = snapshot(&facts::gather(client).await.unwrap());
    let plan = plan(&snapshot, &Policy::default()).unwrap();
    check(&snapshot, &Policy::default(), &plan).unwrap();
    plan
}

/// As the command does it: an earlier run's moves are brought to an end, then the plan of the day is carried out.
async fn rebalance(client: &Client, dir: &Path, limits: Limits, tell: impl Fn(Event)) -> [Summary; 2] {
    let (journal, unfinished) = Journal::open(dir, CLUSTER).unwrap();
    let (_keep, stop) = watch::channel(false);
    let run = Rebalance::new(client, journal, limits, stop, tell);
    let resumed = run.resume(unfinished).await.unwrap();
    [resumed, run.run(CLUSTER, &planned(client).await, None).await.unwrap()]
}

fn assert_whole(fake: &Fake) {
    for n in 0..=RUNNING {
        let (_, status) = fake.whereabouts("default", &format!("c{n}")).expect("no instance is lost");
        assert_eq!(status, if n < RUNNING { "Running" } else { "Stopped" }, "c{n}");
    }
}

#[tokio::test]
async fn members_become_even_and_a_second_plan_is_empty() {
    let (fake, dir) = (piled(), tempfile::tempdir().unwrap());
    let client = fake.client();
    let [_, summary] = rebalance(&client, dir.path(), Limits::default(), |_| {}).await;
    assert!(summary.moves.len() >= 6, "{summary:?}");
    assert!(summary.moves.iter().all(|(_, o)| matches!(o, Outcome::Moved { .. })), "{summary:?}");
    assert_whole(&fake);
    assert_eq!(planned(&client).await.moves, []);
}

#[tokio::test]
async fn several_at_once_come_to_the_same() {
    let (fake, dir) = (piled(), tempfile::tempdir().unwrap());
    let client = fake.client();
    let limits = Limits { at_once: 4, ..Limits::default() };
    let most = RefCell::new((0, 0));
    rebalance(&client, dir.path(), limits, |event| {
        let mut m = most.borrow_mut();
        match event {
            Event::Begins { .. } => m.0 += 1,
            Event::Ended { .. } => m.0 -= 1,
            Event::ServerAway(_) => {}
        }
        m.1 = m.1.max(m.0);
    })
    .await;
    assert!((2..=4).contains(&most.borrow().1), "{most:?}");
    assert_whole(&fake);
    assert_eq!(planned(&client).await.moves, []);
}

#[tokio::test]
async fn a_move_that_fails_leaves_its_instance_running_and_the_others_go_on() {
    let (fake, dir) = (piled(), tempfile::tempdir().unwrap());
    let client = fake.client();
    let first = planned(&client).await.moves[0].clone();
    fake.inject(Fault::Fail { operation: "Migrating".into(), message: "no space left".into() }, 1);
    let [_, summary] = rebalance(&client, dir.path(), Limits::default(), |_| {}).await;
    assert!(
        matches!(&summary.moves[0], (m, Outcome::Failed(why)) if *m == first && why.contains("no space left")),
        "{summary:?}"
    );
    assert!(summary.count(|o| matches!(o, Outcome::Moved { .. })) > 0);
    assert_whole(&fake);
}

#[tokio::test]
async fn an_instance_that_the_server_is_not_through_with_is_waited_for() {
    for (operation, what) in [("Starting", "start"), ("Stopping", "stop"), ("Migrating", "migrate")] {
        let (fake, dir) = (piled(), tempfile::tempdir().unwrap());
        let client = fake.client();
        let message = format!(
            "Failed to create instance {what} operation: Instance is busy running a \"migrate\" operation"
        );
        fake.inject(Fault::Fail { operation: operation.into(), message }, 2);
        let [_, summary] = rebalance(&client, dir.path(), Limits::default(), |_| {}).await;
        assert_eq!(summary.count(|o| !matches!(o, Outcome::Moved { .. })), 0, "{summary:?}");
        assert_whole(&fake);
    }
}

#[tokio::test]
async fn killed_at_fifty_moments_it_is_finished_by_the_next_run() {
    for moment in 0..50u64 {
        let (fake, dir) = (piled(), tempfile::tempdir().unwrap());
        let client = fake.client();
        // Long enough for a kill to hit the middle of things.
        fake.inject(Fault::Delay { operation: "instance".into(), by: Duration::from_millis(4) }, 1000);
        let limits = Limits { at_once: 1 + (moment % 3) as usize, ..Limits::default() };
        let run = rebalance(&client, dir.path(), limits, |_| {});
        // A future that is dropped does no more than a process that is killed; the server goes on with what it began.
        let _ = tokio::time::timeout(Duration::from_millis(moment * 3), run).await;
        rebalance(&client, dir.path(), Limits::default(), |_| {}).await;
        assert_whole(&fake);
        assert_eq!(planned(&client).await.moves, [], "killed after {} ms", moment * 3);
    }
}

#[tokio::test]
async fn a_server_that_restarts_in_the_middle_is_waited_for() {
    let (fake, dir) = (piled(), tempfile::tempdir().unwrap());
    let client = fake.client();
    fake.inject(Fault::Delay { operation: "Migrating".into(), by: Duration::from_millis(150) }, 2);
    let away = RefCell::new(0);
    let restart = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        fake.halt();
        tokio::time::sleep(Duration::from_millis(300)).await;
        fake.resume();
    };
    let tell = |event| {
        if let Event::ServerAway(_) = event {
            *away.borrow_mut() += 1;
        }
    };
    let (summaries, ()) = tokio::join!(rebalance(&client, dir.path(), Limits::default(), tell), restart);
    assert!(*away.borrow() > 0, "the server was never away");
    assert!(summaries[1].moves.iter().all(|(_, o)| matches!(o, Outcome::Moved { .. })), "{summaries:?}");
    assert_whole(&fake);
    assert_eq!(planned(&client).await.moves, []);
}

/// After a restart of its daemon a member may answer long before the cluster takes it for online again.
#[tokio::test]
async fn a_member_that_is_offline_for_a_while_is_waited_for_and_nothing_is_stopped_meanwhile() {
    let (fake, dir) = (piled(), tempfile::tempdir().unwrap());
    let client = fake.client();
    let offline = "node2";
    let back = RefCell::new(false);
    let stopped_in_vain = RefCell::new(Vec::<usize>::new());
    let told = RefCell::new(Vec::new());
    let tell = |event| match event {
        Event::Begins { planned, .. } if planned.to.0 == offline && told.borrow().is_empty() => {
            fake.set_online(offline, false);
        }
        Event::ServerAway(why) => {
            if !*back.borrow() {
                for n in 0..RUNNING {
                    let (_, status) = fake.whereabouts("default", &format!("c{n}")).unwrap();
                    if status != "Running" {
                        stopped_in_vain.borrow_mut().push(n);
                    }
                }
                fake.set_online(offline, true);
                *back.borrow_mut() = true;
            }
            told.borrow_mut().push(why);
        }
        _ => {}
    };
    let [_, summary] = rebalance(&client, dir.path(), Limits::default(), tell).await;
    assert!(told.borrow().iter().any(|why| why.contains("node2 is offline")), "{told:?}");
    assert!(stopped_in_vain.borrow().is_empty(), "{stopped_in_vain:?}");
    assert!(summary.moves.iter().all(|(_, o)| matches!(o, Outcome::Moved { .. })), "{summary:?}");
    assert_whole(&fake);

    // And when it is known only as the move is asked for.
    let (fake, dir) = (piled(), tempfile::tempdir().unwrap());
    let client = fake.client();
    let message = "Target cluster member is offline".to_owned();
    fake.inject(Fault::Refuse { request: "POST /1.0/instances/c".into(), code: 400, message }, 1);
    let [_, summary] = rebalance(&client, dir.path(), Limits::default(), |_| {}).await;
    assert!(summary.moves.iter().all(|(_, o)| matches!(o, Outcome::Moved { .. })), "{summary:?}");
    assert_whole(&fake);
}

#[tokio::test]
async fn asked_to_stop_it_ends_the_move_that_runs_and_begins_no_other() {
    let (fake, dir) = (piled(), tempfile::tempdir().unwrap());
    let client = fake.client();
    let plan = planned(&client).await;
    let (journal, _) = Journal::open(dir.path(), CLUSTER).unwrap();
    let (ask, stop) = watch::channel(false);
    let run = Rebalance::new(&client, journal, Limits::default(), stop, |event| {
        if let Event::Begins { .. } = event {
            let _ = ask.send(true);
        }
    });
    let summary = run.run(CLUSTER, &plan, None).await.unwrap();
    assert_eq!(summary.count(|o| matches!(o, Outcome::Moved { .. })), 1);
    assert_eq!(summary.count(|o| *o == Outcome::Left), plan.moves.len() - 1);
    assert_whole(&fake);
}

#[tokio::test]
async fn when_its_time_is_over_it_begins_nothing() {
    let (fake, dir) = (piled(), tempfile::tempdir().unwrap());
    let client = fake.client();
    let plan = planned(&client).await;
    let (journal, _) = Journal::open(dir.path(), CLUSTER).unwrap();
    let (_keep, stop) = watch::channel(false);
    let events = RefCell::new(0);
    let run = Rebalance::new(&client, journal, Limits::default(), stop, |_| *events.borrow_mut() += 1);
    let summary = run.run(CLUSTER, &plan, Some(SystemTime::now())).await.unwrap();
    assert_eq!(summary.count(|o| *o == Outcome::Left), plan.moves.len());
    assert_eq!(*events.borrow(), 0, "something was begun");
    assert_eq!(planned(&client).await, plan);

    // What has begun when it is over is ended.
    let soon = SystemTime::now() + Duration::from_millis(100);
    fake.inject(Fault::Delay { operation: "Migrating".into(), by: Duration::from_millis(200) }, 1);
    let summary = run.run(CLUSTER, &plan, Some(soon)).await.unwrap();
    assert_eq!(summary.count(|o| matches!(o, Outcome::Moved { .. })), 1, "{summary:?}");
    assert_whole(&fake);
}
