//! Engines: what the node needs of one, whichever it is.
//!
//! Owns the seam: [`Engine`], and [`of`], which alone names implementations. Each implementation is a folder: [`incus`]
//! serves Incus and LXD. What is known of an engine without asking it (directory, sockets, modules) is a row of
//! [`stead_model::engine`]. The daemons themselves are services of the image, and none of this crate's.
//!
//! ```text
//!            API answers        journal written     bootstrap done, own member online
//! Starting ---------------+---> Forming (init) ------------------> Online <--> Offline, Evacuated
//!                         |                                          ^
//!                         +---> Waiting (join) --token--> Forming ---+
//! ```
//! Anything that fails on the way is `Failed` with the reason, and tried again.

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

/// Something that is being done.
pub type Work<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// An engine refused, or something failed on the way; its source and text are the implementation's own.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct EngineError(Box<dyn Error + Send + Sync>);

impl EngineError {
    /// Of an implementation's own error.
    pub fn new(error: impl Error + Send + Sync + 'static) -> Self {
        Self(Box::new(error))
    }
}

/// What the node needs of its engine. All of it may be asked for at the same time: an implementation puts in order what
/// must not overlap, and answers [`Engine::status`] meanwhile.
///
/// The requests are the agent's messages, so that what one engine needs beside the others (Kubernetes: whether a node that
/// joins is a control plane or a worker) is a field there and not another method here. Nothing says that nodes join one
/// after the other: an engine whose members join at once is asked for many tokens, and each node for its own join.
pub trait Engine: Send + Sync {
    /// Gets ready for the first start of the daemon. To be done once, before services are started.
    fn prepare(self: Arc<Self>) -> Work<'static, ()>;

    /// Brings the engine from a daemon that was just started to a member of its cluster, or to one that waits for a token,
    /// whatever was cut short before; then watches it. Ends when the node stops.
    fn settle(self: Arc<Self>) -> Work<'static, ()>;

    /// The state as last seen, at once.
    fn status(&self) -> EngineStatus;

    /// The state as the engine says now; as last seen while it is being formed.
    fn status_now(&self) -> Work<'_, EngineStatus>;

    /// A one-time token for another node to join with. What an interrupted join of that node left in the cluster is
    /// removed first.
    fn join_token<'a>(&'a self, request: &'a JoinTokenRequest) -> Work<'a, Result<Token, EngineError>>;

    /// Joins; the end is a member that is online. Succeeds on one that is a member already; after a failure the node is
    /// ready for another token.
    fn join<'a>(&'a self, request: &'a JoinRequest) -> Work<'a, Result<EngineStatus, EngineError>>;

    /// Moves everything off another member (unless forced) and removes it. One that is not there succeeds.
    fn remove<'a>(&'a self, request: &'a RemoveMemberRequest) -> Work<'a, Result<(), EngineError>>;

    /// Takes a member back whose removal was begun, here (then its end is waited for) or elsewhere. One that is not there
    /// succeeds: it was removed.
    fn restore<'a>(&'a self, request: &'a RestoreMemberRequest) -> Work<'a, Result<(), EngineError>>;

    /// What runs on the whole cluster.
    fn workloads(&self) -> Work<'_, Result<Vec<InstanceStatus>, EngineError>>;

    /// Has the engine trust a client, and gives what the engine's stock client needs: environment and files (for Incus a
    /// configuration with one remote; for Kubernetes a kubeconfig).
    fn access<'a>(&'a self, request: &'a AccessRequest) -> Work<'a, Result<Access, EngineError>>;
}

/// The engine of a node. The only place that knows which implementation serves which kind.
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
