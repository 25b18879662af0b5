//! The agent API's server side (see `stead_model::agent` for the routes).

use crate::{engine::Manager, handle::Handle};
use std::{io, sync::Arc};
use stead_model::node::AgentSpec;

/// Serves the agent API until the node stops. Binding is retried while the address is not there yet.
///
/// # Errors
/// The certificates are unusable, or the port is taken.
pub async fn serve(spec: AgentSpec, handle: Handle, engine: Option<Arc<Manager>>) -> io::Result<()> {
    let _ = (spec, handle, engine);
    Err(io::Error::other("not built yet"))
}
