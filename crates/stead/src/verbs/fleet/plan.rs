//! `stead fleet plan`, and how a plan is shown.

use super::{PolicyFile, Target, directory, ratio};
use crate::{
    cli::{App, Exit, Run},
    error::Result,
    member_shell::ShellArgument,
    output,
};
use clap::Args;
use jiff::Timestamp;
use stead_fleet::{
    facts::Asking,
    journal::Journal,
    plan::{self, Sight},
};
use stead_incus::Client;
use stead_placement::{Plan as Planned, Policy, plan::Move};

/// Show which instances should be moved, and why; changes nothing.
#[derive(Debug, Args)]
pub struct Plan {
    #[command(flatten)]
    pub target: Target,
    #[command(flatten)]
    pub shell: ShellArgument,
    #[command(flatten)]
    policy: PolicyFile,
    /// Plan at most N moves.
    #[arg(long, value_name = "N")]
    max_moves: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

impl Plan {
    /// The policy with what was typed beside it.
    pub fn policy(&self, app: &App) -> Result<Policy> {
        let mut policy = self.policy.read(app)?;
        policy.max_moves = self.max_moves.or(policy.max_moves);
        Ok(policy)
    }

    /// The plan, now.
    pub async fn made(&self, app: &App, client: &Client, policy: &Policy) -> Result<Planned> {
        let shell = self.shell.of(app, self.target.cluster.as_ref(), client).await?;
        let journals = directory(app);
        let fingerprint = client.server_info().await?.environment.certificate_fingerprint.clone();
        let now_s = Timestamp::now().as_second().try_into().unwrap_or(0);
        let learned = Journal::peek(&journals, &fingerprint)?.learned(now_s);
        let tell = |who: String| app.output.note(who);
        let asking = Asking { memory: Some(&journals), tell: &tell };
        let sight = Sight { asking, shell: shell.as_ref(), learned: &learned };
        Ok(plan::of_cluster(client, policy, sight).await?.plan)
    }
}

impl Run for Plan {
    fn run(self, app: &App) -> Result<Exit> {
        let policy = self.policy(app)?;
        app.wait(async {
            let client = self.target.client(app).await?;
            show(app, &self.made(app, &client, &policy).await?, self.json)
        })
    }
}

/// Prints a plan.
pub fn show(app: &App, plan: &Planned, json: bool) -> Result<Exit> {
    match json {
        true => app.output.json(plan)?,
        false => app.output.print(table(plan))?,
    }
    Ok(Exit::SUCCESS)
}

/// A plan as a table, with what it could not do.
fn table(plan: &Planned) -> String {
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
    text
}

fn row(m: &Move) -> Vec<String> {
    let reasons: Vec<String> = m.reasons.iter().map(ToString::to_string).collect();
    vec![
        m.instance.to_string(),
        m.from.to_string(),
        m.to.to_string(),
        match (m.size_mib, m.at_least_mib) {
            (Some(mib), _) => format!("{mib} MiB"),
            (None, 0) => "unknown".to_owned(),
            (None, mib) => format!("at least {mib} MiB"),
        },
        format!("{} -> {}", ratio(m.imbalance_before_ppm), ratio(m.imbalance_after_ppm)),
        reasons.join(", "),
    ]
}
