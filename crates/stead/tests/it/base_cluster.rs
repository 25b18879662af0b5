//! Clusters without an engine, in namespaces: the whole command line against real nodes.

use crate::common::{World, eventually};
use std::{fs, io::Write, process::Stdio};

fn yaml(name: &str, nodes: u32, more: &str) -> String {
    format!("name: {name}\nimage: base\nnodes: {nodes}\nmachine: {{backend: namespace}}\n{more}")
}

#[test]
fn up_is_idempotent_and_down_leaves_nothing() {
    let Some(w) = World::new("up_is_idempotent_and_down_leaves_nothing", &["base"]) else { return };
    let file = w.file("t-idem", &yaml("t-idem", 2, ""));
    let plan = w.ok(&["up", &file, "--dry-run"]);
    let lines = [
        "cluster t-idem:",
        "  1  make the network",
        "  2  node1: start                        after 1",
        "  3  node1: wait until its services run  after 2",
        "  4  node2: start                        after 1",
        "  5  node2: wait until its services run  after 4",
        "",
    ];
    assert_eq!(plan, lines.join("\n"));
    let plan: serde_json::Value = serde_json::from_str(&w.ok(&["up", &file, "--dry-run", "--json"])).unwrap();
    assert_eq!(plan["steps"][1], serde_json::json!({"id": 2, "do": "start", "node": "node1", "after": [1]}));
    assert!(w.leftovers("t-idem").is_empty(), "a dry run made something");
    w.ok(&["up", &file]);
    let status = w.status("t-idem");
    assert_eq!(status["cluster"], "t-idem");
    for (i, node) in status["nodes"].as_array().unwrap().iter().enumerate() {
        assert_eq!(node["name"], format!("node{}", i + 1));
        assert_eq!(node["phase"], "running");
        assert_eq!(node["backend"], "namespace");
        assert_eq!(node["addresses"][0], format!("10.88.0.{}", i + 2));
        assert_eq!(node["engine"]["kind"], "none");
    }
    assert!(w.ok(&["up", &file]).contains("nothing to do"));
    assert_eq!(w.ok(&["up", &file, "--dry-run"]), "cluster t-idem: nothing to do\n");
    assert!(w.ok(&["ls"]).contains("t-idem   2/2"));
    w.down("t-idem");
    assert_eq!(w.stead(&["down", "t-idem"]).code, 2);
    w.ok(&["down", "t-idem", "--if-exists"]);
}

#[test]
fn a_name_is_refused_that_another_state_directory_uses() {
    let test = "a_name_is_refused_that_another_state_directory_uses";
    let (Some(one), Some(two)) = (World::new(test, &["base"]), World::new(test, &["base"])) else { return };
    one.ok(&["up", &one.file("t-name", &yaml("t-name", 1, ""))]);
    let file = two.file("t-name", &yaml("t-name", 1, ""));
    for args in [&["up", file.as_str()][..], &["up", file.as_str(), "--dry-run"]] {
        let said = two.stead(args);
        assert_eq!(said.code, 2, "{}", said.stderr);
        let mend = format!("stead --state-dir {} down t-name", one.state.display());
        assert!(said.stderr.contains(&mend), "{}", said.stderr);
    }
    assert!(!two.state.join("clusters/t-name").exists(), "a refused `up` made something");
    assert_eq!(one.status("t-name")["nodes"][0]["phase"], "running");
    one.down("t-name");
    two.ok(&["up", &file]);
    two.down("t-name");
}

#[test]
fn nodes_are_reached() {
    let Some(w) = World::new("nodes_are_reached", &["base"]) else { return };
    let file = w.file("t-reach", &yaml("t-reach", 2, ""));
    w.ok(&["up", &file]);
    // exec: output, exit codes, standard input, environment.
    assert_eq!(w.exec("t-reach", "node2", &["cat", "/etc/hostname"]).trim(), "node2");
    assert_eq!(w.stead(&["exec", "-T", "t-reach", "node1", "--", "sh", "-c", "exit 7"]).code, 7);
    assert_eq!(w.stead(&["exec", "-T", "t-reach", "node1", "--", "no-such-program"]).code, 127);
    assert_eq!(w.stead(&["exec", "-T", "t-reach", "node9", "--", "true"]).code, 2);
    let mut child = w
        .command(&[
            "exec",
            "-T",
            "-e",
            "X=y z",
            "t-reach",
            "node1",
            "--",
            "sh",
            "-c",
            "printf %s \"$X\"; wc -c",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&vec![b'x'; 3_000_000]).unwrap());
    let out = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_eq!(
        String::from_utf8(out.stdout).unwrap().split_whitespace().collect::<Vec<_>>(),
        ["y", "z3000000"]
    );
    // cp both ways, files and trees.
    let tree = w.state.join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    fs::write(tree.join("sub/file"), "content").unwrap();
    w.ok(&["cp", tree.to_str().unwrap(), "t-reach/node1:/tmp/"]);
    assert_eq!(w.exec("t-reach", "node1", &["cat", "/tmp/tree/sub/file"]), "content");
    let back = w.state.join("back");
    w.ok(&["cp", "t-reach/node1:/tmp/tree", back.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(back.join("sub/file")).unwrap(), "content");
    assert_eq!(w.stead(&["cp", "t-reach/node1:/nowhere", back.to_str().unwrap()]).code, 2);
    copies_as_cp_does(&w);
    // Nodes resolve each other by name, over both families, and reach each other's agents.
    for family in ["ahostsv4", "ahostsv6"] {
        let text = w.exec("t-reach", "node1", &["getent", family, "node2"]);
        assert!(text.contains(if family == "ahostsv4" { "10.88.0.3" } else { "fd88::3" }), "{text}");
    }
    assert!(w.ok(&["logs", "t-reach", "node1"]).contains("network up"));
    w.down("t-reach");
}

/// The same arguments mean the same in both directions, and what cp(1) means by them.
fn copies_as_cp_does(w: &World) {
    let here = w.state.join("cp");
    let local = |name: &str| here.join(name).to_str().unwrap().to_owned();
    let there = |path: &str| format!("t-reach/node1:{path}");
    let on_node = |script: &str| w.exec("t-reach", "node1", &["sh", "-c", script]).trim().to_owned();
    for dir in ["tree/sub", "dir"] {
        fs::create_dir_all(here.join(dir)).unwrap();
    }
    fs::write(here.join("one"), "1").unwrap();
    fs::write(here.join("two"), "2").unwrap();
    fs::write(here.join("tree/sub/file"), "f").unwrap();
    std::os::unix::fs::symlink("one", here.join("link.txt")).unwrap();
    std::os::unix::fs::symlink("tree", here.join("linked")).unwrap();
    on_node("mkdir -p /tmp/cp/dir; ln -s dir /tmp/cp/linked");
    // Into an existing directory, with or without a slash, through a link to one; under a new name; several.
    w.ok(&["cp", &local("one"), &there("/tmp/cp/dir")]);
    w.ok(&["cp", &local("one"), &local("two"), &local("link.txt"), &there("/tmp/cp/linked")]);
    w.ok(&["cp", &local("two"), &there("/tmp/cp/dir/new")]);
    w.ok(&["cp", &local("tree"), &there("/tmp/cp/copy")]);
    w.ok(&["cp", &local("tree/."), &there("/tmp/cp/dir/")]);
    w.ok(&["cp", &local("linked/"), &there("/tmp/cp/dir")]);
    let list = "cd /tmp/cp && find . -mindepth 1 | sort && readlink dir/link.txt && cat dir/one dir/new copy/sub/file";
    let want = "./copy ./copy/sub ./copy/sub/file ./dir ./dir/link.txt ./dir/linked ./dir/linked/sub \
                ./dir/linked/sub/file ./dir/new ./dir/one ./dir/sub ./dir/sub/file ./dir/two ./linked one 12f";
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    assert_eq!(words(&on_node(list)), words(want));
    // The other way.
    w.ok(&["cp", &there("/tmp/cp/dir/one"), &local("dir")]);
    w.ok(&["cp", &there("/tmp/cp/dir/link.txt"), &there("/tmp/cp/dir/two"), &local("dir/")]);
    w.ok(&["cp", &there("/tmp/cp/copy/."), &local("dir")]);
    w.ok(&[
        "cp",
        &there("/proc/version"),
        &there("/sys/kernel/mm/transparent_hugepage/enabled"),
        &local("dir"),
    ]);
    assert_eq!(fs::read_to_string(here.join("dir/one")).unwrap(), "1");
    assert_eq!(fs::read_link(here.join("dir/link.txt")).unwrap(), std::path::Path::new("one"));
    assert_eq!(fs::read_to_string(here.join("dir/sub/file")).unwrap(), "f");
    assert_eq!(fs::read(here.join("dir/version")).unwrap(), fs::read("/proc/version").unwrap());
    let knob = "/sys/kernel/mm/transparent_hugepage/enabled";
    assert_eq!(fs::read(here.join("dir/enabled")).unwrap(), fs::read(knob).unwrap());
    // What cp refuses.
    for (from, to) in [
        (local("one"), there("/tmp/cp/none/new")),
        (local("one"), there("/tmp/cp/none/")),
        (there("/tmp/cp/dir/one"), local("none/new")),
        (there("/tmp/cp/dir/one"), local("none/")),
        (local("none"), there("/tmp")),
    ] {
        let said = w.stead(&["cp", &from, &to]);
        assert_eq!(said.code, 2, "{from} to {to}: {}", said.stderr);
    }
    let several = w.stead(&["cp", &local("one"), &local("two"), &there("/tmp/cp/none")]);
    assert!(several.code == 2 && several.stderr.contains("is not a directory"), "{}", several.stderr);
    // A socket is named, and what comes after it arrives.
    on_node(
        "mkdir /tmp/cp/special; mkfifo /tmp/cp/special/fifo; mknod /tmp/cp/special/device c 1 3; echo x >/tmp/cp/special/z",
    );
    let said = w.stead(&["cp", &there("/tmp/cp/special"), &local("dir")]);
    assert!(said.code == 1 && said.stderr.contains("special/device: is a device node"), "{}", said.stderr);
    assert_eq!(fs::read_to_string(here.join("dir/special/z")).unwrap(), "x\n");
    assert!(fs::symlink_metadata(here.join("dir/special/fifo")).is_ok());
}

#[test]
fn a_node_reboots_and_comes_back() {
    let Some(w) = World::new("a_node_reboots_and_comes_back", &["base"]) else { return };
    let file = w.file("t-reboot", &yaml("t-reboot", 1, ""));
    w.ok(&["up", &file]);
    w.exec("t-reboot", "node1", &["touch", "/tmp/there"]);
    let boot_id =
        |w: &World| w.status("t-reboot")["nodes"][0]["agent"]["boot_id"].as_str().unwrap().to_owned();
    let before = boot_id(&w);
    assert!(w.ok(&["reboot", "t-reboot", "node1"]).contains("is running again"));
    assert_ne!(boot_id(&w), before);
    assert_eq!(w.stead(&["exec", "-T", "t-reboot", "node1", "--", "test", "-e", "/tmp/there"]).code, 1);
    assert!(w.ok(&["up", &file]).contains("nothing to do"));
    w.down("t-reboot");
}

#[test]
fn scaling_and_overlays_converge() {
    let Some(w) = World::new("scaling_and_overlays_converge", &["base"]) else { return };
    let overlay = w.state.join("overlay");
    fs::create_dir_all(overlay.join("etc")).unwrap();
    fs::write(overlay.join("etc/motd"), "one\n").unwrap();
    let file = w.file("t-scale", &yaml("t-scale", 1, "overlays: [overlay]\n"));
    w.ok(&["up", &file]);
    assert_eq!(w.exec("t-scale", "node1", &["cat", "/etc/motd"]), "one\n");
    w.ok(&["scale", "t-scale", "3"]);
    assert_eq!(w.status("t-scale")["nodes"].as_array().unwrap().len(), 3);
    let boots = |w: &World| {
        let s = w.status("t-scale");
        s["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n["agent"]["boot_id"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let before = boots(&w);
    w.ok(&["scale", "t-scale", "2"]);
    // Neither scaling restarted a node that stays.
    assert_eq!(boots(&w), before[..2]);
    // A changed overlay restarts the nodes that have it, and is applied afterwards.
    fs::write(overlay.join("etc/motd"), "two\n").unwrap();
    assert!(w.ok(&["up", &file, "--dry-run"]).contains("node1: kill (layers changed)"));
    let smaller = w.file("t-scale", &yaml("t-scale", 2, "overlays: [overlay]\n"));
    w.ok(&["up", &smaller]);
    assert_eq!(w.exec("t-scale", "node2", &["cat", "/etc/motd"]), "two\n");
    w.down("t-scale");
}

#[test]
fn disks_outlive_a_reboot_and_down_with_keep_disks() {
    let Some(w) = World::new("disks_outlive_a_reboot_and_down_with_keep_disks", &["base"]) else { return };
    let text = "name: t-disk\nimage: base\nnodes: 1\nmachine:\n  backend: namespace\n  persistent_root: true\n  disks: [{name: data, size: 256MiB, role: data}]\n";
    let file = w.file("t-disk", text);
    w.ok(&["up", &file]);
    w.exec("t-disk", "node1", &["sh", "-c", "echo kept > /root/file"]);
    w.ok(&["reboot", "t-disk", "node1"]);
    assert_eq!(w.exec("t-disk", "node1", &["cat", "/root/file"]), "kept\n");
    w.ok(&["down", "t-disk", "--keep-disks"]);
    assert_eq!(w.status("t-disk")["nodes"][0]["phase"], "stopped");
    w.ok(&["up", &file]);
    assert_eq!(w.exec("t-disk", "node1", &["cat", "/root/file"]), "kept\n");
    w.down("t-disk");
}

#[test]
fn two_clusters_with_the_same_addresses_run_side_by_side() {
    let Some(w) = World::new("two_clusters_with_the_same_addresses_run_side_by_side", &["base"]) else {
        return;
    };
    let a = w.file("t-side-a", &yaml("t-side-a", 1, "publish: ['127.0.0.1:0:node1:8484']\n"));
    let b = w.file("t-side-b", &yaml("t-side-b", 1, ""));
    w.ok(&["up", &a]);
    w.ok(&["up", &b]);
    w.exec("t-side-a", "node1", &["touch", "/tmp/a"]);
    assert_eq!(w.stead(&["exec", "-T", "t-side-b", "node1", "--", "test", "-e", "/tmp/a"]).code, 1);
    assert_eq!(w.status("t-side-a")["nodes"][0]["addresses"], w.status("t-side-b")["nodes"][0]["addresses"]);
    w.down("t-side-a");
    assert_eq!(w.exec("t-side-b", "node1", &["echo", "alive"]), "alive\n");
    w.down("t-side-b");
}

#[test]
fn a_failing_service_is_told_and_takes_nothing_down() {
    let Some(w) = World::new("a_failing_service_is_told_and_takes_nothing_down", &["base"]) else { return };
    let more = "services: [{name: broken, command: [/bin/false], restart: never}, {name: ticker, command: [/bin/sh, -c, 'while sleep 0.1; do echo tick; done']}]\n";
    let file = w.file("t-fail", &yaml("t-fail", 1, more));
    let up = w.stead(&["up", &file]);
    assert!(
        up.code == 1 && up.stderr.contains("node node1: service broken failed for good: exit 1"),
        "{}",
        up.stderr
    );
    assert_eq!(w.status("t-fail")["nodes"][0]["phase"], "degraded");
    assert!(w.stead(&["status", "t-fail"]).stdout.contains("service broken: exit 1"));
    eventually("the ticker's log", || w.ok(&["logs", "t-fail", "node1", "ticker"]).contains("tick"));
    let unknown = w.stead(&["logs", "t-fail", "node1", "nosuch"]);
    assert!(unknown.code == 2 && unknown.stderr.contains("nosuch"), "{}", unknown.stderr);
    drop(up);
    w.down("t-fail");
}
