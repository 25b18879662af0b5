//! The second stage: PID 1 in the node's root, from network to the ordered stop.

use crate::{
    api,
    blocking::blocking,
    cgroups::Tree,
    command::base_command,
    disks,
    engine::{self, Engine},
    handle::{Handle, Stop, say},
    modules::{self, Module},
    mounts::{self, mount_filesystem},
    network::{apply::Netlink, dhcp, files},
    power,
    reaper::Reaper,
    rescue,
    services::{self, Supervisor},
    state::{BootState, Mode, Upper},
    sysctl,
};
use rustix::mount::mount_bind;
use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use stead_model::{
    EngineFacts, NodeSpec,
    agent::{DiskOutcome, DiskStatus, EventKind, NodePhase},
    node::{DATA_LABEL, SYSTEM_SPEC_PATH},
    recipe::{Filesystem, SystemSpec},
};
use stead_os::mountinfo;
use tokio::sync::oneshot;

/// Directory of logs.
const LOG_DIR: &str = "/var/log/stead";
/// How long the boot waits for a first DHCP lease before it continues without.
const LEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// Nice value of work that nothing waits for.
const YIELDING: i32 = 10;
/// Part of the stop's deadline reserved for syncing and unmounting.
const LAST_STEPS: Duration = Duration::from_secs(2);

/// Runs the node until it is asked to stop, and stops it. Returns only outside PID 1, or if the kernel does not obey.
///
/// # Errors
/// The runtime or the reaper cannot be created, without which nothing works.
pub fn node(state: BootState) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = catch_unwind(AssertUnwindSafe(|| runtime.block_on(live(state))));
    // Not dropped: that would wait for threads of its pool, which may hang on a dead disk, and a panic must lead to
    // rescue.
    runtime.shutdown_background();
    done.unwrap_or_else(|panic| resume_unwind(panic))
}

async fn live(state: BootState) -> io::Result<()> {
    let reaper = Reaper::start(rustix::process::getpid() == rustix::process::Pid::INIT)?;
    let mode = state.mode;
    let handle = new_handle(&state, reaper)?;
    power::listen(&handle, mode);
    let booted = tokio::select! {
        booted = boot(&state, &handle) => booted,
        // A stop during the boot interrupts it; no service has been started yet.
        _ = handle.stop_requested() => Booted::default(),
    };
    let why = state.rescue.clone().or(booted.failed);
    if let Some(why) = why {
        handle.enter_rescue(why.clone());
        tokio::spawn(rescue::keep_telling(handle.clone(), why));
    }
    let stop = handle.stop_requested().await;
    end(&handle, stop, booted.supervisor, mode).await;
    Ok(())
}

fn new_handle(state: &BootState, reaper: Reaper) -> io::Result<Handle> {
    let spec = state.spec.clone().or_else(rescue::nameless).ok_or_else(|| io::Error::other("no spec"))?;
    let log_dir = PathBuf::from(LOG_DIR);
    let _ = fs::DirBuilder::new().recursive(true).mode(0o750).create(&log_dir);
    let handle = Handle::new(spec, state.started(), state.boot_id.clone(), log_dir, reaper);
    for event in &state.timeline {
        handle.note_before(event.clone());
    }
    for warning in &state.warnings {
        handle.warn_before(warning.clone());
    }
    Ok(handle)
}

/// The result of the boot.
#[derive(Default)]
struct Booted {
    supervisor: Option<Supervisor>,
    /// Why the node is in rescue although its root was made.
    failed: Option<String>,
}

async fn boot(state: &BootState, handle: &Handle) -> Booted {
    let spec = handle.spec().clone();
    let in_namespace = state.mode == Mode::Namespace;
    let in_rescue = state.rescue.is_some();
    let (system, failed) = match system_spec(&spec) {
        Ok(system) => (system, None),
        Err(why) => (spec.system.clone(), Some(why)),
    };
    let (tree, error) = Tree::prepare(&mounts::current());
    if let Some(e) = error {
        handle.warn(crate::chain(&e));
    }
    set_hostname(&spec, &system, handle);
    let wants_lease = spec.network.interfaces.iter().any(|i| i.dhcp);
    let mut later = LaterModules(state.later.clone());
    if wants_lease {
        // DHCP needs packet sockets.
        later.load(handle).await;
    }
    let leases = set_up_network(&spec, handle).await;
    for (key, value) in &system.sysctl {
        if let Err(why) = sysctl::set(key, &value.0, in_namespace) {
            handle.warn(why);
        }
    }
    let facts = spec.engine.as_ref().and_then(|e| e.kind.facts());
    let in_rescue = in_rescue || failed.is_some();
    let engine = spec.engine.clone().filter(|_| !in_rescue).and_then(|e| engine::of(e, &spec.name, handle));
    let listening = serve_agent(&spec, handle, engine.clone());
    let later = tokio::spawn(later.load_after(listening, handle.clone(), state.mode));
    if in_rescue {
        return Booted { supervisor: None, failed };
    }
    if !(system.disks.is_empty() && system.onboot.is_empty() && system.services.is_empty()) {
        let _ = later.await;
    }
    if let Some(facts) = facts.filter(|_| !in_namespace) {
        load_modules(facts, handle);
    }
    if let Some(engine) = &engine {
        Arc::clone(engine).prepare().await;
    }
    let outcomes = disks::set_up(&system.disks, handle, in_namespace).await;
    if let Some(facts) = facts {
        keep_engine_off_overlay(state, facts, handle).await;
    }
    warn_of_lost_state(state, &outcomes, handle);
    if !leases.is_empty() {
        wait_for_leases(leases, handle).await;
    }
    handle.set_phase(NodePhase::Starting);
    services::run_onboot(&system.onboot, handle, &tree).await;
    let supervisor = Supervisor::start(system.services, handle, &tree);
    if let Some(engine) = engine {
        tokio::spawn(engine.settle());
    }
    Booted { supervisor: Some(supervisor), failed: None }
}

/// The image's system spec with the additions of the node spec.
fn system_spec(spec: &NodeSpec) -> Result<SystemSpec, String> {
    let image = match fs::read_to_string(SYSTEM_SPEC_PATH) {
        Ok(text) => {
            stead_model::text::from_json::<SystemSpec>(SYSTEM_SPEC_PATH, &text).map_err(|e| e.to_string())?
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => SystemSpec::default(),
        Err(e) => return Err(format!("cannot read {SYSTEM_SPEC_PATH}: {e}")),
    };
    let merged = image.merged(&spec.system);
    merged.check().map_err(|(key, why)| format!("system spec: {key}: {why}"))?;
    Ok(merged)
}

fn set_hostname(spec: &NodeSpec, system: &SystemSpec, handle: &Handle) {
    let hostname = system.hostname.as_deref().unwrap_or(spec.name.as_str());
    if let Err(e) = rustix::system::sethostname(hostname.as_bytes()) {
        handle.warn(format!("hostname {hostname} not set: {e}"));
    }
    let texts = [
        ("/etc/hostname", format!("{hostname}\n")),
        ("/etc/hosts", files::hosts(hostname, spec.cluster.as_str(), &spec.network)),
        ("/etc/resolv.conf", files::resolv_conf(&spec.network.nameservers, &spec.network.search)),
    ];
    for (path, text) in texts {
        if let Err(e) = files::write(Path::new(path), &text) {
            handle.warn(format!("{path} not written: {e}"));
        }
    }
}

/// Returns a receiver of the first lease for each interface with DHCP.
async fn set_up_network(spec: &NodeSpec, handle: &Handle) -> Vec<dhcp::FirstLease> {
    let netlink = match Netlink::open() {
        Ok(netlink) => netlink,
        Err(e) => {
            handle.warn(format!("network: {}", crate::chain(&e)));
            return Vec::new();
        }
    };
    for why in netlink.set_up(&spec.network).await {
        handle.warn(format!("network: {why}"));
    }
    handle.note(EventKind::Network, "network up");
    let wanted = spec.network.interfaces.iter().filter(|i| i.dhcp);
    wanted
        .map(|i| dhcp::keep(i.name.clone(), spec.network.clone(), netlink.clone(), handle.clone()))
        .collect()
}

async fn wait_for_leases(leases: Vec<dhcp::FirstLease>, handle: &Handle) {
    let all = async {
        for lease in leases {
            let _ = lease.await;
        }
    };
    if tokio::time::timeout(LEASE_TIMEOUT, all).await.is_err() {
        handle.warn(format!("no DHCP lease after {} s; still asking", LEASE_TIMEOUT.as_secs()));
    }
}

/// Modules of the initrd that the agent does not need.
struct LaterModules(Vec<Module>);

impl LaterModules {
    async fn load(&mut self, handle: &Handle) {
        let modules = std::mem::take(&mut self.0);
        blocking(move || modules::load(&modules)).await.into_iter().for_each(|error| handle.warn(error));
    }

    /// Loads them in a low-priority thread, once the agent listens or never will.
    async fn load_after(self, listening: oneshot::Receiver<()>, handle: Handle, mode: Mode) {
        let _ = listening.await;
        let loaded = blocking(move || {
            // On Linux this affects only this thread.
            let _ = rustix::process::setpriority_process(None, YIELDING);
            modules::load(&self.0)
        });
        loaded.await.into_iter().for_each(|error| handle.warn(error));
        if mode == Mode::Vm {
            // The buttons' driver is among the modules.
            power::watch_buttons(&handle);
        }
    }
}

/// Returns a receiver that resolves when the agent listens; its sender is dropped when there is no agent.
fn serve_agent(spec: &NodeSpec, handle: &Handle, engine: Option<Arc<dyn Engine>>) -> oneshot::Receiver<()> {
    let (tell, listening) = oneshot::channel();
    let Some(agent) = spec.agent.clone() else {
        handle.note(EventKind::Agent, "no agent: the spec has no certificates");
        return listening;
    };
    let handle = handle.clone();
    tokio::spawn(async move {
        let served = async {
            let listener = api::bind(agent.listen).await?;
            handle.note(EventKind::Agent, "agent listening");
            let _ = tell.send(());
            api::serve_on(listener, &agent, handle.clone(), engine).await
        };
        if let Err(e) = served.await {
            handle.warn(format!("agent: {}", crate::chain(&e)));
        }
    });
    listening
}

/// Loads the engine's modules with the image's own `modprobe`.
fn load_modules(facts: &EngineFacts, handle: &Handle) {
    let mut argv = vec!["modprobe".to_owned(), "-a".to_owned(), "-q".to_owned()];
    argv.extend(facts.kernel_modules.iter().map(|m| (*m).to_owned()));
    // Missing modules are not an error: they may be built in.
    if let Ok(running) = handle.reaper().spawn(&mut base_command(&argv, &Default::default())) {
        tokio::spawn(running.exit);
    }
}

/// Engines cannot keep instances on overlayfs. If no disk is mounted there, their directory is put on the data disk
/// under the root or, without one, in memory.
async fn keep_engine_off_overlay(state: &BootState, facts: &'static EngineFacts, handle: &Handle) {
    let upper = state.upper.clone();
    let mounted = blocking(move || mount_engine_folder(Path::new(facts.directory), upper.as_ref()));
    if let Err(e) = mounted.await {
        handle.warn(format!("{}: no filesystem for the engine: {e}", facts.directory));
    }
}

fn mount_engine_folder(folder: &Path, upper: Option<&Upper>) -> io::Result<()> {
    let mounts = mounts::current();
    if mountinfo::holding(&mounts, folder)
        .is_some_and(|m| m.filesystem != "overlay" && m.at != Path::new("/"))
    {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    match upper {
        Some(Upper::Disk(device)) => bind_from_data_disk(device, folder),
        _ => mount_filesystem("engine", folder, "tmpfs", &[], "mode=0711"),
    }
}

fn bind_from_data_disk(device: &Path, folder: &Path) -> io::Result<()> {
    let disk = Path::new("/run/stead/data");
    fs::create_dir_all(disk)?;
    mount_filesystem(&device.to_string_lossy(), disk, disks::probe::name(Filesystem::Ext4), &[], "")?;
    let name = folder.file_name().map(PathBuf::from).unwrap_or_default();
    let source = disk.join("engine").join(name);
    fs::create_dir_all(&source)?;
    Ok(mount_bind(&source, folder)?)
}

fn warn_of_lost_state(state: &BootState, outcomes: &[DiskStatus], handle: &Handle) {
    let kept = matches!(state.upper, Some(Upper::Disk(_)))
        || outcomes.iter().any(|o| matches!(o.outcome, DiskOutcome::Formatted | DiskOutcome::Found));
    if !kept {
        handle.warn(format!("no data disk (label {DATA_LABEL}): state is lost at reboot"));
    }
}

/// Stops services in order, within the deadline, then the node.
async fn end(handle: &Handle, stop: Stop, supervisor: Option<Supervisor>, mode: Mode) {
    handle.set_phase(NodePhase::Stopping);
    let (word, deadline) = match stop {
        Stop::Shutdown(d) => ("shutting down", d),
        Stop::Reboot(d) => ("rebooting", d),
    };
    handle.note(EventKind::Stop, word);
    if let Some(mut supervisor) = supervisor {
        let deadline = deadline.saturating_sub(LAST_STEPS).max(deadline / 2);
        supervisor.stop(Instant::now() + deadline).await;
    }
    handle.note(EventKind::Stop, "services stopped");
    power::leave(stop, mode).await;
    say(format_args!("the node has stopped"));
}
