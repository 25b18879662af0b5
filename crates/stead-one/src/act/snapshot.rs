//! Snapshots of the instance: its settings and its root filesystem, by the engine.
//!
//! They live with the instance, so they outlive reboots, and go when the VM is powered off, as OpenNebula's own record
//! of them does (KEEP_SNAPSHOTS = "no").

use super::{ActError, Job};
use crate::{
    engine::{EngineError, PROJECT, kept_document},
    ids::{SnapshotId, SnapshotName},
};

impl Job<'_, '_> {
    pub(super) async fn snapshot_create(&mut self, id: SnapshotId) -> Result<String, ActError> {
        self.instance().await?;
        let name = SnapshotName::of(id);
        let client = &self.engine.client;
        client
            .create_snapshot(PROJECT, self.name.as_str(), name.as_str(), false)
            .await
            .map_err(EngineError::from)?;
        Ok(name.to_string())
    }

    pub(super) async fn snapshot_revert(&mut self, snapshot: &SnapshotName) -> Result<(), ActError> {
        let instance = self.instance().await?;
        let vm = kept_document(&instance, &self.name)?.map(|(vm, _)| vm);
        self.engine.set_visible(&self.name, false).await?;
        // A running instance is stopped and started by the engine.
        self.engine.brace(&self.name).await?;
        let client = &self.engine.client;
        let restored = client.restore_snapshot(PROJECT, self.name.as_str(), snapshot.as_str(), false).await;
        // The settings are those of the snapshot now, this one with them.
        self.show_again().await;
        restored.map_err(EngineError::from)?;
        // Its processes are new ones, the console's was ended with the old.
        if let Some(vm) = vm {
            self.start_console(&vm)?;
        }
        Ok(())
    }

    pub(super) async fn snapshot_delete(&mut self, snapshot: &SnapshotName) -> Result<(), ActError> {
        let client = &self.engine.client;
        match client.delete_snapshot(PROJECT, self.name.as_str(), snapshot.as_str()).await {
            Err(error) if error.is_not_found() => {
                self.log.info(format_args!("there is no snapshot {snapshot} any more"));
                Ok(())
            }
            other => Ok(other.map_err(EngineError::from)?),
        }
    }
}
