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
        Box::pin(async move {
            if self.force {
                call.kill_at_once(&self.name).await;
            }
            let force = self.force;
            call.wherever(self.name.clone(), async |job| job.stop(force).await.map(nothing)).await
        })
    }
}

impl Job<'_, '_> {
    /// shutdown and cancel: the instance is stopped and everything of it on the host goes. One that was imported is only
    /// stopped.
    pub(super) async fn stop(&mut self, force: bool) -> Result<(), ScriptError> {
        let Some(instance) = self.find().await? else {
            self.log.info(format_args!("there is no instance {}; its disks are unmapped", self.name));
            console::end(self.place, &self.name);
            self.mapper()?.unmap_all()?;
            self.remove_directory();
            return Ok(());
        };
        if !self.engine.is_here(&instance) {
            return self.stop_elsewhere(&instance).await;
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
        self.put_away(vm.as_ref()).await
    }

    /// shutdown and cancel of an instance that another member of the cluster holds. OpenNebula takes the VM for stopped
    /// afterwards, and may delete its disks: while it runs there, that would be wrong. CLEANUP, which cancels on every host
    /// that may have it, takes no notice of the error.
    async fn stop_elsewhere(&mut self, instance: &Instance) -> Result<(), ScriptError> {
        console::end(self.place, &self.name);
        self.mapper()?.unmap_all()?;
        self.remove_directory();
        self.require_stopped_elsewhere(instance).await?;
        match kept_document(instance, &self.name)? {
            Some((vm, _)) if !vm.is_imported() => self.release_elsewhere(vm.id, &instance.location).await,
            _ => Ok(()),
        }
    }

    /// Stops an instance that is not stopped. Monitoring does not take it for crashed meanwhile: it is hidden as long as a
    /// script holds its lock. No setting says so, for the engine takes none while a stop hangs.
    pub(super) async fn halt(&mut self, instance: &Instance, force: bool) -> Result<(), ScriptError> {
        if instance.status == "Stopped" {
            return Ok(());
        }
        let action = if force { StateAction::Kill } else { StateAction::Stop };
        // It may have stopped by itself a moment earlier.
        match self.engine.set_state(&self.name, action).await {
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

    /// Puts away a stopped instance whose VM OpenNebula has deleted; nothing of it is kept.
    pub(super) async fn put_away_deleted(&mut self, vm: &Vm) -> Result<(), ScriptError> {
        let Some(instance) = self.find().await?.filter(|i| i.status == "Stopped") else { return Ok(()) };
        console::end(self.place, &self.name);
        for nic in &vm.nics {
            self.drop_port(nic);
        }
        self.mapper()?.unmap_all()?;
        self.engine.delete(&instance, &self.name).await?;
        self.remove_directory();
        Ok(())
    }

    pub(super) fn remove_directory(&self) {
        let _ = fs::remove_file(self.half_way());
        // Not empty while something could not be undone; the journal is in it then.
        let _ = fs::remove_dir(self.place.directory(&self.name));
    }
}
