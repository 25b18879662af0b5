//! The image store: blobs by digest, image names pointing at manifests, a cache of build results by their inputs.
//!
//! ```text
//! DIR/blobs/sha256/<hex>    every artifact and manifest, read-only
//! DIR/images/<name>         digest of the image's manifest, one line
//! DIR/roots/<name>          cache keys its last build used, one a line: gc keeps them
//! DIR/cache/<hex>.json      result of a build step, by the hash of its inputs
//! DIR/stat/<hex>.json       digests of source files by what stat says of them
//! DIR/tmp/<random>/         work in progress, each locked by its owner
//! DIR/lock                  shared by builds, exclusive for gc
//! DIR/locks/<key>           one build of a thing at a time
//! ```
//! A blob appears only when complete: written below `tmp`, synced, renamed. Does not know how blobs are made.

use crate::{
    digest::{self, HashWriter},
    error::{ImageError, IoContext, Result},
};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};
use stead_model::{Artifact, Bytes, Digest, ImageName, Manifest};
use stead_os::mountinfo;

/// The largest manifest, pointer or cache entry that is read, in bytes: a manifest lists a few hundred packages.
const MAX_JSON_BYTES: u64 = 16 << 20;
/// Age after which a temporary file is removed: its writer renames it within milliseconds, or is dead.
const STALE_FILE: std::time::Duration = std::time::Duration::from_secs(3600);

/// An open store.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

/// One image, as `list` returns it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageSummary {
    /// Its name.
    pub name: ImageName,
    /// Digest of its manifest.
    pub digest: Digest,
    /// Its manifest.
    pub manifest: Manifest,
    /// Bytes of all its artifacts, each counted once.
    pub size: Bytes,
}

/// Result of a garbage collection.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct GcReport {
    /// Blobs removed.
    pub blobs: u64,
    /// Their bytes.
    pub freed: Bytes,
    /// Cache entries removed.
    pub cache_entries: u64,
    /// Blobs kept.
    pub kept: u64,
}

/// What `verify` found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Number of artifacts that match their digest.
    pub good: u64,
    /// Missing or damaged artifacts, one sentence each.
    pub bad: Vec<String>,
}

impl Store {
    /// Opens the store in `dir`, creates it if it is missing, and removes the remains of dead builds.
    ///
    /// # Errors
    /// The directory cannot be made or used.
    pub fn open(dir: &Path) -> Result<Self> {
        let dir = std::path::absolute(dir).at("resolve", dir)?;
        for sub in ["blobs/sha256", "images", "roots", "cache", "stat", "tmp", "locks"] {
            let path = dir.join(sub);
            fs::DirBuilder::new().recursive(true).mode(0o755).create(&path).at("make", &path)?;
        }
        let store = Self { dir };
        store.sweep()?;
        Ok(store)
    }

    /// The directory of artifacts: files named by the hexadecimal digits of their digest.
    pub fn blob_dir(&self) -> PathBuf {
        self.dir.join("blobs/sha256")
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of the blob with this digest.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    /// The manifest of an image.
    ///
    /// # Errors
    /// [`ImageError::NoImage`], or the store is damaged.
    pub fn manifest(&self, name: &ImageName) -> Result<(Digest, Manifest)> {
        let path = self.dir.join("images").join(name.as_str());
        let text = match read_small(&path) {
            Err(ImageError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(ImageError::NoImage { name: name.clone() });
            }
            other => other?,
        };
        let digest: Digest = text.trim().parse().map_err(|why| ImageError::Damaged {
            what: format!("{}: {why}; build the image again", path.display()),
        })?;
        let blob = self.blob(&digest);
        let json = read_small(&blob)?;
        if digest::of_bytes(json.as_bytes()) != digest {
            return Err(ImageError::Damaged {
                what: format!("the manifest of {name} does not match its digest"),
            });
        }
        let manifest = serde_json::from_str(&json).map_err(|e| ImageError::Damaged {
            what: format!("the manifest of {name} cannot be parsed: {e}"),
        })?;
        Ok((digest, manifest))
    }

    /// Every image, by name.
    pub fn list(&self) -> Result<Vec<ImageSummary>> {
        let mut out = Vec::new();
        for name in self.image_names()? {
            let (digest, manifest) = match self.manifest(&name) {
                Err(ImageError::NoImage { .. }) => continue,
                other => other?,
            };
            let size = artifacts(&manifest)
                .into_iter()
                .map(|(_, a)| (a.digest, a.size.0))
                .collect::<BTreeSet<_>>()
                .iter()
                .map(|(_, size)| size)
                .sum();
            out.push(ImageSummary { name, digest, manifest, size: Bytes(size) });
        }
        Ok(out)
    }

    fn image_names(&self) -> Result<Vec<ImageName>> {
        let mut names: Vec<ImageName> =
            self.entries("images")?.iter().filter_map(|n| n.parse().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// Names in one of the store's directories.
    fn entries(&self, sub: &str) -> Result<Vec<String>> {
        let dir = self.dir.join(sub);
        let mut out = Vec::new();
        for entry in fs::read_dir(&dir).at("list", &dir)? {
            if let Ok(name) = entry.at("list", &dir)?.file_name().into_string() {
                out.push(name);
            }
        }
        out.sort();
        Ok(out)
    }

    /// Removes an image's name. Its blobs stay until [`Store::gc`].
    ///
    /// # Errors
    /// [`ImageError::NoImage`].
    pub fn remove(&self, name: &ImageName) -> Result<()> {
        let path = self.dir.join("images").join(name.as_str());
        match fs::remove_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(ImageError::NoImage { name: name.clone() });
            }
            other => other.at("remove", &path)?,
        }
        let _ = fs::remove_file(self.dir.join("roots").join(name.as_str()));
        Ok(())
    }

    /// Removes every blob that no image, no cache entry of an image's last build, and nothing in `keep` (what clusters
    /// use: digests of layers, kernels, manifests) refers to. Waits for running builds to end.
    pub fn gc(&self, keep: &BTreeSet<Digest>) -> Result<GcReport> {
        let _alone = self.lock_file(&self.dir.join("lock"), FlockOperation::LockExclusive)?;
        let mut blobs = BTreeSet::new();
        let mut keys = BTreeSet::new();
        for image in self.list()? {
            blobs.extend(artifacts(&image.manifest).into_iter().map(|(_, a)| a.digest.hex().to_owned()));
            let roots = self.dir.join("roots").join(image.name.as_str());
            keys.extend(read_small(&roots).unwrap_or_default().lines().map(str::to_owned));
            blobs.insert(image.digest.hex().to_owned());
        }
        for digest in keep {
            blobs.insert(digest.hex().to_owned());
            // A manifest in use keeps what it lists, although no image name points to it any more.
            if let Ok(json) = read_small(&self.blob(digest))
                && let Ok(manifest) = serde_json::from_str::<Manifest>(&json)
            {
                blobs.extend(artifacts(&manifest).into_iter().map(|(_, a)| a.digest.hex().to_owned()));
            }
        }
        let mut report = GcReport::default();
        for name in self.entries("cache")? {
            let path = self.dir.join("cache").join(&name);
            let entry: Option<CacheFile> =
                read_small(&path).ok().and_then(|json| serde_json::from_str(&json).ok());
            let used = keys.contains(name.trim_end_matches(".json"));
            match entry {
                Some(entry) if used => blobs.extend(entry.blobs.iter().map(|d| d.hex().to_owned())),
                Some(entry)
                    if !entry.blobs.is_empty() && entry.blobs.iter().all(|d| blobs.contains(d.hex())) => {}
                _ => {
                    fs::remove_file(&path).at("remove", &path)?;
                    report.cache_entries += 1;
                }
            }
        }
        for name in self.entries("blobs/sha256")? {
            let path = self.dir.join("blobs/sha256").join(&name);
            if blobs.contains(&name) {
                report.kept += 1;
                continue;
            }
            report.freed.0 += fs::symlink_metadata(&path).map_or(0, |m| m.len());
            fs::remove_file(&path).at("remove", &path)?;
            report.blobs += 1;
        }
        for dir in ["stat", "locks"] {
            // `.tmp` is locked without the store's lock, so it may be held now.
            for name in self.entries(dir)?.iter().filter(|n| !n.starts_with('.')) {
                let _ = fs::remove_file(self.dir.join(dir).join(name));
            }
        }
        Ok(report)
    }

    /// Reads every artifact of an image and compares it with its digest.
    pub fn verify(&self, name: &ImageName) -> Result<VerifyReport> {
        let (digest, manifest) = self.manifest(name)?;
        let mut report = VerifyReport { digest, good: 0, bad: Vec::new() };
        for (what, artifact) in artifacts(&manifest) {
            match digest::of_file(&self.blob(&artifact.digest)) {
                Ok((found, _)) if found == artifact.digest => report.good += 1,
                Ok((found, len)) => report.bad.push(format!(
                    "{what}: has {len} bytes with digest {found} instead of {} bytes with {}",
                    artifact.size.0, artifact.digest
                )),
                Err(ImageError::Io { source, .. }) => {
                    report.bad.push(format!("{what}: {} {source}", artifact.digest))
                }
                Err(e) => return Err(e),
            }
        }
        Ok(report)
    }

    // ---- used by builds --------------------------------------------------------------------------------------------

    /// Lock held by a build, so that no collection runs meanwhile.
    pub(crate) fn share(&self) -> Result<File> {
        self.lock_file(&self.dir.join("lock"), FlockOperation::LockShared)
    }

    /// Lock held while the result with this key is made, so that it is made once.
    pub(crate) fn lock(&self, key: &str) -> Result<File> {
        self.lock_file(&self.dir.join("locks").join(key), FlockOperation::LockExclusive)
    }

    fn lock_file(&self, path: &Path, how: FlockOperation) -> Result<File> {
        let file = File::options().create(true).truncate(false).write(true).open(path).at("open", path)?;
        flock(&file, how).at("lock", path)?;
        Ok(file)
    }

    /// A directory for work in progress, removed when dropped, or by a later `open` when its owner died.
    pub(crate) fn scratch(&self) -> Result<Scratch> {
        let root = self.dir.join("tmp");
        // The sweeper holds the same lock: between its creation and its lock the directory would look abandoned.
        let _guard = self.lock_file(&self.dir.join("locks/.tmp"), FlockOperation::LockExclusive)?;
        let dir = tempfile::Builder::new()
            .prefix("w")
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in(&root)
            .at("make a directory in", &root)?
            .keep();
        let held = File::open(&dir).at("open", &dir)?;
        flock(&held, FlockOperation::LockExclusive).at("lock", &dir)?;
        Ok(Scratch { dir, _held: held })
    }

    /// Removes scratch directories whose owner is gone.
    fn sweep(&self) -> Result<()> {
        let tmp = self.dir.join("tmp");
        if fs::read_dir(&tmp).at("list", &tmp)?.next().is_none() {
            return Ok(());
        }
        let path = self.dir.join("locks/.tmp");
        let guard = File::options().create(true).truncate(false).write(true).open(&path).at("open", &path)?;
        if flock(&guard, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(());
        }
        for name in self.entries("tmp")? {
            let dir = tmp.join(name);
            let Ok(meta) = fs::symlink_metadata(&dir) else { continue };
            if !meta.is_dir() {
                // A file that another process is writing exists only for a moment.
                let old = meta.modified().ok().and_then(|t| t.elapsed().ok()).is_some_and(|a| a > STALE_FILE);
                if old {
                    let _ = fs::remove_file(&dir);
                }
                continue;
            }
            let Ok(held) = File::open(&dir) else { continue };
            if flock(&held, FlockOperation::NonBlockingLockExclusive).is_ok() {
                remove_tree(&dir)?;
            }
        }
        Ok(())
    }

    /// Moves a finished file from a scratch directory into the store.
    pub(crate) fn adopt(&self, file: &Path) -> Result<Artifact> {
        let (digest, size) = digest::of_file(file)?;
        let target = self.blob(&digest);
        let handle = File::open(file).at("open", file)?;
        handle.set_permissions(fs::Permissions::from_mode(0o444)).at("change the mode of", file)?;
        if fs::symlink_metadata(&target).is_ok_and(|m| m.len() == size) {
            fs::remove_file(file).at("remove", file)?;
        } else {
            handle.sync_all().at("sync", file)?;
            fs::rename(file, &target).at("put into the store", file)?;
            let blobs = self.dir.join("blobs/sha256");
            stead_files::sync_dir(&blobs).at("sync", blobs)?;
        }
        Ok(Artifact { digest, size: Bytes(size) })
    }

    /// Stores bytes.
    pub(crate) fn put(&self, bytes: &[u8]) -> Result<Artifact> {
        let digest = digest::of_bytes(bytes);
        let size = bytes.len() as u64;
        let target = self.blob(&digest);
        if !fs::symlink_metadata(&target).is_ok_and(|m| m.len() == size) {
            write_atomically(&self.dir.join("tmp"), &target, bytes, 0o444)?;
        }
        Ok(Artifact { digest, size: Bytes(size) })
    }

    /// Copies a file into the store.
    pub(crate) fn copy_in(&self, source: &Path, scratch: &Scratch) -> Result<Artifact> {
        let mut from = File::open(source).at("open", source)?;
        let path = scratch.path("copy");
        let to = File::create(&path).at("make", &path)?;
        let mut to = HashWriter::new(to);
        io::copy(&mut from, &mut to).at("copy", source)?;
        drop(to.finish());
        self.adopt(&path)
    }

    /// The result of a step, if it is cached and all its blobs exist.
    pub(crate) fn cached<T: DeserializeOwned>(&self, key: &Digest) -> Option<T> {
        let json = read_small(&self.cache_path(key)).ok()?;
        let entry: CacheFile = serde_json::from_str(&json).ok()?;
        if !entry.blobs.iter().all(|d| self.blob(d).exists()) {
            return None;
        }
        serde_json::from_value(entry.result).ok()
    }

    /// Caches the result of a step and the blobs it needs.
    pub(crate) fn remember<T: Serialize>(&self, key: &Digest, blobs: Vec<Digest>, result: &T) -> Result<()> {
        let result = serde_json::to_value(result).expect("results are plain data");
        let json = serde_json::to_vec(&CacheFile { blobs, result }).expect("plain data");
        write_atomically(&self.dir.join("tmp"), &self.cache_path(key), &json, 0o644)
    }

    fn cache_path(&self, key: &Digest) -> PathBuf {
        self.dir.join("cache").join(format!("{}.json", key.hex()))
    }

    /// Stores a manifest and points the image's name to it.
    pub(crate) fn publish(&self, manifest: &Manifest, keys: &[Digest]) -> Result<Digest> {
        let json = serde_json::to_vec_pretty(manifest).expect("plain data");
        let artifact = self.put(&json)?;
        let tmp = self.dir.join("tmp");
        let name = manifest.name.as_str();
        let roots: String = keys.iter().map(|k| format!("{}\n", k.hex())).collect();
        write_if_changed(&tmp, &self.dir.join("roots").join(name), roots.as_bytes())?;
        let pointer = format!("{}\n", artifact.digest);
        write_if_changed(&tmp, &self.dir.join("images").join(name), pointer.as_bytes())?;
        Ok(artifact.digest)
    }
}

/// A cached result.
#[derive(Serialize, Deserialize)]
struct CacheFile {
    blobs: Vec<Digest>,
    result: serde_json::Value,
}

/// Every artifact of a manifest, with its description.
pub fn artifacts(manifest: &Manifest) -> Vec<(String, Artifact)> {
    let mut out: Vec<(String, Artifact)> = manifest
        .layers
        .iter()
        .map(|l| {
            let artifact = Artifact { digest: l.artifact.digest.clone(), size: l.artifact.size };
            (format!("layer {}", l.name), artifact)
        })
        .collect();
    if let Some(boot) = &manifest.boot {
        let parts = [("vmlinux", &boot.vmlinux), ("bzimage", &boot.bzimage), ("initrd", &boot.initrd)];
        out.extend(parts.into_iter().filter_map(|(w, a)| Some((w.to_owned(), a.clone()?))));
        out.push(("stead-node".to_owned(), boot.stead_node.clone()));
    }
    out.extend(manifest.container.iter().map(|c| ("container".to_owned(), c.archive.clone())));
    if let Some(instance) = &manifest.instance {
        out.push(("metadata".to_owned(), instance.metadata.clone()));
        out.push(("rootfs".to_owned(), instance.rootfs.clone()));
        out.extend(instance.unified.iter().map(|u| ("unified".to_owned(), u.clone())));
    }
    out
}

/// A directory for work in progress.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: PathBuf,
    _held: File,
}
impl Scratch {
    /// The directory itself.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
    /// A path in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}
impl Drop for Scratch {
    fn drop(&mut self) {
        // If this fails, the next open sweeps it.
        let _ = remove_tree(&self.dir);
    }
}

/// Removes a tree without ever leaving its filesystem: a killed bootstrap may have left /proc or /sys mounted in it,
/// which are unmounted first.
fn remove_tree(dir: &Path) -> Result<()> {
    // Without /proc the mounts are unknown; the check below finds them, and nothing is removed.
    let mounts = mountinfo::read().unwrap_or_default();
    let mut below: Vec<PathBuf> = mounts.into_iter().map(|m| m.at).filter(|at| at.starts_with(dir)).collect();
    // Later mounts cover earlier ones, so they are unmounted first.
    below.reverse();
    below.sort_by_key(|p| std::cmp::Reverse(p.components().count()));
    for mount in below {
        rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH).at("unmount", &mount)?;
    }
    let device = fs::symlink_metadata(dir).at("look at", dir)?.dev();
    refuse_other_devices(dir, device)?;
    fs::remove_dir_all(dir).at("remove", dir)
}

fn refuse_other_devices(dir: &Path, device: u64) -> Result<()> {
    for entry in fs::read_dir(dir).at("list", dir)? {
        let entry = entry.at("list", dir)?;
        let meta = entry.metadata().at("look at", entry.path())?;
        if meta.is_dir() {
            if meta.dev() != device {
                let source = io::Error::other("another filesystem is mounted there");
                return Err(ImageError::Io { operation: "remove", path: entry.path(), source });
            }
            refuse_other_devices(&entry.path(), device)?;
        }
    }
    Ok(())
}

pub(crate) fn read_small(path: &Path) -> Result<String> {
    let mut text = String::new();
    let file = File::open(path).at("open", path)?;
    file.take(MAX_JSON_BYTES).read_to_string(&mut text).at("read", path)?;
    Ok(text)
}

fn write_if_changed(tmp: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    write_atomically(tmp, path, bytes, 0o644)
}

pub(crate) fn write_atomically(tmp: &Path, path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    stead_files::write_by_way_of(tmp, path, bytes, mode, stead_files::Durability::Durable)
        .at("put into the store", path)
}
