//! One call of a script: what came with it, and the way to the VM it is for.
//!
//! Owns which VM is locked and that a call and its document speak of the same one. Two VMs never wait for each other,
//! except where both look for a free device.

use super::ScriptError;
use crate::{
    context::Context,
    disks::{Mapper, Place},
    document::{DocumentError, Vm},
    engine::{Engine, PROJECT, kept_document},
    ids::{DiskId, InstanceName, VmId},
    lxdrc::{self, Lxdrc},
    say::Log,
};
use rustix::fs::{FlockOperation, flock};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};
use stead_incus::{requests::instances::StateAction, types::Instance};
use stead_os::{PathContext, PathError};

/// Below `/run/stead-one`: a file for each instance, locked while a script works on it.
const LOCKS: &str = "locks";

/// What came with a call, for [`super::Work`].
pub(super) struct Call<'c, 'l> {
    pub context: &'c Context,
    pub log: &'c mut Log<'l>,
    /// The VM, by the arguments.
    pub vm: Option<VmId>,
    /// Stdin as it came, for [`super::Stdin::Passed`]; empty otherwise.
    pub passed: String,
    /// The document and its text, for [`super::Stdin::Document`]. It is of that VM.
    pub document: Option<(Vm, String)>,
}

impl<'l> Call<'_, 'l> {
    /// The driver's configuration; keys that are not known are logged.
    pub(super) fn configuration(&mut self) -> Result<Lxdrc, ScriptError> {
        let (rc, unknown) = lxdrc::load(&self.context.lxdrc())?;
        for key in unknown {
            self.log.info(format_args!("lxdrc: key {key} is not known and is ignored"));
        }
        Ok(rc)
    }

    /// Works on an instance of this host: locked, with its engine. One that another member of the engine's cluster holds is
    /// refused.
    pub(super) async fn on<T>(
        self,
        name: InstanceName,
        work: impl AsyncFnOnce(&mut Job<'_, 'l>) -> Result<T, ScriptError>,
    ) -> Result<T, ScriptError> {
        self.wherever(name, async |job| {
            if let Some(found) = job.engine.instance(&job.name).await? {
                job.engine.require_here(&found.value, &job.name)?;
            }
            work(job).await
        })
        .await
    }
    /// As [`Self::on`], but the script itself asks which member holds the instance.
    pub(super) async fn wherever<T>(
        mut self,
        name: InstanceName,
        work: impl AsyncFnOnce(&mut Job<'_, 'l>) -> Result<T, ScriptError>,
    ) -> Result<T, ScriptError> {
        let rc = self.configuration()?;
        if let Some((vm, _)) = &self.document
            && vm.name != name
        {
            return Err(ScriptError::OtherVm { called: name.to_string(), document: vm.name.to_string() });
        }
        let place = Place { run: self.context.run.clone(), datastores: rc.datastore_location.clone() };
        let _lock = lock(&place, &name)?;
        let engine = Engine::connect(self.context.driver(), &rc).await?;
        engine.settle(&name).await?;
        let mut job = Job {
            name,
            rc: &rc,
            place: &place,
            engine: &engine,
            context: self.context,
            log: self.log,
            document: self.document,
        };
        work(&mut job).await
    }
}

impl Call<'_, '_> {
    /// Kills a running instance of this host before anything is waited for: a script that has it shut down, or start, holds
    /// its lock for minutes, and a cancel must win. What goes wrong here shows when the script does it in order.
    pub(super) async fn kill_at_once(&self, name: &InstanceName) {
        let Ok((rc, _)) = lxdrc::load(&self.context.lxdrc()) else { return };
        let Ok(engine) = Engine::connect(self.context.driver(), &rc).await else { return };
        if let Ok(Some(found)) = engine.instance(name).await
            && engine.is_here(&found.value)
            && found.value.status != "Stopped"
        {
            let _ = engine.set_state(name, StateAction::Kill).await;
        }
    }
}

/// One VM, one script at a time.
fn lock(place: &Place, name: &InstanceName) -> Result<File, PathError> {
    let (file, path) = lock_file(place, name)?;
    flock(&file, FlockOperation::LockExclusive).at("lock", path)?;
    Ok(file)
}

fn lock_file(place: &Place, name: &InstanceName) -> Result<(File, PathBuf), PathError> {
    let directory = place.run.join(LOCKS);
    fs::create_dir_all(&directory).at("make", &directory)?;
    // What is mounted below is nobody else's to see.
    fs::set_permissions(&place.run, fs::Permissions::from_mode(0o711)).at("protect", &place.run)?;
    let path = directory.join(name.as_str());
    Ok((File::create(&path).at("open", &path)?, path))
}

/// The instances that a script is working on at this moment.
pub(crate) fn at_work(run: &Path) -> BTreeSet<String> {
    let files = fs::read_dir(run.join(LOCKS)).into_iter().flatten().flatten();
    let is_held = |entry: &fs::DirEntry| {
        let file = File::open(entry.path());
        file.is_ok_and(|f| flock(&f, FlockOperation::NonBlockingLockShared).is_err())
    };
    files.filter(is_held).map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Puts away, of these instances, what terminated VMs left: the guest powered itself off, and OpenNebula then deleted the
/// VM's directory without calling the driver. What goes wrong is reported to `log` and tried again at the next look.
pub(crate) async fn sweep(
    context: &Context,
    rc: &Lxdrc,
    engine: &Engine,
    instances: &[Instance],
    log: &mut Log<'_>,
) {
    let place = Place { run: context.run.clone(), datastores: rc.datastore_location.clone() };
    for instance in instances.iter().filter(|i| i.status == "Stopped" && engine.is_here(i)) {
        let Ok(name) = instance.name.parse::<InstanceName>() else { continue };
        let Some((vm, _)) = kept_document(instance, &name).ok().flatten() else { continue };
        if vm.is_imported() || !place.is_deleted(vm.id, vm.datastore) {
            continue;
        }
        // Saved memory and snapshots are no remains: a VM that was stopped to be moved has them.
        let snapshots = engine.client.snapshots(PROJECT, name.as_str()).await;
        if instance.stateful || !snapshots.is_ok_and(|all| all.is_empty()) {
            continue;
        }
        // A script that is at it knows better.
        let Ok((file, _)) = lock_file(&place, &name) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err()
            || !place.is_deleted(vm.id, vm.datastore)
        {
            continue;
        }
        let mut job = Job { name, rc, place: &place, engine, context, log: &mut *log, document: None };
        if let Err(error) = job.put_away_deleted(&vm).await {
            log.error(format_args!("{}: {}", instance.name, stead_os::chain(&error)));
        }
    }
}

/// A script at work on one VM.
pub(super) struct Job<'a, 'l> {
    pub name: InstanceName,
    pub rc: &'a Lxdrc,
    pub place: &'a Place,
    pub engine: &'a Engine,
    pub context: &'a Context,
    pub log: &'a mut Log<'l>,
    document: Option<(Vm, String)>,
}

impl<'a> Job<'a, '_> {
    /// The VM's document and its text, which can be taken once.
    pub(super) fn document(&mut self) -> Result<(Vm, String), ScriptError> {
        Ok(self.document.take().ok_or(DocumentError::Missing("VM"))?)
    }
    /// The instance wherever it is; `None`: no member has it.
    pub(super) async fn find(&self) -> Result<Option<Instance>, ScriptError> {
        Ok(self.engine.instance(&self.name).await?.map(|t| t.value))
    }
    pub(super) fn mapper(&self) -> Result<Mapper<'a>, ScriptError> {
        Ok(Mapper::open(self.place, &self.name, &self.rc.filesystem)?)
    }
    /// The instance, which must be there.
    pub(super) async fn instance(&self) -> Result<Instance, ScriptError> {
        let found = self.engine.instance(&self.name).await?;
        found.map(|t| t.value).ok_or_else(|| ScriptError::Absent(self.name.clone()))
    }
    /// Where a disk is mounted on this host.
    pub(super) fn mountpoint(&self, vm: &Vm, disk: DiskId, pool: &str) -> PathBuf {
        if vm.root == Some(disk) {
            self.engine.rootfs(pool, &self.name)
        } else {
            self.place.mountpoint(&self.name, disk)
        }
    }
    pub(super) fn say_notes(&mut self, mapper: &mut Mapper<'_>) {
        for note in mapper.notes.drain(..) {
            self.log.info(note);
        }
    }
    /// A path for a file of the VM in a datastore; links in its directory do not lead out.
    pub(super) fn in_datastores(&self, path: &Path) -> Result<PathBuf, ScriptError> {
        let outside = || ScriptError::OutsideDatastores {
            path: path.to_owned(),
            datastores: self.place.datastores.clone(),
        };
        let parent = path.parent().and_then(|p| fs::canonicalize(p).ok()).ok_or_else(outside)?;
        let file = path.file_name().ok_or_else(outside)?;
        let datastores = fs::canonicalize(&self.place.datastores).map_err(|_| outside())?;
        // A datastore may itself be a link to where there is room.
        let own = self.place.datastores.read_dir().into_iter().flatten().flatten();
        let roots = own.filter_map(|d| fs::canonicalize(d.path()).ok()).chain([datastores]);
        if !roots.into_iter().any(|root| parent.starts_with(root)) {
            return Err(outside());
        }
        Ok(parent.join(file))
    }
}
