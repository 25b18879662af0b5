//! Numbers and names of OpenNebula and the engines, for use in paths and requests. Every value of these types has been
//! validated.

use serde::{Deserialize, Serialize};
use std::{
    fmt,
    path::{Component, Path, PathBuf},
    str::FromStr,
};

/// A malformed text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {found:?}, not {expected}")]
pub struct IdError {
    /// The thing that was read.
    pub what: &'static str,
    /// Its text, truncated to a line.
    pub found: String,
    /// The expected form.
    pub expected: &'static str,
}

impl IdError {
    pub(crate) fn new(what: &'static str, found: &str, expected: &'static str) -> Self {
        // Enough to recognise it; a hostile document may have megabytes here.
        Self { what, found: found.chars().take(80).collect(), expected }
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u32);

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let error = || IdError::new($what, text, "a number");
                // u32's own parser accepts a plus sign.
                if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
                    return Err(error());
                }
                text.parse().map(Self).map_err(|_| error())
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A VM of OpenNebula.
    VmId,
    "the VM's id"
);
number!(
    /// A disk of a VM.
    DiskId,
    "DISK_ID"
);
number!(
    /// A network interface of a VM.
    NicId,
    "NIC_ID"
);
number!(
    /// A datastore.
    DatastoreId,
    "the datastore's id"
);
number!(
    /// A snapshot of a VM.
    SnapshotId,
    "the snapshot's id"
);

/// Name of an instance, as both engines allow it (a host name of one label), so it is safe in paths and requests.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct InstanceName(String);

impl InstanceName {
    /// The name of OpenNebula's VMs: `one-<id>`.
    pub fn of(vm: VmId) -> Self {
        Self(format!("one-{vm}"))
    }
    /// The VM with this name. `one-7` is VM 7; `one-07`, `one-7b` and `zone-7` are not VMs.
    pub fn vm(&self) -> Option<VmId> {
        let vm: VmId = self.0.strip_prefix("one-")?.parse().ok()?;
        (Self::of(vm) == *self).then_some(vm)
    }
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl FromStr for InstanceName {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let bytes = text.as_bytes();
        let allowed = (1..=63).contains(&bytes.len())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
            && bytes[0].is_ascii_alphabetic()
            && bytes[bytes.len() - 1] != b'-';
        if !allowed {
            return Err(IdError::new(
                "the deploy id",
                text,
                "an instance's name (letters, digits and -, at most 63, a letter first)",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}
impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of an instance's snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct SnapshotName(String);

impl SnapshotName {
    /// The name of a snapshot of OpenNebula.
    pub fn of(snapshot: SnapshotId) -> Self {
        Self(format!("snap-{snapshot}"))
    }
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl FromStr for SnapshotName {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let known = text.strip_prefix("snap-").and_then(|n| n.parse().ok()).map(Self::of);
        match known {
            Some(name) if name.0 == text => Ok(name),
            _ => Err(IdError::new("the snapshot's name", text, "snap-<number>")),
        }
    }
}
impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A host as OpenNebula names it, safe as an argument of `ssh`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName(String);

impl HostName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl FromStr for HostName {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let allowed = (1..=253).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b':' | b'_'))
            && !text.starts_with('-');
        if allowed {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdError::new("the host", text, "a host's name or address"))
        }
    }
}
impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An absolute path without `..`. Double slashes are usual in OpenNebula and harmless.
pub(crate) fn path(what: &'static str, text: &str) -> Result<PathBuf, IdError> {
    let climbs = Path::new(text).components().any(|c| matches!(c, Component::ParentDir));
    if !text.starts_with('/') || climbs || text.chars().any(char::is_control) || text.len() > 4000 {
        return Err(IdError::new(what, text, "an absolute path without .."));
    }
    // Rebuilt from its components: without `//` and `/./`.
    Ok(Path::new(text).components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_names_are_vms() {
        let vm = |name: &str| name.parse::<InstanceName>().unwrap().vm();
        assert_eq!(vm("one-7"), Some(VmId(7)));
        for other in ["one-07", "one-7b", "zone-7", "one", "one-7-8", "One-7", "one-99999999999"] {
            assert_eq!(vm(other), None, "{other}");
        }
    }

    #[test]
    fn names_cannot_climb_or_be_commands() {
        for bad in ["", "..", "a/b", "-rf", "a b", "a\nb", "one-7;reboot", "7", "a-", "ü", &"a".repeat(64)] {
            assert!(bad.parse::<InstanceName>().is_err(), "{bad:?}");
        }
        for bad in ["+7", "-7", "7 ", "0x7", "4294967296", ""] {
            assert!(bad.parse::<VmId>().is_err(), "{bad:?}");
        }
        assert!("snap-3".parse::<SnapshotName>().is_ok());
        for bad in ["snap-03", "snap-", "../x", "3"] {
            assert!(bad.parse::<SnapshotName>().is_err(), "{bad:?}");
        }
    }
}
