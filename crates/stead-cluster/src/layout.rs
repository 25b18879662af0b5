//! Paths of a cluster's files.
//!
//! ```text
//! <state>/clusters/<name>/
//!   lock            held by up, scale, down
//!   cluster.json    the record: what the cluster should be (made first, removed last)
//!   pki/            CA and the operator's certificate, 0600
//!   layers/         mounted root layers of namespace machines
//!   network/        host network: network.json, state.json, dnsmasq's files
//!   nodes/<node>/   machine: machine.json, lock, state.json, console.log, identity.json, spec/node.json, disks/*.raw
//!   client/         configuration of the engine's stock client
//! ```

use crate::{ClusterError, files};
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use stead_files::Lock;
use stead_model::{ClusterName, NodeName};

/// Paths of one cluster.
#[derive(Debug, Clone)]
pub struct Layout {
    clusters: PathBuf,
    cluster: ClusterName,
}

impl Layout {
    /// The paths of `cluster` under `state_dir`.
    pub fn new(state_dir: &Path, cluster: &ClusterName) -> Self {
        Self { clusters: state_dir.join("clusters"), cluster: cluster.clone() }
    }
    /// The clusters under `state_dir`, sorted.
    ///
    /// # Errors
    /// The directory exists but cannot be read.
    pub fn list(state_dir: &Path) -> Result<Vec<ClusterName>, ClusterError> {
        let dir = state_dir.join("clusters");
        let entries = match fs::read_dir(&dir) {
            Ok(e) => e,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(ClusterError::file("read", dir)(e)),
        };
        let mut names: Vec<ClusterName> =
            entries.flatten().filter_map(|e| ClusterName::new(e.file_name().to_str()?).ok()).collect();
        names.sort();
        Ok(names)
    }
    /// Its name.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }
    /// The cluster's directory.
    pub fn dir(&self) -> PathBuf {
        self.clusters.join(self.cluster.as_str())
    }
    /// The path that the directory is moved to before it is deleted, so that a half-deleted cluster is never visible.
    pub fn trash(&self) -> PathBuf {
        self.clusters.join(format!(".removed-{}", self.cluster))
    }
    /// The lock. It is beside the directory, so that it survives its removal.
    pub fn lock(&self) -> PathBuf {
        self.clusters.join(format!(".lock-{}", self.cluster))
    }
    /// The record.
    pub fn record(&self) -> PathBuf {
        self.dir().join("cluster.json")
    }
    /// Certificates.
    pub fn pki(&self) -> PathBuf {
        self.dir().join("pki")
    }
    /// Mounted layers.
    pub fn layers(&self) -> PathBuf {
        self.dir().join("layers")
    }
    /// The host network.
    pub fn network(&self) -> PathBuf {
        self.dir().join("network")
    }
    /// All machines.
    pub fn nodes(&self) -> PathBuf {
        self.dir().join("nodes")
    }
    /// One machine.
    pub fn node(&self, node: &NodeName) -> PathBuf {
        self.nodes().join(node.as_str())
    }
    /// The directory by which a node gets its spec.
    pub fn node_spec_dir(&self, node: &NodeName) -> PathBuf {
        self.node(node).join("spec")
    }
    /// Configuration of the engine's stock client.
    pub fn client(&self) -> PathBuf {
        self.dir().join("client")
    }
    /// Nodes that have a directory, sorted.
    ///
    /// # Errors
    /// The directory exists but cannot be read.
    pub fn existing_nodes(&self) -> Result<Vec<NodeName>, ClusterError> {
        let dir = self.nodes();
        let entries = match fs::read_dir(&dir) {
            Ok(e) => e,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(ClusterError::file("read", dir)(e)),
        };
        let mut names: Vec<NodeName> =
            entries.flatten().filter_map(|e| NodeName::new(e.file_name().to_str()?).ok()).collect();
        names.sort();
        Ok(names)
    }
    /// Takes the cluster's lock and deletes what an interrupted `down` left in the trash.
    ///
    /// # Errors
    /// [`ClusterError::Busy`] when another command holds it.
    pub fn take_lock(&self) -> Result<Lock, ClusterError> {
        files::private_dir(&self.clusters)?;
        let lock = files::try_lock(&self.lock())?.ok_or_else(|| ClusterError::Busy(self.cluster.clone()))?;
        let trash = self.trash();
        if trash.exists() {
            fs::remove_dir_all(&trash).map_err(ClusterError::file("remove", trash))?;
        }
        Ok(lock)
    }
}
