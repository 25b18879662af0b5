//! shutdown and cancel.

use super::{Call, Job, Parsed, Running, ScriptError, Words, Work, nothing};
use crate::{
    console,
    disks::idmap,
    document::Vm,
    engine::kept_document,
    ids::InstanceName,
    instance::{IDMAP_KEY, Shown},
};
use std::fs;
use stead_incus::{requests::instances::StateAction, types::Instance};

/// `shutdown`, and with force `cancel`.
#[derive(Debug)]
struct Stop {
    name: InstanceName,
    force: bool,
}

/// Reads the arguments of [`Stop`].
pub(super) fn parse(words: &Words<'_>, force: bool) -> Parsed {
    Ok(Box::new(Stop { name: words.instance(0)?, force }))
}

impl Work for Stop {
    fn run<'c, 'l: 'c>(self: Box<Self>, call: Call<'c, 'l>) -> Running<'c> {
        Box::pin(call.on(self.name.clone(), async move |job| job.stop(self.force).await.map(nothing)))
    }
}

impl Job<'_, '_> {
    /// shutdown and cancel: the instance is stopped and everything of it on the host goes. One that was imported is only
    /// stopped.
    pub(super) async fn stop(&mut self, force: bool) -> Result<(), ScriptError> {
        let Some(instance) = self.engine.instance(&self.name).await?.map(|t| t.value) else {
            self.log.info(format_args!("there is no instance {}; its disks are unmapped", self.name));
            console::end(self.place, &self.name);
            self.mapper()?.unmap_all()?;
            self.remove_directory();
            return Ok(());
        };
        if !self.engine.is_here(&instance) {
            // Another host's, in the same cluster: a cancel for where it was before it moved.
            self.log.info(format_args!("instance {} is on {}", self.name, instance.location));
            self.mapper()?.unmap_all()?;
            return Ok(());
        }
        let kept = kept_document(&instance, &self.name);
        self.halt(&instance, force).await?;
        console::end(self.place, &self.name);
        let vm = match kept {
            Ok(None) => return Ok(()),
            Ok(Some((vm, _))) if vm.is_imported() => return Ok(()),
            Ok(Some((vm, _))) => Some(vm),
            // Broken, but ours: what can be done without it is done.
            Err(error) => {
                self.log.error(stead_os::chain(&error));
                None
            }
        };
        let put_away = self.put_away(vm.as_ref()).await;
        if put_away.is_err() {
            // OpenNebula takes it for running still, and has to learn that it is not.
            self.show_again().await;
        }
        put_away
    }

    /// Stops an instance that is not stopped.
    pub(super) async fn halt(&mut self, instance: &Instance, force: bool) -> Result<(), ScriptError> {
        if instance.status == "Stopped" {
            return Ok(());
        }
        // Hidden while it stops: monitoring must not take it for crashed. A kill waits for nothing, least of all for a stop
        // that hangs.
        match force {
            true => self.engine.hide_at_once(&self.name).await?,
            false => self.engine.show(&self.name, Shown::Busy).await?,
        }
        let action = if force { StateAction::Kill } else { StateAction::Stop };
        let stopped = self.engine.set_state(&self.name, action).await;
        if stopped.is_err() {
            self.show_again().await;
        }
        // It may have stopped by itself a moment earlier.
        match stopped {
            Err(error) if self.instance().await?.status != "Stopped" => Err(error.into()),
            _ => Ok(()),
        }
    }

    pub(super) async fn show_again(&mut self) {
        if let Err(error) = self.engine.show(&self.name, Shown::Yes).await {
            self.log.error(stead_os::chain(&error));
        }
    }

    /// Unmaps and deletes a stopped instance.
    pub(super) async fn put_away(&mut self, vm: Option<&Vm>) -> Result<(), ScriptError> {
        let instance = self.instance().await?;
        if let Some(vm) = vm {
            self.keep_idmap(vm, &instance);
            for nic in &vm.nics {
                self.drop_port(nic);
            }
        }
        let mut mapper = self.mapper()?;
        mapper.unmap_all()?;
        self.engine.delete(&instance, &self.name).await?;
        self.remove_directory();
        Ok(())
    }

    /// Keeps the map of user ids beside the disks. A datastore that cannot be written costs time at the next start, no
    /// more: the engine looks at the files then.
    pub(super) fn keep_idmap(&mut self, vm: &Vm, instance: &Instance) {
        let Some(map) = instance.config.get(IDMAP_KEY).filter(|m| !m.is_empty()) else { return };
        let kept = self.place.vm(vm.id, vm.datastore).map_err(Into::into).and_then(|d| idmap::save(&d, map));
        if let Err(error) = kept {
            self.log.error(stead_os::chain(&error));
        }
    }

    pub(super) fn remove_directory(&self) {
        let _ = fs::remove_file(self.half_way());
        // Not empty while something could not be undone; the journal is in it then.
        let _ = fs::remove_dir(self.place.directory(&self.name));
    }
}
