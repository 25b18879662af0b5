//! Sizes in bytes, and memory as an amount or a share of the host's.

use crate::{Failure, FailureKind};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, fmt, str::FromStr};

/// The text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Neither a number nor one with a unit.
    #[error("size {0:?} is not a number with an optional unit (B, KiB, MiB, GiB, TiB, kB, MB, GB, TB)")]
    NotASize(String),
    /// An amount of memory without a unit.
    #[error("memory {0:?} has no unit: write {0}MiB for mebibytes, {0}B for bytes")]
    NoUnit(String),
}

impl Failure for SizeError {
    fn failure_kind(&self) -> FailureKind {
        FailureKind::BadInput
    }
}

/// A number of bytes, written `512MiB`, `4GiB`, `10GB`, or as a bare number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub u64);

const UNITS: [(&str, u64); 13] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("T", 1 << 40),
    ("G", 1 << 30),
    ("M", 1 << 20),
    ("K", 1 << 10),
    ("B", 1),
];

impl Bytes {
    /// `n` mebibytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }
    /// `n` gibibytes.
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }
}

impl FromStr for Bytes {
    type Err = SizeError;
    fn from_str(s: &str) -> Result<Self, SizeError> {
        let bad = || SizeError::NotASize(s.chars().take(40).collect());
        let text = s.trim();
        let (number, unit) =
            UNITS.iter().find_map(|(u, n)| text.strip_suffix(u).map(|t| (t, *n))).unwrap_or((text, 1));
        let number = number.trim_end();
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(unit).map(Self).ok_or_else(bad);
        }
        if !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return Err(bad());
        }
        let bytes = number.parse::<f64>().map_err(|_| bad())? * unit as f64;
        if bytes.is_finite() && bytes < u64::MAX as f64 { Ok(Self(bytes as u64)) } else { Err(bad()) }
    }
}
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, n) in &UNITS[..4] {
            if self.0 != 0 && self.0.is_multiple_of(*n) {
                return write!(f, "{}{unit}", self.0 / n);
            }
        }
        write!(f, "{}", self.0)
    }
}
impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        text_or_number(d)?.parse().map_err(serde::de::Error::custom)
    }
}
impl schemars::JsonSchema for Bytes {
    fn schema_name() -> Cow<'static, str> {
        "Bytes".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": ["string", "integer"], "description": "bytes: a number, or text such as 512MiB, 4GiB, 10GB"
        })
    }
}

/// Memory of a machine: bytes with a unit, or a percentage of the host's memory (in a container: of its cgroup limit).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Memory {
    /// A number of bytes.
    Amount(Bytes),
    /// 1 to 100 per cent of the host's memory.
    Percent(u8),
}

impl Memory {
    /// The amount on a host (or within a cgroup limit) of `total` bytes; a percentage is rounded down to whole MiB.
    pub fn of(self, total: Bytes) -> Bytes {
        match self {
            Self::Amount(b) => b,
            Self::Percent(p) => Bytes((total.0 / 100 * u64::from(p)) & !((1 << 20) - 1)),
        }
    }
}
impl FromStr for Memory {
    type Err = SizeError;
    fn from_str(s: &str) -> Result<Self, SizeError> {
        match s.trim().strip_suffix('%') {
            Some(p) => match p.trim().parse() {
                Ok(p @ 1..=100) => Ok(Self::Percent(p)),
                _ => Err(SizeError::NotASize(s.chars().take(40).collect())),
            },
            None => {
                let amount: Bytes = s.parse()?;
                // 2048 was meant as MiB; a large number can only be bytes, and records of clusters have such.
                if amount < Bytes::mib(1) && s.trim().ends_with(|c: char| c.is_ascii_digit()) {
                    return Err(SizeError::NoUnit(s.chars().take(40).collect()));
                }
                Ok(Self::Amount(amount))
            }
        }
    }
}
impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Amount(b) => {
                let text = b.to_string();
                let unit = if text.ends_with(|c: char| c.is_ascii_digit()) { "B" } else { "" };
                write!(f, "{text}{unit}")
            }
            Self::Percent(p) => write!(f, "{p}%"),
        }
    }
}
impl Serialize for Memory {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Memory {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        text_or_number(d)?.parse().map_err(serde::de::Error::custom)
    }
}
impl schemars::JsonSchema for Memory {
    fn schema_name() -> Cow<'static, str> {
        "Memory".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string", "description": "bytes with a unit such as 2GiB, or a share of the host such as 25%"
        })
    }
}

/// A YAML or JSON scalar that may be written as text or as a bare number.
fn text_or_number<'de, D: serde::Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    struct Visitor;
    impl serde::de::Visitor<'_> for Visitor {
        type Value = String;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a size such as 512MiB")
        }
        fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<String, E> {
            Ok(v.to_owned())
        }
        fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<String, E> {
            Ok(v.to_string())
        }
        fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<String, E> {
            Ok(v.to_string())
        }
        fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<String, E> {
            Ok(v.to_string())
        }
    }
    d.deserialize_any(Visitor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_units() {
        for (text, bytes) in
            [("512MiB", 512 << 20), ("4GiB", 4 << 30), ("10GB", 10_000_000_000), ("7", 7), ("1.5K", 1536)]
        {
            assert_eq!(text.parse::<Bytes>().unwrap().0, bytes, "{text}");
        }
        for bad in ["", "x", "-1", "1e9GiB", "99999999TiB", "NaN", "inf"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad:?} was accepted");
        }
        assert_eq!("25%".parse::<Memory>().unwrap().of(Bytes::gib(8)), Bytes::mib(2047));
        assert!("2048".parse::<Memory>().unwrap_err().to_string().contains("has no unit"));
        // As records of clusters have it for 1GB.
        assert_eq!("1000000000".parse(), Ok(Memory::Amount(Bytes(1_000_000_000))));
        assert_eq!(
            "1.5GB".parse::<Memory>().unwrap().to_string().parse(),
            Ok(Memory::Amount(Bytes(1_500_000_000)))
        );
        assert!("0%".parse::<Memory>().is_err() && "101%".parse::<Memory>().is_err());
    }

    proptest! {
        #[test]
        fn round_trips(n: u64) {
            prop_assert_eq!(Bytes(n).to_string().parse::<Bytes>().unwrap(), Bytes(n));
        }
        #[test]
        fn any_text_is_answered(s in ".{0,30}") {
            let _ = s.parse::<Memory>();
        }
    }
}
