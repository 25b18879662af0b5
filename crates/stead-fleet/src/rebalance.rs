//! Carries a plan's moves out, so that whatever dies in the middle, every instance ends on one member and runs if it ran.
//!
//! Owns the order of moves, how each is done (live, by refreshed copies, or stopped), what happens when a server goes away
//! and comes again, and the journal's entries. Chooses no placement.
//!
//! A move: look where the instance is -> note that it begins -> stop it if it must be -> move -> start it if it ran ->
//! look again. Each step looks before it acts, so doing a move again from the start is always right; going on with a move
//! that an earlier run began is the same as doing it again, with the earlier run's word on whether the instance ran.

use crate::{
    chain,
    journal::{Entry, Journal, JournalError, Unfinished},
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use std::{
    cell::RefCell,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use stead_incus::{
    Client, Error, Feature,
    requests::instances::{Move as MoveRequest, StateAction},
    types::Instance,
};
use stead_placement::plan::{Move, Plan};
use tokio::sync::watch;

/// How often a move is tried when the server goes away in the middle of it.
const TRIES: u32 = 5;
/// How often a move that an earlier run had begun is tried again when it is refused.
const RESUMED_TRIES: u32 = 2;
/// Pause between two looks at a server that does not answer.
const AGAIN: Duration = Duration::from_secs(1);
/// How a rebalance is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Moves at the same time.
    pub at_once: usize,
    /// Mean rate over the run at which instances are copied: a move begins when what was copied before allows it. None: as
    /// fast as it goes. The servers' own copies are not slowed down.
    pub mib_per_s: Option<u64>,
    /// How long an instance may take to shut down; one that takes longer is not moved.
    pub stop_timeout: Duration,
    /// How long a server may be away.
    pub server_patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            at_once: 1,
            mib_per_s: None,
            stop_timeout: Duration::from_secs(60),
            server_patience: Duration::from_secs(300),
        }
    }
}

/// What happens, as it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A move begins; `resumed`: an earlier run began it.
    Begins {
        /// The move.
        planned: Move,
        /// An earlier run began it.
        resumed: bool,
    },
    /// A move has ended.
    Ended {
        /// The move.
        planned: Move,
        /// How.
        outcome: Outcome,
    },
    /// The server does not answer; it is waited for.
    ServerAway(String),
}

/// How a move ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The instance is where it should be.
    Moved {
        /// How long it was stopped.
        downtime: Duration,
    },
    /// It was there already.
    AlreadyThere,
    /// It was not moved, and why. It is where it was and as it was, or the text says what is wrong with it.
    Failed(String),
    /// A server went away in the middle and stayed away: how it is with the instance is not known. The next run goes on
    /// with it.
    Unfinished(String),
    /// It was not begun: the run was asked to stop, its time was over, or a move it had to wait for failed.
    Left,
}

/// What became of a plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Each move that was to be done, resumed ones first.
    pub moves: Vec<(Move, Outcome)>,
}

impl Summary {
    /// How many ended like this.
    pub fn count(&self, like: impl Fn(&Outcome) -> bool) -> usize {
        self.moves.iter().filter(|(_, o)| like(o)).count()
    }
}

/// Carries moves out.
#[derive(Debug)]
pub struct Rebalance<'a, F> {
    client: &'a Client,
    journal: RefCell<Journal>,
    limits: Limits,
    stop: watch::Receiver<bool>,
    tell: F,
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

impl<'a, F: Fn(Event)> Rebalance<'a, F> {
    /// `stop`: true when no further move is to begin; those that run are ended.
    pub fn new(
        client: &'a Client,
        journal: Journal,
        limits: Limits,
        stop: watch::Receiver<bool>,
        tell: F,
    ) -> Self {
        Self { client, journal: RefCell::new(journal), limits, stop, tell }
    }

    /// Brings moves that an earlier run began to their end. Whether asked to stop or not: until this is done an instance
    /// may be stopped that should run.
    ///
    /// # Errors
    /// The journal cannot be written. A move that fails is no error.
    pub async fn resume(&self, unfinished: Vec<Unfinished>) -> Result<Summary, JournalError> {
        let mut summary = Summary::default();
        for left in unfinished {
            (self.tell)(Event::Begins { planned: left.planned.clone(), resumed: true });
            let outcome = self.carry_out(left.number, &left.planned, Some(left.running)).await?;
            self.ended(&left.planned, &outcome);
            summary.moves.push((left.planned, outcome));
        }
        Ok(summary)
    }

    /// Carries a plan out: each move after those it must wait for, as many at once as allowed, none begun at `until` or
    /// later.
    ///
    /// # Errors
    /// The journal cannot be written. A move that fails is no error: the others go on.
    pub async fn run(
        &self,
        cluster: &str,
        plan: &Plan,
        until: Option<SystemTime>,
    ) -> Result<Summary, JournalError> {
        self.journal.borrow_mut().begin(cluster, plan, now_s())?;
        let began = Instant::now();
        let mut outcomes: Vec<Option<Outcome>> = vec![None; plan.moves.len()];
        let mut begun = vec![false; plan.moves.len()];
        let mut copied_mib = 0;
        let mut running = FuturesUnordered::new();
        loop {
            // What waits for a move that did not happen has lost the room it was promised.
            for n in 0..plan.moves.len() {
                let lost = |o: &Option<Outcome>| {
                    matches!(o, Some(Outcome::Failed(_) | Outcome::Unfinished(_) | Outcome::Left))
                };
                if !begun[n] && plan.moves[n].after.iter().any(|a| outcomes.get(*a).is_some_and(lost)) {
                    begun[n] = true;
                    outcomes[n] = Some(Outcome::Left);
                }
            }
            let ready = (0..plan.moves.len()).find(|n| {
                !begun[*n]
                    && plan.moves[*n].after.iter().all(|a| outcomes.get(*a).is_none_or(Option::is_some))
            });
            let stopping = *self.stop.borrow() || until.is_some_and(|u| SystemTime::now() >= u);
            let due = self.due(copied_mib);
            match ready {
                Some(n)
                    if !stopping && running.len() < self.limits.at_once.max(1) && began.elapsed() >= due =>
                {
                    begun[n] = true;
                    copied_mib += plan.moves[n].size_mib;
                    (self.tell)(Event::Begins { planned: plan.moves[n].clone(), resumed: false });
                    running.push(async move { (n, self.carry_out(n, &plan.moves[n], None).await) });
                }
                None if running.is_empty() => break,
                _ if stopping && running.is_empty() => break,
                _ => {
                    let mut stop = self.stop.clone();
                    let waits_for_rate =
                        ready.is_some() && !stopping && running.len() < self.limits.at_once.max(1);
                    tokio::select! {
                        Some((n, outcome)) = running.next() => {
                            let outcome = outcome?;
                            self.ended(&plan.moves[n], &outcome);
                            outcomes[n] = Some(outcome);
                        }
                        () = tokio::time::sleep(due.saturating_sub(began.elapsed())), if waits_for_rate => {}
                        Ok(()) = stop.changed(), if !stopping => {}
                    }
                }
            }
        }
        self.journal.borrow_mut().write(&Entry::Ended { at_s: now_s() })?;
        let outcomes = outcomes.into_iter().map(|o| o.unwrap_or(Outcome::Left));
        Ok(Summary { moves: plan.moves.iter().cloned().zip(outcomes).collect() })
    }

    /// How long after its beginning a run may have copied this much.
    fn due(&self, copied_mib: u64) -> Duration {
        let rate = self.limits.mib_per_s.filter(|r| *r > 0);
        rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(copied_mib as f64 / rate as f64))
    }

    fn ended(&self, planned: &Move, outcome: &Outcome) {
        (self.tell)(Event::Ended { planned: planned.clone(), outcome: outcome.clone() });
    }

    /// One move with its entries. `ran`: an earlier run's word on whether the instance ran.
    async fn carry_out(
        &self,
        number: usize,
        planned: &Move,
        ran: Option<bool>,
    ) -> Result<Outcome, JournalError> {
        let outcome = self.attempts(number, planned, ran).await?;
        let at_s = now_s();
        let entry = match &outcome {
            // Without an end the next run finds it.
            Outcome::Unfinished(_) => return Ok(outcome),
            Outcome::Failed(why) => Entry::Failed { number, why: why.clone(), at_s },
            _ => Entry::Done { number, at_s },
        };
        self.journal.borrow_mut().write(&entry)?;
        Ok(outcome)
    }

    async fn attempts(
        &self,
        number: usize,
        planned: &Move,
        ran: Option<bool>,
    ) -> Result<Outcome, JournalError> {
        let mut ran = ran;
        let mut down_since = None;
        let mut busy_since = None;
        let mut aways = 0;
        // A killed run's last request may reach the server after the next run has looked, and then the two are in each
        // other's way.
        let mut patience = if ran.is_some() { RESUMED_TRIES } else { 0 };
        loop {
            match self.attempt(number, planned, &mut ran, &mut down_since).await {
                Err(Hitch::Busy(why)) => {
                    let since = *busy_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > self.limits.server_patience {
                        return Ok(Outcome::Unfinished(why));
                    }
                    tokio::time::sleep(AGAIN).await;
                }
                Err(Hitch::Away(why)) => {
                    aways += 1;
                    if aways == TRIES {
                        return Ok(Outcome::Unfinished(format!("a server went away {TRIES} times: {why}")));
                    }
                    if let Err(why) = self.wait_for_server(planned, why).await {
                        return Ok(Outcome::Unfinished(why));
                    }
                }
                Err(Hitch::Refused(_)) if patience > 0 => {
                    patience -= 1;
                    tokio::time::sleep(AGAIN).await;
                }
                Err(Hitch::Refused(why)) => return Ok(Outcome::Failed(why)),
                Err(Hitch::Journal(e)) => return Err(e),
                Ok(outcome) => return Ok(outcome),
            }
        }
    }

    /// From wherever the instance is to the end of the move.
    async fn attempt(
        &self,
        number: usize,
        planned: &Move,
        ran: &mut Option<bool>,
        down_since: &mut Option<Instant>,
    ) -> Result<Outcome, Hitch> {
        let (project, name) = (planned.instance.project.as_str(), planned.instance.name.as_str());
        self.settled(project, name).await?;
        let now = self.client.instance(project, name).await?.value;
        let is_running = is_running(&now);
        let to = planned.to.0.as_str();
        if now.location == to {
            let begun_before = ran.is_some();
            if *ran == Some(true) && !is_running {
                self.start(planned).await?;
            }
            return Ok(match begun_before {
                true => Outcome::Moved { downtime: down_since.map_or(Duration::ZERO, |d| d.elapsed()) },
                false => Outcome::AlreadyThere,
            });
        }
        if now.location != planned.from.0 {
            return Err(Hitch::Refused(format!("it is on {} by now, not on {}", now.location, planned.from)));
        }
        let was_running = match *ran {
            Some(known) => known,
            None => {
                let entry = Entry::Begun { number, running: is_running, at_s: now_s() };
                self.journal.borrow_mut().write(&entry).map_err(Hitch::Journal)?;
                *ran = Some(is_running);
                is_running
            }
        };
        let (live, refresh) = match is_running {
            true => self.ways(&now).await?,
            false => (false, false),
        };
        if is_running && !live && !refresh {
            down_since.get_or_insert_with(Instant::now);
            let stop =
                self.client.set_instance_state(project, name, StateAction::Stop, self.limits.stop_timeout);
            match self.act(planned, stop).await {
                // It may have stopped all the same.
                Err(Hitch::Refused(why)) if self.runs(project, name).await? => {
                    return Err(Hitch::Refused(format!(
                        "it did not stop within {} s, and runs on: {why}",
                        self.limits.stop_timeout.as_secs()
                    )));
                }
                Err(Hitch::Refused(_)) => {}
                other => other?,
            }
        }
        let request = MoveRequest { target: Some(to.to_owned()), live, refresh, ..MoveRequest::default() };
        let moved = self.act(planned, self.client.move_instance(project, name, &request)).await;
        if matches!(moved, Ok(()) | Err(Hitch::Refused(_)))
            && was_running
            && !self.runs(project, name).await?
        {
            self.start(planned).await?;
        }
        moved?;
        let there = self.client.instance(project, name).await?.value;
        if there.location != to {
            return Err(Hitch::Refused(format!(
                "the server says that it was moved, but it is on {}",
                there.location
            )));
        }
        Ok(Outcome::Moved { downtime: down_since.map_or(Duration::ZERO, |d| d.elapsed()) })
    }

    /// Live, or by refreshed copies: what the server and the instance can.
    async fn ways(&self, instance: &Instance) -> Result<(bool, bool), Hitch> {
        if instance.kind == "virtual-machine" {
            let stateful = instance.expanded_config.get("migration.stateful").is_some_and(|v| v == "true");
            return Ok((stateful, false));
        }
        Ok((false, self.client.has(Feature::RefreshMigration).await?))
    }

    /// Waits for operations on the instance that somebody (an earlier run) has begun.
    async fn settled(&self, project: &str, name: &str) -> Result<(), Hitch> {
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

    async fn runs(&self, project: &str, name: &str) -> Result<bool, Hitch> {
        Ok(is_running(&self.client.instance(project, name).await?.value))
    }

    async fn start(&self, planned: &Move) -> Result<(), Hitch> {
        let (project, name) = (planned.instance.project.as_str(), planned.instance.name.as_str());
        let start = self.client.set_instance_state(project, name, StateAction::Start, Duration::ZERO);
        match self.act(planned, start).await {
            Err(Hitch::Refused(why)) if !self.runs(project, name).await? => {
                Err(Hitch::Refused(format!("it does not start again: {why}")))
            }
            Err(Hitch::Refused(_)) => Ok(()),
            other => other,
        }
    }

    /// Does something to the instance. A refusal by a server that was restarted meanwhile is none: such a server says so
    /// in many ways.
    async fn act<T>(
        &self,
        planned: &Move,
        what: impl Future<Output = Result<T, Error>>,
    ) -> Result<(), Hitch> {
        let before = self.daemons(planned).await?;
        match what.await.map_err(Hitch::from) {
            Err(Hitch::Refused(why)) if self.daemons(planned).await? != before => Err(Hitch::Away(why)),
            done => done.map(drop),
        }
    }

    /// The processes of the daemons that a move is between: others after a restart. A member that answers but is offline
    /// for the cluster is away too: nothing would be moved from or to it until its next heartbeat.
    async fn daemons(&self, planned: &Move) -> Result<[i64; 2], Hitch> {
        let members = self.client.members().await?;
        let ends = [&planned.from.0, &planned.to.0];
        if let Some(offline) =
            members.iter().find(|m| ends.contains(&&m.server_name) && m.status == "Offline")
        {
            return Err(Hitch::Away(format!("{} is offline: {}", offline.server_name, offline.message)));
        }
        let pid = async |member: &str| match self.client.server_of(member).await {
            Ok(server) => Ok(server.environment.server_pid),
            // However it is said by the one that was asked: this member does not answer.
            Err(e) => Err(Hitch::Away(chain(&e))),
        };
        Ok([pid(&planned.from.0).await?, pid(&planned.to.0).await?])
    }

    /// Until the two members of a move answer and the instance can be looked at again, or why that was not in time.
    async fn wait_for_server(&self, planned: &Move, why: String) -> Result<(), String> {
        (self.tell)(Event::ServerAway(why));
        let deadline = Instant::now() + self.limits.server_patience;
        let (project, name) = (planned.instance.project.as_str(), planned.instance.name.as_str());
        loop {
            tokio::time::sleep(AGAIN).await;
            let well = async {
                self.daemons(planned).await?;
                self.client.instance(project, name).await.map(drop).map_err(Hitch::from)
            };
            match well.await {
                Err(Hitch::Away(why)) if Instant::now() > deadline => {
                    return Err(format!("no answer for {} s: {why}", self.limits.server_patience.as_secs()));
                }
                Err(Hitch::Away(_)) => {}
                _ => return Ok(()),
            }
        }
    }
}

fn is_running(instance: &Instance) -> bool {
    instance.status != "Stopped"
}

/// Why a move did not end in one go.
#[derive(Debug)]
enum Hitch {
    /// A server is not there, or not itself (its database may be gone before it is): what it was doing has to be looked up
    /// when it is.
    Away(String),
    /// The server is not through with the instance, though it tells of no operation: what an earlier run began is being
    /// tidied up.
    Busy(String),
    /// It will not be.
    Refused(String),
    Journal(JournalError),
}

impl From<Error> for Hitch {
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
