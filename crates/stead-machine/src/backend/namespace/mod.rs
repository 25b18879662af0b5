//! The `namespace` backend: a machine on this host's kernel, in pid, mount, uts, ipc, network and cgroup namespaces.
//!
//! Owns what stands around the node's PID 1: cgroups, loop devices, veths, console, and how it ended. Does not own what
//! PID 1 does inside (`stead-node namespace FILE`).
//!
//! One thread per boot starts the machine and stays until it ends, for two reasons: the kernel ties a child's
//! parent-death signal to the thread that forked it, and a thread can be given the new network and pid namespaces
//! before there is a child, so that the interfaces are in place before PID 1 runs its first instruction.

use crate::{
    MachineSpec, TeardownError,
    cgroup::{self, Cgroups},
    disks,
    files::{self, Durability},
    layers,
    netlink::{self, Links, VethPeer},
    netns,
    supervise::{Exit, MachineError, Running},
    sys::{self, ChildSetup, LoopDevice},
    teardown::Failures,
    tether::Tethered,
};
use rustix::{
    fs::{Mode, OFlags},
    thread::UnshareFlags,
};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, PipeWriter},
    os::{fd::AsFd, unix::process::ExitStatusExt},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
};
use stead_model::{Bytes, NodeName, node::NamespaceBoot};

/// The console log turns over at this size, so one machine takes at most twice of it.
pub(crate) const MAX_CONSOLE_BYTES: u64 = 16 << 20;

/// The death of a pid namespace's init by which the kernel tells of `reboot(2)` in it (reboot(2), pid_namespaces(7)).
const REBOOTED: i32 = 1;
/// The same for power off and halt.
const POWERED_OFF: i32 = 2;

/// What lasts over reboots of one machine.
#[derive(Debug)]
pub(crate) struct Machine {
    spec: Arc<MachineSpec>,
    cgroups: Cgroups,
    boot_file: PathBuf,
    _disks: Vec<LoopDevice>,
}

impl Machine {
    /// Makes everything around PID 1.
    pub(crate) fn prepare(spec: &Arc<MachineSpec>) -> Result<Self, MachineError> {
        let cgroups = Cgroups::make(&spec.cluster, &spec.name, spec.cpus, spec.memory)?;
        let mounted = layers::mount_all(&spec.layers_dir, &spec.layers)?;
        let mut attached = Vec::new();
        let mut nodes = BTreeMap::new();
        for disk in &spec.disks {
            let device = disks::attach(disk)?;
            nodes.insert(disk.serial.clone(), device.path.clone());
            attached.push(device);
        }
        let boot = boot(spec, mounted, nodes);
        let boot_file = spec.dir.join("boot.json");
        files::write_json(&boot_file, &boot, Durability::Volatile)
            .map_err(MachineError::file("write", &boot_file))?;
        Ok(Self { spec: Arc::clone(spec), cgroups, boot_file, _disks: attached })
    }

    /// Starts PID 1.
    pub(crate) async fn boot(&mut self) -> Result<Running, MachineError> {
        // What a machine that rebooted left behind in its cgroups would stay for ever.
        self.cgroups.empty().map_err(MachineError::Teardown)?;
        let doors = self.cgroups.doors()?;
        let failed = |source| MachineError::Start { name: self.spec.name.clone(), source };
        let (console, writer) = io::pipe().map_err(failed)?;
        files::log_from(console, self.spec.dir.join("console.log"), MAX_CONSOLE_BYTES).map_err(failed)?;
        let (spec, boot_file) = (Arc::clone(&self.spec), self.boot_file.clone());
        let child = Tethered::start_by(move || start(&spec, boot_file, doors, writer)).await?;
        Ok(Running::Init(child))
    }
}

/// The file `stead-node` is started with.
fn boot(spec: &MachineSpec, layers: Vec<PathBuf>, disks: BTreeMap<String, PathBuf>) -> NamespaceBoot {
    NamespaceBoot {
        layers,
        spec_dir: spec.spec_dir.clone(),
        disks,
        // Without it the node would take half of the host's memory for its own.
        root_limit: spec.memory.map(|m| Bytes(m.0 / 2)),
    }
}

fn start(
    spec: &MachineSpec,
    boot_file: PathBuf,
    doors: Vec<File>,
    console: PipeWriter,
) -> Result<Child, MachineError> {
    let failed = |source| MachineError::Start { name: spec.name.clone(), source };
    sys::unshare_thread(UnshareFlags::NEWNET).map_err(failed)?;
    let own = rustix::fs::open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| failed(e.into()))?;
    let cluster = netns::open(&spec.netns)
        .map_err(|source| MachineError::NoNetwork { netns: spec.netns.clone(), source })?;
    netlink::with(Some(cluster.as_fd()), async |links: Links| {
        for (i, nic) in spec.nics.iter().enumerate() {
            let peer = VethPeer { name: &nic.name, netns: own.as_fd(), mac: Some(nic.mac) };
            links.add_veth(&link_name('v', &spec.name, i), Some(&nic.bridge), nic.mtu, peer).await?;
        }
        Ok(())
    })?;
    // From here on this thread can start no thread any more: only the one child.
    sys::unshare_thread(UnshareFlags::NEWPID).map_err(failed)?;
    let mut command = Command::new(&spec.stead_node);
    command
        .arg("namespace")
        .arg(boot_file)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("container", "stead")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(console.try_clone().map_err(failed)?)
        .stderr(console);
    let setup = ChildSetup {
        die_with_parent: true,
        new_session: true,
        cgroups: doors,
        unshare: Some(
            UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC | UnshareFlags::NEWCGROUP,
        ),
        ..Default::default()
    };
    sys::prepare(&mut command, setup).map_err(failed)?;
    command.spawn().map_err(|source| MachineError::Exec { exe: spec.stead_node.clone(), source })
}

/// What became of a machine whose init ended so.
pub(crate) fn exit_of(status: ExitStatus) -> Exit {
    match status.signal() {
        Some(REBOOTED) => Exit::Reboot,
        Some(POWERED_OFF) => Exit::PowerOff,
        _ => Exit::Crashed(format!("init ended: {status}")),
    }
}

/// Name of the host's end of an interface: unique in the cluster's namespace, within the kernel's 15 characters.
pub(crate) fn link_name(kind: char, node: &NodeName, index: usize) -> String {
    let digest = Sha256::digest(node.as_str());
    let hex: String = digest[..5].iter().map(|b| format!("{b:02x}")).collect();
    format!("{kind}{hex}{index}")
}

/// Removes what a machine may have left on the host: its cgroups with all that is in them, and its links.
pub(crate) fn cleanup(spec: &MachineSpec) -> Result<(), TeardownError> {
    let mut failures = Failures::default();
    failures.absorb(cgroup::remove(&spec.cluster, &spec.name));
    // Without the cluster's namespace its links are gone too.
    if let Ok(cluster) = netns::open(&spec.netns) {
        failures.note(netlink::with(Some(cluster.as_fd()), async |links: Links| {
            for i in 0..spec.nics.len() {
                links.delete(&link_name('v', &spec.name, i)).await?;
            }
            Ok(())
        }));
    }
    failures.into_result()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_are_short_and_differ() {
        let long = "n".repeat(48).parse().unwrap();
        let a = link_name('v', &long, 12);
        assert!(a.len() <= 15, "{a}");
        assert_ne!(
            link_name('v', &"node1".parse().unwrap(), 1),
            link_name('v', &"node11".parse().unwrap(), 0)
        );
    }

    #[test]
    fn deaths_of_init_are_told_apart() {
        assert_eq!(exit_of(ExitStatus::from_raw(1)), Exit::Reboot);
        assert_eq!(exit_of(ExitStatus::from_raw(2)), Exit::PowerOff);
        assert!(matches!(exit_of(ExitStatus::from_raw(9)), Exit::Crashed(_)));
        assert!(matches!(exit_of(ExitStatus::from_raw(256)), Exit::Crashed(why) if why.contains('1')));
    }
}
