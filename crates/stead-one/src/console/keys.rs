//! Translates X11 keys, as VNC clients send them, into the bytes that a terminal sends.

/// The modifier keys held down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    control: bool,
    alt: bool,
}

impl Held {
    /// Handles a key; returns the bytes that it types. `application` is the terminal's cursor key mode.
    pub fn press(&mut self, key: u32, down: bool, application: bool) -> Vec<u8> {
        match key {
            0xffe3 | 0xffe4 => self.control = down,
            // Alt and Meta.
            0xffe7..=0xffea => self.alt = down,
            _ if down => {
                let mut bytes = typed(key, self.control, application);
                if self.alt && !bytes.is_empty() {
                    bytes.insert(0, 0x1b);
                }
                return bytes;
            }
            _ => {}
        }
        Vec::new()
    }
}

fn typed(key: u32, control: bool, application: bool) -> Vec<u8> {
    let cursor = |c: char| format!("\x1b{}{c}", if application { 'O' } else { '[' }).into_bytes();
    let fixed = |s: &str| s.as_bytes().to_vec();
    match key {
        0xff08 => vec![0x7f],
        0xff09 => vec![b'\t'],
        // Shift and Tab.
        0xfe20 => fixed("\x1b[Z"),
        0xff0d | 0xff8d => vec![b'\r'],
        0xff1b => vec![0x1b],
        0xff50 | 0xff95 => cursor('H'),
        0xff51 | 0xff96 => cursor('D'),
        0xff52 | 0xff97 => cursor('A'),
        0xff53 | 0xff98 => cursor('C'),
        0xff54 | 0xff99 => cursor('B'),
        0xff57 | 0xff9c => cursor('F'),
        0xff55 | 0xff9a => fixed("\x1b[5~"),
        0xff56 | 0xff9b => fixed("\x1b[6~"),
        0xff63 | 0xff9e => fixed("\x1b[2~"),
        0xffff | 0xff9f => fixed("\x1b[3~"),
        // F1 to F4, then F5 to F12 with their gaps.
        0xffbe..=0xffc1 => format!("\x1bO{}", char::from(b'P' + (key - 0xffbe) as u8)).into_bytes(),
        0xffc2..=0xffc9 => {
            let code = [15, 17, 18, 19, 20, 21, 23, 24][(key - 0xffc2) as usize];
            format!("\x1b[{code}~").into_bytes()
        }
        // Characters of the number pad.
        0xffaa..=0xffb9 => vec![(key - 0xff80) as u8],
        0xffbd => vec![b'='],
        0x20..=0x7e if control => match key as u8 {
            c @ (b'a'..=b'z' | b'@'..=b'_') => vec![c & 0x1f],
            b' ' | b'2' => vec![0],
            b'3' => vec![0x1b],
            b'4' => vec![0x1c],
            b'5' => vec![0x1d],
            b'6' => vec![0x1e],
            b'7' | b'/' => vec![0x1f],
            b'8' => vec![0x7f],
            c => vec![c],
        },
        _ => {
            // Latin 1 is unchanged; the rest of Unicode has an offset.
            let code = match key {
                0x20..=0x7e | 0xa0..=0xff => key,
                0x0100_0100..=0x0110_ffff => key - 0x0100_0000,
                _ => return Vec::new(),
            };
            char::from_u32(code).map(|c| c.to_string().into_bytes()).unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed() {
        let mut held = Held::default();
        let mut type_key = |key, down| held.press(key, down, false);
        assert_eq!(type_key(0x61, true), b"a");
        assert_eq!(type_key(0x61, false), b"");
        assert_eq!(type_key(0xffe3, true), b"");
        assert_eq!(type_key(0x63, true), [3]);
        assert_eq!(type_key(0xffe3, false), b"");
        assert_eq!(type_key(0xe9, true), "é".as_bytes());
        assert_eq!(type_key(0x0100_20ac, true), "€".as_bytes());
        assert_eq!(type_key(0xff52, true), b"\x1b[A");
        assert_eq!(type_key(0xffc9, true), b"\x1b[24~");
        assert_eq!(type_key(0xffe9, true), b"");
        assert_eq!(type_key(0x78, true), b"\x1bx");
        assert_eq!(Held::default().press(0xff52, true, true), b"\x1bOA");
        assert_eq!(Held::default().press(0xffb5, true, false), b"5");
    }
}
