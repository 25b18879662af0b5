//! Presentation of errors to the user of a command: the kind of failure, and a hint at the remedy.
//!
//! Owns the kinds, their exit codes and the trait. Every error type that can reach a command line implements it beside
//! its definition; an error that wraps another one delegates to it. Does not print errors: the command does.

use serde::Serialize;
use std::{error::Error, io};

/// Kind of a failure. Serialises in kebab-case, as in `stead … --json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The request is wrong: a file that does not exist, a bad name, an unknown node. Repeating it cannot help.
    BadInput,
    /// The request is valid but could not be carried out.
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
    /// The kind of failure.
    fn failure_kind(&self) -> FailureKind {
        FailureKind::Failed
    }

    /// The remedy for the user: a lowercase fragment that does not repeat the message.
    fn hint(&self) -> Option<String> {
        None
    }

    /// Whether the request is wrong.
    fn is_bad_input(&self) -> bool {
        self.failure_kind() == FailureKind::BadInput
    }
}

/// A system call failed. Whether the request is wrong depends on who named the file, so the caller decides.
impl Failure for io::Error {}

/// A value could not be serialised, or JSON written by Stead could not be parsed.
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
