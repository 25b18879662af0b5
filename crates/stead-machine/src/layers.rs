//! Squashfs layers mounted on the host, once for all namespace machines of a cluster.
//!
//! Owns the mount points under one directory. Does not own the layer files, nor how nodes stack them.

use crate::{
    TeardownError,
    files::{self, Lock},
    teardown::Failures,
};
use rustix::{
    io::Errno,
    mount::{MountFlags, UnmountFlags},
};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};
use stead_os::{LoopDevice, PathError, loops::Options, mountinfo};

/// A layer could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The file cannot be read.
    #[error("cannot read layer {}", .path.display())]
    Open {
        /// The layer.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The directory for mount points cannot be used.
    #[error("cannot use directory {} for layers", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No loop device could be attached to it.
    #[error(transparent)]
    Loop(PathError),
    /// The mount table cannot be read.
    #[error(transparent)]
    Mounts(PathError),
    /// The kernel does not mount it.
    #[error("cannot mount layer {} at {}", .path.display(), .at.display())]
    Mount {
        /// The layer.
        path: PathBuf,
        /// Mount point.
        at: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be unmounted.
    #[error("cannot unmount layer at {}", .at.display())]
    Unmount {
        /// Mount point.
        at: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Mounts each layer at `<dir>/<key>` unless it is mounted there, and returns the mount points in order. The key is the
/// digest in a content-addressed file's name, or else a digest of the file's identity, so that a replaced file is a new
/// layer.
///
/// # Errors
/// [`LayerError`] about the first layer that cannot be mounted; those before it stay mounted.
pub fn mount_all(dir: &Path, layers: &[PathBuf]) -> Result<Vec<PathBuf>, LayerError> {
    let directory = |source| LayerError::Directory { path: dir.to_owned(), source };
    files::private_dir(dir).map_err(directory)?;
    let dir = &dir.canonicalize().map_err(directory)?;
    let points = layers
        .iter()
        .map(|layer| Ok(dir.join(key(layer)?)))
        .collect::<io::Result<Vec<PathBuf>>>()
        .map_err(directory);
    let points = match points {
        Ok(points) => points,
        Err(_) => {
            // The error names the layer that cannot be read.
            for path in layers {
                fs::File::open(path).map_err(|source| LayerError::Open { path: path.clone(), source })?;
            }
            points?
        }
    };
    // Every start of a machine comes here; most find all layers mounted and need no lock.
    if mounted_under(dir)?.is_superset(&points.iter().cloned().collect()) {
        return Ok(points);
    }
    let _lock = Lock::wait(&dir.join("lock")).map_err(directory)?;
    let mounted = mounted_under(dir)?;
    for (path, at) in layers.iter().zip(&points).filter(|(_, at)| !mounted.contains(*at)) {
        mount(path, at)?;
    }
    Ok(points)
}

fn mount(path: &Path, at: &Path) -> Result<(), LayerError> {
    let failed = |source| LayerError::Mount { path: path.to_owned(), at: at.to_owned(), source };
    let options = Options { read_only: true, autoclear: true, ..Options::default() };
    let device = LoopDevice::attach(path, &options).map_err(LayerError::Loop)?;
    files::private_dir(at).map_err(failed)?;
    // The flags are for processes of the host; the overlay of a node has its own.
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount(device.path(), at, "squashfs", flags, None).map_err(|e| failed(e.into()))
}

/// Unmounts what is mounted under `dir`, except the given layers, which running machines use.
///
/// # Errors
/// Every mount point that could not be unmounted.
pub fn prune(dir: &Path, keep: &[PathBuf]) -> Result<(), TeardownError> {
    let keep: BTreeSet<String> = keep.iter().filter_map(|layer| key(layer).ok()).collect();
    unmount(dir, |name| !keep.contains(name))
}

/// Unmounts everything mounted under `dir` and removes the mount points. Idempotent.
///
/// # Errors
/// Every mount point that could not be unmounted.
pub fn unmount_all(dir: &Path) -> Result<(), TeardownError> {
    unmount(dir, |_| true)
}

fn unmount(dir: &Path, goes: impl Fn(&str) -> bool) -> Result<(), TeardownError> {
    let mut failures = Failures::default();
    let Ok(dir) = dir.canonicalize() else { return Ok(()) };
    let directory = |source| LayerError::Directory { path: dir.clone(), source };
    let locked = Lock::wait(&dir.join("lock")).map_err(directory);
    let mounts = locked.and_then(|lock| Ok((lock, mountinfo::read().map_err(LayerError::Mounts)?)));
    match mounts {
        Ok((_lock, mounts)) => {
            let points: Vec<PathBuf> =
                mounts.into_iter().rev().map(|m| m.at).filter(|at| at.parent() == Some(&*dir)).collect();
            for at in points.iter().filter(|at| goes(&name(at))) {
                failures.note(detach(at).map_err(|source| LayerError::Unmount { at: at.clone(), source }));
            }
        }
        Err(e) => failures.note(Err(e)),
    }
    match fs::read_dir(&dir) {
        Ok(entries) => {
            for at in entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.is_dir() && goes(&name(p))) {
                failures.note(fs::remove_dir(&at).map_err(|source| LayerError::Unmount { at, source }));
            }
        }
        Err(e) => failures.note(Err(directory(e))),
    }
    failures.into_result()
}

/// Unmounts a mount even while a shell is in it: it disappears at once, and is released when the shell leaves.
fn detach(at: &Path) -> io::Result<()> {
    match rustix::mount::unmount(at, UnmountFlags::NOFOLLOW) {
        Err(Errno::BUSY) => Ok(rustix::mount::unmount(at, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)?),
        Err(Errno::INVAL) => Ok(()),
        other => Ok(other?),
    }
}

fn name(at: &Path) -> String {
    at.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn mounted_under(dir: &Path) -> Result<BTreeSet<PathBuf>, LayerError> {
    Ok(mountinfo::read()
        .map_err(LayerError::Mounts)?
        .into_iter()
        .filter(|m| m.filesystem == "squashfs" && m.at.parent() == Some(dir))
        .map(|m| m.at)
        .collect())
}

/// Name of a layer's mount point.
fn key(layer: &Path) -> io::Result<String> {
    let stem = layer.file_stem().unwrap_or_default().to_string_lossy();
    let hex = stem.rsplit(['-', '_', ':', '.']).next().unwrap_or_default();
    if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        // Half of a SHA-256 is unique enough, and the mount options of many layers fit in a page.
        return Ok(hex[..32].to_ascii_lowercase());
    }
    let meta = fs::metadata(layer)?;
    let identity = (
        meta.dev(),
        meta.ino(),
        meta.size(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
    );
    let digest = Sha256::digest(format!("{identity:?}"));
    Ok(digest[..16].iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_is_the_digest_or_the_identity() {
        let hex = "0123456789abcdef".repeat(4);
        assert_eq!(key(Path::new(&format!("/store/{hex}.squashfs"))).unwrap(), hex[..32]);
        assert_eq!(key(Path::new(&format!("/store/sha256-{hex}"))).unwrap(), hex[..32]);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("root.squashfs");
        fs::write(&file, "a").unwrap();
        let before = key(&file).unwrap();
        assert_eq!(key(&file).unwrap(), before);
        fs::remove_file(&file).unwrap();
        fs::write(&file, "ab").unwrap();
        assert_ne!(key(&file).unwrap(), before);
        assert!(key(&dir.path().join("none")).is_err());
    }

    #[test]
    fn a_missing_layer_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = mount_all(dir.path(), &[dir.path().join("gone")]).unwrap_err();
        assert!(error.to_string().starts_with("cannot read layer") && error.to_string().ends_with("gone"));
    }
}
