//! The console of a VM: a VNC server with a terminal that runs a command in the instance.
//!
//! Owns its start and end. It is a separate process ([`serve`]), because it outlives the script that starts it, and is
//! identified by the lock on its directory: a process id in a file proves nothing. It ends with its instance. The
//! protocol is in [`rfb`], the terminal and its picture in [`screen`], keys in [`keys`].

pub mod keys;
pub mod rfb;
pub mod screen;
mod serve;

pub use serve::serve;

use crate::{
    context::Context, disks::Place, document::Graphics, engine::Engine, ids::InstanceName, lxdrc::Lxdrc,
};
use rustix::{
    fs::{FlockOperation, flock},
    process::{Pid, Signal, kill_process},
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr},
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use stead_incus::Endpoint;
use stead_model::Failure;

/// Time limit for a console to listen or report an error.
const UP_PATIENCE: Duration = Duration::from_secs(10);
/// Time limit for a console to end before it is killed.
const END_PATIENCE: Duration = Duration::from_secs(5);
const GLANCE: Duration = Duration::from_millis(20);

/// The configuration of a console process, in a file that only root can read.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The instance.
    pub instance: String,
    /// The engine's socket.
    pub socket: PathBuf,
    /// Where it listens.
    pub listen: IpAddr,
    /// Where it listens.
    pub port: u16,
    /// A secret; `None`: everyone may connect.
    pub password: Option<String>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Pixels.
    pub width: u16,
    /// Pixels.
    pub height: u16,
    /// Seconds without a key after which the command ends; 0: never.
    pub timeout_s: u32,
}

impl std::fmt::Debug for Spec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spec")
            .field("instance", &self.instance)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

impl Failure for ConsoleError {}

/// A console could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// Its files cannot be written.
    #[error("cannot prepare the console in {}", .path.display())]
    Prepare {
        /// Its directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its process cannot be started.
    #[error("cannot run the console of {instance}")]
    Run {
        /// Whose.
        instance: InstanceName,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended at once.
    #[error("the console of {instance} did not start: {said}")]
    NotUp {
        /// Whose.
        instance: InstanceName,
        /// Its output.
        said: String,
    },
}

/// The console by GRAPHICS and lxdrc; `Err`: why there is none.
///
/// # Errors
/// It would be open to everyone.
pub fn spec(rc: &Lxdrc, socket: &Path, name: &InstanceName, graphics: &Graphics) -> Result<Spec, String> {
    let listen = graphics.listen.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let password = graphics.password.clone();
    if password.is_none() && !listen.is_loopback() && !rc.vnc.allow_no_password {
        return Err(format!(
            "no console on {listen}:{}: without a password it would be open to everyone (set GRAPHICS/PASSWD, LISTEN=127.0.0.1, or :allow_no_password: in lxdrc)",
            graphics.port
        ));
    }
    let command = graphics.command.as_deref().unwrap_or(&rc.vnc.command);
    Ok(Spec {
        instance: name.to_string(),
        socket: socket.to_owned(),
        listen,
        port: graphics.port,
        password,
        command: command.split_whitespace().map(str::to_owned).collect(),
        width: rc.vnc.width,
        height: rc.vnc.height,
        timeout_s: rc.vnc.timeout_s,
    })
}

/// Starts the console of a running instance, in place of an existing one. Returns a note for the log: a missing console
/// is no reason to keep a VM from running.
///
/// # Errors
/// It could not be started.
pub fn start(
    context: &Context,
    place: &Place,
    rc: &Lxdrc,
    engine: &Engine,
    name: &InstanceName,
    graphics: &Graphics,
) -> Result<Vec<String>, ConsoleError> {
    end(place, name);
    let Endpoint::Unix(socket) = engine.client.endpoint() else { return Ok(Vec::new()) };
    let spec = match spec(rc, socket, name, graphics) {
        Ok(spec) => spec,
        Err(why) => return Ok(vec![why]),
    };
    let directory = directory(place, name);
    let prepare = |source| ConsoleError::Prepare { path: directory.clone(), source };
    let file = directory.join("spec.json");
    let log = (|| {
        fs::create_dir_all(&directory)?;
        let _ = fs::remove_file(&file);
        let mut out = File::options().write(true).create_new(true).mode(0o600).open(&file)?;
        out.write_all(&serde_json::to_vec(&spec)?)?;
        File::options().write(true).create(true).truncate(true).mode(0o600).open(directory.join("log"))
    })()
    .map_err(prepare)?;
    let run = |source| ConsoleError::Run { instance: name.clone(), source };
    let mut command = Command::new(&context.program);
    command
        .args(["one", "console"])
        .arg(&directory)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        // The caller of the script waits until its output is closed, so the console must not hold it open.
        .stdout(Stdio::piped())
        .stderr(log)
        .process_group(0);
    let mut child = command.spawn().map_err(run)?;
    let mut ready = [0; 1];
    let mut stdout = child.stdout.take();
    // It writes a byte once it listens, and ends without one if it cannot.
    let up = stdout
        .as_mut()
        .is_some_and(|out| wait_readable(out, UP_PATIENCE) && out.read_exact(&mut ready).is_ok());
    if !up {
        let _ = child.kill();
        let _ = child.wait();
        let said = fs::read_to_string(directory.join("log")).unwrap_or_default();
        return Err(ConsoleError::NotUp { instance: name.clone(), said: said.trim().replace('\n', " ") });
    }
    Ok(Vec::new())
}

fn wait_readable(fd: &impl std::os::fd::AsFd, patience: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    let timeout = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: 0 };
    poll(&mut fds, Some(&timeout)).is_ok_and(|n| n > 0)
}

/// Ends the console of an instance, if it has one.
pub fn end(place: &Place, name: &InstanceName) {
    let directory = directory(place, name);
    let lock = directory.join("lock");
    let deadline = Instant::now() + END_PATIENCE;
    let mut told = false;
    while let Some(pid) = holder(&lock) {
        let signal = if Instant::now() > deadline { Signal::KILL } else { Signal::TERM };
        if (!told || signal == Signal::KILL)
            && let Some(process) = Pid::from_raw(pid)
        {
            let _ = kill_process(process, signal);
            told = true;
        }
        if Instant::now() > deadline + END_PATIENCE {
            break;
        }
        thread::sleep(GLANCE);
    }
    let _ = fs::remove_dir_all(&directory);
}

/// The process that holds a lock.
fn holder(lock: &Path) -> Option<i32> {
    let file = File::options().read(true).write(true).open(lock).ok()?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
        return None;
    }
    fs::read_to_string(lock).ok()?.trim().parse().ok()
}

fn directory(place: &Place, name: &InstanceName) -> PathBuf {
    place.directory(name).join("console")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graphics(xml: &str) -> Graphics {
        let text = format!(
            "<VM><ID>7</ID><TEMPLATE><GRAPHICS><TYPE>vnc</TYPE><PORT>5907</PORT>{xml}</GRAPHICS></TEMPLATE></VM>"
        );
        crate::document::read(&text).unwrap().0.graphics.unwrap()
    }

    #[test]
    fn other_hosts_need_a_password() {
        let name = "one-7".parse().unwrap();
        let mut rc = Lxdrc::default();
        let made = |rc: &Lxdrc, xml: &str| spec(rc, Path::new("/s"), &name, &graphics(xml));
        assert!(made(&rc, "").is_err());
        assert!(made(&rc, "<LISTEN>0.0.0.0</LISTEN>").is_err());
        assert!(made(&rc, "<LISTEN>127.0.0.1</LISTEN>").is_ok());
        let with = made(&rc, "<PASSWD>x y</PASSWD><COMMAND>/bin/sh -l</COMMAND>").unwrap();
        assert_eq!(with.command, ["/bin/sh", "-l"]);
        assert!(!format!("{with:?}").contains("x y"));
        rc.vnc.allow_no_password = true;
        assert_eq!(made(&rc, "").unwrap().command, ["/bin/login"]);
    }
}
