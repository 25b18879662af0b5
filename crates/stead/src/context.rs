//! What the command takes from the process it runs in. The only file that reads the environment.

use std::{
    io::{self, IsTerminal},
    path::{Path, PathBuf},
};

/// The process as the command sees it.
#[derive(Debug, Clone)]
pub struct Context {
    /// This program's file: supervisors are started from it.
    pub exe: PathBuf,
    /// The working directory, absolute: what relative paths are relative to.
    pub directory: PathBuf,
    /// `STEAD_STATE_DIR`: where images and clusters are kept unless `--state-dir` says otherwise.
    pub state_dir: Option<PathBuf>,
    /// Where temporary files go.
    pub temp_dir: PathBuf,
    /// `TERM`, which a shell on a node gets too.
    pub terminal_type: Option<String>,
    /// `SUDO_USER`, unless it is root: who called `sudo`.
    pub sudo_user: Option<String>,
    /// `SSH_AUTH_SOCK`: the socket of the caller's ssh agent.
    pub ssh_agent: Option<PathBuf>,
    /// The effective user is root.
    pub is_root: bool,
    /// The standard streams that are terminals.
    pub terminals: Terminals,
    /// The width of help; the terminal's when absent.
    pub columns: Option<usize>,
}

/// Which of the standard streams are terminals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Terminals {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

impl Context {
    /// Reads it.
    ///
    /// # Errors
    /// The program's file or the working directory has no path.
    pub fn of_this_process() -> io::Result<Self> {
        let text = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Ok(Self {
            exe: std::env::current_exe()?,
            directory: std::env::current_dir()?,
            state_dir: std::env::var_os("STEAD_STATE_DIR").filter(|d| !d.is_empty()).map(PathBuf::from),
            temp_dir: std::env::temp_dir(),
            terminal_type: text("TERM"),
            sudo_user: text("SUDO_USER").filter(|user| user != "root"),
            ssh_agent: text("SSH_AUTH_SOCK").map(PathBuf::from),
            is_root: rustix::process::geteuid().is_root(),
            terminals: Terminals {
                stdin: io::stdin().is_terminal(),
                stdout: io::stdout().is_terminal(),
                stderr: io::stderr().is_terminal(),
            },
            columns: None,
        })
    }

    /// A path as the user means it, made absolute; without `.` in it.
    pub fn absolute(&self, path: &Path) -> PathBuf {
        self.directory.join(path).components().collect()
    }
}
