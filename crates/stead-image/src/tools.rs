//! Runs the programs that a build needs, by argument vectors. The error for a missing program names its package.

use crate::error::{ImageError, Result};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use std::{
    collections::HashSet,
    ffi::OsString,
    io::{self, Read},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::Mutex,
    thread,
};

/// A program and the Debian package that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    /// Program name.
    pub name: &'static str,
    /// Debian package.
    pub package: &'static str,
}

/// Bootstraps Debian.
pub const MMDEBSTRAP: Tool = Tool { name: "mmdebstrap", package: "mmdebstrap" };
/// Packs squashfs.
pub const MKSQUASHFS: Tool = Tool { name: "mksquashfs", package: "squashfs-tools" };
/// Unpacks squashfs.
pub const UNSQUASHFS: Tool = Tool { name: "unsquashfs", package: "squashfs-tools" };
/// Downloads packages.
pub const APT_GET: Tool = Tool { name: "apt-get", package: "apt" };
/// Queries packages.
pub const APT_CACHE: Tool = Tool { name: "apt-cache", package: "apt" };
/// Opens packages.
pub const DPKG_DEB: Tool = Tool { name: "dpkg-deb", package: "dpkg" };
/// Computes module dependencies.
pub const DEPMOD: Tool = Tool { name: "depmod", package: "kmod" };

/// Builds programs from Go modules. Debian's package may be older than what a module needs.
pub const GO: Tool = Tool { name: "go", package: "golang-go" };
/// Go where its own archive is unpacked, for callers whose PATH lacks it (`sudo`).
pub const GO_UPSTREAM: Tool = Tool { name: "/usr/local/go/bin/go", ..GO };
/// Downloads programs. It resolves names, finds proxies and trusts certificates as the host does, which a static binary
/// cannot.
pub const CURL: Tool = Tool { name: "curl", package: "curl" };

/// How much of the end of a program's standard error is kept for an error.
const STDERR_KEPT_BYTES: usize = 64 << 10;
/// How many lines of it are shown.
const STDERR_SHOWN_LINES: usize = 12;

/// A program's invocation as a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// The program.
    pub tool: Tool,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Added to the environment.
    pub env: Vec<(&'static str, OsString)>,
    /// Working directory.
    pub cwd: Option<PathBuf>,
}

impl Invocation {
    /// `tool` with `args`.
    pub fn new(tool: Tool, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self { tool, args: args.into_iter().map(Into::into).collect(), env: Vec::new(), cwd: None }
    }
    /// Adds an environment variable.
    pub fn env(mut self, key: &'static str, value: impl Into<OsString>) -> Self {
        self.env.push((key, value.into()));
        self
    }
    /// Sets the working directory.
    pub fn cwd(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cwd = Some(dir.into());
        self
    }
    /// The whole argument vector as text, for plans.
    pub fn argv(&self) -> Vec<String> {
        std::iter::once(self.tool.name.to_owned())
            .chain(self.args.iter().map(|a| a.to_string_lossy().into_owned()))
            .collect()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.tool.name);
        // mksquashfs refuses its time options when this is set; programs that need it get it from `env`.
        command.args(&self.args).env_remove("SOURCE_DATE_EPOCH").env("LC_ALL", "C.UTF-8");
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        if let Some(dir) = &self.cwd {
            command.current_dir(dir);
        }
        command
    }

    /// Starts it.
    pub fn spawn(&self, stdin: Stdio, stdout: Stdio, stderr: Stdio) -> Result<Child> {
        self.command().stdin(stdin).stdout(stdout).stderr(stderr).spawn().map_err(|e| self.not_started(e))
    }

    fn not_started(&self, e: io::Error) -> ImageError {
        if e.kind() == io::ErrorKind::NotFound && self.cwd.as_ref().is_none_or(|d| d.is_dir()) {
            return ImageError::ToolMissing {
                tool: self.tool.name.to_owned(),
                package: self.tool.package.to_owned(),
            };
        }
        ImageError::Io { operation: "start", path: self.tool.name.into(), source: e }
    }

    /// Runs it to its end and returns its standard output.
    pub fn output(&self) -> Result<Vec<u8>> {
        let out = self.command().stdin(Stdio::null()).output().map_err(|e| self.not_started(e))?;
        check(self.tool.name, out.status, &out.stderr)?;
        Ok(out.stdout)
    }
}

/// Ok for exit code 0, else an error with the end of its standard error.
pub fn check(tool: &str, status: ExitStatus, stderr: &[u8]) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    Err(ImageError::ToolFailed {
        tool: tool.to_owned(),
        status: status.to_string(),
        stderr: last_lines(stderr),
    })
}

fn last_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
    lines[lines.len().saturating_sub(STDERR_SHOWN_LINES)..].join("\n")
}

/// Interrupts the programs of a build that has failed elsewhere.
#[derive(Debug, Default)]
pub struct Stopper(Mutex<Running>);

#[derive(Debug, Default)]
struct Running {
    stopped: bool,
    pids: HashSet<Pid>,
}

impl Stopper {
    fn running(&self) -> std::sync::MutexGuard<'_, Running> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Interrupts the programs that run, with their children, and those that are started later.
    pub fn stop(&self) {
        let mut running = self.running();
        running.stopped = true;
        for pid in &running.pids {
            interrupt(*pid);
        }
    }

    /// Runs a program to its end. [`Stopper::stop`] interrupts it, and so does the end of this process. `read` gets its
    /// standard output, `each` the lines of its standard error. Returns its status and the end of its standard error.
    ///
    /// # Errors
    /// It cannot be started or waited for; the error of `read`.
    pub fn run(
        &self,
        invocation: &Invocation,
        read: impl FnOnce(ChildStdout) -> Result<()>,
        each: impl FnMut(&str) + Send,
    ) -> Result<(ExitStatus, Vec<u8>)> {
        let mut command = invocation.command();
        tie(&mut command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| invocation.not_started(e))?;
        let pid = Pid::from_child(&child);
        {
            let mut running = self.running();
            running.pids.insert(pid);
            if running.stopped {
                interrupt(pid);
            }
        }
        let stdout = child.stdout.take().expect("piped");
        let stderr = child.stderr.take().expect("piped");
        let (read, said) = thread::scope(|scope| {
            let said = scope.spawn(move || drain_lines(stderr, each));
            let read = read(stdout);
            if read.is_err() {
                interrupt(pid);
            }
            (read, said.join().unwrap_or_default())
        });
        // Its number may be another's after `wait`.
        self.running().pids.remove(&pid);
        let status = child.wait().map_err(|source| ImageError::Io {
            operation: "wait for",
            path: invocation.tool.name.into(),
            source,
        })?;
        read?;
        Ok((status, said))
    }
}

/// Interrupts a process, then its children and theirs: an interrupted Go still waits for its compilers.
///
/// They are not a process group of their own, so that Ctrl-C in a terminal reaches them without help.
fn interrupt(pid: Pid) {
    let _ = kill_process(pid, Signal::INT);
    let tasks = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).into_iter().flatten();
    for task in tasks.flatten() {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|c| Pid::from_raw(c.parse().ok()?));
        children.for_each(interrupt);
    }
}

/// Interrupts the program when the thread that starts it ends before it, as when the whole process dies.
#[allow(unsafe_code)]
fn tie(command: &mut Command) {
    let act = || set_parent_process_death_signal(Some(Signal::INT)).map_err(io::Error::from);
    // SAFETY: between fork and exec only async-signal-safe things may happen. This makes one direct system call: it
    // allocates nothing, takes no lock and touches no libc state.
    unsafe { command.pre_exec(act) };
}

/// Reads a program's standard error to its end, passes on each line and returns the last part.
pub fn drain_lines(mut reader: impl Read, mut each: impl FnMut(&str)) -> Vec<u8> {
    let mut kept: Vec<u8> = Vec::new();
    let mut line: Vec<u8> = Vec::new();
    let mut buf = [0; 8 << 10];
    while let Ok(n) = reader.read(&mut buf) {
        if n == 0 {
            break;
        }
        kept.extend_from_slice(&buf[..n]);
        if kept.len() > 2 * STDERR_KEPT_BYTES {
            kept.drain(..kept.len() - STDERR_KEPT_BYTES);
        }
        for byte in &buf[..n] {
            if *byte == b'\n' || *byte == b'\r' {
                each(&String::from_utf8_lossy(&line));
                line.clear();
            } else if line.len() < STDERR_KEPT_BYTES {
                line.push(*byte);
            }
        }
    }
    if !line.is_empty() {
        each(&String::from_utf8_lossy(&line));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn missing_program_names_its_package() {
        let tool = Tool { name: "stead-no-such-program", package: "some-package" };
        let e = Invocation::new(tool, ["x"]).output().unwrap_err();
        assert_eq!(e.to_string(), "program stead-no-such-program is not installed");
    }

    #[test]
    fn failure_carries_the_last_lines() {
        let sh = Tool { name: "sh", package: "dash" };
        let e = Invocation::new(sh, ["-c", "echo one >&2; echo two >&2; exit 3"]).output().unwrap_err();
        assert_eq!(e.to_string(), "sh failed (exit status: 3): one\ntwo");
    }

    #[test]
    fn a_stopped_build_interrupts_what_runs_and_what_starts() {
        let sh = Tool { name: "sh", package: "dash" };
        let sleeps = Invocation::new(sh, ["-c", "echo up >&2; exec sleep 600"]);
        let stopper = Stopper::default();
        let (status, said) = stopper.run(&sleeps, |_| Ok(()), |_| stopper.stop()).unwrap();
        assert_eq!((status.signal(), &said[..]), (Some(Signal::INT.as_raw()), &b"up\n"[..]));
        let (status, _) = stopper.run(&sleeps, |_| Ok(()), |_| ()).unwrap();
        assert_eq!(status.signal(), Some(Signal::INT.as_raw()));

        // One that waits for its children, as Go does for its compilers.
        let waits = Invocation::new(sh, ["-c", "trap : INT; sh -c 'echo up >&2; exec sleep 600'; exit 3"]);
        let stopper = Stopper::default();
        let (status, _) = stopper.run(&waits, |_| Ok(()), |_| stopper.stop()).unwrap();
        assert_eq!(status.code(), Some(3));
    }

    #[test]
    fn drains_by_line() {
        let mut seen = Vec::new();
        drain_lines(&b"a\nb\rc"[..], |l| seen.push(l.to_owned()));
        assert_eq!(seen, ["a", "b", "c"]);
    }
}
