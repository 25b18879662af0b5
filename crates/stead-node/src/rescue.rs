//! The state of a node that could not be booted: the agent answers, the console says why, again and again.

use crate::handle::{Handle, say};
use std::{io::Write, time::Duration};
use stead_model::{NodeSpec, names::ClusterName, names::NodeName};

/// Pause between two lines on the console: whoever looks sees one, and the log stays short.
const PAUSE: Duration = Duration::from_secs(30);

/// Says on the console why the node is in rescue, until it is stopped.
pub async fn keep_telling(handle: Handle, why: String) {
    loop {
        say(format_args!("RESCUE: {why}"));
        say(format_args!(
            "the node is not booted; its agent answers if it has certificates; SIGTERM ends it"
        ));
        let _ = std::io::stderr().flush();
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            _ = handle.stop_requested() => return,
        }
    }
}

/// The spec of a node that has none.
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
