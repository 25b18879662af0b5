//! Compares the planner with other rules, on synthetic and on recorded clusters: `cargo xtask placement`, in release.
//!
//! Owns the measurements. Does not own the goals, which are in the row of `bench`.

mod baselines;
mod workloads;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::{fs, path::Path, time::Instant};
use stead_placement::{Policy, Snapshot, check, plan};

/// Result of a rule on one cluster.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// The rule.
    pub rule: String,
    /// Imbalance divided by a proven lower bound: 1 is optimal.
    pub over_bound: f64,
    /// Violations of the policy after it.
    pub violations: usize,
    /// Pairs of instances placed against their groups' preference.
    pub pairs: u64,
    /// Number of moves.
    pub moves: usize,
}

/// Results of the rules on one cluster.
#[derive(Debug, Serialize, Deserialize)]
pub struct Comparison {
    /// The cluster.
    pub cluster: String,
    /// The initial state, then the result of each rule.
    pub outcomes: Vec<Outcome>,
}

/// All measurements.
#[derive(Debug, Serialize, Deserialize)]
pub struct Measured {
    /// Seconds for a plan of the large cluster, one for each run.
    pub seconds: Vec<f64>,
    /// The imbalance after it; 1 is even.
    pub imbalance: f64,
    /// A proven lower bound on the imbalance.
    pub bound: f64,
    /// Comparisons, one for each cluster.
    pub comparisons: Vec<Comparison>,
}

/// As strict as the goal for imbalance, so that the search is exercised.
fn policy() -> Policy {
    Policy { tolerance_percent: 2, least_gain_percent: 0, ..Policy::default() }
}

/// Measures, and prints as JSON.
///
/// # Errors
/// A recorded snapshot cannot be read; a plan does not pass the checker.
pub fn run(recorded: &Path, runs: usize) -> Result<()> {
    let large = workloads::large();
    let policy = policy();
    let mut seconds = Vec::new();
    let mut last = None;
    for _ in 0..runs {
        let began = Instant::now();
        last = Some(plan(&large, &policy)?);
        seconds.push(began.elapsed().as_secs_f64());
    }
    let last = last.context("--runs must be at least 1")?;
    checked("large", &large, &policy, &last)?;
    let mut comparisons = Vec::new();
    for (name, snapshot, extra) in workloads::ten() {
        comparisons.push(compare(&name, &snapshot, &Policy { drain: extra, ..policy.clone() })?);
    }
    for file in snapshots(recorded)? {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let snapshot = Snapshot::from_json(&file.display().to_string(), &text)?;
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        comparisons.push(compare(&name, &snapshot, &policy)?);
    }
    let i = last.report.imbalance;
    let measured = Measured {
        seconds,
        imbalance: i.after_ppm as f64 / 1e6,
        bound: i.bound_ppm as f64 / 1e6,
        comparisons,
    };
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

/// Recorded clusters, in order; empty when the folder does not exist.
fn snapshots(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut files: Vec<_> = fs::read_dir(folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<std::io::Result<_>>()?;
    files.retain(|f| f.extension().is_some_and(|e| e == "json"));
    files.sort();
    Ok(files)
}

fn checked(name: &str, snapshot: &Snapshot, policy: &Policy, made: &stead_placement::Plan) -> Result<()> {
    check(snapshot, policy, made).map_err(|faults| {
        let faults: Vec<String> = faults.iter().take(5).map(ToString::to_string).collect();
        anyhow::anyhow!("the plan of {name} does not pass the checker: {}", faults.join("; "))
    })
}

fn compare(name: &str, snapshot: &Snapshot, policy: &Policy) -> Result<Comparison> {
    let made = plan(snapshot, policy)?;
    checked(name, snapshot, policy, &made)?;
    let after = snapshot.with_moves(made.moves.iter().map(|m| (&m.instance, &m.to)));
    let mut outcomes = vec![outcome("as it is", snapshot, snapshot, policy)?];
    outcomes.push(outcome("stead", snapshot, &after, policy)?);
    outcomes[1].moves = made.moves.len();
    for (rule, place) in baselines::RULES {
        outcomes.push(outcome(rule, snapshot, &place(snapshot, policy), policy)?);
    }
    Ok(Comparison { cluster: name.to_owned(), outcomes })
}

fn outcome(rule: &str, before: &Snapshot, after: &Snapshot, policy: &Policy) -> Result<Outcome> {
    let report = plan(after, policy)?.report;
    let bound = plan(before, policy)?.report.imbalance.bound_ppm;
    let moves = before.instances.iter().zip(&after.instances).filter(|(a, b)| a.member != b.member).count();
    Ok(Outcome {
        rule: rule.to_owned(),
        over_bound: report.imbalance.before_ppm as f64 / bound as f64,
        violations: report.violations.len(),
        pairs: report.groups.iter().map(|g| g.pairs_before).sum(),
        moves,
    })
}
