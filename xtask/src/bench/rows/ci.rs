//! The last `make test` of this checkout, by step, against its goals.

use crate::bench::{
    Bench,
    row::{Row, Skip},
};
use anyhow::{Context, Result};
use std::{fs, io};

/// Goal for the whole run on two CPUs, with nothing compiled or built before.
const COLD_GOAL_S: f64 = 30.0 * 60.0;
/// Goal for the whole run when an earlier one left third-party crates and images.
const WARM_GOAL_S: f64 = 15.0 * 60.0;

pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    let file = bench.root.join("build/test/steps");
    match fs::read_to_string(&file) {
        Ok(steps) => rows(&steps),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(Skip("`make test` has not been run in this checkout".into()).into())
        }
        Err(e) => Err(e).with_context(|| format!("cannot read {}", file.display())),
    }
}

/// Rows from lines `STEP SECONDS EXIT`; the last step is `all-cold` or `all-warm`.
fn rows(steps: &str) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for line in steps.lines() {
        let mut words = line.split(' ');
        let (Some(step), Some(Ok(seconds))) = (words.next(), words.next().map(str::parse::<f64>)) else {
            anyhow::bail!("build/test/steps has a line {line:?}");
        };
        let name = format!("ci: {step}");
        rows.push(match step {
            "all-cold" => Row::limited(name, "s", seconds, COLD_GOAL_S),
            "all-warm" => Row::limited(name, "s", seconds, WARM_GOAL_S),
            _ => Row::without_goal(name, "s", seconds),
        });
    }
    if !rows.iter().any(|r| r.name.starts_with("ci: all-")) {
        return Err(Skip("the last `make test` of this checkout did not finish".into()).into());
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_listed_and_their_sum_has_a_goal() {
        let made = rows("deps 3 0\ntests 700 0\nall-warm 901 0\n").unwrap();
        let told: Vec<(&str, f64, Option<f64>, bool)> =
            made.iter().map(|r| (r.name.as_str(), r.measured, r.goal, r.holds)).collect();
        assert_eq!(
            told,
            [
                ("ci: deps", 3.0, None, true),
                ("ci: tests", 700.0, None, true),
                ("ci: all-warm", 901.0, Some(900.0), false)
            ]
        );
        assert!(rows("deps three 0\n").is_err());
        assert!(rows("deps 3 0\n").unwrap_err().is::<Skip>());
    }
}
