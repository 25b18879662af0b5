//! Work that blocks, off the thread on which everything else waits.

use crate::ClusterError;

/// Runs `f` on a thread of its own; `task` names it.
///
/// # Errors
/// It panicked.
pub(crate) async fn blocking<T: Send + 'static>(
    task: &'static str,
    f: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ClusterError> {
    tokio::task::spawn_blocking(f).await.map_err(|source| ClusterError::Task { task, source })
}
