//! Injected faults.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// A fault to inject, a given number of times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A request is not answered: its connection is closed.
    Drop {
        /// Part of its first line: `POST /1.0/instances/c1`.
        request: String,
        /// Whether the server first performs the request.
        after_acting: bool,
    },
    /// A request is refused.
    Refuse {
        /// Part of its first line.
        request: String,
        /// HTTP status.
        code: u16,
        /// The message.
        message: String,
    },
    /// An operation takes this long.
    Delay {
        /// Part of its description, or the name of its instance.
        operation: String,
        /// How long.
        by: Duration,
    },
    /// An operation fails without any change.
    Fail {
        /// Part of its description, or the name of its instance.
        operation: String,
        /// The message.
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
    /// The first matching fault, consumed once.
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
    /// Duration of an operation, and its failure if it fails.
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
