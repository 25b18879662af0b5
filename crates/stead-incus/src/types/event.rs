//! Events sent by the server.

use super::OperationStatus;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// One event.
#[derive(Clone, PartialEq, Deserialize)]
pub struct Event {
    /// Kind of the event.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// Time of the event.
    #[serde(default)]
    pub timestamp: String,
    /// Contents, which depend on the kind; see [`Self::operation`] and [`Self::lifecycle`].
    #[serde(default)]
    pub metadata: Value,
    /// Member that sent it.
    #[serde(default)]
    pub location: String,
    /// Project it belongs to.
    #[serde(default)]
    pub project: String,
}

/// Leaves out the metadata: an operation's metadata may hold secrets.
impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("kind", &self.kind)
            .field("timestamp", &self.timestamp)
            .field("location", &self.location)
            .field("project", &self.project)
            .finish_non_exhaustive()
    }
}

/// Kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// An object was created, changed or deleted.
    Lifecycle,
    /// An operation began, progressed or ended.
    Operation,
    /// A line of the server's log.
    Logging,
    /// A log line of a network's access list.
    NetworkAcl,
    /// A kind this crate does not know.
    #[serde(other)]
    Other,
}

impl EventKind {
    /// Name of the kind in the API; none if it cannot be requested.
    pub(crate) fn as_str(self) -> Option<&'static str> {
        match self {
            Self::Lifecycle => Some("lifecycle"),
            Self::Operation => Some("operation"),
            Self::Logging => Some("logging"),
            Self::NetworkAcl => Some("network-acl"),
            Self::Other => None,
        }
    }
}

/// An object was created, changed or deleted.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Lifecycle {
    /// `instance-started`, `cluster-member-evacuated`, …
    pub action: String,
    /// API path of the object.
    #[serde(default)]
    pub source: String,
    /// Details, which depend on the action.
    #[serde(default)]
    pub context: Value,
}

impl Event {
    /// The operation of an [`EventKind::Operation`].
    pub fn operation(&self) -> Option<OperationStatus> {
        (self.kind == EventKind::Operation)
            .then(|| OperationStatus::deserialize(&self.metadata).ok())
            .flatten()
    }
    /// The contents of an [`EventKind::Lifecycle`].
    pub fn lifecycle(&self) -> Option<Lifecycle> {
        (self.kind == EventKind::Lifecycle).then(|| Lifecycle::deserialize(&self.metadata).ok()).flatten()
    }
}
