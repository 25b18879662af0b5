//! How an error presents itself to whoever ran a command: what kind of failure it is, and what to do about it.
//!
//! Owns the kinds, their exit codes and the trait. Every error type that can reach a command line implements it beside
//! its definition; an error that wraps another one asks it. Does not own how an error is printed: that is the command's.

use serde::Serialize;
use std::{error::Error, io};

/// What kind of failure an error is. Serialises in kebab-case, as in `stead … --json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The request cannot be meant: a file that does not exist, a bad name, an unknown node. Asking again cannot help.
    BadInput,
    /// The request was understood but could not be carried out.
    Failed,
    /// A defect of Stead itself.
    Internal,
    /// The user stopped it.
    Interrupted,
}

impl FailureKind {
    /// The exit code of a command that ends with it: 2 for bad input, 130 (128 + SIGINT) when interrupted, else 1.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::BadInput => 2,
            Self::Failed | Self::Internal => 1,
            Self::Interrupted => 130,
        }
    }
}

/// An error that knows its kind and its remedy.
///
/// Both methods look through wrappers: an implementation delegates to the source that decides.
pub trait Failure: Error {
    /// What kind of failure this is.
    fn failure_kind(&self) -> FailureKind {
        FailureKind::Failed
    }

    /// What the user can do about it: a lowercase fragment, not a repetition of the message.
    fn hint(&self) -> Option<String> {
        None
    }

    /// Whether the mistake is in the request.
    fn is_bad_input(&self) -> bool {
        self.failure_kind() == FailureKind::BadInput
    }
}

/// The system refused. Whether the request was at fault depends on whose file it was, so the caller says so.
impl Failure for io::Error {}

/// A value could not be written as JSON, or JSON of our own could not be read.
impl Failure for serde_json::Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bad_input_exits_with_2() {
        use FailureKind::{BadInput, Failed, Internal, Interrupted};
        assert_eq!([BadInput, Failed, Internal, Interrupted].map(FailureKind::exit_code), [2, 1, 1, 130]);
    }
}
