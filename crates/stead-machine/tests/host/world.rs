//! Small helpers of these tests; what is on the host and how one waits is the test kit's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};
pub use stead_testkit::{
    host::{assert_no_traces, run, traces},
    wait::{SOON, answer, eventually, within},
};

/// Names in tests carry this process' id, so that two checkouts can test at once.
pub fn unique(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

/// The program under test: this one.
pub fn exe() -> PathBuf {
    std::env::current_exe().expect("own path")
}

/// Whether a process runs; one that has ended and only waits for its parent to notice does not.
pub fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X'])))
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
    run("ip", args);
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
