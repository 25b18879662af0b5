//! One plan: its moves in their order, as many at once as allowed.

use super::{
    Clock, Event, Limits, Outcome, Summary,
    mover::{Mover, now_s},
};
use crate::{
    journal::{Barred, Debt, Entry, Journal, JournalError, Past, Unfinished},
    shell::{NoShell, Shell},
    snapshot::Learned,
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use jiff::Timestamp;
use std::{
    cell::{Cell, RefCell},
    time::{Duration, Instant},
};
use stead_incus::Client;
use stead_placement::{
    plan::{Move, Plan},
    snapshot::InstanceId,
};
use tokio::sync::watch;

/// When moves may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// At any time.
    Always,
    /// Before this moment.
    Until(Timestamp),
    /// Not now.
    NotNow,
}

/// Carries moves out.
pub struct Executor<'a, F> {
    mover: Mover<'a, F>,
    stop: watch::Receiver<bool>,
}

impl<'a, F: Fn(Event)> Executor<'a, F> {
    /// `past`: what earlier runs left. `stop`: true when no further move is to begin; those that run are ended. `tell`: is
    /// called with what happens.
    pub fn new(
        client: &'a Client,
        journal: Journal,
        past: &Past,
        limits: Limits,
        clock: Clock<'a>,
        stop: watch::Receiver<bool>,
        tell: F,
    ) -> Self {
        let owed = past.owed.iter().map(|debt| (debt.instance.clone(), debt.clone())).collect();
        let mover = Mover {
            client,
            journal: RefCell::new(journal),
            limits,
            clock,
            tell,
            owed: RefCell::new(owed),
            barred: RefCell::new(past.barred.clone()),
            obstructed: Cell::new(false),
            shell: &NoShell,
        };
        Self { mover, stop }
    }

    /// With a way to run programs on members: their disks are looked at before a move.
    #[must_use]
    pub fn with_shell(mut self, shell: &'a dyn Shell) -> Self {
        self.mover.shell = shell;
        self
    }

    /// Brings moves that an earlier run began to their end. Whether asked to stop or not: until this is done an instance
    /// may be stopped that should run.
    ///
    /// # Errors
    /// The journal cannot be written. A move that fails is no error.
    pub async fn resume(&self, unfinished: Vec<Unfinished>) -> Result<Summary, JournalError> {
        let mover = &self.mover;
        let mut summary = Summary::default();
        for left in unfinished {
            (mover.tell)(Event::Begins { planned: left.planned.clone(), resumed: true });
            let outcome = mover.carry_out(left.number, &left.planned, Some(left.power)).await?;
            mover.ended(&left.planned, &outcome);
            summary.moves.push((left.planned, outcome));
        }
        Ok(summary)
    }

    /// Starts what earlier runs left stopped.
    ///
    /// # Errors
    /// The journal cannot be written. What still cannot be started is no error: [`Self::owed`].
    pub async fn pay(&self) -> Result<(), JournalError> {
        let debts: Vec<Debt> = self.mover.owed.borrow().values().cloned().collect();
        for debt in debts {
            let still = self.mover.pay(&debt).await?.err();
            if let Some(why) = &still
                && let Some(owed) = self.mover.owed.borrow_mut().get_mut(&debt.instance)
            {
                owed.why.clone_from(why);
            }
            (self.mover.tell)(Event::Debt { instance: debt.instance, still });
        }
        Ok(())
    }

    /// Instances that ran and are stopped, with the reasons.
    pub fn owed(&self) -> Vec<(InstanceId, String)> {
        self.mover.owed.borrow().values().map(|d| (d.instance.clone(), d.why.clone())).collect()
    }

    /// Whether a target would not take an instance since this was last asked.
    pub fn was_obstructed(&self) -> bool {
        self.mover.obstructed.take()
    }

    /// Members that refused instances.
    pub fn learned(&self) -> Learned {
        let barred: Vec<Barred> = self.mover.barred.borrow().clone();
        Past { barred, ..Past::default() }.learned(now_s(self.mover.clock))
    }

    /// Carries a plan out: each move after those it must wait for, as many at once as allowed, each begun while
    /// `opening` allows it.
    ///
    /// # Errors
    /// The journal cannot be written. A move that fails is no error: the others go on.
    pub async fn run(&self, cluster: &str, plan: &Plan, opening: Opening) -> Result<Summary, JournalError> {
        if opening == Opening::NotNow {
            let left = |planned: &Move| (planned.clone(), Outcome::Left);
            return Ok(Summary { moves: plan.moves.iter().map(left).collect(), owed: Vec::new() });
        }
        let mover = &self.mover;
        let owed = mover.owed.borrow().values().cloned().collect();
        let barred = mover.barred.borrow().clone();
        mover.journal.borrow_mut().begin(cluster, plan, owed, barred, now_s(mover.clock))?;
        let began = Instant::now();
        let mut outcomes: Vec<Option<Outcome>> = vec![None; plan.moves.len()];
        let mut begun = vec![false; plan.moves.len()];
        let (mut copied_mib, mut told_rate) = (0, None);
        let mut running = FuturesUnordered::new();
        loop {
            // What waits for a move that did not happen has lost the room it was promised.
            for n in 0..plan.moves.len() {
                let lost = |o: &Option<Outcome>| {
                    matches!(
                        o,
                        Some(
                            Outcome::Failed(_)
                                | Outcome::Stranded(_)
                                | Outcome::Unfinished(_)
                                | Outcome::Left
                        )
                    )
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
            let stopping = *self.stop.borrow() || self.is_closed(opening);
            // The whole copy must be due: it runs at once, and as fast as the servers can.
            let size = |n: usize| plan.moves[n].size_mib.unwrap_or(0);
            let due = self.due(copied_mib + ready.map_or(0, size));
            match ready {
                Some(n)
                    if !stopping && running.len() < mover.limits.at_once.max(1) && began.elapsed() >= due =>
                {
                    begun[n] = true;
                    copied_mib += size(n);
                    (mover.tell)(Event::Begins { planned: plan.moves[n].clone(), resumed: false });
                    running.push(async move { (n, mover.carry_out(n, &plan.moves[n], None).await) });
                }
                None if running.is_empty() => break,
                _ if stopping && running.is_empty() => break,
                _ => {
                    let mut stop = self.stop.clone();
                    let waits_for_rate =
                        ready.is_some() && !stopping && running.len() < mover.limits.at_once.max(1);
                    let wait = due.saturating_sub(began.elapsed());
                    if let Some(n) = ready.filter(|n| waits_for_rate && told_rate != Some(*n)) {
                        told_rate = Some(n);
                        (mover.tell)(Event::WaitsForRate { planned: plan.moves[n].clone(), wait });
                    }
                    tokio::select! {
                        Some((n, outcome)) = running.next() => {
                            let outcome = outcome?;
                            mover.ended(&plan.moves[n], &outcome);
                            outcomes[n] = Some(outcome);
                        }
                        () = tokio::time::sleep(wait), if waits_for_rate => {}
                        Ok(()) = stop.changed(), if !stopping => {}
                    }
                }
            }
        }
        mover.journal.borrow_mut().write(&Entry::Ended { at_s: now_s(mover.clock) })?;
        let outcomes = outcomes.into_iter().map(|o| o.unwrap_or(Outcome::Left));
        Ok(Summary { moves: plan.moves.iter().cloned().zip(outcomes).collect(), owed: Vec::new() })
    }

    /// Whether the time in which moves may begin is over.
    pub(super) fn is_closed(&self, opening: Opening) -> bool {
        match opening {
            Opening::Always => false,
            Opening::Until(moment) => (self.mover.clock)().timestamp() >= moment,
            Opening::NotNow => true,
        }
    }

    /// How long after its beginning a run may have copied this much.
    fn due(&self, copied_mib: u64) -> Duration {
        let rate = self.mover.limits.mib_per_s;
        rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(copied_mib as f64 / rate.get() as f64))
    }
}
