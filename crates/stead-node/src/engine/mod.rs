//! The engine on this node: waits for its API, initialises or joins, hands out tokens, tells its state.

use crate::handle::Handle;
use std::sync::Arc;
use stead_model::{
    NodeName,
    agent::{EngineStatus, InstanceStatus, Token},
    node::EngineSpec,
};

/// An engine action failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct EngineError(pub String);

/// Owns the engine's bootstrap and answers for it.
#[derive(Debug)]
pub struct Manager {}

impl Manager {
    /// `socket`: the engine's unix socket (`/var/lib/incus/unix.socket`, `/var/lib/lxd/unix.socket`).
    pub fn new(
        _spec: EngineSpec,
        _node: NodeName,
        _handle: Handle,
        _socket: std::path::PathBuf,
    ) -> Arc<Self> {
        Arc::new(Self {})
    }
    /// Bootstraps, then watches; returns only when the node stops.
    pub async fn run(self: Arc<Self>) {}
    /// The last known state, at once.
    pub fn status(&self) -> EngineStatus {
        EngineStatus {
            kind: stead_model::EngineKind::None,
            state: stead_model::agent::EngineState::Starting,
            version: None,
            detail: None,
            certificate: None,
        }
    }
    /// A one-time token for `member` to join with.
    pub async fn join_token(&self, _member: &NodeName) -> Result<Token, EngineError> {
        Err(EngineError("not built yet".into()))
    }
    /// Joins; returns when this node is a member and online. A second call with the node a member already succeeds.
    pub async fn join(&self, _token: &Token) -> Result<EngineStatus, EngineError> {
        Err(EngineError("not built yet".into()))
    }
    /// A one-time token to add a client certificate with.
    pub async fn trust_token(&self, _client: &str) -> Result<Token, EngineError> {
        Err(EngineError("not built yet".into()))
    }
    /// Evacuates (unless forced) and removes a member. A member that is not there succeeds.
    pub async fn remove_member(&self, _member: &NodeName, _force: bool) -> Result<(), EngineError> {
        Err(EngineError("not built yet".into()))
    }
    /// Instances of the whole cluster, all projects.
    pub async fn instances(&self) -> Result<Vec<InstanceStatus>, EngineError> {
        Err(EngineError("not built yet".into()))
    }
}
