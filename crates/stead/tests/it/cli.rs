//! The command line without a running cluster: help, bad input, schemas, man pages. In this process, without root.

use serde_json::Value;
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};
use stead::{Context, Output, Terminals};

struct Said {
    code: u8,
    stdout: String,
    stderr: String,
}

/// A state directory and a working directory.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.path("cwd")).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A file in the working directory.
    fn file(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path("cwd").join(name), content).unwrap();
    }

    /// The record of a cluster that is not up.
    fn cluster(&self, name: &str, nodes: u32) {
        let spec = stead_model::ClusterSpec::from_yaml(
            "c.yaml",
            &format!("name: {name}\nimage: base\nnodes: {nodes}\n"),
        )
        .unwrap();
        let record = stead_cluster::Record {
            schema: 1,
            engine: stead_model::EngineKind::None,
            members: Default::default(),
            leaving: Default::default(),
            image: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
            base_dir: self.path("cwd"),
            spec,
        };
        let layout = stead_cluster::Layout::new(&self.path("state"), &name.parse().unwrap());
        record.save(&layout).unwrap();
    }

    fn run(&self, args: &[&str]) -> Said {
        let context = Context {
            exe: "/usr/bin/stead".into(),
            directory: self.path("cwd"),
            state_dir: Some(self.path("state")),
            temp_dir: self.0.path().to_owned(),
            terminal_type: None,
            sudo_user: None,
            ssh_agent: None,
            is_root: true,
            terminals: Terminals::default(),
            columns: Some(100),
        };
        let (output, read) = Output::captured();
        let arguments = ["stead"].iter().chain(args).map(OsString::from);
        let code = stead::run(arguments, context, output);
        Said { code, stdout: read.stdout(), stderr: read.stderr() }
    }
}

fn stead(args: &[&str]) -> Said {
    Place::new().run(args)
}

/// The `--help` of every verb that is not hidden, in one text.
fn help(args: &[&str], all: &mut String) {
    let said = stead(&[args, &["--help"]].concat());
    assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{args:?}");
    all.push_str(&format!("## stead {}\n\n{}\n", args.join(" "), said.stdout));
    let verbs = said.stdout.split_once("Commands:\n").map_or("", |(_, rest)| rest);
    for line in verbs.lines().take_while(|l| !l.is_empty()) {
        if let Some(verb) = line
            .strip_prefix("  ")
            .and_then(|l| l.split(' ').next())
            .filter(|v| !v.is_empty() && *v != "help")
        {
            help(&[args, &[verb]].concat(), all);
        }
    }
}

#[test]
fn help_reads_well() {
    let mut all = String::new();
    help(&[], &mut all);
    assert!(!all.contains("stead machine"), "hidden verbs are shown");
    insta::assert_snapshot!("help", all);
}

/// Each file in the folders of verbs is one verb, and each verb has one file.
#[test]
fn a_verb_is_a_file() {
    fn visit(dir: &Path, words: &[&str]) -> usize {
        let mut count = 0;
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            if name == "mod" {
                continue;
            }
            let words = [words, &[&name]].concat();
            let said = stead(&[&words[..], &["--help"]].concat());
            let usage = format!("Usage: stead {}", words.join(" "));
            assert!(said.stdout.contains(&usage), "{}: no such verb\n{}", path.display(), said.stderr);
            count += 1;
            if path.is_dir() {
                count += visit(&path, &words);
            }
        }
        count
    }
    let verbs = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/verbs");
    assert!(visit(&verbs, &[]) >= 34);
}

#[test]
fn usage_mistakes_exit_with_2() {
    for (args, want) in [
        (&["frobnicate"][..], "unrecognized subcommand"),
        (&[], "Usage: stead"),
        (&["image"], "Usage: stead image"),
        (&["up"], "<FILE>"),
        (&["status", "No_Such"], "cluster name \"No_Such\" may hold only"),
        (&["image", "show", "../x"], "image name \"../x\" may hold only"),
        (&["image", "rm", "_"], "image name \"_\""),
        (&["scale", "demo", "0"], "0 is not in 1..=250"),
        (&["exec", "demo", "node1", "-e", "X", "true"], "not of the form KEY=VALUE"),
        (&["fleet", "rebalance", "--window", "6-8"], "a window is two times of day"),
        (&["fleet", "rebalance", "--window", "06:00-06:00"], "a window that ends when it begins"),
        (&["fleet", "rebalance", "--no-wait"], "--window"),
        (&["fleet", "plan", "--remote", "../x"], "may hold only"),
        (&["fleet", "plan", "--remote", "a", "--cluster", "b"], "cannot be used with"),
        (&["fleet", "place"], "<NAME>"),
        (&["fleet", "place", "a", "-c", "memory"], "not of the form KEY=VALUE"),
        (&["fleet", "place", "a", "-d", "size=1GiB"], "not of the form DEVICE,KEY=VALUE"),
        (&["fleet", "scriptlet", "--install", "--remove"], "cannot be used with"),
    ] {
        let said = stead(args);
        assert!(said.code == 2 && said.stdout.is_empty(), "{args:?}: {}", said.code);
        assert!(said.stderr.contains(want), "{args:?}: {}", said.stderr);
    }
}

/// Bad input of every kind, verb by verb: the message and exit code 2, in text and in JSON.
#[test]
fn bad_input_exits_with_2() {
    let place = Place::new();
    place.cluster("demo", 2);
    place.file("bytes.yaml", [0xff, 0xfe, 0x00]);
    place.file("list.yaml", "name: [\n");
    place.file("key.yaml", "name: demo\nimage: x\nnodes: 3\nnetwrks: []\n");
    place.file("nodes.yaml", "name: demo\nimage: x\nnodes: many\n");
    place.file("empty.yaml", "");
    place.file("name.yaml", "name: ../../etc\nimage: x\nnodes: 1\n");
    place.file("size.yaml", "name: demo\nimage: x\nnodes: 1\nmachine: { memory: lots }\n");
    place.file("image.yaml", "name: new\nimage: nosuch\nnodes: 1\n");
    place.file("policy.yaml", "wieght: 3\n");
    let mut listed = String::new();
    for args in [
        &["up", "nosuch.yaml"][..],
        &["up", "bytes.yaml"],
        &["up", "list.yaml"],
        &["up", "key.yaml"],
        &["up", "nodes.yaml"],
        &["up", "empty.yaml"],
        &["up", "name.yaml"],
        &["up", "size.yaml"],
        &["up", "image.yaml"],
        &["up", "--dry-run", "image.yaml"],
        &["image", "build", "nosuch.yaml"],
        &["image", "build", "list.yaml"],
        &["image", "build", "--dry-run", "key.yaml"],
        &["image", "show", "nosuch"],
        &["image", "rm", "nosuch"],
        &["status", "nosuch"],
        &["down", "nosuch"],
        &["scale", "nosuch", "3"],
        &["env", "nosuch"],
        &["env", "--unset", "nosuch"],
        &["env", "demo"],
        &["shell", "nosuch"],
        &["exec", "nosuch", "node1", "true"],
        &["exec", "demo", "node9", "true"],
        &["shell", "demo", "node9"],
        &["logs", "demo", "node9"],
        &["console", "demo", "node9"],
        &["reboot", "demo", "node9"],
        &["cp", "demo/node9:/etc/hostname", "."],
        &["cp", "demo/node1:etc", "."],
        &["cp", "No_Such/node1:/etc", "."],
        &["cp", "a", "b"],
        &["cp", "demo/node1:/a", "demo/node2:/b"],
        &["machine", "run", "nosuch.json"],
        &["network", "run", "empty.yaml"],
        &["one", "frobnicate"],
        &["one", "install", "--remotes", "nosuch"],
        &["fleet", "plan", "--remote", "nosuch"],
        &["fleet", "plan", "--cluster", "nosuch"],
        &["fleet", "plan", "--cluster", "demo"],
        &["fleet", "plan", "--socket", "nosuch.socket"],
        &["fleet", "plan", "--policy", "nosuch.yaml"],
        &["fleet", "plan", "--policy", "policy.yaml"],
        &["fleet", "rebalance", "--remote", "nosuch"],
        &["fleet", "snapshot", "--remote", "nosuch"],
        &["fleet", "scriptlet", "--remote", "nosuch"],
        &["fleet", "place", "a", "-c", "limits.memory=lots"],
        &["fleet", "place", "a", "-d", "root,size=big"],
        &["fleet", "trust", "lab", "--token", "nosuch"],
        &["fleet", "trust", "lab", "--token", "/dev/null"],
        &["fleet", "trust", "lab", "--token", "empty.yaml"],
        &["fleet", "trust", "lab", "--token", "policy.yaml"],
        &["fleet", "forget", "nosuch"],
        &["man", "empty.yaml"],
    ] {
        let said = place.run(args);
        assert_eq!((said.code, said.stdout.as_str()), (2, ""), "{args:?}: {}", said.stderr);
        assert!(said.stderr.starts_with("error: "), "{args:?}: {}", said.stderr);
        let root = place.0.path().to_str().unwrap();
        listed.push_str(&format!(
            "$ stead {}\n{}\n",
            args.join(" "),
            said.stderr.replace(root, "/tmp/place")
        ));
        // The same, for programs.
        let takes_json = place.run(&[args, &["--json"]].concat());
        if !takes_json.stderr.contains("unexpected argument") && args[0] != "exec" && args[0] != "one" {
            assert_eq!((takes_json.code, takes_json.stdout.as_str()), (2, ""), "{args:?}");
            let object: Value = serde_json::from_str(&takes_json.stderr).unwrap();
            assert_eq!(object["error"]["kind"], "bad-input", "{args:?}");
            assert_eq!(object["error"]["exit_code"], 2, "{args:?}");
            let text = said.stderr.split("\nhint: ").next().unwrap();
            let message = object["error"]["message"].as_str().unwrap();
            assert_eq!(text.trim_end(), format!("error: {message}"), "{args:?}");
        }
    }
    insta::assert_snapshot!("bad_input", listed);
}

/// Not bad input: the request is valid, but the cluster is not up.
#[test]
fn what_is_not_up_fails_with_1_and_a_hint() {
    let place = Place::new();
    place.cluster("demo", 2);
    for args in [
        &["exec", "demo", "node1", "true"][..],
        &["shell", "demo"],
        &["logs", "demo", "node1"],
        &["reboot", "demo", "node2"],
        &["cp", "demo/node1:/etc/hostname", "."],
    ] {
        let said = place.run(args);
        assert_eq!(said.code, 1, "{args:?}: {}", said.stderr);
        assert!(said.stderr.contains("\nhint: `stead up FILE`"), "{args:?}: {}", said.stderr);
    }
}

#[test]
fn a_mistake_in_arguments_is_json_where_json_was_asked_for() {
    for args in [&["status", "No_Such", "--json"][..], &["up", "--json"], &["scale", "--json", "demo", "0"]] {
        let said = stead(args);
        assert_eq!((said.code, said.stdout.as_str()), (2, ""), "{args:?}");
        let object: Value = serde_json::from_str(&said.stderr).unwrap();
        assert_eq!(object["error"]["kind"], "bad-input", "{args:?}");
        assert!(!object["error"]["message"].as_str().unwrap().starts_with("error:"), "{args:?}");
    }
    // A flag after `--` belongs to another program.
    let said = stead(&["exec", "No_Such", "node1", "--", "list", "--json"]);
    assert!(said.code == 2 && said.stderr.starts_with("error: "), "{}", said.stderr);
}

#[test]
fn schemas_completions_and_pages_are_made() {
    for of in ["recipe", "cluster", "node", "manifest"] {
        let schema: Value = serde_json::from_str(&stead(&["schema", of]).stdout).unwrap();
        assert!(schema["properties"].is_object(), "{of}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let text = stead(&["completions", shell]).stdout;
        assert!(text.contains("rebalance") && text.contains("if-exists"), "{shell}");
    }
    let place = Place::new();
    assert_eq!(place.run(&["man", "pages/here"]).code, 0);
    let page = |name: &str| fs::read_to_string(place.path("cwd/pages/here").join(name)).unwrap();
    assert!(page("stead-up.1").contains("cluster") && page("stead-image-build.1").contains("recipe"));
    assert!(page("stead.1").contains("stead\\-fleet(1)"));
}

#[test]
fn an_empty_host_is_no_error() {
    assert_eq!(stead(&["ls", "--json"]).stdout, "[]\n");
    assert_eq!(stead(&["image", "ls", "--json"]).stdout, "[]\n");
    let said = stead(&["fleet", "remotes"]);
    assert!(said.code == 0 && said.stdout.starts_with("NAME"), "{}", said.stderr);
    assert_eq!(stead(&["down", "nosuch", "--if-exists"]).code, 0);
}

#[test]
fn the_state_directory_is_typed_or_in_the_environment() {
    let place = Place::new();
    place.cluster("demo", 2);
    assert!(place.run(&["ls"]).stdout.contains("demo"));
    assert!(place.run(&["--state-dir", "../state", "ls"]).stdout.contains("demo"));
    assert!(!place.run(&["ls", "--state-dir", "elsewhere"]).stdout.contains("demo"));
}
