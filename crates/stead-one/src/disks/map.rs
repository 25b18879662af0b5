//! Executes and undoes steps, and writes the journal.
//!
//! Makes no choices: [`super::plan`] does.

use super::{
    DiskError, export, filesystem, fstab,
    journal::Journal,
    mounts, nbd,
    place::Place,
    plan::{self, Offer, PlanError, Way},
    probe::{self, Partition, Window},
    qcow2,
    step::{Step, Undo},
};
use crate::{
    document::{Disk, DiskKind, ImageFormat, Vm},
    ids::{DiskId, InstanceName},
};
use std::{
    fs,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};
use stead_os::{
    LoopDevice, PathContext, PathError, command,
    loops::{self, Options},
};

/// A mounted disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    /// Where.
    pub at: PathBuf,
    /// Its filesystem.
    pub filesystem: String,
    /// The filesystems of other partitions, which are mounted into it according to its fstab.
    pub inside: Vec<String>,
}

/// Called with each step before it is executed.
pub type Observer<'a> = Box<dyn FnMut(DiskId, &Step) + 'a>;

/// Maps and unmaps the disks of one VM. Its owner holds the VM's lock.
pub struct Mapper<'a> {
    place: &'a Place,
    name: InstanceName,
    filesystem: &'a str,
    journal: Journal,
    observer: Observer<'a>,
    /// Notes about the mapping, for the log.
    pub notes: Vec<String>,
}

impl<'a> Mapper<'a> {
    /// Opens the VM's journal. `filesystem` is the default for volatile disks.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn open(place: &'a Place, name: &InstanceName, filesystem: &'a str) -> Result<Self, DiskError> {
        Ok(Self {
            place,
            name: name.clone(),
            filesystem,
            journal: Journal::open(&place.directory(name))?,
            observer: Box::new(|_, _| {}),
            notes: Vec::new(),
        })
    }
    /// Sets an observer of each step.
    #[must_use]
    pub fn observed(mut self, observer: impl FnMut(DiskId, &Step) + 'a) -> Self {
        self.observer = Box::new(observer);
        self
    }
    /// Whether anything is mapped.
    pub fn is_empty(&self) -> bool {
        self.journal.entries().is_empty()
    }

    /// Mounts a disk at `at`. If that fails, everything done for it is undone.
    ///
    /// # Errors
    /// [`DiskError`] of the failure; a failure to undo becomes a note.
    pub fn map(&mut self, vm: &Vm, disk: &Disk, at: &Path) -> Result<Mapped, DiskError> {
        // Remains of this disk after a crash would be in the way.
        self.unmap(disk.id)?;
        self.try_map(vm, disk, at).inspect_err(|_| {
            if let Err(error) = self.unmap(disk.id) {
                self.notes.push(stead_os::chain(&error));
            }
        })
    }

    fn try_map(&mut self, vm: &Vm, disk: &Disk, at: &Path) -> Result<Mapped, DiskError> {
        let (mut bytes, format) = match &disk.kind {
            DiskKind::Rbd { .. } => (PathBuf::new(), ImageFormat::Raw),
            DiskKind::File | DiskKind::Block => {
                let directory = self.place.vm(vm.id, vm.datastore)?;
                let (source, allowed) = self.place.source(&directory, disk)?;
                let format = match disk.format {
                    Some(format) => format,
                    None if qcow2::is_image(&probe::start(&source)?) => ImageFormat::Qcow2,
                    None => ImageFormat::Raw,
                };
                if format == ImageFormat::Qcow2 {
                    qcow2::check(&source, &allowed)?;
                }
                (source, format)
            }
        };
        let program = match &disk.kind {
            DiskKind::Rbd { .. } => Some(nbd::Program::Rbd),
            _ if format == ImageFormat::Qcow2 => Some(nbd::Program::Qemu),
            _ => None,
        };
        let (offer, lock) = program.map(|p| self.offer(p)).transpose()?.unwrap_or_default();
        if let Some(step) = plan::expose(self.place, &self.name, disk, &bytes, format, &offer)? {
            let exposed = self.perform(disk.id, &step, None)?;
            bytes = exposed.map(|device| device.path().to_owned()).ok_or_else(|| {
                DiskError::Unexpected(format!("disk {} did not appear as a device", disk.id))
            })?;
        }
        drop(lock);
        let kind = fs::metadata(&bytes).at("look at", &bytes)?.file_type();
        let layout = probe::layout(&bytes)?;
        match plan::mount(disk, &bytes, kind.is_block_device(), &layout, self.filesystem, at)? {
            Way::One(steps) => {
                let device = kind.is_block_device().then(|| bytes.clone());
                self.perform_all(disk.id, &steps, device)?;
                Ok(Mapped { at: at.to_owned(), filesystem: kind_of(&steps), inside: Vec::new() })
            }
            Way::Search(partitions) => self.map_partitions(disk, &bytes, &partitions, at),
        }
    }

    /// The host's devices for a program; the lock is held until the device is taken.
    fn offer(&self, program: nbd::Program) -> Result<(Offer, Option<fs::File>), DiskError> {
        let export = export::is_possible();
        if program == nbd::Program::Qemu && command::find("qemu-nbd").is_none() {
            return Ok((Offer { export, ..Offer::default() }, None));
        }
        let (nbd, lock) = nbd::reserve(program, &self.place.run.join("nbd"))?;
        Ok((Offer { nbd, export }, lock))
    }

    /// Mounts the first partition that has /etc/fstab, and the others into it according to that file.
    fn map_partitions(
        &mut self,
        disk: &Disk,
        bytes: &Path,
        partitions: &[Partition],
        at: &Path,
    ) -> Result<Mapped, DiskError> {
        for root in partitions.iter().filter(|p| p.filesystem.as_ref().is_some_and(plan::is_mountable)) {
            let before = self.journal.entries().len();
            // Read-only while searching: nothing is written to partitions other than root.
            let look = plan::partition(bytes, root, at, true);
            let found = self
                .perform_all(disk.id, &look, None)
                .ok()
                .and_then(|()| mounts::read_inside(at, Path::new("/etc/fstab"), fstab::MAX_BYTES));
            let Some(text) = found else {
                self.undo_from(before)?;
                continue;
            };
            if !disk.readonly {
                self.undo_from(before)?;
                self.perform_all(disk.id, &plan::partition(bytes, root, at, false), None)?;
            }
            let mut kinds = Vec::new();
            for entry in fstab::parse(&text) {
                let inside = mounts::directory_inside(at, &entry.at);
                let (Some(partition), Some(inside)) = (plan::named(partitions, &entry), inside) else {
                    self.notes.push(format!(
                        "disk {}: nothing to mount at {}, which its fstab lists",
                        disk.id,
                        entry.at.display()
                    ));
                    continue;
                };
                self.perform_all(disk.id, &plan::partition(bytes, partition, &inside, disk.readonly), None)?;
                kinds.extend(partition.filesystem.as_ref().map(|f| f.kind.clone()));
            }
            let filesystem = root.filesystem.as_ref().map(|f| f.kind.clone()).unwrap_or_default();
            return Ok(Mapped { at: at.to_owned(), filesystem, inside: kinds });
        }
        Err(PlanError::NoRoot(disk.id).into())
    }

    /// Undoes all steps of a disk.
    ///
    /// # Errors
    /// [`DiskError::Undo`] with every error; steps that could not be undone stay in the journal.
    pub fn unmap(&mut self, disk: DiskId) -> Result<(), DiskError> {
        self.undo_where(|_, entry| entry.disk == disk)
    }
    /// Undoes everything.
    ///
    /// # Errors
    /// As [`Self::unmap`].
    pub fn unmap_all(&mut self) -> Result<(), DiskError> {
        self.undo_where(|_, _| true)
    }
    fn undo_from(&mut self, index: usize) -> Result<(), DiskError> {
        self.undo_where(|i, _| i >= index)
    }

    fn undo_where(
        &mut self,
        chosen: impl Fn(usize, &super::journal::Entry) -> bool,
    ) -> Result<(), DiskError> {
        let mut errors = Vec::new();
        let mut undone = Vec::new();
        for (index, entry) in self.journal.entries().iter().enumerate() {
            if let (true, Undo::Unmount { at }) = (chosen(index, entry), &entry.undo)
                && let Err(error) = mounts::unbrace(at)
            {
                errors.push(stead_os::chain(&error));
            }
        }
        for (index, entry) in self.journal.entries().iter().enumerate().rev() {
            if chosen(index, entry) {
                match undo(&entry.undo) {
                    Ok(()) => undone.push(entry.clone()),
                    Err(error) => errors.push(stead_os::chain(&error)),
                }
            }
        }
        if !undone.is_empty() {
            self.journal.retain(|entry| !undone.contains(entry))?;
        }
        if errors.is_empty() { Ok(()) } else { Err(DiskError::Undo(errors)) }
    }

    /// The journal's undos of a disk.
    pub(super) fn undos(&self, disk: DiskId) -> impl Iterator<Item = &Undo> {
        self.journal.entries().iter().filter(move |e| e.disk == disk).map(|e| &e.undo)
    }

    fn perform_all(
        &mut self,
        disk: DiskId,
        steps: &[Step],
        device: Option<PathBuf>,
    ) -> Result<(), DiskError> {
        let mut device = device.map(Device::Path);
        for step in steps {
            if let Some(made) = self.perform(disk, step, device.as_ref())? {
                device = Some(made);
            }
        }
        Ok(())
    }

    /// Executes a step on `device`, the result of an earlier step; returns the device that this step makes.
    fn perform(
        &mut self,
        disk: DiskId,
        step: &Step,
        device: Option<&Device>,
    ) -> Result<Option<Device>, DiskError> {
        (self.observer)(disk, step);
        let need = || {
            let device = device.map(Device::path);
            device.ok_or_else(|| DiskError::Unexpected(format!("disk {disk} has no device to work on")))
        };
        match step {
            Step::Export { image, at, pidfile, control, cache, readonly } => {
                self.journal.add(disk, Undo::EndExport { pidfile: pidfile.clone(), at: at.clone() })?;
                export::begin(image, at, pidfile, control, cache.as_ref(), *readonly)?;
                Ok(Some(Device::Path(at.clone())))
            }
            Step::Nbd { image, device, cache, readonly } => {
                self.journal
                    .add(disk, Undo::DisconnectNbd { device: device.clone(), image: image.clone() })?;
                nbd::connect(image, device, cache.as_ref(), *readonly)?;
                Ok(Some(Device::Path(device.clone())))
            }
            Step::Rbd { image, device, user, conf, readonly } => {
                self.journal.add(disk, Undo::UnmapRbd { image: image.clone() })?;
                let device =
                    nbd::map_rbd(image, device.as_deref(), user.as_deref(), conf.as_deref(), *readonly)?;
                Ok(Some(Device::Path(device)))
            }
            Step::Loop { window, readonly } => {
                let offset_bytes = window.part.map_or(0, |(offset, _)| offset);
                self.journal.add(disk, Undo::DetachLoop { bytes: window.bytes.clone(), offset_bytes })?;
                Ok(Some(Device::Loop(attach(window, *readonly)?)))
            }
            Step::Format { filesystem } => {
                filesystem::make(filesystem, need()?)?;
                Ok(None)
            }
            Step::Prepare { filesystem, grow } => {
                let note = filesystem::prepare(filesystem, need()?, *grow)?;
                self.notes.extend(note.map(|note| format!("disk {disk} {note}")));
                Ok(None)
            }
            Step::Mount { filesystem, at, readonly } => {
                let path = need()?;
                if !at.exists() {
                    self.journal.add(disk, Undo::RemoveDirectory { path: at.clone() })?;
                    fs::create_dir_all(at).at("make", at)?;
                }
                self.journal.add(disk, Undo::Unmount { at: at.clone() })?;
                mounts::attach(path, filesystem, at, *readonly)?;
                if let Some(Device::Loop(device)) = device {
                    // From now on the kernel detaches it with its mount.
                    device.release()?;
                }
                Ok(None)
            }
            Step::Grow { filesystem, at } => {
                filesystem::grow(filesystem, at)?;
                Ok(None)
            }
        }
    }
}

fn kind_of(steps: &[Step]) -> String {
    let mounted = steps.iter().find_map(|s| match s {
        Step::Mount { filesystem, .. } => Some(filesystem.clone()),
        _ => None,
    });
    mounted.unwrap_or_default()
}

/// What a step works on.
enum Device {
    /// A device or a file by its path.
    Path(PathBuf),
    /// Held open until it is mounted: nobody else can detach it meanwhile and take its number for another file.
    Loop(LoopDevice),
}

impl Device {
    fn path(&self) -> &Path {
        match self {
            Self::Path(path) => path,
            Self::Loop(device) => device.path(),
        }
    }
}

/// Attaches a window to a free loop device.
fn attach(window: &Window, read_only: bool) -> Result<LoopDevice, DiskError> {
    let (offset_bytes, limit_bytes) = window.part.unwrap_or_default();
    // Without autoclear yet: a filesystem may be made on it before it is mounted.
    let options = Options { read_only, offset_bytes, limit_bytes, ..Options::default() };
    Ok(LoopDevice::attach(&window.bytes, &options)?)
}

/// Detaches the loop devices of a file at an offset. If the file is gone, they cannot be found: then they end with
/// their mounts.
fn detach(bytes: &Path, offset_bytes: u64) -> Result<(), DiskError> {
    if !bytes.exists() {
        return Ok(());
    }
    for attached in loops::find(bytes)?.iter().filter(|a| a.offset_bytes == offset_bytes) {
        // A device that is already gone is fine.
        let _ = attached.release();
    }
    Ok(())
}

/// Undo is idempotent: the journal is written before a step is done, so the step may never have run.
fn undo(undo: &Undo) -> Result<(), DiskError> {
    match undo {
        Undo::EndExport { pidfile, at } => export::end(pidfile, at),
        Undo::DisconnectNbd { device, image } => nbd::disconnect(device, image),
        Undo::UnmapRbd { image } => nbd::unmap_rbd(image),
        Undo::DetachLoop { bytes, offset_bytes } => detach(bytes, *offset_bytes),
        Undo::Unmount { at } => mounts::detach(at),
        Undo::RemoveDirectory { path } => match fs::remove_dir(path) {
            // Not empty: it is used for something else.
            Err(e) if !matches!(e.raw_os_error(), Some(2 | 39)) => {
                Err(PathError::new("remove", path)(e).into())
            }
            _ => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_never_ran_can_be_undone() {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = dir.path().join("nowhere");
        let undos = [
            Undo::UnmapRbd { image: "one/one-7-54-0-of-no-cluster".into() },
            Undo::DisconnectNbd { device: "/dev/nbd255".into(), image: nowhere.clone() },
            Undo::DetachLoop { bytes: nowhere.clone(), offset_bytes: 0 },
            Undo::EndExport { pidfile: nowhere.clone(), at: nowhere.clone() },
            Undo::Unmount { at: nowhere.clone() },
            Undo::RemoveDirectory { path: nowhere },
        ];
        for step in undos {
            assert!(undo(&step).is_ok(), "{step:?}");
        }
    }
}
