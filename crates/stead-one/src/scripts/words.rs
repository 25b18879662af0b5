//! The arguments of a call, by position.
//!
//! Source: `one_vmm_exec.rb` of OpenNebula 5.8 to 7.x, which appends `<vmid> <host>` to the arguments of each action.

use super::Script;
use crate::ids::{IdError, InstanceName, VmId, path};
use std::{path::PathBuf, str::FromStr};

/// A call that does not follow the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// There is no such script.
    #[error("there is no script {0:?}")]
    Script(String),
    /// The number of arguments is wrong.
    #[error("{script} takes {} arguments ({}, vm id, host), not {found}", .expected.len() + 2, .expected.join(", "))]
    Count {
        /// The script.
        script: &'static str,
        /// Its own arguments.
        expected: &'static [&'static str],
        /// The number of arguments given.
        found: usize,
    },
    /// An argument is invalid.
    #[error(transparent)]
    Argument(#[from] IdError),
}

/// The arguments of a call, in the right number. Scripts read only those they use: bridge, model and index repeat the
/// document.
#[derive(Debug, Clone, Copy)]
pub struct Words<'w> {
    words: &'w [&'w str],
    own: usize,
}

impl<'w> Words<'w> {
    pub(super) fn of(script: &Script, words: &'w [&'w str]) -> Result<Self, CallError> {
        let own = script.arguments.len();
        if words.len() == own + 2 {
            Ok(Self { words, own })
        } else {
            Err(CallError::Count { script: script.name, expected: script.arguments, found: words.len() })
        }
    }
    /// The VM, which follows the script's own arguments.
    pub(super) fn vm(&self) -> Result<VmId, CallError> {
        self.read(self.own)
    }
    /// An argument, unparsed.
    pub(super) fn text(&self, at: usize) -> &'w str {
        self.words[at]
    }
    /// An argument parsed as a number or a name.
    pub(super) fn read<T: FromStr<Err = IdError>>(&self, at: usize) -> Result<T, CallError> {
        Ok(self.words[at].parse()?)
    }
    /// An instance's name.
    pub(super) fn instance(&self, at: usize) -> Result<InstanceName, CallError> {
        self.read(at)
    }
    /// An absolute path.
    pub(super) fn path(&self, at: usize, what: &'static str) -> Result<PathBuf, CallError> {
        Ok(path(what, self.words[at])?)
    }
}
