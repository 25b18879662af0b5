//! The test runner: every test in its own process, tests that use the same resources not at once, the longest first.
//!
//! Owns which tests run, in which order, and their report. [`rules`] says by a test's name what it needs. Nothing is
//! tried twice: a test that fails sometimes is a failing test.

mod binaries;
mod process;
mod report;
mod rules;
mod schedule;

use anyhow::{Context, Result, bail};
use binaries::Test;
use clap::Args;
use process::{Outcome, Part};
use schedule::{Limits, Queue};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Instant,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};

/// Options of `cargo xtask test`.
#[derive(Debug, Args)]
pub struct Options {
    /// Only tests whose name, as `crate::module::test`, contains one of these.
    filters: Vec<String>,
    /// Profile to build the tests in.
    #[arg(long, default_value = "dev")]
    profile: String,
    /// Workspaces whose tests are run, by their manifests.
    #[arg(long = "manifest-path", default_value = "Cargo.toml")]
    manifests: Vec<PathBuf>,
    /// Only print the tests, with what they need.
    #[arg(long)]
    list: bool,
    /// Folder for the results and the output of each test.
    #[arg(long, default_value = "build/test")]
    out: PathBuf,
}

/// A test with its rule, before it runs.
#[derive(Debug)]
struct Planned {
    test: Test,
    rule: rules::Rule,
}

/// A test after its run.
#[derive(Debug)]
struct Ran {
    plan: Arc<Planned>,
    seconds: f64,
    outcome: Outcome,
    /// File with its output.
    output: PathBuf,
    /// Parts of it, which count as tests.
    parts: Vec<Part>,
}

/// Builds and runs the tests. Fails when one failed.
///
/// # Errors
/// The tests cannot be built or listed, or the results cannot be written.
pub fn run(options: &Options) -> Result<ExitCode> {
    let mut tests = Vec::new();
    for manifest in &options.manifests {
        tests.extend(binaries::build(manifest, &options.profile)?);
    }
    tests.retain(|t| {
        options.filters.is_empty() || options.filters.iter().any(|f| t.full_name().contains(f.as_str()))
    });
    if tests.is_empty() {
        bail!("no test matches the filters");
    }
    let expected = report::expected(&options.out)?;
    let planned: Vec<Planned> = tests
        .into_iter()
        .map(|test| {
            let mut rule = rules::of(&test.full_name());
            if let Some(seconds) = expected.get(&test.full_name()) {
                rule.expected_s = *seconds;
            }
            Planned { test, rule }
        })
        .collect();
    if options.list {
        for p in &planned {
            println!("{:<10} {:>7.2} s  {}", p.rule.tier.name(), p.rule.expected_s, p.test.full_name());
        }
        return Ok(ExitCode::SUCCESS);
    }
    std::fs::create_dir_all(options.out.join("output"))
        .with_context(|| format!("cannot make {}", options.out.display()))?;
    let begun = Instant::now();
    let ran = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(run_all(planned, &options.out))?;
    report::write(&options.out, &ran)?;
    print!("{}", report::summary(&ran, begun.elapsed().as_secs_f64()));
    let failed = ran.iter().any(|r| matches!(r.outcome, Outcome::Failed(_)));
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Runs the tests until none is left or a signal ends this process.
async fn run_all(planned: Vec<Planned>, out: &Path) -> Result<Vec<Ran>> {
    let planned: Vec<Arc<Planned>> = planned.into_iter().map(Arc::new).collect();
    let limits = Limits::here();
    let total = planned.len();
    println!("test: {total} tests, {} processors, {} MiB for engines", limits.processors, limits.memory_mib);
    let mut queue = Queue::new(planned.iter().map(|p| p.rule.clone()).collect(), limits);
    let mut running: JoinSet<(usize, Ran)> = JoinSet::new();
    let mut ran = Vec::with_capacity(total);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    loop {
        while let Some(n) = queue.next() {
            let plan = planned[n].clone();
            let output = out.join("output").join(format!("{}.log", plan.test.full_name().replace("::", ".")));
            running.spawn(async move {
                let begun = Instant::now();
                let outcome = process::run(&plan.test, plan.rule.timeout, &output).await;
                let seconds = begun.elapsed().as_secs_f64();
                let parts = process::parts(&report::text(&output));
                (n, Ran { plan, seconds, outcome, output, parts })
            });
        }
        tokio::select! {
            done = running.join_next() => {
                let Some(done) = done else { return Ok(ran) };
                let (n, done) = done.context("a test's task ended early")?;
                queue.ended(n);
                ran.push(done);
                report::progress(ran.last(), ran.len(), total);
            }
            // Dropping the set kills the running tests.
            _ = interrupt.recv() => bail!("interrupted after {} of {total} tests", ran.len()),
            _ = terminate.recv() => bail!("terminated after {} of {total} tests; running: {}", ran.len(), names(&planned, &queue)),
        }
    }
}

fn names(planned: &[Arc<Planned>], queue: &Queue) -> String {
    let names: Vec<String> = queue.running().map(|n| planned[n].test.full_name()).collect();
    names.join(", ")
}

/// Seconds by the tests' full names.
type Durations = BTreeMap<String, f64>;
