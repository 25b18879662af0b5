//! The benchmarks: rows, each measured against its floor in the same run, a table and `target/bench.json`.
//!
//! Owns the form of rows and how they are run and shown. The measurements are in `rows`.

mod measure;
mod row;
mod rows;
mod stead;

use anyhow::{Context, Result, ensure};
use clap::Args;
use row::{Row, Skip};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Options of `cargo xtask bench`.
#[derive(Debug, Args)]
pub struct Options {
    /// Only this benchmark; --list names them.
    #[arg(long)]
    only: Option<String>,
    /// How often short benchmarks (seconds) are measured; the median counts. Long ones are measured half as often.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Only print the benchmarks' names.
    #[arg(long)]
    list: bool,
    /// The `stead` to measure, with `stead-node` beside it.
    #[arg(long, default_value = "build/stead")]
    stead: PathBuf,
}

/// Context of a benchmark.
#[derive(Debug)]
pub struct Bench {
    /// Top of the repository.
    root: PathBuf,
    /// The `stead` to measure.
    stead: PathBuf,
    /// How often a benchmark that takes seconds is measured.
    runs: usize,
}

impl Bench {
    /// How often a benchmark that takes minutes is measured.
    fn slow_runs(&self) -> usize {
        self.runs.div_ceil(2)
    }

    fn recipe(&self, image: &str) -> PathBuf {
        self.root.join(format!("images/{image}.yaml"))
    }
}

/// A benchmark: its name for `--only`, what it measures, and its function.
struct Benchmark {
    name: &'static str,
    what: &'static str,
    run: fn(&Bench) -> Result<Vec<Row>>,
}

const BENCHMARKS: &[Benchmark] = &[
    Benchmark {
        name: "warm-up",
        what: "up of three namespace nodes with Incus, images there",
        run: rows::warm_up::run,
    },
    Benchmark {
        name: "joins",
        what: "up of 1, 3, 6 and 12 namespace nodes with Incus",
        run: rows::joins::run,
    },
    Benchmark { name: "rebuild", what: "image build when nothing changed", run: rows::rebuild::run },
    Benchmark {
        name: "overlay",
        what: "one overlay file changed to all nodes healthy again",
        run: rows::overlay::run,
    },
    Benchmark { name: "cold-build", what: "image build into an empty store", run: rows::cold_build::run },
    Benchmark { name: "qemu-boot", what: "qemu power-on to agent ready", run: rows::qemu_boot::run },
    Benchmark { name: "agent", what: "the agent's memory and size", run: rows::agent::run },
    Benchmark { name: "monitor", what: "OpenNebula's probe of 500 instances", run: rows::monitor::run },
    Benchmark {
        name: "placement",
        what: "a plan for 1000 members and 20000 instances; other rules",
        run: rows::placement::run,
    },
    Benchmark { name: "ci", what: "the last `make test`, by step", run: rows::ci::run },
    Benchmark { name: "fifty", what: "50 base namespace nodes, up and down", run: rows::fifty::run },
];

/// Runs the chosen benchmarks. Fails when one fails or a goal is missed.
///
/// # Errors
/// There is no such benchmark, nothing to measure, or the results cannot be written.
pub fn run(options: &Options) -> Result<ExitCode> {
    if options.list {
        for b in BENCHMARKS {
            println!("{:<12} {}", b.name, b.what);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let chosen: Vec<&Benchmark> =
        BENCHMARKS.iter().filter(|b| options.only.as_ref().is_none_or(|name| name == b.name)).collect();
    ensure!(!chosen.is_empty(), "no benchmark has this name; --list names them");
    ensure!(options.runs > 0, "--runs must be at least 1");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let stead = std::path::absolute(&options.stead)?;
    // The planner is measured in this program, and what CI took is read.
    ensure!(
        stead.exists() || chosen.iter().all(|b| ["placement", "ci"].contains(&b.name)),
        "{} is not there; `make build` makes it",
        stead.display()
    );
    let bench = Bench { root, stead, runs: options.runs };

    let (mut rows, mut broken) = (Vec::new(), false);
    for b in chosen {
        eprintln!("bench: {}: {}", b.name, b.what);
        match (b.run)(&bench) {
            Ok(measured) => rows.extend(measured),
            Err(error) => match error.downcast_ref::<Skip>() {
                Some(Skip(reason)) => eprintln!("SKIP {}: {reason}", b.name),
                None => {
                    broken = true;
                    eprintln!("bench: {} failed: {error:#}", b.name);
                }
            },
        }
    }
    print!("{}", row::table(&rows));
    let file = bench.root.join("target/bench.json");
    let json = serde_json::to_string_pretty(&rows)?;
    std::fs::write(&file, json + "\n").with_context(|| format!("cannot write {}", file.display()))?;
    eprintln!("bench: {} rows in {}", rows.len(), file.display());
    Ok(if broken || rows.iter().any(|r| !r.holds) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
