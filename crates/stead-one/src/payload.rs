//! What comes in on stdin: raw XML over ssh, base64 of it when the script is called on the frontend itself.
//!
//! Owns reading with a bound and telling the two forms apart. Does not own what the XML means ([`crate::document`]).

use base64::Engine as _;
use std::io::{self, Read};

/// A document is not larger than this, decoded. A VM's own is a few dozen KiB; context scripts and a long history make it
/// larger, but OpenNebula keeps each in a database column and in an argument.
pub const MAX_DOCUMENT_BYTES: usize = 8 << 20;

/// Stdin holds no document.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// Could not be read.
    #[error("cannot read the document on stdin")]
    Read(#[source] io::Error),
    /// Nothing there.
    #[error("there is no document on stdin")]
    Empty,
    /// Longer than [`MAX_DOCUMENT_BYTES`].
    #[error("the document on stdin is larger than {} MiB", MAX_DOCUMENT_BYTES >> 20)]
    TooLarge,
    /// Neither XML nor base64.
    #[error("stdin holds neither XML nor base64")]
    Base64(#[source] base64::DecodeError),
    /// Bytes that are no text.
    #[error("the document on stdin is not UTF-8")]
    NotUtf8,
}

/// Reads the document, no further than its allowed size.
///
/// # Errors
/// [`PayloadError`].
pub fn read(from: impl Read) -> Result<String, PayloadError> {
    // Base64 is a third longer and may have line ends.
    let limit = MAX_DOCUMENT_BYTES / 2 * 3;
    let mut bytes = Vec::new();
    from.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(PayloadError::Read)?;
    if bytes.len() > limit {
        return Err(PayloadError::TooLarge);
    }
    decode(bytes)
}

/// The XML in `bytes`: what begins with `<` is XML, all else must be base64 of it.
///
/// # Errors
/// [`PayloadError`].
pub fn decode(bytes: Vec<u8>) -> Result<String, PayloadError> {
    let xml = match bytes.iter().find(|b| !b.is_ascii_whitespace()) {
        None => return Err(PayloadError::Empty),
        Some(b'<') => bytes,
        Some(_) => {
            let packed: Vec<u8> = bytes.into_iter().filter(|b| !b.is_ascii_whitespace()).collect();
            base64::engine::general_purpose::STANDARD.decode(packed).map_err(PayloadError::Base64)?
        }
    };
    if xml.len() > MAX_DOCUMENT_BYTES {
        return Err(PayloadError::TooLarge);
    }
    String::from_utf8(xml).map_err(|_| PayloadError::NotUtf8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_forms_are_read() {
        assert_eq!(read(&b" \n<VM/>"[..]).unwrap(), " \n<VM/>");
        assert_eq!(read(&b"PFZN\nLz4=\n"[..]).unwrap(), "<VM/>");
    }

    #[test]
    fn what_is_no_document_is_refused() {
        assert!(matches!(read(&b" \n"[..]), Err(PayloadError::Empty)));
        assert!(matches!(read(&b"hello!"[..]), Err(PayloadError::Base64(_))));
        assert!(matches!(read(&b"<VM>\xff</VM>"[..]), Err(PayloadError::NotUtf8)));
        assert!(matches!(read(io::repeat(b'<')), Err(PayloadError::TooLarge)));
        assert!(matches!(read(io::repeat(b'A')), Err(PayloadError::TooLarge)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes: Vec<u8>) { let _ = decode(bytes); }
    }
}
