//! The planner: its time for a large cluster, the imbalance after its plan, and a comparison with other rules on ten
//! synthetic and the recorded clusters.

use crate::{
    bench::{Bench, measure::median, measure::output, row::Row},
    placement::Measured,
};
use anyhow::{Context, Result, ensure};
use std::process::Command;

/// Limit on a plan's time: its user is waiting.
const SECONDS_GOAL: f64 = 1.0;
/// Limit on the imbalance, as a multiple of the bound.
const IMBALANCE_GOAL: f64 = 1.02;

pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    ensure!(!cfg!(debug_assertions), "the planner must be measured in release, as `make bench` does");
    // A separate process; the planner has only one thread.
    let said = output(
        Command::new(std::env::current_exe()?)
            .args(["placement", "--runs"])
            .arg(bench.runs.to_string())
            .current_dir(&bench.root),
    )?;
    let measured: Measured = serde_json::from_str(&said).context("xtask placement printed no JSON")?;
    print!("{}", table(&measured));
    Ok(vec![
        Row::limited("plan, 1000 members, 20000 instances", "s", median(measured.seconds), SECONDS_GOAL),
        Row::against("imbalance after it", "", measured.imbalance, measured.bound, IMBALANCE_GOAL),
    ])
}

/// Imbalance over the bound, violations and moves, by cluster and rule.
fn table(measured: &Measured) -> String {
    let rules: Vec<&str> = measured
        .comparisons
        .first()
        .map_or(Vec::new(), |c| c.outcomes.iter().map(|o| o.rule.as_str()).collect());
    let mut out = format!("{:<24}", "imbalance/amiss/moves");
    rules.iter().for_each(|rule| out += &format!("{rule:>20}"));
    out.push('\n');
    for c in &measured.comparisons {
        out += &format!("{:<24}", c.cluster);
        for o in &c.outcomes {
            out += &format!(
                "{:>20}",
                format!("{:.2} / {} / {}", o.over_bound, o.violations as u64 + o.pairs, o.moves)
            );
        }
        out.push('\n');
    }
    out
}
