//! `up` of three namespace nodes with Incus, against a script that starts the same daemons in bare namespaces and joins
//! them by hand.

use crate::bench::{
    Bench,
    measure::{in_turns, output},
    row::Row,
    stead::needs_root,
};
use anyhow::{Context, Result};
use std::process::Command;

/// Limit on the ratio of `up` to the floor, which is the daemons' own work without needless waiting.
const GOAL: f64 = 0.75;
// No disks: the floor has its storage in a directory too.
const CLUSTER: &str = "image: incus-node\nnodes: 3\nmachine: { backend: namespace }\nengine: incus\n";

pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    needs_root()?;
    bench.image("incus-node")?;
    let layers = bench.layers("incus-node")?;
    let (in_image, script) = (bench.root.join("bench/in-image.sh"), bench.root.join("bench/floor-incus.sh"));
    let cluster = bench.cluster("bench-warm-up", CLUSTER)?;
    let measured = || {
        let took = cluster.up()?;
        cluster.check_healthy(3)?;
        cluster.down()?;
        Ok(took)
    };
    let floor = || {
        let said = output(Command::new(&in_image).args(&layers).arg("--").arg(&script))?;
        let last = said.lines().last().unwrap_or_default();
        last.trim().parse().with_context(|| format!("{} said {last:?}, no seconds", script.display()))
    };
    // One run to fill the page cache.
    floor()?;
    measured()?;
    let (measured, floor) = in_turns(bench.runs, measured, floor)?;
    Ok(vec![Row::against("warm up, 3 Incus nodes", "s", measured, floor, GOAL)])
}
