//! The boot plan: the ordered steps that make the node's root, from observed facts.
//!
//! [`plan`] makes every choice and touches nothing; [`apply`] executes the steps and makes no choices; [`first`]
//! observes, plans and applies for a VM and for a namespace machine, and hands over to [`crate::run`]. Does not own
//! services, network and data disks, which follow in the new root.

pub mod apply;
pub mod first;

use crate::{
    cgroups::Layout,
    mounts::Flag,
    state::{Mode, Upper},
    sysctl,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Where `stead-node` is in the root of a namespace, and is started again as PID 1.
pub const SELF_PATH: &str = "/run/stead/stead-node";

/// Most layers in one root: overlayfs allows 500 lower layers.
pub const MAX_LAYERS: usize = 500;

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its name below /dev, e.g. `net/tun`.
    pub name: String,
    /// Block or character device.
    pub block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Mode bits.
    pub mode: u32,
}

/// Everything the plan depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// VM or namespace.
    pub mode: Mode,
    /// Layers, lowest first: block devices with squashfs (VM) or directories (namespace). Empty: an empty root in
    /// memory, for rescue.
    pub layers: Vec<PathBuf>,
    /// An existing directory on which everything is assembled.
    pub staging: PathBuf,
    /// Where changes are written.
    pub upper: Upper,
    /// Hierarchies to mount.
    pub cgroups: Layout,
    /// Devices by serial.
    pub disks: BTreeMap<String, Device>,
    /// Device nodes of a namespace's /dev that depend on the host, e.g. `kvm`.
    pub devices: Vec<Device>,
    /// The console to bind, when it is a terminal with a path.
    pub console: Option<PathBuf>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Separate this mount namespace from its host's.
    MakePrivate,
    /// Make a directory that only root can look into.
    Private {
        /// Where.
        path: PathBuf,
    },
    /// Make a directory and its parents.
    Directory {
        /// Where.
        path: PathBuf,
    },
    /// Change into this directory: overlay options are limited to 4096 bytes, so layers are named relative to it.
    Enter {
        /// Where.
        path: PathBuf,
    },
    /// Mount a filesystem.
    Mount {
        /// A device or another word.
        source: String,
        /// Where; it exists.
        target: PathBuf,
        /// Type.
        filesystem: String,
        /// Flags.
        flags: Vec<Flag>,
        /// Options of the filesystem's own.
        data: String,
    },
    /// Bind a directory or file to a second place.
    Bind {
        /// What.
        source: PathBuf,
        /// Where; it exists.
        target: PathBuf,
    },
    /// As [`Step::Bind`], when there is such a thing: kernels differ.
    Expose {
        /// What.
        source: PathBuf,
        /// Where.
        target: PathBuf,
    },
    /// Show a directory or file in its own place, read-only, when there is one.
    ReadOnly {
        /// Where.
        path: PathBuf,
    },
    /// Show a copy of a file's content in its place: writing to it appears to succeed and changes nothing else.
    Shadow {
        /// The file.
        path: PathBuf,
        /// The copy, made here.
        copy: PathBuf,
    },
    /// Make an empty file.
    File {
        /// Where.
        path: PathBuf,
    },
    /// Make a device node.
    Node {
        /// The /dev directory.
        folder: PathBuf,
        /// What.
        device: Device,
    },
    /// Make a symbolic link.
    Symlink {
        /// Where.
        path: PathBuf,
        /// Its content.
        to: PathBuf,
    },
    /// Format the data disk if it is entirely blank, with the tools of the layers, and mount it.
    DataDisk {
        /// Device.
        device: PathBuf,
        /// Where.
        target: PathBuf,
        /// A root that has the tools.
        tools: PathBuf,
    },
    /// Unmount.
    Unmount {
        /// Where.
        path: PathBuf,
    },
    /// Bind this program's file, read-only, into the new root, so that all nodes of the host share its pages in memory.
    /// If it cannot be bound, it is copied.
    InstallSelf {
        /// The path in the new root.
        path: PathBuf,
    },
    /// Remove the initrd's files, which otherwise stay in memory.
    FreeInitrd,
    /// Make this the root by pivot_root and detach everything of the host.
    PivotRoot {
        /// The new root.
        root: PathBuf,
    },
    /// Make this the root of a VM: the initrd's root cannot be pivoted, so the mount is moved over it.
    MoveRoot {
        /// The new root.
        root: PathBuf,
    },
}

/// A step, and whether the boot can continue without it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// The step.
    #[serde(flatten)]
    pub step: Step,
    /// Whether its failure is only a warning.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

/// The steps that make a root, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootPlan(pub Vec<Planned>);

/// A plan is impossible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Too many layers.
    #[error("{0} layers are more than the {MAX_LAYERS} that overlayfs allows")]
    TooManyLayers(usize),
}

impl BootPlan {
    fn must(&mut self, step: Step) {
        self.0.push(Planned { step, optional: false });
    }
    fn may(&mut self, step: Step) {
        self.0.push(Planned { step, optional: true });
    }
    fn mount(&mut self, source: &str, target: PathBuf, filesystem: &str, flags: &[Flag], data: &str) {
        self.must(Step::Directory { path: target.clone() });
        self.must(mount(source, target, filesystem, flags, data));
    }
    fn may_mount(&mut self, source: &str, target: PathBuf, filesystem: &str, flags: &[Flag], data: &str) {
        self.may(Step::Directory { path: target.clone() });
        self.may(mount(source, target, filesystem, flags, data));
    }
}

fn mount(source: &str, target: PathBuf, filesystem: &str, flags: &[Flag], data: &str) -> Step {
    Step::Mount {
        source: source.to_owned(),
        target,
        filesystem: filesystem.to_owned(),
        flags: flags.to_vec(),
        data: data.to_owned(),
    }
}

/// The plan for these facts.
///
/// # Errors
/// More layers than overlayfs allows.
pub fn plan(facts: &Facts) -> Result<BootPlan, PlanError> {
    if facts.layers.len() > MAX_LAYERS {
        return Err(PlanError::TooManyLayers(facts.layers.len()));
    }
    let mut plan = BootPlan::default();
    if facts.mode == Mode::Namespace {
        plan.must(Step::MakePrivate);
    }
    plan_root(facts, &mut plan);
    let root = facts.staging.join("root");
    plan_kernel_filesystems(facts, &root, &mut plan);
    plan_cgroups(&facts.cgroups, &root, &mut plan);
    plan.must(Step::Directory { path: root.join("run/stead") });
    if facts.mode == Mode::Namespace {
        keep_off_the_host(&root, &mut plan);
    }
    match facts.mode {
        Mode::Namespace => {
            plan.must(Step::InstallSelf { path: root.join(SELF_PATH.trim_start_matches('/')) });
            plan.must(Step::PivotRoot { root });
        }
        Mode::Vm => {
            plan.may(Step::FreeInitrd);
            plan.must(Step::MoveRoot { root });
        }
    }
    Ok(plan)
}

/// Layers, upper, and the overlay of them at `<staging>/root`.
fn plan_root(facts: &Facts, plan: &mut BootPlan) {
    let staging = &facts.staging;
    let root = staging.join("root");
    let limit = match facts.upper {
        Upper::Tmpfs(Some(bytes)) => format!(",size={bytes}"),
        _ => String::new(),
    };
    plan.must(mount("stead", staging.clone(), "tmpfs", &[], &format!("mode=0755{limit}")));
    plan.must(Step::Directory { path: root.clone() });
    if facts.layers.is_empty() {
        plan.must(mount("stead-rescue", root, "tmpfs", &[], "mode=0755"));
        return;
    }
    for (n, layer) in facts.layers.iter().enumerate() {
        let target = staging.join(format!("layer/{n}"));
        plan.must(Step::Directory { path: target.clone() });
        plan.must(match facts.mode {
            Mode::Vm => mount(&layer.to_string_lossy(), target, "squashfs", &[Flag::Ro], ""),
            Mode::Namespace => Step::Bind { source: layer.clone(), target },
        });
    }
    plan.must(Step::Enter { path: staging.clone() });
    let lower = lower_dirs(facts.layers.len());
    let data = staging.join("data");
    plan.must(Step::Directory { path: data.clone() });
    if let Upper::Disk(device) = &facts.upper {
        let tools = staging.join("tools");
        plan.must(Step::Directory { path: tools.clone() });
        // An overlay without upper needs two lower layers: the empty `data` directory is the second.
        plan.must(mount(
            "stead-tools",
            tools.clone(),
            "overlay",
            &[Flag::Ro],
            &format!("lowerdir={lower}:data"),
        ));
        for folder in TOOL_FOLDERS {
            plan.must(Step::Bind { source: Path::new("/").join(folder), target: tools.join(folder) });
        }
        plan.must(Step::DataDisk { device: device.clone(), target: data.clone(), tools: tools.clone() });
        for folder in TOOL_FOLDERS {
            plan.must(Step::Unmount { path: tools.join(folder) });
        }
        plan.must(Step::Unmount { path: tools });
    }
    plan.must(Step::Directory { path: data.join("upper") });
    plan.must(Step::Directory { path: data.join("work") });
    plan.must(mount(
        "stead-root",
        root,
        "overlay",
        &[],
        &format!("lowerdir={lower},upperdir=data/upper,workdir=data/work"),
    ));
}

/// Folders that the tools for preparing a disk (mkfs, modprobe) need.
const TOOL_FOLDERS: [&str; 3] = ["dev", "proc", "sys"];

/// overlayfs names the topmost layer first.
fn lower_dirs(layers: usize) -> String {
    (0..layers).rev().map(|n| format!("layer/{n}")).collect::<Vec<_>>().join(":")
}

fn plan_kernel_filesystems(facts: &Facts, root: &Path, plan: &mut BootPlan) {
    use Flag::{Nodev, Noexec, Nosuid};
    let all = [Nosuid, Nodev, Noexec];
    plan.mount("proc", root.join("proc"), "proc", &all, "");
    plan.mount("sysfs", root.join("sys"), "sysfs", &all, "");
    let dev = root.join("dev");
    match facts.mode {
        Mode::Vm => plan.mount("devtmpfs", dev.clone(), "devtmpfs", &[Nosuid], "mode=0755"),
        Mode::Namespace => {
            // 64 KiB would be enough for nodes and links; 4 MiB leaves room for engines' files.
            plan.mount("dev", dev.clone(), "tmpfs", &[Nosuid], "mode=0755,size=4m");
            plan_namespace_devices(facts, &dev, plan);
        }
    }
    plan.mount(
        "devpts",
        dev.join("pts"),
        "devpts",
        &[Nosuid, Noexec],
        "newinstance,ptmxmode=0666,mode=0620,gid=5",
    );
    plan.may(Step::Symlink { path: dev.join("ptmx"), to: "pts/ptmx".into() });
    plan.mount("shm", dev.join("shm"), "tmpfs", &[Nosuid, Nodev], "mode=1777");
    plan.may_mount("mqueue", dev.join("mqueue"), "mqueue", &all, "");
    for (name, to) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        plan.may(Step::Symlink { path: dev.join(name), to: to.into() });
    }
    let by_serial = dev.join("disk/by-serial");
    if facts.mode == Mode::Namespace {
        hide_memory_blocks(root, &all, plan);
    }
    plan.must(Step::Directory { path: by_serial.clone() });
    for (serial, device) in &facts.disks {
        if is_file_name(serial) {
            let to = Path::new("../..").join(&device.name);
            plan.must(Step::Symlink { path: by_serial.join(serial), to });
        }
    }
    plan.mount("run", root.join("run"), "tmpfs", &[Nosuid, Nodev], "mode=0755");
    plan.mount("tmp", root.join("tmp"), "tmpfs", &[Nosuid, Nodev], "mode=1777");
    if facts.mode == Mode::Vm {
        // In a namespace they are empty: they belong to the host.
        plan.may_mount("securityfs", root.join("sys/kernel/security"), "securityfs", &all, "");
        plan.may_mount("tracefs", root.join("sys/kernel/tracing"), "tracefs", &all, "");
        plan.may_mount("bpf", root.join("sys/fs/bpf"), "bpf", &all, "mode=0700");
    }
}

/// Where in /dev a sysfs is mounted that nothing covers, as LXC does for nested containers.
const WHOLE_SYSFS: &str = ".stead/sys";

/// Covers the host's memory blocks in a namespace's sysfs. An engine counts them when it reports its resources, which
/// each member asks of every other: three files for each 128 MiB of the host. /proc/meminfo has the sum.
///
/// The kernel lets a user namespace (of an unprivileged container) mount a sysfs only where another one is seen whole.
fn hide_memory_blocks(root: &Path, flags: &[Flag], plan: &mut BootPlan) {
    plan.must(Step::Private { path: root.join(WHOLE) });
    plan.mount("sysfs", root.join("dev").join(WHOLE_SYSFS), "sysfs", flags, "");
    let read_only: Vec<Flag> = flags.iter().copied().chain([Flag::Ro]).collect();
    // A kernel without memory hotplug has no such directory.
    plan.may_mount("stead", root.join("sys/devices/system/memory"), "tmpfs", &read_only, "mode=0555,size=4k");
}

/// Below /dev, for the kernel alone: it lets an unprivileged container mount a proc or sysfs only where a whole one is seen
/// (`mount_too_revealing` in fs/namespace.c), and those in their usual places are partly covered.
const WHOLE: &str = "dev/.stead";
/// Parts of /proc that act on the whole host and on nothing of a node's own.
const HOST_PROC: [&str; 8] = ["acpi", "bus", "dynamic_debug", "fs", "irq", "mtrr", "scsi", "sysrq-trigger"];
/// Parts of /proc/sys that the kernel keeps apart for the namespaces that a node has.
const OWN_SYSCTLS: [&str; 16] = [
    "net",
    "fs/mqueue",
    "kernel/hostname",
    "kernel/domainname",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
    "kernel/shm_next_id",
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/msg_next_id",
    "kernel/auto_msgmni",
    "kernel/sem",
    "kernel/sem_next_id",
];
/// The host's parameters that kubelets, kube-proxy and engines set, and end when they cannot; and those of its user
/// namespace, which a node shares.
const SHADOWED_SYSCTLS: [&str; 27] = [
    "fs/aio-max-nr",
    "fs/inotify/max_queued_events",
    "fs/inotify/max_user_instances",
    "fs/inotify/max_user_watches",
    "kernel/dmesg_restrict",
    "kernel/keys/maxbytes",
    "kernel/keys/maxkeys",
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "net/netfilter/nf_conntrack_max",
    "net/nf_conntrack_max",
    "user/max_cgroup_namespaces",
    "user/max_inotify_instances",
    "user/max_inotify_watches",
    "user/max_ipc_namespaces",
    "user/max_mnt_namespaces",
    "user/max_net_namespaces",
    "user/max_pid_namespaces",
    "user/max_time_namespaces",
    "user/max_user_namespaces",
    "user/max_uts_namespaces",
    "vm/max_map_count",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "vm/swappiness",
];

/// What a node writes to the kernel's files stays its own: the host's parameters and knobs are read-only, what belongs to the
/// node's namespaces is not, and what programs insist on setting is a copy.
fn keep_off_the_host(root: &Path, plan: &mut BootPlan) {
    use Flag::{Nodev, Noexec, Nosuid};
    let (proc, sys, whole) = (root.join("proc"), root.join("sys"), root.join(WHOLE));
    plan.mount("proc", whole.join("proc"), "proc", &[Nosuid, Nodev, Noexec], "");
    for part in HOST_PROC {
        plan.may(Step::ReadOnly { path: proc.join(part) });
    }
    plan.must(Step::ReadOnly { path: proc.join("sys") });
    for part in OWN_SYSCTLS {
        let source = whole.join("proc/sys").join(part);
        plan.may(Step::Expose { source, target: proc.join("sys").join(part) });
    }
    for key in SHADOWED_SYSCTLS {
        let copy = root.join(sysctl::SHADOWS.trim_start_matches('/')).join(key);
        plan.may(Step::Shadow { path: proc.join("sys").join(key), copy });
    }
    plan.must(Step::ReadOnly { path: sys.clone() });
    // The node's own interfaces: sysfs shows those of the network namespace that it was mounted in.
    let interfaces = "devices/virtual/net";
    plan.may(Step::Expose { source: whole.join("sys").join(interfaces), target: sys.join(interfaces) });
}

/// Whether a serial, which comes from outside, is usable as a file name.
fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

/// Character devices every node has (Documentation/admin-guide/devices.txt in the kernel).
const STANDARD_DEVICES: [(&str, u32, u32, u32); 8] = [
    ("null", 1, 3, 0o666),
    ("zero", 1, 5, 0o666),
    ("full", 1, 7, 0o666),
    ("random", 1, 8, 0o666),
    ("urandom", 1, 9, 0o666),
    ("tty", 5, 0, 0o666),
    ("fuse", 10, 229, 0o666),
    ("net/tun", 10, 200, 0o666),
];

fn plan_namespace_devices(facts: &Facts, dev: &Path, plan: &mut BootPlan) {
    let node = |device: Device| Step::Node { folder: dev.to_owned(), device };
    plan.must(Step::Directory { path: dev.join("net") });
    for (name, major, minor, mode) in STANDARD_DEVICES {
        plan.must(node(Device { name: name.to_owned(), block: false, major, minor, mode }));
    }
    for device in &facts.devices {
        if let Some(parent) = Path::new(&device.name).parent().filter(|p| *p != Path::new("")) {
            plan.may(Step::Directory { path: dev.join(parent) });
        }
        plan.may(node(device.clone()));
    }
    for device in facts.disks.values() {
        plan.must(node(device.clone()));
    }
    match &facts.console {
        Some(path) => {
            plan.may(Step::File { path: dev.join("console") });
            plan.may(Step::Bind { source: path.clone(), target: dev.join("console") });
        }
        // Programs that write to the console find one, which discards their output.
        None => {
            plan.may(node(Device { name: "console".into(), block: false, major: 1, minor: 3, mode: 0o600 }))
        }
    }
}

fn plan_cgroups(layout: &Layout, root: &Path, plan: &mut BootPlan) {
    let all = [Flag::Nosuid, Flag::Nodev, Flag::Noexec];
    let base = root.join("sys/fs/cgroup");
    if !layout.v1.is_empty() {
        plan.mount("cgroups", base.clone(), "tmpfs", &all, "mode=0755,size=1m");
    }
    for group in &layout.v1 {
        let folder = Layout::folder(group);
        let data = match group.iter().any(|o| o.starts_with("name=")) {
            true => format!("none,{}", group.join(",")),
            false => group.join(","),
        };
        plan.may_mount("cgroup", base.join(&folder), "cgroup", &all, &data);
        if group.len() > 1 {
            for controller in group {
                plan.may(Step::Symlink { path: base.join(controller), to: folder.clone().into() });
            }
        }
    }
    if let Some(folder) = layout.unified_folder() {
        let target = if folder.is_empty() { base } else { base.join(folder) };
        plan.may_mount("cgroup2", target, "cgroup2", &all, "nsdelegate");
    }
}

#[cfg(test)]
mod tests;
