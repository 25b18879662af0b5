//! `stead fleet`: looking after clusters, made by Stead or not.

use crate::{cli, output};
use anyhow::{Context, Result};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};
use stead_cluster::{Host, client_env};
use stead_fleet::{
    facts,
    journal::Journal,
    rebalance::{Event, Limits, Outcome, Rebalance, Summary},
    snapshot::snapshot,
};
use stead_incus::{Client, Endpoint};
use stead_placement::{Plan, Policy, check, plan, plan::Move};
use tokio::sync::watch;

/// Sockets of this host's engines: Debian's Incus, and LXD from Debian and as a snap.
const SOCKETS: [&str; 3] =
    ["/var/lib/incus/unix.socket", "/var/lib/lxd/unix.socket", "/var/snap/lxd/common/lxd/unix.socket"];

pub async fn fleet(host: &Host, verb: cli::FleetVerb) -> Result<ExitCode> {
    match verb {
        cli::FleetVerb::Plan(args) => {
            let policy = policy(&args)?;
            let client = client(host, &args.target).await?;
            show(&planned(&client, &policy).await?.1, args.json)?;
            Ok(ExitCode::SUCCESS)
        }
        cli::FleetVerb::Rebalance(args) => rebalance(host, args).await,
    }
}

fn policy(args: &cli::FleetPlan) -> Result<Policy> {
    let mut policy = match &args.policy {
        Some(file) => {
            let (name, text) = super::read_text(file)?;
            Policy::from_yaml(&name, &text)?
        }
        None => Policy::default(),
    };
    policy.max_moves = args.max_moves.or(policy.max_moves);
    Ok(policy)
}

async fn client(host: &Host, target: &cli::FleetTarget) -> Result<Client> {
    if let Some(cluster) = &target.cluster {
        return Ok(client_env::engine_client(host, cluster).await?);
    }
    let socket = match &target.socket {
        Some(socket) => socket.clone(),
        None => SOCKETS.iter().map(PathBuf::from).find(|p| p.exists()).ok_or_else(|| {
            output::BadInput(
                "no engine runs on this host: name a cluster with --cluster or a socket with --socket".into(),
            )
        })?,
    };
    Ok(Client::discover(Endpoint::Unix(socket)).await?)
}

/// The cluster's fingerprint and the plan for it as it is now, which the checker has agreed to.
async fn planned(client: &Client, policy: &Policy) -> Result<(String, Plan)> {
    let facts = facts::gather(client).await?;
    let snapshot = snapshot(&facts);
    let plan = plan(&snapshot, policy).context("the cluster says something contradictory")?;
    if let Err(faults) = check(&snapshot, policy, &plan) {
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        anyhow::bail!("the plan breaks its own rules, which is a mistake of stead's: {}", faults.join("; "));
    }
    Ok((facts.fingerprint, plan))
}

fn ratio(ppm: u64) -> String {
    format!("{:.2}", ppm as f64 / 1e6)
}

fn show(plan: &Plan, json: bool) -> Result<()> {
    if json {
        return output::json(plan);
    }
    let mut text = String::new();
    if !plan.moves.is_empty() {
        let rows: Vec<Vec<String>> = plan.moves.iter().map(row).collect();
        text += &output::table(&["INSTANCE", "FROM", "TO", "COPIES", "IMBALANCE", "WHY"], &rows);
        text.push('\n');
    }
    let report = &plan.report;
    for refusal in &report.refusals {
        text += &format!("{refusal}\n");
    }
    for finding in &report.findings {
        text += &format!("{finding}\n");
    }
    let i = report.imbalance;
    text += &match plan.moves.len() {
        0 => format!("nothing to move; imbalance {}\n", ratio(i.before_ppm)),
        n => format!(
            "{n} {}; imbalance {} -> {}, no less than {}\n",
            if n == 1 { "move" } else { "moves" },
            ratio(i.before_ppm),
            ratio(i.after_ppm),
            ratio(i.bound_ppm)
        ),
    };
    output::print(&text)
}

fn row(m: &Move) -> Vec<String> {
    let reasons: Vec<String> = m.reasons.iter().map(ToString::to_string).collect();
    vec![
        m.instance.to_string(),
        m.from.to_string(),
        m.to.to_string(),
        format!("{} MiB", m.size_mib),
        format!("{} -> {}", ratio(m.imbalance_before_ppm), ratio(m.imbalance_after_ppm)),
        reasons.join(", "),
    ]
}

async fn rebalance(host: &Host, args: cli::FleetRebalance) -> Result<ExitCode> {
    let policy = policy(&args.plan)?;
    let client = client(host, &args.plan.target).await?;
    if args.dry_run {
        show(&planned(&client, &policy).await?.1, args.plan.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let fingerprint = client.server_info().await?.environment.certificate_fingerprint.clone();
    let (journal, unfinished) = Journal::open(&journals(&host.state_dir), &fingerprint)?;
    let limits = Limits {
        at_once: args.at_once,
        mib_per_s: args.bandwidth,
        stop_timeout: Duration::from_secs(args.stop_timeout.into()),
        ..Limits::default()
    };
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            eprintln!(
                "stopping when the moves that run have ended; a second Ctrl-C leaves them to the next run"
            );
            let _ = stop.send(true);
            if tokio::signal::ctrl_c().await.is_ok() {
                std::process::exit(130);
            }
        }
        // Kept until the program ends: a closed channel would look like a change.
        std::future::pending::<()>().await;
        drop(stop);
    });
    let run = Rebalance::new(&client, journal, limits, stopping.clone(), tell);
    let resumed = run.resume(unfinished).await?;
    // What an earlier run left on its way has changed the cluster: the plan is made after that.
    let (fingerprint, plan) = planned(&client, &policy).await?;
    let summary = run.run(&fingerprint, &plan).await?;
    conclude(&plan, &[resumed, summary], args.plan.json)
}

fn journals(state_dir: &Path) -> PathBuf {
    state_dir.join("fleet")
}

fn tell(event: Event) {
    match event {
        Event::Begins { planned, resumed } => {
            let how = if resumed { "goes on with" } else { "moves" };
            eprintln!("{how} {} from {} to {}", planned.instance, planned.from, planned.to);
        }
        Event::Ended { planned, outcome } => {
            let name = &planned.instance;
            match outcome {
                Outcome::Moved { downtime } if downtime.is_zero() => eprintln!("{name} is on {}", planned.to),
                Outcome::Moved { downtime } => {
                    eprintln!(
                        "{name} is on {}, after {:.1} s of downtime",
                        planned.to,
                        downtime.as_secs_f64()
                    );
                }
                Outcome::AlreadyThere => eprintln!("{name} is on {} already", planned.to),
                Outcome::Failed(why) => eprintln!("{name} was not moved: {why}"),
                Outcome::Left => {}
            }
        }
        Event::ServerAway(why) => eprintln!("waiting for the server: {why}"),
    }
}

/// One line of `--json`.
#[derive(Serialize)]
struct MoveResult<'a> {
    #[serde(flatten)]
    planned: &'a Move,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    downtime_ms: Option<u128>,
}

fn conclude(plan: &Plan, summaries: &[Summary], json: bool) -> Result<ExitCode> {
    let moves: Vec<&(Move, Outcome)> = summaries.iter().flat_map(|s| &s.moves).collect();
    let count = |like: fn(&Outcome) -> bool| summaries.iter().map(|s| s.count(like)).sum::<usize>();
    let failed = count(|o| matches!(o, Outcome::Failed(_)));
    let left = count(|o| *o == Outcome::Left);
    if json {
        let results: Vec<MoveResult<'_>> = moves
            .iter()
            .map(|(planned, outcome)| {
                let (word, why, downtime_ms) = match outcome {
                    Outcome::Moved { downtime } => ("moved", None, Some(downtime.as_millis())),
                    Outcome::AlreadyThere => ("already-there", None, None),
                    Outcome::Failed(why) => ("failed", Some(why.as_str()), None),
                    Outcome::Left => ("left", None, None),
                };
                MoveResult { planned, outcome: word, why, downtime_ms }
            })
            .collect();
        output::json(&serde_json::json!({ "moves": results, "report": plan.report }))?;
    } else {
        let text: String = plan.report.refusals.iter().map(|r| format!("{r}\n")).collect();
        let moved = moves.len() - failed - left;
        output::print(&match moves.len() {
            0 => format!("{text}nothing to move; imbalance {}\n", ratio(plan.report.imbalance.before_ppm)),
            _ => format!("{text}{moved} moved, {failed} failed, {left} left\n"),
        })?;
    }
    Ok(ExitCode::from(u8::from(failed + left > 0)))
}
