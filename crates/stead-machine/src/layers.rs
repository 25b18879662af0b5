//! Squashfs layers mounted on the host, once for all namespace machines of a cluster.

use crate::TeardownError;
use std::path::{Path, PathBuf};

/// A layer could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The file cannot be used.
    #[error("cannot use layer {}", .path.display())]
    Open {
        /// The layer.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Mounts each layer at `<dir>/<hex of its content or path>`, unless it is; answers the mount points in order.
pub fn mount_all(dir: &Path, layers: &[PathBuf]) -> Result<Vec<PathBuf>, LayerError> {
    let _ = (dir, layers);
    unimplemented!()
}
/// Unmounts everything mounted under `dir`. Idempotent.
pub fn unmount_all(dir: &Path) -> Result<(), TeardownError> {
    let _ = dir;
    unimplemented!()
}
