//! `stead ls`.

use crate::{
    cli::{App, Exit, Run},
    error::Result,
    output,
};
use clap::Args;
use stead_cluster::{Record, observe};

/// List the clusters on this host.
#[derive(Debug, Args)]
pub struct Ls {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Run for Ls {
    fn run(self, app: &App) -> Result<Exit> {
        let mut rows = Vec::new();
        let mut list = Vec::new();
        for name in app.host.clusters()? {
            let layout = app.host.layout(&name);
            let Some(record) = Record::load(&layout)? else { continue };
            let (observed, _) = app.wait(async { Ok(observe::observe(&layout, None).await?) })?;
            let running = observed.nodes.values().filter(|n| n.running.is_some()).count();
            let total = record.spec.node_names().len();
            rows.push(vec![
                name.to_string(),
                format!("{running}/{total}"),
                record.engine.to_string(),
                record.spec.image.to_string(),
            ]);
            list.push(serde_json::json!({
                "name": name, "nodes": total, "running": running, "engine": record.engine,
                "image": record.spec.image
            }));
        }
        if self.json {
            app.output.json(&list)?;
        } else {
            app.output.print(output::table(&["CLUSTER", "RUNNING", "ENGINE", "IMAGE"], &rows))?;
        }
        Ok(Exit::SUCCESS)
    }
}
