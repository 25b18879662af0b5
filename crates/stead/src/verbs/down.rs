//! `stead down`.

use crate::{
    cli::{App, Exit, Run},
    error::Result,
    progress,
};
use clap::Args;
use std::time::Instant;
use stead_cluster::{
    ClusterError,
    down::{self, DownMode},
};
use stead_model::ClusterName;

/// Take a cluster down and delete everything that belongs to it.
#[derive(Debug, Args)]
pub struct Down {
    /// The cluster.
    cluster: ClusterName,
    /// Stop the nodes cleanly and keep their disks: `up` continues with them.
    #[arg(long)]
    keep_disks: bool,
    /// Succeed when there is no such cluster.
    #[arg(long)]
    if_exists: bool,
}

impl Run for Down {
    fn run(self, app: &App) -> Result<Exit> {
        let began = Instant::now();
        let mode = if self.keep_disks { DownMode::KeepDisks } else { DownMode::Delete };
        let down = app.wait(async {
            let (events, display) = progress::start(app);
            let result = down::down(&app.host, &self.cluster, mode, &events).await;
            display.end(events).await;
            Ok(result)
        })?;
        match down {
            Err(ClusterError::NoCluster(_)) if self.if_exists => {}
            other => {
                other?;
                let kept = if self.keep_disks { "; `stead up` continues with its disks" } else { "" };
                let seconds = began.elapsed().as_secs_f64();
                let name = &self.cluster;
                app.output.print(format!("cluster {name} is down, in {seconds:.1} s{kept}\n"))?;
            }
        }
        Ok(Exit::SUCCESS)
    }
}
