//! Real engines: Incus and LXD nodes with instances from our own image, in namespaces.

use crate::common::{World, eventually};
use serde_json::Value;
use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

/// Puts the instance image into the cluster and launches one container on each of two members, by the stock client.
fn instances(w: &World, cluster: &str, members: [&str; 2]) -> Option<()> {
    let shown: Value = serde_json::from_str(&w.ok(&["image", "show", "debian-12", "--json"])).unwrap();
    let path = |key: &str| shown["paths"][key].as_str().unwrap().to_owned();
    let run = |args: &[&str]| {
        let said = w.client(cluster, args)?;
        assert!(said.code == 0, "client {args:?}: {}\n{}", said.stdout, said.stderr);
        Some(said.stdout)
    };
    if run(&["cluster", "list", "--format", "csv"]).is_none() {
        println!("SKIP {cluster}: the stock client is not installed");
        return None;
    }
    run(&["image", "import", &path("metadata"), &path("rootfs"), "--alias", "debian-12"]);
    for (name, member) in ["c1", "c2"].iter().zip(members) {
        run(&["launch", "debian-12", name, "--target", member]);
    }
    // They get real addresses of the cluster's LAN, by DHCP and DHCPv6, and names with them.
    eventually("both instances have addresses of both families", || {
        let status = w.status(cluster);
        let list = status["instances"].as_array().unwrap();
        list.len() == 2
            && list.iter().all(|i| {
                let a: Vec<&str> =
                    i["addresses"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
                i["state"] == "Running"
                    && a.iter().any(|a| a.starts_with("10.88.0."))
                    && a.iter().any(|a| a.starts_with("fd88::"))
            })
    });
    for (from, to) in [("c1", "c2"), ("c2", "c1")] {
        for family in ["-4", "-6"] {
            eventually(&format!("{from} reaches {to} by name with ping {family}"), || {
                w.client(cluster, &["exec", from, "--", "ping", family, "-c1", "-W1", "-q", to])
                    .is_some_and(|s| s.code == 0)
            });
        }
    }
    let said = w.client(cluster, &["exec", "c1", "--", "sh", "-c", "exit 3"]).unwrap();
    assert_eq!(said.code, 3);
    Some(())
}

/// Every member is online: what `up` and `scale` promise when they end, so at once.
#[track_caller]
fn online(w: &World, cluster: &str, kind: &str, count: usize) {
    let status = w.status(cluster);
    let nodes = status["nodes"].as_array().unwrap();
    let well = nodes.len() == count
        && nodes.iter().all(|n| n["engine"]["kind"] == kind && n["engine"]["state"] == "online");
    assert!(well, "{status:#}");
}

/// Part of a preseed whose scalars read in more than one way.
const WRITTEN: &str = "preseed: {profiles: [{name: written, config: {user.a: 1.50, user.b: 0755, user.c: 1e3, user.d: yes, \
                       user.e: 0x1F, user.f: 2001-12-14, user.g: 123456789012345678901234567890, user.h: \"1.50\"}}]}";

/// Settings of a profile are the characters of the file, as Incus 6.0 and LXD 5.0 have them from their own tool.
#[track_caller]
fn is_as_written(w: &World, cluster: &str) {
    for (key, value) in [
        ("user.a", "1.50"),
        ("user.b", "0755"),
        ("user.c", "1e3"),
        ("user.d", "yes"),
        ("user.e", "0x1F"),
        ("user.f", "2001-12-14"),
        ("user.g", "123456789012345678901234567890"),
        ("user.h", "1.50"),
    ] {
        let Some(said) = w.client(cluster, &["profile", "get", "written", key]) else { return };
        assert_eq!(said.stdout.trim(), value, "{key}: {}", said.stderr);
    }
}

/// An instance that may nest gets its own proc and sysfs in a user namespace of its own: the kernel allows that only where
/// whole ones are seen, and those of a namespace node are partly covered.
#[track_caller]
fn nests(w: &World, cluster: &str, instance: &str) {
    let run = |args: &[&str]| {
        let said = w.client(cluster, args).unwrap();
        assert!(said.code == 0, "client {args:?}: {}\n{}", said.stdout, said.stderr);
        said.stdout
    };
    run(&["config", "set", instance, "security.nesting=true"]);
    run(&["restart", "--force", instance]);
    let inner = "unshare --user --map-root-user --pid --fork --net --mount-proc sh -c 'cat /proc/1/comm && mount -t sysfs sys /mnt && ls /mnt/class/net'";
    eventually("the instance nests", || {
        w.client(cluster, &["exec", instance, "--", "sh", "-c", inner])
            .is_some_and(|s| s.stdout.split_whitespace().eq(["sh", "lo"]))
    });
}

#[test]
fn an_engine_that_refuses_its_preseed_ends_up_at_once() {
    let Some(w) = World::new("an_engine_that_refuses_its_preseed_ends_up_at_once", &["incus-node"]) else {
        return;
    };
    let file = w.file(
        "t-refused",
        "name: t-refused\nimage: incus-node\nnodes: 1\nengine:\n  kind: incus\n  preseed:\n    storage_pools:\n    - {name: other, driver: dir, config: {no.such: x}}\nmachine: {backend: namespace}\n",
    );
    let said = w.stead(&["up", &file]);
    assert_eq!(said.code, 1, "{}", said.stderr);
    assert!(
        said.stderr.contains("its engine cannot be set up") && said.stderr.contains("no.such"),
        "{}",
        said.stderr
    );
    w.down("t-refused");
}

#[test]
fn three_incus_nodes_run_instances() {
    let Some(w) = World::new("three_incus_nodes_run_instances", &["incus-node", "debian-12"]) else { return };
    let file = w.file(
        "t-incus",
        &format!("name: t-incus\nimage: incus-node\nnodes: 3\nengine: {{kind: incus, {WRITTEN}}}\nmachine:\n  backend: namespace\n  disks: [{{name: pool, size: 6GiB, role: storage}}]\n"),
    );
    w.ok(&["up", &file]);
    online(&w, "t-incus", "incus", 3);
    is_as_written(&w, "t-incus");
    let Some(()) = instances(&w, "t-incus", ["node1", "node3"]) else { return };
    let pools = w.client("t-incus", &["storage", "list", "--format", "csv"]).unwrap().stdout;
    assert!(pools.contains("default,btrfs"), "{pools}");
    nests(&w, "t-incus", "c1");
    // A member that is renamed in the engine is the same node.
    let renamed = w.client("t-incus", &["cluster", "rename", "node3", "renamed"]).unwrap();
    assert_eq!(renamed.code, 0, "{}", renamed.stderr);
    w.ok(&["up", &file]);
    online(&w, "t-incus", "incus", 3);
    // Scaling in evacuates: c2 leaves node3 and goes on elsewhere; scaling out joins.
    w.ok(&["scale", "t-incus", "2"]);
    online(&w, "t-incus", "incus", 2);
    let place = |w: &World| {
        let s = w.status("t-incus");
        s["instances"]
            .as_array()
            .unwrap()
            .iter()
            .find(|i| i["name"] == "c2")
            .map(|i| (i["node"].clone(), i["state"].clone()))
    };
    let (node, _) = place(&w).expect("c2 is lost");
    assert!(node == "node1" || node == "node2", "{node}");
    let members =
        w.client("t-incus", &["cluster", "list", "--format", "csv", "--columns", "n"]).unwrap().stdout;
    assert_eq!(
        members.split_whitespace().collect::<Vec<_>>(),
        ["node1", "node2"],
        "the renamed member is gone"
    );
    w.ok(&["scale", "t-incus", "3"]);
    online(&w, "t-incus", "incus", 3);
    assert!(w.ok(&["up", &w.file("t-incus", &fs::read_to_string(&file).unwrap())]).contains("nothing to do"));
    w.down("t-incus");
}

#[test]
fn two_lxd_nodes_run_instances() {
    let Some(w) = World::new("two_lxd_nodes_run_instances", &["lxd-node", "debian-12"]) else { return };
    let file = w.file(
        "t-lxd",
        &format!("name: t-lxd\nimage: lxd-node\nnodes: 2\nengine: {{kind: lxd, {WRITTEN}}}\nmachine: {{backend: namespace}}\n"),
    );
    w.ok(&["up", &file]);
    online(&w, "t-lxd", "lxd", 2);
    is_as_written(&w, "t-lxd");
    if instances(&w, "t-lxd", ["node1", "node2"]).is_some() {
        nests(&w, "t-lxd", "c1");
    }
    w.down("t-lxd");
}

#[test]
fn an_instance_outlives_the_reboot_of_its_node() {
    let Some(w) = World::new("an_instance_outlives_the_reboot_of_its_node", &["incus-node", "debian-12"])
    else {
        return;
    };
    let file = w.file(
        "t-keep",
        "name: t-keep\nimage: incus-node\nnodes: 2\nengine: incus\nmachine:\n  backend: namespace\n  disks: [{name: data, size: 2GiB, role: data}, {name: pool, size: 4GiB, role: storage}]\n",
    );
    w.ok(&["up", &file]);
    let Some(()) = instances(&w, "t-keep", ["node1", "node2"]) else { return };
    w.client("t-keep", &["exec", "c2", "--", "sh", "-c", "echo kept > /root/file"]).unwrap();
    w.client("t-keep", &["config", "set", "c2", "boot.autostart=true"]).unwrap();
    w.ok(&["reboot", "t-keep", "node2"]);
    eventually("node2 is an online member again", || {
        w.status("t-keep")["nodes"][1]["engine"]["state"] == "online"
    });
    eventually("c2 runs again with what it had", || {
        w.client("t-keep", &["exec", "c2", "--", "cat", "/root/file"])
            .is_some_and(|s| s.code == 0 && s.stdout == "kept\n")
    });
    w.down("t-keep");
}

#[test]
fn a_changed_overlay_file_costs_no_quorum() {
    let Some(w) = World::new("a_changed_overlay_file_costs_no_quorum", &["incus-node"]) else { return };
    let motd = w.state.join("overlay/etc/motd");
    fs::create_dir_all(motd.parent().unwrap()).unwrap();
    fs::write(&motd, "one\n").unwrap();
    let file = w.file(
        "t-roll",
        "name: t-roll\nimage: incus-node\nnodes: 3\nengine: incus\nmachine:\n  backend: namespace\n  disks: [{name: data, size: 2GiB, role: data}]\noverlays: [overlay]\n",
    );
    w.ok(&["up", &file]);
    let nodes = ["node1", "node2", "node3"];
    // A member answers this from the cluster's database, so never without a quorum.
    let answers = |node: &str| {
        let asked = ["exec", "t-roll", node, "--", "incus", "query", "/1.0/cluster/members?recursion=1"];
        let said = w.stead(&asked);
        said.code == 0 && nodes.iter().all(|n| said.stdout.contains(n))
    };
    fs::write(&motd, "two\n").unwrap();
    let (done, rounds, silent) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|s| {
        s.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                if !nodes.iter().any(|n| answers(n)) {
                    silent.fetch_add(1, Ordering::Relaxed);
                }
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        let up = w.stead(&["up", &file]);
        done.store(true, Ordering::Relaxed);
        assert_eq!(up.code, 0, "{}", up.stderr);
    });
    let (rounds, silent) = (rounds.into_inner(), silent.into_inner());
    assert!(rounds > 1, "the change was over before anybody asked");
    assert_eq!(silent, 0, "of {rounds} questions, so many had no answer from any member");
    online(&w, "t-roll", "incus", 3);
    assert!(nodes.iter().all(|n| w.exec("t-roll", n, &["cat", "/etc/motd"]) == "two\n"));
    w.down("t-roll");
}

/// From five members on there are event hubs; and events reach members that listen to hubs alone: the stock client waits
/// for an operation on another member by them.
#[test]
fn five_incus_nodes_have_event_hubs() {
    let Some(w) = World::new("five_incus_nodes_have_event_hubs", &["incus-node", "debian-12"]) else {
        return;
    };
    let file = w.file(
        "t-hubs",
        "name: t-hubs\nimage: incus-node\nnodes: 4\nengine: incus\nmachine: {backend: namespace}\n",
    );
    let hubs = || {
        let said = w.exec("t-hubs", "node1", &["incus", "query", "/1.0/cluster/members?recursion=1"]);
        let members: Value = serde_json::from_str(&said).unwrap();
        let is_hub =
            |m: &&Value| m["roles"].as_array().is_some_and(|r| r.contains(&Value::from("event-hub")));
        members.as_array().unwrap().iter().filter(is_hub).count()
    };
    w.ok(&["up", &file]);
    assert_eq!(hubs(), 0);
    w.ok(&["scale", "t-hubs", "5"]);
    online(&w, "t-hubs", "incus", 5);
    assert_eq!(hubs(), 3);
    instances(&w, "t-hubs", ["node4", "node5"]);
    w.down("t-hubs");
}
