//! The command line without a cluster: help, errors with exit code 2, schemas, pages. Needs no root.

use std::{fs, path::Path, process::Command};

struct Said {
    code: i32,
    stdout: String,
    stderr: String,
}

fn stead(args: &[&str]) -> Said {
    stead_in(Path::new("/"), args)
}

fn stead_in(cwd: &Path, args: &[&str]) -> Said {
    let dir = tempfile::tempdir().unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_stead"))
        .arg("--state-dir")
        .arg(dir.path())
        .args(args)
        .current_dir(cwd)
        .output()
        .unwrap();
    Said {
        code: out.status.code().unwrap(),
        stdout: String::from_utf8(out.stdout).unwrap(),
        stderr: String::from_utf8(out.stderr).unwrap(),
    }
}

#[test]
fn every_verb_has_help() {
    let help = stead(&["--help"]).stdout;
    for verb in [
        "image",
        "up",
        "down",
        "status",
        "ls",
        "exec",
        "shell",
        "logs",
        "cp",
        "console",
        "reboot",
        "scale",
        "env",
        "fleet",
        "doctor",
        "schema",
        "completions",
        "man",
    ] {
        assert!(help.contains(&format!("\n  {verb} ")), "{verb} is missing in\n{help}");
        let said = stead(&[verb, "--help"]);
        assert!(said.code == 0 && said.stdout.contains("Usage: stead"), "{verb}");
    }
    assert!(!help.contains("machine run"));
}

#[test]
fn fleet_says_what_is_wrong_with_what_was_asked() {
    for (args, want) in [
        (&["rebalance", "--window", "6-8"][..], "a window is two times of day"),
        (&["rebalance", "--window", "06:00-06:00"], "a window that ends when it begins"),
        (&["rebalance", "--no-wait"], "--window"),
        (&["plan", "--remote", "nosuch"], "there is no remote nosuch"),
        (&["plan", "--remote", "../x"], "may hold only"),
        (&["plan", "--remote", "a", "--cluster", "b"], "cannot be used with"),
        (&["trust", "lab", "--token", "/nonexistent"], "read the token from /nonexistent"),
        (&["trust", "lab", "--token", "/dev/null"], "there is none"),
        (&["forget", "nosuch"], "there is no remote nosuch"),
        (&["place"], "<NAME>"),
        (&["place", "a", "-c", "memory"], "is not KEY=VALUE"),
        (&["place", "a", "-d", "size=1GiB"], "is not DEVICE,KEY=VALUE"),
        (&["scriptlet", "--install", "--remove"], "cannot be used with"),
    ] {
        let said = stead(&[&["fleet"], args].concat());
        assert!(said.code == 2 && said.stderr.contains(want), "{args:?}: {}\n{}", said.code, said.stderr);
    }
    let said = stead(&["fleet", "remotes"]);
    assert!(said.code == 0 && said.stdout.starts_with("NAME"), "{}", said.stderr);
}

#[test]
fn bad_input_is_told_with_its_place_and_exit_code_2() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.yaml");
    let path = file.to_str().unwrap();
    for (text, want) in [
        ("name: demo\nimage: x\nnodes: 3\nnetwrks: []\n", "c.yaml:4:1: unknown key \"netwrks\""),
        ("name: demo\nimage: x\nnodes: many\n", "c.yaml:3"),
        ("name: [\n", "c.yaml:1"),
        ("", "c.yaml"),
        ("name: ../../etc\nimage: x\nnodes: 1\n", "cluster name"),
        ("name: demo\nimage: nosuch\nnodes: 1\n", "nosuch"),
    ] {
        fs::write(&file, text).unwrap();
        let said = stead(&["up", path]);
        assert_eq!(said.code, 2, "{text:?}: {}", said.stderr);
        assert!(
            said.stderr.starts_with("error: ") && said.stderr.contains(want),
            "{text:?}: {}",
            said.stderr
        );
    }
    // The last one gets as far by the file's bare name.
    let said = stead_in(dir.path(), &["up", "c.yaml"]);
    assert!(said.code == 2 && said.stderr.contains("nosuch"), "{}", said.stderr);
    fs::write(&file, [0xff, 0xfe, 0x00]).unwrap();
    assert_eq!(stead(&["up", path]).code, 2);
    assert_eq!(stead(&["up", "/nonexistent.yaml"]).code, 2);
    assert_eq!(stead(&["image", "build", "/nonexistent.yaml"]).code, 2);
    for verb in ["status", "down", "env"] {
        let said = stead(&[verb, "nosuch"]);
        assert!(
            said.code == 2 && said.stderr.contains("cluster nosuch is not here"),
            "{verb}: {}",
            said.stderr
        );
    }
    assert_eq!(stead(&["status", "No_Such"]).code, 2);
    assert_eq!(stead(&["frobnicate"]).code, 2);
}

#[test]
fn schemas_completions_and_pages_are_made() {
    for of in ["recipe", "cluster", "node", "manifest"] {
        let schema: serde_json::Value = serde_json::from_str(&stead(&["schema", of]).stdout).unwrap();
        assert!(schema["properties"].is_object(), "{of}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(stead(&["completions", shell]).stdout.contains("stead"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(stead(&["man", dir.path().to_str().unwrap()]).code, 0);
    assert!(fs::read_to_string(dir.path().join("stead-up.1")).unwrap().contains("cluster"));
}

#[test]
fn an_empty_host_is_no_error() {
    assert_eq!(stead(&["ls", "--json"]).stdout, "[]\n");
    assert_eq!(stead(&["image", "ls", "--json"]).stdout, "[]\n");
}
