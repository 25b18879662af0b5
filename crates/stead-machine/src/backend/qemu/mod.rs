//! The `qemu` backend: a machine with a kernel of its own, in QEMU, with KVM where it works and else by emulation.
//!
//! Owns QEMU's process, its taps, its drives and its logs. Does not own what the guest does.

mod drive;
mod invocation;
mod monitor;

use super::driver::{Driver, Patience, Prepared, Profile};
use crate::{
    MachineError, MachineSpec, TeardownError, console, disks,
    files::{self, Durability},
    guest::{Exit, Guest},
    host::{Device, HostFacts, Tool},
    links::{LinkKind, link_name, open_netns},
    netlink::{self, Links},
    netns,
    spec::Accelerator,
    sys,
    teardown::Failures,
    tether::Tethered,
};
use futures_util::future::LocalBoxFuture;
use invocation::{CONSOLE_SOCKET, CPUS, Facts, MEMORY, PROGRAM, QMP_SOCKET, SPEC_DRIVE, invocation};
use monitor::{Monitor, Reason};
use rustix::process::Signal;
use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};
use stead_model::node::VmBoot;
use stead_os::PathContext;

/// A kernel boots first: seconds with KVM, and more on a loaded host.
const PATIENCE: Patience = Patience { agent: Duration::from_secs(30), running: Duration::from_secs(180) };
/// The log of QEMU's own messages turns over at this size; there are a few lines at most.
const MAX_LOG_BYTES: u64 = 1 << 20;
/// How often a tap is tried that is still busy: its last owner may just have been killed.
const TAP_TRIES: u32 = 100;

/// The backend.
pub(super) struct Qemu;

impl Driver for Qemu {
    fn profile(&self) -> Profile {
        Profile { needs_kernel: true, cpus: Some(CPUS), memory: Some(MEMORY), patience: PATIENCE }
    }

    fn tools(&self) -> &'static [Tool] {
        &[PROGRAM]
    }

    fn link_kind(&self) -> LinkKind {
        LinkKind::Tap
    }

    fn obstacles(&self, host: &HostFacts) -> Vec<String> {
        let mut found = Vec::new();
        if !host.has(PROGRAM.name) {
            found.push(format!("{} is not installed", PROGRAM.name));
        }
        if host.tun != Device::Opens {
            found.push("/dev/net/tun does not open".to_owned());
        }
        found
    }

    fn accelerator(&self, host: &HostFacts) -> Option<Accelerator> {
        Some(if host.kvm_works() { Accelerator::Kvm } else { Accelerator::Tcg })
    }

    fn prepare(&self, spec: &Arc<MachineSpec>) -> Result<Box<dyn Prepared>, MachineError> {
        for disk in &spec.disks {
            disks::ensure_file(disk)?;
        }
        Ok(Box::new(Machine(Arc::clone(spec))))
    }

    /// The spec drive and the sockets. QEMU dies with its supervisor, and its taps with it.
    fn cleanup(&self, spec: &MachineSpec) -> Result<(), TeardownError> {
        let mut failures = Failures::default();
        for file in [SPEC_DRIVE, QMP_SOCKET, CONSOLE_SOCKET] {
            let path = spec.dir.join(file);
            match fs::remove_file(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                removed => failures.note(removed.at("remove", &path)),
            }
        }
        failures.into_result()
    }
}

/// A machine whose disks are there.
struct Machine(Arc<MachineSpec>);

impl Prepared for Machine {
    fn boot(&mut self) -> LocalBoxFuture<'_, Result<Box<dyn Guest>, MachineError>> {
        Box::pin(async { Ok(Box::new(boot(&self.0).await?) as Box<dyn Guest>) })
    }
}

/// Starts QEMU.
async fn boot(spec: &MachineSpec) -> Result<Vm, MachineError> {
    let failed = MachineError::start(spec);
    let taps = open_taps(spec)?;
    let console_log = OwnedFd::from(console::writer(spec)?);
    let facts = Facts {
        vhost: Path::new("/dev/vhost-net").exists(),
        taps: taps.iter().map(AsRawFd::as_raw_fd).collect(),
        console_log: console_log.as_raw_fd(),
    };
    let made = invocation(spec, &facts)?;
    let tar = drive::spec_tar(&spec.spec_dir, VmBoot { layers: spec.layers.len() as u32 })
        .at("read", &spec.spec_dir)?;
    files::write(&made.spec_drive, &tar, Durability::Volatile).at("write", &made.spec_drive)?;
    for socket in [QMP_SOCKET, CONSOLE_SOCKET] {
        let _ = fs::remove_file(spec.dir.join(socket));
    }
    let log_path = spec.dir.join("qemu.log");
    let (log, messages) = io::pipe().map_err(failed)?;
    files::log_from(log, log_path, MAX_LOG_BYTES).map_err(failed)?;
    let mut command = Command::new(made.program.name);
    command
        .args(&made.argv)
        .current_dir(&made.cwd)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .stdin(Stdio::null())
        .stdout(messages.try_clone().map_err(failed)?)
        .stderr(messages);
    let netns = open_netns(spec)?;
    let keep = taps.into_iter().chain([console_log]).collect();
    let child = Tethered::start(command, Some(netns), keep).await.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => MachineError::Missing(made.program),
        _ => MachineError::Exec { exe: made.program.name.into(), source: e },
    })?;
    Ok(Vm { child, monitor: Monitor::start(spec.dir.join(QMP_SOCKET)), dir: spec.dir.clone() })
}

/// A running QEMU.
struct Vm {
    child: Tethered,
    monitor: Monitor,
    dir: PathBuf,
}

impl Guest for Vm {
    fn pid(&self) -> i32 {
        self.child.pid
    }
    fn exit(&mut self) -> LocalBoxFuture<'_, Exit> {
        Box::pin(async {
            let status = match self.child.ended().await {
                Ok(status) => status,
                Err(e) => return Exit::Crashed(format!("cannot wait for qemu: {e}")),
            };
            match (self.monitor.reason().await, status.success()) {
                (Some(Reason::Reset), true) => Exit::Reboot,
                (Some(Reason::PowerOff | Reason::Host), true) => Exit::PowerOff,
                (Some(Reason::Panic), true) => Exit::Crashed("the guest's kernel panicked".to_owned()),
                _ => {
                    let said = files::tail(&self.dir.join("qemu.log"), 500);
                    Exit::Crashed(format!("qemu ended: {status}; {said}"))
                }
            }
        })
    }
    fn ask_to_end(&self) {
        self.monitor.press_power_button();
    }
    fn kill(&self) {
        self.child.signal(Signal::KILL);
    }
}

/// Opens taps on the machine's bridges, in the cluster's namespace. A tap is gone with its last descriptor.
fn open_taps(spec: &MachineSpec) -> Result<Vec<OwnedFd>, MachineError> {
    let cluster = open_netns(spec)?;
    let taps = netns::inside(cluster.as_fd(), || {
        spec.nics
            .iter()
            .enumerate()
            .map(|(i, _)| open_tap(&link_name(LinkKind::Tap, &spec.name, i)))
            .collect()
    })
    .map_err(MachineError::start(spec))?;
    netlink::with(Some(cluster.as_fd()), async |links: Links| {
        for (i, nic) in spec.nics.iter().enumerate() {
            links.attach(&link_name(LinkKind::Tap, &spec.name, i), &nic.bridge, nic.mtu).await?;
        }
        Ok(())
    })?;
    Ok(taps)
}

fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let mut tries = 0;
    loop {
        match sys::open_tap(name) {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && tries < TAP_TRIES => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}
