//! save and restore.
//!
//! With CRIU on the host the engine keeps the processes' state, in the instance, which then stays. Without, the instance
//! is shut down and everything it was made from is written to the checkpoint, from which any host makes it again.

use super::{Call, Job, Parsed, Running, ScriptError, Words, Work, nothing};
use crate::{
    console,
    document::Vm,
    engine::{EngineError, PROJECT, kept_document},
    ids::InstanceName,
    instance::{self, DOCUMENT_KEY, IDMAP_KEY, Shown},
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};
use stead_incus::requests::instances::StateAction;
use stead_os::{PathContext, PathError};

/// A checkpoint holds a document and a map of user ids.
const MAX_CHECKPOINT_BYTES: u64 = 16 << 20;

/// What `save` writes.
#[derive(Debug, Serialize, Deserialize)]
struct Checkpoint {
    /// Form of this file.
    version: u32,
    /// The processes' state is kept in the instance.
    stateful: bool,
    /// Base64 of the VM's document.
    document: String,
    /// The map of user ids its root was left with.
    idmap: Option<String>,
}

/// What a VM takes with it when it is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// Also what its processes do, where the engine can keep that.
    Processes,
    /// Its disks and settings: the processes' state would stay with the instance, on its host.
    Disks,
}

/// `save`.
#[derive(Debug)]
struct Save {
    name: InstanceName,
    checkpoint: PathBuf,
}

/// Reads the arguments of [`Save`].
pub(super) fn parse_save(words: &Words<'_>) -> Parsed {
    Ok(Box::new(Save { name: words.instance(0)?, checkpoint: words.path(1, "the checkpoint file")? }))
}

impl Work for Save {
    fn run<'c, 'l: 'c>(self: Box<Self>, call: Call<'c, 'l>) -> Running<'c> {
        Box::pin(call.on(self.name.clone(), async move |job| {
            job.save(&self.checkpoint, Keep::Processes).await.map(nothing)
        }))
    }
}

/// `restore`.
#[derive(Debug)]
struct Restore {
    name: InstanceName,
    checkpoint: PathBuf,
}

/// Reads the arguments of [`Restore`].
pub(super) fn parse_restore(words: &Words<'_>) -> Parsed {
    Ok(Box::new(Restore { name: words.instance(2)?, checkpoint: words.path(0, "the checkpoint file")? }))
}

impl Work for Restore {
    fn run<'c, 'l: 'c>(self: Box<Self>, call: Call<'c, 'l>) -> Running<'c> {
        Box::pin(call.wherever(self.name.clone(), async move |job| {
            let (vm, document) = job.document()?;
            job.restore(&self.checkpoint, vm, document).await.map(nothing)
        }))
    }
}

impl Job<'_, '_> {
    pub(super) async fn save(&mut self, path: &Path, keep: Keep) -> Result<(), ScriptError> {
        let path = self.in_datastores(path)?;
        let instance = self.instance().await?;
        let Some((vm, _)) = kept_document(&instance, &self.name)?.filter(|(vm, _)| !vm.is_imported()) else {
            return Err(ScriptError::Imported { action: "saving", name: self.name.clone() });
        };
        let stateful = self.suspend(&instance.status, keep).await?;
        console::end(self.place, &self.name);
        let saved = self.put_down(&vm, &path, stateful).await;
        if saved.is_err() {
            // Not kept, so it must not be down either.
            if let Err(error) = self.start_again(Some(&vm)).await {
                self.log.error(stead_os::chain(&error));
            }
        }
        saved
    }

    /// Writes the checkpoint of a stopped instance and frees what it has on the host.
    async fn put_down(&mut self, vm: &Vm, path: &Path, stateful: bool) -> Result<(), ScriptError> {
        let instance = self.instance().await?;
        let checkpoint = Checkpoint {
            version: 1,
            stateful,
            document: instance.config.get(DOCUMENT_KEY).cloned().unwrap_or_default(),
            idmap: instance.config.get(IDMAP_KEY).filter(|m| !m.is_empty()).cloned(),
        };
        write(path, &checkpoint)?;
        let snapshots = self.engine.client.snapshots(PROJECT, self.name.as_str()).await;
        let snapshots = snapshots.map_err(EngineError::from)?;
        if stateful || !snapshots.is_empty() {
            self.keep_idmap(vm, &instance);
            self.mapper()?.unmap_all()?;
            self.remove_directory();
            self.engine.show(&self.name, Shown::Saved).await?;
            return Ok(());
        }
        self.put_away(Some(vm)).await
    }

    /// Stops with the processes' state where that works; whether it did.
    async fn suspend(&mut self, status: &str, keep: Keep) -> Result<bool, ScriptError> {
        if status == "Stopped" {
            return Ok(false);
        }
        let why = if keep == Keep::Disks {
            "it goes to another host".to_owned()
        } else if stead_os::command::find("criu").is_some() {
            // Incus asks for it; it says nothing else of a container.
            let willing = [("migration.stateful".to_owned(), "true".to_owned())].into();
            let asked = match self.engine.patch(&self.name, &willing).await {
                Ok(()) => self.engine.set_state(&self.name, StateAction::StopStateful).await,
                Err(error) => Err(error),
            };
            match asked {
                Ok(()) => return Ok(true),
                Err(error) => error.to_string(),
            }
        } else {
            "CRIU is not installed".to_owned()
        };
        self.log.info(format_args!(
            "the processes' state cannot be kept ({why}): the instance is shut down, its disks and settings are kept"
        ));
        self.engine.set_state(&self.name, StateAction::Stop).await?;
        Ok(false)
    }

    pub(super) async fn restore(&mut self, path: &Path, vm: Vm, document: String) -> Result<(), ScriptError> {
        let path = self.in_datastores(path)?;
        let checkpoint = read(&path)?;
        let existing = self.find().await?;
        if let Some(instance) = existing.filter(|i| i.status == "Stopped" && self.engine.is_here(i))
            && kept_document(&instance, &self.name)?.is_some()
        {
            // With state or snapshots in it. From here on it is not one that lies saved, without mounts.
            self.engine.show(&self.name, Shown::Busy).await?;
            self.map_again(&vm, &instance)?;
            let document = instance::encode(&document);
            let started = async {
                self.engine
                    .patch(&self.name, &[(DOCUMENT_KEY.to_owned(), document)].into_iter().collect())
                    .await?;
                self.engine.set_state(&self.name, StateAction::Start).await
            };
            if let Err(error) = started.await {
                self.mapper()?.unmap_all()?;
                self.engine.show(&self.name, Shown::Saved).await?;
                return Err(error.into());
            }
            self.start_console(&vm)?;
            self.engine.show(&self.name, Shown::Yes).await?;
            return Ok(());
        }
        if checkpoint.stateful {
            self.log.info("the processes' state stayed on the host that saved it: the instance starts anew");
        }
        self.deploy(&vm, &document, checkpoint.idmap).await.map(drop)
    }
}

fn write(path: &Path, checkpoint: &Checkpoint) -> Result<(), ScriptError> {
    let beside = path.with_extension("stead-new");
    let bytes = serde_json::to_vec(checkpoint).unwrap_or_default();
    let written = (|| {
        // The document holds the console's password. A link in its place is replaced, not followed.
        let _ = fs::remove_file(&beside);
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        // oneadmin's transfer driver moves it.
        let owner = fs::metadata(path.parent().unwrap_or(Path::new("/")))?;
        use std::os::unix::fs::MetadataExt;
        std::os::unix::fs::chown(&beside, Some(owner.uid()), Some(owner.gid()))?;
        fs::rename(&beside, path)
    })();
    Ok(written.at("write", path)?)
}

fn read(path: &Path) -> Result<Checkpoint, ScriptError> {
    let failed = |e: io::Error| PathError::new("read", path)(e);
    // In the VM's directory, which only OpenNebula writes to; a link there is not followed.
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits();
    let file = File::options().read(true).custom_flags(flags as i32).open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_CHECKPOINT_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    let checkpoint: Checkpoint =
        serde_json::from_slice(&bytes).map_err(|_| ScriptError::Checkpoint(path.to_owned()))?;
    if checkpoint.version != 1 {
        return Err(ScriptError::Checkpoint(path.to_owned()));
    }
    Ok(checkpoint)
}
