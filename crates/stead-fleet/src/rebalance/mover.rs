//! One move, from wherever its instance is to its end.
//!
//! Look where the instance is -> note that the move begins -> stop the instance if it must be -> move -> start it if it
//! ran -> look again. Each step looks before it acts, so doing a move again from the start is always right; continuing a
//! move that an earlier run began is the same as doing it again, with that run's word on whether the instance ran.

use super::{Clock, Event, Limits, Outcome};
use crate::journal::{Entry, Journal, JournalError};
use std::{
    cell::RefCell,
    time::{Duration, Instant},
};
use stead_incus::{
    Client, Error, Feature,
    requests::instances::{Move as MoveRequest, StateAction},
    types::Instance,
};
use stead_os::chain;
use stead_placement::plan::Move;

/// How often a move is tried when a server goes away in the middle of it.
const TRIES: u32 = 5;
/// How often a move that an earlier run had begun is tried again when it is refused: that run's last request may reach the
/// server after this one has looked, and then the two are in each other's way.
const RESUMED_TRIES: u32 = 2;
/// Pause between two looks at a server that does not answer.
const AGAIN: Duration = Duration::from_secs(1);

/// Moves instances.
pub struct Mover<'a, F> {
    pub client: &'a Client,
    pub journal: RefCell<Journal>,
    pub limits: Limits,
    pub clock: Clock<'a>,
    pub tell: F,
}

/// What is known of an instance from one try of its move to the next.
struct Known {
    /// Whether it ran before the move; none until that was noted in the journal.
    ran: Option<bool>,
    /// Since when it has been stopped for the move.
    down_since: Option<Instant>,
}

impl Known {
    fn moved(&self) -> Outcome {
        Outcome::Moved { downtime: self.down_since.map_or(Duration::ZERO, |d| d.elapsed()) }
    }
}

/// Where an instance was found.
enum Found {
    /// Where it is to be moved from.
    AtSource(Box<Instance>),
    /// Where it is to be: the move has ended.
    AtTarget(Outcome),
}

/// Why a move did not end in one go.
#[derive(Debug)]
enum RetryReason {
    /// A server is not there, or not itself (its database may be gone before it is): what it was doing has to be looked up
    /// when it is.
    Away(String),
    /// The server is not through with the instance, though it lists no operation: it is tidying up what an earlier run
    /// began.
    Busy(String),
    /// It will not be done, unless an earlier run was in the way.
    Refused(String),
}

impl From<Error> for RetryReason {
    fn from(error: Error) -> Self {
        match error {
            Error::Connect { .. }
            | Error::Http { .. }
            | Error::Timeout { .. }
            | Error::OutcomeUnknown { .. } => Self::Away(chain(&error)),
            Error::Api { code, .. } if code >= 500 => Self::Away(chain(&error)),
            offline if offline.is_offline() => Self::Away(chain(&offline)),
            busy if busy.is_busy() => Self::Busy(chain(&busy)),
            other => Self::Refused(chain(&other)),
        }
    }
}

/// What follows a try that did not end its move.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Try again after a pause.
    Again,
    /// Try again when the servers answer.
    WhenServersAnswer(String),
    /// The move has ended.
    End(Outcome),
}

/// How much longer a move is tried.
#[derive(Debug)]
struct Patience {
    aways: u32,
    refusals_left: u32,
    busy_since: Option<Instant>,
    busy_longest: Duration,
}

impl Patience {
    fn new(resumed: bool, limits: &Limits) -> Self {
        let refusals_left = if resumed { RESUMED_TRIES } else { 0 };
        Self { aways: 0, refusals_left, busy_since: None, busy_longest: limits.server_patience }
    }

    fn next(&mut self, reason: RetryReason, now: Instant) -> Next {
        match reason {
            RetryReason::Busy(why) => {
                let since = *self.busy_since.get_or_insert(now);
                match now.duration_since(since) > self.busy_longest {
                    true => Next::End(Outcome::Unfinished(why)),
                    false => Next::Again,
                }
            }
            RetryReason::Away(why) => {
                self.aways += 1;
                match self.aways == TRIES {
                    true => {
                        Next::End(Outcome::Unfinished(format!("a server went away {TRIES} times: {why}")))
                    }
                    false => Next::WhenServersAnswer(why),
                }
            }
            RetryReason::Refused(_) if self.refusals_left > 0 => {
                self.refusals_left -= 1;
                Next::Again
            }
            RetryReason::Refused(why) => Next::End(Outcome::Failed(why)),
        }
    }
}

/// Seconds since 1970.
pub fn now_s(clock: Clock<'_>) -> u64 {
    clock().timestamp().as_second().try_into().unwrap_or(0)
}

impl<F: Fn(Event)> Mover<'_, F> {
    pub fn ended(&self, planned: &Move, outcome: &Outcome) {
        (self.tell)(Event::Ended { planned: planned.clone(), outcome: outcome.clone() });
    }

    /// One move with its entries. `ran`: an earlier run's word on whether the instance ran.
    pub async fn carry_out(
        &self,
        number: usize,
        planned: &Move,
        ran: Option<bool>,
    ) -> Result<Outcome, JournalError> {
        let outcome = self.until_it_ends(number, planned, ran).await?;
        let at_s = now_s(self.clock);
        let entry = match &outcome {
            // Without an end the next run finds it.
            Outcome::Unfinished(_) => return Ok(outcome),
            Outcome::Failed(why) => Entry::Failed { number, why: why.clone(), at_s },
            _ => Entry::Done { number, at_s },
        };
        self.journal.borrow_mut().write(&entry)?;
        Ok(outcome)
    }

    /// Tries until the move has ended or patience has.
    async fn until_it_ends(
        &self,
        number: usize,
        planned: &Move,
        ran: Option<bool>,
    ) -> Result<Outcome, JournalError> {
        let mut patience = Patience::new(ran.is_some(), &self.limits);
        let mut known = Known { ran, down_since: None };
        loop {
            let reason = match self.attempt(number, planned, &mut known).await? {
                Ok(outcome) => return Ok(outcome),
                Err(reason) => reason,
            };
            match patience.next(reason, Instant::now()) {
                Next::Again => tokio::time::sleep(AGAIN).await,
                Next::WhenServersAnswer(why) => {
                    if let Err(why) = self.wait_for_server(planned, why).await {
                        return Ok(Outcome::Unfinished(why));
                    }
                }
                Next::End(outcome) => return Ok(outcome),
            }
        }
    }

    /// One try. The outer error ends the run: without its journal nothing may be begun.
    async fn attempt(
        &self,
        number: usize,
        planned: &Move,
        known: &mut Known,
    ) -> Result<Result<Outcome, RetryReason>, JournalError> {
        let instance = match self.find(planned, known).await {
            Ok(Found::AtSource(instance)) => instance,
            Ok(Found::AtTarget(outcome)) => return Ok(Ok(outcome)),
            Err(reason) => return Ok(Err(reason)),
        };
        let was_running = match known.ran {
            Some(ran) => ran,
            None => {
                let running = is_running(&instance);
                self.journal.borrow_mut().write(&Entry::Begun {
                    number,
                    running,
                    at_s: now_s(self.clock),
                })?;
                known.ran = Some(running);
                running
            }
        };
        Ok(self.transfer(planned, &instance, was_running, known).await)
    }

    /// Looks where the instance is, when nobody is at work on it. One that has been moved already is started if it ran.
    async fn find(&self, planned: &Move, known: &Known) -> Result<Found, RetryReason> {
        let (project, name) = id(planned);
        self.settled(project, name).await?;
        let now = self.client.instance(project, name).await?.value;
        if now.location == planned.to.0 {
            if known.ran == Some(true) && !is_running(&now) {
                self.start(planned).await?;
            }
            return Ok(Found::AtTarget(match known.ran {
                Some(_) => known.moved(),
                None => Outcome::AlreadyThere,
            }));
        }
        if now.location != planned.from.0 {
            let why = format!("it is on {} by now, not on {}", now.location, planned.from);
            return Err(RetryReason::Refused(why));
        }
        Ok(Found::AtSource(Box::new(now)))
    }

    /// From its source to its target.
    async fn transfer(
        &self,
        planned: &Move,
        instance: &Instance,
        was_running: bool,
        known: &mut Known,
    ) -> Result<Outcome, RetryReason> {
        let (project, name) = id(planned);
        let to = planned.to.0.as_str();
        let (live, refresh) = match is_running(instance) {
            true => self.ways(instance).await?,
            false => (false, false),
        };
        if is_running(instance) && !live && !refresh {
            known.down_since.get_or_insert_with(Instant::now);
            self.stop(planned).await?;
        }
        let request = MoveRequest { target: Some(to.to_owned()), live, refresh, ..MoveRequest::default() };
        let moved = self.act(planned, self.client.move_instance(project, name, &request)).await;
        if matches!(moved, Ok(()) | Err(RetryReason::Refused(_)))
            && was_running
            && !self.runs(project, name).await?
        {
            self.start(planned).await?;
        }
        moved?;
        let there = self.client.instance(project, name).await?.value;
        if there.location != to {
            let why = format!("the server reports that it was moved, but it is on {}", there.location);
            return Err(RetryReason::Refused(why));
        }
        Ok(known.moved())
    }

    async fn stop(&self, planned: &Move) -> Result<(), RetryReason> {
        let (project, name) = id(planned);
        let timeout = self.limits.stop_timeout;
        let stop = self.client.set_instance_state(project, name, StateAction::Stop, timeout);
        match self.act(planned, stop).await {
            // It may have stopped all the same.
            Err(RetryReason::Refused(why)) if self.runs(project, name).await? => {
                let seconds = timeout.as_secs();
                Err(RetryReason::Refused(format!(
                    "it did not stop within {seconds} s and is still running: {why}"
                )))
            }
            Err(RetryReason::Refused(_)) => Ok(()),
            other => other,
        }
    }

    /// Live, or by refreshed copies: what the server and the instance can.
    async fn ways(&self, instance: &Instance) -> Result<(bool, bool), RetryReason> {
        if instance.kind == "virtual-machine" {
            let stateful = instance.expanded_config.get("migration.stateful").is_some_and(|v| v == "true");
            return Ok((stateful, false));
        }
        Ok((false, self.client.has(Feature::RefreshMigration).await?))
    }

    /// Waits for operations on the instance that somebody (an earlier run) has begun.
    async fn settled(&self, project: &str, name: &str) -> Result<(), RetryReason> {
        let path = format!("/instances/{name}");
        loop {
            let operations = self.client.operations(stead_incus::Scope::Project(project)).await?;
            let concerns = |o: &&stead_incus::types::OperationStatus| {
                let named = o.resources.values().flatten().flatten();
                o.outcome() == stead_incus::types::Outcome::Running
                    && o.class != "token"
                    && named.into_iter().any(|r| r.split('?').next().is_some_and(|r| r.ends_with(&path)))
            };
            if !operations.iter().any(|o| concerns(&o)) {
                return Ok(());
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn runs(&self, project: &str, name: &str) -> Result<bool, RetryReason> {
        Ok(is_running(&self.client.instance(project, name).await?.value))
    }

    async fn start(&self, planned: &Move) -> Result<(), RetryReason> {
        let (project, name) = id(planned);
        let start = self.client.set_instance_state(project, name, StateAction::Start, Duration::ZERO);
        match self.act(planned, start).await {
            Err(RetryReason::Refused(why)) if !self.runs(project, name).await? => {
                Err(RetryReason::Refused(format!("it does not start: {why}")))
            }
            Err(RetryReason::Refused(_)) => Ok(()),
            other => other,
        }
    }

    /// Does something to the instance. A refusal by a server that was restarted meanwhile is none: such a server says so
    /// in many ways.
    async fn act<T>(
        &self,
        planned: &Move,
        what: impl Future<Output = Result<T, Error>>,
    ) -> Result<(), RetryReason> {
        let before = self.daemons(planned).await?;
        match what.await.map_err(RetryReason::from) {
            Err(RetryReason::Refused(why)) if self.daemons(planned).await? != before => {
                Err(RetryReason::Away(why))
            }
            done => done.map(drop),
        }
    }

    /// The processes of the daemons that a move is between: others after a restart. A member that answers but is offline
    /// for the cluster is away too: nothing would be moved from or to it until its next heartbeat.
    async fn daemons(&self, planned: &Move) -> Result<[i64; 2], RetryReason> {
        let members = self.client.members().await?;
        let ends = [&planned.from.0, &planned.to.0];
        if let Some(offline) =
            members.iter().find(|m| ends.contains(&&m.server_name) && m.status == "Offline")
        {
            return Err(RetryReason::Away(format!(
                "{} is offline: {}",
                offline.server_name, offline.message
            )));
        }
        let pid = async |member: &str| match self.client.server_of(member).await {
            Ok(server) => Ok(server.environment.server_pid),
            // However it is said by the one that was asked: this member does not answer.
            Err(e) => Err(RetryReason::Away(chain(&e))),
        };
        Ok([pid(&planned.from.0).await?, pid(&planned.to.0).await?])
    }

    /// Until the two members of a move answer and the instance can be looked at again, or why that was not in time.
    async fn wait_for_server(&self, planned: &Move, why: String) -> Result<(), String> {
        (self.tell)(Event::ServerAway(why));
        let deadline = Instant::now() + self.limits.server_patience;
        let (project, name) = id(planned);
        loop {
            tokio::time::sleep(AGAIN).await;
            let well = async {
                self.daemons(planned).await?;
                self.client.instance(project, name).await.map(drop).map_err(RetryReason::from)
            };
            match well.await {
                Err(RetryReason::Away(why)) if Instant::now() > deadline => {
                    return Err(format!("no answer for {} s: {why}", self.limits.server_patience.as_secs()));
                }
                Err(RetryReason::Away(_)) => {}
                _ => return Ok(()),
            }
        }
    }
}

/// Project and name of the instance.
fn id(planned: &Move) -> (&str, &str) {
    (planned.instance.project.as_str(), planned.instance.name.as_str())
}

fn is_running(instance: &Instance) -> bool {
    instance.status != "Stopped"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends() {
        let limits = Limits { server_patience: Duration::from_secs(10), ..Limits::default() };
        let (now, why) = (Instant::now(), || "why".to_owned());
        let mut new = Patience::new(false, &limits);
        assert_eq!(new.next(RetryReason::Refused(why()), now), Next::End(Outcome::Failed(why())));
        for _ in 1..TRIES {
            assert_eq!(new.next(RetryReason::Away(why()), now), Next::WhenServersAnswer(why()));
        }
        assert!(matches!(new.next(RetryReason::Away(why()), now), Next::End(Outcome::Unfinished(_))));

        let mut resumed = Patience::new(true, &limits);
        for _ in 0..RESUMED_TRIES {
            assert_eq!(resumed.next(RetryReason::Refused(why()), now), Next::Again);
        }
        assert_eq!(resumed.next(RetryReason::Refused(why()), now), Next::End(Outcome::Failed(why())));

        let mut busy = Patience::new(false, &limits);
        for s in [0, 5, 10] {
            assert_eq!(busy.next(RetryReason::Busy(why()), now + Duration::from_secs(s)), Next::Again);
        }
        let late = now + Duration::from_secs(11);
        assert_eq!(busy.next(RetryReason::Busy(why()), late), Next::End(Outcome::Unfinished(why())));
    }
}
