//! A node in namespaces: root, services, their end, and rescue.

use crate::common::{Layers, Node, skip};
use rustix::process::Signal;
use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    time::{Duration, Instant},
};

fn sh(name: &str, script: &str, more: &str) -> String {
    let command = serde_json::json!(["/bin/sh", "-c", script]);
    format!(r#"{{"name":"{name}","command":{command}{}{more}}}"#, if more.is_empty() { "" } else { "," })
}

fn services(list: &[String]) -> String {
    format!(r#""system":{{"services":[{}]}}"#, list.join(","))
}

fn position(console: &str, text: &str) -> usize {
    console.find(text).unwrap_or_else(|| panic!("no {text:?} in\n{console}"))
}

#[test]
fn services_start_in_order_of_readiness_and_stop_in_reverse() {
    if skip("services_start_in_order_of_readiness_and_stop_in_reverse", &[]) {
        return;
    }
    let layers = Layers::new();
    let spec = services(&[
        sh(
            "top",
            "echo up; trap 'echo down; exit 0' TERM; while :; do sleep 0.1; done",
            r#""after":["base"]"#,
        ),
        sh(
            "base",
            "sleep 0.3; touch /run/base; trap 'exit 0' TERM; while :; do sleep 0.1; done",
            r#""ready":{"path":"/run/base"}"#,
        ),
        sh("aside", "exec sleep 1000", ""),
    ]);
    let mut node = Node::boot(&layers, &spec, &[]);
    node.wait_for("] running");
    let mut log = String::new();
    let path = node.path("/var/log/stead/top.log");
    node.wait_until("top's line", || {
        log = fs::read_to_string(&path).unwrap_or_default();
        log.ends_with('\n')
    });
    // Each line has a date and the milliseconds since init began.
    assert!(log.starts_with("20") && log.contains("Z +") && log.ends_with(" up\n"), "{log}");
    let console = node.shut_down();
    assert!(
        position(&console, "service base ready") < position(&console, "service top started"),
        "{console}"
    );
    assert!(
        position(&console, "service aside started") < position(&console, "service base ready"),
        "{console}"
    );
    assert!(
        position(&console, "service top stopped") < position(&console, "service base stopped"),
        "{console}"
    );
    assert!(!console.contains("killed"), "{console}");
}

#[test]
fn a_failing_service_is_restarted_and_the_node_lives() {
    if skip("a_failing_service_is_restarted_and_the_node_lives", &[]) {
        return;
    }
    let layers = Layers::new();
    let spec = services(&[
        sh("bad", "echo trying; exit 3", ""),
        r#"{"name":"absent","command":["/no/such/program"]}"#.to_owned(),
        sh("once", "exit 0", r#""restart":"never""#),
        sh("good", "exec sleep 1000", ""),
    ]);
    let mut node = Node::boot(&layers, &spec, &[]);
    node.wait_until("four tries", || node.console().matches("service bad ended: exit 3").count() >= 4);
    let tries = node.log("bad");
    for pause in ["again in 100 ms", "again in 200 ms", "again in 400 ms"] {
        assert!(tries.contains(pause), "{tries}");
    }
    assert!(
        node.console().contains("service absent ended: cannot start: No such file"),
        "{}",
        node.console()
    );
    assert_eq!(node.console().matches("service once ended").count(), 1);
    assert_eq!(node.console().matches("service good started").count(), 1);
    node.shut_down();
}

#[test]
fn a_service_that_does_not_stop_is_killed_with_its_children() {
    if skip("a_service_that_does_not_stop_is_killed_with_its_children", &[]) {
        return;
    }
    let layers = Layers::new();
    let stubborn =
        "trap '' TERM; (trap '' TERM; while :; do sleep 1; done) & echo $! ; while :; do sleep 1; done";
    let spec = services(&[sh("stubborn", stubborn, r#""stop_timeout_s":1"#)]);
    let mut node = Node::boot(&layers, &spec, &[]);
    node.wait_for("] running");
    node.signal(Signal::TERM);
    let began = Instant::now();
    let (status, console) = node.wait();
    assert!(began.elapsed() >= Duration::from_millis(900), "TERM got its second: {:?}", began.elapsed());
    assert_eq!(status.signal(), Some(Signal::INT.as_raw()), "{console}");
    assert!(console.contains("service stubborn stopped"), "{console}");
}

#[test]
fn leftover_processes_of_a_service_end_before_its_next_start() {
    if skip("leftover_processes_of_a_service_end_before_its_next_start", &[]) {
        return;
    }
    let layers = Layers::new();
    // The child would live on and hold e.g. a port.
    let spec = services(&[sh(
        "leaver",
        "test -e /run/child && kill -0 $(cat /run/child) && echo LEFTOVER; (exec sleep 1000) & echo $! > /run/child; exit 1",
        "",
    )]);
    let mut node = Node::boot(&layers, &spec, &[]);
    node.wait_until("three tries", || node.console().matches("service leaver ended").count() >= 3);
    assert!(!node.log("leaver").contains("LEFTOVER"), "{}", node.log("leaver"));
    node.shut_down();
}

#[test]
fn ctrl_alt_del_boots_again() {
    if skip("ctrl_alt_del_boots_again", &[]) {
        return;
    }
    let layers = Layers::new();
    let mut node = Node::boot(&layers, "", &[]);
    node.wait_for("] running");
    node.signal(Signal::INT);
    let (status, console) = node.wait();
    assert_eq!(status.signal(), Some(Signal::HUP.as_raw()), "{status}\n{console}");
    assert!(console.contains("rebooting"));
}

#[test]
fn a_stop_does_not_wait_for_the_boot() {
    if skip("a_stop_does_not_wait_for_the_boot", &[]) {
        return;
    }
    let layers = Layers::new();
    let spec = r#""system":{"onboot":[{"name":"long","command":["/bin/sleep","3600"],"timeout_s":3600}]}"#;
    let mut node = Node::boot(&layers, spec, &[]);
    node.wait_for("state is lost at reboot");
    node.signal(Signal::TERM);
    let (_, console) = node.wait();
    assert!(console.contains("shutting down") && !console.contains("] running"), "{console}");
}

#[test]
fn the_root_is_the_layers_and_nothing_of_the_host() {
    if skip("the_root_is_the_layers_and_nothing_of_the_host", &[]) {
        return;
    }
    let layers = Layers::new();
    let spec = r#""system":{"hostname":"other","onboot":[
        {"name":"look","command":["/bin/sh","-c","hostname; cat /proc/self/mountinfo; ls -l /dev /dev/net; cat /proc/sys/net/ipv4/ip_forward; ls /sys/class/net"]},
        {"name":"slow","command":["/bin/sleep","100"],"timeout_s":1},
        {"name":"bad","command":["/bin/sh","-c","exit 7"]}],
        "sysctl":{"net.ipv4.ip_forward":"1","vm.overcommit_memory":"99","net.ipv4.no_such":"1"}}"#;
    let mut node = Node::boot(&layers, spec, &[]);
    node.wait_for("] running");
    let console = node.console();
    assert!(console.contains("onboot look done"), "{console}");
    assert!(console.contains("onboot slow failed: took longer than 1 s"), "{console}");
    assert!(console.contains("onboot bad failed: exit 7"), "{console}");
    assert!(!console.contains("sysctl vm.overcommit_memory"), "{console}");
    assert_eq!(node.read("/run/stead/sysctl/vm/overcommit_memory").trim(), "99");
    assert_ne!(
        fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap().trim(),
        "99",
        "it is the host's"
    );
    assert!(console.contains("sysctl net.ipv4.no_such cannot be set to 1"), "{console}");
    assert!(console.contains("state is lost at reboot"), "{console}");
    assert_eq!(node.read("/etc/layer"), "over", "the last layer is on top");
    assert!(!console.contains("ip_forward"), "{console}");
    let look = node.log("onboot-look");
    assert!(look.contains(" other\n"), "{look}");
    for device in ["null", "fuse", "tun", "ptmx -> pts/ptmx", "console"] {
        assert!(look.contains(device), "no {device} in {look}");
    }
    assert!(look.contains(" 1\n"), "ip_forward is set: {look}");
    assert!(
        look.contains(" lo\n") && !look.contains(" eth0\n"),
        "sysfs shows another network namespace: {look}"
    );
    // Every mount is the node's own; nothing of the host's tree but the program itself.
    let ours = ["/proc", "/sys", "/dev", "/run", "/tmp"];
    for line in look.lines().filter(|l| l.contains(" - ")) {
        let fields: Vec<&str> = line.split(' ').collect();
        let target = fields[6];
        assert!(target == "/" || ours.iter().any(|o| target.starts_with(o)), "{line}");
        let disk = line.split(" - ").nth(1).is_some_and(|r| r.starts_with("ext4"));
        assert!(!disk || target == "/run/stead/stead-node", "{line}");
    }
    assert!(
        fs::symlink_metadata(node.path("/run/stead/boot.json")).is_err(),
        "the spec with the agent's key is gone"
    );
    assert!(fs::write(node.path("/run/stead/stead-node"), "x").is_err(), "the host's file is read-only");
    node.shut_down();
}

/// Whether or not a write is refused, the host's parameters and knobs stay as they are; what belongs to the node's
/// namespaces can be set.
#[test]
fn what_a_node_writes_to_the_kernel_stays_its_own() {
    if skip("what_a_node_writes_to_the_kernel_stays_its_own", &[]) {
        return;
    }
    /// Files of the host, and whether a node's write appears to succeed.
    const HOSTS: [(&str, &str, bool); 10] = [
        ("/proc/sys/kernel/panic", "17", true),
        ("/proc/sys/kernel/panic_on_oops", "0", true),
        ("/proc/sys/vm/overcommit_memory", "2", true),
        ("/proc/sys/fs/inotify/max_user_instances", "17", true),
        ("/proc/sys/user/max_user_namespaces", "17", true),
        ("/proc/sys/kernel/core_pattern", "|/bin/false", false),
        ("/proc/sys/kernel/sysrq", "17", false),
        ("/proc/sys/vm/dirty_ratio", "17", false),
        ("/sys/kernel/mm/transparent_hugepage/enabled", "never", false),
        ("/sys/module/loop/parameters/max_part", "17", false),
    ];
    const OWN: [(&str, &str); 4] = [
        ("/proc/sys/net/ipv4/ip_forward", "1"),
        ("/proc/sys/kernel/hostname", "renamed"),
        ("/proc/sys/kernel/shmmax", "123456789"),
        ("/sys/class/net/lo/tx_queue_len", "777"),
    ];
    let before: Vec<_> = HOSTS.iter().map(|(file, ..)| fs::read(file).ok()).collect();
    let mut script = String::from("echo begin;");
    for (file, value) in HOSTS.iter().map(|(f, v, _)| (f, v)).chain(OWN.iter().map(|(f, v)| (f, v))) {
        script += &format!(
            "if [ -e {file} ]; then (echo '{value}' >{file}) 2>/dev/null && echo {file} = $(cat {file}); fi;"
        );
    }
    script += "(echo h >/proc/sysrq-trigger) 2>/dev/null && echo SYSRQ; (echo x >/proc/irq/default_smp_affinity) 2>/dev/null && echo IRQ; echo end";
    let command = serde_json::json!(["/bin/sh", "-c", script]);
    let spec = format!(r#""system":{{"onboot":[{{"name":"write","command":{command}}}]}}"#);
    let layers = Layers::new();
    let mut node = Node::boot(&layers, &spec, &[]);
    node.wait_for("] running");
    let said = node.log("onboot-write");
    let after: Vec<_> = HOSTS.iter().map(|(file, ..)| fs::read(file).ok()).collect();
    assert_eq!(before, after, "the host is as it was: {said}");
    for ((file, value, succeeds), there) in HOSTS.iter().zip(&before) {
        let says = said.contains(&format!("{file} = {value}"));
        assert_eq!(says, *succeeds && there.is_some(), "{file}: {said}");
    }
    for (file, value) in OWN {
        assert!(said.contains(&format!("{file} = {value}")), "{file}: {said}");
    }
    assert!(said.contains(" end") && !said.contains("SYSRQ") && !said.contains("IRQ"), "{said}");
    let console = node.console();
    for failed in ["read-only", "bind ", "in the place of", "make directory", "cgroup"] {
        assert!(!console.contains(&format!("warning: {failed}")), "{console}");
    }
    node.shut_down();
}

#[test]
fn an_impossible_boot_ends_in_rescue() {
    if skip("an_impossible_boot_ends_in_rescue", &[]) {
        return;
    }
    let layers = tempfile::tempdir().unwrap();
    let cases = [
        (layers.path().join("gone"), r#"{"schema":1,"cluster":"c","name":"n1"}"#, "is not a directory"),
        (
            layers.path().to_owned(),
            r#"{"schema":1,"cluster":"c","name":"n1","nme":1}"#,
            "did you mean \"name\"",
        ),
        (layers.path().to_owned(), "not json", "node.json:1:"),
        (
            layers.path().to_owned(),
            r#"{"schema":1,"cluster":"c","name":"n1","root":{"disk":"data"}}"#,
            "no disk with serial data",
        ),
    ];
    for (layer, spec, why) in cases {
        let mut node = Node::boot_raw(&[layer], spec, &[], None);
        node.wait_for("RESCUE: ");
        assert!(node.console().contains(why), "no {why:?} in {}", node.console());
        // It still runs, in its own root.
        std::thread::sleep(Duration::from_millis(300));
        let root: Vec<PathBuf> =
            fs::read_dir(node.path("/")).unwrap().flatten().map(|e| e.file_name().into()).collect();
        assert!(root.contains(&PathBuf::from("run")) && !root.contains(&PathBuf::from("home")), "{root:?}");
        node.shut_down();
    }
}

#[test]
fn a_broken_system_spec_of_the_image_ends_in_rescue() {
    if skip("a_broken_system_spec_of_the_image_ends_in_rescue", &[]) {
        return;
    }
    let layers = Layers::new();
    let over = tempfile::tempdir().unwrap();
    fs::create_dir_all(over.path().join("usr/lib/stead")).unwrap();
    fs::write(over.path().join("usr/lib/stead/system.json"), r#"{"services":[{"name":"a","command":[]}]}"#)
        .unwrap();
    let node = Node::boot_over(&layers, over.path(), "");
    node.wait_for("RESCUE: ");
    assert!(node.console().contains("a: command is empty"), "{}", node.console());
    node.shut_down();
}

#[test]
fn only_init_can_be_a_node() {
    let output = crate::common::command(env!("CARGO_BIN_EXE_stead-node"), &["run"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.json");
    for (text, code) in
        [(r#"{"schema":1,"cluster":"c","name":"n1"}"#, 0), (r#"{"schema":2,"cluster":"c","name":"n1"}"#, 2)]
    {
        fs::write(&file, text).unwrap();
        let output =
            crate::common::command(env!("CARGO_BIN_EXE_stead-node"), &["check", file.to_str().unwrap()])
                .output()
                .unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
    }
}
