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
    let typed = cli::Cli::parse();
    match verbs::run(typed) {
        Ok(code) => code,
        Err(error) => output::report(&error),
    }
}
