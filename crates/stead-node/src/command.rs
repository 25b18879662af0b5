//! Programs of the node's root, run beside everything else: their environment, the wait for their end, their output.
//!
//! Does not reap ([`crate::reaper`]) or supervise ([`crate::services`]).

use crate::{
    log::MAX_LINE_BYTES,
    reaper::{Exit, Running},
};
use rustix::process::{Signal, kill_process, kill_process_group};
use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    process::{Command, Stdio},
    time::Duration,
};
use stead_os::command::PATH;
use tokio::io::AsyncReadExt;

/// How long a killed process is waited for; one in uninterruptible sleep takes longer.
pub(crate) const KILL_GRACE: Duration = Duration::from_secs(2);

/// A command with the environment that every process of the node gets.
pub(crate) fn base_command(argv: &[String], environment: &BTreeMap<String, String>) -> Command {
    let (program, arguments) = argv.split_first().map_or(("", &[][..]), |(p, a)| (p.as_str(), a));
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs([("PATH", PATH), ("HOME", "/root"), ("LANG", "C.UTF-8")])
        .envs(environment)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Waits for a process; if it takes too long, kills its process group and returns `None`.
pub(crate) async fn wait_bounded(mut running: Running, timeout: Duration) -> Option<Exit> {
    match tokio::time::timeout(timeout, &mut running.exit).await {
        Ok(exit) => exit.ok(),
        Err(_) => {
            let _ = kill_process_group(running.pid, Signal::KILL);
            let _ = kill_process(running.pid, Signal::KILL);
            let _ = tokio::time::timeout(KILL_GRACE, &mut running.exit).await;
            None
        }
    }
}

/// The end of a tool's output, at most 64 KiB.
pub(crate) async fn read_some(pipe: impl Into<OwnedFd>) -> String {
    let mut said = Vec::new();
    if let Ok(mut pipe) = tokio::net::unix::pipe::Receiver::from_owned_fd(pipe.into()) {
        let mut buffer = [0u8; 4096];
        while let Ok(n @ 1..) = pipe.read(&mut buffer).await {
            said.extend_from_slice(&buffer[..n]);
            if said.len() > MAX_LINE_BYTES {
                break;
            }
        }
    }
    String::from_utf8_lossy(&said).into_owned()
}
