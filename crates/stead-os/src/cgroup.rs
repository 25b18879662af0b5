//! Cgroups of version 1, version 2 and both at once: which hierarchies are mounted, and how a process enters a group
//! before it executes its program.
//!
//! Creates no groups and sets no limits: the callers choose names and limits.

use crate::{PathContext, PathError, mountinfo::Mount};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

/// Controllers of version 1. Any other word among a hierarchy's mount options is an option. The set is closed: the
/// kernel adds new controllers to version 2 only.
pub const V1_CONTROLLERS: [&str; 14] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "blkio",
    "pids",
    "net_cls",
    "net_prio",
    "perf_event",
    "hugetlb",
    "rdma",
    "misc",
];

/// How deep a subtree of groups is searched: containers may nest groups without limit.
const MAX_DEPTH: usize = 64;

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub root: PathBuf,
    /// Its version.
    pub version: Version,
    /// Whether it is mounted read-only.
    pub read_only: bool,
}

/// Version of a hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Version {
    /// A version 1 hierarchy: its controllers in the order of the mount's options, or its name, as `name=systemd`.
    V1(Vec<String>),
    /// The unified hierarchy.
    V2,
}

impl Hierarchy {
    /// Whether it is a version 1 hierarchy with this controller.
    pub fn has_v1(&self, controller: &str) -> bool {
        matches!(&self.version, Version::V1(list) if list.iter().any(|c| c == controller))
    }
}

/// The hierarchies among mounts, each once. Of several mounts of one hierarchy the first writable one counts, or the
/// first if none is writable.
pub fn hierarchies(mounts: &[Mount]) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for mount in mounts {
        let version = match mount.filesystem.as_str() {
            "cgroup2" => Version::V2,
            "cgroup" => {
                let named = |o: &&String| o.starts_with("name=") || V1_CONTROLLERS.contains(&o.as_str());
                Version::V1(mount.super_options.iter().filter(named).cloned().collect())
            }
            _ => continue,
        };
        if version == Version::V1(Vec::new()) {
            continue;
        }
        let next = Hierarchy { root: mount.at.clone(), version, read_only: mount.is_read_only() };
        match found.iter_mut().find(|h| h.version == next.version) {
            Some(first) if first.read_only && !next.read_only => *first = next,
            Some(_) => {}
            None => found.push(next),
        }
    }
    found
}

/// Groups that a process will enter, one in each hierarchy, already open.
///
/// The process writes `0` (itself) to each `cgroup.procs` after fork and before exec, so the program and everything it
/// starts is in the groups from its first instruction.
#[derive(Debug, Default)]
pub struct Entrance {
    groups: Vec<File>,
    /// Whether a group that refuses is done without.
    lenient: bool,
}

impl Entrance {
    /// Opens the groups at these paths.
    ///
    /// # Errors
    /// A group does not exist, or must not be entered.
    pub fn open(groups: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<Self, PathError> {
        let open = |group: &Path| {
            let procs = group.join("cgroup.procs");
            File::options().write(true).open(&procs).at("open", &procs)
        };
        let groups = groups.into_iter().map(|g| open(g.as_ref())).collect::<Result<_, _>>()?;
        Ok(Self { groups, lenient: false })
    }

    /// As [`Entrance::open`], but leaves out groups that cannot be opened, and entering ignores groups that refuse, e.g. of a
    /// version 1 controller that is not set up.
    pub fn where_possible(groups: impl IntoIterator<Item = impl AsRef<Path>>) -> Self {
        let open = |group: &Path| File::options().write(true).open(group.join("cgroup.procs")).ok();
        Self { groups: groups.into_iter().filter_map(|g| open(g.as_ref())).collect(), lenient: true }
    }

    /// Moves the calling process into the groups. Makes only system calls on open descriptors, so it may be called
    /// between fork and exec.
    ///
    /// # Errors
    /// The kernel refuses, e.g. because a version 2 group above has processes of its own.
    pub fn enter(&self) -> rustix::io::Result<()> {
        for group in &self.groups {
            match rustix::io::write(group, b"0") {
                Err(e) if !self.lenient => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes the child of `command` enter the groups before it executes the program. If it cannot, `spawn` fails.
    pub fn before_exec(self, command: &mut Command) {
        let act = move || Ok(self.enter()?);
        // SAFETY: between fork and exec only async-signal-safe things may happen. `enter` makes write(2) calls on
        // descriptors opened before the fork: it allocates nothing and takes no lock.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(act);
        }
    }
}

/// Enables the wanted controllers of a version 2 group for the groups below it. A controller that the kernel refuses, because
/// version 1 uses it or the group has processes, does not affect the others. Does nothing in version 1.
pub fn hand_down(group: &Path, wanted: impl Fn(&str) -> bool) {
    let Ok(controllers) = fs::read_to_string(group.join("cgroup.controllers")) else { return };
    let control = group.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&control).unwrap_or_default();
    for controller in controllers.split_whitespace().filter(|c| wanted(c)) {
        if !enabled.split_whitespace().any(|e| e == controller) {
            // One by one: the kernel accepts all of a line or nothing.
            let _ = fs::write(&control, format!("+{controller}"));
        }
    }
}

/// Processes in a group, without those of the groups below it; empty when the group does not exist.
pub fn processes(group: &Path) -> Vec<Pid> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|l| Pid::from_raw(l.trim().parse().ok()?)).collect()
}

/// A group and those below it, parents before children; empty when the group does not exist.
pub fn subtree(top: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut next = vec![(top.to_owned(), 0)];
    while let Some((group, depth)) = next.pop() {
        let Ok(entries) = fs::read_dir(&group) else { continue };
        if depth < MAX_DEPTH {
            let groups = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
            next.extend(groups.map(|e| (e.path(), depth + 1)));
        }
        all.push(group);
    }
    all
}

/// Processes in a group and in those below it.
pub fn processes_below(top: &Path) -> Vec<Pid> {
    subtree(top).iter().flat_map(|group| processes(group)).collect()
}

/// Sends a signal to every process in a group and in those below it. A process that forks meanwhile may escape: a
/// caller that must reach all repeats this until no process is left.
pub fn signal_below(top: &Path, signal: Signal) {
    // Atomic, where the kernel has it (version 2, from Linux 5.14).
    if signal == Signal::KILL && fs::write(top.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    for pid in processes_below(top) {
        // It may have ended meanwhile.
        let _ = kill_process(pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mountinfo;

    fn of(text: &str) -> Vec<(String, Option<String>, bool)> {
        let list = |v| match v {
            Version::V1(list) => Some(list.join(",")),
            Version::V2 => None,
        };
        let found = hierarchies(&mountinfo::parse(text.as_bytes()));
        found.into_iter().map(|h| (h.root.display().to_string(), list(h.version), h.read_only)).collect()
    }

    #[test]
    fn each_hierarchy_of_a_hybrid_host_is_found_once() {
        let found = of("31 23 0:28 / /cg rw,relatime - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /cg/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
            40 31 0:37 / /cg/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            41 31 0:38 / /cg/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
            42 31 0:38 / /elsewhere rw - cgroup2 cgroup2 rw\n\
            43 31 0:39 / /cg/pids ro - cgroup cgroup rw,pids\n\
            44 31 0:39 / /pids rw - cgroup cgroup rw,pids\n\
            45 31 0:40 / /cg/misc ro - cgroup cgroup rw,misc,clone_children,release_agent=/x\n\
            46 31 0:41 / /cg/strange rw - cgroup cgroup rw,none\n");
        let expected = [
            ("/cg/cpu", Some("cpu,cpuacct"), false),
            ("/cg/systemd", Some("name=systemd"), false),
            ("/cg/unified", None, false),
            ("/pids", Some("pids"), false),
            ("/cg/misc", Some("misc"), true),
        ];
        let expected: Vec<_> =
            expected.map(|(at, list, ro)| (at.to_owned(), list.map(str::to_owned), ro)).into();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_unified_host_has_one() {
        let found =
            of("25 1 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n");
        assert_eq!(found, [("/sys/fs/cgroup".to_owned(), None, false)]);
    }

    #[test]
    fn groups_are_listed_parents_first_and_read_as_files() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::write(top.join("cgroup.procs"), "7\n8\n").unwrap();
        fs::write(top.join("a/b/cgroup.procs"), "9\n\n0\nx\n").unwrap();
        assert_eq!(subtree(&top), [top.clone(), top.join("a"), top.join("a/b")]);
        let raw =
            |pids: Vec<Pid>| pids.into_iter().map(Pid::as_raw_nonzero).map(i32::from).collect::<Vec<_>>();
        assert_eq!(raw(processes(&top)), [7, 8]);
        assert_eq!(raw(processes_below(&top)), [7, 8, 9]);
        assert!(subtree(&dir.path().join("none")).is_empty());
        let error = Entrance::open([top.join("none")]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        let entrance = Entrance::where_possible([top.join("none"), top.clone()]);
        assert_eq!((entrance.groups.len(), entrance.enter()), (1, Ok(())));
        assert_eq!(fs::read_to_string(top.join("cgroup.procs")).unwrap(), "0\n8\n");
    }

    #[test]
    fn controllers_are_handed_down_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let control = dir.path().join("cgroup.subtree_control");
        // Version 1 has no such files.
        hand_down(dir.path(), |_| true);
        assert!(!control.exists());
        fs::write(dir.path().join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        fs::write(&control, "cpu\n").unwrap();
        hand_down(dir.path(), |c| c != "pids");
        assert_eq!(fs::read_to_string(&control).unwrap(), "+memory");
    }
}
