//! The record of a cluster: what it should be, and what commands must remember.

use crate::{ClusterError, Layout, files};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};
use stead_model::{ClusterSpec, Digest, EngineKind, NodeName};

/// The record of a cluster. Written as `cluster.json` before anything is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Version of this format: 1.
    pub schema: u32,
    /// The parsed cluster file; after `scale`, with the new number of nodes.
    pub spec: ClusterSpec,
    /// Directory that relative paths in the spec are relative to.
    pub base_dir: PathBuf,
    /// Manifest of the image it was last brought up with.
    pub image: Digest,
    /// The engine, from spec and image.
    pub engine: EngineKind,
    /// Nodes that Stead has made members of the engine's cluster. Empty: the cluster was never formed.
    #[serde(default)]
    pub members: BTreeSet<NodeName>,
    /// Members whose removal was begun, with the node it goes through. Empty unless a removal was interrupted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub leaving: BTreeMap<NodeName, NodeName>,
}

impl Record {
    /// Reads the record; `None` when there is no such cluster.
    ///
    /// # Errors
    /// It cannot be read or is damaged.
    pub fn load(layout: &Layout) -> Result<Option<Self>, ClusterError> {
        files::read_json(&layout.record())
    }
    /// Reads the record of a cluster that must exist.
    ///
    /// # Errors
    /// [`ClusterError::NoCluster`], or as [`Record::load`].
    pub fn require(layout: &Layout) -> Result<Self, ClusterError> {
        Self::load(layout)?.ok_or_else(|| ClusterError::NoCluster(layout.cluster().clone()))
    }
    /// Writes it.
    ///
    /// # Errors
    /// As [`files::write`].
    pub fn save(&self, layout: &Layout) -> Result<(), ClusterError> {
        files::private_dir(&layout.dir())?;
        files::write_json(&layout.record(), self).map(|_| ())
    }
}
