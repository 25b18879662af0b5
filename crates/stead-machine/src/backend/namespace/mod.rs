//! The `namespace` backend: a machine on this host's kernel, in pid, mount, uts, ipc, network and cgroup namespaces.
//!
//! Owns everything around the node's PID 1: cgroups, loop devices, veths, console, and its end. Does not own what PID 1
//! does inside (`stead-node namespace FILE`).
//!
//! One thread per boot starts the machine and stays until it ends, for two reasons: the kernel ties a child's
//! parent-death signal to the thread that forked it, and a thread can be given the new network and pid namespaces
//! before there is a child, so that the interfaces are in place before PID 1 runs its first instruction.

use super::driver::{Driver, Patience, Prepared, Profile};
use crate::{
    MachineError, MachineSpec, TeardownError,
    cgroup::{self, Cgroups},
    console, disks,
    files::{self, Durability},
    guest::{Exit, Guest},
    host::{Device, HostFacts, NAMESPACES, Tool},
    layers,
    links::{LinkKind, link_name, open_netns},
    netlink::{self, Links, VethPeer},
    netns,
    spec::Accelerator,
    sys::{self, ChildSetup},
    teardown::Failures,
    tether::Tethered,
};
use futures_util::future::LocalBoxFuture;
use rustix::{
    fs::{Mode, OFlags},
    process::Signal,
    thread::UnshareFlags,
};
use std::{
    collections::BTreeMap,
    io::PipeWriter,
    os::{fd::AsFd, unix::process::ExitStatusExt},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};
use stead_model::{Bytes, node::NamespaceBoot};
use stead_os::{LoopDevice, PathContext, cgroup::Entrance};

/// A node takes half a second to run; a loaded host takes longer.
const PATIENCE: Patience = Patience { agent: Duration::from_secs(15), running: Duration::from_secs(120) };

/// The signal that a pid namespace's init dies of after `reboot(2)` in it (reboot(2), pid_namespaces(7)).
const REBOOTED: i32 = 1;
/// The same for power off and halt.
const POWERED_OFF: i32 = 2;

/// The backend.
pub(super) struct Namespace;

impl Driver for Namespace {
    fn profile(&self) -> Profile {
        Profile { needs_kernel: false, cpus: None, memory: None, patience: PATIENCE }
    }

    fn tools(&self) -> &'static [Tool] {
        &[]
    }

    fn link_kind(&self) -> LinkKind {
        LinkKind::Veth
    }

    fn obstacles(&self, host: &HostFacts) -> Vec<String> {
        let mut found = Vec::new();
        if !host.root {
            found.push("stead does not run as root".to_owned());
        }
        let namespaces = NAMESPACES.iter().filter(|n| !host.namespaces.contains(**n));
        found.extend(namespaces.map(|n| format!("the kernel has no {n} namespaces")));
        let filesystems = ["squashfs", "overlay"].iter().filter(|f| !host.filesystems.contains(**f));
        found.extend(filesystems.map(|f| format!("the kernel has no {f}")));
        if host.loop_control != Device::Opens {
            found.push("/dev/loop-control does not open".to_owned());
        }
        if !host.cgroups.v1 && !host.cgroups.v2 {
            found.push("no cgroups are mounted".to_owned());
        }
        found
    }

    fn accelerator(&self, _: &HostFacts) -> Option<Accelerator> {
        None
    }

    fn prepare(&self, spec: &Arc<MachineSpec>) -> Result<Box<dyn Prepared>, MachineError> {
        let cgroups = Cgroups::make(&spec.cluster, &spec.name, spec.cpus, spec.memory)?;
        let mounted = layers::mount_all(&spec.layers_dir, &spec.layers)?;
        let mut attached = Vec::new();
        let mut nodes = BTreeMap::new();
        for disk in &spec.disks {
            let device = disks::attach(disk)?;
            nodes.insert(disk.serial.clone(), device.path().to_owned());
            attached.push(device);
        }
        let boot = boot(spec, mounted, nodes);
        let boot_file = spec.dir.join("boot.json");
        files::write_json(&boot_file, &boot, Durability::Volatile).at("write", &boot_file)?;
        Ok(Box::new(Machine { spec: Arc::clone(spec), cgroups, boot_file, _disks: attached }))
    }

    /// Its cgroups with all that is in them, and its links.
    fn cleanup(&self, spec: &MachineSpec) -> Result<(), TeardownError> {
        let mut failures = Failures::default();
        failures.absorb(cgroup::remove(&spec.cluster, &spec.name));
        // Without the cluster's namespace there are no links.
        if let Ok(cluster) = netns::open(&spec.netns) {
            failures.note(netlink::with(Some(cluster.as_fd()), async |links: Links| {
                for i in 0..spec.nics.len() {
                    links.delete(&link_name(LinkKind::Veth, &spec.name, i)).await?;
                }
                Ok(())
            }));
        }
        failures.into_result()
    }
}

/// Everything around PID 1.
struct Machine {
    spec: Arc<MachineSpec>,
    cgroups: Cgroups,
    boot_file: PathBuf,
    _disks: Vec<LoopDevice>,
}

impl Prepared for Machine {
    fn boot(&mut self) -> LocalBoxFuture<'_, Result<Box<dyn Guest>, MachineError>> {
        Box::pin(async {
            // Processes and groups of the boot before would stay for ever.
            self.cgroups.empty().map_err(MachineError::Teardown)?;
            let cgroups = self.cgroups.entrance()?;
            let console = console::writer(&self.spec)?;
            let (spec, boot_file) = (Arc::clone(&self.spec), self.boot_file.clone());
            let init = Tethered::start_by(move || start(&spec, boot_file, cgroups, console)).await?;
            Ok(Box::new(Init(init)) as Box<dyn Guest>)
        })
    }
}

/// The node's PID 1.
struct Init(Tethered);

impl Guest for Init {
    fn pid(&self) -> i32 {
        self.0.pid
    }
    fn exit(&mut self) -> LocalBoxFuture<'_, Exit> {
        Box::pin(async {
            match self.0.ended().await {
                Ok(status) => exit_of(status),
                Err(e) => Exit::Crashed(format!("cannot wait for init: {e}")),
            }
        })
    }
    fn ask_to_end(&self) {
        self.0.signal(Signal::TERM);
    }
    fn kill(&self) {
        self.0.signal(Signal::KILL);
    }
}

/// The file `stead-node` is started with.
fn boot(spec: &MachineSpec, layers: Vec<PathBuf>, disks: BTreeMap<String, PathBuf>) -> NamespaceBoot {
    NamespaceBoot {
        layers,
        spec_dir: spec.spec_dir.clone(),
        disks,
        // Without it the node would reckon with half of the host's memory.
        root_limit: spec.memory.map(|m| Bytes(m.0 / 2)),
    }
}

fn start(
    spec: &MachineSpec,
    boot_file: PathBuf,
    cgroups: Entrance,
    console: PipeWriter,
) -> Result<Child, MachineError> {
    let failed = MachineError::start(spec);
    sys::unshare_thread(UnshareFlags::NEWNET).map_err(failed)?;
    let own = rustix::fs::open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| failed(e.into()))?;
    let cluster = open_netns(spec)?;
    netlink::with(Some(cluster.as_fd()), async |links: Links| {
        for (i, nic) in spec.nics.iter().enumerate() {
            let peer = VethPeer { name: &nic.name, netns: own.as_fd(), mac: Some(nic.mac) };
            links
                .add_veth(&link_name(LinkKind::Veth, &spec.name, i), Some(&nic.bridge), nic.mtu, peer)
                .await?;
        }
        Ok(())
    })?;
    // From here on this thread can start no thread, only the one child.
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
        cgroups,
        unshare: Some(
            UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC | UnshareFlags::NEWCGROUP,
        ),
        ..Default::default()
    };
    sys::prepare(&mut command, setup).map_err(failed)?;
    command.spawn().map_err(|source| MachineError::Exec { exe: spec.stead_node.clone(), source })
}

/// How a machine ended, by how its init did.
fn exit_of(status: ExitStatus) -> Exit {
    match status.signal() {
        Some(REBOOTED) => Exit::Reboot,
        Some(POWERED_OFF) => Exit::PowerOff,
        _ => Exit::Crashed(format!("init ended: {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deaths_of_init_are_told_apart() {
        assert_eq!(exit_of(ExitStatus::from_raw(1)), Exit::Reboot);
        assert_eq!(exit_of(ExitStatus::from_raw(2)), Exit::PowerOff);
        assert!(matches!(exit_of(ExitStatus::from_raw(9)), Exit::Crashed(_)));
        assert!(matches!(exit_of(ExitStatus::from_raw(256)), Exit::Crashed(why) if why.contains('1')));
    }
}
