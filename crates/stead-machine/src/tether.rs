//! Child processes that die with their supervisor, and may be started inside a network namespace.
//!
//! Each has a thread that stays until the child ends: the kernel ties the parent-death signal to that thread.

use crate::{
    netns,
    sys::{self, ChildSetup},
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    process::{Child, Command, ExitStatus},
    thread,
};
use tokio::sync::oneshot;

/// A running child.
#[derive(Debug)]
pub(crate) struct Tethered {
    pub pid: i32,
    exit: oneshot::Receiver<io::Result<ExitStatus>>,
    pidfd: OwnedFd,
}

impl Tethered {
    /// Starts `command` (inside `netns`, when given), passing on the descriptors `keep`.
    pub(crate) async fn start(
        mut command: Command,
        netns: Option<OwnedFd>,
        keep: Vec<OwnedFd>,
    ) -> io::Result<Self> {
        sys::prepare(&mut command, ChildSetup { die_with_parent: true, keep, ..Default::default() })?;
        Self::start_by(move || {
            if let Some(netns) = netns {
                netns::enter(netns.as_fd())?;
            }
            command.spawn()
        })
        .await
    }

    /// Calls `spawn` on the child's thread. The command must be set up to die with its parent.
    pub(crate) async fn start_by<E: From<io::Error> + Send + 'static>(
        spawn: impl FnOnce() -> Result<Child, E> + Send + 'static,
    ) -> Result<Self, E> {
        let (started, is_started) = oneshot::channel();
        let (ended, exit) = oneshot::channel();
        thread::Builder::new().name("tether".to_owned()).spawn(move || {
            match spawn().and_then(|child| Ok(watched(child)?)) {
                Ok((mut child, pidfd)) => {
                    let _ = started.send(Ok((child.id() as i32, pidfd)));
                    let _ = ended.send(child.wait());
                }
                Err(e) => drop(started.send(Err(e))),
            }
        })?;
        let (pid, pidfd) =
            is_started.await.map_err(|_| io::Error::other("the thread that starts it is gone"))??;
        Ok(Self { pid, exit, pidfd })
    }

    /// Waits for its end; may be dropped and called again until it has answered.
    pub(crate) async fn ended(&mut self) -> io::Result<ExitStatus> {
        (&mut self.exit)
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the thread that waits for it is gone")))
    }

    /// How it ended, or `None` while it runs. Not to be called again after it has answered.
    pub(crate) fn has_ended(&mut self) -> Option<io::Result<ExitStatus>> {
        self.exit.try_recv().ok()
    }

    /// Sends a signal. Does nothing when the child has ended.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }
}

fn watched(mut child: Child) -> io::Result<(Child, OwnedFd)> {
    let pidfd = Pid::from_raw(child.id() as i32)
        .ok_or(rustix::io::Errno::SRCH)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
    match pidfd {
        Ok(pidfd) => Ok((child, pidfd)),
        Err(e) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(e.into())
        }
    }
}
