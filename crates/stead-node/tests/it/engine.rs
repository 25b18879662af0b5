//! Bootstrap on real engines in bare namespaces. Needs root and mmdebstrap.

use crate::support::{Kind, Lan, tree};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use stead_agent::pki::{ClusterCa, OffsetDateTime};
use stead_model::agent::Access;
use stead_testkit::{host::skipped, wait};

/// Longer than an interrupted engine is given to make progress (45 s).
const PATIENCE: Duration = Duration::from_secs(120);

macro_rules! need {
    ($test:literal, $kind:expr) => {
        if let Err(why) = tree($kind) {
            skipped($test, &why);
            return;
        }
    };
}

fn token(answer: Result<Value, String>) -> String {
    answer.unwrap().as_str().unwrap().to_owned()
}

fn online(names: &[&str]) -> Vec<(String, String)> {
    names.iter().map(|n| ((*n).to_owned(), "Online".to_owned())).collect()
}

/// The engine trusts a client that asks for access, once, and its environment and files are those of the stock client.
fn trusts_a_client(node: &mut crate::support::Node, variable: &str) {
    let now = OffsetDateTime::now_utc();
    let ca = ClusterCa::create(&"demo".parse().unwrap(), now).unwrap();
    let certificate = ca.issue_client("me", now).unwrap().certificate_pem;
    let request = json!({ "cluster": "demo", "address": "127.0.0.1:8443", "directory": "/client",
        "client": "me", "certificate_pem": certificate });
    for _ in 0..2 {
        let access: Access =
            serde_json::from_value(node.tell(&format!("access {request}")).unwrap()).unwrap();
        assert_eq!(access.environment[variable], "/client");
        let names: Vec<&str> = access.files.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["servercerts/demo.crt", "config.yml"]);
        assert!(access.files[0].bytes.starts_with(b"-----BEGIN CERTIFICATE-----"));
    }
    let trusted = node.client(&["query", "/1.0/certificates?recursion=1"]).unwrap();
    assert_eq!(
        trusted.matches("BEGIN CERTIFICATE").count(),
        trusted.matches(r#""type""#).count(),
        "{trusted}"
    );
    assert_eq!(trusted.matches(r#""me""#).count(), 1, "{trusted}");
}

#[test]
fn three_incus_nodes_form_a_cluster() {
    need!("three_incus_nodes_form_a_cluster", Kind::Incus);
    let lan = Lan::new();
    let began = Instant::now();
    let user = json!({ "preseed": { "config": { "images.auto_update_interval": 0 } } });
    let mut nodes: Vec<_> = (1..=3).map(|n| lan.node(Kind::Incus, n, user.clone())).collect();
    nodes[0].await_state("online", PATIENCE);
    println!("first online after {:?}", began.elapsed());
    for i in [1, 2] {
        let name = nodes[i].name();
        let t = token(nodes[0].tell(&format!("join-token {name}")));
        let status = nodes[i].tell(&format!("join {t}")).unwrap();
        assert_eq!(status["state"], "online");
        println!("{name} joined after {:?}", began.elapsed());
        // A second join with a used token succeeds: it is already a member.
        assert_eq!(nodes[i].tell(&format!("join {t}")).unwrap()["state"], "online");
    }
    assert_eq!(nodes[2].members(), online(&["node1", "node2", "node3"]));
    let certificates: Vec<Value> =
        nodes.iter_mut().map(|n| n.tell("status").unwrap()["certificate"].take()).collect();
    assert!(certificates[0].as_str().unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
    assert!(certificates.iter().all(|c| *c == certificates[0]), "members show different certificates");
    let config = nodes[1].client(&["config", "get", "images.auto_update_interval"]).unwrap();
    assert_eq!(config.trim(), "0");
    let profile = nodes[2].client(&["profile", "device", "get", "default", "eth0", "parent"]).unwrap();
    assert_eq!(profile.trim(), "br0");

    assert!(nodes[0].tell("join-token node2").unwrap_err().contains("already a member"));
    trusts_a_client(&mut nodes[1], "INCUS_CONF");
    assert_eq!(nodes[1].tell("instances").unwrap(), json!([]));

    // Removed properly, twice; then it joins again.
    nodes[0].tell("remove node3").unwrap();
    nodes[0].tell("remove node3").unwrap();
    assert_eq!(nodes[0].members(), online(&["node1", "node2"]));
    nodes[2].await_state("waiting", PATIENCE);
    let t = token(nodes[1].tell("join-token node3"));
    assert_eq!(nodes[2].tell(&format!("join {t}")).unwrap()["state"], "online");

    // Two of three are gone: the third reports it.
    nodes[1].power_off();
    nodes[2].power_off();
    nodes[0].await_state("offline", PATIENCE);
}

#[test]
fn two_lxd_nodes_form_a_cluster() {
    need!("two_lxd_nodes_form_a_cluster", Kind::Lxd);
    let lan = Lan::new();
    let began = Instant::now();
    let mut nodes: Vec<_> = (1..=2).map(|n| lan.node(Kind::Lxd, n, json!({}))).collect();
    nodes[0].await_state("online", PATIENCE);
    let t = token(nodes[0].tell("join-token node2"));
    assert_eq!(nodes[1].tell(&format!("join {t}")).unwrap()["state"], "online");
    println!("two LXD members after {:?}", began.elapsed());
    assert_eq!(nodes[0].members(), online(&["node1", "node2"]));
    let status = nodes[1].tell("status").unwrap();
    assert!(status["version"].as_str().unwrap().starts_with("5.0"));
    trusts_a_client(&mut nodes[0], "LXD_CONF");
    nodes[0].tell("remove node2").unwrap();
    assert_eq!(nodes[0].members(), online(&["node1"]));
    nodes[1].await_state("waiting", PATIENCE);
}

/// The pool is btrfs on the disk, comes back after a reboot, and a disk with other data is left unchanged.
#[test]
fn the_storage_disk_becomes_the_pool() {
    need!("the_storage_disk_becomes_the_pool", Kind::Incus);
    let lan = Lan::new();
    let (disk1, disk2) = (lan.disk(1), lan.disk(2));
    let mut first = lan.node_with_disk(Kind::Incus, 1, &disk1);
    first.await_state("online", PATIENCE);
    let mut second = lan.node_with_disk(Kind::Incus, 2, &disk2);
    let t = token(first.tell("join-token node2"));
    let began = Instant::now();
    second.tell(&format!("join {t}")).unwrap();
    // The engine looks for the link by UUID at once and then only every 500 ms, for 10 s in all.
    println!("joining took {:?}", began.elapsed());
    for node in [&first, &second] {
        let pool = node.client(&["storage", "show", "default", "--target", &node.name()]).unwrap();
        assert!(pool.contains("driver: btrfs"), "{pool}");
        let mounts = node.exec(&["cat", "/proc/mounts"]).unwrap();
        assert!(mounts.contains("/var/lib/incus/storage-pools/default btrfs"), "{mounts}");
    }
    drop(t);
    second.power_off();
    second.power_on();
    second.await_state("online", PATIENCE);
    assert!(second.exec(&["cat", "/proc/mounts"]).unwrap().contains("storage-pools/default btrfs"));
}

#[test]
fn a_disk_with_data_is_left_unchanged() {
    need!("a_disk_with_data_is_left_unchanged", Kind::Incus);
    let lan = Lan::new();
    let disk = lan.disk(1);
    let made = std::process::Command::new("mkfs.ext4").arg("-q").arg(disk.device()).status().unwrap();
    assert!(made.success());
    let before = std::fs::read(disk.device()).unwrap();
    let mut node = lan.node_with_disk(Kind::Incus, 1, &disk);
    let detail = wait::answer(PATIENCE, "the failure", || {
        let status = node.tell("status").unwrap();
        (status["state"] == "failed").then(|| status["detail"].to_string())
    });
    assert!(detail.contains("contains something other than a pool"), "{detail}");
    assert!(std::fs::read(disk.device()).unwrap() == before, "the disk was written to");
}

/// Power fails at moments spread over the whole initialisation; afterwards the node always becomes the only member,
/// online.
#[test]
fn power_cuts_while_initialising() {
    need!("power_cuts_while_initialising", Kind::Incus);
    let lan = Lan::new();
    let cuts = often(6, 24);
    for cut in 0..cuts {
        let mut node = lan.node(Kind::Incus, 1, json!({}));
        // It is all over 0.4 s to 0.9 s after the node is up.
        std::thread::sleep(Duration::from_millis(100 + cut * 840 / cuts));
        node.power_off();
        node.power_on();
        node.await_state("online", PATIENCE);
        assert_eq!(node.members(), online(&["node1"]), "cut {cut}");
        node.power_off();
        node.forget();
    }
}

/// Number of repetitions: `few` in CI, `many` on request (`make faults`).
fn often(few: u64, many: u64) -> u64 {
    if std::env::var_os("STEAD_TEST_FAULTS").is_some() { many } else { few }
}

/// The joining node loses power, or its daemon is killed, at moments spread over the whole join; it ends online, at
/// once or by a new token, and nothing of the failed attempt stays in the cluster.
#[test]
fn a_joiner_dies_at_any_moment() {
    need!("a_joiner_dies_at_any_moment", Kind::Incus);
    let lan = Lan::new();
    let (disk1, disk) = (lan.disk(1), lan.disk(2));
    let mut first = lan.node_with_disk(Kind::Incus, 1, &disk1);
    first.await_state("online", PATIENCE);
    let mut retried = 0;
    let cuts = often(8, 32);
    for cut in 0..cuts {
        let whole_node = cut % 2 == 0;
        let mut joiner = lan.node_with_disk(Kind::Incus, 2, &disk);
        joiner.await_state("waiting", PATIENCE);
        let t = token(first.tell("join-token node2"));
        joiner.begin(&format!("join {t}"));
        std::thread::sleep(Duration::from_millis(10 + cut * 720 / cuts));
        if whole_node {
            joiner.power_off();
            joiner.power_on();
        } else {
            joiner.kill_daemon();
            if let Err(e) = joiner.answer() {
                println!("cut {cut}: {e}");
            }
        }
        let begun = Instant::now();
        let state = wait::answer(PATIENCE, "either end", || {
            let state = joiner.state();
            (state == "online" || state == "waiting").then_some(state)
        });
        println!("cut {cut}: {state} after {:?}", begun.elapsed());
        if state == "waiting" {
            retried += 1;
            let t = token(first.tell("join-token node2"));
            assert_eq!(joiner.tell(&format!("join {t}")).unwrap()["state"], "online", "cut {cut}");
        }
        assert_eq!(first.members(), online(&["node1", "node2"]), "cut {cut}");
        first.tell("remove-force node2").unwrap();
        joiner.power_off();
        joiner.forget();
        disk.clear();
    }
    println!("{retried} of {cuts} joined by a second token");
    assert!(retried > 0, "no cut hit a join");
}
