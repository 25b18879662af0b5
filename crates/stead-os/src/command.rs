//! Runs programs with an argument vector, a fixed environment and no standard input, bounded in time and output. Errors
//! carry the program's last output.
//!
//! No shell is involved: nothing is quoted, so nothing is quoted wrongly.

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, chdir, chroot, kill_process_group, pidfd_open},
};
use std::{
    ffi::{CString, OsStr, OsString},
    fmt, io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{ffi::OsStrExt, fs::PermissionsExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Where programs are searched. Includes the directories for root, which a caller's own `PATH` often lacks.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Time limit of a program that sets none: more than any program needs that only changes metadata.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);
/// Limit on standard output for a program that sets none.
const DEFAULT_OUTPUT_BYTES: usize = 4 << 20;
/// How much of the end of standard error is kept.
const STDERR_BYTES: usize = 64 << 10;
/// How many of the last lines an error shows.
const SHOWN_LINES: usize = 12;
/// How many characters of those lines an error shows.
const SHOWN_CHARS: usize = 2000;
/// How many characters of an invocation an error shows: some programs get a hundred arguments.
const SHOWN_LINE_CHARS: usize = 200;
/// How long a killed program is waited for: it ends within this time unless it hangs in the kernel.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// A program could not be run, or failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It is not installed.
    #[error("{program} is not installed{}", package.map(|p| format!("; it comes with the package {p}")).unwrap_or_default())]
    Missing {
        /// Its name.
        program: String,
        /// The Debian package that has it.
        package: Option<&'static str>,
    },
    /// It is installed but cannot be started or watched.
    #[error("cannot {operation} {program}")]
    Io {
        /// `start`, `read the output of`.
        operation: &'static str,
        /// Its name.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended with a code that means failure, or by a signal.
    #[error("{command} failed ({status}){}", after_colon(said))]
    Failed {
        /// Its name and arguments.
        command: String,
        /// Exit code or signal.
        status: String,
        /// The end of its output.
        said: String,
    },
    /// It did not end within its time and was killed.
    #[error("{command} did not end within {} s and was killed{}", after.as_secs_f32(), after_colon(said))]
    TimedOut {
        /// Its name and arguments.
        command: String,
        /// The time it had.
        after: Duration,
        /// The end of its output.
        said: String,
    },
    /// It printed more than its limit and was killed.
    #[error("{command} printed more than {limit_bytes} bytes and was killed")]
    TooMuch {
        /// Its name and arguments.
        command: String,
        /// The limit.
        limit_bytes: usize,
    },
}

fn after_colon(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}

/// A program's invocation as a value: plans and tests compare it, [`Program::run`] runs it.
///
/// ```
/// let ext4 = stead_os::Program::new("mkfs.ext4").package("e2fsprogs").args(["-q", "/dev/vdb"]);
/// assert_eq!(ext4.argv(), ["mkfs.ext4", "-q", "/dev/vdb"]);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    name: OsString,
    package: Option<&'static str>,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    inherit: bool,
    removed: Vec<OsString>,
    root: Option<PathBuf>,
    directory: Option<PathBuf>,
    accepted: Vec<i32>,
    timeout: Duration,
    output_bytes: usize,
}

/// Output of a program that succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit code: 0 or an accepted one.
    pub code: i32,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// The end of its standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Its standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Program {
    /// The program of this name in [`PATH`] or in this process's own, or at this path if the name contains a slash.
    pub fn new(name: impl Into<OsString>) -> Self {
        Self {
            name: name.into(),
            package: None,
            arguments: Vec::new(),
            environment: Vec::new(),
            inherit: false,
            removed: Vec::new(),
            root: None,
            directory: None,
            accepted: vec![0],
            timeout: DEFAULT_TIMEOUT,
            output_bytes: DEFAULT_OUTPUT_BYTES,
        }
    }
    /// Sets the Debian package that contains it, for the error when it is missing.
    #[must_use]
    pub fn package(mut self, package: &'static str) -> Self {
        self.package = Some(package);
        self
    }
    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }
    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }
    /// Adds a variable to the environment, which otherwise is `PATH` and `LC_ALL=C`.
    #[must_use]
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((key.into(), value.into()));
        self
    }
    /// Keeps the caller's environment (proxies, directories for temporary files); `PATH` and `LC_ALL=C` override it.
    #[must_use]
    pub fn inherit_env(mut self) -> Self {
        self.inherit = true;
        self
    }
    /// Leaves out a variable of the caller's environment.
    #[must_use]
    pub fn env_remove(mut self, key: impl Into<OsString>) -> Self {
        self.removed.push(key.into());
        self
    }
    /// Takes the program from the tree at this path and runs it with that tree as its root.
    #[must_use]
    pub fn root(mut self, root: impl Into<PathBuf>) -> Self {
        self.root = Some(root.into());
        self
    }
    /// Runs it in this directory instead of `/`.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }
    /// Accepts this exit code as success, beside 0.
    #[must_use]
    pub fn accept(mut self, code: i32) -> Self {
        self.accepted.push(code);
        self
    }
    /// Kills it after this time. The default is 300 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
    /// Kills it when it prints more than this on standard output. The default is 4 MiB.
    #[must_use]
    pub fn output_limit(mut self, bytes: usize) -> Self {
        self.output_bytes = bytes;
        self
    }

    /// The whole argument vector as text, for plans.
    pub fn argv(&self) -> Vec<String> {
        std::iter::once(&self.name)
            .chain(&self.arguments)
            .map(|part| part.to_string_lossy().into_owned())
            .collect()
    }

    /// Name and arguments in one line, for messages; a long one is cut.
    pub fn line(&self) -> String {
        let mut line = self.argv().join(" ");
        if let Some((end, _)) = line.char_indices().nth(SHOWN_LINE_CHARS) {
            line.truncate(end);
            line.push('…');
        }
        line
    }

    /// As a [`Command`] with its environment and without standard input, for callers that start it and wait for it.
    ///
    /// # Errors
    /// [`CommandError::Missing`].
    pub fn command(&self) -> Result<Command, CommandError> {
        let root = self.root.as_deref();
        let missing = || CommandError::Missing { program: self.name(), package: self.package };
        let mut command = Command::new(find_in(root, &self.name).ok_or_else(missing)?);
        command.arg0(&self.name).args(&self.arguments);
        if !self.inherit {
            command.env_clear();
        }
        for key in &self.removed {
            command.env_remove(key);
        }
        if let Some(root) = root {
            let root =
                CString::new(root.as_os_str().as_bytes()).map_err(|e| self.not_run("start", e.into()))?;
            // SAFETY: between fork and exec only async-signal-safe things may happen. These are two system calls with
            // terminated strings made before the fork: nothing is allocated, no lock is taken.
            #[allow(unsafe_code)]
            unsafe {
                command.pre_exec(move || {
                    chroot(root.as_c_str())?;
                    Ok(chdir(c"/")?)
                });
            }
        }
        command.env("PATH", PATH).env("LC_ALL", "C");
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        command.current_dir(self.directory.as_deref().unwrap_or(Path::new("/"))).stdin(Stdio::null());
        Ok(command)
    }

    /// Runs it and waits for its end. Processes that it leaves in the background keep running, and their output is not
    /// waited for.
    ///
    /// # Errors
    /// [`CommandError`]: every exit code except 0 and the accepted ones is a failure.
    pub fn run(&self) -> Result<Output, CommandError> {
        self.run_with(|_| {})
    }

    /// As [`Program::run`], with a last change to the command, e.g. a hook that runs in the child before exec.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub fn run_with(&self, change: impl FnOnce(&mut Command)) -> Result<Output, CommandError> {
        let mut command = self.command()?;
        // Its own process group, so that its children are killed with it.
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        change(&mut command);
        let mut child = command.spawn().map_err(|e| self.not_run("start", e))?;
        let watched = Watch::of(&child, self.output_bytes)
            .and_then(|mut watch| Ok((watch.until(&child, Instant::now() + self.timeout)?, watch)));
        let (end, watch) = match watched {
            Ok(done) => done,
            Err(e) => {
                kill(&mut child);
                return Err(self.not_run("read the output of", e));
            }
        };
        match end {
            End::Exited => {}
            End::TooMuch => {
                kill(&mut child);
                return Err(CommandError::TooMuch { command: self.line(), limit_bytes: self.output_bytes });
            }
            End::Late => {
                kill(&mut child);
                let said = said(&watch.stderr, &watch.stdout);
                return Err(CommandError::TimedOut { command: self.line(), after: self.timeout, said });
            }
        }
        let status = child.wait().map_err(|e| self.not_run("wait for", e))?;
        match status.code() {
            Some(code) if self.accepted.contains(&code) => {
                Ok(Output { code, stdout: watch.stdout, stderr: watch.stderr })
            }
            _ => Err(self.failed(status, &watch.stderr, &watch.stdout)),
        }
    }

    /// The error of an invocation that the caller ran: how it ended and what it printed.
    pub fn failed(&self, status: impl fmt::Display, stderr: &[u8], stdout: &[u8]) -> CommandError {
        CommandError::Failed { command: self.line(), status: status.to_string(), said: said(stderr, stdout) }
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.name.to_string_lossy().into_owned()
    }

    /// The error of an invocation that could not be started or watched.
    pub fn not_run(&self, operation: &'static str, source: io::Error) -> CommandError {
        CommandError::Io { operation, program: self.name(), source }
    }
}

/// The program of this name in [`PATH`], or at this path if the name contains a slash; `None` when there is none.
pub fn find(name: impl AsRef<OsStr>) -> Option<PathBuf> {
    find_in(None, name.as_ref())
}

/// As [`find`], in the tree at `root`; the path is relative to that root.
fn find_in(root: Option<&Path>, name: &OsStr) -> Option<PathBuf> {
    let executable = |path: &Path| match root {
        None => path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0),
        // A link may be absolute, so it is not followed from outside the tree.
        Some(root) => path
            .strip_prefix("/")
            .is_ok_and(|path| root.join(path).symlink_metadata().is_ok_and(|m| !m.is_dir())),
    };
    if name.as_encoded_bytes().contains(&b'/') {
        return Some(PathBuf::from(name)).filter(|path| executable(path));
    }
    let own = std::env::var_os("PATH").unwrap_or_default();
    let own = std::env::split_paths(&own).filter(|dir| dir.is_absolute());
    PATH.split(':').map(PathBuf::from).chain(own).map(|dir| dir.join(name)).find(|path| executable(path))
}

/// The last lines that a program printed: on standard error or, if that is empty, on standard output.
pub fn said(stderr: &[u8], stdout: &[u8]) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
    let text = Some(text(stderr)).filter(|t| !t.is_empty()).unwrap_or_else(|| text(stdout));
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
    let skipped = last.chars().count().saturating_sub(SHOWN_CHARS);
    last.chars().skip(skipped).collect()
}

/// Kills a program and its process group.
fn kill(child: &mut Child) {
    let pid = Pid::from_child(child);
    let _ = kill_process_group(pid, Signal::KILL);
    let _ = child.kill();
    let deadline = Instant::now() + KILL_PATIENCE;
    if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) {
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        while matches!(poll(&mut fds, Some(&until(deadline))), Err(Errno::INTR)) {}
    }
    // A program that hangs in the kernel stays a zombie of this process.
    let _ = child.try_wait();
}

fn until(deadline: Instant) -> Timespec {
    let left = deadline.saturating_duration_since(Instant::now());
    Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() }
}

/// How watching a program ended.
enum End {
    Exited,
    Late,
    TooMuch,
}

/// What a running program has printed so far.
struct Watch {
    pidfd: rustix::fd::OwnedFd,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    limit_bytes: usize,
}

impl Watch {
    fn of(child: &Child, limit_bytes: usize) -> io::Result<Self> {
        for pipe in pipes(child).into_iter().flatten() {
            fcntl_setfl(pipe, fcntl_getfl(pipe)? | OFlags::NONBLOCK)?;
        }
        let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        Ok(Self { pidfd, stdout: Vec::new(), stderr: Vec::new(), limit_bytes })
    }

    /// Reads until the program has ended, without another thread: the caller may be in a namespace that allows none.
    fn until(&mut self, child: &Child, deadline: Instant) -> io::Result<End> {
        let [mut stdout, mut stderr] = pipes(child);
        loop {
            let (exited, timed_out) = {
                let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
                fds.extend(stdout.iter().chain(&stderr).map(|pipe| PollFd::new(pipe, PollFlags::IN)));
                match poll(&mut fds, Some(&until(deadline))) {
                    Err(Errno::INTR) => continue,
                    Err(e) => return Err(e.into()),
                    // Noted before the pipes are read: they then hold everything printed up to the end.
                    Ok(ready) => (!fds[0].revents().is_empty(), ready == 0),
                }
            };
            // One byte above the limit shows that there is more.
            read_available(&mut stdout, &mut self.stdout, self.limit_bytes.saturating_add(1))?;
            if self.stdout.len() > self.limit_bytes {
                return Ok(End::TooMuch);
            }
            // Only its end matters.
            read_available(&mut stderr, &mut self.stderr, usize::MAX)?;
            let excess = self.stderr.len().saturating_sub(STDERR_BYTES);
            self.stderr.drain(..excess);
            if exited {
                return Ok(End::Exited);
            }
            if timed_out || Instant::now() >= deadline {
                return Ok(End::Late);
            }
        }
    }
}

fn pipes(child: &Child) -> [Option<BorrowedFd<'_>>; 2] {
    [child.stdout.as_ref().map(AsFd::as_fd), child.stderr.as_ref().map(AsFd::as_fd)]
}

/// Reads what the pipe holds, up to `most` bytes in `into`, but no more than a pipe's capacity at once: a program that
/// prints without end must not keep its watcher here. At its end the pipe becomes `None`.
fn read_available(pipe: &mut Option<BorrowedFd<'_>>, into: &mut Vec<u8>, most: usize) -> io::Result<()> {
    /// The largest capacity that Linux gives an ordinary pipe.
    const PIPE_BYTES: usize = 1 << 20;
    let mut buffer = [0; 16 << 10];
    let mut round = 0;
    while let Some(fd) = pipe
        && into.len() < most
        && round < PIPE_BYTES
    {
        let room = (most - into.len()).min(buffer.len());
        match rustix::io::read(*fd, &mut buffer[..room]) {
            Ok(0) => *pipe = None,
            Ok(n) => {
                into.extend_from_slice(&buffer[..n]);
                round += n;
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => break,
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Program {
        Program::new("sh").args(["-c", script])
    }

    #[test]
    fn a_program_gets_its_arguments_and_a_fixed_environment() {
        let out = sh("printf '%s|' \"$@\"; pwd; env | sort").args(["x", "a b", "$HOME", ""]).run().unwrap();
        let text = out.text();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("a b|$HOME||/"));
        let environment: Vec<&str> =
            lines.filter(|l| !l.starts_with("PWD=") && !l.starts_with("_=")).collect();
        assert_eq!(environment, ["LC_ALL=C", &format!("PATH={PATH}")]);
        let out = Program::new("env").env("LC_ALL", "C.UTF-8").env("A", "1").run().unwrap().text();
        assert!(out.contains("LC_ALL=C.UTF-8\n") && out.contains("A=1\n") && !out.contains("LC_ALL=C\n"));
        let cargo = Program::new("env").inherit_env().run().unwrap().text();
        assert!(cargo.contains("CARGO_MANIFEST_DIR=") && cargo.contains(&format!("PATH={PATH}\n")));
        let less = Program::new("env").inherit_env().env_remove("CARGO_MANIFEST_DIR").run().unwrap().text();
        assert!(!less.contains("CARGO_MANIFEST_DIR=") && less.contains("LC_ALL=C\n"), "{less}");
    }

    #[test]
    fn failures_show_the_command_its_end_and_its_last_output() {
        let error = sh("echo out; echo one >&2; echo two >&2; exit 3").run().unwrap_err().to_string();
        assert_eq!(
            error,
            "sh -c echo out; echo one >&2; echo two >&2; exit 3 failed (exit status: 3): one\ntwo"
        );
        let error = sh("echo only out; exit 1").run().unwrap_err().to_string();
        assert!(error.ends_with("failed (exit status: 1): only out"), "{error}");
        assert_eq!(sh("exit 3").accept(3).run().unwrap().code, 3);
        let error = sh("kill -9 $$").run().unwrap_err().to_string();
        assert!(error.ends_with("failed (signal: 9 (SIGKILL))"), "{error}");
        let long = sh("i=0; while [ $i -lt 40 ]; do echo line $i >&2; i=$((i+1)); done; exit 1");
        let Err(CommandError::Failed { said, .. }) = long.run() else { panic!() };
        assert!(said.starts_with("line 28\n") && said.ends_with("line 39"), "{said}");
        let many = Program::new("x").args(["äöü"; 100]).line();
        assert!(many.starts_with("x äöü äöü") && many.ends_with('…'), "{many}");
        assert_eq!(many.chars().count(), SHOWN_LINE_CHARS + 1);
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let missing = Program::new("stead-no-such-program");
        assert_eq!(missing.run().unwrap_err().to_string(), "stead-no-such-program is not installed");
        assert_eq!(
            missing.package("some-package").run().unwrap_err().to_string(),
            "stead-no-such-program is not installed; it comes with the package some-package"
        );
        assert!(matches!(Program::new("/etc/passwd").run(), Err(CommandError::Missing { .. })));
        assert!(find("sh").is_some_and(|p| p.ends_with("sh")) && find("/no/sh").is_none());
        let error = sh("true").directory("/no/such/directory").run().unwrap_err();
        assert!(matches!(error, CommandError::Io { operation: "start", .. }), "{error:?}");
    }

    #[test]
    fn programs_of_a_tree_are_found_in_it() {
        let tree = tempfile::tempdir().unwrap();
        let found = |name: &str| find_in(Some(tree.path()), name.as_ref());
        std::fs::create_dir_all(tree.path().join("usr/sbin/dir")).unwrap();
        std::os::unix::fs::symlink("/usr/sbin/there", tree.path().join("usr/sbin/link")).unwrap();
        assert_eq!(found("link"), Some("/usr/sbin/link".into()));
        assert_eq!(found("/usr/sbin/link"), Some("/usr/sbin/link".into()));
        assert_eq!((found("sh"), found("dir")), (None, None));
        let missing = Program::new("sh").root(tree.path()).package("dash").run().unwrap_err();
        assert_eq!(missing.to_string(), "sh is not installed; it comes with the package dash");
    }

    #[test]
    fn output_is_bounded_and_whole() {
        let out = sh("head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2").run().unwrap();
        assert_eq!((out.stdout.len(), out.stderr.len()), (300_000, STDERR_BYTES));
        assert_eq!(sh("printf 12345").output_limit(5).run().unwrap().stdout, b"12345");
        let error = sh("yes").output_limit(5).run().unwrap_err();
        assert!(matches!(error, CommandError::TooMuch { limit_bytes: 5, .. }), "{error:?}");
        // Without a bound on each read this would never end.
        let error = sh("yes >&2").timeout(Duration::from_millis(50)).run().unwrap_err();
        assert!(matches!(&error, CommandError::TimedOut { said, .. } if said.ends_with("y\ny")), "{error:?}");
    }

    #[test]
    fn a_late_program_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! >{}; echo waiting >&2; wait", file.display());
        let error = sh(&script).timeout(Duration::from_millis(300)).run().unwrap_err().to_string();
        assert!(error.ends_with("did not end within 0.3 s and was killed: waiting"), "{error}");
        let pid = std::fs::read_to_string(file).unwrap();
        let ended = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        };
        while !ended() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_background_process_is_not_waited_for() {
        // The background process holds the pipes open.
        let out = sh("sleep 1000 & echo $!").run().unwrap();
        let pid: i32 = out.text().trim().parse().unwrap();
        rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }

    #[test]
    fn the_child_can_be_prepared() {
        let out = sh("echo $0 $1").run_with(|c| {
            c.args(["zero", "one"]);
        });
        let out = out.unwrap();
        assert_eq!(out.text(), "zero one\n");
    }
}
