//! Resident memory of the agent on a node with an engine, and the size of its program.

use crate::bench::{Bench, row::Row};
use anyhow::{Context, Result};
use std::fs;

/// Limit on the agent's memory, which every node spends.
const MEMORY_GOAL_MIB: f64 = 10.0;
/// Limit on the program's size, which every initrd contains.
const SIZE_GOAL_MIB: f64 = 8.0;
const MIB: f64 = 1048576.0;

const CLUSTER: &str = "image: incus-node\nnodes: 1\nmachine: { backend: namespace }\nengine: incus\n";

pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    let program = bench.stead.with_file_name("stead-node");
    let size = fs::metadata(&program).with_context(|| format!("cannot see {}", program.display()))?.len();
    let cluster = bench.cluster("bench-agent", CLUSTER)?;
    bench.image("incus-node")?;
    cluster.up()?;
    // Measured after it has served a few connections, so that memory it keeps counts too.
    for _ in 0..10 {
        cluster.status()?;
    }
    let status = cluster.status()?;
    let resident = status["nodes"][0]["agent"]["agent_rss_bytes"]
        .as_f64()
        .context("stead status --json lacks agent_rss_bytes")?;
    Ok(vec![
        Row::limited("agent's resident memory", "MiB", resident / MIB, MEMORY_GOAL_MIB),
        Row::limited("size of stead-node", "MiB", size as f64 / MIB, SIZE_GOAL_MIB),
    ])
}
