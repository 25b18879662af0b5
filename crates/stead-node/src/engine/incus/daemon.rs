//! The engine's daemon as a process: which one it is, whether it runs, whether it dies at every start. A starting
//! daemon does not listen yet, so it is identified by its executable and its state directory.

use crate::blocking::blocking;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    time::Duration,
};
use stead_model::EngineFacts;
use tokio::time::{Instant, sleep, timeout};

/// How long a killed process is waited for: it ends within milliseconds, unless it hangs in the kernel on a dead disk.
const DEATH: Duration = Duration::from_secs(10);
/// After this many starts without an answer, each ended by the daemon itself, it will not succeed.
const DEATHS: usize = 3;
/// Pause between two looks: far below the shortest pause between two starts, so that none is missed.
const LOOK: Duration = Duration::from_millis(25);

/// Name of a process' executable; `None` while it is dying or if we may not see it.
pub fn executable(pid: i32) -> Option<String> {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = exe.file_name()?.to_string_lossy();
    // After an upgrade of the package it is "incusd (deleted)".
    Some(name.split(' ').next()?.to_owned())
}

/// Whether an executable of this name is an engine's.
pub fn is_engine(name: &str) -> bool {
    facts(name).is_some()
}

/// The engine whose daemon has this name.
fn facts(daemon: &str) -> Option<&'static EngineFacts> {
    EngineFacts::all().find(|f| f.daemon == daemon)
}

/// The processes of the engine with its state in `directory`, whatever its path in their mount namespace.
pub fn running(directory: &Path) -> BTreeSet<i32> {
    let identity = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    let Some(ours) = identity(directory) else { return BTreeSet::new() };
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .filter(|pid| state_directory(*pid).is_some_and(|d| identity(&d) == Some(ours)))
        .filter(|pid| alive(*pid))
        .collect()
}

/// The state directory of an engine's process, as seen from here.
fn state_directory(pid: i32) -> Option<PathBuf> {
    let name = executable(pid)?;
    let facts = facts(&name)?;
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let said = environment
        .split(|b| *b == 0)
        .find_map(|v| v.strip_prefix(facts.directory_variable.as_bytes())?.strip_prefix(b"="))
        .filter(|v| !v.is_empty());
    let path = said.map_or(Path::new(facts.directory), |v| Path::new(OsStr::from_bytes(v)));
    Some(Path::new(&format!("/proc/{pid}/root")).join(path.strip_prefix("/").ok()?))
}

/// A zombie counts as dead: its parent has not reaped it yet.
fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|s| s.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z')))
}

/// Sends a signal to each process; those that have ended are ignored.
pub fn signal(pids: &BTreeSet<i32>, signal: Signal) {
    for pid in pids.iter().filter_map(|p| Pid::from_raw(*p)) {
        let _ = kill_process(pid, signal);
    }
}

/// Waits until all of them have ended.
///
/// # Errors
/// The process that does not end.
pub async fn await_death(pids: &BTreeSet<i32>) -> Result<(), i32> {
    let deadline = Instant::now() + DEATH;
    while let Some(pid) = pids.iter().find(|p| alive(**p)) {
        if Instant::now() > deadline {
            return Err(*pid);
        }
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Ends when the daemon has died `times` times since this was called. Does not notice whether it answers in between:
/// the caller that waits for an answer drops this.
async fn died(directory: &Path, times: usize) {
    // Searching all processes takes long on a host with many, and needs locks that others hold.
    let look = || {
        let directory = directory.to_owned();
        blocking(move || running(&directory))
    };
    let (mut last, mut deaths) = (look().await, 0);
    while deaths < times {
        sleep(LOOK).await;
        let now = look().await;
        // The daemon has short-lived helpers; it has died when none of its processes is left.
        if !last.is_empty() && now.is_disjoint(&last) {
            deaths += 1;
        }
        last = now;
    }
}

/// Ends when an interrupted daemon will not succeed, and returns what it does instead: it dies at every start, or makes
/// no progress within `patience`.
pub async fn comes_to_nothing(directory: &Path, patience: Duration) -> &'static str {
    match timeout(patience, died(directory, DEATHS)).await {
        Ok(()) => "dies at every start",
        Err(_) => "makes no progress",
    }
}

/// As [`comes_to_nothing`], for a daemon that was not interrupted yet; without an interruption this never ends.
pub async fn interrupted_for_good(directory: &Path, patience: Duration) -> &'static str {
    died(directory, 1).await;
    comes_to_nothing(directory, patience).await
}

/// The process that listens on the engine's socket, if any.
pub fn listener(socket: &Path) -> io::Result<Pid> {
    let stream = std::os::unix::net::UnixStream::connect(socket)?;
    Ok(rustix::net::sockopt::socket_peercred(&stream)?.pid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    /// A process with an engine's executable name and its state in `directory`.
    fn engine(directory: &Path) -> Child {
        let program = directory.join("incusd");
        if !program.exists() {
            fs::copy("/bin/sleep", &program).unwrap();
        }
        let child = Command::new(program).arg("60").env("INCUS_DIR", directory).spawn().unwrap();
        // It runs before the kernel has set up its environment.
        while fs::read(format!("/proc/{}/environ", child.id())).is_ok_and(|e| e.is_empty()) {
            std::thread::yield_now();
        }
        child
    }
    fn end(mut child: Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    fn pid(child: &Child) -> i32 {
        i32::try_from(child.id()).unwrap()
    }

    #[test]
    fn a_daemon_is_identified_by_its_state_directory() {
        let (ours, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert!(running(ours.path()).is_empty());
        let (a, b) = (engine(ours.path()), engine(other.path()));
        assert_eq!(running(ours.path()), BTreeSet::from([pid(&a)]));
        assert_eq!(running(other.path()), BTreeSet::from([pid(&b)]));
        assert!(running(&ours.path().join("none")).is_empty());
        end(a);
        assert!(running(ours.path()).is_empty());
        end(b);
    }

    #[tokio::test]
    async fn a_daemon_that_dies_at_every_start_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let watch = comes_to_nothing(dir.path(), Duration::from_secs(60));
        tokio::pin!(watch);
        let mut noticed = None;
        for n in 0..DEATHS {
            let child = engine(dir.path());
            let lived = timeout(LOOK * 4, &mut watch).await;
            assert!(lived.is_err(), "noticed after {n} deaths");
            end(child);
            noticed = timeout(LOOK * 4, &mut watch).await.ok();
        }
        assert_eq!(noticed, Some("dies at every start"));
    }

    #[tokio::test]
    async fn a_daemon_is_given_time_from_its_death_on() {
        let dir = tempfile::tempdir().unwrap();
        let watch = interrupted_for_good(dir.path(), LOOK * 8);
        tokio::pin!(watch);
        let child = engine(dir.path());
        assert!(timeout(LOOK * 16, &mut watch).await.is_err(), "nothing had interrupted it");
        end(child);
        let again = engine(dir.path());
        assert_eq!(timeout(LOOK * 32, &mut watch).await, Ok("makes no progress"));
        end(again);
    }
}
