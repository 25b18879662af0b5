//! shutdown, cancel, reboot and reset.

use super::{ActError, Job};
use crate::{
    console,
    disks::idmap,
    document::Vm,
    engine::{EngineError, kept_document},
    instance::IDMAP_KEY,
    say,
};
use stead_incus::{requests::instances::StateAction, types::Instance};

impl Job<'_, '_> {
    /// shutdown and cancel: the instance is stopped and everything of it on the host goes. One that was imported is only
    /// stopped.
    pub(super) async fn stop(&mut self, force: bool) -> Result<(), ActError> {
        let Some(instance) = self.engine.instance(&self.name).await?.map(|t| t.value) else {
            self.log.info(format_args!("there is no instance {}: only its disks are put away", self.name));
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
                self.log.error(say::chain(&error));
                None
            }
        };
        self.put_away(vm.as_ref()).await
    }

    /// Stops an instance that is not stopped.
    async fn halt(&mut self, instance: &Instance, force: bool) -> Result<(), ActError> {
        if instance.status == "Stopped" {
            return Ok(());
        }
        // Hidden while it stops: monitoring must not take it for crashed.
        self.engine.set_visible(&self.name, false).await?;
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
        if let Err(error) = self.engine.set_visible(&self.name, true).await {
            self.log.error(say::chain(&error));
        }
    }

    /// Unmaps and deletes a stopped instance.
    pub(super) async fn put_away(&mut self, vm: Option<&Vm>) -> Result<(), ActError> {
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
            self.log.error(say::chain(&error));
        }
    }

    pub(super) fn remove_directory(&self) {
        // Not empty while something could not be undone; the journal is in it then.
        let _ = std::fs::remove_dir(self.place.directory(&self.name));
    }

    /// reboot and reset.
    pub(super) async fn restart(&mut self, force: bool) -> Result<(), ActError> {
        let instance = self.instance().await?;
        let kept = kept_document(&instance, &self.name)?.map(|(vm, _)| vm);
        let running = instance.status != "Stopped";
        if running {
            self.halt(&instance, force).await?;
            for nic in kept.iter().flat_map(|vm| &vm.nics) {
                self.drop_port(nic);
            }
            if self.surroundings.restarts_twice() {
                // The second call starts it, after the network drivers had their turn.
                return Ok(());
            }
        }
        let started = self.start_again(kept.as_ref()).await;
        self.show_again().await;
        started
    }

    async fn start_again(&mut self, vm: Option<&Vm>) -> Result<(), ActError> {
        if let Some(vm) = vm.filter(|vm| !vm.is_imported()) {
            let instance = self.instance().await?;
            self.map_again(vm, &instance)?;
        }
        match self.engine.set_state(&self.name, StateAction::Start).await {
            Ok(()) => {}
            Err(EngineError::Request(error)) if self.instance().await?.status == "Running" => {
                self.log.info(format_args!("it runs already: {error}"));
            }
            Err(error) => return Err(error.into()),
        }
        if let Some(vm) = vm {
            self.start_console(vm)?;
        }
        Ok(())
    }
}
