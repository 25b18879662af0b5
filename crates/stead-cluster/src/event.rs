//! Progress events of a verb.

use serde::Serialize;
use stead_model::NodeName;
use tokio::sync::mpsc::UnboundedSender;

/// An event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// A step of the verb started.
    Step {
        /// What.
        text: String,
    },
    /// A node made progress.
    Node {
        /// Which.
        node: NodeName,
        /// `starting`, `agent`, `engine`, `joining`, `online`, `running`, `stopping`, `stopped`, `failed`.
        phase: &'static str,
        /// Details for people.
        detail: String,
    },
    /// A warning for the operator.
    Warning {
        /// What.
        text: String,
    },
}

/// A sink of events. Cheap to clone; a missing receiver is not an error.
#[derive(Debug, Clone)]
pub struct Events(Option<UnboundedSender<Event>>);

impl Events {
    /// Sends events to a channel.
    pub fn to(sender: UnboundedSender<Event>) -> Self {
        Self(Some(sender))
    }
    /// Discards events.
    pub fn none() -> Self {
        Self(None)
    }
    fn send(&self, event: Event) {
        if let Some(s) = &self.0 {
            let _ = s.send(event);
        }
    }
    /// Reports the start of a step.
    pub fn step(&self, text: impl Into<String>) {
        self.send(Event::Step { text: text.into() });
    }
    /// Reports progress of a node.
    pub fn node(&self, node: &NodeName, phase: &'static str, detail: impl Into<String>) {
        self.send(Event::Node { node: node.clone(), phase, detail: detail.into() });
    }
    /// Reports a warning.
    pub fn warning(&self, text: impl Into<String>) {
        self.send(Event::Warning { text: text.into() });
    }
}
