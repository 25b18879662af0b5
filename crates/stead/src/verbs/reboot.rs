//! `stead reboot`.

use crate::{cli, output};
use anyhow::{Result, bail};
use std::{
    process::ExitCode,
    time::{Duration, Instant},
};
use stead_cluster::{ClusterError, Host, remote};
use stead_model::agent::{NodePhase, StopRequest};

/// An emulated machine needs this long to come back, at worst.
const BACK_WITHIN: Duration = Duration::from_secs(300);

pub async fn reboot(host: &Host, args: cli::Reboot) -> Result<ExitCode> {
    let began = Instant::now();
    let client = remote::connect(host, &args.cluster, &args.node)?;
    let node = remote::require_node(host, &args.cluster, &args.node)?;
    let error = |e| ClusterError::Agent { action: "reboot", node: node.clone(), source: Box::new(e) };
    let before = client.status().await.map_err(error)?.boot_id;
    client.reboot(&StopRequest { deadline_s: args.deadline }).await.map_err(error)?;
    if args.no_wait {
        return Ok(ExitCode::SUCCESS);
    }
    let deadline = began + Duration::from_secs(u64::from(args.deadline)) + BACK_WITHIN;
    loop {
        if let Ok(status) = client.status().await
            && status.boot_id != before
        {
            match status.phase {
                NodePhase::Running => break,
                NodePhase::Rescue => {
                    bail!("node {node} came back in rescue: {}", status.rescue.unwrap_or_default())
                }
                _ => {}
            }
        }
        if Instant::now() > deadline {
            bail!(
                "node {node} did not come back within {} s; see `stead console {} {node}`",
                (deadline - began).as_secs(),
                args.cluster
            );
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    output::print(&format!("node {node} runs again, after {:.1} s\n", began.elapsed().as_secs_f64()))?;
    Ok(ExitCode::SUCCESS)
}
