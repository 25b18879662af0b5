//! Mounting, and the node's own table of mounts.
//!
//! Does not parse the table (`stead_os::mountinfo`) or decide what is mounted at boot ([`crate::boot`]).

use rustix::mount::{MountFlags, mount};
use serde::{Deserialize, Serialize};
use std::{ffi::CString, io, path::Path};
use stead_os::mountinfo::{self, Mount};

/// The mounts of this mount namespace, oldest first; empty when /proc is not mounted.
pub fn current() -> Vec<Mount> {
    mountinfo::read().unwrap_or_default()
}

/// A mount flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flag {
    /// Read-only.
    Ro,
    /// Set-user-id bits are ignored.
    Nosuid,
    /// Device nodes are ignored.
    Nodev,
    /// Execution is not allowed.
    Noexec,
}

/// Mounts a filesystem.
///
/// # Errors
/// As mount(2).
pub fn mount_filesystem(
    source: &str,
    target: &Path,
    filesystem: &str,
    flags: &[Flag],
    data: &str,
) -> io::Result<()> {
    let flags = flags.iter().fold(MountFlags::empty(), |all, flag| {
        all | match flag {
            Flag::Ro => MountFlags::RDONLY,
            Flag::Nosuid => MountFlags::NOSUID,
            Flag::Nodev => MountFlags::NODEV,
            Flag::Noexec => MountFlags::NOEXEC,
        }
    });
    let data = CString::new(data)?;
    Ok(mount(source, target, filesystem, flags, data.as_c_str())?)
}
