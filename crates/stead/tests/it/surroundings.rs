//! What is around a command and a cluster: the caller's process, the state directory's name, PATH, signals, and what others
//! change by hand.

use crate::common::{World, eventually, said};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

fn yaml(name: &str, nodes: u32, more: &str) -> String {
    format!("name: {name}\nimage: base\nnodes: {nodes}\nmachine: {{backend: namespace}}\n{more}")
}

/// What a process of the node has inherited, and the modes of what its root is made of.
const INHERITED: &str = "umask; ulimit -a; stat -c '%a %n' / /etc /run /tmp /var/log /dev /run/stead; \
    grep -E '^(Umask|Groups|SigBlk|SigIgn|CapAmb|Seccomp|NoNewPrivs)' /proc/1/status; cat /proc/1/limits /proc/1/oom_score_adj \
    /proc/1/personality; cut -d' ' -f18,19,41 /proc/1/stat; readlink /proc/1/cwd; ls /proc/1/fd | wc -l; \
    tr '\\0' '\\n' </proc/1/environ; env | sort";

/// Hard limits are not lowered here: where root lacks CAP_SYS_RESOURCE, nobody raises them again.
#[test]
fn what_the_caller_carries_does_not_reach_nodes() {
    let test = "what_the_caller_carries_does_not_reach_nodes";
    let Some(w) = World::new(test, &["base"]) else { return };
    let file = w.file("t-caller", &yaml("t-caller", 1, "overlays: [over]\n"));
    let over = w.state.join("over/etc");
    let mut seen = Vec::new();
    for carried in [
        "umask 022",
        "umask 077; ulimit -S -c unlimited; ulimit -S -n 200; ulimit -S -s 4096; ulimit -S -f 1000000; trap '' HUP INT USR1; \
         export SECRET=carried LD_DEBUG=; exec 7</etc/passwd 8>/dev/null; echo 500 >/proc/self/oom_score_adj; cd /tmp",
        "umask 000; ulimit -S -l 64; ulimit -S -v 100000000; trap '' TERM CHLD WINCH",
    ] {
        let _ = fs::remove_dir_all(w.state.join("over"));
        fs::create_dir_all(&over).unwrap();
        fs::write(over.join("carried"), "x").unwrap();
        let stead = env!("CARGO_BIN_EXE_stead");
        let script = format!("{carried}; exec nice -n 7 \"$@\"");
        let output = Command::new("sh")
            .args(["-c", &script, "sh", stead, "--state-dir"])
            .arg(&w.state)
            .args(["up", &file])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let up = said(output);
        assert_eq!(up.code, 0, "{carried}: {}{}", up.stdout, up.stderr);
        seen.push(w.exec("t-caller", "node1", &["sh", "-c", INHERITED]));
        w.down("t-caller");
    }
    assert_eq!(seen[0], seen[1], "a careful caller's");
    assert_eq!(seen[0], seen[2], "a careless caller's");
    assert!(seen[0].starts_with("0022\n") && seen[0].contains("755 /\n"), "{}", seen[0]);
    assert!(!seen[0].contains("SECRET"), "{}", seen[0]);
}

/// A world whose state directory has this name.
fn within(w: &World, name: &str) -> World {
    let state = w.state.join("odd").join(name);
    fs::create_dir_all(&state).unwrap();
    std::os::unix::fs::symlink(fs::read_link(w.state.join("images")).unwrap(), state.join("images")).unwrap();
    World { state }
}

#[test]
fn a_state_directory_of_any_name_holds_all_that_is_written() {
    let test = "a_state_directory_of_any_name_holds_all_that_is_written";
    let Some(w) = World::new(test, &["base"]) else { return };
    for name in ["a#b", "a \"b\"", "a\nb=c", "a, b:c;d", "$(a) 'b' \\c"] {
        let odd = within(&w, name);
        let file =
            odd.file("t-odd", &yaml("t-odd", 1, "networks: [{name: lan, ipv4: 10.88.0.0/24, nat: true}]\n"));
        odd.ok(&["up", &file]);
        assert_eq!(odd.exec("t-odd", "node1", &["hostname"]).trim(), "node1");
        let beside: Vec<_> =
            fs::read_dir(w.state.join("odd")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(beside, [name], "something is beside the state directory");
        odd.ok(&["down", "t-odd"]);
        drop(odd);
    }
}

#[test]
fn programs_for_root_are_found_with_the_path_of_a_user() {
    let test = "programs_for_root_are_found_with_the_path_of_a_user";
    let Some(w) = World::new(test, &["base"]) else { return };
    let file =
        w.file("t-path", &yaml("t-path", 1, "networks: [{name: lan, ipv4: 10.88.0.0/24, nat: true}]\n"));
    for path in ["/usr/bin:/bin", "", "relative:/nowhere"] {
        let up = said(w.command(&["up", &file]).env("PATH", path).output().unwrap());
        assert_eq!(up.code, 0, "PATH={path}: {}", up.stderr);
        let down = said(w.command(&["down", "t-path"]).env("PATH", path).output().unwrap());
        assert_eq!(down.code, 0, "PATH={path}: {}", down.stderr);
        w.nothing_left("t-path");
    }
}

#[test]
fn a_first_up_that_is_ended_takes_back_what_it_made() {
    let test = "a_first_up_that_is_ended_takes_back_what_it_made";
    let Some(w) = World::new(test, &["base"]) else { return };
    let file = w.file(
        "t-ended",
        &yaml("t-ended", 3, "services: [{name: never, command: [sleep, '1000'], ready: {path: /never}}]\n"),
    );
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let mut up = w.command(&["up", &file]).stderr(Stdio::piped()).spawn().unwrap();
        eventually("a machine runs", || w.state.join("clusters/t-ended/nodes/node1/state.json").exists());
        kill_process(Pid::from_child(&up), signal).unwrap();
        let mut stderr = String::new();
        up.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        let status = up.wait().unwrap();
        assert_eq!(status.code(), Some(130), "{signal:?}: {stderr}");
        assert!(stderr.contains("interrupted: taking down what was started"), "{signal:?}: {stderr}");
        w.nothing_left("t-ended");
    }
}

/// As under nohup(1).
#[test]
fn a_hangup_that_the_caller_ignores_does_not_end_an_up() {
    let test = "a_hangup_that_the_caller_ignores_does_not_end_an_up";
    let Some(w) = World::new(test, &["base"]) else { return };
    let file = w.file("t-nohup", &yaml("t-nohup", 1, ""));
    let mut up = Command::new("sh")
        .args(["-c", "trap '' HUP; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_stead"), "--state-dir"])
        .arg(&w.state)
        .args(["up", &file])
        .process_group(0)
        .spawn()
        .unwrap();
    eventually("the cluster is recorded", || w.state.join("clusters/t-nohup").exists());
    kill_process(Pid::from_child(&up), Signal::HUP).unwrap();
    assert_eq!(up.wait().unwrap().code(), Some(0));
    w.down("t-nohup");
}

#[test]
fn nodes_whose_network_was_removed_by_hand_are_linked_again() {
    let test = "nodes_whose_network_was_removed_by_hand_are_linked_again";
    let Some(w) = World::new(test, &["base"]) else { return };
    let file = w.file("t-relink", &yaml("t-relink", 2, ""));
    w.ok(&["up", &file]);
    let removed = Command::new("ip").args(["netns", "delete", "stead-t-relink"]).status().unwrap();
    assert!(removed.success());
    let said = w.ok(&["up", &file]);
    assert!(!said.contains("nothing to do"), "{said}");
    for node in ["node1", "node2"] {
        assert_eq!(w.exec("t-relink", node, &["hostname"]).trim(), node);
    }
    w.exec("t-relink", "node1", &["ping", "-c1", "-W5", "-q", "node2"]);
    assert!(w.ok(&["up", &file]).contains("nothing to do"));
    w.down("t-relink");
}

/// The names in the certificate that an agent shows at this address.
fn names_at(address: &str) -> String {
    let shown = Command::new("openssl")
        .args(["s_client", "-connect", address, "-showcerts"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let mut x509 = Command::new("openssl")
        .args(["x509", "-noout", "-ext", "subjectAltName"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    x509.stdin.take().unwrap().write_all(&shown.stdout).unwrap();
    String::from_utf8_lossy(&x509.wait_with_output().unwrap().stdout).into_owned()
}

#[test]
fn a_published_port_moves_from_node_to_node_and_from_address_to_address() {
    let test = "a_published_port_moves_from_node_to_node_and_from_address_to_address";
    let Some(w) = World::new(test, &["base"]) else { return };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    if Command::new("openssl").arg("version").output().is_err() {
        println!("SKIP {test}: needs openssl");
        return;
    }
    let at = format!("127.0.0.1:{port}");
    for (published, who) in [
        (format!("127.0.0.1:{port}:node1:8484"), "node1"),
        (format!("127.0.0.1:{port}:node2:8484"), "node2"),
        (format!("0.0.0.0:{port}:node2:8484"), "node2"),
        (format!("127.0.0.1:{port}:node1:8484"), "node1"),
    ] {
        let file = w.file("t-moves", &yaml("t-moves", 2, &format!("publish: ['{published}']\n")));
        w.ok(&["up", &file]);
        let names = names_at(&at);
        assert!(names.contains(&format!("DNS:{who},")), "{published}: {names}");
    }
    w.down("t-moves");
}
