//! Unpacks a tar without touching anything outside the target directory, whatever the tar contains.
//!
//! The kernel opens every entry's parent *beneath* the target (openat2, `RESOLVE_BENEATH`), so that neither `..` nor a
//! symbolic link, from the tar or already there, leads out. Entries are created under a temporary name in that
//! directory and renamed, so that no file is seen half-written and no link is followed. For the target `/` links are
//! resolved as usual, since nothing is outside. Device nodes are left out and named in an error at the end. Existing
//! directories keep their mode and owner.

use super::SKIPPED;
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
    io::{self, Read, Seek as _, Write as _},
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};
use tar::{Archive, Entry, EntryType, Header, PaxExtensions};

/// Longest target of a symbolic link, in bytes: PATH_MAX.
const MAX_LINK: usize = 4096;
/// How much padding after a tar's end is read, in bytes.
const MAX_PADDING: u64 = 1 << 20;
/// Names of what was left out that an error shows.
const MAX_NAMED: usize = 20;
/// Directories whose attributes are set when all else is there; those of more are set at once.
const MAX_LATER: usize = 100_000;
/// Bytes of a pax header.
const MAX_RECORDS: u64 = 64 << 10;
/// How much is written at once; a piece of zeros becomes a hole.
const PIECE: usize = 64 << 10;

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
    /// Some entries were left out, by the packer or here. Everything else is unpacked.
    #[error("not copied: {}", list(.named, .count))]
    Skipped {
        /// `PATH: REASON` of the first of them.
        named: Vec<String>,
        /// How many there are.
        count: usize,
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

/// Whether the first entry of a tar is a directory; false for a tar without entries.
///
/// # Errors
/// It cannot be read, or is no tar.
pub fn is_tree(reader: &mut impl Read) -> io::Result<bool> {
    let mut archive = Archive::new(reader);
    for entry in archive.entries()? {
        let kind = entry?.header().entry_type();
        if kind != EntryType::XGlobalHeader {
            return Ok(kind == EntryType::Directory);
        }
    }
    Ok(false)
}

fn list(named: &[String], count: &usize) -> String {
    let more = count - named.len();
    named.join("; ") + &if more > 0 { format!("; and {more} more") } else { String::new() }
}

/// What becomes of the first part of the entries' names.
#[derive(Debug, Clone, Copy)]
pub enum Top<'a> {
    /// It stays.
    Kept,
    /// It is replaced.
    Renamed(&'a OsStr),
    /// It is taken away: what is in a directory goes into the target itself.
    Removed,
    /// Everything goes below it.
    Below(&'a OsStr),
}

impl Top<'_> {
    /// For an archive whose top entry is `.`, which is no part of the other names.
    fn of_nameless(self) -> Self {
        match self {
            Self::Renamed(name) | Self::Below(name) => Self::Below(name),
            Self::Removed | Self::Kept => Self::Kept,
        }
    }
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
    /// The first entry that is refused or fails; earlier ones stay. [`UnpackError::Skipped`] at the end.
    pub fn unpack(&self, reader: &mut impl Read, top: Top<'_>) -> Result<(), UnpackError> {
        let mut left_out = Skipped::default();
        let mut later = Vec::new();
        let unpacked = self.entries(&mut *reader, top, &mut left_out, &mut later);
        // Also after a failure: directories are closed to others until they have their modes.
        unpacked.and(self.finish(later))?;
        io::copy(&mut reader.take(MAX_PADDING), &mut io::sink()).map_err(UnpackError::Read)?;
        left_out.into_result()
    }

    fn entries(
        &self,
        reader: &mut impl Read,
        mut top: Top<'_>,
        left_out: &mut Skipped,
        later: &mut Vec<Later>,
    ) -> Result<(), UnpackError> {
        let mut archive = Archive::new(reader);
        let mut is_first = true;
        for entry in archive.entries().map_err(UnpackError::Read)? {
            let mut entry = entry.map_err(UnpackError::Read)?;
            if entry.header().entry_type() == EntryType::XGlobalHeader {
                left_out.read(&mut entry).map_err(UnpackError::Read)?;
                continue;
            }
            if is_first && parts(&entry.path_bytes()).is_ok_and(|parts| parts.is_empty()) {
                top = top.of_nameless();
            }
            is_first = false;
            self.entry(&mut entry, top, left_out, later)?;
        }
        Ok(())
    }

    /// Gives directories their modes and times.
    fn finish(&self, later: Vec<Later>) -> Result<(), UnpackError> {
        // The deepest first: what is done in a directory changes its times, and may not be allowed by its mode.
        for Later { parts, header, shown } in later.into_iter().rev() {
            let parts: Vec<&OsStr> = parts.iter().map(|p| p.as_os_str()).collect();
            let directory = self.open_beneath(&parts).map_err(|e| self.explain(e, &|| shown.clone()))?;
            let set = fchmod(&directory, mode(&header)).and_then(|()| futimens(&directory, &times(&header)));
            set.map_err(|e| UnpackError::Write { entry: shown, source: e.into() })?;
        }
        Ok(())
    }

    fn entry(
        &self,
        entry: &mut Entry<impl Read>,
        top: Top<'_>,
        left_out: &mut Skipped,
        later: &mut Vec<Later>,
    ) -> Result<(), UnpackError> {
        let path = entry.path_bytes().into_owned();
        let path = path.as_slice();
        let kind = entry.header().entry_type();
        let shown = || String::from_utf8_lossy(path.get(..200).unwrap_or(path)).into_owned();
        let refused = |why| UnpackError::Refused { entry: shown(), why };
        let failed = |source: io::Error| UnpackError::Write { entry: shown(), source };
        if has_sparse_records(entry).map_err(UnpackError::Read)? {
            return Err(refused("is sparse in a form that is not understood; pack it without --sparse"));
        }
        let parts = renamed(parts(path).map_err(refused)?, top);
        let Some((name, parents)) = parts.split_last() else {
            // The target itself: many tars contain `./`.
            return if kind == EntryType::Directory { Ok(()) } else { Err(refused("has no name")) };
        };
        if matches!(kind, EntryType::Block | EntryType::Char) {
            left_out.add(format!("{}: is a device node", shown()));
            return Ok(());
        }
        let parent = self.directory(parents).map_err(|e| self.explain(e, &shown))?;
        let place = Place { parent: &parent, name, owner: self.owner };
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let size = entry.size();
                place.file(entry, size, &failed)
            }
            EntryType::Directory => {
                let late = later.len() < MAX_LATER;
                if place.directory(entry.header(), late).map_err(failed)? && late {
                    let parts = parts.iter().map(PathBuf::from).collect();
                    later.push(Later { parts, header: entry.header().clone(), shown: shown() });
                }
                Ok(())
            }
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
                let target = renamed(target, top);
                let Some((target_name, parents)) = target.split_last() else {
                    return Err(refused("is a link without a target"));
                };
                let from = self.open_beneath(parents).map_err(|e| self.explain(e, &shown))?;
                place.link(&from, target_name).map_err(failed)
            }
            EntryType::Fifo => place.fifo(entry.header()).map_err(failed),
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

/// A directory that was made, by its parts, and what it gets in the end.
struct Later {
    parts: Vec<PathBuf>,
    header: Header,
    shown: String,
}

/// What was left out.
#[derive(Default)]
struct Skipped {
    named: Vec<String>,
    count: usize,
}

impl Skipped {
    fn add(&mut self, what: String) {
        self.count += 1;
        if self.named.len() < MAX_NAMED {
            self.named.push(what);
        }
    }

    /// Reads what the packer left out.
    fn read(&mut self, entry: &mut Entry<impl Read>) -> io::Result<()> {
        let mut records = Vec::new();
        entry.take(MAX_RECORDS).read_to_end(&mut records)?;
        for record in PaxExtensions::new(&records) {
            // The library takes a value with a line break for a broken record.
            let Ok(record) = record else { continue };
            if record.key() == Ok(SKIPPED) {
                self.add(String::from_utf8_lossy(record.value_bytes()).escape_debug().to_string());
            }
        }
        Ok(())
    }

    fn into_result(self) -> Result<(), UnpackError> {
        let Self { named, count } = self;
        if count == 0 { Ok(()) } else { Err(UnpackError::Skipped { named, count }) }
    }
}

/// Whether pax records say that the entry's data is a map of holes first, which the library does not know.
fn has_sparse_records(entry: &mut Entry<impl Read>) -> io::Result<bool> {
    let Some(records) = entry.pax_extensions()? else { return Ok(false) };
    for record in records {
        if record.is_ok_and(|r| r.key_bytes().starts_with(b"GNU.sparse.")) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn renamed<'a>(mut parts: Vec<&'a OsStr>, top: Top<'a>) -> Vec<&'a OsStr> {
    match (top, parts.is_empty()) {
        (Top::Renamed(name), false) => {
            if let Some(first) = parts.first_mut() {
                *first = name;
            }
        }
        // The top entry of `/` is `.`, which has no part.
        (Top::Renamed(name), true) => parts.push(name),
        (Top::Below(name), _) => parts.insert(0, name),
        (Top::Removed, false) => drop(parts.remove(0)),
        (Top::Kept, _) | (Top::Removed, true) => {}
    }
    parts
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
        let mut buffer = vec![0; PIECE];
        let mut left = size;
        while left > 0 {
            let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let piece = buffer.get_mut(..want).unwrap_or_default();
            entry.read_exact(piece).map_err(UnpackError::Read)?;
            if want == PIECE && piece.iter().all(|b| *b == 0) {
                file.seek_relative(PIECE as i64).map_err(failed)?;
            } else {
                file.write_all(piece).map_err(failed)?;
            }
            left -= want as u64;
        }
        // A hole at the end is no part of the file yet.
        file.set_len(size).map_err(failed)?;
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

    /// Whether it was made, and not there before. Made with `late`, it stays open to its owner only.
    fn directory(&self, header: &Header, late: bool) -> io::Result<bool> {
        match mkdirat(self.parent, self.name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                // A directory, or a link to one: entries below go there if it is beneath the target.
                return match statat(self.parent, self.name, AtFlags::empty()) {
                    Ok(s) if rustix::fs::FileType::from_raw_mode(s.st_mode).is_dir() => Ok(false),
                    _ => Err(Errno::EXIST.into()),
                };
            }
            Err(e) => return Err(e.into()),
        }
        if !late {
            self.attributes(OsStr::new(self.name), header)?;
        } else if self.owner {
            let (uid, gid) = owner(header);
            chownat(self.parent, self.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(true)
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
            let _ = Target::open(target).unwrap().unpack(&mut bytes.as_slice(), Top::Kept);
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
            let _ = Target::open(dir.path().into()).unwrap().unpack(&mut bytes.as_slice(), Top::Kept);
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
        Target::with(open(), ResolveFlags::IN_ROOT).unpack(&mut bytes.as_slice(), Top::Kept).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("run/x")).unwrap(), "evil");
        let refused = Target::with(open(), ResolveFlags::BENEATH).unpack(&mut bytes.as_slice(), Top::Kept);
        assert!(matches!(refused, Err(UnpackError::Refused { .. })), "{refused:?}");
    }
}
