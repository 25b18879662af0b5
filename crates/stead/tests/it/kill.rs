//! Killed at any moment, `up`, `scale` and `down` leave a state from which `up` completes and `down` cleans.

use crate::common::{
    World, eventually,
    faults::{Random, killed, often},
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

fn rounds(w: &World, cluster: &str, file: &str, kills: u32, well: impl Fn(&World)) {
    let mut random = Random::new();
    let began = Instant::now();
    w.ok(&["up", file]);
    let up_takes = began.elapsed().as_micros() as u64;
    let began = Instant::now();
    w.down(cluster);
    let down_takes = began.elapsed().as_micros() as u64;
    let mut landed = 0;
    let mut tries = 0;
    while landed < kills {
        tries += 1;
        assert!(
            tries < kills * 4,
            "only {landed} of {tries} commands were still running when they were to be killed"
        );
        let exists = !w.stead(&["status", cluster]).stderr.contains("there is no cluster");
        let verb = random.below(if exists { 4 } else { 1 });
        let hit = match verb {
            0 => killed(w, &["up", file], Duration::from_micros(random.below(up_takes))),
            1 => killed(w, &["scale", cluster, "3"], Duration::from_micros(random.below(up_takes))),
            2 => killed(w, &["scale", cluster, "1"], Duration::from_micros(random.below(up_takes))),
            _ => killed(w, &["down", cluster], Duration::from_micros(random.below(down_takes))),
        };
        landed += u32::from(hit);
        match random.below(3) {
            // Go on from whatever is there,
            0 => {
                w.ok(&["up", file]);
                well(w);
            }
            // clean it up,
            1 => {
                let said = w.stead(&["down", cluster]);
                assert!(said.code == 0 || said.stderr.contains("there is no cluster"), "{}", said.stderr);
                w.nothing_left(cluster);
            }
            // or be killed again on top of it.
            _ => {}
        }
    }
    w.ok(&["up", file]);
    well(w);
    w.down(cluster);
    println!("{landed} kills in {tries} commands");
}

/// Both nodes are so at once, without a moment's grace: that is what a command that succeeded says.
#[track_caller]
fn both(w: &World, cluster: &str, key: &str, value: &str) {
    let status = w.status(cluster);
    let nodes = status["nodes"].as_array().unwrap();
    let well = nodes.len() == 2 && nodes.iter().all(|n| n.pointer(key).is_some_and(|v| v == value));
    assert!(well, "{status:#}");
}

/// Both members are online now and stay so.
#[track_caller]
fn online(w: &World, cluster: &str) {
    for _ in 0..6 {
        both(w, cluster, "/engine/state", "online");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The first process that `parent` has started with these words in its arguments; `None` when `parent` ends without.
fn child_with(parent: &mut Child, words: &str) -> Option<Pid> {
    while parent.try_wait().unwrap().is_none() {
        for thread in fs::read_dir(format!("/proc/{}/task", parent.id())).into_iter().flatten().flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            for pid in children.split_whitespace() {
                let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                if String::from_utf8_lossy(&arguments).replace('\0', " ").contains(words) {
                    return Pid::from_raw(pid.parse().unwrap());
                }
            }
        }
    }
    None
}

/// Supervisors outlive their command from when they hold their lock. One that is only starting must not: it would come
/// to its lock after the next command found it free.
#[test]
fn what_a_killed_command_was_starting_dies_with_it() {
    const ROUNDS: u32 = 24;
    let Some(w) = World::new("what_a_killed_command_was_starting_dies_with_it", &["base"]) else { return };
    let file = w.file("t-late", "name: t-late\nimage: base\nnodes: 2\nmachine: {backend: namespace}\n");
    let mut caught = 0;
    for round in 0..ROUNDS {
        let words = ["network run", "machine run"][round as usize % 2];
        let mut up = w.command(&["up", &file]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let supervisor = child_with(&mut up, words).unwrap_or_else(|| panic!("`up` starts `{words}`"));
        // As slow as a busy host would make it.
        kill_process(supervisor, Signal::STOP).unwrap();
        up.kill().unwrap();
        up.wait().unwrap();
        let holds = || {
            let locks = fs::read_to_string("/proc/locks").unwrap();
            locks.lines().any(|l| l.split_whitespace().nth(4) == Some(&supervisor.to_string()))
        };
        let lives = || Path::new("/proc").join(supervisor.to_string()).exists();
        eventually("it is gone, or holds its lock", || !lives() || holds());
        if lives() {
            kill_process(supervisor, Signal::CONT).unwrap();
        } else {
            caught += 1;
        }
        // The next command goes on from there, whatever it is.
        if round % 4 < 2 {
            w.ok(&["up", &file]);
            both(&w, "t-late", "/phase", "running");
        }
        w.down("t-late");
        assert!(!w.state.join("clusters/t-late").exists());
    }
    println!("{caught} of {ROUNDS} were only starting");
    assert!(caught > ROUNDS / 4, "only {caught} of {ROUNDS} were only starting when they were stopped");
}

#[test]
fn base_cluster_survives_kills() {
    let Some(w) = World::new("base_cluster_survives_kills", &["base"]) else { return };
    let file = w.file("t-kill", "name: t-kill\nimage: base\nnodes: 2\nmachine: {backend: namespace}\n");
    rounds(&w, "t-kill", &file, often(30, 100), |w| both(w, "t-kill", "/phase", "running"));
}

#[test]
fn incus_cluster_survives_kills() {
    let Some(w) = World::new("incus_cluster_survives_kills", &["incus-node"]) else { return };
    let file =
        w.file("t-killi", "name: t-killi\nimage: incus-node\nnodes: 2\nmachine: {backend: namespace}\n");
    rounds(&w, "t-killi", &file, often(8, 100), |w| online(w, "t-killi"));
}

/// The engine goes on with a removal after the command that asked for it was killed, so the next `up` meets it at any
/// stage: not begun, evacuating, leaving the database, resetting itself, gone.
#[test]
fn a_removal_cut_short_at_any_moment_is_taken_back() {
    let Some(w) = World::new("a_removal_cut_short_at_any_moment_is_taken_back", &["incus-node"]) else {
        return;
    };
    let file =
        w.file("t-killr", "name: t-killr\nimage: incus-node\nnodes: 2\nmachine: {backend: namespace}\n");
    w.ok(&["up", &file]);
    let began = Instant::now();
    w.ok(&["scale", "t-killr", "1"]);
    let takes = began.elapsed();
    let moments = often(10, 50);
    let mut landed = 0;
    for moment in 0..moments {
        w.ok(&["up", &file]);
        online(&w, "t-killr");
        landed += u32::from(killed(&w, &["scale", "t-killr", "1"], takes * moment / moments));
    }
    w.ok(&["up", &file]);
    online(&w, "t-killr");
    assert!(
        landed > moments / 2,
        "only {landed} of {moments} commands still ran when they were to be killed"
    );
    w.down("t-killr");
}
