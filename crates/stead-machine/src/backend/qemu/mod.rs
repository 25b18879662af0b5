//! The `qemu` backend: a machine with a kernel of its own, in QEMU, with KVM where it works and else by emulation.
//!
//! Owns QEMU's process, its taps, its drives and what it says. Does not own what the guest does.

mod drive;
mod invocation;
mod qmp;

use crate::{
    MachineSpec,
    backend::namespace::{MAX_CONSOLE_BYTES, link_name},
    disks::ensure_file,
    doctor,
    files::{self, Durability},
    netlink::{self, Links},
    netns,
    supervise::{Exit, MachineError, Running},
    sys,
    tether::Tethered,
};
use invocation::{Accelerator, CONSOLE_SOCKET, Facts, QMP_SOCKET, invocation};
pub(crate) use qmp::Qmp;
use rustix::process::Signal;
use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};
use stead_model::node::VmBoot;

/// QEMU's own messages; it says a few lines at most.
const MAX_LOG_BYTES: u64 = 1 << 20;
/// A tap whose last owner was just killed may still be there for a moment.
const TAP_TRIES: u32 = 100;

/// What lasts over reboots of one machine.
#[derive(Debug)]
pub(crate) struct Machine {
    spec: Arc<MachineSpec>,
    accelerator: Accelerator,
}

impl Machine {
    /// Makes what is around QEMU.
    pub(crate) fn prepare(spec: &Arc<MachineSpec>) -> Result<Self, MachineError> {
        for disk in &spec.disks {
            ensure_file(disk)?;
        }
        let accelerator = if doctor::kvm_works() { Accelerator::Kvm } else { Accelerator::Tcg };
        Ok(Self { spec: Arc::clone(spec), accelerator })
    }

    /// Starts QEMU.
    pub(crate) async fn boot(&mut self) -> Result<Running, MachineError> {
        let spec = &self.spec;
        let failed = |source| MachineError::Start { name: spec.name.clone(), source };
        let taps = open_taps(spec)?;
        let (console, console_log) = io::pipe().map_err(failed)?;
        files::log_from(console, spec.dir.join("console.log"), MAX_CONSOLE_BYTES).map_err(failed)?;
        let console_log = OwnedFd::from(console_log);
        let facts = Facts {
            accelerator: self.accelerator,
            vhost: self.accelerator == Accelerator::Kvm && Path::new("/dev/vhost-net").exists(),
            taps: taps.iter().map(AsRawFd::as_raw_fd).collect(),
            console_log: console_log.as_raw_fd(),
        };
        let made = invocation(spec, &facts)?;
        let tar = drive::spec_tar(&spec.spec_dir, VmBoot { layers: spec.layers.len() as u32 })
            .map_err(MachineError::file("read", &spec.spec_dir))?;
        files::write(&made.spec_drive, &tar, Durability::Volatile)
            .map_err(MachineError::file("write", &made.spec_drive))?;
        for socket in [QMP_SOCKET, CONSOLE_SOCKET] {
            let _ = fs::remove_file(spec.dir.join(socket));
        }
        let log_path = spec.dir.join("qemu.log");
        let (log, messages) = io::pipe().map_err(failed)?;
        files::log_from(log, log_path, MAX_LOG_BYTES).map_err(failed)?;
        let mut command = Command::new(made.program);
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
            io::ErrorKind::NotFound => {
                MachineError::Missing { program: made.program.to_owned(), package: "qemu-system-x86" }
            }
            _ => MachineError::Exec { exe: made.program.into(), source: e },
        })?;
        let qmp = Qmp::connect(&spec.dir, QMP_SOCKET).map_err(failed)?;
        Ok(Running::Qemu(Vm { child, qmp, dir: spec.dir.clone() }))
    }
}

/// A running QEMU.
#[derive(Debug)]
pub(crate) struct Vm {
    child: Tethered,
    qmp: Qmp,
    dir: std::path::PathBuf,
}

impl Vm {
    pub(crate) fn pid(&self) -> i32 {
        self.child.pid
    }
    /// Waits for its end; may be dropped and called again until it has answered.
    pub(crate) async fn exit(&mut self) -> Exit {
        let status = match (&mut self.child.exit).await {
            Ok(Ok(status)) => status,
            Ok(Err(e)) => return Exit::Crashed(format!("cannot wait for qemu: {e}")),
            Err(_) => return Exit::Crashed("its thread is gone".to_owned()),
        };
        match (self.qmp.reason().await, status.success()) {
            (Some(qmp::Reason::Reset), true) => Exit::Reboot,
            (Some(qmp::Reason::PowerOff | qmp::Reason::Host), true) => Exit::PowerOff,
            (Some(qmp::Reason::Panic), true) => Exit::Crashed("the guest's kernel panicked".to_owned()),
            _ => {
                let said = files::tail(&self.dir.join("qemu.log"), 500);
                Exit::Crashed(format!("qemu ended: {status}; {said}"))
            }
        }
    }
    /// Presses the power button.
    pub(crate) fn ask_to_end(&self) {
        self.qmp.power_button();
    }
    pub(crate) fn kill(&self) {
        self.child.signal(Signal::KILL);
    }
}

fn open_netns(spec: &MachineSpec) -> Result<OwnedFd, MachineError> {
    netns::open(&spec.netns).map_err(|source| MachineError::NoNetwork { netns: spec.netns.clone(), source })
}

/// Taps on the machine's bridges. They live in the cluster's namespace and are gone with their last descriptor.
fn open_taps(spec: &MachineSpec) -> Result<Vec<OwnedFd>, MachineError> {
    let failed = |source| MachineError::Start { name: spec.name.clone(), source };
    let cluster = open_netns(spec)?;
    let taps = netns::inside(cluster.as_fd(), || {
        spec.nics.iter().enumerate().map(|(i, _)| open_tap(&link_name('t', &spec.name, i))).collect()
    })
    .map_err(failed)?;
    netlink::with(Some(cluster.as_fd()), async |links: Links| {
        for (i, nic) in spec.nics.iter().enumerate() {
            links.attach(&link_name('t', &spec.name, i), &nic.bridge, nic.mtu).await?;
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
