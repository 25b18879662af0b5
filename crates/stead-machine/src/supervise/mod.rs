//! One process per machine: start it, watch it, start it again on reboot, take everything down with it.
//!
//! ```text
//!            prepare        boot              exit
//! starting ----------> . ----------> running ---.--> reboot: boot again
//!                      ^                |       |
//!                      '----------------|-------'--> power off, or anything else ----.
//!                                       |                                            v
//!                                       | SIGTERM (clean, then SIGKILL            stopping: all it made is removed
//!                                       |   after stop_timeout_s),                   |
//!                                       | SIGQUIT (SIGKILL)                          v
//!                                       '-----------------------> stopping --> stopped, Ok; or failed, Err
//! ```
//! Owns the machine's directory while its lock is held. Does not own the network the machine is on.

mod control;

pub use control::{announce_end, cleanup, finish_end, kill, last_state, observe, spawn, stop};

use crate::{
    MachineError, MachinePhase, MachineSpec, MachineState, backend, console, daemon,
    files::{self, Durability},
    guest::{Exit, Guest},
};
use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use stead_os::{PathContext, chain};
use tokio::signal::unix::{SignalKind, signal};

/// A machine that reboots sooner than this is in a loop; the pause before its next start doubles.
const SHORT_LIFE: Duration = Duration::from_secs(5);
/// The longest pause before a machine in a reboot loop starts again.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A killed machine that is not gone within this never will be: it hangs in the kernel.
const KILL_PATIENCE: Duration = Duration::from_secs(20);

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
        .at("supervise the machine in", &spec.dir)?;
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
        Ok(files::write_json(&self.path, &self.state, Durability::Volatile).at("write", &self.path)?)
    }
}

async fn supervise(spec: Arc<MachineSpec>) -> Result<(), MachineError> {
    let mut wishes = Wishes::listen().at("take signals for", &spec.dir)?;
    let _lock = daemon::hold(&spec.dir)
        .at("lock", &spec.dir)?
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
    ledger.state.error = outcome.as_ref().err().map(|e| chain(e));
    ledger.phase(if outcome.is_ok() { MachinePhase::Stopped } else { MachinePhase::Failed })?;
    outcome
}

/// The signals to the supervisor.
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
    let mut machine = backend::driver(spec.backend).prepare(spec)?;
    let mut pause = Duration::ZERO;
    loop {
        let born = Instant::now();
        let mut guest = machine.boot().await?;
        ledger.state.machine_pid = Some(guest.pid());
        ledger.state.boots += 1;
        ledger.phase(MachinePhase::Running)?;
        let exit = tokio::select! {
            exit = guest.exit() => exit,
            wish = wishes.next() => {
                ledger.phase(MachinePhase::Stopping)?;
                end(spec, &mut *guest, wish, wishes).await;
                return Ok(());
            }
        };
        ledger.state.machine_pid = None;
        match exit {
            Exit::PowerOff => return Ok(()),
            Exit::Crashed(why) => {
                let console = console::tail(spec);
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

/// Ends a running guest: cleanly within its time, or at once if a signal asks for that, now or while it stops.
async fn end(spec: &MachineSpec, guest: &mut dyn Guest, wish: Wish, wishes: &mut Wishes) {
    if wish == Wish::End {
        guest.ask_to_end();
        let deadline = tokio::time::sleep(Duration::from_secs(u64::from(spec.stop_timeout_s)));
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                _ = guest.exit() => return,
                () = &mut deadline => break,
                wish = wishes.next() => if wish == Wish::Kill { break },
            }
        }
    }
    guest.kill();
    let _ = tokio::time::timeout(KILL_PATIENCE, guest.exit()).await;
}
