//! What tests look at: everything on the host that Stead might leave behind, and small helpers.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

/// Names in tests carry this process' id, so that two checkouts can test at once.
pub fn unique(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

/// The program under test: this one.
pub fn exe() -> PathBuf {
    std::env::current_exe().expect("own path")
}

/// All that is on the host and mentions `needle`: namespaces, mounts, loop devices, cgroups, links, tables, processes.
pub fn traces(needle: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut keep = |what: &str, line: String| {
        if line.contains(needle) {
            found.insert(format!("{what}: {line}"));
        }
    };
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        keep("netns", entry.path().display().to_string());
    }
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap().lines() {
        keep("mount", line.to_owned());
    }
    for entry in fs::read_dir("/sys/block").unwrap().flatten() {
        let file = entry.path().join("loop/backing_file");
        keep("loop", fs::read_to_string(&file).unwrap_or_default().trim().to_owned());
    }
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        if pid != std::process::id() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            keep("process", format!("{pid} {}", String::from_utf8_lossy(&line).replace('\0', " ")));
        }
    }
    let mut todo = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                keep("cgroup", entry.path().display().to_string());
                todo.push(entry.path());
            }
        }
    }
    let tables = Command::new("nft").args(["list", "tables"]).output().map(|o| o.stdout).unwrap_or_default();
    for line in String::from_utf8_lossy(&tables).lines() {
        keep("nft", line.to_owned());
    }
    found
}

/// What comes about at all comes about within this, however much else the host has to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `done`, or fails saying what was awaited.
pub fn eventually(what: &str, done: impl FnMut() -> bool) {
    within(PATIENCE, what, done);
}

/// As [`eventually`], for what takes its time.
pub fn within(patience: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !done() {
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process runs; one that has ended and only waits for its parent to notice does not.
pub fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X'])))
}

/// Fails unless nothing mentions `needle` any more; what the kernel removes in the background gets a moment.
pub fn assert_no_traces(needle: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = traces(needle);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left behind: {left:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a program inside a named network namespace.
pub fn in_netns(netns: &str, argv: &[&str]) -> Output {
    Command::new("ip").args(["netns", "exec", netns]).args(argv).output().expect("ip netns exec")
}

/// As [`in_netns`], demanding success; answers standard output.
pub fn sh(netns: &str, argv: &[&str]) -> String {
    let out = in_netns(netns, argv);
    assert!(out.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Runs `ip` on the host, demanding success.
pub fn ip(args: &[&str]) {
    let out = Command::new("ip").args(args).output().expect("ip");
    assert!(out.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A directory for a cluster that goes when dropped; its path carries the cluster's name.
pub struct Scratch {
    pub path: PathBuf,
}

impl Scratch {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("stead-test-{name}"));
        fs::create_dir_all(&path).unwrap();
        Self { path }
    }
}
impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}
impl std::ops::Deref for Scratch {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.path
    }
}
