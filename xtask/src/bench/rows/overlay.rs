//! One file of a boot overlay changes; `up` makes every node healthy again.

use crate::bench::{Bench, measure::repeated, row::Row};
use anyhow::{Context, Result};
use std::{cell::Cell, fs};

/// Seconds. The members are restarted one after the other, so that the cluster keeps its quorum.
const GOAL: f64 = 3.0;
const CLUSTER: &str = "image: incus-node\nnodes: 3\nmachine:\n  backend: namespace\n  \
                       disks: [{ name: data, size: 2GiB, role: data }]\nengine: incus\noverlays: [overlay]\n";

pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    let cluster = bench.cluster("bench-overlay", CLUSTER)?;
    bench.image("incus-node")?;
    let file = cluster.dir().join("overlay/etc/stead-bench");
    let version = Cell::new(0);
    let change = || {
        version.set(version.get() + 1);
        fs::create_dir_all(file.parent().context("the file has a directory")?)?;
        fs::write(&file, format!("version {}\n", version.get())).context("cannot write the overlay")
    };
    change()?;
    cluster.up()?;
    let measured = repeated(bench.runs, || {
        change()?;
        let took = cluster.up()?;
        cluster.check_healthy(3)?;
        Ok(took)
    })?;
    Ok(vec![Row::limited("overlay changed, 3 Incus nodes healthy again", "s", measured, GOAL)])
}
