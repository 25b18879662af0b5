//! What the server tells as it happens.

use super::OperationStatus;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// One event.
#[derive(Clone, PartialEq, Deserialize)]
pub struct Event {
    /// What kind.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// When.
    #[serde(default)]
    pub timestamp: String,
    /// Depends on the kind; see [`Self::operation`] and [`Self::lifecycle`].
    #[serde(default)]
    pub metadata: Value,
    /// Member that tells.
    #[serde(default)]
    pub location: String,
    /// Project it belongs to.
    #[serde(default)]
    pub project: String,
}

/// An operation's metadata may hold secrets: they stay out of logs.
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
    /// Something was made, changed or removed.
    Lifecycle,
    /// An operation began, went on or ended.
    Operation,
    /// A line of the server's log.
    Logging,
    /// A line of a network's access lists.
    NetworkAcl,
    /// Of a kind that is newer than this.
    #[serde(other)]
    Other,
}

impl EventKind {
    /// As the API writes it; none: it cannot be asked for.
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

/// Something was made, changed or removed.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Lifecycle {
    /// `instance-started`, `cluster-member-evacuated`, …
    pub action: String,
    /// Path of what it happened to.
    #[serde(default)]
    pub source: String,
    /// Details.
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
    /// What happened in an [`EventKind::Lifecycle`].
    pub fn lifecycle(&self) -> Option<Lifecycle> {
        (self.kind == EventKind::Lifecycle).then(|| Lifecycle::deserialize(&self.metadata).ok()).flatten()
    }
}
