//! shutdown, cancel, reboot and reset.

use super::{ActError, Job};
use crate::{
    console,
    disks::idmap,
    document::Vm,
    engine::{EngineError, kept_document},
    instance::{IDMAP_KEY, Shown},
};
use std::{fs, path::PathBuf, time::Duration};
use stead_incus::{requests::instances::StateAction, types::Instance};

/// Between the two calls of a reboot are the network drivers' scripts: seconds.
const PAIR_PATIENCE: Duration = Duration::from_secs(120);

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
    pub(super) async fn halt(&mut self, instance: &Instance, force: bool) -> Result<(), ActError> {
        if instance.status == "Stopped" {
            return Ok(());
        }
        // Hidden while it stops: monitoring must not take it for crashed.
        self.engine.show(&self.name, Shown::Busy).await?;
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
            self.log.error(stead_os::chain(&error));
        }
    }

    pub(super) fn remove_directory(&self) {
        let _ = fs::remove_file(self.half_way());
        // Not empty while something could not be undone; the journal is in it then.
        let _ = fs::remove_dir(self.place.directory(&self.name));
    }

    /// reboot and reset. Called twice, the first call leaves the instance stopped and the second starts it, whatever the
    /// instance did by itself in between: an instance that was found stopped must not be started by the first and stopped
    /// by the second.
    pub(super) async fn restart(&mut self, force: bool) -> Result<(), ActError> {
        let instance = self.instance().await?;
        let kept = kept_document(&instance, &self.name)?.map(|(vm, _)| vm);
        let is_second = self.surroundings.restarts_twice() && self.take_half_way()?;
        if !is_second {
            self.halt(&instance, force).await?;
            for nic in kept.iter().flat_map(|vm| &vm.nics) {
                self.drop_port(nic);
            }
            if self.surroundings.restarts_twice() {
                // The second call starts it, after the network drivers had their turn.
                self.engine.show(&self.name, Shown::Busy).await?;
                return self.mark_half_way();
            }
        }
        let started = self.start_again(kept.as_ref()).await;
        self.show_again().await;
        started
    }

    fn half_way(&self) -> PathBuf {
        self.place.directory(&self.name).join("half-way")
    }
    fn mark_half_way(&self) -> Result<(), ActError> {
        let path = self.half_way();
        let written =
            fs::create_dir_all(self.place.directory(&self.name)).and_then(|()| fs::write(&path, ""));
        written.map_err(|source| ActError::File { action: "write", path, source })
    }
    /// Whether the first of two calls was made a moment ago. A mark that is older belongs to a pair that was broken off.
    fn take_half_way(&self) -> Result<bool, ActError> {
        let path = self.half_way();
        let failed = |action| {
            let path = path.clone();
            move |source| ActError::File { action, path, source }
        };
        let made = match fs::metadata(&path).and_then(|m| m.modified()) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            other => other.map_err(failed("look at"))?,
        };
        fs::remove_file(&path).map_err(failed("remove"))?;
        // A clock that was set back makes it young, too.
        Ok(made.elapsed().is_ok_and(|age| age < PAIR_PATIENCE))
    }

    pub(super) async fn start_again(&mut self, vm: Option<&Vm>) -> Result<(), ActError> {
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
