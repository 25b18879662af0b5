//! The fake passes the checks of real servers, and fails as instructed.

use std::time::{Duration, Instant};
use stead_incus::{
    Delivery, Dialect, Error, EventFilter, Feature,
    client::Moved,
    requests::{
        cluster::{EvacuationMode, MemberAction},
        instances::{self, Move, NewInstance, StateAction},
    },
};
use stead_testkit::{
    body::{self, Env},
    fake::{Fake, Fault, MemberSize, Usage},
    image,
};

const SOON: Duration = Duration::from_secs(20);

fn env(fake: &Fake, directory: &tempfile::TempDir) -> Env {
    Env {
        client: fake.client(),
        members: ["node1".into(), "node2".into()],
        image: image::tiny(directory.path(), "fake").unwrap(),
        starts: true,
    }
}

#[tokio::test]
async fn the_body_passes_on_a_fake_incus() {
    let (fake, directory) = (Fake::cluster(Dialect::Incus, 3).start(), tempfile::tempdir().unwrap());
    body::all(&env(&fake, &directory)).await;
}

#[tokio::test]
async fn the_body_passes_on_a_fake_lxd() {
    let (fake, directory) = (Fake::cluster(Dialect::Lxd, 2).start(), tempfile::tempdir().unwrap());
    body::all(&env(&fake, &directory)).await;
}

#[tokio::test]
async fn the_body_passes_on_a_fake_incus_of_tomorrow() {
    let fake = Fake::cluster(Dialect::Incus, 2).with(Feature::RefreshMigration).start();
    let directory = tempfile::tempdir().unwrap();
    body::all(&env(&fake, &directory)).await;
}

fn running(fake: &Fake, name: &str) {
    let new = NewInstance { name: name.into(), ..NewInstance::default() };
    fake.put_instance("default", "node1", &new, true, Usage::default());
}

#[tokio::test]
async fn refresh_moves_a_running_instance() {
    let fake = Fake::cluster(Dialect::Incus, 2).with(Feature::RefreshMigration).start();
    running(&fake, "c1");
    let to = Move { refresh: true, ..Move::to("node2") };
    assert_eq!(fake.client().move_instance("default", "c1", &to).await.unwrap(), Moved::Done);
    assert_eq!(fake.whereabouts("default", "c1").unwrap(), ("node2".into(), "Running".into()));
}

#[tokio::test]
async fn members_are_evacuated_and_restored() {
    let fake = Fake::cluster(Dialect::Incus, 3).start();
    for name in ["a", "b", "c"] {
        running(&fake, name);
    }
    let c = fake.client();
    let mode = MemberAction::EvacuateAs(Some(EvacuationMode::Migrate));
    c.set_member_state("node1", mode).await.unwrap();
    assert_eq!(c.member("node1").await.unwrap().value.status, "Evacuated");
    let places: Vec<String> =
        ["a", "b", "c"].iter().map(|n| fake.whereabouts("default", n).unwrap().0).collect();
    assert_eq!(places, ["node2", "node3", "node2"]);
    assert!(c.set_member_state("node1", mode).await.is_err());
    c.set_member_state("node1", MemberAction::Restore).await.unwrap();
    assert_eq!(fake.whereabouts("default", "b").unwrap(), ("node1".into(), "Running".into()));
    let live = MemberAction::EvacuateAs(Some(EvacuationMode::RefreshMigrate));
    assert!(matches!(c.set_member_state("node1", live).await, Err(Error::Extension { .. })));
}

#[tokio::test]
async fn new_instances_go_to_the_emptiest_member() {
    let fake = Fake::cluster(Dialect::Incus, 3).start();
    running(&fake, "a");
    let c = fake.client();
    for name in ["b", "c"] {
        let new = NewInstance { name: name.into(), ..NewInstance::default() };
        c.create_instance("default", None, &new).await.unwrap();
    }
    assert_eq!(fake.whereabouts("default", "b").unwrap().0, "node2");
    assert_eq!(fake.whereabouts("default", "c").unwrap().0, "node3");
}

#[tokio::test]
async fn an_operation_fails_when_told_to() {
    let fake = Fake::cluster(Dialect::Incus, 2).start();
    running(&fake, "c1");
    fake.inject(Fault::Fail { operation: "c1".into(), message: "no space left on device".into() }, 1);
    let c = fake.client();
    match c.set_instance_state("default", "c1", StateAction::Stop, SOON).await.unwrap_err() {
        Error::Operation { message, .. } => assert_eq!(message, "no space left on device"),
        other => panic!("{other}"),
    }
    assert_eq!(fake.whereabouts("default", "c1").unwrap().1, "Running");
    c.set_instance_state("default", "c1", StateAction::Stop, SOON).await.unwrap();
}

#[tokio::test]
async fn progress_is_reported_while_an_operation_runs() {
    let fake = Fake::cluster(Dialect::Incus, 2).start();
    running(&fake, "c1");
    let by = Duration::from_millis(2500);
    fake.inject(Fault::Delay { operation: "Stopping".into(), by }, 1);
    let c = fake.client();
    let stop = instances::set_state("default", "c1", StateAction::Stop, SOON);
    let operation = c.begin(&stop).await.unwrap().unwrap();
    // The instance is busy meanwhile.
    let busy = c.set_instance_state("default", "c1", StateAction::Kill, SOON).await.unwrap_err();
    assert!(busy.to_string().contains("busy"), "{busy}");
    let mut told = Vec::new();
    c.watch(&operation, SOON, Duration::from_secs(1), |o| told.push(o.progress().unwrap().percent))
        .await
        .unwrap();
    assert_eq!(told, [Some(50), Some(50)]);
}

#[tokio::test]
async fn waiting_has_a_time_limit() {
    let fake = Fake::cluster(Dialect::Incus, 2).start();
    running(&fake, "c1");
    fake.inject(Fault::Delay { operation: "c1".into(), by: Duration::from_secs(60) }, 1);
    let c = fake.client();
    let stop = instances::set_state("default", "c1", StateAction::Stop, SOON);
    let operation = c.begin(&stop).await.unwrap().unwrap();
    let waited = c.wait(&operation, Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(waited, Error::Timeout { .. }), "{waited}");
}

#[tokio::test]
async fn waiting_goes_on_when_the_connection_breaks() {
    let fake = Fake::cluster(Dialect::Lxd, 2).start();
    running(&fake, "c1");
    fake.inject(Fault::Delay { operation: "c1".into(), by: Duration::from_millis(500) }, 1);
    fake.inject(Fault::Drop { request: "/wait".into(), after_acting: false }, 2);
    fake.client().set_instance_state("default", "c1", StateAction::Stop, SOON).await.unwrap();
    assert_eq!(fake.whereabouts("default", "c1").unwrap().1, "Stopped");
}

#[tokio::test]
async fn a_restart_in_the_middle_leaves_the_outcome_unknown() {
    let fake = Fake::cluster(Dialect::Incus, 2).start();
    running(&fake, "c1");
    fake.inject(Fault::Delay { operation: "c1".into(), by: Duration::from_secs(60) }, 1);
    let c = fake.client();
    let stop = c.set_instance_state("default", "c1", StateAction::Stop, SOON);
    let restart = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        fake.halt();
        tokio::time::sleep(Duration::from_millis(600)).await;
        fake.resume();
    };
    let (stopped, ()) = tokio::join!(stop, restart);
    match stopped.unwrap_err() {
        Error::OutcomeUnknown { interrupted, .. } => assert!(interrupted),
        other => panic!("{other}"),
    }
    assert_eq!(fake.whereabouts("default", "c1").unwrap().1, "Running");
}

#[tokio::test]
async fn events_report_a_possible_gap() {
    let fake = Fake::cluster(Dialect::Incus, 2).start();
    running(&fake, "c1");
    let c = fake.client();
    let mut events = c.events(EventFilter::lifecycle()).await.unwrap();
    fake.halt();
    fake.resume();
    assert_eq!(events.next().await.unwrap(), Delivery::Reconnected);
    c.set_instance_state("default", "c1", StateAction::Stop, SOON).await.unwrap();
    let Delivery::Event(event) = events.next().await.unwrap() else { panic!("no event") };
    assert_eq!(event.lifecycle().unwrap().action, "instance-shutdown");
}

#[tokio::test]
async fn events_give_up_after_their_patience() {
    let fake = Fake::cluster(Dialect::Incus, 2).start();
    let filter = EventFilter { patience: Duration::from_millis(300), ..EventFilter::lifecycle() };
    let mut events = fake.client().events(filter).await.unwrap();
    fake.halt();
    let begun = Instant::now();
    assert!(events.next().await.unwrap_err().is_silence());
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn api_extensions_are_read_once_and_again_after_a_restart() {
    let fake = Fake::cluster(Dialect::Incus, 2).start();
    let c = fake.client();
    let asked = || fake.requests().iter().filter(|r| *r == "GET /1.0").count();
    for _ in 0..3 {
        c.member_state("node1").await.unwrap();
    }
    assert_eq!(asked(), 1);
    fake.halt();
    fake.resume();
    c.member_state("node1").await.unwrap();
    c.member_state("node1").await.unwrap();
    assert!((2..=3).contains(&asked()), "asked {} times", asked());
}

/// The server acted and its answer was lost: the client does not repeat a change by itself.
#[tokio::test]
async fn a_change_is_never_repeated_by_itself() {
    let fake = Fake::cluster(Dialect::Incus, 2).start();
    let c = fake.client();
    c.members().await.unwrap();
    fake.inject(Fault::Drop { request: "POST /1.0/instances".into(), after_acting: true }, 1);
    let new = NewInstance { name: "c1".into(), ..NewInstance::default() };
    assert!(c.create_instance("default", None, &new).await.unwrap_err().is_silence());
    let posts = fake.requests().iter().filter(|r| r.starts_with("POST")).count();
    assert_eq!(posts, 1);
    // A request without effects is repeated when an idle connection breaks.
    c.members().await.unwrap();
    fake.inject(Fault::Drop { request: "GET /1.0/cluster/members".into(), after_acting: false }, 1);
    assert_eq!(c.members().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_server_that_refuses_is_quoted() {
    let fake = Fake::cluster(Dialect::Incus, 2).start();
    let message = "not authorized".to_owned();
    fake.inject(Fault::Refuse { request: "cluster/members".into(), code: 403, message }, 1);
    let e = fake.client().members().await.unwrap_err();
    assert_eq!(e.to_string(), "GET /1.0/cluster/members?recursion=1 was refused (403): not authorized");
}

#[tokio::test]
async fn answers_have_a_limit() {
    let fake = Fake::cluster(Dialect::Incus, 2).start();
    let request = stead_incus::requests::server::get().at_most(100);
    let e = fake.client().send(&request).await.unwrap_err();
    assert!(matches!(e, Error::TooLong { limit_bytes: 100, .. }), "{e}");
}

/// Two fakes with the same requests give exactly the same answers.
#[tokio::test]
async fn the_fake_is_deterministic() {
    let told = async || {
        let fake = Fake::server(Dialect::Incus)
            .member("big", MemberSize { cpus: 64, memory_mib: 256 * 1024, disk_gib: 1000 })
            .member("small", MemberSize::default())
            .start();
        let c = fake.client();
        let new = NewInstance { name: "c1".into(), ..NewInstance::default() };
        c.create_instance("default", None, &new).await.unwrap();
        c.create_snapshot("default", "c1", "s", false).await.unwrap();
        fake.warn("Offline cluster member", "low", "");
        let list: serde_json::Value = c.fetch(&instances::list_all()).await.unwrap();
        format!("{list} {:?} {:?}", c.members().await.unwrap(), c.warnings().await.unwrap())
    };
    assert_eq!(told().await, told().await);
}

#[test]
fn programs_without_their_own_runtime() {
    let (tell, told) = std::sync::mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let fake = Fake::cluster(Dialect::Lxd, 2).start();
            tell.send(fake.endpoint()).unwrap();
            let _ = stopped.await;
        });
    });
    let client = stead_incus::blocking::Client::discover(told.recv().unwrap()).unwrap();
    assert_eq!(client.block(async |c| c.dialect()), Dialect::Lxd);
    assert_eq!(client.block(async |c| c.members().await).unwrap().len(), 2);
    let members: serde_json::Value = client.fetch(&stead_incus::requests::cluster::members()).unwrap();
    assert_eq!(members[0]["server_name"], "node1");
    let key = stead_incus::types::Config::from([("user.a".to_owned(), "b".to_owned())]);
    let patch = stead_incus::requests::server::patch_config(&key);
    assert_eq!(client.run(&patch, SOON).unwrap(), None);
    drop(client);
    stop.send(()).unwrap();
    server.join().unwrap();
}
