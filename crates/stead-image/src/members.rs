//! Reads the members of a tar: names and sizes after POSIX (pax) and GNU extensions, and sparse files in every form
//! that GNU tar and libarchive write, with their holes filled.
//!
//! Owns the format: a member as it was written, or an error that names it. [`crate::tarball`] decides which members an
//! image may have. Bytes whose meaning tar programs disagree about are refused.

use crate::tarball::{TarError, refused};
use std::{
    collections::VecDeque,
    io::{self, Read},
};
use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

const BLOCK_BYTES: u64 = 512;
/// The most bytes of one extended header, long name or sparse map. Linux allows 64 KiB of attributes per file; a map of
/// this size describes a file of about 300,000 pieces.
const MAX_EXTENSION_BYTES: u64 = 8 << 20;

/// The most bytes of an archive, headers and padding included: a few compressed bytes may expand to endless headers.
const MAX_ARCHIVE_BYTES: u64 = 64 << 30;

/// A member: one file, directory or link of the archive.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its name as written, after extensions.
    pub name: Vec<u8>,
    /// The target of a link; empty for other members.
    pub link: Vec<u8>,
    /// Its type, as written in the header.
    pub kind: EntryType,
    /// Bytes of its contents, holes included.
    pub size: u64,
    /// Mode bits.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Extended attributes as (name, value), unordered.
    pub xattrs: Vec<(String, Vec<u8>)>,
    /// Where its bytes begin in the archive, when it is not sparse.
    pub offset: Option<u64>,
    /// The stored pieces as (offset, length), in order; the rest is zeros.
    pieces: VecDeque<(u64, u64)>,
}

/// Reads members one after another.
pub struct Members<R> {
    reader: R,
    /// Bytes read so far.
    at: u64,
    /// Stored bytes of the current member not read yet.
    left: u64,
    /// Zeros after them up to the next block.
    padding: u64,
    /// The member read last, for messages.
    last: Option<Vec<u8>>,
    global: Records,
    /// The end marker was seen.
    ended: bool,
}

/// Records of pax headers, in order.
type Records = Vec<(Vec<u8>, Vec<u8>)>;

fn broken(what: impl Into<String>) -> TarError {
    TarError::Broken { what: what.into() }
}

fn shown(name: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(&name[..name.len().min(300)]))
}

/// The last value of a key; an empty value removes earlier ones.
fn value<'a>(records: &'a Records, key: &str) -> Option<&'a [u8]> {
    records.iter().rev().find(|(k, _)| k == key.as_bytes()).map(|(_, v)| &v[..]).filter(|v| !v.is_empty())
}

fn decimal(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() || !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

impl<R: Read> Members<R> {
    /// Reads the members of an uncompressed archive.
    pub fn new(reader: R) -> Self {
        Self { reader, at: 0, left: 0, padding: 0, last: None, global: Vec::new(), ended: false }
    }

    /// The next member; `None` at the end marker, or where the bytes end without one ([`Members::finish`] reports
    /// which).
    ///
    /// # Errors
    /// [`TarError::Read`], [`TarError::Broken`], or [`TarError::Refused`] with the member's name.
    pub fn advance(&mut self) -> Result<Option<Member>, TarError> {
        let mut local: Option<Records> = None;
        let (mut long_name, mut long_link) = (None, None);
        loop {
            self.skip(self.left.saturating_add(self.padding))?;
            (self.left, self.padding) = (0, 0);
            let Some(header) = self.header()? else {
                if local.is_some() || long_name.is_some() || long_link.is_some() {
                    return Err(broken(format!("it ends in an extended header{}", self.after())));
                }
                return Ok(None);
            };
            let name = header.path_bytes().into_owned();
            let kind = header.entry_type();
            let size = header.entry_size().map_err(|e| refused(&name, format!("has no size: {e}")))?;
            match kind {
                EntryType::XGlobalHeader => {
                    let records = self.extension(&name, size)?;
                    self.global.extend(parse_records(&name, &records)?);
                    if self.global.len() as u64 > MAX_EXTENSION_BYTES / BLOCK_BYTES {
                        return Err(refused(&name, "is one global header too many"));
                    }
                }
                EntryType::XHeader => {
                    let records = self.extension(&name, size)?;
                    if local.replace(parse_records(&name, &records)?).is_some() {
                        return Err(refused(&name, "is a second extended header for one member"));
                    }
                }
                EntryType::GNULongName | EntryType::GNULongLink => {
                    let mut text = self.extension(&name, size)?;
                    if let Some(end) = text.iter().position(|b| *b == 0) {
                        text.truncate(end);
                    }
                    let slot = if kind == EntryType::GNULongName { &mut long_name } else { &mut long_link };
                    if slot.replace(text).is_some() {
                        return Err(refused(&name, "is a second long name for one member"));
                    }
                }
                _ => return self.member(&header, local.unwrap_or_default(), long_name, long_link).map(Some),
            }
        }
    }

    /// A reader of the contents of the member that [`Members::advance`] returned last, to its full size.
    pub fn contents<'a>(&'a mut self, member: &'a Member) -> Contents<'a, R> {
        Contents { members: self, size: member.size, at: 0, pieces: member.pieces.iter(), piece: None }
    }

    /// Reads what follows the end marker. `sealed`: a digest covers the bytes, so a missing marker and bytes after it
    /// are accepted as the archive's author left them.
    ///
    /// # Errors
    /// The marker is missing, or bytes other than zeros or more than `max_bytes` follow it.
    pub fn finish(&mut self, sealed: bool, max_bytes: u64) -> Result<(), TarError> {
        if !self.ended && !sealed {
            return Err(broken(if self.at == 0 {
                "it is empty".to_owned()
            } else {
                format!("it has no end marker: it is truncated{}", self.after())
            }));
        }
        let mut buf = [0; 16 << 10];
        let mut seen = 0u64;
        loop {
            let n = self.reader.read(&mut buf).map_err(TarError::Read)?;
            if n == 0 {
                return Ok(());
            }
            if !sealed && buf[..n].iter().any(|b| *b != 0) {
                return Err(broken(
                    "bytes follow its end marker: join archives with tar --concatenate, not with cat",
                ));
            }
            seen += n as u64;
            if seen > max_bytes {
                return Err(TarError::TooLarge { what: "bytes after its end marker", limit: max_bytes });
            }
        }
    }

    /// Reads and discards the rest, because the reader may still return errors.
    ///
    /// # Errors
    /// The reader's.
    pub fn drain(&mut self, max_bytes: u64) -> io::Result<()> {
        io::copy(&mut self.reader.by_ref().take(max_bytes), &mut io::sink()).map(drop)
    }

    fn after(&self) -> String {
        self.last.as_ref().map_or(String::new(), |name| format!(" after entry {}", shown(name)))
    }

    /// The next header block; `None` at the end.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        if self.ended {
            return Ok(None);
        }
        if self.at > MAX_ARCHIVE_BYTES {
            return Err(TarError::TooLarge {
                what: "bytes with headers and padding",
                limit: MAX_ARCHIVE_BYTES,
            });
        }
        let mut header = Header::new_old();
        let n = self.fill(header.as_mut_bytes())?;
        if n == 0 {
            return Ok(None);
        }
        let bytes = header.as_bytes();
        if n < bytes.len() {
            return Err(broken(if self.last.is_none() && self.at < BLOCK_BYTES {
                "it is not a tar".to_owned()
            } else {
                format!("it is truncated{}", self.after())
            }));
        }
        if bytes.iter().all(|b| *b == 0) {
            self.ended = true;
            return Ok(None);
        }
        let field = 148..156;
        let rest = bytes.iter().enumerate().filter(|(at, _)| !field.contains(at)).map(|(_, b)| *b);
        let blanks = 8 * u32::from(b' ');
        let sum = rest.clone().map(u32::from).sum::<u32>() + blanks;
        // Some old programs summed signed bytes.
        let signed = rest.map(|b| i64::from(b.cast_signed())).sum::<i64>() + i64::from(blanks);
        let said = header.cksum().ok();
        if said != Some(sum) && said.map(i64::from) != Some(signed) {
            return Err(broken(match &self.last {
                None if self.at == BLOCK_BYTES => "it is not a tar".to_owned(),
                None => "its first header is damaged".to_owned(),
                Some(name) => format!("the header after entry {} is damaged", shown(name)),
            }));
        }
        Ok(Some(header))
    }

    /// Fills `buf` as far as there are bytes.
    fn fill(&mut self, buf: &mut [u8]) -> Result<usize, TarError> {
        let mut n = 0;
        while n < buf.len() {
            match self.reader.read(&mut buf[n..]) {
                Ok(0) => break,
                Ok(more) => n += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(TarError::Read(e)),
            }
        }
        self.at += n as u64;
        Ok(n)
    }

    fn skip(&mut self, bytes: u64) -> Result<(), TarError> {
        let n = io::copy(&mut self.reader.by_ref().take(bytes), &mut io::sink()).map_err(TarError::Read)?;
        self.at += n;
        if n < bytes { Err(self.cut()) } else { Ok(()) }
    }

    fn cut(&self) -> TarError {
        match &self.last {
            Some(name) => broken(format!("it is truncated within entry {}", shown(name))),
            None => broken("it is truncated within its first header"),
        }
    }

    /// Notes that a member's stored bytes come next.
    fn stored(&mut self, name: &[u8], size: u64) -> Result<(), TarError> {
        let whole = size
            .checked_next_multiple_of(BLOCK_BYTES)
            .ok_or_else(|| refused(name, format!("has an impossible size of {size} bytes")))?;
        (self.left, self.padding) = (size, whole - size);
        Ok(())
    }

    /// The bytes of an extension.
    fn extension(&mut self, name: &[u8], size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_EXTENSION_BYTES {
            return Err(refused(name, format!("is an extended header of {size} bytes")));
        }
        self.stored(name, size)?;
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        let n = self.fill(&mut bytes)?;
        self.left -= n as u64;
        if n < bytes.len() { Err(self.cut()) } else { Ok(bytes) }
    }

    fn member(
        &mut self,
        header: &Header,
        local: Records,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Member, TarError> {
        let old_name = header.path_bytes().into_owned();
        let said = |key: &str| value(&local, key).or_else(|| value(&self.global, key)).map(<[u8]>::to_vec);
        // Programs disagree about which of two names is valid.
        let one = |long: Option<Vec<u8>>, pax: Option<Vec<u8>>, what: &str| match (long, pax) {
            (Some(long), Some(pax)) if long != pax => {
                Err(refused(&pax, format!("has two {what}: the other is {}", shown(&long))))
            }
            (long, pax) => Ok(pax.or(long)),
        };
        let mut name = one(long_name, said("path"), "names")?.unwrap_or(old_name);
        if let Some(real) = value(&local, "GNU.sparse.name") {
            name = real.to_vec();
        }
        let link = match one(long_link, said("linkpath"), "targets")? {
            Some(link) => link,
            None => header.link_name_bytes().map(|l| l.into_owned()).unwrap_or_default(),
        };
        let number = |key: &str, field: io::Result<u64>| match said(key) {
            Some(text) => {
                decimal(&text).ok_or_else(|| refused(&name, format!("has a {key} of {}", shown(&text))))
            }
            None => field.map_err(|e| refused(&name, format!("has no {key}: {e}"))),
        };
        let kind = header.entry_type();
        // Links, directories and pipes have no contents, whatever size they state.
        let bare = matches!(
            kind,
            EntryType::Link
                | EntryType::Symlink
                | EntryType::Char
                | EntryType::Block
                | EntryType::Directory
                | EntryType::Fifo
        );
        let size = if bare { 0 } else { number("size", header.entry_size())? };
        let (uid, gid) = (number("uid", header.uid())?, number("gid", header.gid())?);
        let mode = header.mode().map_err(|e| refused(&name, format!("has no mode: {e}")))?;
        let xattrs = self
            .global
            .iter()
            .chain(&local)
            .filter_map(|(key, value)| {
                let key = std::str::from_utf8(key).ok()?.strip_prefix("SCHILY.xattr.")?;
                Some((key.to_owned(), value.clone()))
            })
            .collect();
        self.last = Some(name.clone());
        self.stored(&name, size)?;
        let mut member = Member {
            name,
            link,
            kind,
            size,
            mode,
            uid,
            gid,
            xattrs,
            offset: Some(self.at),
            pieces: VecDeque::from([(0, size)]),
        };
        self.sparse(header, &local, &mut member)?;
        Ok(member)
    }

    /// Reads a sparse member's real size and the positions of its pieces.
    fn sparse(&mut self, header: &Header, local: &Records, member: &mut Member) -> Result<(), TarError> {
        let bad = |why: String| refused(&member.name, format!("is a sparse file {why}"));
        for key in ["SCHILY.realsize", "SUN.holesdata", "SCHILY.filetype"] {
            if value(local, key).is_some() {
                return Err(bad(format!("in an unsupported form ({key})")));
            }
        }
        let pax = local.iter().any(|(key, _)| key.starts_with(b"GNU.sparse."));
        let (real, pieces) = if member.kind == EntryType::GNUSparse {
            if pax {
                return Err(bad("in two forms at once".into()));
            }
            let Some(gnu) = header.as_gnu() else {
                return Err(bad("in an unsupported form (no GNU header)".into()));
            };
            let real = gnu.real_size().map_err(|e| bad(format!("without a size: {e}")))?;
            (real, self.old_map(gnu.sparse.iter(), gnu.is_extended(), &member.name)?)
        } else if pax {
            if !matches!(member.kind, EntryType::Regular | EntryType::Continuous) {
                return Err(bad(format!("of type {:?}", member.kind.as_byte() as char)));
            }
            let number = |key: &str| match value(local, key) {
                None => Ok(None),
                Some(text) => {
                    decimal(text).map(Some).ok_or_else(|| bad(format!("with a {key} of {}", shown(text))))
                }
            };
            let version = (number("GNU.sparse.major")?, number("GNU.sparse.minor")?);
            let real = number("GNU.sparse.realsize")?;
            let real = match real {
                Some(real) => Some(real),
                None => number("GNU.sparse.size")?,
            };
            let real = real.ok_or_else(|| bad("without its real size".into()))?;
            let map = match version {
                (Some(1), Some(0)) => self.new_map(&member.name)?,
                (None, None) | (Some(0), Some(0 | 1)) => {
                    header_map(local).ok_or_else(|| bad("without a map of its pieces".into()))?
                }
                (major, minor) => {
                    let part = |n: Option<u64>| n.map_or("?".to_owned(), |n| n.to_string());
                    return Err(bad(format!("of unknown version {}.{}", part(major), part(minor))));
                }
            };
            if let Some(count) = number("GNU.sparse.numblocks")?
                && count != map.len() as u64
            {
                return Err(bad(format!("with {} pieces where {count} are announced", map.len())));
            }
            (real, map)
        } else {
            return Ok(());
        };
        let mut end = 0u64;
        let mut stored = 0u64;
        for (number, (offset, length)) in pieces.iter().enumerate() {
            if *offset < end {
                return Err(bad(format!("whose pieces overlap at {offset}")));
            }
            // GNU tar starts each piece in a new block, libarchive and others do not: the meaning is clear only where
            // it makes no difference.
            if number > 0 && *length > 0 && !stored.is_multiple_of(BLOCK_BYTES) {
                return Err(bad(format!("with a piece at {offset} that begins within a block")));
            }
            end = offset.checked_add(*length).ok_or_else(|| bad("of impossible size".into()))?;
            stored = stored.saturating_add(*length);
        }
        if end > real || stored != self.left {
            return Err(bad(format!(
                "of {real} bytes whose {stored} stored bytes end at {end}, with {} in the archive",
                self.left
            )));
        }
        (member.size, member.offset) = (real, None);
        member.pieces = pieces.into_iter().filter(|(_, length)| *length > 0).collect();
        Ok(())
    }

    /// The map of GNU's old form: four pieces in the header, more in the blocks after it.
    fn old_map<'a>(
        &mut self,
        first: impl Iterator<Item = &'a GnuSparseHeader>,
        mut more: bool,
        name: &[u8],
    ) -> Result<Vec<(u64, u64)>, TarError> {
        let piece = |p: &GnuSparseHeader| -> Result<(u64, u64), TarError> {
            let bad = |e| refused(name, format!("is a sparse file with a map that cannot be read: {e}"));
            Ok((p.offset().map_err(bad)?, p.length().map_err(bad)?))
        };
        let mut map = first.filter(|p| !p.is_empty()).map(piece).collect::<Result<Vec<_>, _>>()?;
        let mut blocks = 0;
        while more {
            blocks += 1;
            if blocks * BLOCK_BYTES > MAX_EXTENSION_BYTES {
                return Err(refused(name, "is a sparse file of too many pieces"));
            }
            let mut block = GnuExtSparseHeader::new();
            if (self.fill(block.as_mut_bytes())? as u64) < BLOCK_BYTES {
                return Err(self.cut());
            }
            for p in block.sparse().iter().filter(|p| !p.is_empty()) {
                map.push(piece(p)?);
            }
            more = block.is_extended();
        }
        Ok(map)
    }

    /// The map of pax form 1.0: decimal numbers, one a line, before the contents, padded to a block.
    fn new_map(&mut self, name: &[u8]) -> Result<Vec<(u64, u64)>, TarError> {
        let bad = || refused(name, "is a sparse file with a map that cannot be read");
        let mut text = Vec::new();
        let mut from = 0;
        let mut numbers = Vec::new();
        // The first number is the count of pieces, each of two numbers.
        let mut wanted = 1u64;
        while (numbers.len() as u64) < wanted {
            let Some(length) = text[from..].iter().position(|b| *b == b'\n') else {
                if text.len() as u64 >= MAX_EXTENSION_BYTES {
                    return Err(refused(name, "is a sparse file of too many pieces"));
                }
                let mut block = [0; BLOCK_BYTES as usize];
                if self.left < BLOCK_BYTES {
                    return Err(bad());
                }
                if (self.fill(&mut block)? as u64) < BLOCK_BYTES {
                    return Err(self.cut());
                }
                self.left -= BLOCK_BYTES;
                text.extend_from_slice(&block);
                continue;
            };
            let number = decimal(&text[from..from + length]).ok_or_else(bad)?;
            from += length + 1;
            if numbers.is_empty() {
                wanted = number.checked_mul(2).and_then(|n| n.checked_add(1)).ok_or_else(bad)?;
            }
            numbers.push(number);
        }
        Ok(numbers[1..].chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }
}

/// The map of pax forms 0.0 (a record for each number, in order) and 0.1 (one record).
fn header_map(local: &Records) -> Option<Vec<(u64, u64)>> {
    let numbers: Vec<u64> = if let Some(map) = value(local, "GNU.sparse.map") {
        map.split(|b| *b == b',').map(decimal).collect::<Option<_>>()?
    } else {
        let pieces = local
            .iter()
            .filter(|(key, _)| key == b"GNU.sparse.offset" || key == b"GNU.sparse.numbytes")
            .enumerate();
        pieces
            .map(|(number, (key, value))| {
                let expected: &[u8] =
                    if number % 2 == 0 { b"GNU.sparse.offset" } else { b"GNU.sparse.numbytes" };
                if key == expected { decimal(value) } else { None }
            })
            .collect::<Option<_>>()?
    };
    if numbers.len() % 2 == 1 || (numbers.is_empty() && value(local, "GNU.sparse.numblocks") != Some(b"0")) {
        return None;
    }
    Some(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

/// The records of a pax header: `LENGTH KEY=VALUE\n`, where the length counts the whole record.
fn parse_records(name: &[u8], mut bytes: &[u8]) -> Result<Records, TarError> {
    let bad = || refused(name, "is an extended header that cannot be read");
    let mut records = Vec::new();
    while !bytes.is_empty() {
        // Some programs pad with zeros.
        if bytes.iter().all(|b| *b == 0) {
            break;
        }
        let space = bytes.iter().take(20).position(|b| *b == b' ').ok_or_else(bad)?;
        let length = decimal(&bytes[..space]).and_then(|n| usize::try_from(n).ok()).ok_or_else(bad)?;
        if length <= space + 1 {
            return Err(bad());
        }
        let record = bytes.get(space + 1..length).ok_or_else(bad)?.strip_suffix(b"\n").ok_or_else(bad)?;
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
        records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        bytes = &bytes[length..];
    }
    Ok(records)
}

/// A member's contents; holes are zeros.
pub struct Contents<'a, R> {
    members: &'a mut Members<R>,
    size: u64,
    at: u64,
    pieces: std::collections::vec_deque::Iter<'a, (u64, u64)>,
    piece: Option<(u64, u64)>,
}

impl<R: Read> Read for Contents<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() || self.at >= self.size {
            return Ok(0);
        }
        let piece = loop {
            match self.piece {
                Some((offset, length)) if self.at < offset + length => break Some((offset, length)),
                _ => match self.pieces.next() {
                    None => break None,
                    next => self.piece = next.copied(),
                },
            }
        };
        let fit = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(buf.len());
        let n = match piece {
            Some((offset, length)) if self.at >= offset => {
                let most = fit(offset + length - self.at);
                let n = self.members.reader.read(&mut buf[..most])?;
                if n == 0 {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, self.members.cut().to_string()));
                }
                self.members.at += n as u64;
                self.members.left -= n as u64;
                n
            }
            hole => {
                let n = fit(hole.map_or(self.size, |(offset, _)| offset) - self.at);
                buf[..n].fill(0);
                n
            }
        };
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::FileExt, path::Path, process::Command};

    /// Name and contents of every file that `members` returns.
    fn files(archive: &[u8]) -> Result<Vec<(String, Vec<u8>)>, TarError> {
        let mut members = Members::new(archive);
        let mut out = Vec::new();
        while let Some(member) = members.advance()? {
            let mut data = Vec::new();
            members.contents(&member).read_to_end(&mut data).map_err(TarError::Read)?;
            assert_eq!(data.len() as u64, member.size);
            if member.kind == EntryType::Regular || member.kind == EntryType::GNUSparse {
                out.push((String::from_utf8_lossy(&member.name).into_owned(), data));
            }
        }
        members.finish(false, 1 << 20)?;
        out.sort();
        Ok(out)
    }
    fn run(program: &str, args: &[&str], dir: &Path) -> Option<Vec<u8>> {
        let out = Command::new(program).args(args).current_dir(dir).output().ok()?;
        assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        Some(out.stdout)
    }

    /// Files with holes in all places, written by every program in every form.
    #[test]
    fn sparse_files_come_out_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, size: u64, pieces: &[(u64, usize)]| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let file = fs::File::create(path).unwrap();
            file.set_len(size).unwrap();
            for (at, length) in pieces {
                let bytes: Vec<u8> = (0..*length).map(|n| (n * 7 + 1) as u8 | 1).collect();
                file.write_all_at(&bytes, *at).unwrap();
            }
        };
        make("t/only-holes", 3 << 20, &[]);
        make("t/hole-first", (1 << 20) + 5, &[(1 << 20, 5)]);
        make("t/hole-last", 2 << 20, &[(0, 4096)]);
        make("t/plain", 10_000, &[(0, 10_000)]);
        // More pieces than the four of the old header and the 21 of the block after it.
        let many: Vec<(u64, usize)> = (0..60).map(|n| (n * 65_536 + 4096, 4096)).collect();
        make(&format!("t/{}", "long-name-".repeat(15)), 60 << 16, &many);
        let expected: Vec<(String, Vec<u8>)> = {
            let mut all: Vec<_> = fs::read_dir(dir.path().join("t"))
                .unwrap()
                .map(|e| {
                    let name = e.unwrap().file_name().into_string().unwrap();
                    (format!("t/{name}"), fs::read(dir.path().join("t").join(&name)).unwrap())
                })
                .collect();
            all.sort();
            all
        };
        let writers: [(&str, &[&str]); 7] = [
            ("tar", &["--sparse", "--format=gnu", "-cf", "-", "t"]),
            ("tar", &["--sparse", "--format=oldgnu", "-cf", "-", "t"]),
            ("tar", &["--sparse", "--format=pax", "-cf", "-", "t"]),
            ("tar", &["--sparse", "--format=pax", "--sparse-version=0.0", "-cf", "-", "t"]),
            ("tar", &["--sparse", "--format=pax", "--sparse-version=0.1", "-cf", "-", "t"]),
            ("bsdtar", &["-cf", "-", "t"]),
            ("bsdtar", &["--format=pax", "-cf", "-", "t"]),
        ];
        for (program, args) in writers {
            let Some(archive) = run(program, args, dir.path()) else {
                println!("SKIP part of sparse_files_come_out_as_they_were: {program} is not installed");
                continue;
            };
            let found = files(&archive).unwrap_or_else(|e| panic!("{program} {args:?}: {e}"));
            assert!(
                found == expected,
                "{program} {args:?}: {:?}",
                found.iter().map(|f| &f.0).collect::<Vec<_>>()
            );
            // An archive that stored the holes would prove nothing.
            assert!(archive.len() < 600_000, "{program} {args:?} wrote {} bytes", archive.len());
            // Cut off anywhere: an error, never a file that is shorter.
            let end = archive.iter().rposition(|b| *b != 0).unwrap();
            for cut in (1..end).step_by(509) {
                assert!(
                    files(&archive[..cut]).is_err(),
                    "{program} {args:?} was accepted, truncated at {cut}"
                );
            }
        }
    }

    fn record(key: &str, value: &str) -> String {
        let rest = format!(" {key}={value}\n");
        let mut length = rest.len() + 1;
        while length.to_string().len() + rest.len() != length {
            length = length.to_string().len() + rest.len();
        }
        format!("{length}{rest}")
    }
    fn block(name: &str, kind: u8, data: &[u8]) -> Vec<u8> {
        let mut h = Header::new_ustar();
        h.set_mode(0o644);
        h.set_uid(0);
        h.set_gid(0);
        h.set_size(data.len() as u64);
        h.set_entry_type(EntryType::new(kind));
        h.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        h.set_cksum();
        let mut out = h.as_bytes().to_vec();
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }
    fn pax(records: &[(&str, &str)], data: &[u8]) -> Vec<u8> {
        let text: String = records.iter().map(|(k, v)| record(k, v)).collect();
        let mut out =
            [block("PaxHeaders/f", b'x', text.as_bytes()), block("GNUSparseFile.0/f", b'0', data)].concat();
        out.resize(out.len() + 1024, 0);
        out
    }

    #[test]
    fn ambiguous_sparse_files_are_refused_by_name() {
        let name = ("GNU.sparse.name", "dir/f");
        let one =
            [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), name, ("GNU.sparse.realsize", "2000")];
        let map = |text: &str, data: &[u8]| {
            let mut all = text.as_bytes().to_vec();
            all.resize(512, 0);
            [&all[..], data].concat()
        };
        let good = files(&pax(&one, &map("1\n1000\n3\n", b"abc"))).unwrap();
        assert_eq!(
            (good[0].0.as_str(), good[0].1.len(), &good[0].1[1000..1003]),
            ("dir/f", 2000, &b"abc"[..])
        );
        type Records<'a> = &'a [(&'a str, &'a str)];
        let cases: [(Records<'_>, Vec<u8>, &str); 12] = [
            (&one, map("1\n1000\n4\n", b"abc"), "4 stored bytes end at 1004, with 3"),
            (&one, map("1\n1998\n3\n", b"abc"), "of 2000 bytes whose 3 stored bytes end at 2001"),
            (&one, map("2\n0\n1\n9\n2\n", b"abc"), "begins within a block"),
            (&one, map("2\n1000\n0\n9\n3\n", b"abc"), "pieces overlap"),
            (&one, map("1\n-1\n3\n", b"abc"), "map that cannot be read"),
            (&one, map("99999999\n", b""), "map that cannot be read"),
            (&one, map("9223372036854775808\n", b""), "map that cannot be read"),
            (&one[..3], map("1\n0\n3\n", b"abc"), "without its real size"),
            (
                &[("GNU.sparse.major", "2"), ("GNU.sparse.minor", "0"), name, one[3]],
                vec![],
                "unknown version 2.0",
            ),
            (&[name, one[3]], vec![], "without a map"),
            (&[name, one[3], ("GNU.sparse.map", "0,1,2")], vec![1], "without a map"),
            (&[("SCHILY.realsize", "9"), ("path", "dir/f")], vec![], "unsupported form (SCHILY.realsize)"),
        ];
        for (records, data, expected) in cases {
            let e = files(&pax(records, &data)).unwrap_err().to_string();
            assert!(e.starts_with("entry \"dir/f\"") && e.contains(expected), "expected {expected}: {e}");
        }
        let e = files(&[block("d", b'S', b""), vec![0; 1024]].concat()).unwrap_err().to_string();
        assert_eq!(e, "entry \"d\" is a sparse file in an unsupported form (no GNU header)");
    }

    #[test]
    fn names_and_sizes_of_pax_headers_count() {
        let long = "x/".repeat(200) + "f";
        let archive = pax(&[("path", &long), ("size", "3"), ("uid", "70000"), ("comment", "a=b")], b"abc");
        assert_eq!(files(&archive).unwrap(), [(long, b"abc".to_vec())]);
        // The header's own size no longer applies to the member after it.
        let mut lying = pax(&[("size", "3")], b"");
        let at = lying.len() - 1024;
        lying.splice(at..at, {
            let mut b = b"abc".to_vec();
            b.resize(512, 0);
            b
        });
        assert_eq!(files(&lying).unwrap()[0].1, b"abc");
        for (records, expected) in [
            (&[("size", "-3")][..], "has a size of \"-3\""),
            (&[("size", "18446744073709551615")], "impossible size"),
            (&[("uid", "root")], "has a uid of \"root\""),
        ] {
            let e = files(&pax(records, b"abc")).unwrap_err().to_string();
            assert!(e.contains(expected), "{e}");
        }
        let two = [
            block("x", b'x', record("path", "a").as_bytes()),
            block("L", b'L', b"b\0"),
            block("c", b'0', b""),
        ];
        assert_eq!(
            files(&two.concat()).unwrap_err().to_string(),
            "entry \"a\" has two names: the other is \"b\""
        );
        let bad = [block("x", b'x', b"99 path=a\n"), block("c", b'0', b"")];
        assert!(files(&bad.concat()).unwrap_err().to_string().contains("cannot be read"));
    }

    #[test]
    fn the_end_of_an_archive_is_seen() {
        let one = block("a", b'0', b"abc");
        let end = vec![0; 1024];
        assert_eq!(files(&[&one[..], &end].concat()).unwrap().len(), 1);
        let says = |bytes: &[u8]| files(bytes).unwrap_err().to_string();
        assert_eq!(says(&[]), "it is empty");
        assert_eq!(says(b"hello"), "it is not a tar");
        assert_eq!(says(&[b'x'; 600]), "it is not a tar");
        assert_eq!(says(&one), "it has no end marker: it is truncated after entry \"a\"");
        assert_eq!(says(&one[..700]), "it is truncated within entry \"a\"");
        assert_eq!(says(&[&one[..], &one[..100]].concat()), "it is truncated after entry \"a\"");
        assert_eq!(says(&[&one[..], &[7; 512]].concat()), "the header after entry \"a\" is damaged");
        assert!(says(&[&one[..], &end, &one].concat()).starts_with("bytes follow its end marker"));
        assert!(says(&block("x", b'x', b"")).contains("ends in an extended header"));
    }
}
