//! Snapshots of the instance's root filesystem, by the engine. Its settings and devices are in them too, but those stay
//! as OpenNebula knows them when it goes back to one: a disk that came since is not lost, one that went does not return.
//!
//! They live with the instance, so they outlive reboots, and go when the VM is powered off, as OpenNebula's own record
//! of them does (KEEP_SNAPSHOTS = "no").

use super::{ActError, Job};
use crate::{
    engine::{EngineError, PROJECT, kept_document},
    ids::{SnapshotId, SnapshotName},
    instance::{STATUS_KEY, Shown},
};
use stead_incus::types::Instance;

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
        let before = self.instance().await?;
        let vm = kept_document(&before, &self.name)?.map(|(vm, _)| vm);
        let client = &self.engine.client;
        let snapshots = client.snapshots(PROJECT, self.name.as_str()).await.map_err(EngineError::from)?;
        if !snapshots.iter().any(|s| s.name == snapshot.as_str()) {
            return Err(ActError::Refused(format!("instance {} has no snapshot {snapshot}", self.name)));
        }
        // Its files are replaced: it has nothing left to write.
        self.halt(&before, true).await?;
        let reverted = self.revert(&before, snapshot).await;
        let started = self.start_again(vm.as_ref()).await;
        self.show_again().await;
        reverted?;
        started
    }

    /// Gives a stopped instance the root filesystem of a snapshot.
    async fn revert(&mut self, before: &Instance, snapshot: &SnapshotName) -> Result<(), ActError> {
        self.engine.brace(&self.name).await?;
        let client = &self.engine.client;
        let restored = client.restore_snapshot(PROJECT, self.name.as_str(), snapshot.as_str(), false).await;
        restored.map_err(EngineError::from)?;
        let is_volatile = |key: &str| key.starts_with("volatile.");
        self.engine
            .change(&self.name, |config, devices| {
                // What is volatile tells of the files, the map of user ids above all.
                config.retain(|key, _| is_volatile(key));
                let own = before.config.iter().filter(|(key, _)| !is_volatile(key));
                config.extend(own.map(|(key, value)| (key.clone(), value.clone())));
                config.insert(STATUS_KEY.to_owned(), Shown::Busy.value().to_owned());
                devices.clone_from(&before.devices);
            })
            .await?;
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
