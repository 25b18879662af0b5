//! `stead logs`.

use crate::{
    cli::{App, Exit, Run},
    error::Result,
};
use clap::Args;
use stead_cluster::{ClusterError, remote};
use stead_model::ClusterName;

/// Show the logs of a node or of one of its services.
#[derive(Debug, Args)]
pub struct Logs {
    /// The cluster.
    cluster: ClusterName,
    /// The node.
    node: String,
    /// The service; `node` is the node's own log.
    #[arg(default_value = "node")]
    service: String,
    /// Keep printing what is added.
    #[arg(long, short)]
    follow: bool,
    /// Start with the last N lines.
    #[arg(long, short = 'n', value_name = "N", default_value_t = 100)]
    tail: u32,
}

impl Run for Logs {
    fn run(self, app: &App) -> Result<Exit> {
        app.wait(async {
            let client = remote::connect(&app.host, &self.cluster, &self.node)?;
            let node = remote::require_node(&app.host, &self.cluster, &self.node)?;
            let error =
                |e| ClusterError::Agent { action: "read logs", node: node.clone(), source: Box::new(e) };
            let tail = Some(u64::from(self.tail));
            let mut chunks = client.logs(Some(&self.service), tail, self.follow).await.map_err(error)?;
            while let Some(bytes) = chunks.next_chunk().await.map_err(error)? {
                app.output.print(&bytes)?;
            }
            Ok(Exit::SUCCESS)
        })
    }
}
