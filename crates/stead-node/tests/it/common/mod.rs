//! Starts `stead-node` as PID 1 of new namespaces, as the machine supervisor does, on roots made here.

pub mod agent;

use rustix::process::{Pid, Signal, kill_process};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::symlink, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};
use stead_os::cgroup::{Entrance, Hierarchy, hierarchies, subtree};
pub use stead_os::command::find;
pub use stead_testkit::host::{command, run};
use stead_testkit::{
    host::{LoopDisk, Scratch, lacks_root_or_programs},
    wait,
};
use tempfile::TempDir;

/// Longest wait for anything.
pub const PATIENCE: Duration = wait::SOON;

/// Whether a test cannot run here; reports it as skipped then.
pub fn skip(test: &str, tools: &[&str]) -> bool {
    lacks_root_or_programs(test, &[&["unshare", "busybox"], tools].concat())
}

/// A root with only busybox, in two layers.
pub struct Layers {
    dir: TempDir,
}

impl Layers {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("stead-node-test-").tempdir().unwrap();
        let base = dir.path().join("base");
        for folder in
            ["bin", "sbin", "etc", "proc", "sys", "dev", "run", "tmp", "root", "var/lib", "usr/lib/stead"]
        {
            fs::create_dir_all(base.join(folder)).unwrap();
        }
        fs::copy(find("busybox").unwrap(), base.join("bin/busybox")).unwrap();
        for applet in
            ["sh", "cat", "ls", "sleep", "ip", "mount", "touch", "kill", "nc", "hostname", "env", "test"]
        {
            symlink("busybox", base.join("bin").join(applet)).unwrap();
        }
        fs::write(base.join("etc/layer"), "base").unwrap();
        let over = dir.path().join("over");
        fs::create_dir_all(over.join("etc")).unwrap();
        fs::write(over.join("etc/layer"), "over").unwrap();
        Self { dir }
    }

    /// Puts a program of this machine into the base layer, with the libraries it is linked to.
    pub fn with_program(self, program: &str) -> Self {
        let base = self.dir.path().join("base");
        let path = find(program).unwrap();
        fs::copy(&path, base.join("sbin").join(program)).unwrap();
        for word in run("ldd", &[path.to_str().unwrap()]).split_whitespace().filter(|w| w.starts_with('/')) {
            let to = base.join(word.trim_start_matches('/'));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(word, to).unwrap();
        }
        self
    }

    fn paths(&self) -> Vec<PathBuf> {
        ["base", "over"].iter().map(|l| self.dir.path().join(l)).collect()
    }
}

/// A disk of its own.
pub struct Disk {
    pub file: PathBuf,
    pub device: PathBuf,
    _attached: LoopDisk,
    _dir: Scratch,
}

impl Disk {
    /// A blank disk of this many MiB.
    pub fn blank(mib: u64) -> Self {
        Self::prepared(mib, |_| {})
    }
    /// A disk whose file is prepared by `work` before it is attached.
    pub fn prepared(mib: u64, work: impl FnOnce(&Path)) -> Self {
        let dir = Scratch::new("stead-node-disk");
        let file = dir.join("disk");
        fs::File::create(&file).unwrap().set_len(mib << 20).unwrap();
        work(&file);
        let attached = LoopDisk::of(&file);
        Self { file, device: attached.device.clone(), _attached: attached, _dir: dir }
    }
}

/// Cgroups of one machine, in every hierarchy of this host.
struct Cgroups(Vec<PathBuf>);

impl Cgroups {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("stead-node-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let usable = |h: &Hierarchy| !h.has_v1("cpuset") && h.root.starts_with("/sys/fs/cgroup");
        let roots = hierarchies(&stead_node::mounts::current()).into_iter().filter(usable);
        let folders: Vec<PathBuf> =
            roots.map(|h| h.root.join(&name)).filter(|f| fs::create_dir(f).is_ok()).collect();
        Self(folders)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        // Those below first.
        for folder in self.0.iter().flat_map(|top| subtree(top).into_iter().rev()) {
            // The kernel releases ended processes a little later.
            let until = Instant::now() + Duration::from_secs(5);
            while fs::remove_dir(&folder).is_err() && folder.exists() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// A running node.
pub struct Node {
    child: Child,
    init: Option<Pid>,
    console: PathBuf,
    dir: TempDir,
    _cgroups: Cgroups,
}

impl Node {
    /// Boots a node with this spec (the rest of `{"schema":1,"cluster":"c","name":"n1", …}`).
    pub fn boot(layers: &Layers, spec: &str, disks: &[(&str, &Disk)]) -> Self {
        Self::boot_in(layers, spec, disks, None)
    }

    /// Boots with one more layer on top.
    pub fn boot_over(layers: &Layers, over: &Path, spec: &str) -> Self {
        let mut paths = layers.paths();
        paths.push(over.to_owned());
        Self::boot_raw(&paths, &format!(r#"{{"schema":1,"cluster":"c","name":"n1"{spec}}}"#), &[], None)
    }

    /// Boots with devices attached by the caller.
    pub fn boot_with_devices(layers: &Layers, spec: &str, devices: &[(&str, &Path)]) -> Self {
        let spec = format!(r#"{{"schema":1,"cluster":"c","name":"n1",{spec}}}"#);
        Self::boot_devices(&layers.paths(), &spec, devices, None)
    }

    /// Boots in an existing network namespace.
    pub fn boot_in(layers: &Layers, spec: &str, disks: &[(&str, &Disk)], netns: Option<&str>) -> Self {
        let spec = format!(
            r#"{{"schema":1,"cluster":"c","name":"n1"{}{spec}}}"#,
            if spec.is_empty() { "" } else { "," }
        );
        Self::boot_raw(&layers.paths(), &spec, disks, netns)
    }

    /// Boots with any text as spec and any layers.
    pub fn boot_raw(layers: &[PathBuf], spec: &str, disks: &[(&str, &Disk)], netns: Option<&str>) -> Self {
        let devices: Vec<(&str, &Path)> = disks.iter().map(|(s, d)| (*s, d.device.as_path())).collect();
        Self::boot_devices(layers, spec, &devices, netns)
    }

    fn boot_devices(layers: &[PathBuf], spec: &str, devices: &[(&str, &Path)], netns: Option<&str>) -> Self {
        let dir = tempfile::Builder::new().prefix("stead-node-machine-").tempdir().unwrap();
        let spec_dir = dir.path().join("spec");
        fs::create_dir(&spec_dir).unwrap();
        fs::write(spec_dir.join("node.json"), spec).unwrap();
        let disks: BTreeMap<&str, &Path> = devices.iter().copied().collect();
        let boot = serde_json::json!({"layers": layers, "spec_dir": spec_dir, "disks": disks, "root_limit": "64MiB"});
        let file = dir.path().join("boot.json");
        fs::write(&file, boot.to_string()).unwrap();
        let console = dir.path().join("console");
        let log = || fs::OpenOptions::new().append(true).create(true).open(&console).unwrap();
        let cgroups = Cgroups::new();
        let mut words: Vec<String> = Vec::new();
        if let Some(netns) = netns {
            words.extend(["ip", "netns", "exec", netns].map(str::to_owned));
        }
        words.extend(
            ["unshare", "--pid", "--fork", "--mount", "--uts", "--ipc", "--cgroup", "--kill-child"]
                .map(str::to_owned),
        );
        if netns.is_none() {
            words.push("--net".into());
        }
        words.extend([
            env!("CARGO_BIN_EXE_stead-node").to_owned(),
            "namespace".into(),
            file.display().to_string(),
        ]);
        let arguments: Vec<&str> = words[1..].iter().map(String::as_str).collect();
        let mut command = command(&words[0], &arguments);
        command.stdout(log()).stderr(log());
        Entrance::open(&cgroups.0).unwrap().before_exec(&mut command);
        let child = command.spawn().unwrap();
        Self { child, init: None, console, dir, _cgroups: cgroups }
    }

    pub fn console(&self) -> String {
        fs::read_to_string(&self.console).unwrap_or_default()
    }

    /// Waits until the console has this text.
    pub fn wait_for(&self, text: &str) {
        self.wait_until(text, || self.console().contains(text));
    }

    pub fn wait_until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < until, "{what} did not come; console:\n{}", self.console());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Process id of the node's init, here.
    pub fn init(&mut self) -> Pid {
        if let Some(pid) = self.init {
            return pid;
        }
        let parent = self.child.id();
        let children = format!("/proc/{parent}/task/{parent}/children");
        let first = || fs::read_to_string(&children).ok()?.split_whitespace().next()?.parse().ok();
        let pid = wait::answer(PATIENCE, "the node's init", || Pid::from_raw(first()?));
        self.init = Some(pid);
        pid
    }

    /// A path of the node, from here.
    pub fn path(&mut self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init().as_raw_nonzero()))
    }

    pub fn read(&mut self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_default()
    }

    /// Log of a service.
    pub fn log(&mut self, service: &str) -> String {
        self.read(&format!("/var/log/stead/{service}.log"))
    }

    pub fn signal(&mut self, signal: Signal) {
        kill_process(self.init(), signal).unwrap();
    }

    /// Waits for its end. Init's death by a signal is passed on by unshare(1).
    pub fn wait(mut self) -> (ExitStatus, String) {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, self.console());
            }
            assert!(Instant::now() < until, "the node does not end; console:\n{}", self.console());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops it and expects it to power off.
    pub fn shut_down(mut self) -> String {
        self.signal(Signal::TERM);
        let (status, console) = self.wait();
        assert_eq!(status.signal(), Some(Signal::INT.as_raw()), "{status}\n{console}");
        console
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // unshare --kill-child takes the node with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(pid) = self.init {
            let until = Instant::now() + Duration::from_secs(5);
            while Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let _ = &self.dir;
    }
}
