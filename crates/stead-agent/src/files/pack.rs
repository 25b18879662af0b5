//! A tar of a file or tree.
//!
//! Keeps modes, owners, times, symbolic links and FIFOs; leaves out extended attributes and what other filesystems of the
//! kernel's own (proc, sysfs, cgroups, …) hold below the asked-for path. What cannot be packed (a socket, a device node, a
//! file that cannot be read) is named in the tar, and the rest goes on. A file linked twice is packed twice: remembering
//! every inode would not be bounded. Holes are packed as zeros: no reader needs to know sparse members.

use super::SKIPPED;
use rustix::fs::{OFlags, fstatfs, statfs};
use std::{
    ffi::OsStr,
    fs::{self, File, Metadata},
    io::{self, Read, Write},
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};
use tar::{Builder, EntryType, Header, HeaderMode};

/// Files of the kernel's own filesystems have sizes that say nothing (0, a page, the whole address space): they are read
/// before their header is written, up to this. The largest that is whole is /proc/kallsyms, with some 10 MiB.
const PSEUDO_FILE: u64 = 64 << 20;
/// A tree deeper than this is a loop of mounts.
const MAX_DEPTH: usize = 128;
/// statfs(2) types of filesystems that hold the kernel's state, no files: proc, sysfs, cgroup, cgroup2, devpts, debugfs,
/// tracefs, securityfs, bpf, binfmt_misc, mqueue, configfs, efivarfs, pstore.
const KERNEL_FILESYSTEMS: [u64; 14] = [
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x1cd1,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xcafe_4a11,
    0x4249_4e4d,
    0x1980_0202,
    0x6265_6570,
    0xde5e_81e4,
    0x6165_676c,
];

/// What will be packed, known to exist.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    metadata: Metadata,
}

impl Source {
    /// Looks the path up. A symbolic link at its end is packed as a link, unless `/` follows it.
    ///
    /// # Errors
    /// It does not exist or cannot be seen; the error names it.
    pub fn find(path: PathBuf) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(&path).map_err(|e| about(&path, e))?;
        Ok(Self { path, metadata })
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.metadata.is_dir()
    }

    /// Writes a tar of it alone. The top entry has the last part of the path as its name, `.` for `/`.
    ///
    /// # Errors
    /// As [`Packer::add`].
    pub fn pack(&self, writer: &mut impl Write) -> io::Result<()> {
        let mut packer = Packer::new(writer);
        packer.add(self, self.path.file_name().unwrap_or(".".as_ref()))?;
        packer.finish()
    }
}

/// Writes one tar of several sources.
pub struct Packer<W: Write>(Builder<W>);

impl<W: Write> Packer<W> {
    /// Begins a tar.
    pub fn new(writer: W) -> Self {
        Self(Builder::new(writer))
    }

    /// Adds a source; its top entry is called `name`.
    ///
    /// # Errors
    /// Writing fails, or the tree cannot be followed (the error names the place).
    pub fn add(&mut self, source: &Source, name: &OsStr) -> io::Result<()> {
        self.append(&source.path, Path::new(name), &source.metadata, 0)
    }

    /// Ends the tar.
    ///
    /// # Errors
    /// Writing fails.
    pub fn finish(mut self) -> io::Result<()> {
        self.0.finish()
    }

    fn append(&mut self, path: &Path, name: &Path, metadata: &Metadata, depth: usize) -> io::Result<()> {
        let mut header = header_of(metadata);
        let kind = metadata.file_type();
        if kind.is_file() {
            return self.append_file(path, name, header);
        }
        if kind.is_dir() {
            self.0.append_data(&mut header, name, io::empty())?;
            return self.append_entries(path, name, metadata, depth);
        }
        if kind.is_symlink() {
            return match fs::read_link(path) {
                Ok(target) => self.0.append_link(&mut header, name, target),
                Err(e) => self.skip(name, &e.to_string()),
            };
        }
        if kind.is_fifo() {
            header.set_entry_type(EntryType::Fifo);
            header.set_size(0);
            return self.0.append_data(&mut header, name, io::empty());
        }
        self.skip(name, if kind.is_socket() { "is a socket" } else { "is a device node" })
    }

    fn append_entries(
        &mut self,
        path: &Path,
        name: &Path,
        metadata: &Metadata,
        depth: usize,
    ) -> io::Result<()> {
        if depth >= MAX_DEPTH {
            return Err(about(path, io::Error::other("the tree is too deep")));
        }
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(e) => return self.skip(name, &e.to_string()),
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(e) => return self.skip(name, &e.to_string()),
            };
            let (path, name) = (entry.path(), name.join(entry.file_name()));
            let child = match fs::symlink_metadata(&path) {
                Ok(child) => child,
                // Gone meanwhile: a living tree.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => {
                    self.skip(&name, &e.to_string())?;
                    continue;
                }
            };
            if child.is_dir() && child.dev() != metadata.dev() && is_kernel_filesystem(&path) {
                self.0.append_data(&mut header_of(&child), &name, io::empty())?;
                continue;
            }
            self.append(&path, &name, &child, depth + 1)?;
        }
        Ok(())
    }

    /// The header's size and the bytes that follow always agree, though the file grows or shrinks meanwhile: both come from
    /// one bounded read of what was opened.
    fn append_file(&mut self, path: &Path, name: &Path, mut header: Header) -> io::Result<()> {
        // Not blocking, for what took the file's place meanwhile (a FIFO), and for /proc/kmsg.
        let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY).bits() as i32;
        let opened = File::options().read(true).custom_flags(flags).open(path);
        let (file, metadata) = match opened.and_then(|f| f.metadata().map(|m| (f, m))) {
            Ok(opened) => opened,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return self.skip(name, &e.to_string()),
        };
        if !metadata.is_file() {
            return self.skip(name, "was replaced while it was read");
        }
        let size = metadata.len();
        if size == 0 || fstatfs(&file).is_ok_and(|s| of_the_kernel(s.f_type as u64)) {
            let mut content = Vec::new();
            match file.take(PSEUDO_FILE + 1).read_to_end(&mut content) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return self.skip(name, &e.to_string()),
            }
            if content.len() as u64 > PSEUDO_FILE {
                return self.skip(name, "has no size and more than 64 MiB");
            }
            header.set_size(content.len() as u64);
            return self.0.append_data(&mut header, name, content.as_slice());
        }
        header.set_size(size);
        let mut content = Exactly { file, left: size, failed: None };
        self.0.append_data(&mut header, name, &mut content)?;
        match content.failed {
            Some(e) => self.skip(name, &format!("{e}; its end is zeros")),
            None => Ok(()),
        }
    }

    /// Names what is not packed, or not as it is.
    fn skip(&mut self, name: &Path, why: &str) -> io::Result<()> {
        let text = format!("{}: {why}", name.display());
        let bare = SKIPPED.len() + text.len() + 3;
        // The length counts its own digits.
        let length = (1..).map(|digits| bare + digits).find(|n| n.to_string().len() + bare == *n);
        let record = format!("{} {SKIPPED}={text}\n", length.unwrap_or_default());
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XGlobalHeader);
        header.set_size(record.len() as u64);
        header.set_cksum();
        self.0.append(&header, record.as_bytes())
    }
}

fn header_of(metadata: &Metadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_metadata_in_mode(metadata, HeaderMode::Complete);
    header.set_mode(metadata.mode() & 0o7777);
    header
}

/// Exactly so many bytes of a file: zeros once it has ended or failed.
struct Exactly {
    file: File,
    left: u64,
    failed: Option<io::Error>,
}

impl Read for Exactly {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let want = out.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let Some(out) = out.get_mut(..want).filter(|o| !o.is_empty()) else { return Ok(0) };
        let n = match self.failed.is_none().then(|| self.file.read(out)) {
            Some(Ok(n)) if n > 0 => n,
            other => {
                if let Some(Err(e)) = other {
                    self.failed = Some(e);
                }
                out.fill(0);
                want
            }
        };
        self.left -= n as u64;
        Ok(n)
    }
}

fn is_kernel_filesystem(path: &Path) -> bool {
    statfs(path).is_ok_and(|s| of_the_kernel(s.f_type as u64))
}

fn of_the_kernel(kind: u64) -> bool {
    KERNEL_FILESYSTEMS.contains(&(kind & 0xffff_ffff))
}

fn about(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
