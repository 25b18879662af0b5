//! `stead shell`.

use super::exec;
use crate::{
    cli::{App, Exit, Run},
    error::Result,
};
use clap::Args;
use std::collections::BTreeMap;
use stead_cluster::Record;
use stead_model::{ClusterName, agent::ExecRequest};

/// Open a shell on a node.
#[derive(Debug, Args)]
pub struct Shell {
    /// The cluster.
    cluster: ClusterName,
    /// The node [default: the first]
    node: Option<String>,
}

impl Run for Shell {
    fn run(self, app: &App) -> Result<Exit> {
        let record = Record::require(&app.host.layout(&self.cluster))?;
        let first = record.spec.node_names().first().map(ToString::to_string).unwrap_or_default();
        let terminal_type = app.context.terminal_type.clone();
        let request = ExecRequest {
            // Every Debian has bash; an image without it has sh.
            command: ["/bin/sh", "-c", "exec bash -l 2>/dev/null || exec sh -l"].map(str::to_owned).to_vec(),
            environment: terminal_type.map(|t| BTreeMap::from([("TERM".to_owned(), t)])).unwrap_or_default(),
            cwd: None,
            tty: exec::is_interactive(app).then(exec::terminal_size),
        };
        exec::on_node(app, &self.cluster, self.node.as_deref().unwrap_or(&first), &request)
    }
}
