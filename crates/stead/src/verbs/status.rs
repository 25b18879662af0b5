//! `stead status` and `stead ls`.

use crate::{cli, output};
use anyhow::Result;
use std::{fmt::Write, process::ExitCode};
use stead_cluster::{Host, Record, observe, status, status::ClusterStatus};

pub async fn status(host: &Host, args: cli::Status) -> Result<ExitCode> {
    let status = status::status(host, &args.cluster).await?;
    if args.json {
        output::json(&status)?;
    } else {
        output::print(&render(&status, args.verbose))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The tables of nodes and instances.
pub fn render(status: &ClusterStatus, verbose: bool) -> String {
    let nodes: Vec<Vec<String>> = status
        .nodes
        .iter()
        .map(|n| {
            let engine = match n.engine.kind.is_none() {
                true => "-".to_owned(),
                false => format!("{} {}", n.engine.kind, n.engine.state),
            };
            vec![n.name.to_string(), n.phase.clone(), n.backend.to_string(), engine, n.addresses.join(" ")]
        })
        .collect();
    let mut out = output::table(&["NODE", "PHASE", "BACKEND", "ENGINE", "ADDRESSES"], &nodes);
    if !status.instances.is_empty() {
        let rows: Vec<Vec<String>> = status
            .instances
            .iter()
            .map(|i| vec![i.name.clone(), i.node.clone(), i.state.clone(), i.addresses.join(" ")])
            .collect();
        out.push('\n');
        out.push_str(&output::table(&["INSTANCE", "NODE", "STATE", "ADDRESSES"], &rows));
    }
    if verbose {
        for (name, agent) in status.nodes.iter().filter_map(|n| Some((&n.name, n.agent.as_ref()?))) {
            let _ = writeln!(
                out,
                "\n{name}: kernel {}, agent {} ({})",
                agent.kernel,
                agent.version,
                output::size(agent.agent_rss_bytes)
            );
            for e in &agent.timeline {
                let _ = writeln!(out, "  {:>7} ms  {}", e.at_ms, e.event);
            }
            for w in &agent.warnings {
                let _ = writeln!(out, "  warning: {w}");
            }
            let rows: Vec<Vec<String>> = agent
                .services
                .iter()
                .map(|s| {
                    vec![
                        s.name.clone(),
                        format!("{:?}", s.state).to_lowercase(),
                        s.pid.map(|p| p.to_string()).unwrap_or_default(),
                        s.restarts.to_string(),
                        s.last_exit.clone().unwrap_or_default(),
                    ]
                })
                .collect();
            if !rows.is_empty() {
                out.push_str(&output::table(&["  SERVICE", "STATE", "PID", "RESTARTS", "LAST EXIT"], &rows));
            }
        }
    }
    for w in &status.warnings {
        let _ = writeln!(out, "warning: {w}");
    }
    out
}

pub async fn ls(host: &Host, args: cli::Json) -> Result<ExitCode> {
    let mut rows = Vec::new();
    let mut list = Vec::new();
    for name in host.clusters()? {
        let layout = host.layout(&name);
        let Some(record) = Record::load(&layout)? else { continue };
        let (observed, _) = observe::observe(&layout, None).await?;
        let running = observed.nodes.values().filter(|n| n.running.is_some()).count();
        let total = record.spec.node_names().len();
        rows.push(vec![
            name.to_string(),
            format!("{running}/{total}"),
            record.engine.to_string(),
            record.spec.image.to_string(),
        ]);
        list.push(serde_json::json!({
            "name": name, "nodes": total, "running": running, "engine": record.engine, "image": record.spec.image
        }));
    }
    if args.json {
        output::json(&list)?;
    } else {
        output::print(&output::table(&["CLUSTER", "RUNNING", "ENGINE", "IMAGE"], &rows))?;
    }
    Ok(ExitCode::SUCCESS)
}
