//! Namespace machines with a small shell script as init: their life, their end, and leftovers.

use crate::{
    Outcome, Test,
    network::Up,
    world::{SOON, alive, answer, assert_no_traces, eventually, exe, sh, traces},
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use stead_machine::{
    MachineError, MachinePhase, MachineSpec, layers,
    spec::{MachineDisk, MachineNic},
    supervise,
};
use stead_model::{Bytes, cluster::Backend};

pub const TESTS: &[Test] = &[
    ("machine::life_of_a_namespace_machine", life),
    ("machine::ends", ends),
    ("machine::killed_supervisor", killed_supervisor),
    ("machine::errors_are_told", errors_are_told),
];

/// Prints what it sees, then follows the file `command` beside its boot file.
const INIT: &str = r#"#!/bin/busybox sh
dir=${2%/*}
trap 'echo asked to end; if [ -e $dir/deaf ]; then :; else busybox poweroff -f; fi' TERM
busybox mount -t proc proc /proc
echo "boot pid $$ args $1"
echo "cgroups $(busybox cut -d: -f3 /proc/self/cgroup | busybox sort -u | busybox tr '\n' ' ')"
busybox ip addr add $(busybox cat $dir/address) dev eth0
busybox ip link set eth0 up
echo "links $(busybox ls /sys/class/net | busybox tr '\n' ' ')"
busybox mkdir -p /sys/fs/cgroup/pids/inner && echo $$ > /sys/fs/cgroup/pids/inner/cgroup.procs
busybox sleep 1000 &
echo up
while :; do
    if [ -e $dir/command ]; then
        command=$(busybox cat $dir/command)
        busybox rm $dir/command
        case $command in
        reboot) busybox reboot -f ;;
        poweroff) busybox poweroff -f ;;
        crash) exit 3 ;;
        esac
    fi
    busybox sleep 0.02
done
"#;

fn spec(up: &Up, name: &str, n: u8) -> MachineSpec {
    let dir = up.0.dir.join(name);
    let init = up.0.dir.join("init");
    fs::create_dir_all(&dir).unwrap();
    if !init.exists() {
        fs::write(&init, INIT).unwrap();
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::write(dir.join("address"), format!("10.88.0.{}/24", n + 1)).unwrap();
    MachineSpec {
        cluster: up.0.cluster.clone(),
        name: name.parse().unwrap(),
        backend: Backend::Namespace,
        accelerator: None,
        dir: dir.clone(),
        cpus: Some(1),
        memory: Some(Bytes::mib(64)),
        vmlinux: None,
        initrd: None,
        stead_node: init,
        layers: vec![layer(&up.0.dir)],
        layers_dir: up.0.dir.join("layers"),
        spec_dir: dir.clone(),
        disks: vec![MachineDisk { serial: "data".into(), path: dir.join("data.img"), size: Bytes::mib(128) }],
        nics: vec![MachineNic {
            name: "eth0".into(),
            bridge: "lan".into(),
            mac: format!("02:00:00:00:00:0{n}").parse().unwrap(),
            mtu: 1400,
        }],
        netns: up.netns(),
        // Longer than any test may take: what waits for it does not end.
        stop_timeout_s: 3600,
    }
}

/// A small squashfs, made once a directory.
fn layer(dir: &Path) -> PathBuf {
    let (tree, file) = (dir.join("tree"), dir.join("root.squashfs"));
    if !file.exists() {
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join("hello"), "from the layer").unwrap();
        let out =
            Command::new("mksquashfs").arg(&tree).arg(&file).arg("-quiet").output().expect("mksquashfs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    file
}

fn console(spec: &MachineSpec) -> String {
    fs::read_to_string(spec.dir.join("console.log")).unwrap_or_default()
}

fn say(spec: &MachineSpec, command: &str) {
    fs::write(spec.dir.join(".command"), command).unwrap();
    fs::rename(spec.dir.join(".command"), spec.dir.join("command")).unwrap();
}

fn boots(spec: &MachineSpec) -> usize {
    console(spec).matches("\nup\n").count()
}

fn gone(spec: &MachineSpec) {
    let name = format!("{}/{}", spec.cluster, spec.name);
    eventually("the supervisor's end", || supervise::observe(&spec.dir).is_none());
    // The lock is free a moment before the process is gone.
    let left = || -> Vec<String> {
        traces(&name).into_iter().filter(|t| !t.starts_with("mount") && !t.contains("/layers/")).collect()
    };
    eventually("everything of the machine to be gone", || {
        let left = left();
        if !left.is_empty() {
            println!("still there: {left:#?}");
        }
        left.is_empty()
    });
}

fn life() -> Outcome {
    if Command::new("mksquashfs").arg("-version").output().is_err() {
        return Outcome::Skipped("mksquashfs is not installed".into());
    }
    let up = Up::new("tst-m", |_| {});
    let (a, b) = (spec(&up, "node1", 1), spec(&up, "node2", 2));
    for s in [&a, &b] {
        supervise::spawn(&exe(), s).expect("spawn");
        eventually("the machine to be up", || boots(s) == 1);
    }
    let said = console(&a);
    assert!(said.contains("boot pid 1 args namespace"), "{said}");
    // In a cgroup namespace of its own it sees itself at the top of every hierarchy.
    assert!(said.contains("cgroups / \n"), "{said}");
    let state = supervise::observe(&a.dir).unwrap();
    assert_eq!((state.phase, state.boots), (MachinePhase::Running, 1));
    assert!(matches!(supervise::spawn(&exe(), &a), Err(MachineError::AlreadyRuns(_))));
    sh(&up.netns(), &["ping", "-c1", "-W2", "10.88.0.2"]);
    sh(&up.netns(), &["ping", "-c1", "-W2", "10.88.0.3"]);
    let link = sh(&up.netns(), &["ip", "-d", "link", "show", "type", "veth"]);
    assert!(link.contains("mtu 1400") && link.contains("master lan"), "{link}");
    // Its limits, in whichever hierarchy this host has them.
    let path = format!("stead/{}/node1", a.cluster);
    let limit = ["memory/", ""]
        .iter()
        .flat_map(|h| {
            [
                format!("/sys/fs/cgroup/{h}{path}/memory.limit_in_bytes"),
                format!("/sys/fs/cgroup/{h}{path}/memory.max"),
            ]
        })
        .find_map(|f| fs::read_to_string(f).ok())
        .expect("a memory limit");
    assert_eq!(limit.trim(), (64u64 << 20).to_string());
    let boot: stead_model::node::NamespaceBoot =
        serde_json::from_slice(&fs::read(a.dir.join("boot.json")).unwrap()).unwrap();
    assert_eq!(fs::read_to_string(boot.layers[0].join("hello")).unwrap(), "from the layer");
    assert_eq!(fs::metadata(a.dir.join("data.img")).unwrap().len(), 128 << 20);
    assert_eq!(
        traces(a.cluster.as_str())
            .iter()
            .filter(|t| t.starts_with("mount") && t.contains("/layers/"))
            .count(),
        1
    );
    // Reboot: the same supervisor, a new init, the network again.
    say(&a, "reboot");
    eventually("the second boot", || boots(&a) == 2);
    eventually("the state of the second boot", || supervise::observe(&a.dir).is_some_and(|s| s.boots == 2));
    sh(&up.netns(), &["ping", "-c1", "-W2", "10.88.0.2"]);
    // Power off from inside.
    say(&a, "poweroff");
    gone(&a);
    assert_eq!(supervise::last_state(&a.dir).unwrap().phase, MachinePhase::Stopped);
    // Stopped from outside.
    supervise::stop(&b.dir, Duration::from_secs(10)).expect("stop");
    assert!(console(&b).contains("asked to end"));
    gone(&b);
    supervise::stop(&b.dir, Duration::from_secs(10)).expect("stopping what does not run");
    for s in [&a, &b] {
        supervise::cleanup(s).expect("cleanup after a clean end");
    }
    layers::unmount_all(&a.layers_dir).expect("unmount");
    layers::unmount_all(&a.layers_dir).expect("unmount again");
    up.down();
    Outcome::Passed
}

fn ends() -> Outcome {
    let up = Up::new("tst-e", |_| {});
    let s = spec(&up, "node1", 1);
    supervise::spawn(&exe(), &s).unwrap();
    eventually("the machine to be up", || boots(&s) == 1);
    say(&s, "crash");
    gone(&s);
    let state = supervise::last_state(&s.dir).unwrap();
    assert_eq!(state.phase, MachinePhase::Failed);
    assert!(state.error.as_ref().unwrap().contains("exit status: 3"), "{state:?}");
    // A machine that ignores the signal is killed after its deadline.
    fs::write(s.dir.join("deaf"), "").unwrap();
    supervise::spawn(&exe(), &s).unwrap();
    eventually("the machine to be up again", || boots(&s) == 2);
    let pid = init_of(&s.dir);
    let begun = std::time::Instant::now();
    supervise::stop(&s.dir, Duration::from_secs(1)).expect("stop");
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(!alive(pid));
    gone(&s);
    supervise::spawn(&exe(), &s).unwrap();
    eventually("the machine to be up a third time", || boots(&s) == 3);
    supervise::kill(&s.dir).expect("kill");
    gone(&s);
    // One that was told to end by somebody who was killed before he sent the signal: nobody builds on it, and the next
    // one ends it. One that nobody told to end is left alone.
    supervise::spawn(&exe(), &s).unwrap();
    eventually("the machine to be up a fourth time", || boots(&s) == 4);
    supervise::finish_end(&s.dir).expect("nothing to finish");
    assert_eq!(supervise::observe(&s.dir).unwrap().phase, MachinePhase::Running);
    supervise::announce_end(&s.dir).expect("announce");
    assert_eq!(supervise::observe(&s.dir).unwrap().phase, MachinePhase::Stopping);
    fs::remove_file(s.dir.join("deaf")).unwrap();
    supervise::finish_end(&s.dir).expect("finish");
    gone(&s);
    layers::unmount_all(&s.layers_dir).expect("unmount");
    up.down();
    Outcome::Passed
}

/// The machine's first process. A machine may be up before its supervisor has written that down.
fn init_of(dir: &Path) -> i32 {
    answer(SOON, "the machine's first process", || supervise::observe(dir)?.machine_pid)
}

fn killed_supervisor() -> Outcome {
    let up = Up::new("tst-s", |_| {});
    let s = spec(&up, "node1", 1);
    for n in 1..=3 {
        let pid = supervise::spawn(&exe(), &s).expect("spawn over what a killed one left");
        eventually("the machine to be up", || boots(&s) == n);
        let init = init_of(&s.dir);
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        eventually("init to follow its supervisor", || !alive(init));
        assert!(supervise::observe(&s.dir).is_none());
    }
    supervise::cleanup(&s).expect("cleanup");
    supervise::cleanup(&s).expect("cleanup again");
    gone(&s);
    layers::unmount_all(&s.layers_dir).expect("unmount");
    // What a killed one left is cleared away though the next machine is of another backend, which knows nothing of it.
    let pid = supervise::spawn(&exe(), &s).expect("spawn once more");
    eventually("the machine to be up once more", || boots(&s) == 4);
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    eventually("the lock to be free", || supervise::observe(&s.dir).is_none());
    let without_kernel = MachineSpec { backend: Backend::Qemu, ..s.clone() };
    let _ = supervise::spawn(&exe(), &without_kernel);
    gone(&s);
    let why = supervise::last_state(&s.dir).unwrap().error.unwrap();
    assert!(why.contains("cannot be a qemu machine"), "{why}");
    layers::unmount_all(&s.layers_dir).expect("unmount again");
    let name = s.cluster.to_string();
    up.down();
    assert_no_traces(&name);
    Outcome::Passed
}

fn errors_are_told() -> Outcome {
    let up = Up::new("tst-r", |_| {});
    let mut s = spec(&up, "node1", 1);
    s.stead_node = "/nowhere/stead-node".into();
    let error = supervise::spawn(&exe(), &s).map(drop).map_err(|e| stead_os::chain(&e));
    // Either it is seen to have ended early, or it was up for a moment and its last state says why.
    let why = match error {
        Err(text) => text,
        Ok(()) => {
            eventually("its end", || supervise::observe(&s.dir).is_none());
            supervise::last_state(&s.dir).unwrap().error.unwrap()
        }
    };
    assert!(why.contains("/nowhere/stead-node"), "{why}");
    s = spec(&up, "node1", 1);
    s.netns = "stead-nowhere".into();
    let _ = supervise::spawn(&exe(), &s);
    eventually("its end", || supervise::observe(&s.dir).is_none());
    let why = supervise::last_state(&s.dir).unwrap().error.unwrap();
    assert!(why.contains("network namespace stead-nowhere"), "{why}");
    gone(&s);
    layers::unmount_all(&s.layers_dir).expect("unmount");
    up.down();
    Outcome::Passed
}
