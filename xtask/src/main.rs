//! Developer tasks, run as `cargo xtask TASK`.

mod bench;
mod placement;
mod test;

use clap::Parser;
use std::{path::PathBuf, process::ExitCode};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer tasks")]
enum Task {
    /// Measure, print a table, write target/bench.json.
    Bench(bench::Options),
    /// Build and run the tests: each in its own process, the longest first.
    Test(test::Options),
    /// Measure the planner in this process, print JSON; the benchmark `placement` calls it.
    Placement {
        /// Folder of recorded snapshots.
        #[arg(long, default_value = "bench/snapshots")]
        recorded: PathBuf,
        /// How often the large plan is made.
        #[arg(long, default_value_t = 5)]
        runs: usize,
    },
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::Bench(options) => bench::run(&options),
        Task::Test(options) => test::run(&options),
        Task::Placement { recorded, runs } => placement::run(&recorded, runs).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
