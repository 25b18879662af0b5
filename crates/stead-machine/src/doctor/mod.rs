//! What this host can do, and the mend for what it cannot.
//!
//! Owns the questions and the judgement. [`observe`] looks, [`checks`] judges; nothing is changed.

mod observe;

pub(crate) use observe::kvm_works;
pub use observe::observe;

use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};
use stead_model::{Bytes, cluster::Backend};

/// What was seen of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct HostFacts {
    /// Whether this process is root.
    pub root: bool,
    /// `uname -r`.
    pub kernel: String,
    /// Programs of [`TOOLS`], by name, with where they are.
    pub tools: BTreeMap<String, Option<PathBuf>>,
    /// What the processor calls its virtualisation: `vmx` or `svm`; absent when it has none to offer.
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
    /// Of it, what is free for machines.
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

/// Outcome of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Fine.
    Ok,
    /// Something of Stead will not work, or not well.
    Warn,
    /// No machine can be started.
    Fail,
}

/// One line of `stead doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it is.
    pub ok: Verdict,
    /// What was seen.
    pub detail: String,
    /// The mend, when there is one.
    pub fix: Option<String>,
}

/// A program Stead runs on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    /// Its name.
    pub name: &'static str,
    /// Debian's package.
    pub package: &'static str,
    /// What is missing without it.
    pub without: &'static str,
    /// How bad that is.
    pub verdict: Verdict,
}

/// Programs Stead runs on the host.
pub const TOOLS: [Tool; 8] = [
    Tool {
        name: "dnsmasq",
        package: "dnsmasq-base",
        without: "networks have no DHCP and DNS, and clusters need both",
        verdict: Verdict::Fail,
    },
    Tool {
        name: "mksquashfs",
        package: "squashfs-tools",
        without: "images and overlays cannot be packed",
        verdict: Verdict::Warn,
    },
    Tool {
        name: "mmdebstrap",
        package: "mmdebstrap",
        without: "images cannot be built from Debian packages",
        verdict: Verdict::Warn,
    },
    Tool {
        name: "nft",
        package: "nftables",
        without: "networks with \"nat: true\" do not work",
        verdict: Verdict::Warn,
    },
    Tool {
        name: "qemu-system-x86_64",
        package: "qemu-system-x86",
        without: "the qemu backend does not work",
        verdict: Verdict::Warn,
    },
    Tool {
        name: "mkfs.ext4",
        package: "e2fsprogs",
        without: "disk outputs of images cannot be made",
        verdict: Verdict::Warn,
    },
    Tool {
        name: "xz",
        package: "xz-utils",
        without: "kernel modules and images cannot be unpacked",
        verdict: Verdict::Warn,
    },
    Tool {
        name: "zstd",
        package: "zstd",
        without: "images in zstd cannot be unpacked",
        verdict: Verdict::Warn,
    },
];

/// Namespaces a namespace machine has.
const NAMESPACES: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];
/// An image with an engine, three machines' changes and a pool take this much, bytes.
const ENOUGH_DISK: Bytes = Bytes::gib(5);
/// Three namespace machines with an engine and two instances take about half of this.
const ENOUGH_MEMORY: Bytes = Bytes::gib(1);

impl HostFacts {
    /// Whether KVM really works: `/dev/kvm` opens on hosts whose processor then never runs the machine.
    pub fn kvm_works(&self) -> bool {
        self.kvm == Device::Opens && self.cpu_virtualisation.is_some()
    }
    /// What keeps namespace machines from working; empty when nothing does.
    pub fn namespace_obstacles(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if !self.root {
            missing.push("this is not root".to_owned());
        }
        missing.extend(
            NAMESPACES
                .iter()
                .filter(|n| !self.namespaces.contains(**n))
                .map(|n| format!("the kernel has no {n} namespaces")),
        );
        missing.extend(
            ["squashfs", "overlay"]
                .iter()
                .filter(|f| !self.filesystems.contains(**f))
                .map(|f| format!("the kernel has no {f}")),
        );
        if self.loop_control != Device::Opens {
            missing.push("/dev/loop-control does not open".to_owned());
        }
        if !self.cgroups.v1 && !self.cgroups.v2 {
            missing.push("no cgroups are mounted".to_owned());
        }
        missing
    }
    /// Whether QEMU is installed.
    pub fn has_qemu(&self) -> bool {
        self.tools.get("qemu-system-x86_64").is_some_and(Option::is_some)
    }
}

/// Judges what was seen. Pure. In the order a person would mend things.
pub fn checks(facts: &HostFacts) -> Vec<Check> {
    let mut all = vec![root(facts), backend(facts)];
    all.extend(TOOLS.iter().map(|tool| tool_check(facts, tool)));
    all.extend([kvm(facts), tun(facts), namespaces(facts), cgroups(facts), loops(facts)]);
    all.extend(filesystems(facts));
    all.extend([subids(facts), disk(facts), memory(facts)]);
    all
}

fn check(name: &str, ok: Verdict, detail: impl Into<String>, fix: Option<&str>) -> Check {
    let fix = fix.filter(|_| ok != Verdict::Ok).map(str::to_owned);
    Check { name: name.to_owned(), ok, detail: detail.into(), fix }
}

fn root(facts: &HostFacts) -> Check {
    match facts.root {
        true => check("root", Verdict::Ok, "this is root", None),
        false => check(
            "root",
            Verdict::Fail,
            "this is not root: namespaces, networks and mounts need it",
            Some("run stead as root"),
        ),
    }
}

fn backend(facts: &HostFacts) -> Check {
    let choice = crate::backend::choose(facts);
    let works = match choice.backend {
        Backend::Namespace => facts.namespace_obstacles().is_empty(),
        _ => facts.has_qemu(),
    };
    let verdict = if works { Verdict::Ok } else { Verdict::Fail };
    let detail = format!("auto means {}: {}", choice.backend, choice.why);
    check("backend", verdict, detail, Some("mend what is said below about namespaces, or about qemu"))
}

fn tool_check(facts: &HostFacts, tool: &Tool) -> Check {
    match facts.tools.get(tool.name).and_then(Option::as_ref) {
        Some(path) => check(tool.name, Verdict::Ok, path.display().to_string(), None),
        None => check(
            tool.name,
            tool.verdict,
            format!("not installed: {}", tool.without),
            Some(&format!("apt-get install {}", tool.package)),
        ),
    }
}

fn kvm(facts: &HostFacts) -> Check {
    let (verdict, detail, fix) = match (facts.kvm, &facts.cpu_virtualisation) {
        (Device::Opens, Some(flag)) => {
            (Verdict::Ok, format!("/dev/kvm opens and the processor has {flag}"), None)
        }
        (Device::Opens, None) => (
            Verdict::Warn,
            "/dev/kvm opens, but the processor shows neither vmx nor svm: a machine would be made and never run; \
             qemu emulates"
                .to_owned(),
            Some("if this is a virtual machine, turn nested virtualisation on in the host above it"),
        ),
        (Device::Refused, _) => {
            (Verdict::Warn, "/dev/kvm does not open".to_owned(), Some("run stead as root, or join group kvm"))
        }
        (Device::Missing, Some(flag)) => (
            Verdict::Warn,
            format!("the processor has {flag}, but there is no /dev/kvm"),
            Some(if flag == "vmx" { "modprobe kvm_intel" } else { "modprobe kvm_amd" }),
        ),
        (Device::Missing, None) => (
            Verdict::Warn,
            "no /dev/kvm, and the processor shows neither vmx nor svm; qemu emulates".to_owned(),
            Some("turn virtualisation on in the firmware, or nested virtualisation in the host above"),
        ),
    };
    check("kvm", verdict, detail, fix)
}

fn tun(facts: &HostFacts) -> Check {
    match facts.tun {
        Device::Opens => check("tun", Verdict::Ok, "/dev/net/tun opens", None),
        Device::Refused => check(
            "tun",
            Verdict::Warn,
            "/dev/net/tun does not open: qemu machines have no network",
            Some("run stead as root"),
        ),
        Device::Missing => check(
            "tun",
            Verdict::Warn,
            "no /dev/net/tun: qemu machines have no network",
            Some("modprobe tun"),
        ),
    }
}

fn namespaces(facts: &HostFacts) -> Check {
    let missing: Vec<&str> = NAMESPACES.iter().copied().filter(|n| !facts.namespaces.contains(*n)).collect();
    match missing.is_empty() {
        true => check("namespaces", Verdict::Ok, NAMESPACES.join(", "), None),
        false => check(
            "namespaces",
            Verdict::Fail,
            format!("the kernel has no {} namespaces", missing.join(", ")),
            Some("boot a kernel with CONFIG_NAMESPACES and its parts"),
        ),
    }
}

fn cgroups(facts: &HostFacts) -> Check {
    let c = &facts.cgroups;
    let version = match (c.v1, c.v2) {
        (false, false) => {
            return check(
                "cgroups",
                Verdict::Fail,
                "none are mounted",
                Some("mount -t cgroup2 cgroup2 /sys/fs/cgroup"),
            );
        }
        (true, true) => "hybrid (version 1 controllers beside version 2)",
        (true, false) => "version 1",
        (false, true) => "version 2",
    };
    let missing: Vec<&str> =
        ["cpu", "memory", "pids"].into_iter().filter(|x| !c.controllers.contains(*x)).collect();
    match missing.is_empty() {
        true => check("cgroups", Verdict::Ok, version, None),
        false => check(
            "cgroups",
            Verdict::Warn,
            format!("{version}, without {}: limits of these are refused", missing.join(", ")),
            Some("boot without cgroup_disable=, or have the container's runtime delegate the controllers"),
        ),
    }
}

fn loops(facts: &HostFacts) -> Check {
    match facts.loop_control {
        Device::Opens => check("loop devices", Verdict::Ok, "/dev/loop-control opens", None),
        _ => check(
            "loop devices",
            Verdict::Warn,
            "/dev/loop-control does not open: namespace machines have neither layers nor disks",
            Some("modprobe loop"),
        ),
    }
}

fn filesystems(facts: &HostFacts) -> Vec<Check> {
    [
        ("squashfs", "namespace machines have no root"),
        ("overlay", "namespace machines have no root"),
        ("ext4", "data disks of namespace machines cannot be mounted"),
        ("btrfs", "engines in namespace machines have no btrfs pool on their storage disk"),
    ]
    .into_iter()
    .map(|(name, without)| match facts.filesystems.contains(name) {
        true => check(name, Verdict::Ok, format!("kernel {} has it", facts.kernel), None),
        false => check(
            name,
            Verdict::Warn,
            format!("kernel {} does not have it: {without}", facts.kernel),
            Some(&format!("modprobe {name}, or boot a kernel that has it")),
        ),
    })
    .collect()
}

fn subids(facts: &HostFacts) -> Check {
    match facts.subids {
        true => check("subuids", Verdict::Ok, "root has ranges in /etc/subuid and /etc/subgid", None),
        false => check(
            "subuids",
            Verdict::Warn,
            "root has no range in /etc/subuid or /etc/subgid: an engine on this host itself (not in a node) cannot \
             start unprivileged instances",
            Some(
                "apt-get install uidmap, then: usermod --add-subuids 1000000-1000999999 --add-subgids \
                  1000000-1000999999 root",
            ),
        ),
    }
}

fn disk(facts: &HostFacts) -> Check {
    let detail = format!("{} MiB free in {}", facts.disk_free.0 >> 20, facts.disk_at.display());
    let verdict = if facts.disk_free >= ENOUGH_DISK { Verdict::Ok } else { Verdict::Warn };
    check(
        "disk space",
        verdict,
        detail,
        Some("free some, or keep the state elsewhere; 5 GiB are comfortable"),
    )
}

fn memory(facts: &HostFacts) -> Check {
    let detail = format!("{} MiB of {} MiB available", facts.memory_available.0 >> 20, facts.memory.0 >> 20);
    let verdict = if facts.memory_available >= ENOUGH_MEMORY { Verdict::Ok } else { Verdict::Warn };
    check(
        "memory",
        verdict,
        detail,
        Some("end something, or start fewer machines; 1 GiB is the least for three"),
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A host on which all is well.
    pub(crate) fn well() -> HostFacts {
        HostFacts {
            root: true,
            kernel: "6.12".into(),
            tools: TOOLS
                .iter()
                .map(|t| (t.name.to_owned(), Some(PathBuf::from("/usr/bin").join(t.name))))
                .collect(),
            cpu_virtualisation: Some("vmx".into()),
            kvm: Device::Opens,
            tun: Device::Opens,
            loop_control: Device::Opens,
            namespaces: NAMESPACES.iter().map(|n| (*n).to_owned()).collect(),
            filesystems: ["squashfs", "overlay", "ext4", "btrfs"].iter().map(|n| (*n).to_owned()).collect(),
            cgroups: CgroupFacts {
                v2: true,
                v1: false,
                controllers: ["cpu", "memory", "pids"].iter().map(|n| (*n).to_owned()).collect(),
            },
            subids: true,
            memory: Bytes::gib(8),
            memory_available: Bytes::gib(6),
            disk_free: Bytes::gib(50),
            disk_at: "/var/lib".into(),
        }
    }

    fn find<'a>(all: &'a [Check], name: &str) -> &'a Check {
        all.iter().find(|c| c.name == name).unwrap()
    }

    #[test]
    fn a_good_host_has_nothing_to_mend() {
        for c in checks(&well()) {
            assert_eq!((c.ok, &c.fix), (Verdict::Ok, &None), "{c:?}");
        }
    }

    #[test]
    fn a_bare_host_is_told_every_mend() {
        let all = checks(&HostFacts::default());
        for c in &all {
            assert!(c.ok != Verdict::Ok && c.fix.is_some(), "{c:?}");
        }
        assert_eq!(find(&all, "dnsmasq").fix.as_deref(), Some("apt-get install dnsmasq-base"));
    }

    #[test]
    fn a_kvm_device_alone_proves_nothing() {
        let facts = HostFacts { cpu_virtualisation: None, ..well() };
        assert!(!facts.kvm_works());
        let all = checks(&facts);
        assert_eq!(find(&all, "kvm").ok, Verdict::Warn);
        assert!(find(&all, "kvm").detail.contains("neither vmx nor svm"));
    }
}
