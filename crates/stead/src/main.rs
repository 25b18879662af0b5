//! The `stead` command: small immutable Linux nodes and clusters of them.
//!
//! What was typed ([`cli`]) -> what it means ([`verbs`], one file each) -> the library. Owns rendering and exit codes:
//! 0 done, 1 failed, 2 asked wrongly; `exec` and `shell` pass the command's own code through.

mod cli;
mod output;
mod progress;
mod verbs;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    // A link with the name of one of OpenNebula's scripts is that script.
    let called = std::env::args_os().next().map(std::path::PathBuf::from).unwrap_or_default();
    if let Some(script) = verbs::one::called_as(&called) {
        let arguments = std::env::args_os().skip(1).collect();
        return verbs::one::run_as(script, called, arguments);
    }
    let typed = cli::Cli::parse();
    match verbs::run(typed) {
        Ok(code) => code,
        Err(error) => output::report(&error),
    }
}
