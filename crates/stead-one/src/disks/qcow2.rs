//! The header of a qcow2 image: which other files QEMU would open for it.
//!
//! Source: QEMU's docs/interop/qcow2.txt.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// First bytes of an image.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Longest name of a backing file (the format's own limit).
const MAX_NAME_BYTES: u32 = 1023;
/// Longest chain of backing files: nobody stacks more snapshots, but a chain could be circular.
const MAX_CHAIN: usize = 64;
/// Incompatible feature bit: the data is in another file.
const EXTERNAL_DATA: u64 = 1 << 2;

/// An image that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Qcow2Error {
    /// Its header cannot be read.
    #[error("cannot read the header of {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not an image, or has an impossible header.
    #[error("{} has no usable qcow2 header", .0.display())]
    Header(PathBuf),
    /// Its data is in another file.
    #[error("{} has its data in another file, which is not supported", .0.display())]
    ExternalData(PathBuf),
    /// Its backing file is not allowed.
    #[error("{} is backed by {backing:?}, which is neither the VM's nor its image's", .path.display())]
    Backing {
        /// The image.
        path: PathBuf,
        /// The backing file in its header.
        backing: String,
    },
    /// Its chain of backing files is too long.
    #[error("the chain of backing files of {} does not end", .0.display())]
    Endless(PathBuf),
}

/// Fields of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Name of the backing file.
    pub backing: Option<String>,
    /// Whether the data is in another file.
    pub external_data: bool,
    /// The disk's size.
    pub size_bytes: u64,
}

/// Whether bytes are the beginning of an image.
pub fn is_image(start: &[u8]) -> bool {
    start.starts_with(&MAGIC)
}

/// Reads a header; `None`: it is not one.
///
/// # Errors
/// As read(2).
pub fn header(mut image: impl Read + Seek) -> io::Result<Option<Header>> {
    let mut fixed = [0; 104];
    let mut filled = 0;
    while filled < fixed.len() {
        match image.read(&mut fixed[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    let u32_at = |at: usize| u32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
    let u64_at = |at: usize| (u64::from(u32_at(at)) << 32) | u64::from(u32_at(at + 4));
    // 72 bytes in version 2, at least 104 in version 3.
    let version = u32_at(4);
    let needed = match version {
        2 => 72,
        3 => 104,
        _ => return Ok(None),
    };
    if filled < needed || !is_image(&fixed) {
        return Ok(None);
    }
    let (offset, length) = (u64_at(8), u32_at(16));
    let backing = match offset {
        0 => None,
        _ if length == 0 || length > MAX_NAME_BYTES => return Ok(None),
        _ => {
            let mut name = vec![0; length as usize];
            image.seek(SeekFrom::Start(offset))?;
            image.read_exact(&mut name)?;
            match String::from_utf8(name) {
                Ok(name) if !name.contains('\0') => Some(name),
                _ => return Ok(None),
            }
        }
    };
    let external_data = version == 3 && u64_at(72) & EXTERNAL_DATA != 0;
    Ok(Some(Header { backing, external_data, size_bytes: u64_at(24) }))
}

/// Checks that every file that QEMU would open for `image` is inside `allowed`.
///
/// # Errors
/// [`Qcow2Error`].
pub fn check(image: &Path, allowed: &[PathBuf]) -> Result<(), Qcow2Error> {
    let mut path = image.to_owned();
    for _ in 0..MAX_CHAIN {
        let read = |source| Qcow2Error::Read { path: path.clone(), source };
        let mut file = File::open(&path).map_err(read)?;
        let header = match header(&mut file) {
            Ok(Some(header)) => header,
            // The last image of a chain may be raw.
            Ok(None) if path != image => return Ok(()),
            Ok(None) => return Err(Qcow2Error::Header(path)),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(Qcow2Error::Header(path)),
            Err(e) => return Err(read(e)),
        };
        if header.external_data {
            return Err(Qcow2Error::ExternalData(path));
        }
        let Some(name) = header.backing else { return Ok(()) };
        let error = || Qcow2Error::Backing { path: path.clone(), backing: name.clone() };
        // `json:…`, `nbd:…` and other protocols of QEMU.
        let protocol = name.split_once(':').is_some_and(|(before, _)| !before.contains('/'));
        let next = path.parent().unwrap_or(Path::new("/")).join(&name);
        let next = std::fs::canonicalize(next).map_err(|_| error())?;
        if protocol || !next.is_file() || !allowed.iter().any(|directory| next.starts_with(directory)) {
            return Err(error());
        }
        path = next;
    }
    Err(Qcow2Error::Endless(image.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{fs, io::Cursor};

    /// An image of version 3 with this backing file, as far as its header goes.
    fn image(backing: Option<&str>, features: u64) -> Vec<u8> {
        let mut bytes = vec![0; 104];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[7] = 3;
        bytes[24..32].copy_from_slice(&(1_u64 << 20).to_be_bytes());
        bytes[72..80].copy_from_slice(&features.to_be_bytes());
        if let Some(name) = backing {
            bytes[8..16].copy_from_slice(&104_u64.to_be_bytes());
            bytes[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
            bytes.extend(name.as_bytes());
        }
        bytes
    }

    #[test]
    fn headers() {
        let read = |bytes: Vec<u8>| header(Cursor::new(bytes)).unwrap();
        assert_eq!(read(image(Some("base"), 0)).unwrap().backing.as_deref(), Some("base"));
        assert_eq!(read(image(None, 0)).unwrap().size_bytes, 1 << 20);
        assert!(read(image(None, EXTERNAL_DATA)).unwrap().external_data);
        assert_eq!(read(b"not an image".to_vec()), None);
        assert_eq!(read(vec![]), None);
    }

    #[test]
    fn a_guest_cannot_refer_to_other_files() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().canonicalize().unwrap().join("own");
        fs::create_dir(&own).unwrap();
        fs::write(dir.path().join("other"), "x").unwrap();
        fs::write(own.join("base"), "raw").unwrap();
        let allowed = [own.clone()];
        let disk = own.join("disk.0");
        let verdict = |bytes: Vec<u8>| {
            fs::write(&disk, bytes).unwrap();
            check(&disk, &allowed)
        };
        assert!(verdict(image(None, 0)).is_ok());
        assert!(verdict(image(Some("base"), 0)).is_ok());
        for bad in ["/etc/shadow", "../other", "json:{}", "nbd:unix:/x", "nbd://h/x", "missing"] {
            assert!(matches!(verdict(image(Some(bad), 0)), Err(Qcow2Error::Backing { .. })), "{bad}");
        }
        assert!(matches!(verdict(image(Some("disk.0"), 0)), Err(Qcow2Error::Endless(_))));
        assert!(matches!(verdict(image(None, EXTERNAL_DATA)), Err(Qcow2Error::ExternalData(_))));
        assert!(matches!(verdict(b"raw".to_vec()), Err(Qcow2Error::Header(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes: Vec<u8>) {
            let mut image = MAGIC.to_vec();
            image.extend([0, 0, 0, 2]);
            image.extend(bytes);
            let _ = header(Cursor::new(image));
        }
    }
}
