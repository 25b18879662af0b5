//! The document on standard input: raw XML over ssh, or base64 of it when the script is called on the frontend itself.
//!
//! Owns bounded reading and the detection of the two forms. Does not own the meaning of the XML ([`crate::document`]).

use base64::Engine as _;
use std::io::{self, Read};

/// Largest decoded document. A VM's own has a few dozen KiB; context scripts and a long history make it larger, but
/// OpenNebula keeps each in a database column and in an argument.
pub const MAX_DOCUMENT_BYTES: usize = 8 << 20;

/// Standard input has no usable document.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// It cannot be read.
    #[error("cannot read the document on stdin")]
    Read(#[source] io::Error),
    /// It is empty.
    #[error("there is no document on stdin")]
    Empty,
    /// Longer than [`MAX_DOCUMENT_BYTES`].
    #[error("the document on stdin is larger than {} MiB", MAX_DOCUMENT_BYTES >> 20)]
    TooLarge,
    /// Neither XML nor base64.
    #[error("stdin is neither XML nor base64")]
    Base64(#[source] base64::DecodeError),
    /// It is not text.
    #[error("the document on stdin is not UTF-8")]
    NotUtf8,
}

/// Reads the document, up to its allowed size.
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

/// The XML in `bytes`: text that begins with `<` is XML, anything else must be base64 of it.
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
    fn other_input_is_refused() {
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
