//! Snapshots of the instance's root filesystem, by the engine. They also contain settings and devices, but a revert
//! keeps those as OpenNebula knows them: a disk attached since is not lost, a detached one does not return.
//!
//! They belong to the instance, so they survive reboots and end when the VM is powered off, like OpenNebula's own
//! record of them (KEEP_SNAPSHOTS = "no").

use super::{Call, Job, Parsed, Running, ScriptError, Words, Work, nothing};
use crate::{
    engine::{EngineError, PROJECT, kept_document},
    ids::{InstanceName, SnapshotId, SnapshotName},
    instance::{STATUS_KEY, Shown},
};
use stead_incus::types::Instance;

/// `snapshot_create`: prints the snapshot's name.
#[derive(Debug)]
struct SnapshotCreate {
    name: InstanceName,
    id: SnapshotId,
}

/// Reads the arguments of [`SnapshotCreate`].
pub(super) fn parse_create(words: &Words<'_>) -> Parsed {
    Ok(Box::new(SnapshotCreate { name: words.instance(0)?, id: words.read(1)? }))
}

impl Work for SnapshotCreate {
    fn run<'c, 'l: 'c>(self: Box<Self>, call: Call<'c, 'l>) -> Running<'c> {
        Box::pin(call.on(self.name.clone(), async move |job| job.snapshot_create(self.id).await))
    }
}

/// `snapshot_revert`, with the name that `snapshot_create` printed.
#[derive(Debug)]
struct SnapshotRevert {
    name: InstanceName,
    snapshot: SnapshotName,
}

/// Reads the arguments of [`SnapshotRevert`].
pub(super) fn parse_revert(words: &Words<'_>) -> Parsed {
    Ok(Box::new(SnapshotRevert { name: words.instance(0)?, snapshot: words.read(1)? }))
}

impl Work for SnapshotRevert {
    fn run<'c, 'l: 'c>(self: Box<Self>, call: Call<'c, 'l>) -> Running<'c> {
        Box::pin(
            call.on(self.name.clone(), async move |job| {
                job.snapshot_revert(&self.snapshot).await.map(nothing)
            }),
        )
    }
}

/// `snapshot_delete`, with the name that `snapshot_create` printed.
#[derive(Debug)]
struct SnapshotDelete {
    name: InstanceName,
    snapshot: SnapshotName,
}

/// Reads the arguments of [`SnapshotDelete`].
pub(super) fn parse_delete(words: &Words<'_>) -> Parsed {
    Ok(Box::new(SnapshotDelete { name: words.instance(0)?, snapshot: words.read(1)? }))
}

impl Work for SnapshotDelete {
    fn run<'c, 'l: 'c>(self: Box<Self>, call: Call<'c, 'l>) -> Running<'c> {
        Box::pin(
            call.on(self.name.clone(), async move |job| {
                job.snapshot_delete(&self.snapshot).await.map(nothing)
            }),
        )
    }
}

impl Job<'_, '_> {
    pub(super) async fn snapshot_create(&mut self, id: SnapshotId) -> Result<String, ScriptError> {
        self.instance().await?;
        let name = SnapshotName::of(id);
        let client = &self.engine.client;
        client
            .create_snapshot(PROJECT, self.name.as_str(), name.as_str(), false)
            .await
            .map_err(EngineError::from)?;
        Ok(name.to_string())
    }

    pub(super) async fn snapshot_revert(&mut self, snapshot: &SnapshotName) -> Result<(), ScriptError> {
        let before = self.instance().await?;
        let vm = kept_document(&before, &self.name)?.map(|(vm, _)| vm);
        let client = &self.engine.client;
        let snapshots = client.snapshots(PROJECT, self.name.as_str()).await.map_err(EngineError::from)?;
        if !snapshots.iter().any(|s| s.name == snapshot.as_str()) {
            return Err(ScriptError::Refused(format!("instance {} has no snapshot {snapshot}", self.name)));
        }
        // Its files are replaced, so it need not write anything.
        self.halt(&before, true).await?;
        let reverted = self.revert(&before, snapshot).await;
        let started = self.start_again(vm.as_ref()).await;
        self.show_again().await;
        reverted?;
        started
    }

    /// Replaces a stopped instance's root filesystem by a snapshot's.
    async fn revert(&mut self, before: &Instance, snapshot: &SnapshotName) -> Result<(), ScriptError> {
        self.engine.brace(&self.name).await?;
        let client = &self.engine.client;
        let restored = client.restore_snapshot(PROJECT, self.name.as_str(), snapshot.as_str(), false).await;
        restored.map_err(EngineError::from)?;
        let is_volatile = |key: &str| key.starts_with("volatile.");
        self.engine
            .change(&self.name, |config, devices| {
                // Volatile keys describe the files, above all the map of user ids.
                config.retain(|key, _| is_volatile(key));
                let own = before.config.iter().filter(|(key, _)| !is_volatile(key));
                config.extend(own.map(|(key, value)| (key.clone(), value.clone())));
                config.insert(STATUS_KEY.to_owned(), Shown::Busy.value().to_owned());
                devices.clone_from(&before.devices);
            })
            .await?;
        Ok(())
    }

    pub(super) async fn snapshot_delete(&mut self, snapshot: &SnapshotName) -> Result<(), ScriptError> {
        let client = &self.engine.client;
        match client.delete_snapshot(PROJECT, self.name.as_str(), snapshot.as_str()).await {
            Err(error) if error.is_not_found() => {
                self.log.info(format_args!("snapshot {snapshot} no longer exists"));
                Ok(())
            }
            other => Ok(other.map_err(EngineError::from)?),
        }
    }
}
