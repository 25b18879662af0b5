//! `stead scale`.

use super::up;
use crate::{
    cli::{App, Exit, Run},
    error::{Error, Result},
    progress,
};
use clap::Args;
use stead_model::ClusterName;

/// Change the number of nodes: new ones join, surplus ones are evacuated, removed and deleted.
#[derive(Debug, Args)]
pub struct Scale {
    /// The cluster.
    cluster: ClusterName,
    /// The new number of nodes.
    #[arg(value_parser = clap::value_parser!(u32).range(1..=250))]
    count: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Run for Scale {
    fn run(self, app: &App) -> Result<Exit> {
        app.wait(async {
            let (events, display) = progress::start(app);
            let result = tokio::select! {
                result = stead_cluster::up::scale(&app.host, &self.cluster, self.count, &events) => result.map_err(Error::from),
                interrupted = progress::interrupted() => {
                    interrupted?;
                    Err(Error::interrupted("interrupted: the same command again continues"))
                }
            };
            display.end(events).await;
            up::finish(app, &self.cluster, &result?, self.json).await
        })
    }
}
