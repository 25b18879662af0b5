//! Carries out a plan's moves so that, whatever dies in the middle, every instance ends on one member and runs if it ran.
//!
//! [`rebalance`] is the whole: finish what an earlier run began, wait for a window, plan, carry out, until nothing is
//! left ([`campaign`]). [`Executor`] carries one plan out ([`executor`]), each move by itself ([`mover`]). Chooses no
//! placement, reads no clock and prints nothing: the clock comes in, events go out.

mod campaign;
mod executor;
mod mover;

pub use campaign::{Outside, RebalanceError, Report, Request, rebalance};
pub use executor::{Executor, Opening};
pub(crate) use mover::is_busy;

use jiff::Zoned;
use std::{num::NonZeroU64, time::Duration};
use stead_placement::{plan::Move, snapshot::InstanceId};

/// The time, in the zone that windows are meant in.
pub type Clock<'a> = &'a dyn Fn() -> Zoned;

/// How moves are carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Moves at the same time.
    pub at_once: usize,
    /// The mean rate at which instances are copied: a move begins when the time that has passed allows for it and all
    /// before it. None: no limit. The servers' copies themselves are not slowed down.
    pub mib_per_s: Option<NonZeroU64>,
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
    /// A move begins.
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
    /// An instance does not start at its target, and is moved back; the text says why.
    MovesBack {
        /// The move.
        planned: Move,
        /// Why.
        why: String,
    },
    /// An instance that an earlier run left stopped runs again, or the text says why it does not.
    Debt {
        /// The instance.
        instance: InstanceId,
        /// Why it is still stopped.
        still: Option<String>,
    },
    /// No further move begins until the rate allows it.
    WaitsForRate {
        /// The move.
        planned: Move,
        /// For how long.
        wait: Duration,
    },
    /// Instances are planned anew, because a member would not take them.
    GoesRound,
    /// Somebody does not answer; the text says who.
    Waits(String),
    /// The run waits for a server that does not answer; the text says what is wrong with it.
    ServerAway(String),
    /// No window is open now.
    OutsideWindows {
        /// When the next one opens.
        opens: Zoned,
        /// It is waited for; otherwise nothing is begun.
        waits: bool,
    },
    /// The window has closed before everything was moved, and the next is not waited for.
    WindowClosed,
}

/// How a move ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The instance is where it should be.
    Moved {
        /// How long it was stopped.
        downtime: Duration,
    },
    /// It was on its target already.
    AlreadyThere,
    /// It was not moved, and why. It is where it was, and runs if it ran.
    Failed(String),
    /// It ran, and is stopped: it starts neither at its target nor where it was. The journal keeps it for the next run.
    Stranded(String),
    /// A server went away in the middle and stayed away: the state of the instance is unknown. The next run continues the
    /// move.
    Unfinished(String),
    /// It was not begun: the run was asked to stop, the window closed, or a move that it waits for failed.
    Left,
}

/// How the moves of a plan ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Each move and how it ended, resumed ones first.
    pub moves: Vec<(Move, Outcome)>,
    /// Instances that an earlier run left stopped and that are still so, each with the reason.
    pub owed: Vec<(InstanceId, String)>,
}

impl Summary {
    /// Whether everything was moved, and everything that ran runs.
    pub fn is_whole(&self) -> bool {
        let done = |o: &Outcome| matches!(o, Outcome::Moved { .. } | Outcome::AlreadyThere);
        self.owed.is_empty() && self.moves.iter().all(|(_, o)| done(o))
    }

    /// How many ended like this.
    pub fn count(&self, like: impl Fn(&Outcome) -> bool) -> usize {
        self.moves.iter().filter(|(_, o)| like(o)).count()
    }
}
