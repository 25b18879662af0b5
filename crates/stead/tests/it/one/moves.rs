//! Migration between hosts.

use super::{alone, host::*, members};
use crate::common::World;
use std::{fs, process::Command, thread, time::Duration};

/// Two hosts with the same datastores; what ssh is between OpenNebula's hosts is here a program of that name that has the
/// test run the script on the other node.
#[test]
fn vms_move_between_members_of_a_cluster() {
    let test = "vms_move_between_members_of_a_cluster";
    between(test, [("one-move", "node1"), ("one-move", "node2")], |hosts| {
        moves(hosts);
        imported_ones_move(hosts);
        members::another_members_instance(hosts);
    });
}

#[test]
fn vms_move_between_hosts_that_share_datastores_only() {
    let test = "vms_move_between_hosts_that_share_datastores_only";
    between(test, [("one-move-a", "node1"), ("one-move-b", "node1")], moves);
}

/// What OpenNebula calls the two hosts.
pub const NAMES: [&str; 2] = ["host-a", "host-b"];

fn between(test: &str, places: [(&'static str, &'static str); 2], work: impl Fn(&[Host<'_>; 2])) {
    let _alone = alone();
    let Some(w) = World::new(test, &["incus-node"]) else { return };
    let Some(image) = image(&w) else { return };
    let mut clusters: Vec<&str> = places.iter().map(|(cluster, _)| *cluster).collect();
    clusters.dedup();
    let nodes = places.len() / clusters.len();
    for cluster in &clusters {
        let file = format!(
            "name: {cluster}\nimage: incus-node\nnodes: {nodes}\nengine: incus\nmachine: {{backend: namespace}}\n"
        );
        w.ok(&["up", &w.file(cluster, &file)]);
    }
    let hosts =
        places.map(|(cluster, node)| Host { world: &w, cluster, node, driver: "incus", local: false });
    for host in &hosts {
        host.install(&image, "6.6.0");
    }
    // One filesystem on both nodes: the same loop device, for they share a kernel.
    let datastores = w.state.join("datastores");
    fs::File::create(&datastores).unwrap().set_len(256 << 20).unwrap();
    assert!(Command::new("mkfs.ext4").arg("-qF").arg(&datastores).status().unwrap().success());
    let device = Command::new("losetup").args(["--find", "--show"]).arg(&datastores).output().unwrap();
    let device = String::from_utf8(device.stdout).unwrap().trim().to_owned();
    for host in &hosts {
        host.ok(&["mount", &device, "/var/lib/one/datastores"]);
    }
    // Its arguments are -o BatchMode=yes -o ConnectTimeout=15 -- HOST SCRIPT ARGUMENT…; the answer comes back through the
    // shared filesystem. While `down` is there no host can be reached. The agent's socket is noted.
    let ssh = "#!/bin/sh\nshift 5\ncd /var/lib/one/datastores/ssh\necho $SSH_AUTH_SOCK >agent\n\
               [ ! -e down ] || { echo \"ssh: connect to host $1 port 22: No route to host\" >&2; exit 255; }\n\
               d=$(mktemp -d /var/lib/one/datastores/ssh/XXXXXX)\ncat >$d/input\necho \"$@\" >$d/new\n\
               mv $d/new $d/asked\nwhile [ ! -e $d/code ]; do sleep 0.1; done\ncat $d/stderr >&2\nexit $(cat $d/code)\n";
    for host in &hosts {
        host.ok(&["mkdir", "-p", "/var/lib/one/datastores/ssh"]);
        host.run(&["sh", "-c", "cat >/usr/local/bin/ssh && chmod +x /usr/local/bin/ssh"], ssh);
    }
    let answer = |call: &str| {
        let [one, _] = &hosts;
        let read = |file: &str| one.ok(&["cat", &format!("{call}/{file}")]);
        let asked = read("taken");
        let words: Vec<&str> = asked.split_whitespace().collect();
        let script = words[1].rsplit('/').next().unwrap();
        let is_called = |host: &Host<'_>, name: &str| name == words[0] || host.node == words[0];
        let other = hosts.iter().zip(NAMES).find(|(host, name)| is_called(host, name)).unwrap().0;
        let answer = other.call(script, &words[2..], Some(&read("input")));
        one.run(&["sh", "-c", &format!("cat >{call}/stderr")], &answer.stderr);
        one.ok(&["sh", "-c", &format!("echo {} >{call}/new && mv {call}/new {call}/code", answer.code)]);
    };
    let finished = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !finished.load(std::sync::atomic::Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(100));
                let take = "cd /var/lib/one/datastores/ssh && for a in */asked; do \
                            [ -e $a ] && mv $a ${a%asked}taken && echo $PWD/${a%/asked}; done; true";
                for call in hosts[0].ok(&["sh", "-c", take]).lines().map(str::to_owned) {
                    let answer = &answer;
                    // One may ask the next.
                    scope.spawn(move || answer(&call));
                }
            }
        });
        let moved = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&hosts)));
        finished.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Err(panic) = moved {
            std::panic::resume_unwind(panic);
        }
    });
    for host in &hosts {
        host.ok(&["umount", "/var/lib/one/datastores"]);
        host.ok(&["ip", "link", "del", "onebr0"]);
    }
    assert!(Command::new("losetup").args(["--detach", &device]).status().unwrap().success());
    for cluster in clusters {
        w.down(cluster);
    }
}

fn moves(hosts: &[Host<'_>; 2]) {
    let [one, two] = hosts;
    let [a, b] = NAMES;
    one.ok(&["mkdir", "-p", "/var/lib/one/datastores/1"]);
    one.prepare(7);
    let document = action("one-7", &vm(7, "one-7", NIC, ""));
    one.done("deploy", &["/x", a, "7", a], Some(&vm(7, "", NIC, "")));
    one.inside("one-7", "echo moved >/state");
    one.done("migrate", &["one-7", b, a, "7", a], Some(&document));
    one.clean();
    let runs_on = |host: &Host<'_>| {
        let root = "/var/lib/incus/storage-pools/default/containers/one-7/rootfs";
        host.status("one-7") == "RUNNING" && host.run(&["mountpoint", "-q", root], "").code == 0
    };
    assert!(runs_on(two) && !runs_on(one));
    assert_eq!(two.inside("one-7", "cat /state"), "moved\n");
    // A cancel on the host that it left, as CLEANUP makes it, leaves it alone; what CLEANUP does not heed tells a VM that is
    // given up from one that has moved in the cluster.
    let left = one.call("cancel", &["one-7", a, "7", a], None);
    assert_eq!(left.code == 0, one.cluster != two.cluster, "{}", left.stderr);
    assert!(runs_on(two));
    // Snapshots would be lost on the way.
    two.done("snapshot_create", &["one-7", "0", "7", b], None);
    let answer = two.call("migrate", &["one-7", a, b, "7", b], Some(&document));
    assert!(answer.code == 1 && answer.stderr.contains("snapshots"), "{}", answer.stderr);
    two.done("snapshot_delete", &["one-7", "snap-0", "7", b], None);
    // What would keep the other host from it is found out before it is stopped: no connection, no bridge.
    two.inside("one-7", "touch /tmp/not-restarted");
    let down = "/var/lib/one/datastores/ssh/down";
    one.ok(&["touch", down]);
    let answer = two.call("migrate", &["one-7", a, b, "7", b], Some(&document));
    assert!(
        answer.code == 1 && answer.stderr.contains("No route to host; ssh from this host to it"),
        "{}",
        answer.stderr
    );
    one.ok(&["rm", down]);
    one.ok(&["ip", "link", "del", "onebr0"]);
    let answer = two.call("migrate", &["one-7", a, b, "7", b], Some(&document));
    assert!(answer.code == 1 && answer.stderr.contains("no bridge onebr0 on this host"), "{}", answer.stderr);
    two.inside("one-7", "ls /tmp/not-restarted");
    one.ok(&["ip", "link", "add", "onebr0", "type", "bridge"]);
    // The other host fails when it is stopped already: it goes on where it was.
    let e2fsck = "/usr/local/sbin/e2fsck";
    one.ok(&["sh", "-c", &format!("printf '#!/bin/sh\\nexit 8\\n' >{e2fsck} && chmod +x {e2fsck}")]);
    let answer = two.call("migrate", &["one-7", a, b, "7", b], Some(&document));
    assert!(answer.code == 1 && answer.stderr.contains("could not take the VM over"), "{}", answer.stderr);
    assert!(runs_on(two) && !runs_on(one));
    assert_eq!(two.inside("one-7", "cat /state; ls /tmp"), "moved\nnot-restarted\n");
    one.clean();
    one.ok(&["rm", e2fsck]);
    // Back again, asked on the frontend, which is no host: the VM's host does it. Then stopped there and started here.
    let frontend = Host { local: true, ..*one };
    frontend.done("migrate_local", &["one-7", a, b, "7", b], Some(&document));
    assert!(runs_on(one) && !runs_on(two));
    two.clean();
    let checkpoint = "/var/lib/one//datastores/0/7/checkpoint";
    one.done("save", &["one-7", checkpoint, a, "7", a], None);
    one.clean();
    two.done("restore", &[checkpoint, b, "one-7", "7", b], Some(&document));
    assert!(runs_on(two) && !runs_on(one));
    assert_eq!(two.inside("one-7", "cat /state"), "moved\n");
    two.done("shutdown", &["one-7", b, "7", b], None);
    two.clean();
}

/// Instances that OpenNebula did not make are in the engine's pool, and the engine moves them.
fn imported_ones_move(hosts: &[Host<'_>; 2]) {
    let [one, two] = hosts;
    one.ok(&["incus", "init", "--empty", "web", "--target", "node1"]);
    let root = "/var/lib/incus/storage-pools/default/containers/web/rootfs";
    let fill = format!(
        "mkdir -p {root} /mnt && mount -o loop /var/lib/one/image /mnt && cp -a /mnt/. {root}/ && umount /mnt"
    );
    one.ok(&["sh", "-c", &fill]);
    one.ok(&["incus", "start", "web"]);
    let document = action("web", &vm(42, "web", "", ""));
    let location = || one.ok(&["incus", "list", "web", "--format", "csv", "-c", "nsL"]).trim().to_owned();
    let stranger = one.call("migrate", &["web", "elsewhere", "node1", "42", "node1"], Some(&document));
    assert!(stranger.code == 1 && stranger.stderr.contains("no member"), "{}", stranger.stderr);
    assert_eq!(location(), "web,RUNNING,node1");
    one.inside("web", "echo moved >/state");
    one.done("migrate", &["web", "node2", "node1", "42", "node1"], Some(&document));
    assert_eq!(location(), "web,RUNNING,node2");
    assert_eq!(two.inside("web", "cat /state"), "moved\n");
    one.ok(&["incus", "delete", "-f", "web"]);
}
