//! deploy, and everything that brings an instance up.

use super::{Call, Job, Parsed, Running, ScriptError, Words, Work};
use crate::{
    console,
    disks::{Mapper, idmap},
    document::{DocumentError, Vm},
    engine::{self, EngineError, PROJECT, root_pool},
    ids::{DiskId, VmId},
    instance::{self, HostPci, Shown},
};
use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};
use stead_incus::{
    requests::instances::{Move, StateAction},
    types::Instance,
};

/// `deploy`: the VM is the document's.
#[derive(Debug)]
struct Deploy;

/// Reads the arguments of [`Deploy`].
pub(super) fn parse(_: &Words<'_>) -> Parsed {
    Ok(Box::new(Deploy))
}

impl Work for Deploy {
    fn run<'c, 'l: 'c>(self: Box<Self>, call: Call<'c, 'l>) -> Running<'c> {
        Box::pin(async move {
            let name = call.document.as_ref().map(|(vm, _)| vm.name.clone());
            call.wherever(name.ok_or(DocumentError::Missing("VM"))?, async |job| {
                let (vm, document) = job.document()?;
                job.deploy(&vm, &document, None).await
            })
            .await
        })
    }
}

impl Job<'_, '_> {
    /// Makes and starts the instance of `vm`; its name. `idmap` is what a checkpoint kept.
    pub(super) async fn deploy(
        &mut self,
        vm: &Vm,
        document: &str,
        idmap: Option<String>,
    ) -> Result<String, ScriptError> {
        let existing = self.find().await?;
        if vm.is_imported() {
            let Some(instance) = existing else { return Err(ScriptError::Absent(self.name.clone())) };
            if !self.engine.is_here(&instance) {
                self.fetch_imported(&instance).await?;
            }
            if instance.status != "Running" {
                self.engine.set_state(&self.name, StateAction::Start).await?;
            }
            self.start_console(vm)?;
            return Ok(self.name.to_string());
        }
        if let Some(instance) = existing {
            if self.engine.is_here(&instance) && self.is_deployed(vm, &instance) {
                self.log.info(
                    "it runs already, as this document wants it: an earlier deploy came to its end unheard",
                );
                return Ok(self.name.to_string());
            }
            self.clear(&instance).await?;
        }
        let mut mapper = self.mapper()?;
        mapper.unmap_all()?;
        let result = self.bring_up(vm, document, idmap, &mut mapper).await;
        self.say_notes(&mut mapper);
        if let Err(error) = result {
            self.unwind(&mut mapper).await;
            return Err(error);
        }
        Ok(self.name.to_string())
    }

    /// Whether a deploy of `vm` has done its last step, and nothing else since: OpenNebula has not heard of it when the
    /// script was killed before it could answer.
    fn is_deployed(&self, vm: &Vm, instance: &Instance) -> bool {
        let kept = engine::kept_document(instance, &self.name).ok().flatten();
        instance.status == "Running"
            && Shown::of(&instance.config) == Shown::Yes
            && kept.is_some_and(|(kept, _)| kept == *vm)
    }

    /// Puts away what an earlier deploy left, whether it broke off or was stopped behind OpenNebula's back.
    async fn clear(&mut self, instance: &Instance) -> Result<(), ScriptError> {
        let kept = engine::kept_document(instance, &self.name).ok().flatten();
        let Some((vm, _)) = kept else { return Err(ScriptError::Foreign(self.name.clone())) };
        if !self.engine.is_here(instance) {
            return self.clear_elsewhere(instance, vm.id).await;
        }
        if instance.status != "Stopped" {
            // One that is hidden was being deployed when its script was killed.
            if Shown::of(&instance.config) != Shown::Busy {
                return Err(ScriptError::Running(self.name.clone()));
            }
            self.log.info("an earlier deploy broke off: its instance is made anew");
            self.engine.set_state(&self.name, StateAction::Kill).await?;
        }
        self.put_away(Some(&vm)).await
    }

    /// As [`Self::clear`], for an instance that another member of the cluster holds. Only a stopped one is given up, and only
    /// that member's host may do it.
    async fn clear_elsewhere(&mut self, instance: &Instance, vm: VmId) -> Result<(), ScriptError> {
        self.require_stopped_elsewhere(instance).await?;
        self.release_elsewhere(vm, &instance.location).await
    }

    /// Moves an imported instance, which is stopped, to this host's member: its root is in the engine's pool.
    async fn fetch_imported(&mut self, instance: &Instance) -> Result<(), ScriptError> {
        self.require_stopped_elsewhere(instance).await?;
        let here = self.engine.member.clone().unwrap_or_default();
        self.log
            .info(format_args!("instance {} moves from member {} to {here}", self.name, instance.location));
        let to = Move::to(here);
        let moved = self.engine.client.move_instance(PROJECT, self.name.as_str(), &to).await;
        moved.map_err(EngineError::from)?;
        Ok(())
    }

    async fn bring_up(
        &mut self,
        vm: &Vm,
        document: &str,
        idmap: Option<String>,
        mapper: &mut Mapper<'_>,
    ) -> Result<(), ScriptError> {
        let mut facts = self.engine.facts(self.rc, vm).await?;
        let directory = self.place.vm(vm.id, vm.datastore)?;
        facts.idmap = match idmap {
            Some(map) => Some(map),
            None => idmap::load(&directory)?,
        };
        for pci in &vm.pci {
            if let Some(found) = HostPci::observe(&self.context.sys, &pci.address) {
                facts.pci.insert(pci.address.clone(), found);
            }
        }
        // What cannot be asked of the engine is found out before anything is touched.
        for (disk, at) in self.others(vm) {
            facts.mountpoints.insert(disk, at);
        }
        instance::wanted(vm, document, &facts)?;
        for disk in vm.disks.iter().filter(|d| !d.is_swap() && vm.root != Some(d.id)) {
            let mapped = mapper.map(vm, disk, &self.place.mountpoint(&self.name, disk.id))?;
            facts.mapped(disk.id, &mapped, self.engine.shifts);
        }
        if let Some(context) = &vm.context {
            self.map_context(vm, context.disk, mapper)?;
        }
        let (wanted, notes) = instance::wanted(vm, document, &facts)?;
        for note in notes {
            self.log.info(note);
        }
        self.engine.create(&wanted).await?;
        self.map_root(vm, mapper, &facts.pool)?;
        self.first_start(vm).await?;
        self.start_console(vm)?;
        self.engine.show(&self.name, Shown::Yes).await?;
        Ok(())
    }

    /// Starts an instance. LXD 5.0 says that it can shift owners and then, on newer kernels, cannot.
    async fn first_start(&mut self, vm: &Vm) -> Result<(), ScriptError> {
        match self.engine.set_state(&self.name, StateAction::Start).await {
            Err(error) if error.is_shift_refused() => {
                self.without_shift(vm, &error).await?;
                self.start().await
            }
            Err(error) => {
                self.tell_start_errors().await;
                Err(error.into())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Starts an instance; when that fails, its log tells why.
    pub(super) async fn start(&mut self) -> Result<(), ScriptError> {
        let started = self.engine.set_state(&self.name, StateAction::Start).await;
        if started.is_err() {
            self.tell_start_errors().await;
        }
        Ok(started?)
    }

    async fn tell_start_errors(&mut self) {
        for line in self.engine.start_errors(&self.name).await {
            self.log.info(line);
        }
    }

    async fn without_shift(&mut self, vm: &Vm, error: &EngineError) -> Result<(), ScriptError> {
        self.log.debug(error);
        let others = vm.disks.iter().filter(|d| !d.is_swap() && vm.root != Some(d.id));
        let disks: Vec<DiskId> = others.map(|d| d.id).collect();
        self.engine
            .change(&self.name, |_, devices| {
                for device in devices.values_mut() {
                    device.remove("shift");
                }
            })
            .await?;
        for disk in disks {
            self.give(disk).await?;
        }
        Ok(())
    }

    /// Gives the top directory of a disk to root of the instance, when it is the host's root's: what is below it stays
    /// nobody's, but a volatile disk can be used.
    pub(super) async fn give(&mut self, disk: DiskId) -> Result<(), ScriptError> {
        let at = self.place.mountpoint(&self.name, disk);
        let instance = self.instance().await?;
        let Some(root) = instance::host_root(&instance.config) else { return Ok(()) };
        self.log.info(format_args!(
            "the engine cannot shift the owners of disk {disk}: only its top directory is the instance's"
        ));
        if crate::disks::is_mounted(&at)
            && std::fs::metadata(&at).is_ok_and(|m| m.uid() == 0)
            && let Err(error) = std::os::unix::fs::chown(&at, Some(root), Some(root))
        {
            self.log.error(format_args!("disk {disk}: {error}"));
        }
        Ok(())
    }

    /// Where all disks but root are mounted.
    pub(super) fn others(&self, vm: &Vm) -> Vec<(DiskId, PathBuf)> {
        let disks = vm.disks.iter().filter(|d| !d.is_swap() && vm.root != Some(d.id)).map(|d| d.id);
        let all = disks.chain(vm.context.iter().map(|c| c.disk));
        all.map(|id| (id, self.place.mountpoint(&self.name, id))).collect()
    }

    fn map_root(&self, vm: &Vm, mapper: &mut Mapper<'_>, pool: &str) -> Result<(), ScriptError> {
        if let Some(disk) = vm.root.and_then(|id| vm.disk(id)) {
            mapper.map(vm, disk, &self.engine.rootfs(pool, &self.name))?;
        }
        Ok(())
    }

    /// Maps the disks of an instance that is there but whose host was rebooted meanwhile.
    pub(super) fn map_again(&mut self, vm: &Vm, instance: &Instance) -> Result<(), ScriptError> {
        let mut mapper = self.mapper()?;
        let mounted = |path: &Path| crate::disks::is_mounted(path);
        let pool = root_pool(instance).unwrap_or("default").to_owned();
        let result = (|| {
            for disk in vm.disks.iter().filter(|d| !d.is_swap()) {
                let at = self.mountpoint(vm, disk.id, &pool);
                if !mounted(&at) {
                    mapper.map(vm, disk, &at)?;
                }
            }
            if let Some(context) = vm.context.as_ref().filter(|_| instance.devices.contains_key("context"))
                && !mounted(&self.place.mountpoint(&self.name, context.disk))
            {
                self.map_context(vm, context.disk, &mut mapper)?;
            }
            Ok(())
        })();
        self.say_notes(&mut mapper);
        result
    }

    /// Undoes a deploy that failed. What cannot be undone is said; the error that is told is the first one.
    async fn unwind(&mut self, mapper: &mut Mapper<'_>) {
        console::end(self.place, &self.name);
        match self.engine.instance(&self.name).await {
            // Another member made it meanwhile: nothing of it is ours.
            Ok(Some(instance)) if !self.engine.is_here(&instance.value) => {
                if let Err(error) = mapper.unmap_all() {
                    self.log.error(stead_os::chain(&error));
                }
            }
            Ok(Some(instance)) => {
                let instance = instance.value;
                if instance.status != "Stopped"
                    && let Err(error) = self.engine.set_state(&self.name, StateAction::Kill).await
                {
                    self.log.error(stead_os::chain(&error));
                }
                if let Err(error) = mapper.unmap_all() {
                    self.log.error(stead_os::chain(&error));
                }
                if let Err(error) = self.engine.delete(&instance, &self.name).await {
                    self.log.error(stead_os::chain(&error));
                }
            }
            Ok(None) => {
                if let Err(error) = mapper.unmap_all() {
                    self.log.error(stead_os::chain(&error));
                }
            }
            Err(error) => self.log.error(stead_os::chain(&error)),
        }
        self.remove_directory();
    }

    /// Starts the console that the document asks for; its instance runs.
    pub(super) fn start_console(&mut self, vm: &Vm) -> Result<(), ScriptError> {
        if let Some(graphics) = &vm.graphics {
            let notes = console::start(self.context, self.place, self.rc, self.engine, &self.name, graphics)?;
            for note in notes {
                self.log.info(note);
            }
        }
        Ok(())
    }
}
