//! `stead fleet rebalance`: resume, wait for a window, plan, carry out, tell.

use super::{client, directory, planned, policy, ratio, show};
use crate::{cli::fleet::Rebalance as Arguments, output};
use anyhow::{Context, Result};
use jiff::Zoned;
use serde::Serialize;
use std::{
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use stead_cluster::Host;
use stead_fleet::{
    journal::Journal,
    rebalance::{Event, Limits, Outcome, Rebalance, Summary},
    window::{self, Moment},
};
use stead_placement::{Plan, plan::Move};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// The clock is looked at so often while a window is waited for: it may be set, or the host may have slept.
const LOOK: Duration = Duration::from_secs(30);

pub async fn rebalance(host: &Host, args: Arguments) -> Result<ExitCode> {
    let policy = policy(args.plan.policy.as_deref(), args.plan.max_moves)?;
    let client = client(host, &args.plan.target).await?;
    if args.dry_run {
        show(&planned(&client, &policy).await?.1, args.plan.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let fingerprint = client.server_info().await?.environment.certificate_fingerprint.clone();
    let (journal, unfinished) = Journal::open(&directory(&host.state_dir), &fingerprint)?;
    let limits = Limits {
        at_once: args.at_once,
        mib_per_s: args.bandwidth,
        stop_timeout: Duration::from_secs(args.stop_timeout.into()),
        ..Limits::default()
    };
    let mut stopping = on_ctrl_c()?;
    let run = Rebalance::new(&client, journal, limits, stopping.clone(), tell);
    let resumed = run.resume(unfinished).await?;
    anyhow::ensure!(
        resumed.count(|o| matches!(o, Outcome::Unfinished(_))) == 0,
        "what an earlier run began cannot be ended yet, so nothing else is begun"
    );
    let mut summaries = vec![resumed];
    loop {
        let until = until(&args, &mut stopping).await;
        // Time has passed, and what an earlier run left on its way has changed the cluster: the plan is made now.
        let (fingerprint, plan) = planned(&client, &policy).await?;
        let mut summary = run.run(&fingerprint, &plan, until).await?;
        let over = until.is_some_and(|until| SystemTime::now() >= until);
        let goes_on =
            over && !args.no_wait && !*stopping.borrow() && summary.count(|o| *o == Outcome::Left) > 0;
        if goes_on {
            summary.moves.retain(|(_, o)| *o != Outcome::Left);
        }
        summaries.push(summary);
        if over && args.no_wait && until != Some(UNIX_EPOCH) {
            eprintln!("the window is over");
        }
        if !goes_on {
            return conclude(&plan, &summaries, args.plan.json);
        }
    }
}

/// True from the first Ctrl-C on; the second ends the program.
fn on_ctrl_c() -> Result<watch::Receiver<bool>> {
    let (stop, stopping) = watch::channel(false);
    let mut pressed = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
    tokio::spawn(async move {
        pressed.recv().await;
        eprintln!("stopping when the moves that run have ended; a second Ctrl-C leaves them to the next run");
        stop.send_replace(true);
        pressed.recv().await;
        std::process::exit(130);
    });
    Ok(stopping)
}

/// Waits for a window, unless told not to. When moves must no longer begin: a moment that is past when they may not at all.
async fn until(args: &Arguments, stopping: &mut watch::Receiver<bool>) -> Option<SystemTime> {
    let mut told = None;
    loop {
        let opens = match window::at(&args.window, &Zoned::now())? {
            Moment::Open { until } => return Some(until.timestamp().into()),
            Moment::Shut { until } => until,
        };
        let when = opens.strftime("%A %H:%M %Z").to_string();
        if args.no_wait {
            eprintln!("outside of the windows: the next begins {when}");
            return Some(UNIX_EPOCH);
        }
        if told.as_ref() != Some(&when) {
            eprintln!("outside of the windows: goes on {when}");
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
                Outcome::Unfinished(why) => eprintln!("{name} is for the next run to go on with: {why}"),
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
