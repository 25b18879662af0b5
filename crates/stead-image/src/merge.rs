//! Merges several trees into one and writes it once: each path comes from the topmost source that has it.
//!
//! Two passes: the first reads every source and decides, the second reads them again and writes. Nothing is unpacked.

use crate::{
    compression::decompressed,
    error::{ImageError, IoContext, Result},
    source::{self, Each},
    tarball::{self, Entry, Kind, TarError, TarPolicy, Tree},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::PathBuf,
};

/// A tree of files.
#[derive(Debug, Clone)]
pub enum Source {
    /// A directory.
    Directory {
        /// Where.
        path: PathBuf,
        /// Whether numeric owners are kept; otherwise root owns everything.
        keep_owners: bool,
    },
    /// A tar, compressed or not.
    Tar {
        /// Where.
        path: PathBuf,
        /// Its offset and length within the file; `None` for the whole file.
        part: Option<(u64, u64)>,
        /// For messages.
        name: String,
        /// What it may contain.
        policy: TarPolicy,
    },
    /// Entries with their contents.
    Memory(Vec<(Entry, Vec<u8>)>),
    /// Entries with the files that have their contents; absent for what has none.
    Blobs(Vec<(Entry, Option<PathBuf>)>),
}

impl Source {
    /// Passes each entry, checked by itself, to `each`.
    ///
    /// # Errors
    /// It cannot be read or is refused; or an error of `each`.
    pub fn each(&self, each: &mut Each<'_>) -> Result<()> {
        match self {
            Self::Directory { path, keep_owners } => {
                source::walk_dir(path, *keep_owners, &mut |mut entry, data| {
                    let directory = entry.kind == Kind::Directory;
                    entry.path = tarball::merge_usr(entry.path, directory);
                    each(entry, data)
                })
            }
            Self::Tar { path, part, name, policy } => {
                let mut file = File::open(path).at("open", path)?;
                let (offset, len) = part.unwrap_or((0, u64::MAX));
                if offset > 0 {
                    file.seek(SeekFrom::Start(offset)).at("read", path)?;
                }
                let reader = decompressed(file.take(len))
                    .map_err(|e| ImageError::Archive { archive: name.clone(), source: TarError::Read(e) })?;
                // An error of `each` bypasses the tar reader, which can only return its own.
                let mut failed = None;
                let walked = tarball::walk(reader, policy, |entry, data| {
                    each(entry, data).map_err(|e| {
                        failed = Some(e);
                        TarError::Write(io::Error::other("stopped"))
                    })
                });
                match (failed, walked) {
                    (Some(e), _) => Err(e),
                    (None, walked) => {
                        walked.map_err(|source| ImageError::Archive { archive: name.clone(), source })
                    }
                }
            }
            Self::Memory(entries) => {
                entries.iter().try_for_each(|(entry, data)| each(entry.clone(), &mut &data[..]))
            }
            Self::Blobs(entries) => entries.iter().try_for_each(|(entry, file)| match file {
                Some(path) => each(entry.clone(), &mut File::open(path).at("open", path)?),
                None => each(entry.clone(), &mut io::empty()),
            }),
        }
    }

    /// Its name, when it is an overlay.
    fn overlay(&self) -> Option<String> {
        match self {
            Self::Directory { .. } => Some(self.name()),
            Self::Tar { policy, .. } => policy.merge_usr.then(|| self.name()),
            Self::Memory(_) | Self::Blobs(_) => None,
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Directory { path, .. } => path.display().to_string(),
            Self::Tar { name, .. } => name.clone(),
            Self::Memory(_) => "files of the recipe".into(),
            Self::Blobs(_) => "programs of the recipe".into(),
        }
    }
}

/// A chain of links longer than this is a loop, as for the kernel.
const MAX_LINKS: usize = 40;

/// What names refer to: a file with all its names, or a directory, link or pipe.
#[derive(Debug, Clone)]
struct Inode {
    source: usize,
    ordinal: u64,
    /// Never a hard link. Its path is the one it was read under.
    entry: Entry,
}

/// A decided merge.
#[derive(Debug, Default)]
pub struct Merged {
    inodes: Vec<Inode>,
    /// Paths and their inodes: as on a disk, replacing or removing a path leaves the others alone.
    names: BTreeMap<Vec<u8>, usize>,
    warnings: Vec<String>,
}

/// State of the source that is being read.
#[derive(Debug, Default)]
struct Layer {
    number: usize,
    /// Its name for messages, if it is an overlay.
    overlay: Option<String>,
    /// Paths that it added itself, without those it hides or resolves through.
    own: BTreeSet<Vec<u8>>,
    /// Files that its whiteouts hide. Its hard links may still name them, because whiteouts come in any order.
    hidden: BTreeMap<Vec<u8>, usize>,
}

/// Mode of a directory that a tar does not list: some are never 0755.
fn implied_mode(path: &[u8]) -> u32 {
    match path {
        b"tmp" | b"var/tmp" => 0o1777,
        b"root" => 0o700,
        _ => 0o755,
    }
}

/// Directories of every root that all users may enter: an overlay over an unknown root could narrow them.
const COMMON_DIRECTORIES: [&str; 35] = [
    "boot",
    "dev",
    "etc",
    "etc/default",
    "etc/network",
    "etc/profile.d",
    "etc/ssh",
    "etc/ssl",
    "etc/ssl/certs",
    "etc/systemd",
    "etc/systemd/system",
    "home",
    "media",
    "mnt",
    "opt",
    "run",
    "srv",
    "tmp",
    "usr",
    "usr/bin",
    "usr/lib",
    "usr/lib64",
    "usr/libexec",
    "usr/local",
    "usr/local/bin",
    "usr/local/lib",
    "usr/local/sbin",
    "usr/sbin",
    "usr/share",
    "var",
    "var/cache",
    "var/lib",
    "var/log",
    "var/spool",
    "var/tmp",
];

/// Every path above a path, from the top.
fn parents(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| &path[..at])
}

impl Merged {
    /// Reads every source once and decides.
    ///
    /// # Errors
    /// A source is refused or cannot be read.
    pub fn of(sources: &[Source]) -> Result<Self> {
        let mut merged = Self::default();
        for (number, source) in sources.iter().enumerate() {
            let refused = |e| ImageError::Archive { archive: source.name(), source: e };
            let mut tree = if number == 0 { Tree::default() } else { Tree::over_others() };
            let mut layer = Layer { number, overlay: source.overlay(), ..Layer::default() };
            let mut ordinal = 0;
            source.each(&mut |entry, _| {
                let at = ordinal;
                ordinal += 1;
                tree.add(&entry).map_err(refused)?;
                merged.take(&mut layer, at, entry).map_err(refused)
            })?;
        }
        Ok(merged)
    }

    fn take(&mut self, layer: &mut Layer, ordinal: u64, mut entry: Entry) -> Result<(), TarError> {
        entry.path = self.resolve(&entry.path)?;
        if entry.path.is_empty() && entry.kind != Kind::Opaque {
            return Ok(());
        }
        let path = entry.path.clone();
        if matches!(entry.kind, Kind::Whiteout | Kind::Opaque) {
            let gone = self.remove_below(&path, layer);
            layer.hidden.extend(gone);
            if entry.kind == Kind::Whiteout && !layer.own.contains(&path) {
                layer.hidden.extend(self.names.remove_entry(&path));
            }
            self.add_parents(&path);
            return Ok(());
        }
        if let (Kind::Directory, Some(overlay)) = (&entry.kind, &layer.overlay) {
            self.warnings.extend(self.narrowed(&entry, overlay));
        }
        let inode = if let Kind::Hardlink(target) = &entry.kind {
            let target = self.resolve(target)?;
            let found = self.names.get(&target).or_else(|| layer.hidden.get(&target)).copied();
            let found = found.filter(|i| self.inodes[*i].entry.kind != Kind::Directory);
            found.ok_or_else(|| tarball::no_target(&path, &target))?
        } else {
            self.inodes.push(Inode { source: layer.number, ordinal, entry });
            self.inodes.len() - 1
        };
        // A lower directory, listed or not, is replaced with its contents.
        if self.inodes[inode].entry.kind != Kind::Directory {
            self.remove_below(&path, layer);
        }
        // A lower file is replaced by the directory that this entry needs above it, listed or not.
        for parent in parents(&path) {
            match self.names.get(parent) {
                Some(i) if self.inodes[*i].entry.kind == Kind::Directory => {}
                _ => self.imply(parent),
            }
        }
        layer.own.insert(path.clone());
        self.names.insert(path, inode);
        Ok(())
    }

    /// A warning if an overlay's directory shuts out users who could enter it before: the topmost mode applies.
    fn narrowed(&self, entry: &Entry, overlay: &str) -> Option<String> {
        let lower = self.names.get(&entry.path).map(|i| &self.inodes[*i].entry);
        let before = match lower {
            Some(Entry { kind: Kind::Directory, mode, .. }) => *mode,
            Some(_) => return None,
            None if COMMON_DIRECTORIES.contains(&entry.name().as_str()) => implied_mode(&entry.path),
            None => return None,
        };
        (before & !entry.mode & 0o055 != 0).then(|| {
            format!(
                "/{} gets mode {:04o} from {overlay}, narrower than {before:04o}, which then applies to every user of the image",
                entry.name(),
                entry.mode
            )
        })
    }

    /// Removes what lower sources have below a directory, and returns it.
    fn remove_below(&mut self, dir: &[u8], layer: &Layer) -> Vec<(Vec<u8>, usize)> {
        let below = if dir.is_empty() { Vec::new() } else { [dir, b"/"].concat() };
        let gone: Vec<Vec<u8>> = self
            .names
            .range(below.clone()..)
            .take_while(|(p, _)| p.starts_with(&below))
            .map(|(p, _)| p.clone())
            .filter(|p| !layer.own.contains(p))
            .collect();
        gone.into_iter().filter_map(|path| self.names.remove_entry(&path)).collect()
    }

    /// A path after following the links of lower sources on the way, within the root: `bin/x` over a base where `bin`
    /// is a link to `usr/bin` means `usr/bin/x`.
    fn resolve(&self, path: &[u8]) -> Result<Vec<u8>, TarError> {
        let mut path = path.to_vec();
        for _ in 0..MAX_LINKS {
            let followed =
                parents(&path).find_map(|parent| match &self.inodes[*self.names.get(parent)?].entry.kind {
                    Kind::Symlink(target) => Some(join(parent, target, &path[parent.len() + 1..])),
                    _ => None,
                });
            match followed {
                Some(next) => path = next,
                None => return Ok(path),
            }
        }
        Err(TarError::Refused {
            entry: String::from_utf8_lossy(&path).into_owned(),
            why: "is behind a loop of links".into(),
        })
    }

    /// Whether there is something at an absolute path.
    pub fn has(&self, path: &str) -> bool {
        let clean: Vec<&str> = path.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
        self.resolve(clean.join("/").as_bytes()).is_ok_and(|path| self.names.contains_key(&path))
    }

    /// Adds the directories that a whiteout at `dir` removed from above paths of its own layer.
    fn add_parents(&mut self, dir: &[u8]) {
        let below = if dir.is_empty() { Vec::new() } else { [dir, b"/"].concat() };
        let mut missing = BTreeSet::new();
        for (path, _) in self.names.range(below.clone()..).take_while(|(p, _)| p.starts_with(&below)) {
            missing.extend(parents(path).filter(|p| !self.names.contains_key(*p)).map(<[u8]>::to_vec));
        }
        missing.iter().for_each(|path| self.imply(path));
    }

    fn imply(&mut self, path: &[u8]) {
        let entry = Entry::directory(path, implied_mode(path));
        self.inodes.push(Inode { source: usize::MAX, ordinal: 0, entry });
        self.names.insert(path.to_vec(), self.inodes.len() - 1);
    }

    /// Writes the result: directories first, then everything else by source, then the further names of files. A file's
    /// contents are written under the name it was read under or, if it lost that one, under its first name.
    ///
    /// # Errors
    /// A source changed after the first pass, or an error of `put`.
    pub fn write(
        &self,
        sources: &[Source],
        put: &mut dyn FnMut(&Entry, &mut dyn Read) -> io::Result<()>,
    ) -> Result<()> {
        let mut put = |entry: &Entry, data: &mut dyn Read| put(entry, data).at("pack", entry.name());
        let mut names: BTreeMap<usize, Vec<&[u8]>> = BTreeMap::new();
        for (path, inode) in &self.names {
            names.entry(*inode).or_default().push(path);
        }
        let named = |path: &[u8], entry: &Entry| Entry { path: path.to_vec(), ..entry.clone() };
        let mut others: BTreeMap<(usize, u64), Entry> = BTreeMap::new();
        let mut links: BTreeMap<&[u8], Entry> = BTreeMap::new();
        for (path, inode) in &self.names {
            let Inode { source, ordinal, entry } = &self.inodes[*inode];
            if entry.kind == Kind::Directory {
                put(&named(path, entry), &mut io::empty())?;
                continue;
            }
            let all = &names[inode];
            let main = all.iter().find(|n| **n == entry.path).unwrap_or(&all[0]);
            if *main == path {
                others.insert((*source, *ordinal), named(path, entry));
            } else {
                let kind = Kind::Hardlink(main.to_vec());
                links.insert(path, Entry { kind, ..named(path, entry) });
            }
        }
        for (number, source) in sources.iter().enumerate() {
            let mut ordinal = 0;
            source.each(&mut |entry, data| {
                let chosen = others.remove(&(number, ordinal));
                ordinal += 1;
                match chosen {
                    None => Ok(()),
                    Some(chosen) if chosen.kind == entry.kind => put(&chosen, data),
                    Some(_) => Err(changed(source)),
                }
            })?;
        }
        if !others.is_empty() {
            return Err(changed(&sources[0]));
        }
        // A hard link comes after every file it may name.
        links.values().try_for_each(|entry| put(entry, &mut io::empty()))
    }

    /// Warnings for the user.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Number of entries and bytes of contents.
    pub fn summary(&self) -> tarball::Summary {
        let inodes: BTreeSet<usize> = self.names.values().copied().collect();
        let bytes = |i: usize| if let Kind::File(len) = self.inodes[i].entry.kind { len } else { 0 };
        tarball::Summary { entries: self.names.len() as u64, bytes: inodes.into_iter().map(bytes).sum() }
    }
}

fn changed(source: &Source) -> ImageError {
    ImageError::Io {
        operation: "pack",
        path: source.name().into(),
        source: io::Error::other("it changed during the build; build again"),
    }
}

/// The path of `rest` below a link at `link` to `target`, lexically, never above the root.
fn join(link: &[u8], target: &[u8], rest: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    if !target.starts_with(b"/") {
        parts.extend(link.split(|b| *b == b'/'));
        parts.pop();
    }
    for part in target.split(|b| *b == b'/').chain(rest.split(|b| *b == b'/')) {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.join(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_model::Failure;

    fn file(path: &str, text: &str) -> (Entry, Vec<u8>) {
        let kind = Kind::File(text.len() as u64);
        (Entry { kind, ..Entry::directory(path.as_bytes(), 0o644) }, text.as_bytes().to_vec())
    }
    fn special(path: &str, kind: Kind) -> (Entry, Vec<u8>) {
        (Entry { kind, ..Entry::directory(path.as_bytes(), 0o777) }, Vec::new())
    }
    fn link(path: &str, target: &str) -> (Entry, Vec<u8>) {
        special(path, Kind::Symlink(target.as_bytes().to_vec()))
    }
    fn written(sources: &[Source]) -> Vec<String> {
        let mut out = Vec::new();
        Merged::of(sources)
            .unwrap()
            .write(sources, &mut |entry, data| {
                let mut text = String::new();
                data.read_to_string(&mut text)?;
                let mark = match &entry.kind {
                    Kind::Directory => format!("/ {:o}", entry.mode),
                    Kind::Symlink(t) => format!(" -> {}", String::from_utf8_lossy(t)),
                    Kind::Hardlink(t) => format!(" = {}", String::from_utf8_lossy(t)),
                    _ => format!(": {text}"),
                };
                out.push(format!("{}{mark}", entry.name()));
                Ok(())
            })
            .unwrap();
        out
    }

    #[test]
    fn later_sources_win_and_links_are_followed_within_the_root() {
        let base = Source::Memory(vec![
            link("bin", "usr/bin"),
            link("abs", "/../../etc"),
            file("usr/bin/sh", "old"),
            file("etc/keep", "k"),
        ]);
        let over = Source::Memory(vec![file("bin/sh", "new"), file("abs/motd", "m"), file("tmp/x", "x")]);
        assert_eq!(
            written(&[base, over]),
            [
                "etc/ 755",
                "tmp/ 1777",
                "usr/ 755",
                "usr/bin/ 755",
                "bin -> usr/bin",
                "abs -> /../../etc",
                "etc/keep: k",
                "usr/bin/sh: new",
                "etc/motd: m",
                "tmp/x: x",
            ]
        );
    }

    #[test]
    fn whiteouts_remove_what_is_below_only() {
        let base = Source::Memory(vec![
            file("a/one", "1"),
            file("a/two", "2"),
            file("b/three", "3"),
            file("c", "4"),
        ]);
        let over = Source::Memory(vec![
            file("a/new", "n"),
            special("a", Kind::Opaque),
            special("b/three", Kind::Whiteout),
            special("c", Kind::Whiteout),
        ]);
        assert_eq!(written(&[base, over]), ["a/ 755", "b/ 755", "a/new: n"]);
    }

    #[test]
    fn a_file_replaces_a_lower_directory_and_its_contents() {
        let base = Source::Memory(vec![file("d/x", "1"), file("d2/y", "2")]);
        let over = Source::Memory(vec![file("d", "f")]);
        assert_eq!(written(&[base, over]), ["d2/ 755", "d2/y: 2", "d: f"]);
        let base = Source::Memory(vec![file("d", "f")]);
        let over = Source::Memory(vec![file("d/x", "1")]);
        assert_eq!(written(&[base, over]), ["d/ 755", "d/x: 1"]);
    }

    #[test]
    fn hard_links_come_last() {
        let one = Source::Memory(vec![file("z", "data"), special("a", Kind::Hardlink(b"z".to_vec()))]);
        assert_eq!(written(&[one]), ["z: data", "a = z"]);
    }

    #[test]
    fn hard_links_are_bound_to_what_they_named() {
        let hard = |path: &str, target: &str| special(path, Kind::Hardlink(target.as_bytes().to_vec()));
        let base = || Source::Memory(vec![file("a", "old"), hard("b", "a"), hard("c", "b")]);
        let over = |entries| Source::Memory(entries);
        // The name that was read is replaced: the contents go to the first remaining one.
        assert_eq!(written(&[base(), over(vec![file("a", "new")])]), ["b: old", "a: new", "c = b"]);
        assert_eq!(written(&[base(), over(vec![file("b", "new")])]), ["a: old", "b: new", "c = a"]);
        assert_eq!(written(&[base(), over(vec![special("a", Kind::Whiteout)])]), ["b: old", "c = b"]);
        let all = ["a", "b", "c"].map(|n| special(n, Kind::Whiteout));
        assert_eq!(written(&[base(), over(all.to_vec())]), [""; 0]);
        // Links to lower files that are replaced or removed, before or after.
        assert_eq!(
            written(&[base(), over(vec![hard("d", "a"), file("a", "new")])]),
            ["b: old", "a: new", "c = b", "d = b"]
        );
        let gone = special("a", Kind::Whiteout);
        let rest = [special("b", Kind::Whiteout), special("c", Kind::Whiteout)];
        for entries in [vec![hard("d", "a"), gone.clone()], vec![gone, hard("d", "a")]] {
            let entries = [entries, rest.to_vec()].concat();
            assert_eq!(written(&[base(), over(entries)]), ["d: old"]);
        }
        // Also within one archive; and a link to a link is another name of the same file.
        assert_eq!(written(&[over(vec![file("a", "1"), hard("b", "a"), file("a", "2")])]), ["b: 1", "a: 2"]);
        assert_eq!(written(&[over(vec![link("s", "x"), hard("t", "s")])]), ["s -> x", "t = s"]);
        for (what, target) in [("nothing", "none"), ("a directory", "d"), ("what is replaced", "d/x")] {
            let below = Source::Memory(vec![file("d/x", "1")]);
            let mut entries = vec![hard("y", target)];
            if what == "what is replaced" {
                entries.insert(0, file("d", "f"));
            }
            let e = Merged::of(&[below, over(entries)]).unwrap_err();
            let why = std::error::Error::source(&e).unwrap().to_string();
            assert!(e.is_bad_input() && why.starts_with("entry \"y\" is a hard link to"), "{what}: {why}");
        }
    }

    #[test]
    fn an_overlay_that_narrows_a_directory_gives_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        for (name, mode) in
            [("etc", 0o700), ("etc/app", 0o700), ("root", 0o700), ("usr", 0o755), ("srv", 0o711)]
        {
            use std::os::unix::fs::PermissionsExt;
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::set_permissions(dir.path().join(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let over = Source::Directory { path: dir.path().to_owned(), keep_owners: false };
        let name = dir.path().display();
        let warnings = |sources: &[Source]| Merged::of(sources).unwrap().warnings().to_vec();
        let says = |path: &str, mode: &str| {
            format!(
                "/{path} gets mode {mode} from {name}, narrower than 0755, which then applies to every user of the image"
            )
        };
        assert_eq!(warnings(std::slice::from_ref(&over)), [says("etc", "0700"), says("srv", "0711")]);
        // Over a known root, that root's directories count.
        let base = Source::Memory(vec![
            (Entry::directory(b"etc", 0o700), Vec::new()),
            (Entry::directory(b"etc/app", 0o755), Vec::new()),
        ]);
        assert_eq!(warnings(&[base, over]), [says("etc/app", "0700"), says("srv", "0711")]);
    }

    #[test]
    fn a_file_over_a_directory_of_its_own_archive_is_refused() {
        let e = Merged::of(&[Source::Memory(vec![file("d/x", "1"), file("d", "f")])]).unwrap_err();
        assert_eq!(std::error::Error::source(&e).unwrap().to_string(), "entry \"d\" replaces a directory");
    }

    #[test]
    fn loops_of_links_are_refused() {
        let base = Source::Memory(vec![link("a", "b"), link("b", "a")]);
        let over = Source::Memory(vec![file("a/x", "1")]);
        let e = Merged::of(&[base, over]).unwrap_err();
        assert!(e.is_bad_input() && matches!(e, ImageError::Archive { .. }));
    }
}
