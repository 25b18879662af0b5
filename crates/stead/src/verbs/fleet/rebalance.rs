//! `stead fleet rebalance`: resume, wait for a window, plan, carry out, tell.

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
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use stead_fleet::{
    journal::Journal,
    plan::{Planned, of_cluster},
    rebalance::{Event, Limits, Outcome, Rebalance as Carrier, Summary},
    window::{self, Moment, Window},
};
use stead_incus::Client;
use stead_placement::{Plan, Policy, plan::Move};
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
    bandwidth: Option<u64>,
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

/// The clock is looked at so often while a window is waited for: it may be set, or the host may have slept.
const LOOK: Duration = Duration::from_secs(30);

async fn rebalance(app: &App, args: Rebalance) -> Result<Exit> {
    let policy = args.plan.policy(app)?;
    let client = args.plan.target.client(app).await?;
    if args.dry_run {
        return plan::show(app, &of_cluster(&client, &policy).await?.plan, args.plan.json);
    }
    let (stop, stopping) = watch::channel(false);
    let interrupts = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
    tokio::select! {
        result = carry_out(app, &args, &policy, &client, stopping) => result,
        () = second_ctrl_c(app, interrupts, stop) => {
            Err(Error::interrupted("interrupted: the next run finishes the moves that were under way"))
        }
    }
}

async fn carry_out(
    app: &App,
    args: &Rebalance,
    policy: &Policy,
    client: &Client,
    mut stopping: watch::Receiver<bool>,
) -> Result<Exit> {
    let fingerprint = client.server_info().await?.environment.certificate_fingerprint.clone();
    let (journal, unfinished) = Journal::open(&directory(app), &fingerprint)?;
    let limits = Limits {
        at_once: args.at_once,
        mib_per_s: args.bandwidth,
        stop_timeout: Duration::from_secs(args.stop_timeout.into()),
        ..Limits::default()
    };
    let run = Carrier::new(client, journal, limits, stopping.clone(), |event| tell(app, event));
    let resumed = run.resume(unfinished).await?;
    if resumed.count(|o| matches!(o, Outcome::Unfinished(_))) > 0 {
        return Err(Error::failed("what an earlier run began cannot be ended yet, so nothing else is begun"));
    }
    let mut summaries = vec![resumed];
    loop {
        let until = until(app, args, &mut stopping).await;
        // Time has passed, and what an earlier run left on its way has changed the cluster: the plan is made now.
        let Planned { fingerprint, plan } = of_cluster(client, policy).await?;
        let mut summary = run.run(&fingerprint, &plan, until).await?;
        let over = until.is_some_and(|until| SystemTime::now() >= until);
        let goes_on =
            over && !args.no_wait && !*stopping.borrow() && summary.count(|o| *o == Outcome::Left) > 0;
        if goes_on {
            summary.moves.retain(|(_, o)| *o != Outcome::Left);
        }
        summaries.push(summary);
        if over && args.no_wait && until != Some(UNIX_EPOCH) {
            app.output.note("the window is over");
        }
        if !goes_on {
            return conclude(app, &plan, &summaries, args.plan.json);
        }
    }
}

/// Asks the run to stop at the first Ctrl-C, and returns at the second.
async fn second_ctrl_c(app: &App, mut interrupts: Signal, stop: watch::Sender<bool>) {
    interrupts.recv().await;
    app.output
        .note("stopping when the moves that run have ended; a second Ctrl-C leaves them to the next run");
    stop.send_replace(true);
    interrupts.recv().await;
}

/// Waits for a window, unless told not to. When moves must no longer begin: a moment that is past when they may not at all.
async fn until(app: &App, args: &Rebalance, stopping: &mut watch::Receiver<bool>) -> Option<SystemTime> {
    let mut told = None;
    loop {
        let opens = match window::at(&args.window, &Zoned::now())? {
            Moment::Open { until } => return Some(until.timestamp().into()),
            Moment::Shut { until } => until,
        };
        let when = opens.strftime("%A %H:%M %Z").to_string();
        if args.no_wait {
            app.output.note(format!("outside of the windows: the next begins {when}"));
            return Some(UNIX_EPOCH);
        }
        if told.as_ref() != Some(&when) {
            app.output.note(format!("outside of the windows: goes on {when}"));
            told = Some(when);
        }
        let left = SystemTime::from(opens.timestamp()).duration_since(SystemTime::now()).unwrap_or_default();
        tokio::select! {
            () = tokio::time::sleep(left.min(LOOK)) => {}
            stopped = stopping.wait_for(|stop| *stop) => {
                if stopped.is_ok() {
                    return Some(UNIX_EPOCH);
                }
            }
        }
    }
}

fn tell(app: &App, event: Event) {
    match event {
        Event::Begins { planned, resumed } => {
            let how = if resumed { "goes on with" } else { "moves" };
            app.output.note(format!("{how} {} from {} to {}", planned.instance, planned.from, planned.to));
        }
        Event::Ended { planned, outcome } => {
            let name = &planned.instance;
            match outcome {
                Outcome::Moved { downtime } if downtime.is_zero() => {
                    app.output.note(format!("{name} is on {}", planned.to))
                }
                Outcome::Moved { downtime } => {
                    app.output.note(format!(
                        "{name} is on {}, after {:.1} s of downtime",
                        planned.to,
                        downtime.as_secs_f64()
                    ));
                }
                Outcome::AlreadyThere => app.output.note(format!("{name} is on {} already", planned.to)),
                Outcome::Failed(why) => app.output.note(format!("{name} was not moved: {why}")),
                Outcome::Unfinished(why) => {
                    app.output.note(format!("{name} is for the next run to go on with: {why}"))
                }
                Outcome::Left => {}
            }
        }
        Event::ServerAway(why) => app.output.note(format!("waiting for the server: {why}")),
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

fn conclude(app: &App, plan: &Plan, summaries: &[Summary], json: bool) -> Result<Exit> {
    let moves: Vec<&(Move, Outcome)> = summaries.iter().flat_map(|s| &s.moves).collect();
    let count = |like: fn(&Outcome) -> bool| summaries.iter().map(|s| s.count(like)).sum::<usize>();
    let failed = count(|o| matches!(o, Outcome::Failed(_) | Outcome::Unfinished(_)));
    let left = count(|o| *o == Outcome::Left);
    if json {
        let results: Vec<MoveResult<'_>> = moves
            .iter()
            .map(|(planned, outcome)| {
                let (word, why, downtime_ms) = match outcome {
                    Outcome::Moved { downtime } => ("moved", None, Some(downtime.as_millis())),
                    Outcome::AlreadyThere => ("already-there", None, None),
                    Outcome::Failed(why) => ("failed", Some(why.as_str()), None),
                    Outcome::Unfinished(why) => ("unfinished", Some(why.as_str()), None),
                    Outcome::Left => ("left", None, None),
                };
                MoveResult { planned, outcome: word, why, downtime_ms }
            })
            .collect();
        app.output.json(&serde_json::json!({ "moves": results, "report": plan.report }))?;
    } else {
        let text: String = plan.report.refusals.iter().map(|r| format!("{r}\n")).collect();
        let moved = moves.len() - failed - left;
        app.output.print(match moves.len() {
            0 => format!("{text}nothing to move; imbalance {}\n", ratio(plan.report.imbalance.before_ppm)),
            _ => format!("{text}{moved} moved, {failed} failed, {left} left\n"),
        })?;
    }
    Ok(Exit::success_if(failed + left == 0))
}
