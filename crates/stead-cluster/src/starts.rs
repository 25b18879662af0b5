//! How many nodes with an engine start at the same time: as many as there are processors.
//!
//! The start of an engine is computing. Where all start at once on few processors, all are ready late, and the node that
//! forms the engine's cluster with them; the others can wait, for they join one after the other. Does not own the order:
//! that is the plan's.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use stead_model::NodeName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The starts under way.
pub(crate) struct Starts {
    processors: usize,
    state: Mutex<State>,
}

struct State {
    gate: Arc<Semaphore>,
    under_way: BTreeMap<NodeName, OwnedSemaphorePermit>,
}

impl State {
    fn new(processors: usize) -> Self {
        Self { gate: Arc::new(Semaphore::new(processors)), under_way: BTreeMap::new() }
    }
}

impl Starts {
    /// On a host with so many processors.
    pub(crate) fn new(processors: usize) -> Self {
        Self { processors, state: Mutex::new(State::new(processors)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until this node may start. Nodes get their turn in the order in which they ask.
    pub(crate) async fn begin(&self, node: &NodeName) {
        let gate = Arc::clone(&self.state().gate);
        if let Ok(permit) = gate.acquire_owned().await {
            self.state().under_way.insert(node.clone(), permit);
        }
    }

    /// The engine of this node answers, or never will.
    pub(crate) fn end(&self, node: &NodeName) {
        self.state().under_way.remove(node);
    }

    /// Nobody waits any more: the ends of starts may not be waited for.
    pub(crate) fn open(&self) {
        self.state().gate.close();
    }

    /// For another plan.
    pub(crate) fn reset(&self) {
        *self.state() = State::new(self.processors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::name;
    use futures_util::{FutureExt as _, future::join};

    #[test]
    fn nodes_start_as_others_are_done() {
        let starts = Starts::new(1);
        let may = |node: &str| starts.begin(&name(node)).now_or_never().is_some();
        assert!(may("node1") && !may("node2"));
        starts.end(&name("node1"));
        assert!(may("node2") && !may("node3"));
        starts.reset();
        assert!(may("node3") && !may("node4"));
    }

    #[tokio::test]
    async fn an_open_gate_lets_all_through() {
        let starts = Starts::new(1);
        starts.begin(&name("node1")).await;
        join(starts.begin(&name("node2")), async { starts.open() }).await;
        starts.begin(&name("node3")).await;
    }
}
