//! Content digests: of bytes, files, and of structured inputs (cache keys).

use crate::error::{IoContext, Result};
use sha2::{Digest as _, Sha256};
use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
};
use stead_model::Digest;

/// Hashes the bytes written to it and passes them on.
pub struct HashWriter<W> {
    inner: W,
    hash: Sha256,
    len: u64,
}

impl<W: Write> HashWriter<W> {
    /// Wraps `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), len: 0 }
    }
    /// The inner writer, the digest and the number of bytes.
    pub fn finish(self) -> (W, Digest, u64) {
        (self.inner, Digest::from_bytes(&self.hash.finalize().into()), self.len)
    }
}
impl<W: Write> Write for HashWriter<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hash.update(&buf[..n]);
        self.len += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Digest of bytes in memory.
pub fn of_bytes(bytes: &[u8]) -> Digest {
    Digest::from_bytes(&Sha256::digest(bytes).into())
}

/// Digest and length of everything a reader returns.
pub fn of_reader(mut reader: impl Read) -> io::Result<(Digest, u64)> {
    let mut writer = HashWriter::new(io::sink());
    let mut buf = vec![0; 256 << 10];
    loop {
        match reader.read(&mut buf)? {
            0 => break,
            n => writer.write_all(&buf[..n])?,
        }
    }
    let (_, digest, len) = writer.finish();
    Ok((digest, len))
}

/// Digest and length of a file.
pub fn of_file(path: &Path) -> Result<(Digest, u64)> {
    let file = File::open(path).at("open", path)?;
    of_reader(file).at("read", path)
}

/// A cache key made of parts. Lengths are hashed too, so that different lists of parts never give the same key.
pub struct Key(Sha256);

impl Key {
    /// A key of one kind of result. The kind contains a version: change it when the build procedure changes.
    pub fn new(kind: &str) -> Self {
        let mut key = Self(Sha256::new());
        key.part(kind.as_bytes());
        key
    }
    /// Adds a part.
    pub fn part(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
        self
    }
    /// Adds a text.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.part(text.as_bytes())
    }
    /// Adds a number.
    pub fn number(&mut self, n: u64) -> &mut Self {
        self.part(&n.to_be_bytes())
    }
    /// The key.
    pub fn digest(self) -> Digest {
        Digest::from_bytes(&self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_together() {
        let key = |parts: &[&str]| {
            let mut k = Key::new("t");
            for p in parts {
                k.text(p);
            }
            k.digest()
        };
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_ne!(key(&["ab"]), key(&["ab", ""]));
    }

    #[test]
    fn known_answer() {
        assert_eq!(
            of_bytes(b"abc").as_str(),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(of_reader(&b"abc"[..]).unwrap(), (of_bytes(b"abc"), 3));
    }
}
