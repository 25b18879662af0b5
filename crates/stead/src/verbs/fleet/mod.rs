//! `stead fleet`: looking after clusters, made by Stead or not. Here: which cluster, and what its plan is; each other verb
//! has its file.

mod place;
mod rebalance;
mod remote;
mod scriptlet;

use crate::{
    cli::fleet::{Target, Verb},
    output,
};
use anyhow::{Context, Result};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};
use stead_cluster::{Host, client_env};
use stead_fleet::{facts, remote::Remotes, snapshot::snapshot};
use stead_incus::{Client, Endpoint};
use stead_placement::{Plan, Policy, check, plan, plan::Move};

/// Sockets of this host's engines: Debian's Incus, and LXD from Debian and as a snap.
const SOCKETS: [&str; 3] =
    ["/var/lib/incus/unix.socket", "/var/lib/lxd/unix.socket", "/var/snap/lxd/common/lxd/unix.socket"];

pub async fn fleet(host: &Host, verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Trust(args) => remote::trust(host, args).await,
        Verb::Remotes(args) => remote::list(host, &args),
        Verb::Forget(args) => remote::forget(host, &args.name).await,
        Verb::Plan(args) => {
            let policy = policy(args.policy.as_deref(), args.max_moves)?;
            let client = client(host, &args.target).await?;
            show(&planned(&client, &policy).await?.1, args.json)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Rebalance(args) => rebalance::rebalance(host, args).await,
        Verb::Place(args) => place::place(host, args).await,
        Verb::Scriptlet(args) => scriptlet::scriptlet(host, args).await,
        Verb::Snapshot(target) => {
            let client = client(host, &target).await?;
            output::json(&snapshot(&facts::gather(&client).await?))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What is kept of clusters that are not Stead's.
fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("fleet")
}

fn remotes(host: &Host) -> Remotes {
    Remotes::new(directory(&host.state_dir).join("remotes"))
}

fn policy(file: Option<&Path>, max_moves: Option<usize>) -> Result<Policy> {
    let mut policy = match file {
        Some(file) => {
            let (name, text) = super::read_text(file)?;
            Policy::from_yaml(&name, &text)?
        }
        None => Policy::default(),
    };
    policy.max_moves = max_moves.or(policy.max_moves);
    Ok(policy)
}

async fn client(host: &Host, target: &Target) -> Result<Client> {
    if let Some(name) = &target.remote {
        return Ok(remotes(host).get(name)?.connect().await?);
    }
    if let Some(cluster) = &target.cluster {
        return Ok(client_env::engine_client(host, cluster).await?);
    }
    let socket = match &target.socket {
        Some(socket) => socket.clone(),
        None => SOCKETS.iter().map(PathBuf::from).find(|p| p.exists()).ok_or_else(|| {
            output::BadInput(
                "no engine runs on this host: name a cluster with --remote or --cluster, or a socket with --socket"
                    .into(),
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
