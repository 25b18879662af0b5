//! Fifty nodes of the smallest image in namespaces: all answering, then gone.

use crate::bench::{Bench, row::Row};
use anyhow::Result;

const NODES: usize = 50;

pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    let file = format!("image: base\nnodes: {NODES}\nmachine: {{ backend: namespace }}\nengine: none\n");
    let cluster = bench.cluster("bench-fifty", &file)?;
    bench.image("base")?;
    // Once: it takes so long that chance matters little.
    let up = cluster.up()?;
    cluster.check_healthy(NODES)?;
    let down = cluster.down()?;
    Ok(vec![
        Row::without_goal(format!("{NODES} base nodes up and answering"), "s", up),
        Row::without_goal(format!("{NODES} base nodes down"), "s", down),
    ])
}
