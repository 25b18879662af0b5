//! Trees of files as checked entries, in an order that depends only on their names.

use crate::{
    error::{ImageError, IoContext, Result},
    tarball::{Entry, Kind},
};
use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

/// Receives an entry and its contents.
pub type Each<'a> = dyn FnMut(Entry, &mut dyn Read) -> Result<()> + 'a;

/// Walks a directory, each directory before its contents, names in byte order. The directory itself comes first, with
/// an empty path.
///
/// Root owns everything unless `keep_owners`. Of extended attributes only file capabilities are kept.
///
/// # Errors
/// Something cannot be read, or is a device, a socket or a link that leads above the tree.
pub fn walk_dir(root: &Path, keep_owners: bool, each: &mut Each<'_>) -> Result<()> {
    descend(root, Path::new(""), keep_owners, each)
}

fn descend(root: &Path, relative: &Path, keep_owners: bool, each: &mut Each<'_>) -> Result<()> {
    let path = root.join(relative);
    let meta =
        if relative.as_os_str().is_empty() { fs::metadata(&path) } else { fs::symlink_metadata(&path) }
            .at("look at", &path)?;
    let refuse = |why: &str| Err(ImageError::input(path.display().to_string(), why));
    let kind = meta.file_type();
    let (uid, gid) = if keep_owners { (meta.uid().into(), meta.gid().into()) } else { (0, 0) };
    let mut entry = Entry {
        path: relative.as_os_str().as_bytes().to_vec(),
        kind: Kind::Directory,
        mode: meta.mode() & 0o7777,
        uid,
        gid,
        xattrs: Vec::new(),
    };
    if kind.is_dir() {
        each(entry, &mut io::empty())?;
        let mut names = Vec::new();
        for child in fs::read_dir(&path).at("list", &path)? {
            names.push(child.at("list", &path)?.file_name());
        }
        names.sort();
        for name in names {
            descend(root, &relative.join(name), keep_owners, each)?;
        }
        return Ok(());
    }
    if kind.is_symlink() {
        let target = fs::read_link(&path).at("read", &path)?;
        entry.kind = Kind::Symlink(target.as_os_str().as_bytes().to_vec());
        entry.mode = 0o777;
        crate::tarball::check_entry_link(&entry)
            .map_err(|source| ImageError::Archive { archive: root.display().to_string(), source })?;
        return each(entry, &mut io::empty());
    }
    if !kind.is_file() {
        return refuse("is a device node, a pipe or a socket, which an overlay must not contain");
    }
    let mut file = File::open(&path).at("open", &path)?;
    let meta = file.metadata().at("look at", &path)?;
    entry.kind = Kind::File(meta.len());
    let mut value = [0; 256];
    if let Ok(n) = rustix::fs::fgetxattr(&file, CAPABILITY, &mut value) {
        entry.xattrs.push((CAPABILITY.to_owned(), value[..n].to_vec()));
    }
    each(entry, &mut file)
}

/// The attribute that `setcap` writes.
const CAPABILITY: &str = "security.capability";
