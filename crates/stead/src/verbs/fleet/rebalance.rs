//! `stead fleet rebalance`: what was typed becomes a request, and what happens becomes lines.

use super::{
    directory,
    plan::{self, Plan as PlanArguments},
    ratio,
};
use crate::{
    cli::{App, Exit, Run},
    error::{Doing, Error, Result},
};
use clap::Args;
use jiff::Zoned;
use serde::Serialize;
use std::{num::NonZeroU64, time::Duration};
use stead_fleet::{
    rebalance::{self, Event, Limits, Outcome, Outside, Report},
    window::Window,
};
use stead_placement::plan::Move;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

/// Move instances so that members are evenly used and every rule holds.
///
/// Each step is written to a journal first: run again after it was killed, it finishes the moves that were under way and
/// continues. Ctrl-C ends after the moves that run.
#[derive(Debug, Args)]
pub struct Rebalance {
    #[command(flatten)]
    plan: PlanArguments,
    /// Only print the plan.
    #[arg(long)]
    dry_run: bool,
    /// How many moves may run at the same time.
    #[arg(long, value_name = "N", default_value_t = 1)]
    at_once: usize,
    /// Limit the mean rate at which instances are copied: a move begins only when the rate allows it.
    #[arg(long, value_name = "MIB_PER_S")]
    bandwidth: Option<NonZeroU64>,
    /// How long an instance may take to shut down; one that takes longer is not moved.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    stop_timeout: u32,
    /// Begin moves only at these times of day (this host's time zone); may be repeated. Outside them it waits, and plans
    /// again when the next begins.
    #[arg(long, value_name = "HH:MM-HH:MM")]
    window: Vec<Window>,
    /// Outside the windows, end instead of waiting.
    #[arg(long, requires = "window")]
    no_wait: bool,
}

impl Run for Rebalance {
    fn run(self, app: &App) -> Result<Exit> {
        app.wait(rebalance(app, self))
    }
}

async fn rebalance(app: &App, args: Rebalance) -> Result<Exit> {
    let policy = args.plan.policy(app)?;
    let client = args.plan.target.client(app).await?;
    if args.dry_run {
        return plan::show(app, &args.plan.made(app, &client, &policy).await?, args.plan.json);
    }
    let limits = Limits {
        at_once: args.at_once,
        mib_per_s: args.bandwidth,
        stop_timeout: Duration::from_secs(args.stop_timeout.into()),
        ..Limits::default()
    };
    let shell = args.plan.shell.of(app, args.plan.target.cluster.as_ref(), &client).await?;
    let request = rebalance::Request {
        client: &client,
        policy: &policy,
        windows: &args.window,
        outside: if args.no_wait { Outside::End } else { Outside::Wait },
        limits: &limits,
        journals: &directory(app),
        shell: shell.as_ref(),
    };
    let (stop, stopping) = watch::channel(false);
    let interrupts = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
    let tell = |event| app.output.note(text(event));
    tokio::select! {
        report = rebalance::rebalance(request, &Zoned::now, stopping, tell) => {
            conclude(app, &report?, args.plan.json)
        }
        () = second_ctrl_c(app, interrupts, stop) => {
            Err(Error::interrupted("interrupted: the next run finishes the moves that were under way"))
        }
    }
}

/// Asks the run to stop at the first Ctrl-C, and returns at the second.
async fn second_ctrl_c(app: &App, mut interrupts: Signal, stop: watch::Sender<bool>) {
    interrupts.recv().await;
    app.output
        .note("stopping when the current moves have ended; a second Ctrl-C leaves them to the next run");
    stop.send_replace(true);
    interrupts.recv().await;
}

/// What happens, in a line.
fn text(event: Event) -> String {
    match event {
        Event::Begins { planned: Move { instance, from, to, .. }, resumed } => {
            let what = if resumed { "continuing to move" } else { "moving" };
            format!("{what} {instance} from {from} to {to}")
        }
        Event::Ended { planned: Move { instance, to, .. }, outcome } => match outcome {
            Outcome::Moved { downtime } if downtime.is_zero() => format!("{instance} is on {to}"),
            Outcome::Moved { downtime } => {
                format!("{instance} is on {to}, after {:.1} s of downtime", downtime.as_secs_f64())
            }
            Outcome::AlreadyThere => format!("{instance} is on {to} already"),
            Outcome::Failed(why) => format!("{instance} was not moved: {why}"),
            Outcome::Stranded(why) => format!("{instance} ran and is stopped: {why}"),
            Outcome::Unfinished(why) => format!("{instance} is left to the next run: {why}"),
            Outcome::Left => format!("{instance} was not moved"),
        },
        Event::MovesBack { planned: Move { instance, from, .. }, why } => {
            format!("moving {instance} back to {from}: {why}")
        }
        Event::Debt { instance, still: None } => {
            format!("{instance}, which an earlier run left stopped, runs")
        }
        Event::Debt { instance, still: Some(why) } => {
            format!("{instance}, which an earlier run left stopped, is still stopped: {why}")
        }
        Event::WaitsForRate { planned: Move { instance, size_mib, .. }, wait } => format!(
            "waiting {} s before {instance} is moved: it copies {} MiB",
            wait.as_secs_f64().ceil(),
            size_mib.unwrap_or(0)
        ),
        Event::GoesRound => "planning again, round the members that would not take an instance".to_owned(),
        Event::Waits(who) => who,
        Event::ServerAway(why) => format!("waiting for the server: {why}"),
        Event::OutsideWindows { opens, waits } => {
            let what = if waits { "waiting until" } else { "the next one opens on" };
            format!("outside the windows: {what} {}", opens.strftime("%A %H:%M %Z"))
        }
        Event::WindowClosed => "the window has closed".to_owned(),
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

fn conclude(app: &App, report: &Report, json: bool) -> Result<Exit> {
    let Report { plan, summary } = report;
    let failed =
        summary.count(|o| matches!(o, Outcome::Failed(_) | Outcome::Stranded(_) | Outcome::Unfinished(_)));
    let left = summary.count(|o| *o == Outcome::Left);
    if json {
        let results: Vec<MoveResult<'_>> = summary.moves.iter().map(result).collect();
        let owed: Vec<_> = summary
            .owed
            .iter()
            .map(|(instance, why)| serde_json::json!({ "instance": instance, "why": why }))
            .collect();
        app.output.json(&serde_json::json!({ "moves": results, "owed": owed, "report": plan.report }))?;
    } else {
        let refusals = plan.report.refusals.iter().map(ToString::to_string);
        let findings = plan.report.findings.iter().map(ToString::to_string);
        let owed = summary.owed.iter().map(|(id, why)| format!("{id} ran and is stopped: {why}"));
        let text: String = refusals.chain(findings).chain(owed).map(|line| line + "\n").collect();
        let moved = summary.moves.len() - failed - left;
        app.output.print(match summary.moves.len() {
            0 => format!("{text}nothing to move; imbalance {}\n", ratio(plan.report.imbalance.before_ppm)),
            _ => format!("{text}{moved} moved, {failed} failed, {left} left\n"),
        })?;
    }
    Ok(Exit::success_if(summary.is_whole()))
}

fn result((planned, outcome): &(Move, Outcome)) -> MoveResult<'_> {
    let (word, why, downtime_ms) = match outcome {
        Outcome::Moved { downtime } => ("moved", None, Some(downtime.as_millis())),
        Outcome::AlreadyThere => ("already-there", None, None),
        Outcome::Failed(why) => ("failed", Some(why.as_str()), None),
        Outcome::Stranded(why) => ("stranded", Some(why.as_str()), None),
        Outcome::Unfinished(why) => ("unfinished", Some(why.as_str()), None),
        Outcome::Left => ("left", None, None),
    };
    MoveResult { planned, outcome: word, why, downtime_ms }
}
