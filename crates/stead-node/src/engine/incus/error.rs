//! Why something that was asked of Incus or LXD failed.

use super::{act, plan, preseed, reset};
use std::{path::PathBuf, time::Duration};
use stead_incus::Error;

/// What was asked of the engine failed.
#[derive(Debug, thiserror::Error)]
pub enum IncusError {
    /// Asking the engine failed.
    #[error("cannot {action}")]
    Engine {
        /// What was tried.
        action: &'static str,
        /// Why.
        #[source]
        source: Error,
    },
    /// A step of bootstrap failed.
    #[error("cannot {action}")]
    Step {
        /// What was tried.
        action: &'static str,
        /// Why.
        #[source]
        source: act::ActError,
    },
    /// The preseed.
    #[error("cannot use the preseed")]
    Preseed(#[from] preseed::PreseedError),
    /// No way from here.
    #[error("cannot form")]
    Plan(#[from] plan::PlanError),
    /// The half-formed engine cannot be put away.
    #[error("cannot put the half-formed engine away")]
    Reset(#[from] reset::ResetError),
    /// The journal.
    #[error("cannot write the journal in {directory}")]
    Journal {
        /// The engine's directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The storage disk is not there.
    #[error("storage disk {0:?} is not attached")]
    NoDisk(String),
    /// Not a token.
    #[error("cannot read the join token")]
    Token(#[from] stead_incus::token::TokenError),
    /// A token for somebody else.
    #[error("join token is for {wanted:?}, this node is {node:?}")]
    OtherName {
        /// The token's.
        wanted: String,
        /// Ours.
        node: String,
    },
    /// The member is there and well.
    #[error("{member:?} is a member already and {sign}")]
    AlreadyMember {
        /// Its name.
        member: String,
        /// How it shows that.
        sign: String,
    },
    /// Its name is taken by a member that is gone but not empty.
    #[error("{member:?} is a member that does not answer and still holds {holds}: remove it first")]
    StaleMember {
        /// Its name.
        member: String,
        /// What it holds.
        holds: String,
    },
    /// Took too long.
    #[error("{what} did not happen within {} s", after.as_secs())]
    Patience {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// The daemon died on the way and is not what it was.
    #[error("cannot {action}: the engine was killed meanwhile and {what} since")]
    Interrupted {
        /// What was under way.
        action: &'static str,
        /// What the engine does instead.
        what: &'static str,
    },
}
