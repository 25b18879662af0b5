//! Clusters for tests: made by the real command line in their own state directory, and always taken down at the end.

pub mod faults;

use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};
use stead_testkit::host::{assert_gone, lacks_root_or_programs, skipped, traces_of};
pub use stead_testkit::wait::eventually;

/// The store of `make images`, unless STEAD_TEST_STORE names another.
const STORE: &str = "/var/lib/stead/images";
/// Directory of the tests' clusters, so that the check for leftovers sees those of failed tests.
const TESTS: &str = "/var/lib/stead/tests";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A private state directory, with the images of the host's store.
pub struct World {
    pub state: PathBuf,
}

/// The output of one command.
pub struct Said {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl World {
    /// `None`, after printing the reason, when clusters of `images` cannot run here.
    pub fn new(test: &str, images: &[&str]) -> Option<Self> {
        if lacks_root_or_programs(test, &[]) {
            return None;
        }
        let store = std::env::var("STEAD_TEST_STORE").unwrap_or_else(|_| STORE.to_owned());
        if let Some(missing) = images.iter().find(|i| !Path::new(&store).join("images").join(i).exists()) {
            skipped(test, &format!("image {missing} is not built: run `make images`"));
            return None;
        }
        let state = Path::new(TESTS).join(format!(
            "{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        ));
        fs::create_dir_all(&state).unwrap();
        std::os::unix::fs::symlink(&store, state.join("images")).unwrap();
        Some(Self { state })
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stead"));
        command.arg("--state-dir").arg(&self.state).args(args).stdin(Stdio::null());
        command
    }

    /// Runs `stead` to its end.
    pub fn stead(&self, args: &[&str]) -> Said {
        said(self.command(args).output().unwrap())
    }

    /// Runs `stead`, which must succeed; its standard output.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let said = self.stead(args);
        assert!(said.code == 0, "stead {args:?}: exit {}\n{}\n{}", said.code, said.stdout, said.stderr);
        said.stdout
    }

    /// Writes a cluster file and returns its path.
    pub fn file(&self, name: &str, yaml: &str) -> String {
        let path = self.state.join(format!("{name}.yaml"));
        fs::write(&path, yaml).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn status(&self, cluster: &str) -> Value {
        serde_json::from_str(&self.ok(&["status", cluster, "--json"])).unwrap()
    }

    /// Runs a command on a node, through its agent.
    #[track_caller]
    pub fn exec(&self, cluster: &str, node: &str, command: &[&str]) -> String {
        let mut args = vec!["exec", "-T", cluster, node, "--"];
        args.extend(command);
        self.ok(&args)
    }

    /// The stock client, configured by `stead env`. `None` when it is not installed.
    pub fn client(&self, cluster: &str, args: &[&str]) -> Option<Said> {
        let env = self.ok(&["env", cluster]);
        let (name, dir) = env.trim().strip_prefix("export ").unwrap().split_once('=').unwrap();
        let program = if name == "LXD_CONF" { "lxc" } else { "incus" };
        let mut command = Command::new(program);
        command.args(args).env(name, dir.trim_matches('\'')).stdin(Stdio::null());
        command.output().ok().map(said)
    }

    /// Everything of this world on the host: processes, mounts, loop devices, and objects with a cluster's name.
    pub fn leftovers(&self, cluster: &str) -> BTreeSet<String> {
        let state = self.state.join("clusters").join(cluster);
        let state = state.to_str().unwrap();
        let netns = format!("/run/netns/stead-{cluster}");
        let mount = format!("netns/stead-{cluster} ");
        let cgroup = format!("/stead/{cluster}");
        let table = format!("stead_{}", cluster.replace('-', "_"));
        let mut found = traces_of(|kind, text| match kind {
            "netns" => text == netns,
            "mount" => text.contains(state) || text.contains(&mount),
            "process" => text.contains(state) && !text.contains(" down "),
            "cgroup" => text.ends_with(&cgroup),
            "nft" => text.contains(&table),
            _ => text.contains(state),
        });
        if Path::new("/run/stead/clusters").join(cluster).exists() {
            found.insert(format!("claim of the name {cluster}"));
        }
        found
    }

    /// Prints everything known about a cluster after a failure.
    fn tell_about(&self, cluster: &str) {
        let end = |title: String, text: &str| {
            let lines: Vec<&str> = text.lines().collect();
            println!("--- {title}\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        };
        end(format!("status of {cluster}"), &self.stead(&["status", cluster, "-v"]).stdout);
        let nodes = self.state.join("clusters").join(cluster).join("nodes");
        for node in fs::read_dir(nodes).into_iter().flatten().flatten() {
            let name = node.file_name().to_string_lossy().into_owned();
            for file in ["supervisor.log", "console.log"] {
                let text = fs::read_to_string(node.path().join(file)).unwrap_or_default();
                end(format!("{name}: {file}"), &text);
            }
            for log in ["node", "incusd", "lxd"] {
                let said = self.stead(&["logs", cluster, &name, log]);
                if said.code == 0 {
                    end(format!("{name}: log of {log}"), &said.stdout);
                }
            }
        }
    }

    /// Takes the cluster down and checks for leftovers.
    #[track_caller]
    pub fn down(&self, cluster: &str) {
        self.ok(&["down", cluster]);
        self.nothing_left(cluster);
    }

    /// Checks that nothing of the cluster is left on the host.
    #[track_caller]
    pub fn nothing_left(&self, cluster: &str) {
        assert_gone(|| self.leftovers(cluster));
    }
}

impl Drop for World {
    /// Takes every cluster down. One that cannot be taken down keeps its files, without which its supervisors could not
    /// be found any more.
    fn drop(&mut self) {
        let mut stays = Vec::new();
        for cluster in fs::read_dir(self.state.join("clusters")).into_iter().flatten().flatten() {
            let name = cluster.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') {
                continue;
            }
            if std::thread::panicking() {
                self.tell_about(&name);
            }
            let said = self.stead(&["down", &name]);
            if said.code != 0 {
                stays.push(format!("cluster {name} cannot be taken down: {}", said.stderr));
            }
        }
        if stays.is_empty() {
            let _ = fs::remove_dir_all(&self.state);
            return;
        }
        let stays = format!("{}\nits files are kept in {}", stays.join("\n"), self.state.display());
        // A panic within a panic would end the whole test program.
        if std::thread::panicking() { println!("{stays}") } else { panic!("{stays}") }
    }
}

pub fn said(output: Output) -> Said {
    Said {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
