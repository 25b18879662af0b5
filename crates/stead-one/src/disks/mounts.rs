//! Mounting and unmounting.

use super::DiskError;
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
    mount::{MountFlags, UnmountFlags, mount, unmount},
};
use std::{
    fs::{self, File},
    io::{self, Read},
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};
use stead_os::mountinfo::{self, Mount};

/// How long a stopped instance may keep its mounts busy.
const BUSY_PATIENCE: Duration = Duration::from_secs(10);

/// Mounts a filesystem. Its content is not trusted, so device nodes on it are disabled.
pub(super) fn attach(device: &Path, filesystem: &str, at: &Path, readonly: bool) -> Result<(), DiskError> {
    let mut flags = MountFlags::NODEV;
    if readonly {
        flags |= MountFlags::RDONLY;
    }
    // Clones of an image have the same UUID, which XFS refuses otherwise.
    let data = if filesystem == "xfs" { Some(c"nouuid") } else { None };
    mount(device, at, filesystem, flags, data).map_err(|e| DiskError::Mount {
        device: device.to_owned(),
        filesystem: filesystem.to_owned(),
        at: at.to_owned(),
        source: e.into(),
    })
}

/// Mounts the filesystem on `at` there a second time, unless it already is.
pub(super) fn brace(at: &Path) -> Result<(), DiskError> {
    if mountinfo::read()?.iter().filter(|m| m.at == at).count() != 1 {
        return Ok(());
    }
    rustix::mount::mount_bind(at, at).map_err(|e| DiskError::Mount {
        device: at.to_owned(),
        filesystem: "bind".to_owned(),
        at: at.to_owned(),
        source: e.into(),
    })
}

/// Removes the mount of [`brace`], which may hide other mounts.
pub(super) fn unbrace(at: &Path) -> Result<(), DiskError> {
    while mountinfo::read()?.iter().filter(|m| m.at == at).count() > 1 {
        unmount(at, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
            .map_err(|e| DiskError::Unmount { at: at.to_owned(), source: e.into() })?;
    }
    Ok(())
}

/// Unmounts everything that is mounted on `at`, in every layer; no mount is not an error. A busy mount gets some time
/// and is then detached: a stray process of the host must not keep a VM from stopping.
pub(super) fn detach(at: &Path) -> Result<(), DiskError> {
    let deadline = Instant::now() + BUSY_PATIENCE;
    while is_mountpoint(at)? {
        match unmount(at, UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(rustix::io::Errno::BUSY) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(100));
            }
            Err(rustix::io::Errno::BUSY) => {
                unmount(at, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
                    .map_err(|e| DiskError::Unmount { at: at.to_owned(), source: e.into() })?;
            }
            Err(e) => return Err(DiskError::Unmount { at: at.to_owned(), source: e.into() }),
        }
    }
    Ok(())
}

/// Whether something is mounted exactly there.
pub(super) fn is_mountpoint(at: &Path) -> Result<bool, DiskError> {
    Ok(mountinfo::read()?.iter().any(|m| m.at == at))
}

/// The uppermost mount on exactly that path.
pub(super) fn uppermost(at: &Path) -> Result<Option<Mount>, DiskError> {
    Ok(mountinfo::read()?.into_iter().rev().find(|m| m.at == at))
}

/// Opens a path with `root` as its root: links of the image cannot lead out of it.
fn open_inside(root: &Path, inside: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let directory = rustix::fs::openat(
        CWD,
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
    )?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(&directory, inside, flags | OFlags::CLOEXEC, Mode::empty(), resolve)?)
}

/// The first `limit` bytes of a regular file of an image; `None`: it does not exist.
pub(super) fn read_inside(root: &Path, inside: &Path, limit: usize) -> Option<String> {
    // Opening a FIFO would block.
    let fd = open_inside(root, inside, OFlags::RDONLY | OFlags::NONBLOCK).ok()?;
    let file = File::from(fd);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(limit as u64).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The real path of a directory of an image, without following links out of it; `None`: it does not exist.
pub(super) fn directory_inside(root: &Path, inside: &Path) -> Option<PathBuf> {
    let fd = open_inside(root, inside, OFlags::PATH | OFlags::DIRECTORY).ok()?;
    let path = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()?;
    path.starts_with(root).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_of_an_image_stay_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(root.join("etc/real"), "inside").unwrap();
        symlink("/etc/real", root.join("etc/fstab")).unwrap();
        symlink("/etc", root.join("boot")).unwrap();
        symlink("../../../../../../etc", root.join("up")).unwrap();
        assert_eq!(read_inside(&root, Path::new("/etc/fstab"), 100).as_deref(), Some("inside"));
        for link in ["/boot", "/up", "/../../etc"] {
            assert_eq!(directory_inside(&root, Path::new(link)), Some(root.join("etc")), "{link}");
        }
        assert_eq!(read_inside(&root, Path::new("/etc"), 100), None);
    }
}
