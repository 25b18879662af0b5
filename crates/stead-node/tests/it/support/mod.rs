//! Real engines in bare namespaces for tests: a Debian tree made once, nodes on a bridge of their own network
//! namespace, the engine manager beside each engine.

use serde_json::Value;
use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};
use stead_testkit::{
    host::{LoopDisk, run},
    wait,
};

/// Which engine a node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Incus,
    Lxd,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Incus => "incus",
            Self::Lxd => "lxd",
        }
    }
    fn suite(self) -> &'static str {
        match self {
            Self::Incus => "trixie",
            Self::Lxd => "bookworm",
        }
    }
    fn packages(self) -> &'static str {
        match self {
            Self::Incus => {
                "incus-base,incus-client,mount,btrfs-progs,iproute2,zstd,xz-utils,squashfs-tools,attr,rsync,tar,uidmap,ca-certificates,procps"
            }
            Self::Lxd => {
                "lxd,lxd-client,mount,btrfs-progs,iproute2,zstd,xz-utils,squashfs-tools,attr,rsync,tar,uidmap,ca-certificates,procps"
            }
        }
    }
    /// A script that restarts the daemon when it ends, as the node's supervisor does.
    fn supervised(self) -> &'static str {
        match self {
            Self::Incus => {
                "until [ -e /run/go ]; do sleep 0.01; done; while :; do /usr/libexec/incus/incusd --logfile /var/log/incus/incusd.log; sleep 0.1; done"
            }
            Self::Lxd => {
                "until [ -e /run/go ]; do sleep 0.01; done; while :; do /usr/bin/lxd --logfile /var/log/lxd/lxd.log; sleep 0.1; done"
            }
        }
    }
}

/// The tree, made if it does not exist; or the reason why it cannot be.
pub fn tree(kind: Kind) -> Result<PathBuf, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("needs root".into());
    }
    let roots = std::env::var_os("STEAD_TEST_ROOTS")
        .map_or_else(|| PathBuf::from("/var/tmp/stead-test-roots"), PathBuf::from);
    let tree = roots.join(format!("{}-{}", kind.name(), kind.suite()));
    if tree.is_dir() {
        return Ok(tree);
    }
    fs::create_dir_all(&roots).map_err(|e| e.to_string())?;
    // Tests run at the same time: one makes the tree, the others wait for it.
    let lock = fs::File::create(roots.join(format!("{}.lock", kind.name()))).map_err(|e| e.to_string())?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).map_err(|e| e.to_string())?;
    if tree.is_dir() {
        return Ok(tree);
    }
    let part = roots.join(format!("{}.{}", kind.name(), std::process::id()));
    let made = Command::new("mmdebstrap")
        .args(["--quiet", "--variant=apt", &format!("--include={}", kind.packages()), kind.suite()])
        .arg(&part)
        .status();
    match made {
        Ok(s) if s.success() => {}
        Ok(s) => return Err(format!("mmdebstrap of {} ended with {s}", kind.suite())),
        Err(e) => return Err(format!("no mmdebstrap: {e}")),
    }
    fs::rename(&part, &tree).map_err(|e| e.to_string())?;
    Ok(tree)
}

/// A bridge in its own network namespace, and a scratch directory, from which nodes derive their names.
pub struct Lan {
    pub id: String,
    scratch: tempfile::TempDir,
}

impl Lan {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!("engt{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        run("ip", &["netns", "add", &id]);
        run("ip", &["-n", &id, "link", "add", "br0", "type", "bridge"]);
        run("ip", &["-n", &id, "link", "set", "br0", "up"]);
        Self { id, scratch: tempfile::tempdir_in("/var/tmp").unwrap() }
    }
    /// A node, powered on, whose engine's state outlives it.
    pub fn node(&self, kind: Kind, number: u8, extra: Value) -> Node {
        self.make_node(kind, number, extra, None)
    }
    /// A node with a disk of serial `pool`.
    pub fn node_with_disk(&self, kind: Kind, number: u8, disk: &Disk) -> Node {
        self.make_node(kind, number, Value::Null, Some(disk.device().to_owned()))
    }
    fn make_node(&self, kind: Kind, number: u8, extra: Value, disk: Option<PathBuf>) -> Node {
        let tree = tree(kind).unwrap();
        let state = self.scratch.path().join(format!("state{number}"));
        fs::create_dir_all(&state).unwrap();
        let mut node = Node {
            kind,
            number,
            tree,
            netns: format!("{}-{number}", self.id),
            lan: self.id.clone(),
            state,
            disk,
            extra,
            process: None,
            init: 0,
            driver: None,
            started: Instant::now(),
        };
        node.power_on();
        node
    }
    /// A blank disk of 1 GiB.
    pub fn disk(&self, number: u8) -> Disk {
        Disk(LoopDisk::blank(&self.scratch.path().join(format!("disk{number}")), 1024))
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.id]).status();
    }
}

/// A disk of a node, which outlives it.
pub struct Disk(LoopDisk);

impl Disk {
    pub fn device(&self) -> &Path {
        &self.0.device
    }
    /// Makes it blank again; only while no node uses it.
    pub fn clear(&self) {
        run("blkdiscard", &["-f", "-z", &self.device().display().to_string()]);
    }
}

/// One node: namespaces with an engine and the manager.
pub struct Node {
    kind: Kind,
    number: u8,
    tree: PathBuf,
    netns: String,
    lan: String,
    state: PathBuf,
    disk: Option<PathBuf>,
    extra: Value,
    process: Option<Child>,
    init: u32,
    driver: Option<(Child, ChildStdin, BufReader<ChildStdout>)>,
    pub started: Instant,
}

impl Node {
    pub fn name(&self) -> String {
        format!("node{}", self.number)
    }
    pub fn address(&self) -> String {
        format!("10.77.0.{}", self.number)
    }

    /// Starts the node.
    pub fn power_on(&mut self) {
        let port = format!("port{}", self.number);
        run("ip", &["netns", "add", &self.netns]);
        run(
            "ip",
            &[
                "-n",
                &self.lan,
                "link",
                "add",
                &port,
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                &self.netns,
            ],
        );
        run("ip", &["-n", &self.lan, "link", "set", &port, "master", "br0", "up"]);
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bench/floor-incus.sh");
        self.started = Instant::now();
        let child = Command::new("ip")
            .args(["netns", "exec", &self.netns, "unshare", "--mount", "--pid", "--uts", "--ipc", "--cgroup"])
            .args(["--fork", "--kill-child", "bash", script, "--node"])
            .arg(&self.tree)
            .args([&self.name(), &self.address()])
            .arg(&self.state)
            .args(["bash", "-c", self.kind.supervised()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let outer = child.id();
        self.process = Some(child);
        let children = format!("/proc/{outer}/task/{outer}/children");
        self.init = wait::answer(wait::SOON, "the node's init", || {
            fs::read_to_string(&children).ok()?.split_whitespace().next()?.parse().ok()
        });
        // The script has ended with exec; before that, its root is this machine's.
        let root = self.root();
        wait::answer(wait::SOON, "the node's root", || {
            let argv = fs::read(format!("/proc/{}/cmdline", self.init)).ok()?;
            let mut words = argv.split(|b| *b == 0);
            (words.next() == Some(b"bash") && words.next() == Some(b"-c")).then_some(())
        });
        if let Some(device) = &self.disk {
            fs::create_dir_all(root.join("dev/disk/by-serial")).unwrap();
            run("cp", &["-a", &device.display().to_string(), &root.join("dev").display().to_string()]);
            std::os::unix::fs::symlink(device, root.join("dev/disk/by-serial/pool")).unwrap();
        }
        // As in a node, the manager runs before the engine's service is started.
        self.drive();
        self.tell("status").unwrap();
        fs::write(self.root().join("run/go"), "").unwrap();
    }
    /// Deletes the engine's state; only while the node is off.
    pub fn forget(&self) {
        fs::remove_dir_all(&self.state).unwrap();
        fs::create_dir_all(&self.state).unwrap();
    }
    /// Kills only the daemon; the node's supervisor restarts it.
    pub fn kill_daemon(&self) {
        let _ = self.exec(&["pkill", "-KILL", "-x", if self.kind == Kind::Incus { "incusd" } else { "lxd" }]);
    }
    fn root(&self) -> PathBuf {
        format!("/proc/{}/root", self.init).into()
    }
    /// Starts the manager in the node.
    pub fn drive(&mut self) {
        let exe = std::env::current_exe().unwrap();
        let built = exe.parent().and_then(Path::parent).unwrap().join("examples/engine-driver");
        let copy = self.root().join("run/engine-driver");
        if !copy.exists() {
            // `cargo test -p stead-node` builds it; with `--test it` alone add `--examples`.
            fs::copy(&built, &copy).unwrap_or_else(|e| panic!("{}: {e}: add --examples", built.display()));
        }
        let mut spec = serde_json::json!({
            "kind": self.kind.name(),
            "role": if self.number == 1 { "init" } else { "join" },
            "address": format!("{}:8443", self.address()),
            "bridge": "br0",
            "storage_disk": self.disk.as_ref().map(|_| "pool"),
        });
        if let (Some(spec), Some(extra)) = (spec.as_object_mut(), self.extra.as_object()) {
            spec.extend(extra.clone());
        }
        let mut child = self
            .inside(&["/run/engine-driver", &self.name()])
            .arg(spec.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        self.driver = Some((child, stdin, BufReader::new(stdout)));
    }
    /// Sends a line without waiting for the answer.
    pub fn begin(&mut self, line: &str) {
        let (_, stdin, _) = self.driver.as_mut().unwrap();
        writeln!(stdin, "{line}").unwrap();
    }
    /// The answer to the oldest line not answered yet.
    pub fn answer(&mut self) -> Result<Value, String> {
        let (_, _, stdout) = self.driver.as_mut().unwrap();
        let mut text = String::new();
        stdout.read_line(&mut text).unwrap();
        let mut value: Value = serde_json::from_str(&text).map_err(|e| format!("driver is gone: {e}"))?;
        match value.get("error") {
            Some(e) => Err(e.as_str().unwrap_or_default().to_owned()),
            None => Ok(value["ok"].take()),
        }
    }
    pub fn tell(&mut self, line: &str) -> Result<Value, String> {
        self.begin(line);
        self.answer()
    }
    pub fn state(&mut self) -> String {
        self.tell("status").unwrap()["state"].as_str().unwrap().to_owned()
    }
    pub fn await_state(&mut self, state: &str, patience: Duration) {
        let mut last = Value::Null;
        let begun = Instant::now();
        while begun.elapsed() < patience {
            last = self.tell("status").unwrap();
            if last["state"] == state {
                return;
            }
            assert_ne!(last["state"], "failed", "{}: {last}", self.name());
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("{} is not {state} after {patience:?} but {last}", self.name());
    }
    /// A program in the node.
    fn inside(&self, argv: &[&str]) -> Command {
        let target = self.init.to_string();
        let mut command = Command::new("nsenter");
        command
            .args(["--mount", "--net", "--pid", "--uts", "--root", "--wd=/", "--target", &target])
            .args(argv);
        command
    }
    /// A program in the node, to its end.
    pub fn exec(&self, argv: &[&str]) -> Result<String, String> {
        let out = self.inside(argv).output().unwrap();
        if out.status.success() {
            Ok(String::from_utf8_lossy(&out.stdout).into_owned())
        } else {
            Err(String::from_utf8_lossy(&out.stderr).into_owned())
        }
    }
    /// The stock client in the node.
    pub fn client(&self, arguments: &[&str]) -> Result<String, String> {
        let program = match self.kind {
            Kind::Incus => "incus",
            Kind::Lxd => "lxc",
        };
        self.exec(&[&["env", "HOME=/root", program], arguments].concat())
    }
    /// Members as the engine's own client lists them: name, and `ONLINE` or the like.
    pub fn members(&self) -> Vec<(String, String)> {
        let text = self.client(&["query", "/1.0/cluster/members?recursion=1"]).unwrap();
        let list: Value = serde_json::from_str(&text).unwrap();
        list.as_array()
            .unwrap()
            .iter()
            .map(|m| (m["server_name"].as_str().unwrap().into(), m["status"].as_str().unwrap().into()))
            .collect()
    }
    /// Kills everything in the node at once, like a power failure.
    pub fn power_off(&mut self) {
        if let Ok(init) = i32::try_from(self.init)
            && let Some(pid) = rustix::process::Pid::from_raw(init)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        if let Some(mut p) = self.process.take() {
            let _ = p.wait();
        }
        if let Some((mut child, stdin, _)) = self.driver.take() {
            drop(stdin);
            let _ = child.wait();
        }
        let _ = Command::new("ip").args(["netns", "delete", &self.netns]).status();
        // The port disappears with its peer, a moment after the namespace.
        let port = format!("port{}", self.number);
        let _ = Command::new("ip").args(["-n", &self.lan, "link", "delete", &port]).output();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in ["incus/incusd.log", "lxd/lxd.log"] {
                if let Ok(text) = fs::read_to_string(self.root().join("var/log").join(log)) {
                    let lines: Vec<&str> = text.lines().collect();
                    eprintln!(
                        "--- {} {log}\n{}",
                        self.name(),
                        lines[lines.len().saturating_sub(15)..].join("\n")
                    );
                }
            }
        }
        self.power_off();
    }
}
