//! The `stead` command: small immutable Linux nodes and clusters of them.
//!
//! What was typed ([`cli`]) -> what it means ([`verbs`], one file each) -> the crate that does it. Owns arguments,
//! rendering and exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted; `exec` and `shell` pass the command's own
//! code through. Takes its process (environment, streams, working directory) as values, so that tests run it in theirs.

mod cli;
mod context;
mod error;
mod member_shell;
mod output;
mod progress;
mod verbs;

pub use context::{Context, Terminals};
pub use output::{Captured, Output};

use error::report;
use std::{ffi::OsString, path::PathBuf, process::ExitCode};

/// Runs the command of this process.
pub fn main() -> ExitCode {
    stead_os::origin::set_umask();
    // SAFETY: this is the beginning of the process, which has no other thread yet.
    #[allow(unsafe_code)]
    unsafe {
        stead_os::origin::extend_path();
    }
    let output = Output::of_this_process();
    let arguments = std::env::args_os();
    ExitCode::from(match Context::of_this_process() {
        Ok(context) => run(arguments, context, output),
        Err(error) => report(&error.into(), &output, false),
    })
}

/// Runs a command line, whose first word is the program's name, and gives the exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>, context: Context, output: Output) -> u8 {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // A link with the name of one of OpenNebula's scripts is that script.
    let called = arguments.first().map(PathBuf::from).unwrap_or_default();
    if let Some(script) = verbs::one::called_as(&called) {
        return verbs::one::run_as(script, called, &arguments[1..], context, output);
    }
    cli::run(&arguments, context, output)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// Everything that a verb takes from its process it takes from the context: nothing reads it on the side.
    #[test]
    fn one_file_reads_the_environment() {
        fn visit(dir: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    visit(&path, found);
                    continue;
                }
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]").next().unwrap();
                let reads = ["std::env", "process::exit", "path::absolute", "eprintln!", " println!"];
                for what in reads.iter().filter(|what| code.contains(**what)) {
                    found.push(format!("{}: {what}", path.display()));
                }
            }
        }
        let mut found = Vec::new();
        visit(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        found.retain(|f| !f.contains("src/context.rs") && !f.ends_with("src/lib.rs: std::env"));
        assert_eq!(found, Vec::<String>::new());
    }
}
