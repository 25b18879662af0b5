//! What this host is and has.
//!
//! Owns the facts; [`observe`] looks, and changes nothing. Does not own what follows from them: that is for
//! [`crate::backend`] and [`crate::doctor`].

mod observe;

pub use observe::observe;

use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};
use stead_model::Bytes;

/// Facts about the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct HostFacts {
    /// Whether this process is root.
    pub root: bool,
    /// `uname -r`.
    pub kernel: String,
    /// The programs that were looked for, by name, with where they are.
    pub tools: BTreeMap<String, Option<PathBuf>>,
    /// Version of Go, when it is installed and answers.
    pub go: Option<String>,
    /// The processor's flag for virtualisation, `vmx` or `svm`; absent when it offers none.
    pub cpu_virtualisation: Option<String>,
    /// `/dev/kvm`.
    pub kvm: Device,
    /// `/dev/net/tun`.
    pub tun: Device,
    /// `/dev/loop-control`.
    pub loop_control: Device,
    /// Namespaces the kernel has: `mnt`, `pid`, `net`, …
    pub namespaces: BTreeSet<String>,
    /// Filesystems the kernel has, or has a module for.
    pub filesystems: BTreeSet<String>,
    /// Version and controllers of the cgroups.
    pub cgroups: CgroupFacts,
    /// Whether root has ranges in /etc/subuid and /etc/subgid.
    pub subids: bool,
    /// Memory of the host (or of the cgroup this runs in).
    pub memory: Bytes,
    /// How much of it is free for machines.
    pub memory_available: Bytes,
    /// Free space where images and machines are kept.
    pub disk_free: Bytes,
    /// The directory that was measured.
    pub disk_at: PathBuf,
}

/// State of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// It is not there.
    #[default]
    Missing,
    /// It is there, and cannot be opened.
    Refused,
    /// It can be opened.
    Opens,
}

/// What cgroups a host has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CgroupFacts {
    /// The unified hierarchy is mounted.
    pub v2: bool,
    /// Hierarchies of version 1 are mounted.
    pub v1: bool,
    /// Controllers in either.
    pub controllers: BTreeSet<String>,
}

/// A program and the Debian package it comes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    /// Its name.
    pub name: &'static str,
    /// The package.
    pub package: &'static str,
}

/// Namespaces a node on the host's own kernel has.
pub(crate) const NAMESPACES: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];

impl HostFacts {
    /// Whether KVM really works. That `/dev/kvm` opens proves nothing: on some hosts the processor then never runs the
    /// machine.
    pub fn kvm_works(&self) -> bool {
        self.kvm == Device::Opens && self.cpu_virtualisation.is_some()
    }
    /// Whether a program that was looked for is installed.
    pub fn has(&self, tool: &str) -> bool {
        self.tools.get(tool).is_some_and(Option::is_some)
    }
}
