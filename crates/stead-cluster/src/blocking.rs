//! Runs blocking work outside the async thread.

use crate::ClusterError;

/// Runs `f` on its own thread; `task` names it in the error.
///
/// # Errors
/// It panicked.
pub(crate) async fn blocking<T: Send + 'static>(
    task: &'static str,
    f: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ClusterError> {
    tokio::task::spawn_blocking(f).await.map_err(|source| ClusterError::Task { task, source })
}
