//! The record of a cluster: what it should be, and what must be remembered between commands.

use crate::{ClusterError, Layout, files};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};
use stead_model::{ClusterSpec, Digest, EngineKind, NodeName};

/// What is remembered of a cluster. Written as `cluster.json` before anything is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Version of this format: 1.
    pub schema: u32,
    /// The cluster file as understood (after `scale`: with the new number).
    pub spec: ClusterSpec,
    /// Directory that relative paths in the spec are meant from.
    pub base_dir: PathBuf,
    /// Manifest of the image it was last brought up with.
    pub image: Digest,
    /// Engine, worked out of spec and image.
    pub engine: EngineKind,
    /// Nodes that are members of the engine's cluster, as far as this tool saw to it. Empty: it was never formed.
    #[serde(default)]
    pub members: BTreeSet<NodeName>,
    /// Members whose removal was begun, and the node through which. Empty unless that was cut short.
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
    /// Reads the record of a cluster that must be there.
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
