//! `stead down`.

use crate::{cli, output, progress};
use anyhow::Result;
use std::{process::ExitCode, time::Instant};
use stead_cluster::{
    ClusterError, Host,
    down::{self, DownMode},
};

pub async fn down(host: &Host, args: cli::Down) -> Result<ExitCode> {
    let began = Instant::now();
    let mode = if args.keep_disks { DownMode::KeepDisks } else { DownMode::Delete };
    let (events, display) = progress::start();
    let result = down::down(host, &args.cluster, mode, &events).await;
    display.end(events).await;
    match result {
        Err(ClusterError::NoCluster(_)) if args.if_exists => {}
        other => {
            other?;
            let kept =
                if args.keep_disks { "; its disks are kept, `stead up` goes on with them" } else { "" };
            let seconds = began.elapsed().as_secs_f64();
            output::print(&format!("cluster {} is down, in {seconds:.1} s{kept}\n", args.cluster))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
