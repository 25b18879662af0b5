//! migrate: to another host that has the same datastores, or another member of the cluster.
//!
//! The disks are OpenNebula's, so they are not moved but mapped over there: the instance is saved here and restored on
//! the other host, by its own `restore` script, over the connection that OpenNebula's hosts have among each other. An
//! instance that was imported has its root in the engine's pool: the engine moves it, within its cluster.

use super::{
    Call, Job, Parsed, Running, ScriptError, Words, Work, nothing,
    peer::{Peer, over_there, path_word},
    save::Keep,
};
use crate::{
    console,
    document::Vm,
    engine::{EngineError, PROJECT},
    ids::{HostName, InstanceName},
};
use stead_incus::{
    Feature,
    requests::instances::{Move, StateAction},
};

/// `migrate`.
#[derive(Debug)]
struct Migrate {
    name: InstanceName,
    destination: HostName,
}

/// Reads the arguments of [`Migrate`].
pub(super) fn parse(words: &Words<'_>) -> Parsed {
    Ok(Box::new(Migrate { name: words.instance(0)?, destination: words.read(1)? }))
}

impl Work for Migrate {
    fn run<'c, 'l: 'c>(self: Box<Self>, call: Call<'c, 'l>) -> Running<'c> {
        Box::pin(call.on(self.name.clone(), async move |job| {
            let (vm, document) = job.document()?;
            job.migrate(&vm, &document, &self.destination).await.map(nothing)
        }))
    }
}

/// `migrate_local`: on the frontend there is no engine, so the VM's host does it.
#[derive(Debug)]
struct MigrateLocal {
    name: InstanceName,
    destination: HostName,
    from: HostName,
}

/// Reads the arguments of [`MigrateLocal`].
pub(super) fn parse_local(words: &Words<'_>) -> Parsed {
    Ok(Box::new(MigrateLocal { name: words.instance(0)?, destination: words.read(1)?, from: words.read(2)? }))
}

impl Work for MigrateLocal {
    fn run<'c, 'l: 'c>(self: Box<Self>, call: Call<'c, 'l>) -> Running<'c> {
        Box::pin(async move {
            let vm = call.vm.map(|v| v.to_string()).unwrap_or_default();
            let (name, from) = (self.name.to_string(), self.from.to_string());
            let arguments = [name, self.destination.to_string(), from.clone(), vm, from];
            match over_there(call.context, &self.from, "migrate", &arguments, &call.passed)? {
                Peer::Done => Ok(String::new()),
                Peer::Unreachable(said) | Peer::Failed(said) => {
                    Err(ScriptError::Elsewhere { host: self.from.to_string(), said })
                }
            }
        })
    }
}

impl Job<'_, '_> {
    pub(super) async fn migrate(
        &mut self,
        vm: &Vm,
        document: &str,
        destination: &HostName,
    ) -> Result<(), ScriptError> {
        if vm.is_imported() {
            return self.move_imported(destination).await;
        }
        let snapshots = self.engine.client.snapshots(PROJECT, self.name.as_str()).await;
        if !snapshots.map_err(EngineError::from)?.is_empty() {
            return Err(ScriptError::Snapshots(self.name.clone()));
        }
        let directory = self.place.vm(vm.id, vm.datastore)?;
        let checkpoint = directory.join("checkpoint");
        self.is_ready(destination, vm, document)?;
        self.save(&checkpoint, Keep::Disks).await?;
        let arguments = [
            path_word(&checkpoint)?,
            destination.to_string(),
            self.name.to_string(),
            vm.id.to_string(),
            destination.to_string(),
        ];
        let taken = match over_there(self.context, destination, "restore", &arguments, document) {
            Ok(Peer::Done) => Ok(()),
            Ok(Peer::Unreachable(said) | Peer::Failed(said)) => {
                Err(ScriptError::Elsewhere { host: destination.to_string(), said })
            }
            Err(error) => Err(error),
        };
        if let Err(error) = taken {
            self.log.error(format_args!("{destination} did not take the VM over; it is started here again"));
            self.restore(&checkpoint, vm.clone(), document.to_owned()).await?;
            let _ = std::fs::remove_file(&checkpoint);
            return Err(error);
        }
        let _ = std::fs::remove_file(&checkpoint);
        Ok(())
    }

    /// Asks the other host before anything is stopped: whether ssh gets there, whether the driver, its engine and the VM's
    /// disks are there.
    fn is_ready(&self, destination: &HostName, vm: &Vm, document: &str) -> Result<(), ScriptError> {
        let host = destination.to_string();
        let words = [self.name.to_string(), host.clone(), vm.id.to_string(), host.clone()];
        match over_there(self.context, destination, "ready", &words, document)? {
            Peer::Done => Ok(()),
            Peer::Failed(said) => Err(ScriptError::NotReady { host, said }),
            Peer::Unreachable(said) => {
                let user = self.context.user.as_deref().unwrap_or("root");
                let said = format!(
                    "{said}; ssh from this host to it, as {user}, needs the agent that OpenNebula forwards for migrate \
                     (5.12 and later), or a key"
                );
                Err(ScriptError::NotReady { host, said })
            }
        }
    }

    async fn move_imported(&mut self, destination: &HostName) -> Result<(), ScriptError> {
        let refused =
            |why: &str| ScriptError::Refused(format!("instance {} cannot be migrated: {why}", self.name));
        if self.engine.member.is_none() {
            return Err(refused("it was imported, and its engine is not clustered"));
        }
        let client = &self.engine.client;
        let members = client.members().await.map_err(EngineError::from)?;
        let short = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
        let member = members
            .iter()
            .find(|m| m.server_name == destination.as_str())
            .or_else(|| members.iter().find(|m| short(&m.server_name) == short(destination.as_str())))
            .map(|m| m.server_name.clone())
            .ok_or_else(|| refused(&format!("{destination} is no member of its cluster")))?;
        let running = self.instance().await?.status == "Running";
        let by_copies = running && client.has(Feature::RefreshMigration).await.map_err(EngineError::from)?;
        if running && !by_copies {
            self.engine.set_state(&self.name, StateAction::Stop).await?;
        }
        console::end(self.place, &self.name);
        let to = Move { refresh: by_copies, ..Move::to(member) };
        let moved = client.move_instance(PROJECT, self.name.as_str(), &to).await;
        let started = match running && !by_copies {
            true => self.engine.set_state(&self.name, StateAction::Start).await,
            false => Ok(()),
        };
        moved.map_err(EngineError::from)?;
        Ok(started?)
    }
}
