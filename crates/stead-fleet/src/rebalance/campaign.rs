//! A whole rebalance: finish what an earlier run began, then plan and carry out, within windows, until nothing is left.

use super::{Clock, Event, Executor, Limits, Opening, Outcome, Summary};
use crate::{
    journal::{Journal, JournalError},
    plan::{self, PlanError, Planned},
    window::{self, Moment, Window},
};
use jiff::Zoned;
use std::{path::Path, time::Duration};
use stead_incus::{Client, Error};
use stead_model::{Failure, FailureKind};
use stead_placement::{Plan, Policy};
use tokio::sync::watch;

/// How often the clock is read while a window is waited for: it may be set, or the host may have slept.
const LOOK: Duration = Duration::from_secs(30);

/// What is done while no window is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outside {
    /// Wait for the next one.
    Wait,
    /// Begin nothing, and end.
    End,
}

/// A rebalance.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The cluster.
    pub client: &'a Client,
    /// What is wanted of placement.
    pub policy: &'a Policy,
    /// When moves may begin; none: at any time.
    pub windows: &'a [Window],
    /// What is done outside them.
    pub outside: Outside,
    /// How moves are carried out.
    pub limits: &'a Limits,
    /// The directory of journals.
    pub journals: &'a Path,
}

/// What a rebalance came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The last plan.
    pub plan: Plan,
    /// Each move and how it ended, resumed ones first.
    pub summary: Summary,
}

/// Why there was no rebalance, or no further one.
#[derive(Debug, thiserror::Error)]
pub enum RebalanceError {
    /// The server cannot be asked which cluster it is of.
    #[error("cannot ask the server for its cluster")]
    Server(#[source] Box<Error>),
    /// There is no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The journal cannot be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Moves that an earlier run began cannot be ended yet.
    #[error("moves that an earlier run began cannot be finished yet, so no other is begun: {}", .0.join(", "))]
    Unfinished(Vec<String>),
}

impl Failure for RebalanceError {
    fn failure_kind(&self) -> FailureKind {
        match self {
            Self::Server(source) => source.failure_kind(),
            Self::Plan(source) => source.failure_kind(),
            Self::Journal(source) => source.failure_kind(),
            Self::Unfinished(_) => FailureKind::Failed,
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            Self::Server(source) => source.hint(),
            Self::Plan(source) => source.hint(),
            Self::Journal(source) => source.hint(),
            Self::Unfinished(_) => Some("run the same command again when all members answer".into()),
        }
    }
}

/// Rebalances. `stop`: true when no further move is to begin; moves that run are ended. `tell`: is called with what
/// happens.
///
/// # Errors
/// [`RebalanceError`]. A move that fails is no error: the others go on, and the report says so.
pub async fn rebalance(
    request: Request<'_>,
    clock: Clock<'_>,
    mut stop: watch::Receiver<bool>,
    tell: impl Fn(Event),
) -> Result<Report, RebalanceError> {
    let Request { client, policy, limits, .. } = request;
    let server = client.server_info().await.map_err(|e| RebalanceError::Server(Box::new(e)))?;
    let (journal, unfinished) = Journal::open(request.journals, &server.environment.certificate_fingerprint)?;
    let executor = Executor::new(client, journal, limits.clone(), clock, stop.clone(), &tell);
    let mut summary = executor.resume(unfinished).await?;
    let unfinished = summary.moves.iter().filter(|(_, o)| matches!(o, Outcome::Unfinished(_)));
    let unfinished: Vec<String> = unfinished.map(|(planned, _)| planned.instance.to_string()).collect();
    if !unfinished.is_empty() {
        return Err(RebalanceError::Unfinished(unfinished));
    }
    loop {
        let opening = opening(&request, clock, &mut stop, &tell).await;
        // Time has passed, and what an earlier run left on its way has changed the cluster: the plan is made now.
        let Planned { fingerprint, plan } = plan::of_cluster(client, policy).await?;
        let Summary { mut moves } = executor.run(&fingerprint, &plan, opening).await?;
        let closed = executor.is_closed(opening);
        let stopped = *stop.borrow();
        let left = moves.iter().any(|(_, o)| *o == Outcome::Left);
        let waits = request.outside == Outside::Wait;
        if closed && left && waits && !stopped {
            // They are planned again in the next window.
            moves.retain(|(_, o)| *o != Outcome::Left);
            summary.moves.extend(moves);
            continue;
        }
        if closed && left && !waits && !stopped && opening != Opening::NotNow {
            tell(Event::WindowClosed);
        }
        summary.moves.extend(moves);
        return Ok(Report { plan, summary });
    }
}

/// Waits for a window if that was asked for.
async fn opening(
    request: &Request<'_>,
    clock: Clock<'_>,
    stop: &mut watch::Receiver<bool>,
    tell: &impl Fn(Event),
) -> Opening {
    let mut told: Option<Zoned> = None;
    loop {
        let now = clock();
        let opens = match window::at(request.windows, &now) {
            None => return Opening::Always,
            Some(Moment::Open { until }) => return Opening::Until(until.timestamp()),
            Some(Moment::Shut { until }) => until,
        };
        let waits = request.outside == Outside::Wait;
        if told.as_ref() != Some(&opens) {
            tell(Event::OutsideWindows { opens: opens.clone(), waits });
            told = Some(opens.clone());
        }
        if !waits {
            return Opening::NotNow;
        }
        let left = Duration::try_from(now.duration_until(&opens)).unwrap_or_default();
        tokio::select! {
            () = tokio::time::sleep(left.min(LOOK)) => {}
            stopped = stop.wait_for(|stop| *stop) => {
                if stopped.is_ok() {
                    return Opening::NotNow;
                }
            }
        }
    }
}
