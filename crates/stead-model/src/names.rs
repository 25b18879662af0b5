//! Names and hardware addresses, as types that can hold only valid ones.

use crate::{Failure, FailureKind};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, fmt, str::FromStr};

/// A name or address is invalid. Displayed as a lowercase fragment with the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} {why}")]
pub struct NameError {
    /// "cluster name", "node name", …
    pub what: &'static str,
    /// The invalid value, cut short.
    pub value: String,
    /// The rule it breaks, as in "is too long".
    pub why: &'static str,
}

impl Failure for NameError {
    fn failure_kind(&self) -> FailureKind {
        FailureKind::BadInput
    }
}

fn check_label(what: &'static str, value: &str, longest: usize) -> Result<(), NameError> {
    let fail = |why| Err(NameError { what, value: value.chars().take(80).collect(), why });
    if value.is_empty() {
        return fail("is empty");
    }
    if value.len() > longest {
        return fail("is too long");
    }
    if !value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        return fail("may hold only a-z, 0-9 and '-'");
    }
    if value.starts_with('-') || value.ends_with('-') {
        return fail("may not begin or end with '-'");
    }
    if value.bytes().all(|b| b.is_ascii_digit()) {
        return fail("may not be only digits");
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $ty:ident, $what:literal, $longest:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $ty(String);

        impl $ty {
            /// Makes a name of a value that is a DNS label and not too long.
            pub fn new(value: impl Into<String>) -> Result<Self, NameError> {
                let value = value.into();
                check_label($what, &value, $longest)?;
                Ok(Self(value))
            }
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl FromStr for $ty {
            type Err = NameError;
            fn from_str(s: &str) -> Result<Self, NameError> {
                Self::new(s)
            }
        }
        impl AsRef<str> for $ty {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl<'de> Deserialize<'de> for $ty {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                Self::new(String::deserialize(d)?).map_err(serde::de::Error::custom)
            }
        }
        impl schemars::JsonSchema for $ty {
            fn schema_name() -> Cow<'static, str> {
                stringify!($ty).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "type": "string", "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", "maxLength": $longest
                })
            }
        }
    };
}

name!(
    /// Name of a cluster: a DNS label of at most 32 characters (it becomes a domain, a network namespace and a
    /// cgroup).
    ClusterName, "cluster name", 32
);
name!(
    /// Name of a node: a DNS label of at most 48 characters (it becomes a hostname and an engine member).
    NodeName, "node name", 48
);
name!(
    /// Name of a recipe and of the image built from it: a DNS label of at most 48 characters.
    ImageName, "image name", 48
);
name!(
    /// Name that this host gives to a cluster it reaches over the network: a DNS label of at most 63 characters.
    RemoteName, "remote name", 63
);

/// A hardware (Ethernet) address, written `02:00:00:00:00:01`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl FromStr for MacAddress {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        let bad = || NameError {
            what: "hardware address",
            value: s.chars().take(80).collect(),
            why: "is not six hexadecimal bytes separated by colons",
        };
        let mut out = [0u8; 6];
        let mut parts = s.split(':');
        for byte in &mut out {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(out)) }
    }
}
impl Serialize for MacAddress {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}
impl schemars::JsonSchema for MacAddress {
    fn schema_name() -> Cow<'static, str> {
        "MacAddress".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_follow_dns_labels() {
        assert!(ClusterName::new("demo").is_ok());
        for bad in ["", "-a", "a-", "A", "a.b", "../x", "1234", "a b", &"x".repeat(33)] {
            assert!(ClusterName::new(bad).is_err(), "{bad:?} was accepted");
        }
        assert_eq!(
            NodeName::new("a/b").unwrap_err().to_string(),
            "node name \"a/b\" may hold only a-z, 0-9 and '-'"
        );
    }

    proptest! {
        #[test]
        fn mac_round_trips(bytes: [u8; 6]) {
            prop_assert_eq!(MacAddress(bytes).to_string().parse::<MacAddress>().unwrap(), MacAddress(bytes));
        }
        #[test]
        fn any_text_is_answered(s in ".{0,40}") {
            let _ = s.parse::<MacAddress>();
            let _ = NodeName::new(s);
        }
    }
}
