//! What goes wrong on purpose.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// Something to go wrong, as often as it was told to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A request is not answered: its connection is closed.
    Drop {
        /// In its first line: `POST /1.0/instances/c1`.
        request: String,
        /// Whether the server does first what was asked.
        after_acting: bool,
    },
    /// A request is refused.
    Refuse {
        /// In its first line.
        request: String,
        /// Code.
        code: u16,
        /// Words.
        message: String,
    },
    /// An operation takes this long.
    Delay {
        /// In its description, or the name of its instance.
        operation: String,
        /// How long.
        by: Duration,
    },
    /// An operation fails, and changes nothing.
    Fail {
        /// In its description, or the name of its instance.
        operation: String,
        /// Words.
        message: String,
    },
}

#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<Vec<(Fault, u32)>>);

impl Faults {
    pub fn add(&self, fault: Fault, times: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((fault, times));
    }
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
    /// The first fault that fits, used up by one.
    fn take(&self, fits: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let mut faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = faults.iter().position(|(fault, times)| *times > 0 && fits(fault))?;
        faults[at].1 -= 1;
        Some(faults[at].0.clone())
    }
    pub fn for_request(&self, line: &str) -> Option<Fault> {
        self.take(|fault| match fault {
            Fault::Drop { request, .. } | Fault::Refuse { request, .. } => line.contains(request.as_str()),
            Fault::Delay { .. } | Fault::Fail { .. } => false,
        })
    }
    /// How long an operation takes, and why it fails.
    pub fn for_operation(
        &self,
        description: &str,
        claims: &[(String, String)],
    ) -> (Duration, Option<String>) {
        let about = |operation: &String| {
            description.contains(operation.as_str()) || claims.iter().any(|(_, name)| name == operation)
        };
        let delay = match self.take(|f| matches!(f, Fault::Delay { operation, .. } if about(operation))) {
            Some(Fault::Delay { by, .. }) => by,
            _ => Duration::ZERO,
        };
        let failure = match self.take(|f| matches!(f, Fault::Fail { operation, .. } if about(operation))) {
            Some(Fault::Fail { message, .. }) => Some(message),
            _ => None,
        };
        (delay, failure)
    }
}
