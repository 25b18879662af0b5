//! `stead console`. The console is a file on this host, so it can be read when the node does not answer.

use crate::{
    cli::{App, Exit, Run},
    error::Result,
};
use clap::Args;
use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    time::Duration,
};
use stead_cluster::{files, remote};
use stead_model::ClusterName;

/// How often `--follow` looks for more. A person reads it.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Show the console of a node (what its kernel and init print).
#[derive(Debug, Args)]
pub struct Console {
    /// The cluster.
    cluster: ClusterName,
    /// The node.
    node: String,
    /// Keep printing what is added.
    #[arg(long, short)]
    follow: bool,
    /// Start with the last N lines.
    #[arg(long, short = 'n', value_name = "N", default_value_t = 100)]
    tail: u32,
}

impl Run for Console {
    fn run(self, app: &App) -> Result<Exit> {
        let node = remote::require_node(&app.host, &self.cluster, &self.node)?;
        let path = app.host.layout(&self.cluster).node(&node).join("console.log");
        let text = files::tail(&path, self.tail as usize);
        if !text.is_empty() {
            app.output.print(text + "\n")?;
        }
        if !self.follow {
            return Ok(Exit::SUCCESS);
        }
        let mut at = fs::metadata(&path).map_or(0, |m| m.len());
        app.wait(async {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                    _ = tokio::signal::ctrl_c() => return Ok(Exit::SUCCESS),
                }
                let Ok(mut file) = File::open(&path) else { continue };
                let size = file.metadata().map_or(0, |m| m.len());
                if size < at {
                    at = 0; // rotated
                }
                if size > at {
                    let mut more = Vec::new();
                    file.seek(SeekFrom::Start(at))?;
                    at += file.take(size - at).read_to_end(&mut more)? as u64;
                    app.output.print(&more)?;
                }
            }
        })
    }
}
