//! Rebalancing a fake cluster, with what can go wrong on the way.

use jiff::{Timestamp, Zoned};
use std::{cell::RefCell, path::Path, time::Duration};
use stead_fleet::{
    facts::{self, Asking},
    journal::{Journal, Past},
    rebalance::{Event, Executor, Limits, Opening, Outcome, Outside, Request, Summary},
    shell::NoShell,
    snapshot::snapshot,
};
use stead_incus::{Client, Dialect, requests::instances::NewInstance, types::Config};
use stead_placement::{Plan, Policy, check, plan};
use stead_testkit::fake::{Fake, Fault, Usage};
use tokio::sync::watch;

pub const CLUSTER: &str = "f00";
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

pub async fn planned(client: &Client) -> Plan {
    let snapshot = snapshot(&facts::gather(client, Asking::QUIETLY).await.unwrap());
    let plan = plan(&snapshot, &Policy::default()).unwrap();
    check(&snapshot, &Policy::default(), &plan).unwrap();
    plan
}

/// As the command does it: an earlier run's moves are brought to an end, then the plan of the day is carried out.
async fn rebalance(client: &Client, dir: &Path, limits: Limits, tell: impl Fn(Event)) -> [Summary; 2] {
    let (journal, past) = Journal::open(dir, CLUSTER).unwrap();
    let (_keep, stop) = watch::channel(false);
    let run = Executor::new(client, journal, &past, limits, &Zoned::now, stop, tell);
    let resumed = run.resume(past.unfinished).await.unwrap();
    [resumed, run.run(CLUSTER, &planned(client).await, Opening::Always).await.unwrap()]
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
            _ => {}
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
    let run =
        Executor::new(&client, journal, &Past::default(), Limits::default(), &Zoned::now, stop, |event| {
            if let Event::Begins { .. } = event {
                let _ = ask.send(true);
            }
        });
    let summary = run.run(CLUSTER, &plan, Opening::Always).await.unwrap();
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
    let tell = |_| *events.borrow_mut() += 1;
    let run = Executor::new(&client, journal, &Past::default(), Limits::default(), &Zoned::now, stop, tell);
    let summary = run.run(CLUSTER, &plan, Opening::Until(Timestamp::now())).await.unwrap();
    assert_eq!(summary.count(|o| *o == Outcome::Left), plan.moves.len());
    assert_eq!(*events.borrow(), 0, "something was begun");
    assert_eq!(planned(&client).await, plan);
    let summary = run.run(CLUSTER, &plan, Opening::NotNow).await.unwrap();
    assert_eq!(summary.count(|o| *o == Outcome::Left), plan.moves.len());

    // What has begun when it is over is ended.
    let soon = Opening::Until(Timestamp::now() + Duration::from_millis(100));
    fake.inject(Fault::Delay { operation: "Migrating".into(), by: Duration::from_millis(200) }, 1);
    let summary = run.run(CLUSTER, &plan, soon).await.unwrap();
    assert_eq!(summary.count(|o| matches!(o, Outcome::Moved { .. })), 1, "{summary:?}");
    assert_whole(&fake);
}

/// The whole, within windows, by a clock that stands still until something happens: what happened, in words, and how the
/// moves ended. `turns`: when this happens (once each), the clock is set to that time of day.
async fn within(
    fake: &Fake,
    windows: &[&str],
    outside: Outside,
    time: &str,
    turns: &[(&str, &str)],
    stop: watch::Receiver<bool>,
) -> (Vec<String>, Summary) {
    let at = |time: &str| -> Zoned { format!("2026-11-21T{time}+00:00[UTC]").parse().unwrap() };
    let (clock, turns) = (RefCell::new(at(time)), RefCell::new(turns.to_vec()));
    let (client, dir) = (fake.client(), tempfile::tempdir().unwrap());
    let windows: Vec<_> = windows.iter().map(|w| w.parse().unwrap()).collect();
    let request = Request {
        client: &client,
        policy: &Policy::default(),
        windows: &windows,
        outside,
        limits: &Limits::default(),
        journals: dir.path(),
        shell: &NoShell,
    };
    let told = RefCell::new(Vec::new());
    let tell = |event| {
        let word = match event {
            Event::Begins { .. } => "begins".to_owned(),
            Event::Ended { .. } => "ended".to_owned(),
            Event::ServerAway(why) => why,
            Event::OutsideWindows { opens, waits: true } => format!("waits until {}", opens.time()),
            Event::OutsideWindows { opens, waits: false } => format!("ends, opens at {}", opens.time()),
            Event::WindowClosed => "closed".to_owned(),
            other => format!("{other:?}"),
        };
        let mut turns = turns.borrow_mut();
        if let Some(n) = turns.iter().position(|(what, _)| *what == word) {
            *clock.borrow_mut() = at(turns.remove(n).1);
        }
        told.borrow_mut().push(word);
    };
    let now = || clock.borrow().clone();
    let report = stead_fleet::rebalance::rebalance(request, &now, stop, tell).await.unwrap();
    (told.into_inner(), report.summary)
}

#[tokio::test]
async fn outside_of_its_windows_it_waits_or_ends() {
    let fake = piled();
    let (ask, stop) = watch::channel(false);
    let noon = ["12:00-13:00"];
    let all = planned(&fake.client()).await.moves.len();
    let left = |summary: &Summary| summary.count(|o| *o == Outcome::Left);

    let (told, summary) = within(&fake, &noon, Outside::End, "09:00:00", &[], stop.clone()).await;
    assert_eq!(told, ["ends, opens at 12:00:00"]);
    assert_eq!((summary.moves.len(), left(&summary)), (all, all));

    // It waits until it is asked to stop.
    let ask = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        ask.send_replace(true);
    };
    let run = within(&fake, &noon, Outside::Wait, "09:00:00", &[], stop);
    let ((told, summary), ()) = tokio::join!(run, ask);
    assert_eq!(told, ["waits until 12:00:00"]);
    assert_eq!((summary.moves.len(), left(&summary)), (all, all));

    // It waits until the window opens.
    let (_ask, stop) = watch::channel(false);
    let opens = [("waits until 12:00:00", "12:00:00")];
    let (told, summary) = within(&fake, &noon, Outside::Wait, "11:59:59.95", &opens, stop).await;
    assert_eq!(told[..2], ["waits until 12:00:00", "begins"]);
    assert_eq!((summary.moves.len(), left(&summary)), (all, 0));
    assert_whole(&fake);
}

#[tokio::test]
async fn a_window_that_closes_leaves_the_rest_to_the_next() {
    let windows = ["12:00-13:00", "13:01-14:00"];
    let (_ask, stop) = watch::channel(false);
    let moved = |o: &Outcome| matches!(o, Outcome::Moved { .. });

    let closes = [("begins", "13:00:59.95")];
    let fake = piled();
    let (told, summary) = within(&fake, &windows, Outside::End, "12:30:00", &closes, stop.clone()).await;
    assert_eq!(told, ["begins", "ended", "closed"]);
    assert_eq!(summary.count(moved), 1);
    assert_eq!(summary.count(|o| *o == Outcome::Left), summary.moves.len() - 1);
    assert_whole(&fake);

    let next = [closes[0], ("waits until 13:01:00", "13:01:00")];
    let fake = piled();
    let (told, summary) = within(&fake, &windows, Outside::Wait, "12:30:00", &next, stop).await;
    assert_eq!(told[..4], ["begins", "ended", "waits until 13:01:00", "begins"]);
    assert_eq!(summary.count(|o| !moved(o)), 0, "{summary:?}");
    assert_whole(&fake);
    assert_eq!(planned(&fake.client()).await.moves, []);
}
