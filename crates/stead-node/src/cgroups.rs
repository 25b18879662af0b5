//! Control groups: the hierarchies, a group for each service, and killing everything in one.
//!
//! Owns names and files below `/sys/fs/cgroup`. [`crate::boot`] plans the mounts there from the [`Layout`] read here.

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use stead_os::{
    PathContext, PathError,
    cgroup::{Entrance, Version, hand_down, hierarchies, processes_below, signal_below},
    mountinfo::Mount,
};

/// Where cgroups are mounted in every node.
pub const ROOT: &str = "/sys/fs/cgroup";

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
        let mut layout = Self::default();
        for hierarchy in hierarchies(mounts) {
            match hierarchy.version {
                Version::V2 => layout.v2 = true,
                Version::V1(controllers) => layout.v1.push(controllers),
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
    /// The failure, beside the tree as far as it could be prepared.
    pub fn prepare(mounts: &[Mount]) -> (Self, Option<PathError>) {
        let ours: Vec<Mount> = mounts.iter().filter(|m| m.at.starts_with(ROOT)).cloned().collect();
        let mut error = None;
        let mut roots = Vec::new();
        for hierarchy in hierarchies(&ours) {
            match &hierarchy.version {
                Version::V2 => {
                    error = delegate(&hierarchy.root).err();
                    roots.insert(0, hierarchy.root);
                }
                Version::V1(list) if list.iter().any(|c| WITHOUT_SERVICES.contains(&c.as_str())) => {}
                Version::V1(_) => roots.push(hierarchy.root),
            }
        }
        (Self { roots }, error)
    }

    /// Makes the group `name` in every hierarchy.
    ///
    /// # Errors
    /// A folder cannot be made.
    pub fn group(&self, name: &str) -> Result<Group, PathError> {
        let mut folders = Vec::with_capacity(self.roots.len());
        for root in &self.roots {
            let folder = root.join(name);
            make_folders(root, name)?;
            folders.push(folder);
        }
        Ok(Group { folders })
    }
}

fn make_folders(root: &Path, name: &str) -> Result<(), PathError> {
    let mut path = root.to_owned();
    for part in name.split('/') {
        // In version 2 a group has the controllers that its parent enables.
        hand_down(&path, |_| true);
        path.push(part);
        match fs::create_dir(&path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e).at("make cgroup", &path),
            _ => {}
        }
    }
    Ok(())
}

fn delegate(root: &Path) -> Result<(), PathError> {
    let init = root.join("init.scope");
    fs::create_dir_all(&init).at("make cgroup", &init)?;
    let procs = fs::read_to_string(root.join("cgroup.procs")).unwrap_or_default();
    for pid in procs.split_whitespace().filter(|p| *p != "0") {
        // Kernel threads cannot be moved; only this process matters.
        match fs::write(init.join("cgroup.procs"), pid) {
            Err(e) if pid == std::process::id().to_string() => {
                return Err(e).at("move init to cgroup", &init);
            }
            _ => {}
        }
    }
    hand_down(root, |_| true);
    Ok(())
}

/// One group in every hierarchy.
#[derive(Debug, Clone, Default)]
pub struct Group {
    folders: Vec<PathBuf>,
}

impl Group {
    /// The way in for a process.
    pub fn entrance(&self) -> Entrance {
        Entrance::where_possible(&self.folders)
    }

    /// Processes in the group and below it.
    pub fn processes(&self) -> Vec<Pid> {
        self.folders.first().map(|folder| processes_below(folder)).unwrap_or_default()
    }

    /// Kills everything in the group and below it.
    pub fn kill(&self) {
        if let Some(folder) = self.folders.first() {
            signal_below(folder, Signal::KILL);
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
