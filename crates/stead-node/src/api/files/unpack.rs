//! Unpacks a tar without touching anything outside the target directory, whatever the tar contains.
//!
//! The kernel opens every entry's parent *beneath* the target (openat2, `RESOLVE_BENEATH`), so that neither `..` nor a
//! symbolic link, from the tar or already there, leads out. Entries are created under a temporary name in that
//! directory and renamed, so that no file is seen half-written and no link is followed. For the target `/` links are
//! resolved as usual, since nothing is outside. Device nodes are refused. Existing directories keep their mode and
//! owner.

use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{
        AtFlags, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, chmodat, chownat, fchmod,
        fchown, futimens, linkat, mkdirat, mkfifoat, open, openat, openat2, renameat, statat, symlinkat,
        unlinkat, utimensat,
    },
    io::Errno,
};
use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};
use tar::{Archive, Entry, EntryType, Header};

/// Longest target of a symbolic link, in bytes: PATH_MAX.
const MAX_LINK: usize = 4096;
/// How much padding after a tar's end is read, in bytes.
const MAX_PADDING: u64 = 1 << 20;

/// A tar was not unpacked, or only in part.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The target directory cannot be used.
    #[error("cannot unpack in {path}", path = path.display())]
    Target {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not a tar, or it is truncated.
    #[error("cannot read the tar")]
    Read(#[source] io::Error),
    /// An entry is not allowed.
    #[error("the tar's entry {entry:?} {why}")]
    Refused {
        /// Its name.
        entry: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// An entry cannot be written.
    #[error("cannot write {entry:?}")]
    Write {
        /// Its name.
        entry: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A directory that exists.
#[derive(Debug)]
pub struct Target {
    directory: OwnedFd,
    beneath: ResolveFlags,
    /// Whether owners are set: only root may.
    owner: bool,
}

impl Target {
    /// Opens it.
    ///
    /// # Errors
    /// [`UnpackError::Target`].
    pub fn open(path: PathBuf) -> Result<Self, UnpackError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = path.components().all(|c| c == Component::RootDir);
        let directory =
            open(&path, flags, Mode::empty()).map_err(|e| UnpackError::Target { path, source: e.into() })?;
        let beneath = if root { ResolveFlags::IN_ROOT } else { ResolveFlags::BENEATH };
        Ok(Self::with(directory, beneath))
    }

    fn with(directory: OwnedFd, beneath: ResolveFlags) -> Self {
        let owner = rustix::process::geteuid().is_root();
        Self { directory, beneath: beneath | ResolveFlags::NO_MAGICLINKS, owner }
    }

    /// Unpacks everything, in order.
    ///
    /// # Errors
    /// The first entry that is refused or fails; earlier ones stay.
    pub fn unpack(&self, reader: &mut impl Read) -> Result<(), UnpackError> {
        {
            let mut archive = Archive::new(&mut *reader);
            for entry in archive.entries().map_err(UnpackError::Read)? {
                let mut entry = entry.map_err(UnpackError::Read)?;
                let kind = entry.header().entry_type();
                if kind == EntryType::XGlobalHeader {
                    continue;
                }
                let path = entry.path_bytes().into_owned();
                self.entry(&path, kind, &mut entry)?;
            }
        }
        io::copy(&mut reader.take(MAX_PADDING), &mut io::sink()).map_err(UnpackError::Read)?;
        Ok(())
    }

    fn entry(&self, path: &[u8], kind: EntryType, entry: &mut Entry<impl Read>) -> Result<(), UnpackError> {
        let shown = || String::from_utf8_lossy(path.get(..200).unwrap_or(path)).into_owned();
        let refused = |why| UnpackError::Refused { entry: shown(), why };
        let failed = |source: io::Error| UnpackError::Write { entry: shown(), source };
        let parts = parts(path).map_err(refused)?;
        let Some((name, parents)) = parts.split_last() else {
            // The target itself: many tars contain `./`.
            return if kind == EntryType::Directory { Ok(()) } else { Err(refused("has no name")) };
        };
        let parent = self.directory(parents).map_err(|e| self.explain(e, &shown))?;
        let place = Place { parent: &parent, name, owner: self.owner };
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let size = entry.size();
                place.file(entry, size, &failed)
            }
            EntryType::Directory => place.directory(entry.header()).map_err(failed),
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                if target.is_empty() || target.len() > MAX_LINK || target.contains(&0) {
                    return Err(refused("is a link without a target"));
                }
                place.symlink(&target, entry.header()).map_err(failed)
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                let target =
                    self::parts(&target).map_err(|_| refused("is a link that leads out of the directory"))?;
                let Some((target_name, parents)) = target.split_last() else {
                    return Err(refused("is a link without a target"));
                };
                let from = self.open_beneath(parents).map_err(|e| self.explain(e, &shown))?;
                place.link(&from, target_name).map_err(failed)
            }
            EntryType::Fifo => place.fifo(entry.header()).map_err(failed),
            EntryType::Block | EntryType::Char => Err(refused("is a device node")),
            _ => Err(refused("is of an unknown type")),
        }
    }

    /// Opens a directory beneath the target, creating missing ones.
    fn directory(&self, parts: &[&OsStr]) -> Result<OwnedFd, Errno> {
        match self.open_beneath(parts) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        for n in 1..=parts.len() {
            let upto = parts.get(..n).unwrap_or(parts);
            let Some((name, above)) = upto.split_last() else { break };
            let above = self.open_beneath(above)?;
            match mkdirat(&above, *name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e),
            }
        }
        self.open_beneath(parts)
    }

    fn open_beneath(&self, parts: &[&OsStr]) -> Result<OwnedFd, Errno> {
        let path: PathBuf = if parts.is_empty() { ".".into() } else { parts.iter().collect() };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // EAGAIN: something was renamed meanwhile (openat2(2)); a tree that changes all the time is an error.
        for _ in 0..100 {
            match openat2(&self.directory, &path, flags, Mode::empty(), self.beneath) {
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    fn explain(&self, error: Errno, shown: &dyn Fn() -> String) -> UnpackError {
        match error {
            Errno::XDEV => {
                UnpackError::Refused { entry: shown(), why: "leads out of the directory through a link" }
            }
            Errno::LOOP => {
                UnpackError::Refused { entry: shown(), why: "goes through a link that cannot be followed" }
            }
            other => UnpackError::Write { entry: shown(), source: other.into() },
        }
    }
}

/// The parts of an entry's path.
fn parts(path: &[u8]) -> Result<Vec<&OsStr>, &'static str> {
    if path.contains(&0) {
        return Err("contains a NUL");
    }
    let path = Path::new(OsStr::from_bytes(path));
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part),
            Component::CurDir => {}
            Component::ParentDir => return Err("leads out of the directory through \"..\""),
            Component::RootDir | Component::Prefix(_) => return Err("is absolute"),
        }
    }
    Ok(parts)
}

/// Where an entry is written: a name in an open directory.
struct Place<'a> {
    parent: &'a OwnedFd,
    name: &'a OsStr,
    owner: bool,
}

impl Place<'_> {
    fn temporary() -> String {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        format!(".stead-put.{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Creates the entry under a temporary name and renames it.
    fn replace(&self, make: impl FnOnce(&str) -> Result<(), Errno>) -> io::Result<()> {
        let temporary = Self::temporary();
        let renamed =
            make(&temporary).and_then(|()| renameat(self.parent, &temporary, self.parent, self.name));
        if renamed.is_err() {
            let _ = unlinkat(self.parent, &temporary, AtFlags::empty());
        } else {
            // rename(2) does nothing if both names are the same file.
            let _ = unlinkat(self.parent, &temporary, AtFlags::empty());
        }
        Ok(renamed?)
    }

    fn file(
        &self,
        entry: &mut Entry<impl Read>,
        size: u64,
        failed: &dyn Fn(io::Error) -> UnpackError,
    ) -> Result<(), UnpackError> {
        let temporary = Self::temporary();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(self.parent, &temporary, flags, Mode::from_raw_mode(0o600))
            .map_err(|e| failed(e.into()))?;
        let mut file = File::from(fd);
        let written = self.fill(&mut file, entry, size, failed).and_then(|()| {
            renameat(self.parent, &temporary, self.parent, self.name).map_err(|e| failed(e.into()))
        });
        if written.is_err() {
            let _ = unlinkat(self.parent, &temporary, AtFlags::empty());
        }
        written
    }

    fn fill(
        &self,
        file: &mut File,
        entry: &mut Entry<impl Read>,
        size: u64,
        failed: &dyn Fn(io::Error) -> UnpackError,
    ) -> Result<(), UnpackError> {
        let mut buffer = [0; 16 * 1024];
        let mut left = size;
        while left > 0 {
            let n = entry.read(&mut buffer).map_err(UnpackError::Read)?;
            if n == 0 {
                return Err(UnpackError::Read(io::ErrorKind::UnexpectedEof.into()));
            }
            io::Write::write_all(file, buffer.get(..n).unwrap_or_default()).map_err(failed)?;
            left = left.saturating_sub(n as u64);
        }
        let header = entry.header();
        let set = || -> Result<(), Errno> {
            if self.owner {
                let (uid, gid) = owner(header);
                fchown(&*file, uid, gid)?;
            }
            fchmod(&*file, mode(header))?;
            futimens(&*file, &times(header))
        };
        set().map_err(|e| failed(e.into()))
    }

    fn directory(&self, header: &Header) -> io::Result<()> {
        match mkdirat(self.parent, self.name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                // A directory, or a link to one: entries below go there if it is beneath the target.
                return match statat(self.parent, self.name, AtFlags::empty()) {
                    Ok(s) if rustix::fs::FileType::from_raw_mode(s.st_mode).is_dir() => Ok(()),
                    _ => Err(Errno::EXIST.into()),
                };
            }
            Err(e) => return Err(e.into()),
        }
        self.attributes(OsStr::new(self.name), header)
    }

    fn symlink(&self, target: &[u8], header: &Header) -> io::Result<()> {
        self.replace(|name| {
            symlinkat(target, self.parent, name)?;
            if self.owner {
                let (uid, gid) = owner(header);
                chownat(self.parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            utimensat(self.parent, name, &times(header), AtFlags::SYMLINK_NOFOLLOW)
        })
    }

    fn link(&self, from: impl AsFd, target: &OsStr) -> io::Result<()> {
        // Without AT_SYMLINK_FOLLOW: a hard link to a symbolic link stays one.
        self.replace(|name| linkat(from, target, self.parent, name, AtFlags::empty()))
    }

    fn fifo(&self, header: &Header) -> io::Result<()> {
        let mut result = Ok(());
        self.replace(|name| {
            mkfifoat(self.parent, name, Mode::from_raw_mode(0o600))?;
            result = self.attributes(OsStr::new(name), header);
            Ok(())
        })?;
        result
    }

    /// For an entry just created, which is not a symbolic link.
    fn attributes(&self, name: &OsStr, header: &Header) -> io::Result<()> {
        if self.owner {
            let (uid, gid) = owner(header);
            chownat(self.parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        chmodat(self.parent, name, mode(header), AtFlags::empty())?;
        Ok(utimensat(self.parent, name, &times(header), AtFlags::SYMLINK_NOFOLLOW)?)
    }
}

fn mode(header: &Header) -> Mode {
    Mode::from_raw_mode(header.mode().unwrap_or(0o644) & 0o7777)
}

fn owner(header: &Header) -> (Option<Uid>, Option<Gid>) {
    // To the kernel u32::MAX is not an id but means "leave unchanged".
    let id = |n: io::Result<u64>| n.ok().and_then(|n| u32::try_from(n).ok()).filter(|n| *n != u32::MAX);
    (id(header.uid()).map(Uid::from_raw), id(header.gid()).map(Gid::from_raw))
}

fn times(header: &Header) -> Timestamps {
    let at =
        Timespec { tv_sec: header.mtime().ok().and_then(|t| t.try_into().ok()).unwrap_or(0), tv_nsec: 0 };
    Timestamps { last_access: at, last_modification: at }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{fs, os::unix::fs::symlink};

    fn entry(builder: &mut tar::Builder<Vec<u8>>, path: &str, kind: u8, link: &str) {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::new(kind));
        header.set_size(if kind == b'0' { 4 } else { 0 });
        header.set_mode(0o755);
        header.set_mtime(0);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..path.len()].copy_from_slice(path.as_bytes());
        gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        builder.append(&header, if kind == b'0' { &b"evil"[..] } else { b"" }).unwrap();
    }

    /// Everything under a directory: path, content or target, hard links.
    fn inventory(dir: &Path, out: &mut Vec<String>) {
        use std::os::unix::fs::MetadataExt;
        for e in fs::read_dir(dir).unwrap().flatten() {
            let m = fs::symlink_metadata(e.path()).unwrap();
            let content = if m.is_file() { fs::read_to_string(e.path()).unwrap() } else { String::new() };
            let links = if m.is_dir() { 0 } else { m.nlink() };
            out.push(format!("{:?} {:o} {links} {content}", e.path(), m.mode()));
            if m.is_dir() {
                inventory(&e.path(), out);
            }
        }
        out.sort();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn no_tar_touches_anything_outside(
            entries in proptest::collection::vec((
                proptest::collection::vec(prop_oneof!["a", "b", "l", "[.]", "[.][.]", "out", "file", ""], 1..5),
                prop_oneof![Just(b'0'), Just(b'1'), Just(b'2'), Just(b'2'), Just(b'5'), Just(b'6'), any::<u8>()],
                prop_oneof!["a", "b/l", "l", "[.][.]", "[.][.]/out", "[.][.]/out/file", "a/[.][.]/[.][.]/out", "ABS", "/"],
            ), 0..8),
        ) {
            let sandbox = tempfile::tempdir().unwrap();
            let (target, out) = (sandbox.path().join("target"), sandbox.path().join("out"));
            fs::create_dir(&out).unwrap();
            fs::write(out.join("file"), "safe").unwrap();
            fs::create_dir(&target).unwrap();
            let mut before = Vec::new();
            inventory(&out, &mut before);
            let mut builder = tar::Builder::new(Vec::new());
            for (parts, kind, link) in &entries {
                // Types that describe the next entry are read by the library.
                if !matches!(kind, b'L' | b'K' | b'x' | b'g' | b'S') {
                    entry(&mut builder, &parts.join("/"), *kind, &link.replace("ABS", out.to_str().unwrap()));
                }
            }
            let bytes = builder.into_inner().unwrap();
            let _ = Target::open(target).unwrap().unpack(&mut bytes.as_slice());
            let mut after = Vec::new();
            inventory(&out, &mut after);
            prop_assert_eq!(before, after);
            prop_assert_eq!(fs::read_dir(sandbox.path()).unwrap().count(), 2);
        }

        #[test]
        fn any_bytes_are_answered(
            flips in proptest::collection::vec((0usize..3072, any::<u8>()), 0..6),
            cut in 0usize..3073,
        ) {
            let mut builder = tar::Builder::new(Vec::new());
            entry(&mut builder, "a/b", b'0', "");
            entry(&mut builder, "l", b'2', "a");
            let mut bytes = builder.into_inner().unwrap();
            for (at, value) in flips {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            bytes.truncate(cut);
            let dir = tempfile::tempdir().unwrap();
            let _ = Target::open(dir.path().into()).unwrap().unpack(&mut bytes.as_slice());
        }
    }

    #[test]
    fn in_the_root_absolute_links_are_followed_as_usual() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("run")).unwrap();
        fs::create_dir(root.path().join("var")).unwrap();
        symlink("/run", root.path().join("var/run")).unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        entry(&mut builder, "var/run/x", b'0', "");
        let bytes = builder.into_inner().unwrap();
        let open = || OwnedFd::from(File::open(root.path()).unwrap());
        Target::with(open(), ResolveFlags::IN_ROOT).unpack(&mut bytes.as_slice()).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("run/x")).unwrap(), "evil");
        let refused = Target::with(open(), ResolveFlags::BENEATH).unpack(&mut bytes.as_slice());
        assert!(matches!(refused, Err(UnpackError::Refused { .. })), "{refused:?}");
    }
}
