//! Errors of the Incus and LXD engine.

use super::{act, plan, preseed, reset};
use std::{path::PathBuf, time::Duration};
use stead_incus::Error;

/// An action on the engine failed.
#[derive(Debug, thiserror::Error)]
pub enum IncusError {
    /// A request to the engine failed.
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
    /// The preseed is unusable.
    #[error("cannot use the preseed")]
    Preseed(#[from] preseed::PreseedError),
    /// There is no plan from the present state.
    #[error("cannot form or join a cluster")]
    Plan(#[from] plan::PlanError),
    /// The half-formed engine cannot be reset.
    #[error("cannot reset the half-formed engine")]
    Reset(#[from] reset::ResetError),
    /// The journal cannot be written.
    #[error("cannot write the journal in {directory}")]
    Journal {
        /// The engine's directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The storage disk is missing.
    #[error("storage disk {0:?} is not attached")]
    NoDisk(String),
    /// The token is malformed.
    #[error("cannot read the join token")]
    Token(#[from] stead_incus::token::TokenError),
    /// The token is for another node.
    #[error("the join token is for {wanted:?}, but this node is {node:?}")]
    OtherName {
        /// The token's member.
        wanted: String,
        /// This node.
        node: String,
    },
    /// The member exists and is alive.
    #[error("{member:?} is already a member and {sign}")]
    AlreadyMember {
        /// Its name.
        member: String,
        /// The evidence.
        sign: String,
    },
    /// Its name belongs to a member that does not answer but is not empty.
    #[error("{member:?} is a member that does not answer and still has {holds}: remove it first")]
    StaleMember {
        /// Its name.
        member: String,
        /// Its contents.
        holds: String,
    },
    /// A time limit passed.
    #[error("{what} did not happen within {} s", after.as_secs())]
    Patience {
        /// What was waited for.
        what: &'static str,
        /// The time limit.
        after: Duration,
    },
    /// The daemon died meanwhile and has not recovered.
    #[error("cannot {action}: the engine was killed meanwhile and now {what}")]
    Interrupted {
        /// The interrupted action.
        action: &'static str,
        /// What the engine does now.
        what: &'static str,
    },
}

impl IncusError {
    /// Whether the same try again comes to the same end: what is asked for cannot be.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Preseed(_) | Self::NoDisk(_) | Self::Plan(_) => true,
            Self::Step { source: act::ActError::Engine(e), .. } => e.code() == Some(400),
            _ => false,
        }
    }

    /// Whether the engine answered a request with a failure: it may be for good, for engines answer 500 to a wrong option,
    /// too.
    pub fn is_answer(&self) -> bool {
        matches!(self, Self::Step { source: act::ActError::Engine(e), .. } if e.code().is_some())
    }
}
