//! `stead status`.

use crate::{
    cli::{App, Exit, Run},
    error::Result,
    output,
};
use clap::Args;
use std::fmt::Write;
use stead_cluster::{status, status::ClusterStatus};
use stead_model::ClusterName;

/// Show a cluster: nodes, engine, instances.
#[derive(Debug, Args)]
pub struct Status {
    /// The cluster.
    cluster: ClusterName,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Also show the boot timeline and the services of every node.
    #[arg(long, short)]
    verbose: bool,
}

impl Run for Status {
    fn run(self, app: &App) -> Result<Exit> {
        let status = app.wait(async { Ok(status::status(&app.host, &self.cluster).await?) })?;
        if self.json {
            app.output.json(&status)?;
        } else {
            app.output.print(render(&status, self.verbose))?;
        }
        Ok(Exit::SUCCESS)
    }
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
