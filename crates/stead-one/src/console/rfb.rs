//! The RFB protocol (RFC 6143), versions 3.3, 3.7 and 3.8, between a VNC client and the console.
//!
//! Owns messages as values and bytes, the authentication, pixel formats and encodings (raw and zlib). Own code, because
//! no suitable crate was found: the only maintained server admits a client that asks for "no authentication" even if a
//! password is set. Does not own sockets or the terminal.

use super::screen::{CELL_HEIGHT, CELL_WIDTH, Font, Picture};
use des::{
    Des,
    cipher::{Block, BlockCipherEncrypt, KeyInit},
};
use flate2::{Compress, Compression, FlushCompress, Status};

/// The offered version.
pub const VERSION: &[u8; 12] = b"RFB 003.008\n";
/// Security type: no authentication.
pub const SECURITY_NONE: u8 = 1;
/// Security type: a challenge encrypted with the password.
pub const SECURITY_VNC: u8 = 2;
/// Most encodings accepted from a client.
const MAX_ENCODINGS: usize = 256;
/// Longest clipboard text that is skipped; a longer one ends the connection.
pub const MAX_CUT_TEXT_BYTES: usize = 1 << 20;

const ENCODING_RAW: i32 = 0;
const ENCODING_ZLIB: i32 = 6;
const ENCODING_DESKTOP_SIZE: i32 = -223;
const ENCODING_EXTENDED_DESKTOP_SIZE: i32 = -308;

/// Result of a client's request for another size (ExtendedDesktopSize's status).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resized {
    /// Applied, in whole cells.
    Done = 0,
    /// A size that a terminal cannot have.
    Impossible = 3,
}
/// ExtendedDesktopSize's reasons.
const REASON_SERVER: u16 = 0;
const REASON_THIS_CLIENT: u16 = 1;
const REASON_OTHER_CLIENT: u16 = 2;

/// The client's minor version in its greeting: 3, 7 or 8. Unknown ones count as 3.3.
pub fn minor_version(greeting: &[u8; 12]) -> Option<u8> {
    let text = std::str::from_utf8(greeting).ok()?.strip_prefix("RFB 003.")?;
    match text.trim_end().parse::<u16>().ok()? {
        8.. => Some(8),
        7 => Some(7),
        _ => Some(3),
    }
}

/// The correct answer to a challenge. The protocol uses the password's first 8 bytes, each with its bits reversed.
pub fn response(password: &str, challenge: &[u8; 16]) -> [u8; 16] {
    let mut key = [0; 8];
    for (k, byte) in key.iter_mut().zip(password.bytes()) {
        *k = byte.reverse_bits();
    }
    let cipher = Des::new(&key.into());
    let mut answer = *challenge;
    for block in answer.chunks_exact_mut(8) {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(block);
        let mut unit: Block<Des> = bytes.into();
        cipher.encrypt_block(&mut unit);
        block.copy_from_slice(&unit);
    }
    answer
}

/// Whether two answers are equal, in constant time.
pub fn same(a: &[u8; 16], b: &[u8; 16]) -> bool {
    a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

/// How pixels are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PixelFormat {
    /// 8, 16 or 32.
    pub bits: u8,
    /// Whether the most significant byte comes first.
    pub big_endian: bool,
    /// Largest value and bit position of red, green and blue.
    pub channels: [(u16, u8); 3],
}

impl PixelFormat {
    /// The offered format: 32 bits, `00rrggbb`.
    pub const NATIVE: Self = Self { bits: 32, big_endian: false, channels: [(255, 16), (255, 8), (255, 0)] };

    /// The 16 bytes of the protocol.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[0] = self.bits;
        bytes[1] = if self.bits == 32 { 24 } else { self.bits };
        bytes[2] = u8::from(self.big_endian);
        bytes[3] = 1;
        for (n, (max, shift)) in self.channels.into_iter().enumerate() {
            bytes[4 + 2 * n..6 + 2 * n].copy_from_slice(&max.to_be_bytes());
            bytes[10 + n] = shift;
        }
        bytes
    }
    /// Parses them. A palette (no true colour) becomes 8-bit colour, which such a client shows best.
    pub fn from_bytes(bytes: &[u8; 16]) -> Option<Self> {
        if bytes[3] == 0 {
            return Some(Self { bits: 8, big_endian: false, channels: [(7, 0), (7, 3), (3, 6)] });
        }
        let max = |n: usize| u16::from_be_bytes([bytes[4 + 2 * n], bytes[5 + 2 * n]]);
        let channels = [(max(0), bytes[10]), (max(1), bytes[11]), (max(2), bytes[12])];
        let fits = matches!(bytes[0], 8 | 16 | 32) && channels.iter().all(|(_, shift)| *shift < bytes[0]);
        fits.then_some(Self { bits: bytes[0], big_endian: bytes[2] != 0, channels })
    }
    fn put(self, pixel: u32, out: &mut Vec<u8>) {
        let mut value = 0_u32;
        for ((max, shift), level) in self.channels.into_iter().zip([pixel >> 16, pixel >> 8, pixel]) {
            value |= ((level & 0xff) * u32::from(max) / 255) << shift;
        }
        let bytes = value.to_le_bytes();
        let used = &bytes[..usize::from(self.bits / 8)];
        if self.big_endian { out.extend(used.iter().rev()) } else { out.extend(used) }
    }
}

/// A client's message after the handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// It sets the pixel format.
    Format(PixelFormat),
    /// It lists its encodings.
    Encodings(Vec<i32>),
    /// It requests an update.
    Update {
        /// Only what changed.
        incremental: bool,
    },
    /// A key.
    Key {
        /// Its X11 number.
        key: u32,
        /// Whether it is pressed, not released.
        down: bool,
    },
    /// It requests another screen size.
    Size {
        /// Pixels.
        width: u16,
        /// Pixels.
        height: u16,
    },
    /// The pointer or the clipboard, which a terminal ignores.
    Nothing,
}

/// A client that violates the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the client sent {0}")]
pub struct Nonsense(pub &'static str);

/// Takes one message from the beginning of `bytes`; `None`: it is incomplete.
///
/// # Errors
/// [`Nonsense`]: the client must be disconnected.
pub fn take(bytes: &mut Vec<u8>) -> Result<Option<Said>, Nonsense> {
    let Some(kind) = bytes.first() else { return Ok(None) };
    let u16_at = |at: usize| bytes.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
    let u32_at = |at: usize| bytes.get(at..at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
    let (length, said) = match kind {
        0 => {
            let Some(format) = bytes.get(4..20) else { return Ok(None) };
            let mut sixteen = [0; 16];
            sixteen.copy_from_slice(format);
            let format = PixelFormat::from_bytes(&sixteen).ok_or(Nonsense("an impossible pixel format"))?;
            (20, Said::Format(format))
        }
        2 => {
            let Some(count) = u16_at(2) else { return Ok(None) };
            let count = usize::from(count);
            if count > MAX_ENCODINGS {
                return Err(Nonsense("too many encodings"));
            }
            let Some(list) = bytes.get(4..4 + 4 * count) else { return Ok(None) };
            let list = list.chunks_exact(4).map(|c| i32::from_be_bytes([c[0], c[1], c[2], c[3]])).collect();
            (4 + 4 * count, Said::Encodings(list))
        }
        3 => (10, Said::Update { incremental: bytes.get(1).is_some_and(|b| *b != 0) }),
        4 => {
            let Some(key) = u32_at(4) else { return Ok(None) };
            (8, Said::Key { key, down: bytes[1] != 0 })
        }
        5 => (6, Said::Nothing),
        6 => {
            let Some(length) = u32_at(4) else { return Ok(None) };
            // The extended clipboard has negative lengths.
            let length = (length as i32).unsigned_abs() as usize;
            if length > MAX_CUT_TEXT_BYTES {
                return Err(Nonsense("a clipboard that is too large"));
            }
            (8 + length, Said::Nothing)
        }
        251 => {
            let (Some(width), Some(height), Some(screens)) = (u16_at(2), u16_at(4), bytes.get(6)) else {
                return Ok(None);
            };
            (8 + 16 * usize::from(*screens), Said::Size { width, height })
        }
        _ => return Err(Nonsense("an unknown message")),
    };
    if bytes.len() < length {
        return Ok(None);
    }
    bytes.drain(..length);
    Ok(Some(said))
}

/// ServerInit: size, format, name.
pub fn server_init(size: (u16, u16), name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(size.0.to_be_bytes());
    out.extend(size.1.to_be_bytes());
    out.extend(PixelFormat::NATIVE.to_bytes());
    out.extend((name.len() as u32).to_be_bytes());
    out.extend(name.as_bytes());
    out
}

/// What one client has been sent, and its format and encodings.
pub struct View {
    format: PixelFormat,
    zlib: Option<Compress>,
    wants_zlib: bool,
    resizes: bool,
    extended: bool,
    answer: Option<Resized>,
    shown: Option<Picture>,
}

impl Default for View {
    fn default() -> Self {
        Self {
            format: PixelFormat::NATIVE,
            zlib: None,
            wants_zlib: false,
            resizes: false,
            extended: false,
            answer: None,
            shown: None,
        }
    }
}

impl View {
    /// Sets the pixel format of later updates.
    pub fn set_format(&mut self, format: PixelFormat) {
        self.format = format;
        self.shown = None;
    }
    /// Sets the client's encodings.
    pub fn set_encodings(&mut self, encodings: &[i32]) {
        self.wants_zlib = encodings.contains(&ENCODING_ZLIB);
        self.resizes = encodings.contains(&ENCODING_DESKTOP_SIZE);
        let extended = encodings.contains(&ENCODING_EXTENDED_DESKTOP_SIZE);
        // A first rectangle with the present size tells the client that it may request another one.
        if extended && !self.extended {
            self.shown = None;
        }
        self.extended = extended;
    }
    /// Reports the result of this client's size request in the next update.
    pub fn answer(&mut self, resized: Resized) {
        self.answer = Some(resized);
    }
    /// Makes the next update show everything.
    pub fn forget(&mut self) {
        if let Some(shown) = &mut self.shown {
            for look in &mut shown.looks {
                look.character = '\u{10ffff}';
            }
        }
    }
    /// The message that updates the client to `picture`; `None`: nothing changed.
    pub fn update(&mut self, picture: &Picture, font: &Font) -> Option<Vec<u8>> {
        let mut rectangles = Vec::new();
        let mut count = 0_u16;
        let same_size = self.shown.as_ref().is_some_and(|s| s.size() == picture.size());
        let known = self.shown.is_some();
        let (width, height) = picture.size();
        let answer = self.answer.take();
        if self.extended && (!same_size || answer.is_some()) {
            let reason = match answer {
                Some(_) => REASON_THIS_CLIENT,
                None if known => REASON_OTHER_CLIENT,
                None => REASON_SERVER,
            };
            let status = answer.map_or(0, |a| a as u16);
            head(&mut rectangles, (reason, status), (width, height), ENCODING_EXTENDED_DESKTOP_SIZE);
            // One screen that covers everything.
            rectangles.extend([1, 0, 0, 0]);
            rectangles.extend([0, 0, 0, 0, 0, 0, 0, 0]);
            rectangles.extend(width.to_be_bytes());
            rectangles.extend(height.to_be_bytes());
            rectangles.extend([0; 4]);
            count += 1;
        } else if !same_size && known && self.resizes {
            head(&mut rectangles, (0, 0), (width, height), ENCODING_DESKTOP_SIZE);
            count += 1;
        }
        let before = self.shown.as_ref().filter(|_| same_size);
        let columns = picture.columns.max(1);
        let mut runs = Vec::new();
        for (row, now) in picture.looks.chunks(columns).enumerate() {
            let then = before.and_then(|b| b.looks.get(row * columns..(row + 1) * columns));
            let differs = |column: usize| then.is_none_or(|t| t[column] != now[column]);
            let Some(first) = (0..now.len()).find(|c| differs(*c)) else { continue };
            let last = (first..now.len()).rev().find(|c| differs(*c)).unwrap_or(first);
            runs.push((row, first, last));
        }
        for (row, first, last) in runs {
            let looks = &picture.looks[row * columns + first..=row * columns + last];
            let pixels = font.draw(looks);
            let at = (first as u16 * CELL_WIDTH, row as u16 * CELL_HEIGHT);
            let size = (looks.len() as u16 * CELL_WIDTH, CELL_HEIGHT);
            self.rectangle(&mut rectangles, at, size, &pixels);
            count += 1;
        }
        self.shown = Some(picture.clone());
        if count == 0 {
            return None;
        }
        let mut message = vec![0, 0];
        message.extend(count.to_be_bytes());
        message.extend(rectangles);
        Some(message)
    }

    fn rectangle(&mut self, out: &mut Vec<u8>, at: (u16, u16), size: (u16, u16), pixels: &[u32]) {
        let mut bytes = Vec::with_capacity(pixels.len() * usize::from(self.format.bits / 8));
        for pixel in pixels {
            self.format.put(*pixel, &mut bytes);
        }
        if self.wants_zlib {
            // One stream for the whole connection, as the protocol demands.
            let stream = self.zlib.get_or_insert_with(|| Compress::new(Compression::fast(), true));
            let mut packed = Vec::with_capacity(bytes.len() / 4 + 64);
            let (mut input, start) = (&bytes[..], stream.total_in());
            loop {
                packed.reserve(1024);
                let before = stream.total_in();
                let status = stream.compress_vec(input, &mut packed, FlushCompress::Sync);
                input = &input[(stream.total_in() - before) as usize..];
                let done = input.is_empty() && packed.len() < packed.capacity();
                if done || !matches!(status, Ok(Status::Ok | Status::BufError)) {
                    break;
                }
            }
            debug_assert_eq!(stream.total_in() - start, bytes.len() as u64);
            head(out, at, size, ENCODING_ZLIB);
            out.extend((packed.len() as u32).to_be_bytes());
            out.extend(packed);
        } else {
            head(out, at, size, ENCODING_RAW);
            out.extend(bytes);
        }
    }
}

fn head(out: &mut Vec<u8>, at: (u16, u16), size: (u16, u16), encoding: i32) {
    for part in [at.0, at.1, size.0, size.1] {
        out.extend(part.to_be_bytes());
    }
    out.extend(encoding.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::{super::screen::Screen, *};
    use proptest::prelude::*;

    #[test]
    fn the_password_is_a_des_key_with_reversed_bytes() {
        // Known answer: DES with key 0123456789abcdef of "Now is t" is 3fa40e8a984d4815 (FIPS 81). The password is that key
        // with each byte's bits reversed.
        let password: String =
            [0x01_u8, 0x23, 0x45, 0x67].map(|b| char::from(b.reverse_bits() & 0x7f)).iter().collect();
        let challenge = *b"Now is tNow is t";
        let answer = response(&password, &challenge);
        assert_eq!(answer[..8], answer[8..], "two equal blocks");
        assert!(same(&answer, &response(&password, &challenge)));
        assert!(!same(&answer, &response("other", &challenge)));
        assert_eq!(response("12345678", &challenge), response("123456789", &challenge));
        // Of "" the key is zero: DES of zeros with it is 8ca64de9c1b123a7.
        assert_eq!(response("", &[0; 16])[..8], [0x8c, 0xa6, 0x4d, 0xe9, 0xc1, 0xb1, 0x23, 0xa7]);
    }

    #[test]
    fn messages() {
        let mut bytes = vec![4, 1, 0, 0, 0, 0, 0xff, 0x0d, 3, 1, 0, 0, 0, 0, 0, 9, 0];
        assert_eq!(take(&mut bytes), Ok(Some(Said::Key { key: 0xff0d, down: true })));
        assert_eq!(take(&mut bytes), Ok(None));
        bytes.push(9);
        assert_eq!(take(&mut bytes), Ok(Some(Said::Update { incremental: true })));
        assert!(bytes.is_empty());
        let mut bytes = vec![2, 0, 0, 2, 0, 0, 0, 6, 0xff, 0xff, 0xff, 0x21];
        assert_eq!(take(&mut bytes), Ok(Some(Said::Encodings(vec![6, -223]))));
        assert!(take(&mut vec![6, 0, 0, 0, 0x7f, 0, 0, 0]).is_err());
        assert!(take(&mut vec![99]).is_err());
    }

    #[test]
    fn only_what_changed_is_sent() {
        let mut screen = Screen::new(80, 48);
        let (mut view, font) = (View::default(), Font::default());
        let first = view.update(&screen.picture(), &font).unwrap();
        assert_eq!(first[..4], [0, 0, 0, 3]);
        assert_eq!(first.len(), 4 + 3 * 12 + 80 * 48 * 4);
        assert_eq!(view.update(&screen.picture(), &font), None);
        screen.print(b"x");
        // The letter and the cursor after it: two cells of the first row.
        let update = view.update(&screen.picture(), &font).unwrap();
        assert_eq!(update[..16], [0, 0, 0, 1, 0, 0, 0, 0, 0, 16, 0, 16, 0, 0, 0, 0]);
        view.set_encodings(&[ENCODING_ZLIB, ENCODING_DESKTOP_SIZE]);
        screen.resize(160, 48);
        let update = view.update(&screen.picture(), &font).unwrap();
        assert_eq!(update[4..16], [0, 0, 0, 0, 0, 160, 0, 48, 0xff, 0xff, 0xff, 0x21]);
        assert!(update.len() < 1000, "zlib does not pack: {}", update.len());
    }

    #[test]
    fn every_size_request_is_answered() {
        let mut screen = Screen::new(80, 48);
        let (mut view, font) = (View::default(), Font::default());
        view.set_encodings(&[ENCODING_EXTENDED_DESKTOP_SIZE]);
        // Reason, status, size and number of screens of the first rectangle.
        let told = |view: &mut View, screen: &Screen| {
            let update = view.update(&screen.picture(), &font).unwrap();
            assert_eq!(update[12..16], ENCODING_EXTENDED_DESKTOP_SIZE.to_be_bytes());
            (update[4..12].to_vec(), update[16])
        };
        assert_eq!(told(&mut view, &screen), (vec![0, 0, 0, 0, 0, 80, 0, 48], 1));
        screen.resize(160, 48);
        assert_eq!(told(&mut view, &screen), (vec![0, 2, 0, 0, 0, 160, 0, 48], 1));
        screen.resize(240, 48);
        view.answer(Resized::Done);
        assert_eq!(told(&mut view, &screen), (vec![0, 1, 0, 0, 0, 240, 0, 48], 1));
        // Nothing changed, but there is still an answer.
        view.answer(Resized::Impossible);
        assert_eq!(told(&mut view, &screen), (vec![0, 1, 0, 3, 0, 240, 0, 48], 1));
        assert_eq!(view.update(&screen.picture(), &font), None);
    }

    #[test]
    fn pixel_formats() {
        let sixteen = PixelFormat { bits: 16, big_endian: true, channels: [(31, 11), (63, 5), (31, 0)] };
        assert_eq!(PixelFormat::from_bytes(&sixteen.to_bytes()), Some(sixteen));
        let mut out = Vec::new();
        sixteen.put(0x00ff_0000, &mut out);
        assert_eq!(out, [0xf8, 0]);
        let mut bytes = PixelFormat::NATIVE.to_bytes();
        bytes[10] = 40;
        assert_eq!(PixelFormat::from_bytes(&bytes), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(mut bytes: Vec<u8>) {
            while let Ok(Some(_)) = take(&mut bytes) {}
        }
        #[test]
        fn any_format_draws(format: [u8; 16]) {
            if let Some(format) = PixelFormat::from_bytes(&format) {
                format.put(0x00ab_cdef, &mut Vec::new());
            }
        }
    }
}
