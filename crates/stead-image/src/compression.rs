//! Decompression that ends only where the compressed data ends: `Ok(0)` means that everything was read and every checksum
//! matched. Data that is damaged, truncated or followed by other bytes gives an error with the format and the fault.
//!
//! Owns the formats; does not know what is compressed.

use std::io::{self, BufRead, BufReader, Read};

/// How a file is compressed, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Plain,
    /// gzip.
    Gzip,
    /// xz.
    Xz,
    /// zstd.
    Zstd,
    /// A format that is recognised but not supported; its name.
    Foreign(&'static str),
}

/// How many bytes [`Compression::of`] needs.
const MAGIC_BYTES: u64 = 6;

impl Compression {
    /// From the first six bytes (or fewer, when there are not more).
    pub fn of(magic: &[u8]) -> Self {
        // A zstd file may begin with a skippable frame: 0x184D2A50 to 0x184D2A5F, little-endian.
        let skippable = magic.len() >= 4 && magic[0] >> 4 == 5 && magic[1..4] == *b"\x2a\x4d\x18";
        if magic.starts_with(b"\x1f\x8b") {
            Self::Gzip
        } else if magic.starts_with(b"\xfd7zXZ\0") {
            Self::Xz
        } else if magic.starts_with(b"\x28\xb5\x2f\xfd") || skippable {
            Self::Zstd
        } else if magic.starts_with(b"BZh") {
            Self::Foreign("bzip2")
        } else if magic.starts_with(b"LZIP") {
            Self::Foreign("lzip")
        } else if magic.starts_with(b"\x04\x22\x4d\x18") {
            Self::Foreign("lz4")
        } else if magic.starts_with(b"\x1f\x9d") {
            Self::Foreign("compress")
        } else if magic.starts_with(b"\x5d\0\0") {
            Self::Foreign("lzma")
        } else {
            Self::Plain
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Foreign(name) => name,
        }
    }
}

/// Why data cannot be decompressed: the error inside the [`io::Error`] that a reader from [`decompressed`] returns.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// A checksum or the data's structure is wrong.
    #[error("its {format} data is damaged: {why}")]
    Broken {
        /// The format's name.
        format: &'static str,
        /// The decompressor's words.
        why: String,
    },
    /// It is truncated.
    #[error("its {format} data ends early: the file is truncated")]
    Cut {
        /// The format's name.
        format: &'static str,
    },
    /// A format that is not supported.
    #[error("it is compressed with {format}; only gzip, xz and zstd are supported")]
    Foreign {
        /// The format's name.
        format: &'static str,
    },
}

impl Damage {
    /// Whether a reader's error means damaged data, rather than a failure to read.
    pub fn is_in(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|e| e.is::<Self>())
    }
}

fn broken(format: Compression, why: impl Into<String>) -> io::Error {
    let damage = Damage::Broken { format: format.name(), why: why.into() };
    io::Error::new(io::ErrorKind::InvalidData, damage)
}

/// A reader of a file's decompressed bytes, whatever its compression. Concatenated members form one file, as they do for
/// `gzip`, `xz` and `zstd`.
///
/// # Errors
/// Its first bytes cannot be read, or its format is not supported ([`Damage::Foreign`]).
pub fn decompressed(mut reader: impl Read + 'static) -> io::Result<Box<dyn Read>> {
    let mut magic = Vec::new();
    reader.by_ref().take(MAGIC_BYTES).read_to_end(&mut magic)?;
    let format = Compression::of(&magic);
    let whole = BufReader::with_capacity(64 << 10, io::Cursor::new(magic).chain(reader));
    let inner: Box<dyn Read> = match format {
        Compression::Plain => return Ok(Box::new(whole)),
        Compression::Gzip => {
            Box::new(Gzip { state: GzipState::Member(flate2::bufread::GzDecoder::new(whole)) })
        }
        Compression::Xz => {
            use liblzma::stream::{CONCATENATED, Stream, TELL_UNSUPPORTED_CHECK};
            // A checksum that cannot be verified is an error, not ignored.
            let stream = Stream::new_stream_decoder(u64::MAX, CONCATENATED | TELL_UNSUPPORTED_CHECK)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(whole, stream))
        }
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(whole)?),
        Compression::Foreign(format) => {
            return Err(io::Error::new(io::ErrorKind::InvalidData, Damage::Foreign { format }));
        }
    };
    Ok(Box::new(Explained { inner, format, ended: false }))
}

/// Adds the format to a decompressor's errors. The file's own errors pass unchanged.
struct Explained {
    inner: Box<dyn Read>,
    format: Compression,
    ended: bool,
}

impl Read for Explained {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        // After the end a decompressor may report missing input; before it, an empty buffer is not the end.
        if self.ended || buf.is_empty() {
            return Ok(0);
        }
        match self.inner.read(buf) {
            Ok(0) => {
                self.ended = true;
                Ok(0)
            }
            Ok(n) => Ok(n),
            Err(e) if e.raw_os_error().is_some() || e.kind() == io::ErrorKind::Interrupted => Err(e),
            Err(e) if Damage::is_in(&e) => Err(e),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                Err(io::Error::new(e.kind(), Damage::Cut { format: self.format.name() }))
            }
            Err(e) => Err(broken(self.format, e.to_string())),
        }
    }
}

/// gzip as the `gzip` program reads it: members one after another, then nothing or zeros, with which tapes and disks are
/// padded. Anything else after a member is damage: a member with a damaged header looks like that.
struct Gzip<R: BufRead> {
    state: GzipState<R>,
}

enum GzipState<R: BufRead> {
    Member(flate2::bufread::GzDecoder<R>),
    Padding(R),
    /// Between two states, and after an error.
    Ended,
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match &mut self.state {
                GzipState::Member(member) => {
                    let n = member.read(buf)?;
                    if n > 0 {
                        return Ok(n);
                    }
                    let GzipState::Member(member) = std::mem::replace(&mut self.state, GzipState::Ended)
                    else {
                        unreachable!("the state was just matched as a member")
                    };
                    let mut rest = member.into_inner();
                    let next = rest.fill_buf()?.first().copied();
                    self.state = match next {
                        None => return Ok(0),
                        Some(0x1f) => GzipState::Member(flate2::bufread::GzDecoder::new(rest)),
                        Some(_) => GzipState::Padding(rest),
                    };
                }
                GzipState::Padding(rest) => {
                    let bytes = rest.fill_buf()?;
                    if bytes.iter().any(|b| *b != 0) {
                        self.state = GzipState::Ended;
                        return Err(broken(Compression::Gzip, "other bytes follow its end"));
                    }
                    let n = bytes.len();
                    if n == 0 {
                        self.state = GzipState::Ended;
                        return Ok(0);
                    }
                    rest.consume(n);
                }
                GzipState::Ended => return Ok(0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Write, process::Command};

    /// Text that compresses well, but not to almost nothing.
    fn plain() -> Vec<u8> {
        (0..400u32)
            .flat_map(|n| format!("{} line {n}\n", n.wrapping_mul(2_654_435_761)).into_bytes())
            .collect()
    }
    fn unpacked(packed: Vec<u8>) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decompressed(io::Cursor::new(packed))?.read_to_end(&mut out)?;
        Ok(out)
    }
    /// The bytes as compressed by the program; `None` when it is not installed.
    fn packed_by(program: &str, args: &[&str], bytes: &[u8]) -> Option<Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("plain");
        std::fs::write(&file, bytes).unwrap();
        let out = Command::new(program).args(args).arg(&file).output().ok()?;
        assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
        Some(out.stdout)
    }
    /// Each format with the output of its own program. The first eight bytes of gzip hold no data and no checksum.
    fn packed() -> Vec<(&'static str, Vec<u8>)> {
        let mut all = Vec::new();
        for (program, args) in
            [("gzip", &["-c"][..]), ("xz", &["-c", "--threads=1"]), ("zstd", &["-c", "-q"])]
        {
            match packed_by(program, args, &plain()) {
                Some(bytes) => all.push((program, bytes)),
                None => {
                    println!("SKIP part of damaged_compressed_data_is_refused: {program} is not installed")
                }
            }
        }
        all
    }

    #[test]
    fn formats_are_known_by_their_first_bytes() {
        for (program, bytes) in packed() {
            assert_eq!(Compression::of(&bytes).name(), program);
            assert_eq!(unpacked(bytes).unwrap(), plain());
        }
        assert_eq!(unpacked(plain()).unwrap(), plain());
        for (magic, name) in
            [(&b"BZh91AY"[..], "bzip2"), (b"LZIP\x01", "lzip"), (b"\x1f\x9d\x90", "compress")]
        {
            let e = unpacked(magic.to_vec()).unwrap_err();
            assert_eq!(
                e.to_string(),
                format!("it is compressed with {name}; only gzip, xz and zstd are supported")
            );
        }
    }

    #[test]
    fn damaged_compressed_data_is_refused() {
        for (program, bytes) in packed() {
            // The magic bytes decide whether it is compressed at all.
            for cut in 6..bytes.len() {
                let e = unpacked(bytes[..cut].to_vec()).expect_err(program);
                assert!(Damage::is_in(&e) && e.to_string().contains(program), "{program} cut at {cut}: {e}");
            }
            let e = unpacked(bytes[..bytes.len() - 1].to_vec()).unwrap_err();
            assert_eq!(e.to_string(), format!("its {program} data ends early: the file is truncated"));
            for at in (6..bytes.len()).step_by(7).chain(bytes.len() - 40..bytes.len()) {
                let mut hit = bytes.clone();
                hit[at] ^= 1 << (at % 8);
                match unpacked(hit) {
                    // Names and times in a header are neither data nor checked.
                    Ok(out) => assert!(out == plain(), "{program}: a bit at {at} changed the data unnoticed"),
                    Err(e) => assert!(Damage::is_in(&e), "{program} at {at}: {e}"),
                }
            }
            for rest in [&b"x"[..], b"garbage", &[0x1f], b"\0\0\0\0x"] {
                let e = unpacked([&bytes[..], rest].concat()).expect_err(program);
                assert!(Damage::is_in(&e), "{program} and {rest:?}: {e}");
            }
        }
    }

    #[test]
    fn several_members_are_one_file() {
        for (program, bytes) in packed() {
            let twice = [plain(), plain()].concat();
            assert_eq!(unpacked(bytes.repeat(2)).unwrap(), twice, "{program}");
            let mut second_hit = bytes.repeat(2);
            let at = bytes.len() + bytes.len() / 2;
            second_hit[at] ^= 4;
            unpacked(second_hit).expect_err(program);
            unpacked(bytes.repeat(2)[..bytes.len() + 9].to_vec()).expect_err(program);
        }
        let gzip = packed_by("gzip", &["-c"], b"abc");
        if let Some(gzip) = gzip {
            let padded = [&gzip[..], &[0; 1000]].concat();
            assert_eq!(unpacked(padded).unwrap(), b"abc");
        }
        // A skippable frame, as pzstd and zstd:chunked write.
        let mut frames = b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec();
        frames.extend(zstd::encode_all(&b"xyz"[..], 1).unwrap());
        assert_eq!(unpacked(frames).unwrap(), b"xyz");
    }

    #[test]
    fn an_empty_buffer_is_not_the_end() {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(b"abc").unwrap();
        let mut reader = decompressed(io::Cursor::new(gz.finish().unwrap())).unwrap();
        assert_eq!(reader.read(&mut []).unwrap(), 0);
        let mut out = String::new();
        reader.read_to_string(&mut out).unwrap();
        assert_eq!(out, "abc");
    }
}
