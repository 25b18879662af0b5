//! The host that tests run on: the programs they need, the directories and disks they make, and what they leave behind.

use crate::wait;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};
use stead_os::command::find;

/// Reports that a test is skipped, and why, in the form that the test runner reads.
pub fn skipped(test: &str, why: &str) {
    println!("SKIP {test}: {why}");
}

/// Whether one of these programs is not installed; reports the test as skipped then.
pub fn lacks_programs(test: &str, programs: &[&str]) -> bool {
    let missing = missing(programs);
    if let Some(missing) = missing {
        skipped(test, &format!("{missing} is not installed"));
    }
    missing.is_some()
}

fn missing<'p>(programs: &[&'p str]) -> Option<&'p str> {
    programs.iter().copied().find(|p| find(p).is_none())
}

/// Whether this is not root, or one of these programs is not installed; reports the test as skipped then.
pub fn lacks_root_or_programs(test: &str, programs: &[&str]) -> bool {
    if !rustix::process::geteuid().is_root() {
        skipped(test, "needs root");
        return true;
    }
    lacks_programs(test, programs)
}

/// A program of this host, also from the directories for root, without standard input.
pub fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(find(program).unwrap_or_else(|| program.into()));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs a program and returns its standard output.
///
/// # Panics
/// It fails.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = command(program, arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A private directory on a real filesystem, which loop devices and FUSE need; removed when dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// `/var/tmp/NAME-PID-NUMBER`.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("/var/tmp/{name}-{}-{n}", std::process::id()));
        fs::create_dir_all(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self { path }
    }
}

impl std::ops::Deref for Scratch {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A file attached as a loop device for as long as this lives. By losetup: tests of our own loop devices use it too.
#[derive(Debug)]
pub struct LoopDisk {
    /// The device.
    pub device: PathBuf,
    /// Held open: nobody else can detach it and take its number.
    _held: fs::File,
}

impl LoopDisk {
    /// A new file of so many MiB, attached.
    ///
    /// # Panics
    /// The file cannot be made, or there is no loop device.
    #[track_caller]
    pub fn blank(file: &Path, mib: u64) -> Self {
        fs::File::create(file).and_then(|f| f.set_len(mib << 20)).expect("a file for a disk");
        Self::of(file)
    }

    /// A file, attached.
    ///
    /// # Panics
    /// There is no loop device.
    #[track_caller]
    pub fn of(file: &Path) -> Self {
        let file = file.to_str().expect("a path as text");
        let device = PathBuf::from(run("losetup", &["--find", "--show", file]).trim());
        Self { _held: fs::File::open(&device).expect("the loop device"), device }
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let _ = command("losetup", &["--detach", &self.device.to_string_lossy()]).status();
    }
}

/// Everything on the host that mentions `needle`: network namespaces, mounts, loop devices, processes, cgroups, tables of
/// nftables, each as `kind: text`.
///
/// # Panics
/// /proc or /sys cannot be read.
pub fn traces(needle: &str) -> BTreeSet<String> {
    traces_of(|_, text| text.contains(needle))
}

/// As [`traces`], for everything that `is` accepts by kind and text.
///
/// # Panics
/// As there.
pub fn traces_of(is: impl Fn(&str, &str) -> bool) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut keep = |kind: &str, text: String| {
        if is(kind, &text) {
            found.insert(format!("{kind}: {text}"));
        }
    };
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        keep("netns", entry.path().display().to_string());
    }
    // As text: a line that our parser does not understand is a trace too.
    for line in fs::read_to_string("/proc/self/mountinfo").expect("mounts").lines() {
        keep("mount", line.to_owned());
    }
    for entry in fs::read_dir("/sys/block").expect("block devices").flatten() {
        let file = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        keep("loop", format!("{} {}", entry.file_name().to_string_lossy(), file.trim()));
    }
    for entry in fs::read_dir("/proc").expect("processes").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        if pid != std::process::id() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            keep("process", format!("{pid} {}", String::from_utf8_lossy(&line).replace('\0', " ")));
        }
    }
    for group in stead_os::cgroup::subtree(Path::new("/sys/fs/cgroup")) {
        keep("cgroup", group.display().to_string());
    }
    let tables = command("nft", &["list", "tables"]).output().map(|o| o.stdout).unwrap_or_default();
    for line in String::from_utf8_lossy(&tables).lines() {
        keep("nft", line.to_owned());
    }
    found
}

/// Waits until nothing mentions `needle` any more.
///
/// # Panics
/// Something stays.
#[track_caller]
pub fn assert_no_traces(needle: &str) {
    assert_gone(|| traces(needle));
}

/// Waits until `left` finds nothing: the kernel removes some things in the background.
///
/// # Panics
/// Something stays.
#[track_caller]
pub fn assert_gone(mut left: impl FnMut() -> BTreeSet<String>) {
    let deadline = Instant::now() + wait::SOON;
    loop {
        let left = left();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left behind: {left:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_a_trace_until_it_has_ended() {
        let mark = format!("stead-testkit-trace-{}", std::process::id());
        let mut child = command("sh", &["-c", "read x; : $0", &mark]).stdin(Stdio::piped()).spawn().unwrap();
        wait::eventually("the process is seen", || traces(&mark).iter().any(|t| t.starts_with("process: ")));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_no_traces(&mark);
    }

    #[test]
    fn scratch_directories_are_apart_and_go() {
        let (one, two) = (Scratch::new("stead-testkit"), Scratch::new("stead-testkit"));
        assert!(one.is_dir() && two.is_dir() && *one != *two);
        let path = one.to_owned();
        drop(one);
        assert!(!path.exists());
    }

    #[test]
    fn programs_are_found_or_missed() {
        assert_eq!(missing(&["sh"]), None);
        assert_eq!(missing(&["sh", "stead-no-such-program", "x"]), Some("stead-no-such-program"));
        assert_eq!(run("sh", &["-c", "echo $0", "a b"]), "a b\n");
    }
}
