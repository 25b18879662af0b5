//! What happens during a verb, for whoever watches.

use serde::Serialize;
use stead_model::NodeName;
use tokio::sync::mpsc::UnboundedSender;

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// A step of the whole began.
    Step {
        /// What.
        text: String,
    },
    /// A node got further.
    Node {
        /// Which.
        node: NodeName,
        /// `starting`, `agent`, `engine`, `joining`, `online`, `running`, `stopping`, `stopped`, `failed`.
        phase: &'static str,
        /// More, for people.
        detail: String,
    },
    /// The operator should know.
    Warning {
        /// What.
        text: String,
    },
}

/// Where events go. Cheap to clone; a receiver that is gone is no error.
#[derive(Debug, Clone)]
pub struct Events(Option<UnboundedSender<Event>>);

impl Events {
    /// To a channel.
    pub fn to(sender: UnboundedSender<Event>) -> Self {
        Self(Some(sender))
    }
    /// To nobody.
    pub fn none() -> Self {
        Self(None)
    }
    fn send(&self, event: Event) {
        if let Some(s) = &self.0 {
            let _ = s.send(event);
        }
    }
    /// A step began.
    pub fn step(&self, text: impl Into<String>) {
        self.send(Event::Step { text: text.into() });
    }
    /// A node got further.
    pub fn node(&self, node: &NodeName, phase: &'static str, detail: impl Into<String>) {
        self.send(Event::Node { node: node.clone(), phase, detail: detail.into() });
    }
    /// The operator should know.
    pub fn warning(&self, text: impl Into<String>) {
        self.send(Event::Warning { text: text.into() });
    }
}
