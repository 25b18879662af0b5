//! The client of the engines' API on real engines: what the fake passes too (`stead_testkit::body`), and what only a
//! real engine can show: commands, files, measurements, copies between servers, restarts.

mod common;
mod engine;

use common::{World, eventually};
use engine::{client, copies, real, unix_client};
use std::time::Duration;
use stead_incus::{Dialect, Error, EventFilter, Told, requests::instances};
use stead_testkit::{body, body::Env, image};

fn cluster_file(name: &str, image: &str, network: u8, nodes: u8) -> String {
    format!(
        "name: {name}\nimage: {image}\nnodes: {nodes}\nmachine:\n  backend: namespace\n  disks: [{{name: pool, size: 4GiB, role: storage}}]\n\
         networks:\n  - {{ name: lan, ipv4: 10.{network}.0.0/24, ipv6: \"fd{network}::/64\" }}\n"
    )
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn env(w: &World, cluster: &str, flavour: &str) -> Env {
    Env {
        client: client(w, cluster),
        members: ["node1".into(), "node2".into()],
        image: image::tiny(&w.state, flavour).unwrap(),
    }
}

/// Everything, on one engine: over HTTPS, and the body once more over the unix socket.
fn whole(test: &str, image: &str, dialect: Dialect, network: u8) {
    let Some(w) = World::new(test, &[image]) else { return };
    let name = format!("t-client-{}", dialect.to_string().to_lowercase());
    w.ok(&["up", &w.file(&name, &cluster_file(&name, image, network, 2))]);
    let runtime = runtime();
    let env = env(&w, &name, "one");
    assert_eq!(env.client.dialect(), dialect);
    runtime.block_on(async {
        body::all(&env).await;
        real::all(&env).await;
        copies::all(&env).await;
    });
    let other = Env { client: unix_client(&w, &name, "node2", dialect), ..self::env(&w, &name, "two") };
    runtime.block_on(async {
        body::all(&other).await;
        real::commands(&other).await;
    });
    restarted(&w, &runtime, &env, &name, dialect);
    w.down(&name);
}

/// The server is restarted while it is waited for and listened to.
fn restarted(w: &World, runtime: &tokio::runtime::Runtime, env: &Env, cluster: &str, dialect: Dialect) {
    let service = match dialect {
        Dialect::Incus => "incusd",
        Dialect::Lxd => "lxd",
    };
    let c = unix_client(w, cluster, "node1", dialect);
    let sleeping = runtime.block_on(async {
        c.server_info().await.unwrap();
        let new = instances::NewInstance::of_image("stead-r1", "stead-tiny");
        c.create_instance("default", Some(&env.members[0]), &new).await.unwrap();
        // An operation that is in its middle for long: the container's init is frozen and does not shut down.
        c.set_instance_state("default", "stead-r1", instances::StateAction::Start, Duration::from_secs(20))
            .await
            .unwrap();
        let command = stead_incus::requests::exec::Command::new(["sleep", "60"]);
        c.exec("default", "stead-r1", &command).await.unwrap()
    });
    let mut events = runtime.block_on(c.events(EventFilter::lifecycle())).unwrap();
    w.exec(cluster, "node1", &["sh", "-c", &format!("kill -KILL $(pidof {service})")]);
    let outcome = runtime.block_on(sleeping.exit.wait(Duration::from_secs(60)));
    match outcome.unwrap_err() {
        Error::OutcomeUnknown { interrupted, .. } => assert!(interrupted),
        other => panic!("{other:?}"),
    }
    assert_eq!(runtime.block_on(events.next()).unwrap(), Told::Reconnected);
    eventually("the restarted server takes the client's requests", Duration::from_secs(60), || {
        runtime.block_on(c.members()).is_ok_and(|m| m.iter().all(|m| m.status == "Online"))
    });
    runtime.block_on(async {
        c.set_instance_state("default", "stead-r1", instances::StateAction::Kill, Duration::from_secs(20))
            .await
            .unwrap();
        c.delete_instance("default", "stead-r1").await.unwrap();
    });
}

#[test]
fn the_client_on_incus_6() {
    if std::env::var_os("STEAD_TEST_UNSETTLED").is_none() {
        println!(
            "SKIP the_client_on_incus_6: not yet seen to pass since it was merged; STEAD_TEST_UNSETTLED=1 runs it"
        );
        return;
    }
    whole("the_client_on_incus_6", "incus-node", Dialect::Incus, 96);
}

#[test]
fn the_client_on_lxd_5() {
    if std::env::var_os("STEAD_TEST_UNSETTLED").is_none() {
        println!(
            "SKIP the_client_on_lxd_5: not yet seen to pass since it was merged; STEAD_TEST_UNSETTLED=1 runs it"
        );
        return;
    }
    whole("the_client_on_lxd_5", "lxd-node", Dialect::Lxd, 95);
}
