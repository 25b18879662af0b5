//! `image build` when nothing changed.

use crate::bench::{
    Bench,
    measure::{output, repeated, seconds},
    row::Row,
    stead::needs_root,
};
use anyhow::Result;

/// Goal: short enough to run before every `up`.
const GOAL_S: f64 = 0.3;

pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    needs_root()?;
    bench.image("incus-node")?;
    let measured = repeated(bench.runs, || {
        seconds(|| output(bench.stead(["image", "build"]).arg(bench.recipe("incus-node"))))
    })?;
    Ok(vec![Row::limited("no-change rebuild", "s", measured, GOAL_S)])
}
