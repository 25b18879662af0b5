//! One move, from wherever its instance is to its end.
//!
//! Look where the instance is -> ask whether it will start at its target -> note that the move begins -> stop the instance
//! if it must be -> move -> start it if it ran -> look again. Each step looks before it acts, so doing a move again from the
//! start is always right; continuing a move that an earlier run began is the same as doing it again, with that run's word on
//! whether the instance ran.
//!
//! An instance that does not start at its target is moved back and started there. If that fails too it is a debt, which the
//! journal keeps until it is paid.

use super::{Clock, Event, Limits, Outcome};
use crate::{
    journal::{Barred, Debt, Entry, Journal, JournalError},
    power::{self, Power},
    preflight::{self, Obstacle},
    shell::Shell,
};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    time::{Duration, Instant},
};
use stead_incus::{
    Client, Error, Feature, Scope,
    requests::instances::{Move as MoveRequest, StateAction},
    types::{Instance, Member, OperationStatus},
};
use stead_os::chain;
use stead_placement::{
    plan::Move,
    snapshot::{Bar, InstanceId, PoolName},
};

/// How often a move is tried when a server goes away in the middle of it.
const TRIES: u32 = 5;
/// How often a move that an earlier run had begun is tried again when it is refused: that run's last request may reach the
/// server after this one has looked, and then the two are in each other's way.
const RESUMED_TRIES: u32 = 2;
/// Pause between two looks at a server that does not answer.
const AGAIN: Duration = Duration::from_secs(1);

/// How an engine refuses an instance because of what is left of an earlier move of it (internal/server/storage/backend.go,
/// CreateInstanceFromMigration; the same in LXD).
const LEFT_OVER: [&str; 3] = [
    "already exists on storage but not in database",
    "exists in database but not on storage",
    "already exists on migration target storage",
];

/// How LXD calls an instance while it moves it, before the instance's `volatile.uuid`.
const TEMPORARY: &str = "lxd-move-of-";

/// Whether an engine has refused an instance because of what is left of an earlier move.
fn is_left_over(why: &str) -> bool {
    LEFT_OVER.iter().any(|l| why.contains(l)) || why.contains(TEMPORARY) && why.ends_with("file exists")
}

/// Moves instances.
pub struct Mover<'a, F> {
    pub client: &'a Client,
    pub journal: RefCell<Journal>,
    pub limits: Limits,
    pub clock: Clock<'a>,
    pub tell: F,
    /// Instances that are to be started.
    pub owed: RefCell<BTreeMap<InstanceId, Debt>>,
    /// Members that refused an instance.
    pub barred: RefCell<Vec<Barred>>,
    /// Whether a target would not take an instance.
    pub obstructed: Cell<bool>,
    /// A way to run programs on members.
    pub shell: &'a dyn Shell,
}

/// What is known of an instance from one try of its move to the next.
struct Known {
    /// Whether it ran before the move; none until that was noted in the journal.
    power: Option<Power>,
    /// Since when it has been stopped for the move.
    down_since: Option<Instant>,
    /// Its `volatile.uuid`, by which LXD names it while it moves it.
    uuid: Option<String>,
}

impl Known {
    fn moved(&self) -> Outcome {
        Outcome::Moved { downtime: self.down_since.map_or(Duration::ZERO, |d| d.elapsed()) }
    }
}

/// Where an instance was found.
enum Found {
    /// Where it is to be moved from, and the members of the cluster.
    AtSource(Box<Instance>, Vec<Member>),
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
    /// The target would not take it, or has not taken it. It is as it was.
    Obstructed(Vec<Obstacle>),
    /// It did not start at its target, and was moved back.
    Undone(String),
    /// It ran, is stopped, and cannot be started.
    Stranded(String),
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
            RetryReason::Obstructed(obstacles) => {
                let all: Vec<String> = obstacles.iter().map(ToString::to_string).collect();
                Next::End(Outcome::Failed(all.join("; ")))
            }
            RetryReason::Undone(why) => Next::End(Outcome::Failed(why)),
            RetryReason::Stranded(why) => Next::End(Outcome::Stranded(why)),
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

    /// One move with its entries. `power`: an earlier run's word on whether the instance ran.
    pub async fn carry_out(
        &self,
        number: usize,
        planned: &Move,
        power: Option<Power>,
    ) -> Result<Outcome, JournalError> {
        // What could not be started after an earlier move is started after this one.
        let owed = self.owed.borrow().get(&planned.instance).cloned();
        let power = power.or(owed.as_ref().map(|debt| debt.power));
        let mut known =
            Known { power, down_since: None, uuid: owed.as_ref().and_then(|debt| debt.uuid.clone()) };
        let outcome = self.until_it_ends(number, planned, &mut known).await?;
        let at_s = now_s(self.clock);
        let entry = match &outcome {
            // Without an end the next run finds it.
            Outcome::Unfinished(_) => return Ok(outcome),
            Outcome::Failed(why) => Entry::Failed { number, why: why.clone(), at_s },
            Outcome::Stranded(why) => {
                let debt = Debt {
                    instance: planned.instance.clone(),
                    home: owed.map_or_else(|| planned.from.clone(), |debt| debt.home),
                    power: known.power.unwrap_or(Power::Running),
                    uuid: known.uuid,
                    why: why.clone(),
                    at_s,
                };
                self.owed.borrow_mut().insert(debt.instance.clone(), debt.clone());
                Entry::Owed(debt)
            }
            _ => {
                self.owed.borrow_mut().remove(&planned.instance);
                Entry::Done { number, at_s }
            }
        };
        self.journal.borrow_mut().write(&entry)?;
        Ok(outcome)
    }

    /// Starts what an earlier run left stopped: where it is, or back on the member it came from. The text says why it is
    /// still stopped.
    pub async fn pay(&self, debt: &Debt) -> Result<Result<(), String>, JournalError> {
        // A server that is away is not waited for: the rest of the run need not wait.
        Ok(match self.pay_once(debt).await {
            Ok(()) => {
                self.owed.borrow_mut().remove(&debt.instance);
                let paid = Entry::Paid { instance: debt.instance.clone(), at_s: now_s(self.clock) };
                self.journal.borrow_mut().write(&paid)?;
                Ok(())
            }
            Err(reason) => Err(reason.text()),
        })
    }

    async fn pay_once(&self, debt: &Debt) -> Result<(), RetryReason> {
        let (project, name) = (debt.instance.project.as_str(), debt.instance.name.as_str());
        self.settled(project, name).await?;
        let there = match self.client.instance(project, name).await {
            Ok(found) => found.value,
            Err(e) if e.is_not_found() => {
                let temporary = debt.uuid.as_ref().map(|uuid| format!("{TEMPORARY}{uuid}"));
                let copy = match &temporary {
                    Some(temporary) => self.client.instance(project, temporary).await.ok(),
                    None => None,
                };
                // It was deleted: nothing is owed.
                let (Some(copy), Some(uuid)) = (copy, &debt.uuid) else { return Ok(()) };
                let ends = [copy.value.location.as_str(), debt.home.0.as_str()];
                self.rescue(&ends, &debt.instance, uuid).await?;
                return self.restore(&ends, &debt.instance, debt.power).await;
            }
            Err(e) => return Err(e.into()),
        };
        let at = there.location.clone();
        let ends = [at.as_str(), debt.home.0.as_str()];
        let why = match self.restore(&ends, &debt.instance, debt.power).await {
            Err(RetryReason::Refused(why)) => why,
            done => return done,
        };
        if at == debt.home.0 {
            return Err(RetryReason::Refused(why));
        }
        let home = async {
            self.bring_home(&ends, &debt.instance).await?;
            self.restore(&ends, &debt.instance, debt.power).await
        };
        match home.await {
            Err(RetryReason::Refused(back)) => Err(RetryReason::Refused(format!("on {at}, {why}; {back}"))),
            done => done,
        }
    }

    /// Tries until the move has ended or patience has.
    async fn until_it_ends(
        &self,
        number: usize,
        planned: &Move,
        known: &mut Known,
    ) -> Result<Outcome, JournalError> {
        let mut patience = Patience::new(known.power.is_some(), &self.limits);
        loop {
            let reason = match self.attempt(number, planned, known).await? {
                Ok(outcome) => return Ok(outcome),
                Err(reason) => reason,
            };
            let reason = match reason {
                RetryReason::Refused(why) if is_left_over(&why) => {
                    let bar = Bar::LeftOver(PoolName(self.root_pool(planned).await));
                    RetryReason::Obstructed(vec![Obstacle::Barred(bar)])
                }
                reason => reason,
            };
            if let RetryReason::Obstructed(all) = &reason {
                let left_over = |o: &&Obstacle| matches!(o, Obstacle::Barred(Bar::LeftOver(_)));
                if let Some(Obstacle::Barred(bar)) = all.iter().find(left_over) {
                    self.learn(planned, bar)?;
                }
            }
            if matches!(&reason, RetryReason::Obstructed(all) if all.iter().any(Obstacle::is_of_the_target)) {
                self.obstructed.set(true);
            }
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

    /// Remembers that a member refuses an instance.
    fn learn(&self, planned: &Move, bar: &Bar) -> Result<(), JournalError> {
        let barred = Barred {
            instance: planned.instance.clone(),
            member: planned.to.clone(),
            bar: bar.clone(),
            at_s: now_s(self.clock),
        };
        let known = |b: &Barred| (&b.instance, &b.member) == (&barred.instance, &barred.member);
        if self.barred.borrow().iter().any(known) {
            return Ok(());
        }
        self.journal.borrow_mut().write(&Entry::Barred(barred.clone()))?;
        self.barred.borrow_mut().push(barred);
        Ok(())
    }

    /// The pool of an instance's root disk, for a message.
    async fn root_pool(&self, planned: &Move) -> String {
        let (project, name) = id(planned);
        let instance = self.client.instance(project, name).await;
        let is_root = |d: &&stead_incus::types::Config| d.get("path").is_some_and(|p| p == "/");
        let root = instance.as_ref().ok().and_then(|i| i.value.expanded_devices.values().find(is_root));
        root.and_then(|d| d.get("pool")).cloned().unwrap_or_else(|| "default".to_owned())
    }

    /// One try. The outer error ends the run: without its journal nothing may be begun.
    async fn attempt(
        &self,
        number: usize,
        planned: &Move,
        known: &mut Known,
    ) -> Result<Result<Outcome, RetryReason>, JournalError> {
        let (instance, members) = match self.find(planned, known).await {
            Ok(Found::AtSource(instance, members)) => (instance, members),
            Ok(Found::AtTarget(outcome)) => return Ok(Ok(outcome)),
            Err(reason) => return Ok(Err(reason)),
        };
        // Before anything is stopped, and before it is announced that something may be.
        known.uuid = instance.config.get("volatile.uuid").cloned().or(known.uuid.take());
        let obstacles = preflight::obstacles(self.client, self.shell, &instance, planned, &members);
        let obstacles = match obstacles.await {
            Ok(obstacles) => obstacles,
            Err(e) => return Ok(Err(e.into())),
        };
        let power = match known.power {
            Some(power) => power,
            None if !obstacles.is_empty() => return Ok(Err(RetryReason::Obstructed(obstacles))),
            None => {
                let at = members.iter().find(|m| m.server_name == instance.location);
                let power = Power::of(&instance, at);
                self.journal.borrow_mut().write(&Entry::Begun { number, power, at_s: now_s(self.clock) })?;
                known.power = Some(power);
                power
            }
        };
        if !obstacles.is_empty() {
            // An earlier try may have stopped it.
            let at_source = self.restore_at_source(planned, power, known).await;
            return Ok(Err(
                at_source.map_or_else(RetryReason::stranded, |()| RetryReason::Obstructed(obstacles))
            ));
        }
        Ok(self.transfer(planned, &instance, power, known).await)
    }

    /// Looks where the instance is, when nobody is at work on it. One that has been moved already is started if it ran.
    async fn find(&self, planned: &Move, known: &Known) -> Result<Found, RetryReason> {
        let (project, name) = id(planned);
        self.settled(project, name).await?;
        let members = self.online(&ends(planned)).await?;
        let now = self.client.instance(project, name).await?.value;
        if now.location == planned.to.0 {
            if let Some(power) = known.power {
                self.arrive(planned, power, known).await?;
            }
            return Ok(Found::AtTarget(match known.power {
                Some(_) => known.moved(),
                None => Outcome::AlreadyThere,
            }));
        }
        if now.location != planned.from.0 {
            let why = format!("it is on {} by now, not on {}", now.location, planned.from);
            return Err(RetryReason::Refused(why));
        }
        Ok(Found::AtSource(Box::new(now), members))
    }

    /// From its source to its target.
    async fn transfer(
        &self,
        planned: &Move,
        instance: &Instance,
        power: Power,
        known: &mut Known,
    ) -> Result<Outcome, RetryReason> {
        let to = planned.to.0.as_str();
        let (live, refresh) = preflight::ways(instance, self.client.has(Feature::RefreshMigration).await?);
        if power::may_run(instance) && !live && !refresh {
            known.down_since.get_or_insert_with(Instant::now);
            self.stop(planned).await?;
        }
        let moved = self.move_to(&ends(planned), &planned.instance, to, (live, refresh)).await;
        match moved {
            Err(RetryReason::Refused(why)) => {
                let undone = async {
                    if let Some(uuid) = &known.uuid {
                        self.rescue(&ends(planned), &planned.instance, uuid).await?;
                    }
                    self.restore_at_source(planned, power, known).await
                };
                undone.await.map_err(|e| e.after(&why))?;
                return Err(RetryReason::Refused(why));
            }
            moved => moved?,
        }
        let (project, name) = id(planned);
        let there = self.client.instance(project, name).await?.value;
        if there.location != to {
            let why = format!("the server reports that it was moved, but it is on {}", there.location);
            self.restore_at_source(planned, power, known).await.map_err(|e| e.after(&why))?;
            return Err(RetryReason::Refused(why));
        }
        self.arrive(planned, power, known).await?;
        Ok(known.moved())
    }

    /// Brings an instance to run at its target as it ran before; one that does not start there is moved back.
    async fn arrive(&self, planned: &Move, power: Power, known: &Known) -> Result<(), RetryReason> {
        let (ends, to) = (ends(planned), &planned.to);
        let why = match self.restore(&ends, &planned.instance, power).await {
            Err(RetryReason::Refused(why)) => why,
            done => return done,
        };
        (self.tell)(Event::MovesBack { planned: planned.clone(), why: why.clone() });
        let (why, from) = (format!("on {to}, {why}"), &planned.from);
        self.bring_home(&ends, &planned.instance).await.map_err(|e| e.after(&why))?;
        let undone = format!("{why}; it was moved back to {from}");
        match self.restore_at_source(planned, power, known).await {
            Ok(()) => Err(RetryReason::Undone(undone)),
            Err(reason) => Err(reason.after(&undone)),
        }
    }

    /// Gives an instance its name back. LXD 5.0 copies an instance under another name, deletes the original, and renames the
    /// copy (lxd/instance_post.go): when the last step fails, there is only the copy. It goes back to the second of `ends`,
    /// where its name is free, on the disk too.
    async fn rescue(&self, ends: &[&str; 2], instance: &InstanceId, uuid: &str) -> Result<(), RetryReason> {
        let InstanceId { project, name } = instance;
        match self.client.instance(project, name).await {
            Ok(_) => return Ok(()),
            Err(e) if !e.is_not_found() => return Err(e.into()),
            Err(_) => {}
        }
        let temporary = format!("{TEMPORARY}{uuid}");
        let copy = match self.client.instance(project, &temporary).await {
            Ok(copy) => copy.value,
            Err(e) if e.is_not_found() => {
                return Err(RetryReason::Refused("it does not exist any more".into()));
            }
            Err(e) => return Err(e.into()),
        };
        let named = async {
            if copy.location == ends[1] {
                return self.client.rename_instance(project, &temporary, name).await;
            }
            let home = MoveRequest {
                target: Some(ends[1].to_owned()),
                name: Some(name.clone()),
                ..MoveRequest::default()
            };
            self.client.move_instance(project, &temporary, &home).await.map(drop)
        };
        match self.act(ends, named).await {
            Err(RetryReason::Refused(why)) => Err(RetryReason::Refused(format!(
                "it is called {temporary} on {} and cannot be given its name back: {why}",
                copy.location
            ))),
            done => done,
        }
    }

    /// Moves an instance that does not start back to the second of `ends`.
    async fn bring_home(&self, ends: &[&str; 2], instance: &InstanceId) -> Result<(), RetryReason> {
        let moved = self.move_to(ends, instance, ends[1], (false, false)).await;
        match moved {
            Err(RetryReason::Refused(why)) => {
                Err(RetryReason::Refused(format!("it cannot be moved back to {}: {why}", ends[1])))
            }
            moved => moved,
        }
    }

    /// Brings an instance that was not moved to run again. What the evacuation of its member had stopped stays so.
    async fn restore_at_source(
        &self,
        planned: &Move,
        power: Power,
        known: &Known,
    ) -> Result<(), RetryReason> {
        let ends = ends(planned);
        if known.down_since.is_none() {
            let members = self.online(&ends).await?;
            let source = members.iter().find(|m| m.server_name == planned.from.0);
            if source.is_some_and(power::is_evacuated) {
                return Ok(());
            }
        }
        self.restore(&ends, &planned.instance, power).await
    }

    async fn move_to(
        &self,
        ends: &[&str; 2],
        instance: &InstanceId,
        to: &str,
        (live, refresh): (bool, bool),
    ) -> Result<(), RetryReason> {
        let request = MoveRequest { target: Some(to.to_owned()), live, refresh, ..MoveRequest::default() };
        self.act(ends, self.client.move_instance(&instance.project, &instance.name, &request)).await
    }

    async fn stop(&self, planned: &Move) -> Result<(), RetryReason> {
        let (project, name) = id(planned);
        let timeout = self.limits.stop_timeout;
        let stop = self.client.set_instance_state(project, name, StateAction::Stop, timeout);
        match self.act(&ends(planned), stop).await {
            // It may have stopped all the same.
            Err(RetryReason::Refused(why)) if self.status(&planned.instance).await? != "Stopped" => {
                let seconds = timeout.as_secs();
                Err(RetryReason::Refused(format!(
                    "it did not stop within {seconds} s and is still running: {why}"
                )))
            }
            Err(RetryReason::Refused(_)) => Ok(()),
            other => other,
        }
    }

    /// Waits for operations on the instance that somebody (an earlier run) has begun.
    async fn settled(&self, project: &str, name: &str) -> Result<(), RetryReason> {
        while is_busy(self.client, project, name).await? {
            tokio::time::sleep(AGAIN).await;
        }
        Ok(())
    }

    async fn status(&self, instance: &InstanceId) -> Result<String, RetryReason> {
        Ok(self.client.instance(&instance.project, &instance.name).await?.value.status)
    }

    /// Brings an instance to run as it ran before, where it is.
    async fn restore(
        &self,
        ends: &[&str; 2],
        instance: &InstanceId,
        power: Power,
    ) -> Result<(), RetryReason> {
        if power == Power::Stopped {
            return Ok(());
        }
        if self.status(instance).await? == "Stopped" {
            self.set(ends, instance, StateAction::Start, "it does not start").await?;
        }
        if power == Power::Frozen && self.status(instance).await? != "Frozen" {
            self.set(ends, instance, StateAction::Freeze, "it runs, but cannot be frozen").await?;
        }
        Ok(())
    }

    async fn set(
        &self,
        ends: &[&str; 2],
        instance: &InstanceId,
        action: StateAction,
        fails: &str,
    ) -> Result<(), RetryReason> {
        let (project, name) = (instance.project.as_str(), instance.name.as_str());
        let set = self.client.set_instance_state(project, name, action, Duration::ZERO);
        match self.act(ends, set).await {
            Err(RetryReason::Refused(why)) => match self.status(instance).await?.as_str() {
                // It has come to be so all the same.
                "Running" if action == StateAction::Start => Ok(()),
                "Frozen" if action == StateAction::Freeze => Ok(()),
                _ => Err(RetryReason::Refused(format!("{fails}: {why}"))),
            },
            other => other,
        }
    }

    /// Does something to the instance. A refusal by a server that was restarted meanwhile is none: such a server says so
    /// in many ways.
    async fn act<T>(
        &self,
        ends: &[&str; 2],
        what: impl Future<Output = Result<T, Error>>,
    ) -> Result<(), RetryReason> {
        let before = self.daemons(ends).await?;
        match what.await.map_err(RetryReason::from) {
            Err(RetryReason::Refused(why)) if self.daemons(ends).await? != before => {
                Err(RetryReason::Away(why))
            }
            done => done.map(drop),
        }
    }

    /// The processes of the daemons that a move is between: others after a restart. A member that answers but is offline
    /// for the cluster is away too: nothing would be moved from or to it until its next heartbeat.
    async fn daemons(&self, ends: &[&str; 2]) -> Result<[i64; 2], RetryReason> {
        self.online(ends).await?;
        let pid = async |member: &str| match self.client.server_of(member).await {
            Ok(server) => Ok(server.environment.server_pid),
            // However it is said by the one that was asked: this member does not answer.
            Err(e) => Err(RetryReason::Away(chain(&e))),
        };
        Ok([pid(ends[0]).await?, pid(ends[1]).await?])
    }

    /// The members of the cluster, when these two are online.
    async fn online(&self, ends: &[&str; 2]) -> Result<Vec<Member>, RetryReason> {
        let members = self.client.members().await?;
        let is_end = |m: &&Member| ends.contains(&m.server_name.as_str());
        match members.iter().filter(is_end).find(|m| m.status == "Offline") {
            Some(m) => Err(RetryReason::Away(format!("{} is offline: {}", m.server_name, m.message))),
            None => Ok(members),
        }
    }

    /// Until the two members of a move answer and the instance can be looked at again, or why that was not in time.
    async fn wait_for_server(&self, planned: &Move, why: String) -> Result<(), String> {
        (self.tell)(Event::ServerAway(why));
        let deadline = Instant::now() + self.limits.server_patience;
        loop {
            tokio::time::sleep(AGAIN).await;
            let well = async {
                self.daemons(&ends(planned)).await?;
                self.status(&planned.instance).await.map(drop)
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

impl RetryReason {
    /// In words.
    fn text(self) -> String {
        match self {
            Self::Away(why)
            | Self::Busy(why)
            | Self::Refused(why)
            | Self::Undone(why)
            | Self::Stranded(why) => why,
            Self::Obstructed(obstacles) => {
                obstacles.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
            }
        }
    }

    /// A refusal to start what ran leaves it stopped.
    fn stranded(self) -> Self {
        match self {
            Self::Refused(why) => Self::Stranded(why),
            other => other,
        }
    }

    /// The same, after something else went wrong.
    fn after(self, first: &str) -> Self {
        match self.stranded() {
            Self::Stranded(why) => Self::Stranded(format!("{first}; {why}")),
            other => other,
        }
    }
}

/// The members that a move is between, its source last.
fn ends(planned: &Move) -> [&str; 2] {
    [&planned.to.0, &planned.from.0]
}

/// Whether somebody's operation on an instance is under way.
///
/// # Errors
/// The cluster does not answer.
pub async fn is_busy(client: &Client, project: &str, name: &str) -> Result<bool, Error> {
    let path = format!("/instances/{name}");
    let concerns = |o: &OperationStatus| {
        let mut named = o.resources.values().flatten().flatten();
        o.outcome() == stead_incus::types::Outcome::Running
            && o.class != "token"
            && named.any(|r| r.split('?').next().is_some_and(|r| r.ends_with(&path)))
    };
    Ok(client.operations(Scope::Project(project)).await?.iter().any(concerns))
}

/// Project and name of the instance.
fn id(planned: &Move) -> (&str, &str) {
    (planned.instance.project.as_str(), planned.instance.name.as_str())
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
