//! A whole rebalance: finish what an earlier run began, then plan and carry out, within windows, until nothing is left.

use super::{Clock, Event, Executor, Limits, Opening, Outcome, Summary};
use crate::{
    facts::Asking,
    journal::{Journal, JournalError},
    plan::{self, PlanError, Planned, Sight},
    shell::Shell,
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

/// How often instances are planned anew because a member would not take them.
const DETOURS: usize = 3;

/// What is done while no window is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outside {
    /// Wait for the next one.
    Wait,
    /// Begin nothing, and end.
    End,
}

/// A rebalance.
#[derive(Clone, Copy)]
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
    /// The directory of journals, and of the memory of members.
    pub journals: &'a Path,
    /// A way to run programs on members.
    pub shell: &'a dyn Shell,
}

impl std::fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("limits", self.limits)
            .field("windows", &self.windows)
            .finish_non_exhaustive()
    }
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
    /// The rate cannot be kept: nobody knows how much the moves copy.
    #[error(
        "the sizes of {} are unknown, so a rate of {mib_per_s} MiB/s cannot be kept",
        instances.join(", ")
    )]
    UnknownSizes {
        /// Instances that would be moved.
        instances: Vec<String>,
        /// The rate.
        mib_per_s: u64,
    },
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
            Self::UnknownSizes { .. } => FailureKind::BadInput,
            Self::Unfinished(_) => FailureKind::Failed,
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            Self::Server(source) => source.hint(),
            Self::Plan(source) => source.hint(),
            Self::Journal(source) => source.hint(),
            Self::UnknownSizes { .. } => Some(
                "give a way to measure them (--cluster, or --shell 'ssh root@{member}'), set the size of their root \
                 disks, or leave --bandwidth out"
                    .into(),
            ),
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
    let Request { client, policy, limits, shell, .. } = request;
    let server = client.server_info().await.map_err(|e| RebalanceError::Server(Box::new(e)))?;
    let (journal, past) = Journal::open(request.journals, &server.environment.certificate_fingerprint)?;
    let executor =
        Executor::new(client, journal, &past, limits.clone(), clock, stop.clone(), &tell).with_shell(shell);
    let mut summary = executor.resume(past.unfinished).await?;
    let unfinished = summary.moves.iter().filter(|(_, o)| matches!(o, Outcome::Unfinished(_)));
    let unfinished: Vec<String> = unfinished.map(|(planned, _)| planned.instance.to_string()).collect();
    if !unfinished.is_empty() {
        return Err(RebalanceError::Unfinished(unfinished));
    }
    executor.pay().await?;
    let waits = |who| tell(Event::Waits(who));
    let mut detours = 0;
    loop {
        let opening = opening(&request, clock, &mut stop, &tell).await;
        // Time has passed, and what an earlier run left on its way has changed the cluster: the plan is made now.
        let learned = executor.learned();
        let asking = Asking { memory: Some(request.journals), tell: &waits };
        let sight = Sight { asking, shell, learned: &learned };
        let Planned { fingerprint, plan } = plan::of_cluster(client, policy, sight).await?;
        is_measured(&plan, limits)?;
        let Summary { mut moves, .. } = executor.run(&fingerprint, &plan, opening).await?;
        let closed = executor.is_closed(opening);
        let stopped = *stop.borrow();
        let left = moves.iter().any(|(_, o)| *o == Outcome::Left);
        let unfinished = moves.iter().any(|(_, o)| matches!(o, Outcome::Unfinished(_)));
        let waits = request.outside == Outside::Wait;
        if closed && left && waits && !stopped && !unfinished {
            // They are planned again in the next window.
            moves.retain(|(_, o)| *o != Outcome::Left);
            summary.moves.extend(moves);
            continue;
        }
        if executor.was_obstructed() && detours < DETOURS && !closed && !stopped && !unfinished {
            // Another member may take what this one would not.
            detours += 1;
            tell(Event::GoesRound);
            let done = |o: &Outcome| matches!(o, Outcome::Moved { .. } | Outcome::AlreadyThere);
            moves.retain(|(_, o)| done(o));
            summary.moves.extend(moves);
            continue;
        }
        if closed && left && !waits && !stopped && opening != Opening::NotNow {
            tell(Event::WindowClosed);
        }
        summary.moves.extend(moves);
        summary.owed = executor.owed();
        return Ok(Report { plan, summary });
    }
}

/// A limit on the rate needs the sizes of all that is moved.
fn is_measured(plan: &Plan, limits: &Limits) -> Result<(), RebalanceError> {
    let Some(rate) = limits.mib_per_s else { return Ok(()) };
    let unknown = plan.moves.iter().filter(|m| m.size_mib.is_none());
    let instances: Vec<String> = unknown.map(|m| m.instance.to_string()).collect();
    match instances.is_empty() {
        true => Ok(()),
        false => Err(RebalanceError::UnknownSizes { instances, mib_per_s: rate.get() }),
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
