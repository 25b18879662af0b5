//! Engines: the interface between the node and any engine.
//!
//! Owns the seam: [`Engine`], and [`of`], the only place that names implementations. Each implementation is a folder:
//! [`incus`] serves Incus and LXD. Static facts about an engine (directory, sockets, modules) are a row of
//! [`stead_model::engine`]. The daemons are services of the image and do not belong to this crate.
//!
//! ```text
//!            API answers        journal written     bootstrap done, own member online
//! Starting ---------------+---> Forming (init) ------------------> Online <--> Offline, Evacuated
//!                         |                                          ^
//!                         +---> Waiting (join) --token--> Forming ---+
//! ```
//! A failure at any point is `Failed` with the reason, and retried.

pub mod incus;

use crate::handle::Handle;
use incus::Incus;
use std::{error::Error, pin::Pin, sync::Arc};
use stead_incus::Dialect;
use stead_model::{
    EngineKind, NodeName,
    agent::{
        Access, AccessRequest, EngineStatus, InstanceStatus, JoinRequest, JoinTokenRequest,
        RemoveMemberRequest, RestoreMemberRequest, Token,
    },
    node::EngineSpec,
};

/// A future of an engine.
pub type Work<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// An engine refused, or an action failed; source and message are the implementation's own.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct EngineError(Box<dyn Error + Send + Sync>);

impl EngineError {
    /// Wraps an implementation's error.
    pub fn new(error: impl Error + Send + Sync + 'static) -> Self {
        Self(Box::new(error))
    }
}

/// What the node needs of its engine. All methods may be called at the same time: an implementation serialises actions
/// that must not overlap, and answers [`Engine::status`] meanwhile.
///
/// The requests are the agent's messages, so that what only one engine needs (Kubernetes: whether a joining node is a
/// control plane or a worker) is a field there and not another method here. Nodes need not join one after the other: an
/// engine whose members join at once is asked for many tokens, and each node for its own join.
pub trait Engine: Send + Sync {
    /// Prepares the first start of the daemon. To be called once, before services are started.
    fn prepare(self: Arc<Self>) -> Work<'static, ()>;

    /// Brings a started daemon to be a member of its cluster, or to wait for a token, also after an interruption; then
    /// watches it. Ends when the node stops.
    fn settle(self: Arc<Self>) -> Work<'static, ()>;

    /// The last observed state, at once.
    fn status(&self) -> EngineStatus;

    /// The present state, from the engine; the last observed one while it is being formed.
    fn status_now(&self) -> Work<'_, EngineStatus>;

    /// A one-time token with which another node may join. First removes the remains of an interrupted join of that node
    /// from the cluster.
    fn join_token<'a>(&'a self, request: &'a JoinTokenRequest) -> Work<'a, Result<Token, EngineError>>;

    /// Joins; returns once the node is an online member. Succeeds if it already is; after a failure the node is ready
    /// for another token.
    fn join<'a>(&'a self, request: &'a JoinRequest) -> Work<'a, Result<EngineStatus, EngineError>>;

    /// Evacuates another member (unless forced) and removes it. Succeeds if it does not exist.
    fn remove<'a>(&'a self, request: &'a RemoveMemberRequest) -> Work<'a, Result<(), EngineError>>;

    /// Restores a member whose removal was begun, here (then waits for its end) or elsewhere. Succeeds if it does not
    /// exist, since it was removed.
    fn restore<'a>(&'a self, request: &'a RestoreMemberRequest) -> Work<'a, Result<(), EngineError>>;

    /// The instances of the whole cluster.
    fn workloads(&self) -> Work<'_, Result<Vec<InstanceStatus>, EngineError>>;

    /// Makes the engine trust a client, and returns what the engine's stock client needs: environment and files (for
    /// Incus a configuration with one remote; for Kubernetes a kubeconfig).
    fn access<'a>(&'a self, request: &'a AccessRequest) -> Work<'a, Result<Access, EngineError>>;
}

/// The engine of a node. The only place that maps kinds to implementations.
pub fn of(spec: EngineSpec, node: &NodeName, handle: &Handle) -> Option<Arc<dyn Engine>> {
    let made = match spec.kind {
        EngineKind::None => return None,
        EngineKind::Incus => Incus::new(spec, Dialect::Incus, node.clone(), handle.clone()),
        EngineKind::Lxd => Incus::new(spec, Dialect::Lxd, node.clone(), handle.clone()),
    };
    match made {
        Ok(engine) => Some(engine),
        Err(e) => {
            handle.warn(format!("engine: {}", crate::chain(&e)));
            None
        }
    }
}
