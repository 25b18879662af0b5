//! The planner against other rules, on made and on recorded clusters: `cargo xtask placement`, in release.
//!
//! Owns what is measured. Does not own the goals, which are of the row in `bench`.

mod baselines;
mod workloads;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::{fs, path::Path, time::Instant};
use stead_placement::{Policy, Snapshot, check, plan};

/// How even a rule leaves a cluster.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// The rule.
    pub rule: String,
    /// Imbalance over what is out of reach for certain: 1 could not be better.
    pub over_bound: f64,
    /// What should not be, and is.
    pub violations: usize,
    /// Pairs of instances that are not as their groups prefer.
    pub pairs: u64,
    /// Moves.
    pub moves: usize,
}

/// What each rule makes of one cluster.
#[derive(Debug, Serialize, Deserialize)]
pub struct Comparison {
    /// The cluster.
    pub cluster: String,
    /// As it is at the beginning, then after each rule.
    pub outcomes: Vec<Outcome>,
}

/// Everything that is measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Measured {
    /// Seconds for a plan of the large cluster, one for each run.
    pub seconds: Vec<f64>,
    /// The imbalance after it; 1 is even.
    pub imbalance: f64,
    /// What is out of reach for certain.
    pub bound: f64,
    /// The table.
    pub comparisons: Vec<Comparison>,
}

/// As tight as the goal for imbalance, so that the search has to work for it.
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
    let last = last.context("there must be a run")?;
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

/// Recorded clusters, in order; none when there is no folder.
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
