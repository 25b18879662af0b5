//! Percent-encoding of query values (RFC 3986), both ways.

use std::fmt::Write as _;

/// Encodes one value. Unreserved characters and `/` stay (`/` is legal in a query, and most values are paths).
pub fn encode(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                out.push(byte.into())
            }
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

/// Decodes one value; `None` when an escape is malformed or the result is not UTF-8. `+` stays `+`.
pub fn decode(value: &str) -> Option<String> {
    let digit = |b: u8| char::from(b).to_digit(16);
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
            out.push((high * 16 + low) as u8);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn broken_escapes_are_refused() {
        for bad in ["%", "%2", "%zz", "%ff", "a%"] {
            assert_eq!(decode(bad), None, "{bad:?}");
        }
        assert_eq!(encode("/a b&c=ü"), "/a%20b%26c%3D%C3%BC");
    }

    proptest! {
        #[test]
        fn round_trips(value in ".{0,60}") {
            let encoded = encode(&value);
            prop_assert!(encoded.is_ascii() && !encoded.contains(['&', '=', '#', '?', ' ']));
            prop_assert_eq!(decode(&encoded), Some(value));
        }
        #[test]
        fn any_text_is_answered(value in ".{0,60}") { let _ = decode(&value); }
    }
}
