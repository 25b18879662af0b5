//! Processes that outlive the command that starts them: detached, logging to a file, known by a lock.
//!
//! Owns starting and ending them. Does not own what they do.

use crate::{
    files::{self, Durability, Lock, RotatingLog},
    sys::{self, ChildSetup},
};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// A supervisor's log starts anew past this size; each start adds a few lines.
const MAX_LOG_BYTES: u64 = 1 << 20;
/// How much of the log an error carries.
const TAIL_BYTES: u64 = 2000;
/// A killed process that has not released its lock within this never will: it hangs in the kernel.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// File beside the lock: its holder is to end. Without meaning while nobody holds the lock.
const ENDING: &str = "ending";
/// Pause between two looks at another process.
const GLANCE: Duration = Duration::from_millis(3);

/// How a process is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Cleanly, in its own time.
    Stop,
    /// At once.
    Kill,
}

impl End {
    fn word(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Kill => "kill",
        }
    }
}

/// A supervising process could not be started or ended.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Files of its directory could not be written.
    #[error("cannot prepare {}", .path.display())]
    Prepare {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program could not be run.
    #[error("cannot run {}", .exe.display())]
    Run {
        /// The program.
        exe: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended before it was up.
    #[error("the supervisor in {} ended at once ({status}): {log}", .path.display())]
    EndedEarly {
        /// Its directory.
        path: PathBuf,
        /// Its exit status.
        status: String,
        /// The end of its log.
        log: String,
    },
    /// It did not come up in time.
    #[error("the supervisor in {} is not up after {seconds} s: {log}", .path.display())]
    NotUp {
        /// Its directory.
        path: PathBuf,
        /// The patience, in seconds.
        seconds: u64,
        /// The end of its log.
        log: String,
    },
    /// Nothing is known of its lock.
    #[error("cannot tell whether a supervisor runs in {}", .path.display())]
    Lock {
        /// Its directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It does not go away, even when killed.
    #[error("supervisor {pid} in {} does not end", .path.display())]
    DoesNotEnd {
        /// Its directory.
        path: PathBuf,
        /// Its process id.
        pid: i32,
    },
}

/// Starts `exe args…` detached, with its output in `<dir>/supervisor.log`, and waits until `is_up` accepts its pid.
/// Nobody may hold `<dir>/lock`. Until the new process holds it ([`hold`]), it dies with the caller: so a process that a killed
/// command was starting can never take a lock that the next command found free.
pub(crate) fn start(
    exe: &Path,
    args: &[&OsStr],
    dir: &Path,
    patience: Duration,
    is_up: impl Fn(i32) -> bool,
) -> Result<i32, DaemonError> {
    let prepare = |source| DaemonError::Prepare { path: dir.to_owned(), source };
    match fs::remove_file(dir.join(ENDING)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(prepare(e)),
        _ => {}
    }
    let log_path = dir.join("supervisor.log");
    RotatingLog::open(log_path.clone(), MAX_LOG_BYTES).and_then(|mut l| l.turn_if_full()).map_err(prepare)?;
    let log = File::options().append(true).create(true).open(&log_path).map_err(prepare)?;
    let said_before = log.metadata().map_err(prepare)?.len();
    let mut command = Command::new(exe);
    command
        .args(args)
        // Programs are found where the command finds them; nothing else of its environment is the supervisor's.
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(prepare)?)
        .stderr(log);
    let not_inherited = sys::open_descriptors();
    let setup =
        ChildSetup { die_with_parent: true, new_session: true, drop: not_inherited, ..Default::default() };
    sys::prepare(&mut command, setup).map_err(prepare)?;
    let mut child = command.spawn().map_err(|source| DaemonError::Run { exe: exe.to_owned(), source })?;
    let pid = child.id() as i32;
    let deadline = Instant::now() + patience;
    let said = || {
        let len = log_path.metadata().map_or(0, |m| m.len());
        files::tail(&log_path, len.saturating_sub(said_before).min(TAIL_BYTES))
    };
    loop {
        if is_up(pid) {
            break;
        }
        if let Ok(Some(status)) = child.try_wait() {
            let (path, status) = (dir.to_owned(), status.to_string());
            return Err(DaemonError::EndedEarly { path, status, log: said() });
        }
        if Instant::now() > deadline {
            let error = DaemonError::NotUp { path: dir.to_owned(), seconds: patience.as_secs(), log: said() };
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        thread::sleep(GLANCE);
    }
    // The caller may live on, and must not keep a zombie.
    let reap = move || drop(child.wait());
    let _ = thread::Builder::new().name("reaper".to_owned()).spawn(reap);
    Ok(pid)
}

/// The started process's side of [`start`]: takes `<dir>/lock` and from then on outlives its starter. `None` when
/// another process has the lock. To be called on the process's first thread: the kernel ties that one to the starter.
pub(crate) fn hold(dir: &Path) -> io::Result<Option<Lock>> {
    let lock = Lock::take(&dir.join("lock"), files::LOCK_PATIENCE)?;
    if lock.is_some() {
        set_parent_process_death_signal(None)?;
    }
    Ok(lock)
}

/// Notes that the holder of `<dir>/lock` is to end. The note comes before the end: if the command is killed in between,
/// the next one does not build on what is about to go.
pub(crate) fn announce_end(dir: &Path, how: End) -> io::Result<()> {
    if !files::is_supervised(dir) {
        return Ok(());
    }
    files::write(&dir.join(ENDING), how.word().as_bytes(), Durability::Volatile)
}

/// How the holder of `<dir>/lock` is to end, if it is.
pub(crate) fn announced_end(dir: &Path) -> Option<End> {
    let said = fs::read(dir.join(ENDING)).ok()?;
    Some(if said == End::Kill.word().as_bytes() { End::Kill } else { End::Stop })
}

/// Sends the holder of `<dir>/lock` one signal after the other, each with its patience, until the lock is free; at last
/// SIGKILL.
pub(crate) fn end(dir: &Path, how: End, signals: &[(Signal, Duration)]) -> Result<(), DaemonError> {
    Lock::is_held(&dir.join("lock")).map_err(|source| DaemonError::Lock { path: dir.to_owned(), source })?;
    // It must end even when the disk is full.
    let _ = announce_end(dir, how);
    for (signal, patience) in signals.iter().copied().chain([(Signal::KILL, KILL_PATIENCE)]) {
        let deadline = Instant::now() + patience;
        let mut told = None;
        while Instant::now() < deadline {
            if !files::is_supervised(dir) {
                return Ok(());
            }
            if let Some(pid) = files::supervisor(dir).filter(|p| told != Some(*p)) {
                if let Some(process) = Pid::from_raw(pid) {
                    let _ = kill_process(process, signal);
                }
                told = Some(pid);
            }
            thread::sleep(GLANCE);
        }
    }
    Err(DaemonError::DoesNotEnd { path: dir.to_owned(), pid: files::supervisor(dir).unwrap_or_default() })
}
