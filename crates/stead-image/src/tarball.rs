//! Reads untrusted tar archives: every entry is checked before anything uses it.
//!
//! Owns what an entry is and which entries are refused. Nothing here writes to disk: layers are made by streaming
//! checked entries into a squashfs, so a hostile archive never reaches a filesystem. Pure over [`Read`]; the format
//! itself is in [`crate::members`].

use crate::{
    compression::Damage,
    members::{Member, Members},
};
use std::{
    collections::BTreeMap,
    io::{self, Read},
};

/// An archive was refused or could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TarError {
    /// An entry breaks a rule.
    #[error("entry {entry:?} {why}")]
    Refused {
        /// The entry's name as it stands in the archive.
        entry: String,
        /// What is wrong with it.
        why: String,
    },
    /// The archive exceeds a bound of the policy.
    #[error("it has more than {limit} {what}")]
    TooLarge {
        /// `entries` or `bytes`.
        what: &'static str,
        /// The policy's bound.
        limit: u64,
    },
    /// The archive's own structure is broken.
    #[error("{what}")]
    Broken {
        /// Where and how.
        what: String,
    },
    /// The archive cannot be read, or its compressed data is damaged.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// The entries could not be written on.
    #[error("its entries cannot be written")]
    Write(#[source] io::Error),
}

/// Treatment of device nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Devices {
    /// An archive with one is refused.
    Refuse,
    /// Those below `dev/` are left out, since nodes make their own; others are refused.
    DropBelowDev,
}

/// What an archive may contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TarPolicy {
    /// Device nodes.
    pub devices: Devices,
    /// `bin/x`, `sbin/x`, `lib/x`, `lib64/x` become `usr/bin/x`, …: in a layer, a directory of that name would hide the
    /// link that a merged-/usr base has there.
    pub merge_usr: bool,
    /// A layer of an OCI image: whiteouts (`.wh.NAME`) are interpreted, absolute names mean the image's root, and links
    /// may lead above the root, which for the kernel is the root again.
    pub oci: bool,
    /// A digest covers every byte: an archive without an end marker is as its author left it, not truncated.
    pub sealed: bool,
    /// Most entries.
    pub max_entries: u64,
    /// Most bytes of file contents, together.
    pub max_bytes: u64,
}

impl TarPolicy {
    /// For overlays. The bounds are ten times the largest known distribution root, and far below the size of a disk.
    pub const OVERLAY: Self = Self {
        devices: Devices::Refuse,
        merge_usr: true,
        oci: false,
        sealed: false,
        max_entries: 1_000_000,
        max_bytes: 16 << 30,
    };
    /// For base root filesystems.
    pub const BASE: Self = Self { devices: Devices::DropBelowDev, merge_usr: false, ..Self::OVERLAY };
    /// For layers of an OCI image.
    pub const OCI: Self = Self { oci: true, sealed: true, ..Self::BASE };
}

/// Kind of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file of this many bytes.
    File(u64),
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// Another name of the file at this path (relative to the root).
    Hardlink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// OCI: removes what lower layers have at this path.
    Whiteout,
    /// OCI: removes what lower layers have in this directory.
    Opaque,
}

/// One entry of a root filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path relative to the root, without `.` or empty parts; empty for the root itself.
    pub path: Vec<u8>,
    /// Its kind.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

impl Entry {
    /// A directory owned by root.
    pub fn directory(path: &[u8], mode: u32) -> Self {
        Self { path: path.to_vec(), kind: Kind::Directory, mode, uid: 0, gid: 0, xattrs: Vec::new() }
    }
    /// Path as text, for messages.
    pub fn name(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }
}

/// Linux's limits: a file with a longer name or path cannot be created.
const MAX_NAME_BYTES: usize = 255;
const MAX_PATH_BYTES: usize = 4095;
/// Deepest path: a deeper tree is malicious.
const MAX_DEPTH: usize = 100;

pub(crate) fn refused(entry: &[u8], why: impl Into<String>) -> TarError {
    let shown: Vec<u8> = entry.iter().copied().take(300).collect();
    TarError::Refused { entry: String::from_utf8_lossy(&shown).into_owned(), why: why.into() }
}

/// Walks an archive to its last byte: each entry, checked by itself, is passed to `each` with its contents.
///
/// # Errors
/// [`TarError`]; an error of `each` becomes [`TarError::Write`].
pub fn walk(
    reader: impl Read,
    policy: &TarPolicy,
    each: impl FnMut(Entry, &mut dyn Read) -> Result<(), TarError>,
) -> Result<(), TarError> {
    let mut members = Members::new(reader);
    let walked = walk_members(&mut members, policy, each);
    // Damaged compressed data looks malformed before its checksum is reached: the damage is reported instead.
    if let Err(TarError::Refused { .. } | TarError::Broken { .. }) = &walked
        && let Err(e) = members.drain(policy.max_bytes)
        && Damage::is_in(&e)
    {
        return Err(TarError::Read(e));
    }
    walked
}

fn walk_members<R: Read>(
    members: &mut Members<R>,
    policy: &TarPolicy,
    mut each: impl FnMut(Entry, &mut dyn Read) -> Result<(), TarError>,
) -> Result<(), TarError> {
    let (mut entries, mut bytes) = (0u64, 0u64);
    while let Some(member) = members.advance()? {
        entries += 1;
        if entries > policy.max_entries {
            return Err(TarError::TooLarge { what: "entries", limit: policy.max_entries });
        }
        let Some(checked) = check(&member, policy)? else { continue };
        if let Kind::File(len) = checked.kind {
            bytes = bytes.saturating_add(len);
            if bytes > policy.max_bytes {
                return Err(TarError::TooLarge { what: "bytes", limit: policy.max_bytes });
            }
        }
        each(checked, &mut members.contents(&member))?;
    }
    members.finish(policy.sealed, policy.max_bytes)
}

/// Checks one member against the policy; `None` when it is left out.
fn check(member: &Member, policy: &TarPolicy) -> Result<Option<Entry>, TarError> {
    use tar::EntryType as T;
    let name = &member.name[..];
    let clean = |path: &[u8]| clean(if policy.oci { relative(path) } else { path });
    let mut path = clean(name)?;
    let need_link = || match &member.link[..] {
        b"" => Err(refused(name, "links to nothing")),
        link => Ok(link),
    };
    let directory = member.kind == T::Directory || (member.kind.is_file() && name.ends_with(b"/"));
    if policy.merge_usr {
        path = merge_usr(path, directory);
    }
    let kind = match member.kind {
        _ if directory => Kind::Directory,
        T::Regular | T::Continuous | T::GNUSparse => Kind::File(member.size),
        T::Symlink => {
            let target = need_link()?;
            check_symlink(name, &path, target, policy.oci)?;
            Kind::Symlink(target.to_vec())
        }
        T::Link => {
            let target = need_link()?;
            let mut target =
                clean(target).map_err(|_| refused(name, "is a hard link that leaves the root"))?;
            if policy.merge_usr {
                target = merge_usr(target, false);
            }
            Kind::Hardlink(target)
        }
        T::Fifo => Kind::Fifo,
        T::Char | T::Block => {
            return match policy.devices {
                // overlayfs's own whiteouts are devices too, but OCI layers do not contain them.
                Devices::DropBelowDev if path.starts_with(b"dev/") => Ok(None),
                _ => Err(refused(name, "is a device node")),
            };
        }
        other => return Err(refused(name, format!("is of unknown type {:?}", other.as_byte() as char))),
    };
    if path.is_empty() && kind != Kind::Directory {
        return Err(refused(name, "replaces the root"));
    }
    let (mode, uid, gid) = (member.mode & 0o7777, member.uid, member.gid);
    if u32::try_from(uid).is_err() || u32::try_from(gid).is_err() {
        return Err(refused(name, "has an owner that is out of range"));
    }
    if policy.oci {
        let at = path.iter().rposition(|b| *b == b'/').map_or(0, |p| p + 1);
        if let Some(hidden) = path[at..].strip_prefix(b".wh.") {
            let (path, kind) = if hidden == b".wh..opq" {
                (path[..at.saturating_sub(1)].to_vec(), Kind::Opaque)
            } else if hidden.is_empty() || hidden == b"." || hidden == b".." || hidden.starts_with(b".wh.") {
                return Err(refused(name, "is a whiteout of nothing"));
            } else {
                ([&path[..at], hidden].concat(), Kind::Whiteout)
            };
            return Ok(Some(Entry { path, kind, mode, uid, gid, xattrs: Vec::new() }));
        }
    }
    let kept: BTreeMap<&String, &Vec<u8>> = member
        .xattrs
        .iter()
        .filter(|(name, _)| kept_xattr(name))
        .map(|(name, value)| (name, value))
        .collect();
    let xattrs = kept.into_iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    Ok(Some(Entry { path, kind, mode, uid, gid, xattrs }))
}

/// A path without its leading slashes.
fn relative(path: &[u8]) -> &[u8] {
    &path[path.iter().take_while(|b| **b == b'/').count()..]
}

/// File capabilities and users' attributes are kept. Left out: ACLs, which squashfs cannot store; security labels of
/// the machine of origin; and attributes that overlayfs would interpret (`trusted.overlay.redirect` and the like).
fn kept_xattr(name: &str) -> bool {
    name == "security.capability" || (name.starts_with("user.") && !name.starts_with("user.overlay."))
}

/// A path of the archive, normalised to parts joined by single slashes.
fn clean(name: &[u8]) -> Result<Vec<u8>, TarError> {
    if name.starts_with(b"/") {
        return Err(refused(name, "is an absolute path"));
    }
    if name.contains(&0) {
        return Err(refused(name, "has a zero byte in its name"));
    }
    let mut out: Vec<u8> = Vec::with_capacity(name.len());
    let mut depth = 0;
    for part in name.split(|b| *b == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err(refused(name, "has \"..\" in its path")),
            _ => {}
        }
        depth += 1;
        if part.len() > MAX_NAME_BYTES || depth > MAX_DEPTH {
            return Err(refused(name, "is too long or too deep"));
        }
        if !out.is_empty() {
            out.push(b'/');
        }
        out.extend_from_slice(part);
    }
    if out.len() > MAX_PATH_BYTES { Err(refused(name, "is too long or too deep")) } else { Ok(out) }
}

/// An absolute target means the image's own root; a relative one may lead above it only if `may_climb`.
fn check_symlink(name: &[u8], path: &[u8], target: &[u8], may_climb: bool) -> Result<(), TarError> {
    if target.contains(&0) || target.len() > MAX_PATH_BYTES {
        return Err(refused(name, "has a link target that is not a path"));
    }
    if may_climb {
        return Ok(());
    }
    let mut depth = if target.starts_with(b"/") { 0 } else { path.iter().filter(|b| **b == b'/').count() };
    for part in target.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                depth = depth
                    .checked_sub(1)
                    .ok_or_else(|| refused(name, "is a symbolic link that leaves the root"))?;
            }
            _ => depth += 1,
        }
    }
    Ok(())
}

/// Checks the target of a link that does not come from an archive. Other kinds pass.
///
/// # Errors
/// [`TarError::Refused`].
pub fn check_entry_link(entry: &Entry) -> Result<(), TarError> {
    match &entry.kind {
        Kind::Symlink(target) => check_symlink(&entry.path, &entry.path, target, false),
        _ => Ok(()),
    }
}

/// Turns `bin/x` into `usr/bin/x`, and so on. Of the four names themselves only a directory is moved: a link stays.
pub fn merge_usr(path: Vec<u8>, directory: bool) -> Vec<u8> {
    for top in [&b"bin"[..], b"sbin", b"lib", b"lib64"] {
        if let Some(rest) = path.strip_prefix(top)
            && (rest.starts_with(b"/") || (rest.is_empty() && directory))
        {
            return [b"usr/", &path[..]].concat();
        }
    }
    path
}

/// Checks the entries of one archive against each other: parents, targets of hard links, replacements.
#[derive(Debug, Default)]
pub struct Tree {
    seen: BTreeMap<Vec<u8>, State>,
    /// Whether the archive is laid over others, whose files its hard links may also name.
    over: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A directory that has entries but is not listed yet.
    Implied,
    Directory,
    Other,
}

impl Tree {
    /// For an archive whose hard links may also name files of lower layers. The caller checks that those exist.
    pub fn over_others() -> Self {
        Self { over: true, ..Self::default() }
    }

    /// Adds an entry of the archive. `true` if it replaces an earlier one.
    ///
    /// # Errors
    /// [`TarError::Refused`] if it is below something other than a directory, replaces a directory, or is a hard link
    /// to a directory, to itself, or to a missing file.
    pub fn add(&mut self, entry: &Entry) -> Result<bool, TarError> {
        if matches!(entry.kind, Kind::Whiteout | Kind::Opaque) {
            return Ok(false);
        }
        let path = &entry.path;
        for (at, _) in path.iter().enumerate().filter(|(_, b)| **b == b'/') {
            if self.seen.get(&path[..at]) == Some(&State::Other) {
                let above = String::from_utf8_lossy(&path[..at]).into_owned();
                return Err(refused(path, format!("is below {above:?}, which is not a directory")));
            }
        }
        let state = if entry.kind == Kind::Directory { State::Directory } else { State::Other };
        if let Kind::Hardlink(target) = &entry.kind {
            if target == path {
                return Err(refused(path, "is a hard link to itself"));
            }
            let above = target.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| &target[..at]);
            if above.into_iter().any(|dir| self.seen.get(dir) == Some(&State::Other)) {
                return Err(no_target(path, target));
            }
            match self.seen.get(target) {
                Some(State::Directory | State::Implied) => return Err(no_target(path, target)),
                None if !self.over => return Err(no_target(path, target)),
                _ => {}
            }
        }
        let before = self.seen.get(path).copied();
        if matches!(before, Some(State::Directory | State::Implied)) && state != State::Directory {
            return Err(refused(path, "replaces a directory"));
        }
        for (at, _) in path.iter().enumerate().filter(|(_, b)| **b == b'/') {
            if !self.seen.contains_key(&path[..at]) {
                self.seen.insert(path[..at].to_vec(), State::Implied);
            }
        }
        self.seen.insert(path.clone(), state);
        Ok(before.is_some_and(|s| s != State::Implied))
    }
}

/// The error for a hard link without its target.
pub(crate) fn no_target(path: &[u8], target: &[u8]) -> TarError {
    let target = String::from_utf8_lossy(target);
    refused(
        path,
        format!(
            "is a hard link to {target:?}, which is not an earlier file of the archive or of a layer below it"
        ),
    )
}

/// Contents of an archive, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Entries kept.
    pub entries: u64,
    /// Bytes of file contents.
    pub bytes: u64,
}

/// Checks a whole archive without using it.
///
/// # Errors
/// [`TarError`], as any use of the archive would return.
pub fn check_entries(reader: impl Read, policy: &TarPolicy) -> Result<Summary, TarError> {
    let mut tree = Tree::default();
    let mut summary = Summary::default();
    walk(reader, policy, |entry, _| {
        tree.add(&entry)?;
        summary.entries += 1;
        if let Kind::File(len) = entry.kind {
            summary.bytes += len;
        }
        Ok(())
    })?;
    Ok(summary)
}

/// Writes checked entries as a tar that depends only on them: no times, no names of owners.
pub struct Writer<W: io::Write> {
    builder: tar::Builder<W>,
    mtime: u64,
    prefix: &'static str,
}

impl<W: io::Write> Writer<W> {
    /// A writer whose entries get this time and prefix, such as `rootfs/`.
    pub fn new(inner: W, mtime: u64, prefix: &'static str) -> Self {
        Self { builder: tar::Builder::new(inner), mtime, prefix }
    }

    /// Continues the archive with another prefix.
    pub fn with_prefix(self, prefix: &'static str) -> Self {
        Self { prefix, ..self }
    }

    /// Writes one entry; the root itself and whiteouts are skipped.
    pub fn put(&mut self, entry: &Entry, data: &mut dyn Read) -> io::Result<()> {
        use std::os::unix::ffi::OsStrExt;
        let os = |b: &[u8]| std::path::PathBuf::from(std::ffi::OsStr::from_bytes(b));
        let path = |p: &[u8]| {
            let mut full = self.prefix.as_bytes().to_vec();
            full.extend_from_slice(p);
            full
        };
        if matches!(entry.kind, Kind::Whiteout | Kind::Opaque)
            || (entry.path.is_empty() && self.prefix.is_empty())
        {
            return Ok(());
        }
        let name = path(&entry.path);
        if !entry.xattrs.is_empty() {
            let keys: Vec<(String, &[u8])> =
                entry.xattrs.iter().map(|(k, v)| (format!("SCHILY.xattr.{k}"), &v[..])).collect();
            self.builder.append_pax_extensions(keys.iter().map(|(k, v)| (k.as_str(), *v)))?;
        }
        let mut header = tar::Header::new_gnu();
        header.set_mode(entry.mode);
        header.set_uid(entry.uid);
        header.set_gid(entry.gid);
        header.set_mtime(self.mtime);
        header.set_size(0);
        match &entry.kind {
            Kind::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                let mut name = name;
                if !name.ends_with(b"/") {
                    name.push(b'/');
                }
                self.builder.append_data(&mut header, os(&name), io::empty())
            }
            Kind::File(len) => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(*len);
                let mut limited = Exactly { inner: data, left: *len };
                self.builder.append_data(&mut header, os(&name), &mut limited)
            }
            Kind::Symlink(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                self.builder.append_link(&mut header, os(&name), os(target))
            }
            Kind::Hardlink(target) => {
                header.set_entry_type(tar::EntryType::Link);
                self.builder.append_link(&mut header, os(&name), os(&path(target)))
            }
            Kind::Fifo => {
                header.set_entry_type(tar::EntryType::Fifo);
                self.builder.append_data(&mut header, os(&name), io::empty())
            }
            Kind::Whiteout | Kind::Opaque => Ok(()),
        }
    }

    /// Ends the archive.
    pub fn finish(self) -> io::Result<W> {
        self.builder.into_inner()
    }
}

/// Reads exactly the announced number of bytes, or fails: a file that grows or shrinks while it is read would otherwise
/// shift everything after it.
struct Exactly<'a> {
    inner: &'a mut dyn Read,
    left: u64,
}
impl Read for Exactly<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buf.is_empty() {
            return Ok(0);
        }
        let most = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.inner.read(&mut buf[..most])?;
        if n == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "file became shorter while it was read",
            ));
        }
        self.left -= n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An entry with any name: the library's own setters would refuse hostile ones.
    fn raw(name: &str, kind: u8, link: &str, data: &[u8]) -> Vec<u8> {
        let mut h = tar::Header::new_gnu();
        h.set_mode(0o644);
        h.set_uid(0);
        h.set_gid(0);
        h.set_mtime(0);
        h.set_size(data.len() as u64);
        h.set_entry_type(tar::EntryType::new(kind));
        let old = h.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        if kind == b'3' || kind == b'4' {
            h.set_device_major(8).unwrap();
            h.set_device_minor(0).unwrap();
        }
        h.set_cksum();
        let mut out = h.as_bytes().to_vec();
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }
    fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut out = entries.concat();
        out.resize(out.len() + 1024, 0);
        out
    }
    fn verdict(entries: &[Vec<u8>], policy: &TarPolicy) -> String {
        match check_entries(&archive(entries)[..], policy) {
            Ok(s) => format!("{} entries, {} bytes", s.entries, s.bytes),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn hostile_entries_are_refused_by_name() {
        let dir = |n: &str| raw(n, b'5', "", b"");
        let cases: Vec<(Vec<Vec<u8>>, &str)> = vec![
            (vec![raw("/etc/passwd", b'0', "", b"x")], "\"/etc/passwd\" is an absolute path"),
            (vec![raw("a/../../b", b'0', "", b"x")], "\"a/../../b\" has \"..\""),
            (vec![raw("..", b'5', "", b"")], "\"..\" has \"..\""),
            (vec![raw("sda", b'4', "", b"")], "\"sda\" is a device node"),
            (vec![raw("dev/kmem", b'3', "", b"")], "\"dev/kmem\" is a device node"),
            (vec![raw("l", b'2', "../x", b"")], "\"l\" is a symbolic link that leaves the root"),
            (vec![raw("a/b/l", b'2', "../../../x", b"")], "leaves the root"),
            (vec![raw("a/l", b'2', "x/../../../y", b"")], "leaves the root"),
            (vec![raw("l", b'2', "/..", b"")], "leaves the root"),
            (vec![raw("l", b'2', "", b"")], "links to nothing"),
            (vec![raw("l", b'1', "/etc/shadow", b"")], "\"l\" is a hard link that leaves the root"),
            (vec![raw("l", b'1', "../../etc/shadow", b"")], "is a hard link that leaves the root"),
            (vec![raw("l", b'1', "etc/shadow", b"")], "which is not an earlier file"),
            (vec![dir("s/"), raw("h", b'1', "s", b"")], "which is not an earlier file"),
            (
                vec![raw("s", b'2', "/etc", b""), raw("h", b'1', "s", b""), raw("h/x", b'0', "", b"")],
                "is below \"h\"",
            ),
            (vec![raw("l", b'2', "/etc", b""), raw("l/passwd", b'0', "", b"x")], "is below \"l\""),
            (vec![raw("l", b'2', "/etc", b""), dir("l/x/")], "is below \"l\""),
            (vec![raw("f", b'0', "", b"x"), raw("f/x", b'0', "", b"x")], "is below \"f\""),
            (
                vec![dir("d/"), raw("d", b'2', "/etc", b""), raw("d/x", b'0', "", b"x")],
                "replaces a directory",
            ),
            (vec![raw("d/x", b'0', "", b"x"), raw("d", b'0', "", b"x")], "replaces a directory"),
            (vec![raw("f", b'0', "", b"x"), raw("f", b'1', "f", b"")], "hard link to itself"),
            (vec![raw("./", b'0', "", b"")], "1 entries"),
            (vec![raw(".", b'0', "", b"x")], "replaces the root"),
            (vec![raw("q", b'Z', "", b"")], "unknown type 'Z'"),
            (vec![raw(&"d/".repeat(49), b'5', "", b"")], "1 entries"),
        ];
        for (entries, expected) in cases {
            let found = verdict(&entries, &TarPolicy::OVERLAY);
            assert!(found.contains(expected), "expected {expected:?}, found {found:?}");
        }
    }

    #[test]
    fn ordinary_entries_pass() {
        let entries = [
            raw("./", b'5', "", b""),
            raw("./etc/", b'5', "", b""),
            raw("./etc/a", b'0', "", b"abc"),
            raw("./etc/a", b'0', "", b"later one wins"),
            raw("etc/abs", b'2', "/usr/share/x", b""),
            raw("etc/rel", b'2', "../usr/./share", b""),
            raw("etc/hard", b'1', "./etc/a", b""),
            raw("pipe", b'6', "", b""),
        ];
        assert_eq!(verdict(&entries, &TarPolicy::OVERLAY), "8 entries, 17 bytes");
    }

    #[test]
    fn policies_differ() {
        let device = [raw("dev/null", b'3', "", b"")];
        assert_eq!(verdict(&device, &TarPolicy::BASE), "0 entries, 0 bytes");
        assert!(verdict(&[raw("etc/null", b'3', "", b"")], &TarPolicy::BASE).contains("is a device node"));
        let few = TarPolicy { max_entries: 2, ..TarPolicy::OVERLAY };
        let three = [raw("a", b'0', "", b""), raw("b", b'0', "", b""), raw("c", b'0', "", b"")];
        assert_eq!(verdict(&three, &few), "it has more than 2 entries");
        let small = TarPolicy { max_bytes: 3, ..TarPolicy::OVERLAY };
        assert_eq!(verdict(&[raw("a", b'0', "", b"four")], &small), "it has more than 3 bytes");
    }

    /// The tar crate's handling of long names and false sizes must not bypass the rules.
    #[test]
    fn long_names_and_false_sizes_are_checked_too() {
        let long = format!("{}/../x", "d/".repeat(80));
        let bytes = archive(&[raw("././@LongLink", b'L', "", long.as_bytes()), raw("x", b'0', "", b"")]);
        let e = check_entries(&bytes[..], &TarPolicy::OVERLAY).unwrap_err();
        assert!(e.to_string().contains("\"..\""), "{e}");
        let mut cut = raw("a", b'0', "", b"");
        let mut h = tar::Header::from_byte_slice(&cut[..512]).clone();
        h.set_size(1 << 40);
        h.set_cksum();
        cut[..512].copy_from_slice(h.as_bytes());
        assert!(matches!(
            check_entries(&cut[..], &TarPolicy::OVERLAY),
            Err(TarError::TooLarge { .. } | TarError::Read(_))
        ));
    }

    #[test]
    fn merged_usr() {
        let m = |p: &str, d| String::from_utf8(merge_usr(p.as_bytes().to_vec(), d)).unwrap();
        assert_eq!(m("bin/sh", false), "usr/bin/sh");
        assert_eq!(m("lib64/ld.so", false), "usr/lib64/ld.so");
        assert_eq!(m("sbin", true), "usr/sbin");
        assert_eq!((m("bin", false), m("binary/x", false)), ("bin".into(), "binary/x".into()));
    }

    #[test]
    fn attributes_that_overlayfs_would_obey_are_left_out() {
        let keys =
            ["trusted.overlay.redirect", "user.overlay.opaque", "user.note", "system.posix_acl_access"];
        let file = Entry {
            kind: Kind::File(0),
            xattrs: keys.iter().map(|k| ((*k).to_owned(), b"y".to_vec())).collect(),
            ..Entry::directory(b"f", 0o644)
        };
        let mut writer = Writer::new(Vec::new(), 7, "");
        writer.put(&file, &mut io::empty()).unwrap();
        let mut found = Vec::new();
        walk(&writer.finish().unwrap()[..], &TarPolicy::OVERLAY, |e, _| {
            found = e.xattrs;
            Ok(())
        })
        .unwrap();
        assert_eq!(found, [("user.note".to_owned(), b"y".to_vec())]);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let file = Entry {
            kind: Kind::File(3),
            xattrs: vec![("security.capability".into(), vec![1, 0, 2])],
            ..Entry::directory("d/very-long-name-".repeat(20).as_bytes(), 0o4755)
        };
        let link = Entry { kind: Kind::Symlink(b"/x/y".to_vec()), ..Entry::directory(b"l", 0o777) };
        let mut writer = Writer::new(Vec::new(), 7, "");
        writer.put(&file, &mut &b"abc"[..]).unwrap();
        writer.put(&link, &mut io::empty()).unwrap();
        let bytes = writer.finish().unwrap();
        let mut found = Vec::new();
        walk(&bytes[..], &TarPolicy::OVERLAY, |e, _| {
            found.push(e);
            Ok(())
        })
        .unwrap();
        assert_eq!(found, [file.clone(), link]);
        let short = Writer::new(Vec::new(), 7, "").put(&file, &mut &b"ab"[..]).unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
    }

    proptest! {
        /// An archive that passes writes nothing outside the root, neither by a path nor through one of its links.
        #[test]
        fn an_accepted_archive_stays_inside_the_root(
            entries in proptest::collection::vec(
                ("(\\./|/)?([ab]|\\.\\.)(/([ab]|\\.\\.)){0,3}/?", 0usize..4, "/?([ab]|\\.\\.)(/([ab]|\\.\\.)){0,3}"), 1..8)
        ) {
            let bytes: Vec<Vec<u8>> =
                entries.iter().map(|(n, k, l)| raw(n, [b'0', b'5', b'2', b'1'][*k], l, b"")).collect();
            if check_entries(&archive(&bytes)[..], &TarPolicy::OVERLAY).is_ok() {
                // The paths of links, as the archive ends up with them.
                let mut links = std::collections::BTreeSet::new();
                walk(&archive(&bytes)[..], &TarPolicy::OVERLAY, |e, _| {
                    let name = e.name();
                    assert!(!name.starts_with('/') && !name.split('/').any(|p| p == ".."), "{name}");
                    for (at, _) in name.match_indices('/') {
                        assert!(!links.contains(&name[..at]), "{name} goes through a link");
                    }
                    match &e.kind {
                        Kind::Symlink(_) => { links.insert(name); }
                        _ => { links.remove(&name); }
                    }
                    Ok(())
                }).unwrap();
            }
        }
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = check_entries(&bytes[..], &TarPolicy::OVERLAY);
            let _ = check_entries(&bytes[..], &TarPolicy::OCI);
        }
        #[test]
        fn damaged_archives_are_answered(at in 0usize..2000, value: u8) {
            let mut bytes = archive(&[raw("d", b'5', "", b""), raw("d/f", b'0', "", b"abc"), raw("l", b'2', "d", b"")]);
            if at < bytes.len() { bytes[at] = value; }
            let _ = check_entries(&bytes[..], &TarPolicy::OVERLAY);
        }
    }
}
