//! One call of a script: what came with it, and the way to the VM it is for.
//!
//! Owns which VM is locked and that a call and its document speak of the same one. Two VMs never wait for each other,
//! except where both look for a free device.

use super::ScriptError;
use crate::{
    context::Context,
    disks::{Mapper, Place},
    document::{DocumentError, Vm},
    engine::Engine,
    ids::{DiskId, InstanceName, VmId},
    lxdrc::{self, Lxdrc},
    say::Log,
};
use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};
use stead_os::{PathContext, PathError};

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

    /// Works on an instance of this host: locked, with its engine.
    pub(super) async fn on<T>(
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

/// One VM, one script at a time.
fn lock(place: &Place, name: &InstanceName) -> Result<File, PathError> {
    let directory = place.run.join("locks");
    fs::create_dir_all(&directory).at("make", &directory)?;
    // What is mounted below is nobody else's to see.
    fs::set_permissions(&place.run, fs::Permissions::from_mode(0o711)).at("protect", &place.run)?;
    let path = directory.join(name.as_str());
    let file = File::create(&path).at("open", &path)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).at("lock", path)?;
    Ok(file)
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
    pub(super) fn mapper(&self) -> Result<Mapper<'a>, ScriptError> {
        Ok(Mapper::open(self.place, &self.name, &self.rc.filesystem)?)
    }
    /// The instance, which must be there.
    pub(super) async fn instance(&self) -> Result<stead_incus::types::Instance, ScriptError> {
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
