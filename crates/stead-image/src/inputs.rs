//! Digests of a build's inputs, files and trees, without reading files again that have not changed according to stat(2).
//!
//! A stored digest is used only when device, inode, size, modification and change time are all the same, and only when
//! both times were well in the past when the file was read: otherwise a change within the clock's resolution would go
//! unnoticed.

use crate::{
    digest::{self, Key},
    error::{ImageError, IoContext, Result},
    store::{self, Store},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use stead_model::Digest;

/// Coarser than the time stamps of every file system in use (FAT: 2 s).
const GRAIN: Duration = Duration::from_secs(3);

/// A file's identity by stat(2); the change time cannot be set back by ordinary means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp(u64, u64, u64, i64, i64, i64, i64);

impl Stamp {
    fn of(m: &fs::Metadata) -> Self {
        Self(m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec())
    }
    fn settled(&self, now: SystemTime) -> bool {
        let newest = self.3.max(self.5);
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(newest).unwrap_or(0));
        now.duration_since(then).is_ok_and(|age| age > GRAIN)
    }
}

/// Stored digests of one set of sources.
#[derive(Debug)]
pub struct Inputs {
    file: PathBuf,
    tmp: PathBuf,
    known: BTreeMap<PathBuf, (Stamp, Digest)>,
    seen: BTreeMap<PathBuf, (Stamp, Digest)>,
    hashed: u64,
}

impl Inputs {
    /// Loads the digests stored under `label`.
    pub fn open(store: &Store, label: &str) -> Self {
        let name = digest::of_bytes(label.as_bytes());
        let file = store.dir().join("stat").join(format!("{}.json", name.hex()));
        let known = store::read_small(&file)
            .ok()
            .and_then(|json| serde_json::from_str(&json).ok())
            .unwrap_or_default();
        Self { file, tmp: store.dir().join("tmp"), known, seen: BTreeMap::new(), hashed: 0 }
    }

    /// Digest of a file's contents.
    pub fn file(&mut self, path: &Path) -> Result<Digest> {
        let meta = fs::metadata(path).at("look at", path)?;
        self.contents(path, &meta)
    }

    fn contents(&mut self, path: &Path, meta: &fs::Metadata) -> Result<Digest> {
        let stamp = Stamp::of(meta);
        if let Some((known, digest)) = self.known.get(path)
            && *known == stamp
        {
            let digest = digest.clone();
            self.seen.insert(path.to_owned(), (stamp, digest.clone()));
            return Ok(digest);
        }
        let now = SystemTime::now();
        let (digest, _) = digest::of_file(path)?;
        self.hashed += 1;
        if stamp.settled(now) {
            self.seen.insert(path.to_owned(), (stamp, digest.clone()));
        }
        Ok(digest)
    }

    /// Digest of a tree: names, kinds, permissions, link targets, contents, file capabilities, and owners if they are kept.
    pub fn tree(&mut self, root: &Path, keep_owners: bool) -> Result<Digest> {
        let mut key = Key::new("tree-1");
        self.descend(root, Path::new(""), keep_owners, &mut key)?;
        Ok(key.digest())
    }

    fn descend(&mut self, root: &Path, relative: &Path, keep_owners: bool, key: &mut Key) -> Result<()> {
        let path = root.join(relative);
        let top = relative.as_os_str().is_empty();
        let meta = if top { fs::metadata(&path) } else { fs::symlink_metadata(&path) };
        let meta = meta.at("look at", &path)?;
        key.part(relative.as_os_str().as_bytes()).number(meta.mode().into());
        if keep_owners {
            key.number(meta.uid().into()).number(meta.gid().into());
        }
        let kind = meta.file_type();
        if kind.is_dir() {
            let mut names = Vec::new();
            for child in fs::read_dir(&path).at("list", &path)? {
                names.push(child.at("list", &path)?.file_name());
            }
            names.sort();
            key.number(names.len() as u64);
            for name in names {
                self.descend(root, &relative.join(name), keep_owners, key)?;
            }
        } else if kind.is_symlink() {
            key.part(fs::read_link(&path).at("read", &path)?.as_os_str().as_bytes());
        } else if kind.is_file() {
            key.text(self.contents(&path, &meta)?.as_str());
            let mut value = [0; 256];
            if let Ok(n) = rustix::fs::getxattr(&path, "security.capability", &mut value) {
                key.part(&value[..n]);
            }
        } else {
            let why = "is a device node, a pipe or a socket, which an overlay must not contain";
            return Err(ImageError::input(path.display().to_string(), why));
        }
        Ok(())
    }

    /// Digest of a file or a tree, whichever exists.
    pub fn any(&mut self, path: &Path, keep_owners: bool) -> Result<Digest> {
        if fs::metadata(path).at("look at", path)?.is_dir() {
            self.tree(path, keep_owners)
        } else {
            self.file(path)
        }
    }

    /// How many files were read because no stored digest applied.
    pub fn hashed(&self) -> u64 {
        self.hashed
    }

    /// Stores the digests. A failure costs time, never correctness.
    pub fn save(self) {
        if self.seen == self.known {
            return;
        }
        if let Ok(json) = serde_json::to_vec(&self.seen) {
            let _ = store::write_atomically(&self.tmp, &self.file, &json, 0o644);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs::{File, FileTimes},
        os::unix::fs::PermissionsExt,
    };

    /// Makes a file look as old as files in a real checkout.
    fn age(path: &Path) {
        let old = SystemTime::now() - Duration::from_secs(3600);
        File::open(path).unwrap().set_times(FileTimes::new().set_modified(old)).unwrap();
    }

    #[test]
    fn sees_every_kind_of_change() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let tree = dir.path().join("t");
        fs::create_dir_all(tree.join("sub")).unwrap();
        fs::write(tree.join("sub/a"), "1").unwrap();
        let digest = || Inputs::open(&store, "x").tree(&tree, false).unwrap();
        let mut last = digest();
        assert_eq!(last, digest());
        let changes: [&dyn Fn(); 5] = [
            &|| fs::write(tree.join("sub/a"), "2").unwrap(),
            &|| fs::set_permissions(tree.join("sub/a"), fs::Permissions::from_mode(0o755)).unwrap(),
            &|| std::os::unix::fs::symlink("sub/a", tree.join("l")).unwrap(),
            &|| fs::rename(tree.join("sub/a"), tree.join("b")).unwrap(),
            &|| fs::create_dir(tree.join("empty")).unwrap(),
        ];
        for (n, change) in changes.iter().enumerate() {
            change();
            let now = digest();
            assert_ne!(now, last, "change {n} was not seen");
            last = now;
        }
    }

    /// A file rewritten with the same size and its old modification time is noticed by its change time.
    #[test]
    fn a_forged_modification_time_does_not_hide_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "one").unwrap();
        age(&path);
        let digest = || {
            let mut inputs = Inputs::open(&store, "x");
            let d = inputs.file(&path).unwrap();
            inputs.save();
            d
        };
        let first = digest();
        fs::write(&path, "two").unwrap();
        age(&path);
        assert_ne!(digest(), first);
    }

    #[test]
    fn a_settled_file_is_not_read_again_and_a_fresh_one_is() {
        let now = SystemTime::now();
        let secs = now.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
        assert!(!Stamp(0, 0, 0, secs, 0, secs, 0).settled(now));
        assert!(!Stamp(0, 0, 0, secs - 100, 0, secs, 0).settled(now), "the change time counts too");
        assert!(Stamp(0, 0, 0, secs - 100, 0, secs - 100, 0).settled(now));
        // A real file: the crate's own manifest was not written within the last seconds.
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let read = || {
            let mut inputs = Inputs::open(&store, "x");
            inputs.file(&path).unwrap();
            let hashed = inputs.hashed();
            inputs.save();
            hashed
        };
        assert_eq!((read(), read()), (1, 0));
    }
}
