//! The context disk: removed before OpenNebula makes a new one, and added afterwards.

use super::{Call, Job, Parsed, Running, ScriptError, Words, Work, nothing};
use crate::{
    disks::Mapper,
    document::{Disk, DiskKind, DiskLimits, Role, Vm},
    engine::{PROJECT, kept_document},
    ids::{DiskId, InstanceName},
    instance::{self, DOCUMENT_KEY},
};
use serde_json::json;
use stead_incus::Request;

/// The command of OpenNebula's context package in the instance that reads the new context.
const RECONFIGURE: [&str; 3] = ["service", "one-context-reconfigure", "restart"];

/// `prereconfigure`.
#[derive(Debug)]
struct DropContext {
    name: InstanceName,
}

/// Reads the arguments of [`DropContext`].
pub(super) fn parse_drop(words: &Words<'_>) -> Parsed {
    Ok(Box::new(DropContext { name: words.instance(0)? }))
}

impl Work for DropContext {
    fn run<'c, 'l: 'c>(self: Box<Self>, call: Call<'c, 'l>) -> Running<'c> {
        Box::pin(call.on(self.name.clone(), async move |job| job.drop_context().await.map(nothing)))
    }
}

/// `reconfigure`; without a path there is no context, and nothing is done.
#[derive(Debug)]
struct PutContext {
    name: InstanceName,
    present: bool,
}

/// Reads the arguments of [`PutContext`].
pub(super) fn parse_put(words: &Words<'_>) -> Parsed {
    Ok(Box::new(PutContext { name: words.instance(0)?, present: !words.text(2).is_empty() }))
}

impl Work for PutContext {
    fn run<'c, 'l: 'c>(self: Box<Self>, call: Call<'c, 'l>) -> Running<'c> {
        Box::pin(async move {
            if !self.present {
                return Ok(String::new());
            }
            call.on(self.name.clone(), async |job| {
                let (vm, document) = job.document()?;
                job.put_context(&vm, &document).await.map(nothing)
            })
            .await
        })
    }
}

impl Job<'_, '_> {
    /// Mounts the context disk.
    pub(super) fn map_context(
        &self,
        vm: &Vm,
        id: DiskId,
        mapper: &mut Mapper<'_>,
    ) -> Result<(), ScriptError> {
        let disk = Disk {
            id,
            kind: DiskKind::File,
            role: Role::Image,
            format: Some(crate::document::ImageFormat::Raw),
            target: None,
            readonly: true,
            cache: None,
            filesystem: None,
            grow: false,
            size_mib: None,
            datastore: None,
            image: None,
            limits: DiskLimits::default(),
            attach: false,
        };
        mapper.map(vm, &disk, &self.place.mountpoint(&self.name, id))?;
        Ok(())
    }

    pub(super) async fn drop_context(&mut self) -> Result<(), ScriptError> {
        let instance = self.instance().await?;
        if !instance.devices.contains_key("context") {
            return Ok(());
        }
        self.engine
            .change(&self.name, |_, devices| {
                devices.remove("context");
            })
            .await?;
        // The document of this call may already have another context: the kept document has the mounted one.
        if let Some(id) = kept_document(&instance, &self.name)?.and_then(|(vm, _)| vm.context).map(|c| c.disk)
        {
            self.mapper()?.unmap(id)?;
        }
        Ok(())
    }

    pub(super) async fn put_context(&mut self, vm: &Vm, document: &str) -> Result<(), ScriptError> {
        let Some(context) = &vm.context else { return Ok(()) };
        let mut mapper = self.mapper()?;
        self.map_context(vm, context.disk, &mut mapper)?;
        let device = instance::context_device(&self.place.mountpoint(&self.name, context.disk));
        // The VM may get its first context now.
        let kept = instance::encode(document);
        let changed = self
            .engine
            .change(&self.name, |config, devices| {
                devices.insert("context".to_owned(), device.clone());
                config.insert(DOCUMENT_KEY.to_owned(), kept.clone());
            })
            .await;
        if let Err(error) = changed {
            mapper.unmap(context.disk)?;
            return Err(error.into());
        }
        // Not waited for: an instance without the package has no such service.
        let exec = Request::post(
            format!("/1.0/instances/{}/exec", self.name),
            &json!({
                "command": RECONFIGURE, "wait-for-websocket": false, "record-output": false,
                "interactive": false,
            }),
        );
        if let Err(error) = self.engine.client.begin(&exec.query("project", PROJECT)).await {
            self.log.info(format_args!("cannot make the instance read its new context: {error}"));
        }
        Ok(())
    }
}
