//! Starts a command in its own session, on pipes or a terminal, and moves its bytes.

use crate::reaper::{Exit, Reaper};
use bytes::Bytes;
use rustix::{
    fs::{Access, OFlags, access, fcntl_getfl, fcntl_setfl},
    io::Errno,
    process::{Pid, ioctl_tiocsctty, setsid, umask},
    pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcgetpgrp, tcsetattr, tcsetwinsize},
};
use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};
use stead_model::agent::{ExecExit, ExecRequest, Size};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::oneshot,
    time::timeout,
};

/// Bytes per read: the size of a TLS record.
const CHUNK: usize = 16 * 1024;
/// Output of a terminal passes through a kernel worker, so the last of it may arrive after the command's end.
const TTY_GRACE: Duration = Duration::from_millis(100);
/// Most output of a terminal that the kernel holds: 64 KiB of buffers (tty_buffer.c) and 4 KiB of line discipline,
/// rounded up.
const TTY_CAPACITY: usize = 128 * 1024;
/// The minimal environment.
const ENVIRONMENT: [(&str, &str); 5] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("USER", "root"),
    ("LOGNAME", "root"),
    ("LANG", "C.UTF-8"),
];
/// ^D, by which a terminal's user ends the input.
const END_OF_INPUT: u8 = 4;

/// A started command.
pub struct Started {
    pub pid: Pid,
    pub exit: oneshot::Receiver<Exit>,
    pub channel: Channel,
    /// Not waited for here: the reaper does.
    pub _child: Child,
}

/// Input and output of a command.
pub enum Channel {
    Pipes { stdin: Mutex<Option<std::sync::Arc<Pipe>>>, stdout: Pipe, stderr: Pipe },
    Tty(Pipe),
}

/// One end of a pipe, or a terminal's master.
pub struct Pipe {
    fd: AsyncFd<OwnedFd>,
    grace: Duration,
}

/// Starts the requested command.
///
/// # Errors
/// The exit to answer with: 127 for not found, 126 for anything else.
pub fn start(request: &ExecRequest, reaper: &Reaper) -> Result<Started, ExecExit> {
    let cannot = |error: String| ExecExit { code: 126, error: Some(error) };
    let [program, arguments @ ..] = request.command.as_slice() else {
        return Err(cannot("the command is empty".to_owned()));
    };
    if let Some(key) = request.environment.keys().find(|k| k.is_empty() || k.contains('=')) {
        return Err(cannot(format!("{key:?} is not a valid name of an environment variable")));
    }
    let cwd = match &request.cwd {
        Some(cwd) if Path::new(cwd).is_dir() => cwd,
        Some(cwd) => return Err(cannot(format!("cannot enter {cwd:?}: no such directory"))),
        None if access("/root", Access::EXEC_OK).is_ok() => "/root",
        None => "/",
    };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(ENVIRONMENT).current_dir(cwd);
    if request.tty.is_some() {
        command.env("TERM", "xterm-256color");
    }
    command.envs(&request.environment);
    run(command, request.tty, reaper).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => ExecExit { code: 127, error: Some(format!("{program:?} not found")) },
        _ => cannot(format!("cannot run {program:?}: {e}")),
    })
}

fn run(mut command: Command, tty: Option<Size>, reaper: &Reaper) -> io::Result<Started> {
    let master = match tty {
        Some(size) => {
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            let master = openpt(flags)?;
            grantpt(&master)?;
            unlockpt(&master)?;
            tcsetwinsize(&master, winsize(size))?;
            let slave = ioctl_tiocgptpeer(&master, flags)?;
            // Otherwise backspace would remove one byte of a character.
            let mut modes = tcgetattr(&slave)?;
            modes.input_modes |= InputModes::IUTF8;
            tcsetattr(&slave, OptionalActions::Now, &modes)?;
            command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
            Some(master)
        }
        None => {
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            None
        }
    };
    let terminal = tty.is_some();
    // SAFETY: between fork and exec only async-signal-safe system calls are made (setsid, ioctl, umask); nothing is
    // allocated and no lock is taken. Descriptor 0 is open: the standard library has put our standard input there.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            if terminal {
                ioctl_tiocsctty(rustix::stdio::stdin())?;
            }
            umask(rustix::fs::Mode::from_raw_mode(0o022));
            Ok(())
        });
    }
    let mut running = reaper.spawn(&mut command)?;
    // It holds the slave open, which would hide the terminal's end.
    drop(command);
    let channel = match master {
        Some(master) => Channel::Tty(Pipe::new(master, TTY_GRACE)?),
        None => {
            let missing = || io::Error::other("the command has no pipes");
            let stdin = OwnedFd::from(running.child.stdin.take().ok_or_else(missing)?);
            let stdout = OwnedFd::from(running.child.stdout.take().ok_or_else(missing)?);
            let stderr = OwnedFd::from(running.child.stderr.take().ok_or_else(missing)?);
            Channel::Pipes {
                stdin: Mutex::new(Some(Pipe::new(stdin, Duration::ZERO)?.into())),
                stdout: Pipe::new(stdout, Duration::ZERO)?,
                stderr: Pipe::new(stderr, Duration::ZERO)?,
            }
        }
    };
    Ok(Started { pid: running.pid, exit: running.exit, channel, _child: running.child })
}

fn winsize(size: Size) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Channel {
    pub fn stdout(&self) -> &Pipe {
        match self {
            Self::Pipes { stdout, .. } => stdout,
            Self::Tty(master) => master,
        }
    }
    pub fn stderr(&self) -> Option<&Pipe> {
        match self {
            Self::Pipes { stderr, .. } => Some(stderr),
            Self::Tty(_) => None,
        }
    }
    /// Writes to the command's standard input; waits while it does not read.
    pub async fn write_stdin(&self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Tty(master) => master.write_all(data).await,
            Self::Pipes { stdin, .. } => {
                let pipe = stdin.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let result = match &pipe {
                    Some(pipe) => pipe.write_all(data).await,
                    None => Err(io::ErrorKind::BrokenPipe.into()),
                };
                if result.is_err() {
                    stdin.lock().unwrap_or_else(PoisonError::into_inner).take();
                }
                result
            }
        }
    }
    /// Ends the input. Returns whether more may be written: a terminal stays open.
    pub async fn close_stdin(&self) -> bool {
        match self {
            Self::Tty(master) => master.write_all(&[END_OF_INPUT]).await.is_ok(),
            Self::Pipes { stdin, .. } => {
                stdin.lock().unwrap_or_else(PoisonError::into_inner).take();
                false
            }
        }
    }
    pub fn resize(&self, size: Size) {
        if let Self::Tty(master) = self {
            let _ = tcsetwinsize(&master.fd, winsize(size));
        }
    }
    /// The terminal's foreground process group.
    pub fn foreground(&self) -> Option<Pid> {
        match self {
            Self::Tty(master) => tcgetpgrp(&master.fd).ok(),
            Self::Pipes { .. } => None,
        }
    }
}

impl Pipe {
    fn new(fd: OwnedFd, grace: Duration) -> io::Result<Self> {
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        Ok(Self { fd: watched(fd, Interest::READABLE | Interest::WRITABLE)?, grace })
    }

    fn read_now(fd: &OwnedFd) -> io::Result<Bytes> {
        let mut buffer = [0; CHUNK];
        match rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut buffer)) {
            Ok(n) => Ok(Bytes::copy_from_slice(buffer.get(..n).unwrap_or_default())),
            // The terminal's last user is gone.
            Err(Errno::IO) => Ok(Bytes::new()),
            Err(e) => Err(e.into()),
        }
    }

    /// How many unread bytes it can hold.
    pub fn capacity(&self) -> usize {
        rustix::pipe::fcntl_getpipe_size(&self.fd).unwrap_or(TTY_CAPACITY)
    }

    /// The next bytes; empty at the end. Cancel-safe.
    pub async fn read(&self) -> io::Result<Bytes> {
        loop {
            let mut guard = self.fd.readable().await?;
            if let Ok(result) = guard.try_io(|fd| Self::read_now(fd.get_ref())) {
                return result;
            }
        }
    }

    /// The bytes left after the leader has ended; empty when there are none. Asks the kernel, because the event loop
    /// may be behind.
    pub async fn read_rest(&self) -> io::Result<Bytes> {
        match Self::read_now(self.fd.get_ref()) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && !self.grace.is_zero() => {
                timeout(self.grace, self.read()).await.unwrap_or(Ok(Bytes::new()))
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Bytes::new()),
            other => other,
        }
    }

    async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let mut guard = self.fd.writable().await?;
            match guard.try_io(|fd| Ok(rustix::io::write(fd.as_fd(), data)?)) {
                Ok(Ok(n)) => data = data.get(n..).unwrap_or_default(),
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => return Err(e),
                Err(_) => {}
            }
        }
        Ok(())
    }
}

/// Registers a descriptor with the event loop.
pub fn watched(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is the same open descriptor until it is dropped; the `AsyncFd` owns it.
    #[allow(unsafe_code)]
    let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
    Ok(registered?)
}
