//! The cgroups of a namespace machine: the same path in every hierarchy of the host, be it v2, v1 or both.
//!
//! Owns `stead/<cluster>/<node>`: made before the machine, limited, emptied and removed after it.

use crate::{TeardownError, teardown::Failures};
use rustix::process::Signal;
use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};
use stead_model::{Bytes, ClusterName, NodeName};
use stead_os::{
    PathError,
    cgroup::{Entrance, Hierarchy, Version, hand_down, hierarchies, processes, signal_below, subtree},
    mountinfo,
};

/// A cgroup could not be made, limited or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The host's hierarchies cannot be read.
    #[error("cannot read which cgroup hierarchies are mounted")]
    Hierarchies(#[source] PathError),
    /// There is no hierarchy to use.
    #[error("no writable cgroup hierarchy is mounted")]
    None,
    /// A directory could not be made.
    #[error("cannot make cgroup {}", .path.display())]
    Make {
        /// The cgroup.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A value could not be written.
    #[error("cannot write {value:?} to {}", .path.display())]
    Set {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        value: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No hierarchy has the controller that a limit needs.
    #[error("cannot limit {what}: no cgroup hierarchy offers the {controller:?} controller here")]
    NoController {
        /// What was to be limited.
        what: &'static str,
        /// What is missing.
        controller: &'static str,
    },
    /// A cgroup could not be removed.
    #[error("cannot remove cgroup {}", .path.display())]
    Remove {
        /// The cgroup.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Period of the CPU quota, microseconds: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// How many attempts there are when a parent is removed while the cgroup is made.
const MAKE_TRIES: u32 = 100;
/// How long killed processes may take to leave a cgroup.
const EMPTYING_PATIENCE: Duration = Duration::from_secs(10);

/// The hierarchies that can be used here.
fn here() -> Result<Vec<Hierarchy>, CgroupError> {
    let mounts = mountinfo::read().map_err(CgroupError::Hierarchies)?;
    Ok(hierarchies(&mounts).into_iter().filter(|h| !h.read_only).collect())
}

/// Path below a hierarchy's root.
fn below(cluster: &ClusterName, node: &NodeName) -> [PathBuf; 3] {
    let stead = PathBuf::from("stead");
    let of_cluster = stead.join(cluster.as_str());
    let of_node = of_cluster.join(node.as_str());
    [stead, of_cluster, of_node]
}

impl CgroupError {
    /// Whether the cgroup is not there.
    fn is_missing(&self) -> bool {
        matches!(self, Self::Make { source, .. } | Self::Set { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// The cgroups of one machine, ready for its first process.
#[derive(Debug)]
pub(crate) struct Cgroups {
    leaves: Vec<PathBuf>,
}

impl Cgroups {
    /// Makes them and sets the limits. Processes of an earlier machine stay until [`Self::empty`].
    pub(crate) fn make(
        cluster: &ClusterName,
        node: &NodeName,
        cpus: Option<u32>,
        memory: Option<Bytes>,
    ) -> Result<Self, CgroupError> {
        let mut tries = 0;
        loop {
            match Self::make_once(cluster, node, cpus, memory) {
                // The last other machine of the cluster has just ended and removed the cgroup above.
                Err(e) if tries < MAKE_TRIES && e.is_missing() => tries += 1,
                other => return other,
            }
        }
    }

    fn make_once(
        cluster: &ClusterName,
        node: &NodeName,
        cpus: Option<u32>,
        memory: Option<Bytes>,
    ) -> Result<Self, CgroupError> {
        let hierarchies = here()?;
        if hierarchies.is_empty() {
            return Err(CgroupError::None);
        }
        let [stead, of_cluster, of_node] = below(cluster, node);
        let (mut limited_cpus, mut limited_memory) = (cpus.is_none(), memory.is_none());
        let mut leaves = Vec::new();
        for h in &hierarchies {
            let levels =
                [h.root.clone(), h.root.join(&stead), h.root.join(&of_cluster), h.root.join(&of_node)];
            let leaf = &levels[3];
            for pair in levels.windows(2) {
                make_level(h, &pair[0], &pair[1])?;
            }
            if let Some(memory) = memory {
                limited_memory |= limit_memory(h, leaf, memory)?;
            }
            if let Some(cpus) = cpus {
                limited_cpus |= limit_cpus(h, leaf, cpus)?;
            }
            leaves.push(leaf.clone());
        }
        if !limited_memory {
            return Err(CgroupError::NoController { what: "memory", controller: "memory" });
        }
        if !limited_cpus {
            return Err(CgroupError::NoController { what: "cpus", controller: "cpu" });
        }
        Ok(Self { leaves })
    }

    /// The way in for a process.
    pub(crate) fn entrance(&self) -> Result<Entrance, PathError> {
        Entrance::open(&self.leaves)
    }

    /// Kills the processes in them and removes the groups below, so that the machine can boot again.
    pub(crate) fn empty(&self) -> Result<(), TeardownError> {
        let mut failures = Failures::default();
        for leaf in &self.leaves {
            failures.note(clear(leaf, false));
        }
        failures.into_result()
    }
}

fn make_level(h: &Hierarchy, parent: &Path, path: &Path) -> Result<(), CgroupError> {
    if h.version == Version::V2 {
        // A limit that needs one that is refused reports that later.
        hand_down(parent, |controller| ["cpu", "memory", "pids", "io", "cpuset"].contains(&controller));
    }
    match fs::create_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(CgroupError::Make { path: path.to_owned(), source: e });
        }
        _ => {}
    }
    if h.has_v1("cpuset") {
        // A cpuset without CPUs and memory nodes accepts no process; children inherit them.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if fs::read_to_string(path.join(file)).is_ok_and(|t| t.trim().is_empty()) {
                let value = fs::read_to_string(parent.join(file)).unwrap_or_default();
                set(&path.join(file), value.trim())?;
            }
        }
        set(&path.join("cgroup.clone_children"), "1")?;
    }
    Ok(())
}

fn limit_memory(h: &Hierarchy, leaf: &Path, memory: Bytes) -> Result<bool, CgroupError> {
    let file = match h.version {
        Version::V2 => "memory.max",
        Version::V1(_) if h.has_v1("memory") => "memory.limit_in_bytes",
        Version::V1(_) => return Ok(false),
    };
    set_if_there(&leaf.join(file), &memory.0.to_string())
}

fn limit_cpus(h: &Hierarchy, leaf: &Path, cpus: u32) -> Result<bool, CgroupError> {
    let quota = u64::from(cpus) * CPU_PERIOD_US;
    match h.version {
        Version::V2 => set_if_there(&leaf.join("cpu.max"), &format!("{quota} {CPU_PERIOD_US}")),
        Version::V1(_) if h.has_v1("cpu") => {
            set_if_there(&leaf.join("cpu.cfs_period_us"), &CPU_PERIOD_US.to_string())?;
            set_if_there(&leaf.join("cpu.cfs_quota_us"), &quota.to_string())
        }
        Version::V1(_) => Ok(false),
    }
}

fn set(path: &Path, value: &str) -> Result<(), CgroupError> {
    fs::write(path, value).map_err(|source| CgroupError::Set {
        path: path.to_owned(),
        value: value.to_owned(),
        source,
    })
}

fn set_if_there(path: &Path, value: &str) -> Result<bool, CgroupError> {
    if !path.exists() {
        return Ok(false);
    }
    set(path, value).map(|()| true)
}

/// Kills the processes in a machine's cgroups and removes the groups, and their parents when they are empty. Idempotent.
pub(crate) fn remove(cluster: &ClusterName, node: &NodeName) -> Result<(), TeardownError> {
    let mut failures = Failures::default();
    let hierarchies = match here() {
        Ok(h) => h,
        Err(e) => {
            failures.note(Err(e));
            return failures.into_result();
        }
    };
    let [stead, of_cluster, of_node] = below(cluster, node);
    for h in hierarchies {
        failures.note(clear(&h.root.join(&of_node), true));
        // Refused while other machines or clusters are there.
        let _ = fs::remove_dir(h.root.join(&of_cluster));
        let _ = fs::remove_dir(h.root.join(&stead));
    }
    failures.into_result()
}

/// Kills all processes in a cgroup and below it, removes the groups below, and the cgroup when `itself`.
fn clear(top: &Path, itself: bool) -> Result<(), CgroupError> {
    let deadline = Instant::now() + EMPTYING_PATIENCE;
    loop {
        let mut all = subtree(top);
        signal_below(top, Signal::KILL);
        if !itself {
            all.retain(|p| p != top);
        }
        // Deepest first.
        let left = all.iter().rev().filter_map(|path| match fs::remove_dir(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Some((path.clone(), e)),
            _ => None,
        });
        let occupied = !itself && !processes(top).is_empty();
        match left.collect::<Vec<_>>().pop() {
            None if !occupied => return Ok(()),
            Some((path, source)) if Instant::now() > deadline => {
                return Err(CgroupError::Remove { path, source });
            }
            None if Instant::now() > deadline => {
                let source = io::Error::new(io::ErrorKind::ResourceBusy, "a process in it does not die");
                return Err(CgroupError::Remove { path: top.to_owned(), source });
            }
            _ => thread::sleep(Duration::from_millis(10)),
        }
    }
}
