//! `reboot` and `reset`.

use super::{Call, Job, Parsed, Running, ScriptError, Words, Work, nothing};
use crate::{
    document::Vm,
    engine::{EngineError, kept_document},
    ids::InstanceName,
    instance::Shown,
};
use std::{fs, path::PathBuf, time::Duration};
use stead_incus::requests::instances::StateAction;
use stead_os::PathContext;

/// Longest time between the two calls of a reboot: the network drivers' scripts run in between, for seconds.
const PAIR_PATIENCE: Duration = Duration::from_secs(120);

/// `reboot` or, with force, `reset`.
#[derive(Debug)]
struct Restart {
    name: InstanceName,
    force: bool,
}

/// Reads the arguments of [`Restart`].
pub(super) fn parse(words: &Words<'_>, force: bool) -> Parsed {
    Ok(Box::new(Restart { name: words.instance(0)?, force }))
}

impl Work for Restart {
    fn run<'c, 'l: 'c>(self: Box<Self>, call: Call<'c, 'l>) -> Running<'c> {
        Box::pin(call.on(self.name.clone(), async move |job| job.restart(self.force).await.map(nothing)))
    }
}

impl Job<'_, '_> {
    /// Restarts the instance. When OpenNebula calls twice, the first call leaves the instance stopped and the second
    /// starts it, whatever the instance did in between: an instance found stopped must not be started by the first call
    /// and stopped by the second.
    pub(super) async fn restart(&mut self, force: bool) -> Result<(), ScriptError> {
        let instance = self.instance().await?;
        let kept = kept_document(&instance, &self.name)?.map(|(vm, _)| vm);
        let is_second = self.context.restarts_twice() && self.take_half_way()?;
        if !is_second {
            self.halt(&instance, force).await?;
            for nic in kept.iter().flat_map(|vm| &vm.nics) {
                self.drop_port(nic);
            }
            if self.context.restarts_twice() {
                // The second call starts it, after the network drivers' scripts.
                self.engine.show(&self.name, Shown::Busy).await?;
                return self.mark_half_way();
            }
        }
        let started = self.start_again(kept.as_ref()).await;
        self.show_again().await;
        started
    }

    pub(super) fn half_way(&self) -> PathBuf {
        self.place.directory(&self.name).join("half-way")
    }
    fn mark_half_way(&self) -> Result<(), ScriptError> {
        let path = self.half_way();
        let made = fs::create_dir_all(self.place.directory(&self.name)).and_then(|()| fs::write(&path, ""));
        Ok(made.at("write", path)?)
    }
    /// Whether the first of two calls was just made. An older mark belongs to an interrupted pair.
    fn take_half_way(&self) -> Result<bool, ScriptError> {
        let path = self.half_way();
        let made = match fs::metadata(&path).and_then(|m| m.modified()) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            other => other.at("look at", &path)?,
        };
        fs::remove_file(&path).at("remove", &path)?;
        // A mark from the future, after the clock was set back, counts as old.
        Ok(made.elapsed().is_ok_and(|age| age < PAIR_PATIENCE))
    }

    pub(super) async fn start_again(&mut self, vm: Option<&Vm>) -> Result<(), ScriptError> {
        if let Some(vm) = vm.filter(|vm| !vm.is_imported()) {
            let instance = self.instance().await?;
            self.map_again(vm, &instance)?;
        }
        match self.engine.set_state(&self.name, StateAction::Start).await {
            Ok(()) => {}
            Err(EngineError::Request(error)) if self.instance().await?.status == "Running" => {
                self.log.info(format_args!("it is already running: {error}"));
            }
            Err(error) => return Err(error.into()),
        }
        if let Some(vm) = vm {
            self.start_console(vm)?;
        }
        Ok(())
    }
}
