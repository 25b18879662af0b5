//! `stead reboot`.

use crate::{
    cli::{App, Exit, Run},
    error::{Error, Result},
};
use clap::Args;
use std::time::{Duration, Instant};
use stead_cluster::{ClusterError, remote};
use stead_model::{
    ClusterName,
    agent::{NodePhase, StopRequest},
};

/// Pause between two questions to a node that restarts.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// Reboot a node cleanly.
#[derive(Debug, Args)]
pub struct Reboot {
    /// The cluster.
    cluster: ClusterName,
    /// The node.
    node: String,
    /// How long its services get to stop.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    deadline: u32,
    /// Do not wait until the node is running again.
    #[arg(long)]
    no_wait: bool,
}

impl Run for Reboot {
    fn run(self, app: &App) -> Result<Exit> {
        app.wait(reboot(app, self))
    }
}

async fn reboot(app: &App, args: Reboot) -> Result<Exit> {
    let began = Instant::now();
    let client = remote::connect(&app.host, &args.cluster, &args.node)?;
    let back_within = remote::patience(&app.host, &args.cluster, &args.node)?;
    let node = remote::require_node(&app.host, &args.cluster, &args.node)?;
    let error = |e| ClusterError::Agent { action: "reboot", node: node.clone(), source: Box::new(e) };
    let before = client.status().await.map_err(error)?.boot_id;
    client.reboot(&StopRequest { deadline_s: args.deadline }).await.map_err(error)?;
    if args.no_wait {
        return Ok(Exit::SUCCESS);
    }
    let deadline = began + Duration::from_secs(u64::from(args.deadline)) + back_within;
    loop {
        if let Ok(status) = client.status().await
            && status.boot_id != before
        {
            match status.phase {
                NodePhase::Running => break,
                NodePhase::Rescue => {
                    let why = status.rescue.unwrap_or_default();
                    return Err(Error::failed(format!("node {node} came back in rescue: {why}")));
                }
                _ => {}
            }
        }
        if Instant::now() > deadline {
            let seconds = (deadline - began).as_secs();
            let hint = format!("see `stead console {} {node}`", args.cluster);
            return Err(Error::failed_hint(
                format!("node {node} did not come back within {seconds} s"),
                hint,
            ));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    app.output.print(format!("node {node} is running again, after {seconds:.1} s\n"))?;
    Ok(Exit::SUCCESS)
}
