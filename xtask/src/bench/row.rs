//! A row of the results, and the table of them.

use serde::Serialize;
use std::fmt::Write;

/// A benchmark that cannot be run here, with the reason.
#[derive(Debug)]
pub struct Skip(pub String);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Skip {}

/// One measured thing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// The median.
    pub measured: f64,
    /// `s` or `MiB`; empty for a plain number.
    pub unit: &'static str,
    /// The floor's median, from the same run.
    pub floor: Option<f64>,
    /// `measured / floor`.
    pub ratio: Option<f64>,
    /// The largest acceptable ratio or, for a row without a floor, the largest acceptable `measured`. `None`: no goal.
    pub goal: Option<f64>,
    /// Whether the goal is met; true without a goal.
    pub holds: bool,
}

impl Row {
    /// A row whose ratio to a floor must not exceed `goal`.
    pub fn against(
        name: impl Into<String>,
        unit: &'static str,
        measured: f64,
        floor: f64,
        goal: f64,
    ) -> Self {
        let ratio = measured / floor;
        Self {
            name: name.into(),
            measured: rounded(measured),
            unit,
            floor: Some(rounded(floor)),
            ratio: Some(rounded(ratio)),
            goal: Some(goal),
            // NaN and infinity (from a floor of zero) do not meet the goal.
            holds: ratio <= goal,
        }
    }

    /// A row whose value must not exceed `goal`.
    pub fn limited(name: impl Into<String>, unit: &'static str, measured: f64, goal: f64) -> Self {
        Self { holds: measured <= goal, goal: Some(goal), ..Self::without_goal(name, unit, measured) }
    }

    /// A row for information only.
    pub fn without_goal(name: impl Into<String>, unit: &'static str, measured: f64) -> Self {
        Self {
            name: name.into(),
            measured: rounded(measured),
            unit,
            floor: None,
            ratio: None,
            goal: None,
            holds: true,
        }
    }
}

/// Rounds to milliseconds or thousandths of a MiB: a run is not more precise.
fn rounded(x: f64) -> f64 {
    (x * 1000.0).round() / 1000.0
}

/// The table that is printed.
pub fn table(rows: &[Row]) -> String {
    let head = ["what", "measured", "floor", "ratio", "goal", "holds"].map(str::to_owned);
    let mut cells = vec![head];
    for r in rows {
        let in_unit = |x: f64| format!("{x:.2} {}", r.unit).trim_end().to_owned();
        let goal = match (r.goal, r.floor) {
            (Some(goal), Some(_)) => format!("{goal:.2} x"),
            (Some(goal), None) => in_unit(goal),
            (None, _) => "-".to_owned(),
        };
        cells.push([
            r.name.clone(),
            in_unit(r.measured),
            r.floor.map_or("-".to_owned(), in_unit),
            r.ratio.map_or("-".to_owned(), |x| format!("{x:.2} x")),
            goal,
            match (r.goal, r.holds) {
                (None, _) => "-",
                (_, true) => "yes",
                (_, false) => "NO",
            }
            .to_owned(),
        ]);
    }
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for row in &cells {
        let _ = write!(out, "{:<1$}", row[0], width(0));
        for (column, cell) in row.iter().enumerate().skip(1) {
            let _ = write!(out, "  {cell:>0$}", width(column));
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_hold_or_not() {
        assert!(Row::against("a", "s", 2.0, 1.9, 1.5).holds);
        assert!(!Row::against("a", "s", 3.0, 1.9, 1.5).holds);
        assert!(!Row::against("a", "s", 1.0, 0.0, 1.5).holds, "a floor of nothing proves nothing");
        assert!(!Row::limited("a", "MiB", 8.5, 8.0).holds);
        let json = serde_json::to_value(Row::without_goal("a", "s", 1.23456)).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"name": "a", "measured": 1.235, "unit": "s", "floor": null, "ratio": null, "goal": null, "holds": true})
        );
    }

    #[test]
    fn table_lines_up() {
        let t = table(&[Row::against("warm up", "s", 2.5, 2.0, 1.5), Row::limited("size", "MiB", 9.0, 8.0)]);
        assert_eq!(
            t,
            "what     measured   floor   ratio      goal  holds\n\
             warm up    2.50 s  2.00 s  1.25 x    1.50 x    yes\n\
             size     9.00 MiB       -       -  8.00 MiB     NO\n"
        );
    }
}
