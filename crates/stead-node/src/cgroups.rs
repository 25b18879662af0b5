//! Control groups: the hierarchies, a group for each service, and killing everything in one.
//!
//! Owns names and files below `/sys/fs/cgroup`. [`crate::boot`] plans the mounts there from the [`Layout`] read here.

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use stead_os::{cgroup::V1_CONTROLLERS, mountinfo::Mount};

/// Where cgroups are mounted in every node.
pub const ROOT: &str = "/sys/fs/cgroup";

/// A failed cgroup operation.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} cgroup {path}")]
pub struct CgroupError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The hierarchies of a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Layout {
    /// Version 1 hierarchies: controllers mounted together, or `name=systemd`.
    pub v1: Vec<Vec<String>>,
    /// Whether the kernel has version 2.
    pub v2: bool,
}

impl Layout {
    /// The layout of a VM: version 2 only.
    pub fn unified() -> Self {
        Self { v1: Vec::new(), v2: true }
    }

    /// From the host's mounts. A version 1 hierarchy counts once, however often it is mounted.
    pub fn from_mounts(mounts: &[Mount]) -> Self {
        let mut layout = Self { v1: Vec::new(), v2: mounts.iter().any(|m| m.filesystem == "cgroup2") };
        for mount in mounts.iter().filter(|m| m.filesystem == "cgroup") {
            let mut group: Vec<String> = mount
                .super_options
                .iter()
                .filter(|o| o.starts_with("name=") || V1_CONTROLLERS.contains(&o.as_str()))
                .cloned()
                .collect();
            group.sort();
            if !group.is_empty() && !layout.v1.contains(&group) {
                layout.v1.push(group);
            }
        }
        if !layout.v1.is_empty() && !layout.v1.iter().flatten().any(|o| o == SYSTEMD) {
            layout.v1.push(vec![SYSTEMD.to_owned()]);
        }
        layout
    }

    /// Folder below [`ROOT`] of a version 1 hierarchy: its controllers with commas, or the name.
    pub fn folder(group: &[String]) -> String {
        group.iter().map(|o| o.strip_prefix("name=").unwrap_or(o)).collect::<Vec<_>>().join(",")
    }

    /// Folder of version 2: [`ROOT`] itself when it is alone.
    pub fn unified_folder(&self) -> Option<&'static str> {
        self.v2.then_some(if self.v1.is_empty() { "" } else { "unified" })
    }
}

/// The named hierarchy in which systemd (and liblxc for it) keep processes.
const SYSTEMD: &str = "name=systemd";

/// Controllers without groups for services: a cpuset refuses processes before it is configured, net_prio needs
/// configuration.
const WITHOUT_SERVICES: [&str; 2] = ["cpuset", "net_prio"];

/// The node's hierarchies, ready to take groups.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    /// Roots of the hierarchies in which services get groups; the first one lists all processes of a group.
    roots: Vec<PathBuf>,
}

impl Tree {
    /// Uses the hierarchies mounted below [`ROOT`], and prepares version 2 for groups: processes of the root move to
    /// `init.scope` (a name that liblxc strips), then every controller is enabled.
    ///
    /// # Errors
    /// All failures, beside the tree as far as it could be prepared.
    pub fn prepare(mounts: &[Mount]) -> (Self, Vec<CgroupError>) {
        let mut errors = Vec::new();
        let mut roots = Vec::new();
        let below = |m: &&Mount| m.at.starts_with(ROOT);
        for mount in mounts.iter().filter(below).filter(|m| m.filesystem == "cgroup2") {
            if let Err(e) = delegate(&mount.at) {
                errors.push(e);
            }
            roots.push(mount.at.clone());
        }
        for mount in mounts.iter().filter(below).filter(|m| m.filesystem == "cgroup") {
            if !mount.super_options.iter().any(|o| WITHOUT_SERVICES.contains(&o.as_str())) {
                roots.push(mount.at.clone());
            }
        }
        (Self { roots }, errors)
    }

    /// Makes the group `name` in every hierarchy.
    ///
    /// # Errors
    /// A folder cannot be made.
    pub fn group(&self, name: &str) -> Result<Group, CgroupError> {
        let mut folders = Vec::with_capacity(self.roots.len());
        for root in &self.roots {
            let folder = root.join(name);
            make_folders(root, name)?;
            folders.push(folder);
        }
        Ok(Group { folders })
    }
}

fn make_folders(root: &Path, name: &str) -> Result<(), CgroupError> {
    let mut path = root.to_owned();
    for part in name.split('/') {
        // In version 2 a group has the controllers that its parent enables.
        hand_down(&path);
        path.push(part);
        match fs::create_dir(&path) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(CgroupError { operation: "make", path, source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Enables every controller for the children of a version 2 group; a failure does not affect the others.
fn hand_down(folder: &Path) {
    let Ok(controllers) = fs::read_to_string(folder.join("cgroup.controllers")) else { return };
    let control = folder.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&control).unwrap_or_default();
    for controller in controllers.split_whitespace() {
        if !enabled.split_whitespace().any(|e| e == controller) {
            let _ = fs::write(&control, format!("+{controller}"));
        }
    }
}

fn delegate(root: &Path) -> Result<(), CgroupError> {
    let init = root.join("init.scope");
    fs::create_dir_all(&init).map_err(|source| CgroupError {
        operation: "make",
        path: init.clone(),
        source,
    })?;
    let procs = fs::read_to_string(root.join("cgroup.procs")).unwrap_or_default();
    for pid in procs.split_whitespace().filter(|p| *p != "0") {
        // Kernel threads cannot be moved; only this process matters.
        if let Err(source) = fs::write(init.join("cgroup.procs"), pid)
            && pid == std::process::id().to_string()
        {
            return Err(CgroupError { operation: "move init to", path: init, source });
        }
    }
    hand_down(root);
    Ok(())
}

/// One group in every hierarchy.
#[derive(Debug, Clone, Default)]
pub struct Group {
    folders: Vec<PathBuf>,
}

impl Group {
    /// Open `cgroup.procs` files: a process enters the group by writing `0` to each.
    pub fn entrances(&self) -> Vec<fs::File> {
        self.folders
            .iter()
            .filter_map(|f| fs::OpenOptions::new().write(true).open(f.join("cgroup.procs")).ok())
            .collect()
    }

    /// Processes in the group and below it.
    pub fn processes(&self) -> Vec<Pid> {
        let mut pids = Vec::new();
        if let Some(folder) = self.folders.first() {
            collect(folder, &mut pids, 0);
        }
        pids
    }

    /// Kills everything in the group and below it: by `cgroup.kill` if the kernel has it (5.14), otherwise one by one.
    pub fn kill(&self) {
        let Some(folder) = self.folders.first() else { return };
        if fs::write(folder.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        self.signal(Signal::KILL);
    }

    /// Sends a signal to every process in the group and below it.
    pub fn signal(&self, signal: Signal) {
        for pid in self.processes() {
            let _ = kill_process(pid, signal);
        }
    }
}

/// Deepest nesting that is searched; a bound, since containers may nest groups without limit.
const MAX_DEPTH: usize = 16;

fn collect(folder: &Path, pids: &mut Vec<Pid>, depth: usize) {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.split_whitespace().filter_map(|p| p.parse().ok().and_then(Pid::from_raw)));
    if depth == MAX_DEPTH {
        return;
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            collect(&entry.path(), pids, depth + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(at: &str, filesystem: &str, options: &str) -> Mount {
        Mount {
            at: at.into(),
            filesystem: filesystem.into(),
            super_options: options.split(',').map(str::to_owned).collect(),
            ..Mount::default()
        }
    }

    #[test]
    fn reads_hybrid_and_unified_hosts() {
        let hybrid = Layout::from_mounts(&[
            mount("/sys/fs/cgroup", "tmpfs", "rw"),
            mount("/sys/fs/cgroup/cpu", "cgroup", "rw,cpu,cpuacct"),
            mount("/sys/fs/cgroup/memory", "cgroup", "rw,memory"),
            mount("/other", "cgroup", "rw,memory"),
            mount("/sys/fs/cgroup/systemd", "cgroup", "rw,xattr,name=systemd"),
            mount("/sys/fs/cgroup/unified", "cgroup2", "rw"),
        ]);
        assert_eq!(
            hybrid.v1.iter().map(|g| Layout::folder(g)).collect::<Vec<_>>(),
            ["cpu,cpuacct", "memory", "systemd"]
        );
        assert_eq!(hybrid.unified_folder(), Some("unified"));
        let unified =
            Layout::from_mounts(&[mount("/sys/fs/cgroup", "cgroup2", "rw,nsdelegate,memory_recursiveprot")]);
        assert_eq!(unified, Layout::unified());
        assert_eq!(unified.unified_folder(), Some(""));
    }

    #[test]
    fn a_host_without_the_systemd_hierarchy_gets_one() {
        let layout = Layout::from_mounts(&[mount("/c/memory", "cgroup", "rw,memory")]);
        assert_eq!(layout.v1, [vec!["memory".to_owned()], vec!["name=systemd".to_owned()]]);
        assert_eq!(layout.unified_folder(), None);
    }
}
