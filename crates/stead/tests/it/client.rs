//! The client of the engines' API on real engines: the checks that the fake passes too (`stead_testkit::body`), and
//! those that need a real engine: commands, files, measurements, copies between servers, restarts.

use crate::common::{World, eventually};
use crate::engine::{client, copies, real, remove_all, unix_client};
use std::time::Duration;
use stead_incus::{Client, Delivery, Dialect, Error, EventFilter, requests::instances};
use stead_testkit::{
    body::{self, Env, Group},
    image,
    parts::Parts,
};

fn cluster_file(name: &str, image: &str, network: u8, nodes: u8) -> String {
    format!(
        "name: {name}\nimage: {image}\nnodes: {nodes}\nmachine:\n  backend: namespace\n  disks: [{{name: pool, size: 4GiB, role: storage}}]\n\
         networks:\n  - {{ name: lan, ipv4: 10.{network}.0.0/24, ipv6: \"fd{network}::/64\" }}\n"
    )
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn env(w: &World, client: Client, flavour: &str, starts: bool) -> Env {
    let image = image::tiny(&w.state, flavour).unwrap();
    Env { client, members: ["node1".into(), "node2".into()], image, starts }
}

/// All checks on one engine: over HTTPS, and the shared ones again over the unix socket. `no_instances`: why none can
/// be started here.
fn whole(test: &str, image: &str, dialect: Dialect, network: u8, no_instances: Option<&str>) {
    let Some(w) = World::new(test, &[image]) else { return };
    let name = format!("t-client-{network}");
    w.ok(&["up", &w.file(&name, &cluster_file(&name, image, network, 2))]);
    let runtime = runtime();
    let starts = no_instances.is_none();
    let https = env(&w, client(&w, &name), "one", starts);
    assert_eq!(https.client.dialect(), dialect);
    let unix = env(&w, unix_client(&w, &name, "node2", dialect), "two", starts);
    let mut parts = Parts::new();
    let mut run = |way: &str, env: &Env, groups: &[Group]| {
        for (group, check) in groups {
            if parts.run(&format!("{way}/{group}"), || runtime.block_on(check(env))).is_none() {
                // Else the next ones would find its instances in their way.
                runtime.block_on(remove_all(&env.client));
            }
        }
    };
    run("https", &https, &body::GROUPS);
    run("https", &https, &real::GROUPS);
    run("https", &https, &[copies::COPIES]);
    run("unix", &unix, &body::GROUPS);
    if let Some(why) = no_instances {
        parts.skip("running instances", why);
    } else {
        run("https", &https, &real::OF_RUNNING_INSTANCES);
        run("unix", &unix, &[real::COMMANDS]);
        parts.run("restart", || restarted(&w, &runtime, &https, &name, dialect));
    }
    parts.end();
    w.down(&name);
}

/// The server is restarted during a wait and an event stream.
fn restarted(w: &World, runtime: &tokio::runtime::Runtime, env: &Env, cluster: &str, dialect: Dialect) {
    let c = unix_client(w, cluster, "node1", dialect);
    let (daemon, sleeping) = runtime.block_on(async {
        let daemon = c.server_info().await.unwrap().environment.server_pid;
        let new = instances::NewInstance::of_image("stead-r1", "stead-tiny");
        c.create_instance("default", Some(&env.members[0]), &new).await.unwrap();
        // A long operation: the container's init is frozen and does not shut down.
        c.set_instance_state("default", "stead-r1", instances::StateAction::Start, Duration::from_secs(20))
            .await
            .unwrap();
        let command = stead_incus::requests::exec::Command::new(["sleep", "60"]);
        (daemon, c.exec("default", "stead-r1", &command).await.unwrap())
    });
    let mut events = runtime.block_on(c.events(EventFilter::lifecycle())).unwrap();
    // By its process id, because its short-lived helpers have the same name.
    w.exec(cluster, "node1", &["sh", "-c", &format!("kill -KILL {daemon}")]);
    let outcome = runtime.block_on(sleeping.exit.wait(Duration::from_secs(60)));
    match outcome.unwrap_err() {
        Error::OutcomeUnknown { interrupted, .. } => assert!(interrupted),
        other => panic!("{other:?}"),
    }
    // Behind what the server told of before.
    runtime.block_on(async { while events.next().await.unwrap() != Delivery::Reconnected {} });
    eventually("the restarted server takes the client's requests", || {
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
    whole("the_client_on_incus_6", "incus-node", Dialect::Incus, 96, None);
}

/// `make test` builds its image; `make images` leaves it out.
#[test]
fn the_client_on_incus_7() {
    // LXC 7 starts nothing under cgroup version 1: "unsupported cgroup layout".
    let unified = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let why = (!unified).then_some("this host has no cgroup version 2 hierarchy");
    whole("the_client_on_incus_7", "incus7-node", Dialect::Incus, 94, why);
}

#[test]
fn the_client_on_lxd_5() {
    whole("the_client_on_lxd_5", "lxd-node", Dialect::Lxd, 95, None);
}
