//! One process per machine: start it, watch it, start it again on reboot, take everything down with it.
//!
//! ```text
//!            prepare        boot              exit
//! starting ----------> . ----------> running ---.--> reboot: boot again
//!                      ^                |       |
//!                      '----------------|-------'--> power off, or anything else ----.
//!                                       |                                            v
//!                                       | SIGTERM (polite, then SIGKILL           stopping: all it made is removed
//!                                       |   after stop_timeout_s),                   |
//!                                       | SIGQUIT (SIGKILL)                          v
//!                                       '-----------------------> stopping --> stopped, Ok; or failed, Err
//! ```
//! Owns the machine's directory while its lock is held. Does not own the network the machine is on.

mod control;

pub use control::{announce_end, cleanup, finish_end, kill, last_state, observe, spawn, stop};

use crate::{
    CgroupError, DaemonError, LinkError, MachinePhase, MachineSpec, MachineState, TeardownError,
    backend::{namespace, qemu},
    daemon,
    files::{self, Durability},
    layers::LayerError,
    tether::Tethered,
};
use rustix::process::Signal;
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use stead_model::{Failure, NodeName, cluster::Backend};
use tokio::signal::unix::{SignalKind, signal};

/// A machine that reboots again sooner than this is in a loop, and is started slower and slower.
const SHORT_LIFE: Duration = Duration::from_secs(5);
/// The slowest a machine in a reboot loop is started again.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A killed machine is gone within this, or the kernel holds it for ever.
const KILL_PATIENCE: Duration = Duration::from_secs(20);

impl Failure for MachineError {}

/// Why a machine could not be started, watched or stopped.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Another supervisor holds the lock.
    #[error("machine in {} already runs", .0.display())]
    AlreadyRuns(PathBuf),
    /// A file of the machine's directory.
    #[error("cannot {operation} {}", .path.display())]
    File {
        /// `write`, `lock`, …
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A disk's file or its loop device.
    #[error("cannot attach disk {}", .path.display())]
    Disk {
        /// The disk's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its layers.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// Its cgroups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Its interfaces.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Its process.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// What an earlier boot left could not be removed.
    #[error("cannot remove what the machine left")]
    Teardown(#[source] TeardownError),
    /// The cluster's network is not there.
    #[error("network namespace {netns} of the cluster cannot be entered")]
    NoNetwork {
        /// Its name.
        netns: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused something on the way to PID 1.
    #[error("cannot start machine {name}")]
    Start {
        /// The machine.
        name: NodeName,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The supervisor itself could not get what it needs.
    #[error("cannot watch the machine's process")]
    Thread(#[source] io::Error),
    /// A program could not be run.
    #[error("cannot run {}", .exe.display())]
    Exec {
        /// The program.
        exe: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The spec does not say all a backend needs.
    #[error("machine {name} cannot be a {backend} machine: {why}")]
    Spec {
        /// The machine.
        name: NodeName,
        /// The backend.
        backend: Backend,
        /// What is missing.
        why: String,
    },
    /// A program is not installed.
    #[error("{program} is not installed; it comes with the package {package}")]
    Missing {
        /// The program.
        program: String,
        /// Debian's package.
        package: &'static str,
    },
    /// The machine ended neither by power off nor by reboot.
    #[error("machine {name} crashed: {why}; the end of its console: {console}")]
    Crashed {
        /// The machine.
        name: NodeName,
        /// How it ended.
        why: String,
        /// The end of its console.
        console: String,
    },
}

impl From<io::Error> for MachineError {
    fn from(source: io::Error) -> Self {
        Self::Thread(source)
    }
}

impl MachineError {
    /// Wraps an error about a file.
    pub(crate) fn file<'a>(
        operation: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> Self + Copy + 'a {
        move |source| Self::File { operation, path: path.to_owned(), source }
    }
}

/// How a boot ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Exit {
    PowerOff,
    Reboot,
    Crashed(String),
}

/// A machine that has been started.
#[derive(Debug)]
pub(crate) enum Running {
    /// Its init is our child.
    Init(Tethered),
    /// QEMU is our child.
    Qemu(qemu::Vm),
}

impl Running {
    fn pid(&self) -> i32 {
        match self {
            Self::Init(init) => init.pid,
            Self::Qemu(vm) => vm.pid(),
        }
    }
    /// Waits for its end; may be dropped and called again.
    async fn exit(&mut self) -> Exit {
        match self {
            Self::Init(init) => match (&mut init.exit).await {
                Ok(Ok(status)) => namespace::exit_of(status),
                Ok(Err(e)) => Exit::Crashed(format!("cannot wait for init: {e}")),
                Err(_) => Exit::Crashed("its thread is gone".to_owned()),
            },
            Self::Qemu(vm) => vm.exit().await,
        }
    }
    fn ask_to_end(&self) {
        match self {
            Self::Init(init) => init.signal(Signal::TERM),
            Self::Qemu(vm) => vm.ask_to_end(),
        }
    }
    /// A guest's kernel forgets a press of the button when nothing listens to it yet. A signal is not lost.
    fn ask_again(&self) {
        match self {
            Self::Init(_) => {}
            Self::Qemu(vm) => vm.ask_to_end(),
        }
    }
    fn kill(&self) {
        match self {
            Self::Init(init) => init.signal(Signal::KILL),
            Self::Qemu(vm) => vm.kill(),
        }
    }
}

/// A machine of either backend, between boots.
#[derive(Debug)]
enum Machine {
    Namespace(namespace::Machine),
    Qemu(qemu::Machine),
}

impl Machine {
    fn prepare(spec: &Arc<MachineSpec>) -> Result<Self, MachineError> {
        match spec.backend {
            Backend::Namespace => Ok(Self::Namespace(namespace::Machine::prepare(spec)?)),
            Backend::Qemu => Ok(Self::Qemu(qemu::Machine::prepare(spec)?)),
            Backend::Auto => Err(MachineError::Spec {
                name: spec.name.clone(),
                backend: spec.backend,
                why: "the backend must have been chosen by now".to_owned(),
            }),
        }
    }
    async fn boot(&mut self) -> Result<Running, MachineError> {
        match self {
            Self::Namespace(m) => m.boot().await,
            Self::Qemu(m) => m.boot().await,
        }
    }
}

/// Body of `stead machine run FILE`: supervises the machine until it powers off or is stopped. Blocks; for the process's
/// first thread, outside of any runtime. Whatever the outcome, all it made is gone when this returns.
///
/// # Errors
/// [`MachineError::AlreadyRuns`] when another supervisor has it; otherwise what kept it from starting, how it crashed,
/// or what could not be removed.
pub fn run(spec: MachineSpec) -> Result<(), MachineError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(MachineError::file("supervise the machine in", &spec.dir))?;
    runtime.block_on(supervise(Arc::new(spec)))
}

/// The supervisor's state and the file others read it from.
struct Ledger {
    path: PathBuf,
    state: MachineState,
}

impl Ledger {
    fn phase(&mut self, phase: MachinePhase) -> Result<(), MachineError> {
        self.state.phase = phase;
        self.write()
    }
    fn write(&self) -> Result<(), MachineError> {
        files::write_json(&self.path, &self.state, Durability::Volatile)
            .map_err(MachineError::file("write", &self.path))
    }
}

async fn supervise(spec: Arc<MachineSpec>) -> Result<(), MachineError> {
    let mut wishes = Wishes::listen().map_err(MachineError::file("take signals for", &spec.dir))?;
    let _lock = daemon::hold(&spec.dir)
        .map_err(MachineError::file("lock", &spec.dir))?
        .ok_or_else(|| MachineError::AlreadyRuns(spec.dir.clone()))?;
    let mut ledger = Ledger {
        path: spec.dir.join("state.json"),
        state: MachineState {
            supervisor_pid: std::process::id() as i32,
            machine_pid: None,
            boots: 0,
            phase: MachinePhase::Starting,
            error: None,
        },
    };
    ledger.write()?;
    let lived = live(&spec, &mut ledger, &mut wishes).await;
    ledger.state.machine_pid = None;
    ledger.phase(MachinePhase::Stopping)?;
    let removed = cleanup(&spec).map_err(MachineError::Teardown);
    let outcome = lived.and(removed);
    ledger.state.error = outcome.as_ref().err().map(chain);
    ledger.phase(if outcome.is_ok() { MachinePhase::Stopped } else { MachinePhase::Failed })?;
    outcome
}

/// What the supervisor was told by signals.
struct Wishes {
    end: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    kill: tokio::signal::unix::Signal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    End,
    Kill,
}

impl Wishes {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            end: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            kill: signal(SignalKind::quit())?,
        })
    }
    async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.end.recv() => Wish::End,
            _ = self.interrupt.recv() => Wish::End,
            _ = self.kill.recv() => Wish::Kill,
        }
    }
}

async fn live(spec: &Arc<MachineSpec>, ledger: &mut Ledger, wishes: &mut Wishes) -> Result<(), MachineError> {
    let mut machine = Machine::prepare(spec)?;
    let mut pause = Duration::ZERO;
    loop {
        let born = Instant::now();
        let mut running = machine.boot().await?;
        ledger.state.machine_pid = Some(running.pid());
        ledger.state.boots += 1;
        ledger.phase(MachinePhase::Running)?;
        let exit = tokio::select! {
            exit = running.exit() => exit,
            wish = wishes.next() => {
                ledger.phase(MachinePhase::Stopping)?;
                end(spec, &mut running, wish, wishes).await;
                return Ok(());
            }
        };
        ledger.state.machine_pid = None;
        match exit {
            Exit::PowerOff => return Ok(()),
            Exit::Crashed(why) => {
                let console = files::tail(&spec.dir.join("console.log"), 1000);
                return Err(MachineError::Crashed { name: spec.name.clone(), why, console });
            }
            Exit::Reboot => ledger.phase(MachinePhase::Starting)?,
        }
        pause = match born.elapsed() < SHORT_LIFE {
            true => (pause * 2).clamp(Duration::from_millis(100), LONGEST_PAUSE),
            false => Duration::ZERO,
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = wishes.next() => return Ok(()),
        }
    }
}

/// How long a guest has before its power button is pressed again.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// Ends a running machine: politely within its time unless killing is wished, now or while it stops.
async fn end(spec: &MachineSpec, running: &mut Running, wish: Wish, wishes: &mut Wishes) {
    if wish == Wish::End {
        running.ask_to_end();
        let deadline = tokio::time::sleep(Duration::from_secs(u64::from(spec.stop_timeout_s)));
        tokio::pin!(deadline);
        let mut again = tokio::time::interval_at(tokio::time::Instant::now() + ASK_AGAIN, ASK_AGAIN);
        loop {
            tokio::select! {
                _ = again.tick() => running.ask_again(),
                _ = running.exit() => return,
                () = &mut deadline => break,
                wish = wishes.next() => if wish == Wish::Kill { break },
            }
        }
    }
    running.kill();
    let _ = tokio::time::timeout(KILL_PATIENCE, running.exit()).await;
}

/// An error with all its causes, in one line.
pub(crate) fn chain(error: &MachineError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
