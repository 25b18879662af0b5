//! The engine's daemon as a process: which one it is, whether it runs, whether it dies at every start. A daemon that is
//! starting listens to nobody yet, so it is found by what it is and where it keeps its state.

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

/// A killed process is gone within milliseconds; one that hangs in the kernel (on a dead disk) may take for ever.
const DEATH: Duration = Duration::from_secs(10);
/// So many starts without an answer, each ended by the daemon itself, and it will not come to anything.
const DEATHS: usize = 3;
/// Far below the shortest pause between two starts, so that none is missed.
const LOOK: Duration = Duration::from_millis(25);

/// Name of a process' executable; none while it is dying, or when it is no business of ours.
pub fn executable(pid: i32) -> Option<String> {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = exe.file_name()?.to_string_lossy();
    // An upgraded package leaves "incusd (deleted)".
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

/// The processes of the engine whose state is in `directory`, wherever that is in their view of the files.
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

/// Where an engine's process keeps its state, as seen from here.
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

/// A zombie is dead: only its parent has not looked yet.
fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|s| s.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z')))
}

/// Sends a signal to each; those that are gone are gone.
pub fn signal(pids: &BTreeSet<i32>, signal: Signal) {
    for pid in pids.iter().filter_map(|p| Pid::from_raw(*p)) {
        let _ = kill_process(pid, signal);
    }
}

/// Waits until all of them have ended.
///
/// # Errors
/// The one that does not.
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

/// Ends when the daemon has died so many times since this was begun. Whether it answers in between is not looked at:
/// whoever waits for that ends this with it.
async fn died(directory: &Path, times: usize) {
    // Looking through all processes takes long on a host with many, and locks that others hold.
    let look = || {
        let directory = directory.to_owned();
        blocking(move || running(&directory))
    };
    let (mut last, mut deaths) = (look().await, 0);
    while deaths < times {
        sleep(LOOK).await;
        let now = look().await;
        // Helpers come and go beside their daemon; it has died when nothing of it is left.
        if !last.is_empty() && now.is_disjoint(&last) {
            deaths += 1;
        }
        last = now;
    }
}

/// Ends when a daemon that was interrupted will not come to anything, and says what it does instead: it dies at every
/// start, or does nothing for as long as it is given.
pub async fn comes_to_nothing(directory: &Path, patience: Duration) -> &'static str {
    match timeout(patience, died(directory, DEATHS)).await {
        Ok(()) => "dies at every start",
        Err(_) => "comes to nothing",
    }
}

/// As [`comes_to_nothing`] with a daemon that has not been interrupted yet; without that this never ends.
pub async fn interrupted_for_good(directory: &Path, patience: Duration) -> &'static str {
    died(directory, 1).await;
    comes_to_nothing(directory, patience).await
}

/// The process at the other end of the engine's socket, if somebody listens there.
pub fn listener(socket: &Path) -> io::Result<Pid> {
    let stream = std::os::unix::net::UnixStream::connect(socket)?;
    Ok(rustix::net::sockopt::socket_peercred(&stream)?.pid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    /// Something that runs under an engine's name, as the kernel tells it, with its state in `directory`.
    fn engine(directory: &Path) -> Child {
        let program = directory.join("incusd");
        if !program.exists() {
            fs::copy("/bin/sleep", &program).unwrap();
        }
        let child = Command::new(program).arg("60").env("INCUS_DIR", directory).spawn().unwrap();
        // It runs before the kernel has put its environment together.
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
    fn a_daemon_is_known_by_where_it_keeps_its_state() {
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
        assert_eq!(timeout(LOOK * 32, &mut watch).await, Ok("comes to nothing"));
        end(again);
    }
}
