//! Programs that do what system calls alone cannot: called with argument vectors, a fixed environment and no stdin.

use std::{
    ffi::OsStr,
    io,
    process::{Command, Stdio},
};

/// Where the programs are; the caller's environment is OpenNebula's and holds what it likes.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin";
/// As much of what a program says goes into an error.
const TAIL_CHARS: usize = 600;

/// A program failed.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It could not be run.
    #[error("cannot run {program}")]
    Run {
        /// Its name.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended with a code that means failure.
    #[error("{program} failed ({status}): {said}")]
    Failed {
        /// Its name and arguments.
        program: String,
        /// Exit code or signal.
        status: String,
        /// The end of what it said.
        said: String,
    },
}

/// What a program that succeeded printed.
///
/// # Errors
/// [`ToolError`]; any exit code but 0 and those of `also` is a failure.
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S], also: &[i32]) -> Result<String, ToolError> {
    let output = command(program, arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ToolError::Run { program: program.to_owned(), source })?;
    let code = output.status.code();
    if code != Some(0) && !code.is_some_and(|c| also.contains(&c)) {
        let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
        said.push_str(&String::from_utf8_lossy(&output.stdout));
        let said = said.trim();
        let skip = said.chars().count().saturating_sub(TAIL_CHARS);
        let line: Vec<String> = arguments.iter().map(|a| a.as_ref().to_string_lossy().into_owned()).collect();
        return Err(ToolError::Failed {
            program: format!("{program} {}", line.join(" ")),
            status: output.status.to_string(),
            said: said.chars().skip(skip).collect(),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A program with the driver's environment.
pub(crate) fn command<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", PATH).env("LC_ALL", "C").current_dir("/");
    command
}

/// Whether a program of this name is there.
pub(crate) fn exists(program: &str) -> bool {
    PATH.split(':').any(|dir| std::path::Path::new(dir).join(program).is_file())
}
