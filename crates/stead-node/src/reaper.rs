//! The only place that waits for child processes.
//!
//! PID 1 inherits every orphan, so `waitpid(-1)` must be called, and then nothing else may wait for its own child:
//! every process of the node is started by [`Reaper::spawn`], which reports its end through a channel.

use rustix::process::{Pid, WaitOptions, WaitStatus, wait, waitpid};
use std::{
    collections::HashMap,
    io,
    process::{Child, Command},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{signal::unix::SignalKind, sync::oneshot};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// The shell's exit code: the code, or 128 + signal.
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Code(c) => c,
            Self::Signal(s) => 128 + s,
        }
    }
    /// Whether it exited 0.
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}
impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(c) => write!(f, "exit {c}"),
            Self::Signal(s) => write!(f, "signal {s}"),
        }
    }
}

/// A started process. Never call `wait` on `child`: only take its pipes, and send signals by `pid`.
#[derive(Debug)]
pub struct Running {
    /// Process id.
    pub pid: Pid,
    /// For `stdin`, `stdout`, `stderr` only.
    pub child: Child,
    /// Resolves when the process has ended and been reaped.
    pub exit: oneshot::Receiver<Exit>,
}

type Table = Arc<Mutex<HashMap<Pid, oneshot::Sender<Exit>>>>;

/// Starts processes and reaps them. Clones share one table.
#[derive(Debug, Clone)]
pub struct Reaper {
    table: Table,
}

impl Reaper {
    /// Starts reaping, in the current tokio runtime. `orphans`: reap every child, for PID 1; otherwise only those
    /// started here, for tests, where other code has children too.
    ///
    /// # Errors
    /// The SIGCHLD handler cannot be installed.
    pub fn start(orphans: bool) -> io::Result<Self> {
        let table = Table::default();
        let mut signals = tokio::signal::unix::signal(SignalKind::child())?;
        let shared = Arc::clone(&table);
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                let mut table = shared.lock().unwrap_or_else(PoisonError::into_inner);
                if orphans { reap_all(&mut table) } else { reap_known(&mut table) }
            }
        });
        Ok(Self { table })
    }

    /// Starts a process. The table is locked meanwhile, so that a process that ends at once is not missed.
    ///
    /// # Errors
    /// As [`Command::spawn`].
    pub fn spawn(&self, command: &mut Command) -> io::Result<Running> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        let (sender, exit) = oneshot::channel();
        table.insert(pid, sender);
        Ok(Running { pid, child, exit })
    }
}

fn exit_of(status: WaitStatus) -> Option<Exit> {
    status.exit_status().map(Exit::Code).or_else(|| status.terminating_signal().map(Exit::Signal))
}

fn reap_all(table: &mut HashMap<Pid, oneshot::Sender<Exit>>) {
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if let Some(exit) = exit_of(status)
            && let Some(sender) = table.remove(&pid)
        {
            let _ = sender.send(exit);
        }
    }
}

fn reap_known(table: &mut HashMap<Pid, oneshot::Sender<Exit>>) {
    let pids: Vec<Pid> = table.keys().copied().collect();
    for pid in pids {
        if let Ok(Some((_, status))) = waitpid(Some(pid), WaitOptions::NOHANG)
            && let Some(exit) = exit_of(status)
            && let Some(sender) = table.remove(&pid)
        {
            let _ = sender.send(exit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_childs_exit_is_reported() {
        let reaper = Reaper::start(false).unwrap();
        let mut running = Vec::new();
        for code in 0..20 {
            running.push((
                code,
                reaper.spawn(Command::new("sh").args(["-c", &format!("exit {code}")])).unwrap(),
            ));
        }
        for (code, r) in running {
            assert_eq!(r.exit.await.unwrap(), Exit::Code(code));
        }
        let r = reaper.spawn(Command::new("sh").args(["-c", "kill -9 $$"])).unwrap();
        assert_eq!(r.exit.await.unwrap(), Exit::Signal(9));
    }
}
