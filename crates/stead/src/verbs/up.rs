//! `stead up` and `stead scale`.

use crate::{cli, output, progress};
use anyhow::{Context, Result, anyhow};
use std::{path::Path, process::ExitCode};
use stead_cluster::{
    Host, Record, apply,
    apply::{UpReport, UpRequest},
    down::{self, DownMode},
    status,
};
use stead_model::{ClusterName, ClusterSpec};

pub async fn up(host: &Host, args: cli::Up) -> Result<ExitCode> {
    let (name, text) = super::read_text(&args.file)?;
    let spec = ClusterSpec::from_yaml(&name, &text)?;
    // What the file names is relative to it; read from stdin, to where we are.
    let file = std::path::absolute(&args.file).context("find the cluster file's directory")?;
    let base_dir = file.parent().unwrap_or(Path::new("/")).to_owned();
    let cluster = spec.name.clone();
    let request = UpRequest { spec, base_dir };
    if args.dry_run {
        let (events, display) = progress::start();
        let plan = apply::dry_run(host, request, &events).await;
        display.end(events).await;
        let plan = plan?;
        if args.json {
            output::json(&plan)?
        } else {
            output::print(&plan.to_string())?
        }
        return Ok(ExitCode::SUCCESS);
    }
    let is_new = Record::load(&host.layout(&cluster)).is_ok_and(|r| r.is_none());
    let (events, display) = progress::start();
    let result = tokio::select! {
        result = apply::up(host, request, &events) => Some(result),
        _ = tokio::signal::ctrl_c() => None,
    };
    display.end(events).await;
    match result {
        Some(result) => finish(host, &cluster, result?, args.json).await,
        None if is_new => {
            eprintln!("\ninterrupted: taking down what was started");
            let (events, display) = progress::start();
            let result = down::down(host, &cluster, DownMode::Delete, &events).await;
            display.end(events).await;
            match result {
                Ok(()) | Err(stead_cluster::ClusterError::NoCluster(_)) => Ok(ExitCode::from(130)),
                Err(e) => Err(e.into()),
            }
        }
        None => Err(anyhow!(
            "interrupted; cluster {cluster} was there before and is left as it is: `stead up` goes on"
        )),
    }
}

pub async fn scale(host: &Host, args: cli::Scale) -> Result<ExitCode> {
    let (events, display) = progress::start();
    let result = tokio::select! {
        result = apply::scale(host, &args.cluster, args.count, &events) => result.map_err(anyhow::Error::from),
        _ = tokio::signal::ctrl_c() => Err(anyhow!("interrupted; `stead scale` again goes on")),
    };
    display.end(events).await;
    finish(host, &args.cluster, result?, args.json).await
}

async fn finish(host: &Host, cluster: &ClusterName, report: UpReport, json: bool) -> Result<ExitCode> {
    if json {
        output::json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    if report.plan.is_empty() {
        output::print(&format!("cluster {cluster}: nothing to do ({:.1} s)\n", report.seconds))?;
        return Ok(ExitCode::SUCCESS);
    }
    let status = status::status(host, cluster).await?;
    output::print(&super::status::render(&status, false))?;
    output::print(&format!("\ncluster {cluster} is up, in {:.1} s\n", report.seconds))?;
    Ok(ExitCode::SUCCESS)
}
