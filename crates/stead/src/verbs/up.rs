//! `stead up`, and what it shares with `stead scale`: the report.

use super::status;
use crate::{
    cli::{App, Exit, Run},
    error::{Error, Result},
    progress,
};
use clap::{Args, ValueHint};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use stead_cluster::{
    ClusterError, Record,
    down::{self, DownMode},
    up as cluster,
    up::{UpReport, UpRequest},
};
use stead_model::{ClusterName, ClusterSpec, FailureKind};

/// How often an interrupted first `up` takes down what was still starting.
const LATE_STARTS: u32 = 5;
/// Pause before it does so again.
const LATE_START_PAUSE: Duration = Duration::from_millis(300);

/// Bring a cluster to the state that its file describes. Run it again at any time.
#[derive(Debug, Args)]
pub struct Up {
    /// The cluster file; `-` is standard input.
    #[arg(value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// Only print the plan.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Run for Up {
    fn run(self, app: &App) -> Result<Exit> {
        let (name, text) = super::read_text(app, &self.file)?;
        let spec = ClusterSpec::from_yaml(&name, &text)?;
        // What the file names is relative to it; read from stdin, to where we are.
        let file = app.context.absolute(&self.file);
        let base_dir = file.parent().unwrap_or(Path::new("/")).to_owned();
        let request = UpRequest { spec, base_dir };
        match self.dry_run {
            true => app.wait(dry_run(app, request, self.json)),
            false => app.wait(up(app, request, self.json)),
        }
    }
}

async fn dry_run(app: &App, request: UpRequest, json: bool) -> Result<Exit> {
    let (events, display) = progress::start(app);
    let plan = cluster::dry_run(&app.host, request, &events).await;
    display.end(events).await;
    let plan = plan?;
    match json {
        true => app.output.json(&plan)?,
        false => app.output.print(plan.to_string())?,
    }
    Ok(Exit::SUCCESS)
}

async fn up(app: &App, request: UpRequest, json: bool) -> Result<Exit> {
    let host = &app.host;
    let cluster = request.spec.name.clone();
    let is_new = Record::load(&host.layout(&cluster)).is_ok_and(|r| r.is_none());
    let (events, display) = progress::start(app);
    let result = tokio::select! {
        result = cluster::up(host, request, &events) => Some(result),
        interrupted = progress::interrupted() => { interrupted?; None }
    };
    display.end(events).await;
    match result {
        Some(result) => finish(app, &cluster, &result?, json).await,
        None if is_new => {
            app.output.note("\ninterrupted: taking down what was started");
            let (events, display) = progress::start(app);
            let mut result = down::down(host, &cluster, DownMode::Delete, &events).await;
            for _ in 0..LATE_STARTS {
                if matches!(result, Ok(()) | Err(ClusterError::NoCluster(_))) {
                    break;
                }
                // A machine that was amid its start when `up` ended has come up since.
                tokio::time::sleep(LATE_START_PAUSE).await;
                result = down::down(host, &cluster, DownMode::Delete, &events).await;
            }
            display.end(events).await;
            match result {
                Ok(()) | Err(ClusterError::NoCluster(_)) => Ok(Exit(FailureKind::Interrupted.exit_code())),
                Err(e) => Err(e.into()),
            }
        }
        None => Err(Error::interrupted(format!(
            "interrupted: cluster {cluster} existed before and stays as it is now; `stead up` continues"
        ))),
    }
}

/// Prints what `up` came to.
pub async fn finish(app: &App, cluster: &ClusterName, report: &UpReport, json: bool) -> Result<Exit> {
    if json {
        app.output.json(report)?;
        return Ok(Exit::SUCCESS);
    }
    let seconds = report.seconds;
    if report.plan.is_empty() && report.later.is_empty() {
        app.output.print(format!("cluster {cluster}: nothing to do ({seconds:.1} s)\n"))?;
        return Ok(Exit::SUCCESS);
    }
    let status = stead_cluster::status::status(&app.host, cluster).await?;
    app.output.print(status::render(&status, false))?;
    app.output.print(format!("\ncluster {cluster} is up, in {seconds:.1} s\n"))?;
    Ok(Exit::SUCCESS)
}
