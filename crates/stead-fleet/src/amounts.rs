//! Amounts as engines write them in `limits.*` and `size`.
//!
//! Owns the syntax (Incus' and LXD's documentation of instance options, "Units"). Does not own what they are taken to mean.

/// Bytes in a MiB.
const MIB: u64 = 1 << 20;

/// The suffixes, with what they stand for. Engines take `MB` as 10^6 and `MiB` as 2^20.
const SUFFIXES: [(&str, u64); 18] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("PiB", 1 << 50),
    ("EiB", 1 << 60),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("PB", 1_000_000_000_000_000),
    ("EB", 1_000_000_000_000_000_000),
    ("bytes", 1),
    ("byte", 1),
    ("k", 1_000),
    ("B", 1),
    ("", 1),
];

/// Bytes of `2GiB`, `512MB`, `1073741824`; none when it is no such amount.
pub fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let unit = SUFFIXES.iter().find(|(s, _)| *s == suffix.trim())?.1;
    number.checked_mul(unit)
}

/// MiB of an amount, rounded up: what is promised is not made smaller.
pub fn mib(text: &str) -> Option<u64> {
    bytes(text).map(|b| b.div_ceil(MIB))
}

/// MiB of `limits.memory`, which may be a share of the member's memory (`50%`).
pub fn memory_mib(text: &str, member_mib: u64) -> Option<u64> {
    match percent(text) {
        Some(share) => {
            Some((u128::from(member_mib) * u128::from(share) / 100).try_into().unwrap_or(u64::MAX))
        }
        None => mib(text),
    }
}

fn percent(text: &str) -> Option<u64> {
    text.trim().strip_suffix('%')?.trim().parse().ok()
}

/// Thousandths of a processor thread of `limits.cpu`: a number of threads (`4`) or a set of them (`0-3,7`).
pub fn cpu_milli(text: &str) -> Option<u64> {
    let text = text.trim();
    if let Ok(count) = text.parse::<u64>() {
        return count.checked_mul(1000);
    }
    let mut threads: u64 = 0;
    for part in text.split(',') {
        let count = match part.trim().split_once('-') {
            Some((first, last)) => {
                let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
                last.checked_sub(first)?.checked_add(1)?
            }
            None => part.trim().parse::<u64>().ok().map(|_| 1)?,
        };
        threads = threads.checked_add(count)?;
    }
    threads.checked_mul(1000)
}

/// Thousandths of a processor thread that a hard `limits.cpu.allowance` (`25ms/100ms`) grants; none for a share (`50%`),
/// which only counts while others compete.
pub fn allowance_milli(text: &str) -> Option<u64> {
    let (time, period) = text.split_once('/')?;
    let ms = |t: &str| t.trim().strip_suffix("ms")?.trim().parse::<u64>().ok();
    let (time, period) = (ms(time)?, ms(period)?);
    time.checked_mul(1000)?.checked_div(period)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn as_engines_read_them() {
        assert_eq!((bytes("2GiB"), bytes("2GB")), (Some(2 << 30), Some(2_000_000_000)));
        assert_eq!((bytes("1024"), bytes("10 MiB"), bytes("5kB")), (Some(1024), Some(10 << 20), Some(5000)));
        assert_eq!((bytes("GiB"), bytes("-1"), bytes("1XB"), bytes("")), (None, None, None, None));
        assert_eq!(mib("1"), Some(1));
        assert_eq!((memory_mib("50%", 4096), memory_mib("512MiB", 4096)), (Some(2048), Some(512)));
        assert_eq!(
            ["4", "0-3", "1,3,5", "0-1,7", "3-1", "x"].map(cpu_milli),
            [Some(4000), Some(4000), Some(3000), Some(3000), None, None]
        );
        assert_eq!(["25ms/100ms", "50%", "1ms/0ms"].map(allowance_milli), [Some(250), None, None]);
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC{0,24}", member: u64) {
            let _ = (bytes(&text), memory_mib(&text, member), cpu_milli(&text), allowance_milli(&text));
        }
    }
}
