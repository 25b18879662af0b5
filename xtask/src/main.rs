//! Developer tasks, run as `cargo xtask TASK`.

mod bench;

use clap::Parser;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer tasks")]
enum Task {
    /// Measure, print a table, write target/bench.json.
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let Task::Bench(options) = Task::parse();
    match bench::run(&options) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
