//! Bootstrap on real engines in bare namespaces. Needs root and mmdebstrap.

mod support;

use serde_json::{Value, json};
use std::time::{Duration, Instant};
use support::{Kind, Lan, tree};

const PATIENCE: Duration = Duration::from_secs(90);

macro_rules! need {
    ($test:literal, $kind:expr) => {
        if let Err(why) = tree($kind) {
            println!("SKIP {}: {why}", $test);
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
        // Again, with a token that is used up: it is a member already.
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

    assert!(nodes[0].tell("join-token node2").unwrap_err().contains("a member already"));
    assert!(nodes[0].tell("trust-token me").unwrap().as_str().unwrap().len() > 100);
    assert_eq!(nodes[1].tell("instances").unwrap(), json!([]));

    // Removed in good order, twice; then it joins again.
    nodes[0].tell("remove node3").unwrap();
    nodes[0].tell("remove node3").unwrap();
    assert_eq!(nodes[0].members(), online(&["node1", "node2"]));
    nodes[2].await_state("waiting", PATIENCE);
    let t = token(nodes[1].tell("join-token node3"));
    assert_eq!(nodes[2].tell(&format!("join {t}")).unwrap()["state"], "online");

    // Two of three are gone: the third says so.
    nodes[1].power_off();
    nodes[2].power_off();
    nodes[0].await_state("offline", PATIENCE);
}
