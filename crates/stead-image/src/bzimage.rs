//! Extracts the uncompressed ELF kernel from a bzImage, by the header of the Linux boot protocol. Pure: bytes in, bytes
//! out.

use std::io::{self, Read};

/// A kernel image cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BzImageError {
    /// No boot protocol header.
    #[error("not a bzImage: {0}")]
    NotBzImage(&'static str),
    /// The payload has an unknown compression format.
    #[error("payload has an unknown compression format (it begins with {0:02x?})")]
    Compression(Vec<u8>),
    /// The payload is damaged.
    #[error("payload cannot be decompressed")]
    Decompress(#[source] io::Error),
    /// The payload is larger than [`MAX_VMLINUX_BYTES`].
    #[error("payload is larger than {MAX_VMLINUX_BYTES} bytes")]
    TooLarge,
    /// The payload's length differs from its trailer.
    #[error("payload has {found} bytes, its trailer says {said}")]
    Length {
        /// Bytes found.
        found: u64,
        /// Bytes according to the trailer.
        said: u64,
    },
    /// The payload is not an ELF kernel for this machine.
    #[error("not a 64-bit little-endian ELF kernel: {0}")]
    NotElf(&'static str),
    /// It has no PVH entry.
    #[error("no Xen PVH note (the kernel was built without CONFIG_PVH)")]
    NoPvh,
}

/// The largest kernel that is unpacked, in bytes. The largest distribution kernels are under 100 MiB.
pub const MAX_VMLINUX_BYTES: u64 = 512 << 20;
/// Note type of the 32-bit physical entry point that QEMU and Firecracker start at.
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
/// Boot protocol that introduced `payload_offset`.
const PROTOCOL_WITH_PAYLOAD: u16 = 0x208;

/// The ELF kernel inside a bzImage; an ELF kernel is returned unchanged. The result has a PVH entry.
///
/// # Errors
/// [`BzImageError`] when the image, its payload or the ELF file cannot be read.
pub fn vmlinux(kernel: &[u8]) -> Result<Vec<u8>, BzImageError> {
    let elf = if kernel.starts_with(b"\x7fELF") { kernel.to_vec() } else { decompress(payload(kernel)?)? };
    if pvh_entry(&elf)?.is_none() {
        return Err(BzImageError::NoPvh);
    }
    Ok(elf)
}

fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(b.get(at..at.checked_add(2)?)?.try_into().ok()?))
}
fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(b.get(at..at.checked_add(4)?)?.try_into().ok()?))
}
fn u64_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(b.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// The compressed payload, with the four bytes of length that follow most formats.
fn payload(image: &[u8]) -> Result<&[u8], BzImageError> {
    let bad = BzImageError::NotBzImage;
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err(bad("no boot header"));
    }
    if u16_at(image, 0x206).is_none_or(|v| v < PROTOCOL_WITH_PAYLOAD) {
        return Err(bad("its boot protocol is older than 2.08"));
    }
    // Zero means four sectors, for historical reasons; the boot sector itself comes before them.
    let setup_sectors = match image[0x1f1] {
        0 => 4,
        n => usize::from(n),
    };
    let offset = u32_at(image, 0x248).ok_or(bad("it is too short"))? as usize;
    let length = u32_at(image, 0x24c).ok_or(bad("it is too short"))? as usize;
    let start =
        ((setup_sectors + 1) * 512).checked_add(offset).ok_or(bad("its payload lies outside the file"))?;
    let end = start.checked_add(length).ok_or(bad("its payload lies outside the file"))?;
    image.get(start..end).ok_or(bad("its payload lies outside the file"))
}

fn decompress(payload: &[u8]) -> Result<Vec<u8>, BzImageError> {
    let said = || payload.len().checked_sub(4).and_then(|at| u32_at(payload, at)).map(u64::from);
    let out = if payload.starts_with(b"\x28\xb5\x2f\xfd") {
        let mut decoder =
            zstd::stream::read::Decoder::new(payload).map_err(BzImageError::Decompress)?.single_frame();
        // The kernel's build uses the largest window.
        decoder.window_log_max(31).map_err(BzImageError::Decompress)?;
        read_bounded(decoder)?
    } else if payload.starts_with(b"\xfd7zXZ\0") {
        read_bounded(liblzma::read::XzDecoder::new(payload))?
    } else if payload.starts_with(b"\x1f\x8b") {
        read_bounded(flate2::read::GzDecoder::new(payload))?
    } else if let Some(blocks) = payload.strip_prefix(LZ4_LEGACY_MAGIC) {
        unpack_lz4(blocks)?
    } else if payload.starts_with(b"\x7fELF") {
        return Ok(payload.to_vec());
    } else {
        return Err(BzImageError::Compression(payload.iter().take(6).copied().collect()));
    };
    match said() {
        Some(said) if said != out.len() as u64 => Err(BzImageError::Length { found: out.len() as u64, said }),
        _ => Ok(out),
    }
}

/// Magic of the legacy frame of the `lz4` tool, which the kernel's build writes: blocks of a length and that many bytes.
const LZ4_LEGACY_MAGIC: &[u8] = b"\x02\x21\x4c\x18";
/// Each block but the last unpacks to this many bytes.
const LZ4_LEGACY_BLOCK_BYTES: usize = 8 << 20;

fn unpack_lz4(mut blocks: &[u8]) -> Result<Vec<u8>, BzImageError> {
    let broken = |why: String| BzImageError::Decompress(io::Error::new(io::ErrorKind::InvalidData, why));
    let mut out = Vec::new();
    let mut block = vec![0; LZ4_LEGACY_BLOCK_BYTES];
    // The four bytes at the end are the total length.
    while blocks.len() > 4 {
        let length = u32_at(blocks, 0).unwrap_or(0) as usize;
        let packed = blocks.get(4..).and_then(|b| b.get(..length)).filter(|p| !p.is_empty());
        let packed = packed.ok_or_else(|| broken("block is cut off".into()))?;
        let n = lz4_flex::block::decompress_into(packed, &mut block).map_err(|e| broken(e.to_string()))?;
        if (out.len() + n) as u64 > MAX_VMLINUX_BYTES {
            return Err(BzImageError::TooLarge);
        }
        out.extend_from_slice(&block[..n]);
        blocks = &blocks[4 + length..];
    }
    Ok(out)
}

fn read_bounded(reader: impl Read) -> Result<Vec<u8>, BzImageError> {
    let mut out = Vec::new();
    reader.take(MAX_VMLINUX_BYTES + 1).read_to_end(&mut out).map_err(BzImageError::Decompress)?;
    if out.len() as u64 > MAX_VMLINUX_BYTES { Err(BzImageError::TooLarge) } else { Ok(out) }
}

/// The PVH entry point of an ELF kernel, when it has one.
///
/// # Errors
/// [`BzImageError::NotElf`].
pub fn pvh_entry(elf: &[u8]) -> Result<Option<u64>, BzImageError> {
    let bad = BzImageError::NotElf;
    if elf.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Err(bad("wrong magic"));
    }
    let header = |v: Option<u64>| v.ok_or(bad("header is cut off"));
    let table = header(u64_at(elf, 0x20))? as usize;
    let size = usize::from(u16_at(elf, 0x36).ok_or(bad("header is cut off"))?);
    let count = usize::from(u16_at(elf, 0x38).ok_or(bad("header is cut off"))?);
    for i in 0..count {
        let at = size
            .checked_mul(i)
            .and_then(|o| o.checked_add(table))
            .ok_or(bad("program header lies outside the file"))?;
        const PT_NOTE: u32 = 4;
        if u32_at(elf, at).ok_or(bad("program header lies outside the file"))? != PT_NOTE {
            continue;
        }
        let offset = header(u64_at(elf, at + 8))? as usize;
        let length = header(u64_at(elf, at + 32))? as usize;
        let end = offset.checked_add(length).ok_or(bad("note lies outside the file"))?;
        let notes = elf.get(offset..end).ok_or(bad("note lies outside the file"))?;
        if let Some(entry) = pvh_note(notes) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

fn pvh_note(mut notes: &[u8]) -> Option<u64> {
    loop {
        let (name_len, desc_len) = (u32_at(notes, 0)? as usize, u32_at(notes, 4)? as usize);
        let kind = u32_at(notes, 8)?;
        let desc_at = 12usize.checked_add(name_len.checked_next_multiple_of(4)?)?;
        let name = notes.get(12..12usize.checked_add(name_len)?)?;
        let desc = notes.get(desc_at..desc_at.checked_add(desc_len)?)?;
        if name == b"Xen\0" && kind == XEN_ELFNOTE_PHYS32_ENTRY {
            return u64_at(desc, 0).or_else(|| u32_at(desc, 0).map(u64::from));
        }
        notes = notes.get(desc_at.checked_add(desc_len.checked_next_multiple_of(4)?)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn elf_with_note(name: &[u8; 4], kind: u32) -> Vec<u8> {
        let mut elf = vec![0; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[0x20..0x28].copy_from_slice(&64u64.to_le_bytes());
        elf[0x36..0x38].copy_from_slice(&56u16.to_le_bytes());
        elf[0x38..0x3a].copy_from_slice(&1u16.to_le_bytes());
        elf[64..68].copy_from_slice(&4u32.to_le_bytes());
        elf[72..80].copy_from_slice(&120u64.to_le_bytes());
        // A note of another type comes first, as in real kernels.
        let mut notes = Vec::new();
        for (n, k, v) in [(*b"Lin\0", 0x100, 7u64), (*name, kind, 0x100_0550)] {
            notes.extend_from_slice(&4u32.to_le_bytes());
            notes.extend_from_slice(&8u32.to_le_bytes());
            notes.extend_from_slice(&k.to_le_bytes());
            notes.extend_from_slice(&n);
            notes.extend_from_slice(&v.to_le_bytes());
        }
        elf[96..104].copy_from_slice(&(notes.len() as u64).to_le_bytes());
        elf.extend(notes);
        elf
    }

    fn bzimage(packed: &[u8], plain_len: usize) -> Vec<u8> {
        let mut image = vec![0; 512 * 5 + 16];
        image[0x1f1] = 4;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(packed.len() as u32 + 4).to_le_bytes());
        image.extend_from_slice(packed);
        image.extend_from_slice(&(plain_len as u32).to_le_bytes());
        image.extend_from_slice(b"behind it");
        image
    }

    /// An LZ4 block of literals only.
    fn lz4_literals(bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![0xf0];
        let mut left = bytes.len() - 15;
        while left >= 255 {
            out.push(255);
            left -= 255;
        }
        out.push(left as u8);
        out.extend_from_slice(bytes);
        out
    }

    #[test]
    fn unpacks_each_compression_and_checks_the_note() {
        let elf = elf_with_note(b"Xen\0", 18);
        let zst = zstd::encode_all(&elf[..], 3).unwrap();
        assert_eq!(vmlinux(&bzimage(&zst, elf.len())).unwrap(), elf);
        let mut xz = Vec::new();
        liblzma::read::XzEncoder::new(&elf[..], 3).read_to_end(&mut xz).unwrap();
        assert_eq!(vmlinux(&bzimage(&xz, elf.len())).unwrap(), elf);
        let block = lz4_literals(&elf);
        let lz4 = [LZ4_LEGACY_MAGIC, &(block.len() as u32).to_le_bytes(), &block].concat();
        assert_eq!(vmlinux(&bzimage(&lz4, elf.len())).unwrap(), elf);
        assert_eq!(pvh_entry(&elf).unwrap(), Some(0x100_0550));
        assert!(matches!(vmlinux(&bzimage(&zst, 5)), Err(BzImageError::Length { .. })));
        let other = elf_with_note(b"Xen\0", 17);
        assert!(matches!(vmlinux(&other), Err(BzImageError::NoPvh)));
        assert!(matches!(vmlinux(b"MZ"), Err(BzImageError::NotBzImage(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(mut bytes in proptest::collection::vec(any::<u8>(), 0..4000), header: bool) {
            if header && bytes.len() > 0x250 {
                bytes[0x202..0x206].copy_from_slice(b"HdrS");
                bytes[0x207] = 2;
                bytes[0x206] = 15;
            }
            let _ = vmlinux(&bytes);
            if bytes.len() > 6 { bytes[..6].copy_from_slice(b"\x7fELF\x02\x01"); }
            let _ = pvh_entry(&bytes);
        }
        #[test]
        fn damaged_elf_is_answered(at in 0usize..200, value: u8) {
            let mut elf = elf_with_note(b"Xen\0", 18);
            if at < elf.len() { elf[at] = value; }
            let _ = vmlinux(&elf);
        }
    }
}
