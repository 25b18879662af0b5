//! Executes the steps of a boot plan in order; makes no choices.

use super::{BootPlan, Device, Step};
use crate::{disks, modules, mounts::mount_filesystem, sysctl};
use rustix::{
    fs::{CWD, FileType, Mode, makedev, mknodat},
    io::Errno,
    mount::{
        MountFlags, MountPropagationFlags, UnmountFlags, mount_bind, mount_bind_recursive, mount_change,
        mount_move, mount_remount, unmount,
    },
    process::{chdir, chroot, pivot_root},
};
use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// A step that failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The kernel refused.
    #[error("{what}")]
    System {
        /// The step, as a fragment.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The data disk cannot be used.
    #[error("data disk")]
    Disk(#[source] disks::DiskError),
}

/// Executes every step.
///
/// # Errors
/// The first step that failed and was not optional. `warn` gets the failures of optional ones.
pub fn apply(plan: &BootPlan, mut warn: impl FnMut(String)) -> Result<(), StepError> {
    for planned in &plan.0 {
        match step(&planned.step, &mut warn) {
            Err(e) if planned.optional => warn(crate::chain(&e)),
            result => result?,
        }
    }
    Ok(())
}

fn step(step: &Step, warn: &mut dyn FnMut(String)) -> Result<(), StepError> {
    let done = match step {
        Step::MakePrivate => {
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).map_err(Into::into)
        }
        Step::Private { path } => fs::DirBuilder::new().recursive(true).mode(0o700).create(path),
        Step::Directory { path } => fs::create_dir_all(path),
        Step::Enter { path } => chdir(path).map_err(Into::into),
        Step::Mount { source, target, filesystem, flags, data } => {
            mount_filesystem(source, target, filesystem, flags, data)
        }
        Step::Bind { source, target } => mount_bind_recursive(source, target).map_err(Into::into),
        Step::Expose { source, target } => match target.exists() {
            true => mount_bind(source, target).map_err(Into::into),
            false => Ok(()),
        },
        Step::ReadOnly { path } => read_only(path),
        Step::Shadow { path, copy } => sysctl::shadow(path, copy, None),
        Step::File { path } => {
            fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map(|_| ())
        }
        Step::Node { folder, device } => make_node(folder, device),
        Step::Symlink { path, to } => make_link(path, to),
        Step::DataDisk { device, target, tools } => {
            return disks::prepare_root_disk(device, target, tools, warn).map_err(StepError::Disk);
        }
        Step::Unmount { path } => unmount(path, UnmountFlags::DETACH).map_err(Into::into),
        Step::InstallSelf { path } => install_self(path),
        Step::FreeInitrd => free_initrd(),
        Step::PivotRoot { root } => pivot(root),
        Step::MoveRoot { root } => move_root(root),
    };
    done.map_err(|source| StepError::System { what: describe(step), source })
}

/// The step as a lowercase fragment, for errors.
fn describe(step: &Step) -> String {
    match step {
        Step::MakePrivate => "make mounts private".into(),
        Step::Private { path } | Step::Directory { path } => format!("make directory {}", path.display()),
        Step::Enter { path } => format!("enter {}", path.display()),
        Step::Mount { source, target, filesystem, .. } => {
            format!("mount {filesystem} {source} on {}", target.display())
        }
        Step::Bind { source, target } | Step::Expose { source, target } => {
            format!("bind {} on {}", source.display(), target.display())
        }
        Step::ReadOnly { path } => format!("make {} read-only", path.display()),
        Step::Shadow { path, .. } => format!("put a copy in the place of {}", path.display()),
        Step::File { path } => format!("make {}", path.display()),
        Step::Node { folder, device } => format!("make device {}/{}", folder.display(), device.name),
        Step::Symlink { path, .. } => format!("link {}", path.display()),
        Step::DataDisk { device, .. } => format!("prepare data disk {}", device.display()),
        Step::Unmount { path } => format!("unmount {}", path.display()),
        Step::InstallSelf { path } => format!("put stead-node at {}", path.display()),
        Step::FreeInitrd => "free the initrd".into(),
        Step::PivotRoot { root } => format!("pivot the root to {}", root.display()),
        Step::MoveRoot { root } => format!("move the root to {}", root.display()),
    }
}

/// What is not there needs nothing: kernels differ. A mount is changed itself, so that what is mounted below it stays.
fn read_only(path: &Path) -> io::Result<()> {
    if !path.try_exists()? {
        return Ok(());
    }
    let flags =
        MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    match mount_remount(path, flags, c"") {
        // It is no mount yet.
        Err(Errno::INVAL) => {
            mount_bind(path, path)?;
            Ok(mount_remount(path, flags, c"")?)
        }
        done => Ok(done?),
    }
}

fn make_node(folder: &Path, device: &Device) -> io::Result<()> {
    let path = folder.join(&device.name);
    let kind = if device.block { FileType::BlockDevice } else { FileType::CharacterDevice };
    mknodat(CWD, &path, kind, Mode::from_raw_mode(device.mode), makedev(device.major, device.minor))?;
    // mknod applies the umask.
    fs::set_permissions(&path, fs::Permissions::from_mode(device.mode))
}

/// devtmpfs already has some of the links' names.
fn make_link(path: &Path, to: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path).is_ok() {
        fs::remove_file(path)?;
    }
    std::os::unix::fs::symlink(to, path)
}

fn install_self(path: &Path) -> io::Result<()> {
    if show_self(path).is_ok() {
        return Ok(());
    }
    fs::copy("/proc/self/exe", path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

fn show_self(path: &Path) -> io::Result<()> {
    let program = fs::read_link("/proc/self/exe")?;
    fs::File::create(path)?;
    mount_bind(&program, path)?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    let sealed = mount_remount(path, flags, c"");
    if sealed.is_err() {
        // Never left writable, because it is the host's file.
        unmount(path, UnmountFlags::DETACH)?;
    }
    Ok(sealed?)
}

fn free_initrd() -> io::Result<()> {
    let order = fs::read_to_string(modules::ORDER).unwrap_or_default();
    for path in modules::parse_order(&order) {
        let _ = fs::remove_file(path);
    }
    for path in [modules::ORDER, "/init"] {
        let _ = fs::remove_file(path);
    }
    Ok(())
}

/// With the same directory as both arguments, the old root is mounted over the new one and then detached
/// (pivot_root(2), "pivot_root(".", ".")").
fn pivot(root: &Path) -> io::Result<()> {
    chdir(root)?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(chdir("/")?)
}

fn move_root(root: &Path) -> io::Result<()> {
    chdir(root)?;
    mount_move(".", "/")?;
    chroot(".")?;
    Ok(chdir("/")?)
}
