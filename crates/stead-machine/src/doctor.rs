//! What this host can do, and the fix for what it cannot.
//!
//! Owns the judgement of [`crate::host`]'s facts: [`checks`]. Changes nothing.

use crate::{
    backend::{self, ALL},
    host::{self, Device, HostFacts, NAMESPACES, Tool},
    spec::Accelerator,
};
use serde::Serialize;
use std::borrow::Cow;
use stead_model::{Bytes, GoVersion, cluster::Backend, go::SHIPPED_RECIPES_NEED};

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
    /// The fix, when there is one.
    pub fix: Option<String>,
}

/// A program Stead runs on the host.
struct Wanted {
    tool: Tool,
    /// What is missing without it.
    without: Cow<'static, str>,
    /// How bad that is.
    verdict: Verdict,
}

/// Programs that Stead runs on the host, whatever the backend: name, Debian's package, what is missing without it, and
/// how bad that is.
const TOOLS: [(&str, &str, &str, Verdict); 8] = [
    ("curl", "curl", "programs that recipes name by their addresses cannot be downloaded", Verdict::Warn),
    ("dnsmasq", "dnsmasq-base", "networks have no DHCP and DNS, and clusters need both", Verdict::Fail),
    ("mksquashfs", "squashfs-tools", "images and overlays cannot be packed", Verdict::Warn),
    ("mmdebstrap", "mmdebstrap", "images cannot be built from Debian packages", Verdict::Warn),
    ("nft", "nftables", "networks with \"nat: true\" do not work", Verdict::Warn),
    ("mkfs.ext4", "e2fsprogs", "disk outputs of images cannot be made", Verdict::Warn),
    ("xz", "xz-utils", "kernel modules and images cannot be unpacked", Verdict::Warn),
    ("zstd", "zstd", "images in zstd cannot be unpacked", Verdict::Warn),
];

/// Programs that Stead runs on the host: its own and those of the backends.
fn tools() -> impl Iterator<Item = Wanted> {
    let own = TOOLS.iter().map(|&(name, package, without, verdict)| Wanted {
        tool: Tool { name, package },
        without: without.into(),
        verdict,
    });
    let of_backends = ALL.iter().flat_map(|b| {
        backend::tools(*b).iter().map(move |tool| Wanted {
            tool: *tool,
            without: format!("backend {b} does not work").into(),
            verdict: Verdict::Warn,
        })
    });
    own.chain(of_backends)
}

/// Looks at the host.
pub fn observe() -> HostFacts {
    host::observe(tools().map(|t| t.tool.name))
}

/// Enough for an image with an engine, the changes of three machines and a pool.
const ENOUGH_DISK: Bytes = Bytes::gib(5);
/// Twice what three namespace machines with an engine and two instances take.
const ENOUGH_MEMORY: Bytes = Bytes::gib(1);

/// Judges the facts, in the order in which a person would fix things. Pure.
pub fn checks(facts: &HostFacts) -> Vec<Check> {
    let mut all = vec![root(facts), auto(facts)];
    all.extend(ALL.iter().map(|b| backend_check(facts, *b)));
    all.extend(tools().map(|wanted| tool_check(facts, &wanted)));
    all.extend([go(facts), kvm(facts), tun(facts), namespaces(facts), cgroups(facts), loops(facts)]);
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
        true => check("root", Verdict::Ok, "stead runs as root", None),
        false => check(
            "root",
            Verdict::Fail,
            "stead does not run as root, which namespaces, networks and mounts need",
            Some("run stead as root"),
        ),
    }
}

fn auto(facts: &HostFacts) -> Check {
    let choice = backend::choose(facts);
    let works = backend::obstacles(choice.backend, facts).is_empty();
    let verdict = if works { Verdict::Ok } else { Verdict::Fail };
    let detail = format!("auto means {}: {}", choice.backend, choice.why);
    check("backend", verdict, detail, Some("fix what keeps one of the backends below from working"))
}

fn backend_check(facts: &HostFacts, backend: Backend) -> Check {
    let name = format!("backend {backend}");
    let obstacles = backend::obstacles(backend, facts);
    if !obstacles.is_empty() {
        let fix = "fix the checks below that name these";
        return check(&name, Verdict::Warn, obstacles.join(", "), Some(fix));
    }
    let detail = match backend::accelerator(backend, facts) {
        None => "works, on this host's kernel",
        Some(Accelerator::Kvm) => "works, with KVM",
        Some(Accelerator::Tcg) => "works, by emulation, which is slow",
    };
    check(&name, Verdict::Ok, detail, None)
}

fn tool_check(facts: &HostFacts, wanted: &Wanted) -> Check {
    let Tool { name, package } = wanted.tool;
    match facts.tools.get(name).and_then(Option::as_ref) {
        Some(path) => check(name, Verdict::Ok, path.display().to_string(), None),
        None => check(
            name,
            wanted.verdict,
            format!("not installed: {}", wanted.without),
            Some(&format!("apt-get install {package}")),
        ),
    }
}

/// Only recipes with programs from Go modules need it.
fn go(facts: &HostFacts) -> Check {
    let needed = SHIPPED_RECIPES_NEED;
    let fix = format!(
        "install Go {needed} or newer (apt-get install golang-go where the suite has it), first in PATH"
    );
    let Some(found) = &facts.go else {
        let detail = "not installed: programs of recipes cannot be built from Go modules";
        return check("go", Verdict::Warn, detail, Some(&fix));
    };
    let version = |text: &str| text.parse::<GoVersion>().ok();
    match (version(found), version(needed)) {
        (Some(have), Some(need)) if have < need => {
            let detail = format!("{have} is too old for programs of the shipped recipes, which need {need}");
            check("go", Verdict::Warn, detail, Some(&fix))
        }
        _ => check("go", Verdict::Ok, found.clone(), None),
    }
}

fn kvm(facts: &HostFacts) -> Check {
    let (verdict, detail, fix) = match (facts.kvm, &facts.cpu_virtualisation) {
        (Device::Opens, Some(flag)) => {
            (Verdict::Ok, format!("/dev/kvm opens and the processor has {flag}"), None)
        }
        (Device::Opens, None) => (
            Verdict::Warn,
            "/dev/kvm opens, but the processor shows neither vmx nor svm: a virtual machine would be created and never \
             run; qemu emulates"
                .to_owned(),
            Some("if this host is a virtual machine, enable nested virtualisation on its host"),
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
            Some("enable virtualisation in the firmware, or nested virtualisation on the host of this machine"),
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
                "no cgroup hierarchy is mounted",
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
            format!("{version}, without {}: limits on these are refused", missing.join(", ")),
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
            "root has no range in /etc/subuid or /etc/subgid: an engine on the host itself (not in a node) cannot \
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
        Some("free some space, or keep the state elsewhere; 5 GiB is comfortable"),
    )
}

fn memory(facts: &HostFacts) -> Check {
    let detail = format!("{} MiB of {} MiB available", facts.memory_available.0 >> 20, facts.memory.0 >> 20);
    let verdict = if facts.memory_available >= ENOUGH_MEMORY { Verdict::Ok } else { Verdict::Warn };
    check(
        "memory",
        verdict,
        detail,
        Some("stop something, or start fewer machines; three need at least 1 GiB"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::tests::well as well_for_backends;

    /// A host on which all is well.
    fn well() -> HostFacts {
        let mut facts = well_for_backends();
        facts.tools = tools().map(|t| (t.tool.name.to_owned(), Some("/bin/x".into()))).collect();
        facts
    }

    fn find<'a>(all: &'a [Check], name: &str) -> &'a Check {
        all.iter().find(|c| c.name == name).unwrap()
    }

    #[test]
    fn a_good_host_has_nothing_to_fix() {
        for c in checks(&well()) {
            assert_eq!((c.ok, &c.fix), (Verdict::Ok, &None), "{c:?}");
        }
    }

    #[test]
    fn a_bare_host_gets_every_fix() {
        let all = checks(&HostFacts::default());
        for c in &all {
            assert!(c.ok != Verdict::Ok && c.fix.is_some(), "{c:?}");
        }
        assert_eq!(find(&all, "dnsmasq").fix.as_deref(), Some("apt-get install dnsmasq-base"));
    }

    #[test]
    fn a_go_that_is_missing_or_too_old_is_named() {
        let of = |go: Option<&str>| {
            let all = checks(&HostFacts { go: go.map(str::to_owned), ..well() });
            let Check { ok, detail, fix, .. } = find(&all, "go").clone();
            (ok, detail, fix.is_some())
        };
        assert!(of(None).1.starts_with("not installed"));
        let old = of(Some("go1.24.4"));
        assert!(old.0 == Verdict::Warn && old.1.starts_with("1.24.4 is too old") && old.2, "{old:?}");
        assert_eq!(of(Some("go1.99.0")), (Verdict::Ok, "go1.99.0".into(), false));
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
