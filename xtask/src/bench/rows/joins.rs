//! How the cost of an Incus cluster grows with its nodes: `up` of 1, 3, 6 and 12, and what the twelfth member costs.

use crate::bench::{Bench, measure::median, row::Row, stead::needs_root};
use anyhow::{Context, Result, ensure};
use serde_json::Value;

const SIZES: [usize; 4] = [1, 3, 6, 12];
/// What the last member may cost, in seconds, from the moment at which the one before it was online.
const GOAL: f64 = 0.5;

pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    needs_root()?;
    bench.image("incus-node")?;
    let mut took: Vec<Vec<f64>> = vec![Vec::new(); SIZES.len()];
    let mut last = Vec::new();
    // By turns, so that whatever else the machine does falls on all sizes.
    for run in 0..bench.slow_runs() {
        for (size, took) in SIZES.iter().zip(&mut took) {
            let file = format!(
                "image: incus-node\nnodes: {size}\nmachine: {{ backend: namespace }}\nengine: incus\n"
            );
            let cluster = bench.cluster("bench-joins", &file)?;
            took.push(cluster.up()?);
            cluster.check_healthy(*size)?;
            eprintln!("bench:   run {}, {size} nodes: {:.2}", run + 1, took[run]);
            if *size == SIZES[SIZES.len() - 1] {
                last.push(cost_of_last(&cluster.status()?)?);
            }
        }
    }
    let took: Vec<f64> = took.into_iter().map(median).collect();
    let mut rows = vec![Row::without_goal("1 Incus node up", "s", took[0])];
    for (sizes, took) in SIZES.windows(2).zip(took.windows(2)) {
        let (fewer, more) = (sizes[0], sizes[1]);
        rows.push(Row::without_goal(format!("{more} Incus nodes up"), "s", took[1]));
        let each = (took[1] - took[0]) / (more - fewer) as f64;
        rows.push(Row::without_goal(format!("each added node, {fewer} to {more}"), "s", each));
    }
    rows.push(Row::limited("the 12th member, after the 11th", "s", median(last), GOAL));
    Ok(rows)
}

/// Seconds between the moments at which the last two members were online.
fn cost_of_last(status: &Value) -> Result<f64> {
    let nodes = status["nodes"].as_array().context("stead status --json has no nodes")?;
    // Before the moment at which the nodes were asked, which is the same for all within milliseconds.
    let mut ago = nodes.iter().map(|n| member_for(&n["agent"])).collect::<Result<Vec<f64>>>()?;
    ago.sort_by(f64::total_cmp);
    ensure!(ago.len() > 1, "fewer than two members");
    Ok((ago[1] - ago[0]) / 1000.0)
}

/// For how many milliseconds a node has been a member.
fn member_for(agent: &Value) -> Result<f64> {
    let timeline = agent["timeline"].as_array().context("a node reports no timeline")?;
    // The last that a node notes of its engine while it comes up is that it is a member.
    let joined = timeline.iter().rfind(|e| e["kind"] == "engine");
    let joined = joined.and_then(|e| e["at_ms"].as_f64()).context("a node does not say when it joined")?;
    Ok(agent["uptime_ms"].as_f64().context("a node reports no uptime")? - joined)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_last_member_costs_what_passed_since_the_one_before() {
        let node = |uptime: u32, joined: u32| {
            let timeline = json!([{ "at_ms": 900, "kind": "engine" }, { "at_ms": joined, "kind": "engine" }, { "at_ms": joined + 1, "kind": "service" }]);
            json!({ "agent": { "uptime_ms": uptime, "timeline": timeline } })
        };
        // They joined 4000, 3100 and 3500 ms ago.
        let status = json!({ "nodes": [node(5000, 1000), node(4100, 1000), node(4400, 900)] });
        assert_eq!(cost_of_last(&status).unwrap(), 0.4);
        assert!(cost_of_last(&json!({ "nodes": [node(1, 0)] })).is_err());
        assert!(cost_of_last(&json!({ "nodes": [{}, {}] })).is_err());
    }
}
