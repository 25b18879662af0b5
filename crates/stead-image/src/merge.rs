//! Several trees laid over each other into one, and written out once: each path from the topmost source that has it.
//!
//! Two passes: the first reads every source and decides, the second reads them again and writes. Nothing is unpacked.

use crate::{
    error::{ImageError, IoContext, Result},
    source::{self, Each},
    tarball::{self, Entry, Kind, TarError, TarPolicy, Tree},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufReader, Read},
    path::PathBuf,
};

/// A tree of files.
#[derive(Debug, Clone)]
pub enum Source {
    /// A directory.
    Directory {
        /// Where.
        path: PathBuf,
        /// Numeric owners are kept instead of made root's.
        keep_owners: bool,
    },
    /// A tar, compressed or not.
    Tar {
        /// Where.
        path: PathBuf,
        /// For messages.
        name: String,
        /// What it may hold.
        policy: TarPolicy,
    },
    /// Entries with their contents.
    Memory(Vec<(Entry, Vec<u8>)>),
}

impl Source {
    /// Gives each entry, checked by itself.
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
            Self::Tar { path, name, policy } => {
                let file = File::open(path).at("open", path)?;
                let reader =
                    tarball::decompressed(BufReader::with_capacity(256 << 10, file)).at("read", path)?;
                // An error of `each` is carried past the tar reader, which knows only its own.
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
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Directory { path, .. } => path.display().to_string(),
            Self::Tar { name, .. } => name.clone(),
            Self::Memory(_) => "files of the recipe".into(),
        }
    }
}

/// What is at a path in the end.
#[derive(Debug, Clone)]
struct Winner {
    source: usize,
    ordinal: u64,
    entry: Entry,
}

/// A decided merge.
#[derive(Debug, Default)]
pub struct Merged {
    winners: BTreeMap<Vec<u8>, Winner>,
}

/// Mode of directories that a tar leaves out but that are not 0755 anywhere.
fn implied_mode(path: &[u8]) -> u32 {
    match path {
        b"tmp" | b"var/tmp" => 0o1777,
        b"root" => 0o700,
        _ => 0o755,
    }
}

/// A chain of links longer than this is a loop: the kernel's own bound.
const MAX_LINKS: usize = 40;

impl Merged {
    /// Decides what is at each path. `sources` go from lowest to topmost.
    ///
    /// # Errors
    /// A source cannot be read, or one of its entries is refused.
    pub fn of(sources: &[Source]) -> Result<Self> {
        let mut merged = Self::default();
        for (number, source) in sources.iter().enumerate() {
            let refused = |e| ImageError::Archive { archive: source.name(), source: e };
            let mut tree = Tree::default();
            // Paths of this source: what it puts itself is not what it hides or resolves through.
            let mut own = BTreeSet::new();
            let mut ordinal = 0;
            source.each(&mut |entry, _| {
                let at = ordinal;
                ordinal += 1;
                tree.add(&entry).map_err(refused)?;
                merged.take(number, at, entry, &mut own).map_err(refused)
            })?;
        }
        merged.add_parents();
        Ok(merged)
    }

    fn take(
        &mut self,
        source: usize,
        ordinal: u64,
        mut entry: Entry,
        own: &mut BTreeSet<Vec<u8>>,
    ) -> Result<(), TarError> {
        entry.path = self.resolve(&entry.path)?;
        if let Kind::Hardlink(target) = &entry.kind {
            entry.kind = Kind::Hardlink(self.resolve(target)?);
        }
        if entry.path.is_empty() && entry.kind != Kind::Opaque {
            return Ok(());
        }
        let path = entry.path.clone();
        match entry.kind {
            Kind::Whiteout | Kind::Opaque => {
                self.remove_below(&path, own);
                if entry.kind == Kind::Whiteout && !own.contains(&path) {
                    self.winners.remove(&path);
                }
                return Ok(());
            }
            Kind::Directory => {}
            // A lower directory, listed or not, is replaced with all that is in it.
            _ => self.remove_below(&path, own),
        }
        // And a lower file by the directory that this entry needs above it.
        for (at, _) in path.iter().enumerate().filter(|(_, b)| **b == b'/') {
            if self.winners.get(&path[..at]).is_some_and(|w| w.entry.kind != Kind::Directory) {
                self.winners.remove(&path[..at]);
            }
        }
        own.insert(path.clone());
        self.winners.insert(path, Winner { source, ordinal, entry });
        Ok(())
    }

    /// Removes what lower sources have below a directory.
    fn remove_below(&mut self, dir: &[u8], own: &BTreeSet<Vec<u8>>) {
        let below = if dir.is_empty() { Vec::new() } else { [dir, b"/"].concat() };
        let gone: Vec<Vec<u8>> = self
            .winners
            .range(below.clone()..)
            .take_while(|(p, _)| p.starts_with(&below))
            .map(|(p, _)| p.clone())
            .filter(|p| !own.contains(p))
            .collect();
        for path in gone {
            self.winners.remove(&path);
        }
    }

    /// A path with links of lower sources on the way followed, within the root: `bin/x` over a base where `bin` leads to
    /// `usr/bin` means `usr/bin/x`.
    fn resolve(&self, path: &[u8]) -> Result<Vec<u8>, TarError> {
        let mut path = path.to_vec();
        'again: for _ in 0..MAX_LINKS {
            for (at, _) in path.iter().enumerate().filter(|(_, b)| **b == b'/') {
                if let Some(Winner { entry: Entry { kind: Kind::Symlink(target), .. }, .. }) =
                    self.winners.get(&path[..at])
                {
                    path = join(&path[..at], target, &path[at + 1..]);
                    continue 'again;
                }
            }
            return Ok(path);
        }
        Err(TarError::Refused {
            entry: String::from_utf8_lossy(&path).into_owned(),
            why: "lies behind a loop of links".into(),
        })
    }

    /// Directories that nobody listed.
    fn add_parents(&mut self) {
        let mut missing = BTreeMap::new();
        for path in self.winners.keys() {
            for (at, _) in path.iter().enumerate().filter(|(_, b)| **b == b'/') {
                let parent = &path[..at];
                if !self.winners.contains_key(parent) {
                    missing.insert(parent.to_vec(), Entry::directory(parent, implied_mode(parent)));
                }
            }
        }
        for (path, entry) in missing {
            self.winners.insert(path, Winner { source: usize::MAX, ordinal: 0, entry });
        }
    }

    /// Writes the result: directories first, then everything else by source.
    ///
    /// # Errors
    /// A source changed since it was decided upon, or an error of `put`.
    pub fn write(
        &self,
        sources: &[Source],
        put: &mut dyn FnMut(&Entry, &mut dyn Read) -> io::Result<()>,
    ) -> Result<()> {
        let mut put = |entry: &Entry, data: &mut dyn Read| put(entry, data).at("pack", entry.name());
        let mut others: BTreeMap<(usize, u64), &Entry> = BTreeMap::new();
        let mut links = Vec::new();
        for winner in self.winners.values() {
            match winner.entry.kind {
                Kind::Directory => put(&winner.entry, &mut io::empty())?,
                Kind::Hardlink(_) => links.push(&winner.entry),
                _ => drop(others.insert((winner.source, winner.ordinal), &winner.entry)),
            }
        }
        for (number, source) in sources.iter().enumerate() {
            let mut ordinal = 0;
            source.each(&mut |entry, data| {
                let chosen = others.remove(&(number, ordinal));
                ordinal += 1;
                match chosen {
                    None => Ok(()),
                    Some(chosen) if chosen.kind == entry.kind => put(chosen, data),
                    Some(_) => Err(changed(source)),
                }
            })?;
        }
        if !others.is_empty() {
            return Err(changed(&sources[0]));
        }
        // A hard link comes after every file it may name.
        links.into_iter().try_for_each(|entry| put(entry, &mut io::empty()))
    }

    /// Number of entries and bytes of contents.
    pub fn summary(&self) -> tarball::Summary {
        let bytes = self.winners.values().map(|w| if let Kind::File(len) = w.entry.kind { len } else { 0 });
        tarball::Summary { entries: self.winners.len() as u64, bytes: bytes.sum() }
    }

    /// What is at a path.
    pub fn get(&self, path: &[u8]) -> Option<&Entry> {
        self.winners.get(path).map(|w| &w.entry)
    }
}

fn changed(source: &Source) -> ImageError {
    ImageError::Io {
        operation: "pack",
        path: source.name().into(),
        source: io::Error::other("it changed while it was read; build again"),
    }
}

/// `rest` below a link at `link` that leads to `target`, lexically, never above the root.
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
        assert_eq!(written(&[base, over]), ["a/ 755", "a/new: n"]);
    }

    #[test]
    fn a_file_replaces_a_lower_directory_with_all_in_it() {
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
    fn loops_of_links_are_refused() {
        let base = Source::Memory(vec![link("a", "b"), link("b", "a")]);
        let over = Source::Memory(vec![file("a/x", "1")]);
        let e = Merged::of(&[base, over]).unwrap_err();
        assert!(e.is_bad_input() && matches!(e, ImageError::Archive { .. }));
    }
}
