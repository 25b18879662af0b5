//! Readiness checks of services.

use crate::{
    command::{base_command, wait_bounded},
    reaper::Reaper,
};
use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    time::Duration,
};
use stead_model::recipe::Readiness;
use tokio::net::{TcpStream, UnixStream};

/// Pause between two checks: short, because a check takes microseconds and every dependent waits for it.
const PAUSE: Duration = Duration::from_millis(5);
/// Pause between two runs of a check command, each of which is a process.
const COMMAND_PAUSE: Duration = Duration::from_millis(100);
/// A check command that runs longer is killed and counts as not ready.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// Resolves once the service is ready; the caller drops this when the service ends.
pub async fn wait(readiness: &Readiness, reaper: &Reaper) {
    while !is_ready(readiness, reaper).await {
        let pause = if matches!(readiness, Readiness::Command(_)) { COMMAND_PAUSE } else { PAUSE };
        tokio::time::sleep(pause).await;
    }
}

async fn is_ready(readiness: &Readiness, reaper: &Reaper) -> bool {
    match readiness {
        Readiness::UnixSocket(path) => UnixStream::connect(path).await.is_ok(),
        Readiness::TcpPort(port) => {
            TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).await.is_ok()
                || TcpStream::connect((Ipv6Addr::LOCALHOST, *port)).await.is_ok()
        }
        Readiness::Path(path) => Path::new(path).exists(),
        Readiness::Command(command) => match reaper.spawn(&mut base_command(command, &Default::default())) {
            Ok(running) => wait_bounded(running, COMMAND_TIMEOUT).await.is_some_and(|e| e.success()),
            Err(_) => false,
        },
    }
}
