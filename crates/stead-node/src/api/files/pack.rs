//! Packs a file or tree as a tar.
//!
//! Keeps modes, owners, times, symbolic links, FIFOs and device nodes; leaves out sockets, extended attributes and
//! kernel filesystems (proc, sysfs, cgroups, …) mounted below the requested path. A file linked twice is packed twice:
//! remembering every inode would need unbounded memory.

use rustix::fs::statfs;
use std::{
    fs::{self, File, Metadata},
    io::{self, Read, Write},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};
use tar::{Builder, EntryType, Header, HeaderMode};

/// Files of /proc and /sys have size 0 but contents: they are read up to this length.
const PSEUDO_FILE: u64 = 1 << 20;
/// A deeper tree is a loop of mounts.
const MAX_DEPTH: usize = 128;
/// statfs(2) types of filesystems that contain the kernel's state instead of files: proc, sysfs, cgroup, cgroup2,
/// devpts, debugfs, tracefs, securityfs, bpf, binfmt_misc, mqueue, configfs, efivarfs, pstore.
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

/// A file or tree to pack, known to exist.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    metadata: Metadata,
}

impl Source {
    /// Looks the path up. A symbolic link at its end is packed as a link.
    ///
    /// # Errors
    /// It does not exist or cannot be read; the error names it.
    pub fn find(path: PathBuf) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(&path).map_err(|e| about(&path, e))?;
        Ok(Self { path, metadata })
    }

    /// Writes the tar. The top entry has the last part of the path as its name, `.` for `/`.
    ///
    /// # Errors
    /// Reading fails (the error names the file) or writing does.
    pub fn pack(&self, writer: &mut impl Write) -> io::Result<()> {
        let mut builder = Builder::new(writer);
        let name = Path::new(self.path.file_name().unwrap_or(".".as_ref()));
        append(&mut builder, &self.path, name, &self.metadata, 0)?;
        builder.finish()
    }
}

fn append<W: Write>(
    builder: &mut Builder<W>,
    path: &Path,
    name: &Path,
    metadata: &Metadata,
    depth: usize,
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_metadata_in_mode(metadata, HeaderMode::Complete);
    header.set_mode(metadata.mode() & 0o7777);
    let kind = metadata.file_type();
    if kind.is_file() {
        append_file(builder, path, name, header)
    } else if kind.is_dir() {
        builder.append_data(&mut header, name, io::empty())?;
        append_entries(builder, path, name, metadata, depth)
    } else if kind.is_symlink() {
        builder.append_link(&mut header, name, fs::read_link(path).map_err(|e| about(path, e))?)
    } else if kind.is_socket() {
        Ok(())
    } else {
        header.set_size(0);
        if kind.is_block_device() || kind.is_char_device() {
            header.set_entry_type(if kind.is_block_device() { EntryType::Block } else { EntryType::Char });
            header.set_device_major(rustix::fs::major(metadata.rdev()))?;
            header.set_device_minor(rustix::fs::minor(metadata.rdev()))?;
        }
        builder.append_data(&mut header, name, io::empty())
    }
}

fn append_entries<W: Write>(
    builder: &mut Builder<W>,
    path: &Path,
    name: &Path,
    metadata: &Metadata,
    depth: usize,
) -> io::Result<()> {
    if depth >= MAX_DEPTH {
        return Err(about(path, io::Error::other("the tree is nested too deeply")));
    }
    for entry in fs::read_dir(path).map_err(|e| about(path, e))? {
        let entry = entry.map_err(|e| about(path, e))?;
        let (path, name) = (entry.path(), name.join(entry.file_name()));
        let child = match fs::symlink_metadata(&path) {
            Ok(child) => child,
            // Removed meanwhile: the tree is in use.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(about(&path, e)),
        };
        if child.is_dir() && child.dev() != metadata.dev() && is_kernel_filesystem(&path) {
            let mut header = Header::new_gnu();
            header.set_metadata_in_mode(&child, HeaderMode::Complete);
            header.set_mode(child.mode() & 0o7777);
            builder.append_data(&mut header, &name, io::empty())?;
            continue;
        }
        append(builder, &path, &name, &child, depth + 1)?;
    }
    Ok(())
}

/// The header's size and the bytes that follow always agree, even if the file grows or shrinks meanwhile.
fn append_file<W: Write>(
    builder: &mut Builder<W>,
    path: &Path,
    name: &Path,
    mut header: Header,
) -> io::Result<()> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(about(path, e)),
    };
    let size = file.metadata().map_err(|e| about(path, e))?.len();
    if size == 0 {
        let mut start = Vec::new();
        // Some files of /sys cannot be read: they are packed as empty.
        if (&file).take(PSEUDO_FILE).read_to_end(&mut start).is_err() {
            start.clear();
        }
        header.set_size(start.len() as u64);
        return builder.append_data(&mut header, name, start.as_slice());
    }
    header.set_size(size);
    builder.append_data(&mut header, name, Exactly { file, left: size, path })
}

/// Exactly this many bytes of a file, padded with zeros.
struct Exactly<'a> {
    file: File,
    left: u64,
    path: &'a Path,
}

impl Read for Exactly<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let want = out.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let Some(out) = out.get_mut(..want).filter(|o| !o.is_empty()) else { return Ok(0) };
        let n = match self.file.read(out).map_err(|e| about(self.path, e))? {
            0 => {
                out.fill(0);
                want
            }
            n => n,
        };
        self.left -= n as u64;
        Ok(n)
    }
}

fn is_kernel_filesystem(path: &Path) -> bool {
    statfs(path).is_ok_and(|s| KERNEL_FILESYSTEMS.contains(&(s.f_type as u64 & 0xffff_ffff)))
}

fn about(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
