//! Instances: listing, creating, changing, moving, snapshots. Each method waits for the operation it begins; to watch an
//! operation instead, send the request of [`crate::requests::instances`] with [`Client::begin`].

use super::{Client, OPERATION_TIMEOUT, TRANSFER_TIMEOUT};
use crate::{
    ETag, Error, Scope, Tagged,
    requests::instances::{self, Detail, InstanceSource, Move, NewInstance, StateAction},
    types::{Config, Devices, Instance, InstancePut, InstanceState, Snapshot},
};
use std::time::Duration;

/// Attempts to patch an instance. Another change between reading and patching it happens now and then, but not five times
/// in a row.
const PATCH_TRIES: u32 = 5;

/// Result of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// The instance was moved.
    Done,
    /// The instance was on the target already; no request was sent.
    AlreadyThere,
}

impl Client {
    /// Instances of all projects with their states.
    pub async fn instances(&self) -> Result<Vec<Instance>, Error> {
        self.list(&instances::list_all()).await
    }
    /// Instances of a scope, with the given detail and filter.
    pub async fn list_instances(
        &self,
        scope: Scope<'_>,
        detail: Detail,
        filter: Option<&str>,
    ) -> Result<Vec<Instance>, Error> {
        self.list(&instances::list(scope, detail, filter)).await
    }
    /// One instance.
    pub async fn instance(&self, project: &str, name: &str) -> Result<Tagged<Instance>, Error> {
        self.fetch_tagged(&instances::get(project, name)).await
    }
    /// One instance with its state and snapshots.
    pub async fn instance_full(&self, project: &str, name: &str) -> Result<Instance, Error> {
        self.fetch(&instances::get_full(project, name)).await
    }
    /// Current state of an instance.
    pub async fn instance_state(&self, project: &str, name: &str) -> Result<InstanceState, Error> {
        self.fetch(&instances::state(project, name)).await
    }
    /// Creates an instance.
    pub async fn create_instance(
        &self,
        project: &str,
        target: Option<&str>,
        instance: &NewInstance,
    ) -> Result<(), Error> {
        self.run(&instances::create(project, target, instance), TRANSFER_TIMEOUT).await.map(drop)
    }
    /// Replaces an instance's settings.
    ///
    /// # Errors
    /// [`Error::Changed`] when somebody else changed it since `etag` was read.
    pub async fn update_instance(
        &self,
        project: &str,
        name: &str,
        instance: &InstancePut,
        etag: ETag,
    ) -> Result<(), Error> {
        self.run(&instances::update(project, name, instance, etag), OPERATION_TIMEOUT).await.map(drop)
    }
    /// Changes only the given settings and devices of an instance.
    ///
    /// # Errors
    /// [`Error::Changed`] when somebody else changed it during every attempt.
    pub async fn patch_instance(
        &self,
        project: &str,
        name: &str,
        config: &Config,
        devices: &Devices,
    ) -> Result<(), Error> {
        let mut tries = 1;
        loop {
            let Tagged { value, etag } = self.instance(project, name).await?;
            let patch = instances::patch(project, name, &value.description, config, devices, Some(etag));
            match self.run(&patch, OPERATION_TIMEOUT).await {
                Err(Error::Changed { .. }) if tries < PATCH_TRIES => tries += 1,
                done => return done.map(drop),
            }
        }
    }
    /// Starts or stops an instance; `timeout` limits its shutdown.
    pub async fn set_instance_state(
        &self,
        project: &str,
        name: &str,
        action: StateAction,
        timeout: Duration,
    ) -> Result<(), Error> {
        let patience = OPERATION_TIMEOUT.max(timeout + Duration::from_secs(30));
        self.run(&instances::set_state(project, name, action, timeout), patience).await.map(drop)
    }
    /// Deletes a stopped instance.
    pub async fn delete_instance(&self, project: &str, name: &str) -> Result<(), Error> {
        self.run(&instances::delete(project, name), OPERATION_TIMEOUT).await.map(drop)
    }
    /// Renames a stopped instance.
    pub async fn rename_instance(&self, project: &str, name: &str, new_name: &str) -> Result<(), Error> {
        self.run(&instances::rename(project, name, new_name), OPERATION_TIMEOUT).await.map(drop)
    }
    /// Recreates a stopped instance's root disk.
    pub async fn rebuild_instance(
        &self,
        project: &str,
        name: &str,
        source: &InstanceSource,
    ) -> Result<(), Error> {
        self.run(&instances::rebuild(project, name, source), TRANSFER_TIMEOUT).await.map(drop)
    }
    /// Moves an instance. A move to the member it is on succeeds without a request: old servers crash on it and newer
    /// ones refuse it.
    pub async fn move_instance(&self, project: &str, name: &str, to: &Move) -> Result<Moved, Error> {
        let elsewhere =
            Move { target: to.target.clone(), live: to.live, refresh: to.refresh, ..Move::default() };
        if let Some(target) = &to.target
            && *to == elsewhere
            && self.instance(project, name).await?.value.location == *target
        {
            return Ok(Moved::AlreadyThere);
        }
        self.run(&instances::relocate(project, name, to), TRANSFER_TIMEOUT).await?;
        Ok(Moved::Done)
    }

    /// Snapshots of an instance.
    pub async fn snapshots(&self, project: &str, name: &str) -> Result<Vec<Snapshot>, Error> {
        self.list(&instances::snapshots(project, name)).await
    }
    /// One snapshot.
    pub async fn snapshot(
        &self,
        project: &str,
        name: &str,
        snapshot: &str,
    ) -> Result<Tagged<Snapshot>, Error> {
        self.fetch_tagged(&instances::snapshot(project, name, snapshot)).await
    }
    /// Creates a snapshot; `stateful` includes the state of the processes.
    pub async fn create_snapshot(
        &self,
        project: &str,
        name: &str,
        snapshot: &str,
        stateful: bool,
    ) -> Result<(), Error> {
        let request = instances::create_snapshot(project, name, snapshot, stateful, None);
        self.run(&request, OPERATION_TIMEOUT).await.map(drop)
    }
    /// Restores an instance to a snapshot.
    ///
    /// # Errors
    /// [`Error::Changed`] when somebody else changes it at the same time.
    pub async fn restore_snapshot(
        &self,
        project: &str,
        name: &str,
        snapshot: &str,
        stateful: bool,
    ) -> Result<(), Error> {
        let etag = self.instance(project, name).await?.etag;
        let request = instances::restore_snapshot(project, name, snapshot, stateful, etag);
        self.run(&request, TRANSFER_TIMEOUT).await.map(drop)
    }
    /// Renames a snapshot.
    pub async fn rename_snapshot(
        &self,
        project: &str,
        name: &str,
        snapshot: &str,
        new_name: &str,
    ) -> Result<(), Error> {
        let request = instances::rename_snapshot(project, name, snapshot, new_name);
        self.run(&request, OPERATION_TIMEOUT).await.map(drop)
    }
    /// Deletes a snapshot.
    pub async fn delete_snapshot(&self, project: &str, name: &str, snapshot: &str) -> Result<(), Error> {
        let request = instances::delete_snapshot(project, name, snapshot);
        self.run(&request, OPERATION_TIMEOUT).await.map(drop)
    }
}
