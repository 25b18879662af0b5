//! The state of a node whose boot failed: the agent answers, and the console repeats the reason.

use crate::handle::{Handle, say};
use std::{io::Write, time::Duration};
use stead_model::{NodeSpec, names::ClusterName, names::NodeName};

/// Pause between two lines on the console: frequent enough to be seen, rare enough for a short log.
const PAUSE: Duration = Duration::from_secs(30);

/// Repeats on the console why the node is in rescue, until it is stopped.
pub async fn keep_telling(handle: Handle, why: String) {
    loop {
        say(format_args!("RESCUE: {why}"));
        say(format_args!(
            "the boot failed; the agent answers if the spec has certificates; SIGTERM ends the node"
        ));
        let _ = std::io::stderr().flush();
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            _ = handle.stop_requested() => return,
        }
    }
}

/// The spec of a node without one.
pub fn nameless() -> Option<NodeSpec> {
    Some(NodeSpec {
        schema: 1,
        cluster: ClusterName::new("unknown").ok()?,
        name: NodeName::new("unnamed").ok()?,
        network: Default::default(),
        system: Default::default(),
        root: Default::default(),
        engine: None,
        agent: None,
    })
}
