//! The backends: ways to start a machine.
//!
//! Owns their table, and what `auto` means. Whoever wants to know in what backends differ asks here; nothing outside of
//! this folder matches on [`Backend`].

mod driver;
mod namespace;
mod qemu;

pub use driver::{Patience, Profile};

use crate::{
    MachineSpec,
    host::{HostFacts, Tool},
    links::link_name,
    netlink::{self, Links},
    netns,
    spec::Accelerator,
};
use driver::Driver;
use std::{collections::BTreeSet, io, os::fd::AsFd, time::Duration};
use stead_model::cluster::Backend;

/// One row a backend. A variant of [`Backend`] without a row does not compile. Of two that suit a host equally well,
/// `auto` takes the upper one.
macro_rules! table {
    ($($backend:ident => $driver:expr,)+) => {
        /// Every backend.
        pub const ALL: &[Backend] = &[$(Backend::$backend),+];

        pub(crate) fn driver(backend: Backend) -> &'static dyn Driver {
            match backend {
                $(Backend::$backend => &$driver,)+
            }
        }
    };
}

table! {
    Qemu => qemu::Qemu,
    Namespace => namespace::Namespace,
}

/// How long an emulated node may take, whatever emulates it. Measured on two cores: 18 s to agent, 40 s to engine.
const EMULATED: Patience = Patience { agent: Duration::from_secs(120), running: Duration::from_secs(600) };

/// What a backend needs and gives.
pub fn profile(backend: Backend) -> Profile {
    driver(backend).profile()
}

/// What keeps a backend from working on this host, as fragments for people; empty when nothing does.
pub fn obstacles(backend: Backend, host: &HostFacts) -> Vec<String> {
    driver(backend).obstacles(host)
}

/// What runs the instructions of a backend's machines on this host; `None` when they share the host's kernel.
pub fn accelerator(backend: Backend, host: &HostFacts) -> Option<Accelerator> {
    driver(backend).accelerator(host)
}

/// How long a node on this machine may take to start.
pub fn patience(machine: &MachineSpec) -> Patience {
    if machine.is_emulated() { EMULATED } else { profile(machine.backend).patience }
}

/// Programs a backend runs on the host.
pub(crate) fn tools(backend: Backend) -> &'static [Tool] {
    driver(backend).tools()
}

/// Whether each machine has its host's ends of all its interfaces in its cluster's network namespace; all machines are of one
/// cluster. A namespace that somebody removed by hand, and that was made anew, has none.
///
/// # Errors
/// The namespace cannot be looked at.
pub fn linked(machines: &[&MachineSpec]) -> io::Result<Vec<bool>> {
    let Some(first) = machines.first() else { return Ok(Vec::new()) };
    let there: BTreeSet<String> = match netns::open(&first.netns) {
        Ok(ns) => {
            let list = netlink::with(Some(ns.as_fd()), async |links: Links| links.list().await)?;
            list.into_iter().map(|(name, ..)| name).collect()
        }
        // Without it there are no links.
        Err(e) if e.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
        Err(source) => return Err(source),
    };
    let is_linked = |machine: &&MachineSpec| {
        let kind = driver(machine.backend).link_kind();
        (0..machine.nics.len()).all(|i| there.contains(&link_name(kind, &machine.name, i)))
    };
    Ok(machines.iter().map(is_linked).collect())
}

/// A backend and the reason for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The backend.
    pub backend: Backend,
    /// The reason, a sentence fragment for people.
    pub why: String,
}

/// What `auto` means: of the backends that work here one with KVM, else one on the host's own kernel, else one that
/// emulates. Where none works, the one that asks least of a host. Pure.
pub fn choose(host: &HostFacts) -> Choice {
    let mut backends: Vec<Backend> = ALL.to_vec();
    backends.sort_by_key(|b| match accelerator(*b, host) {
        Some(Accelerator::Kvm) => 0,
        None => 1,
        Some(Accelerator::Tcg) => 2,
    });
    let works = |b: &Backend| obstacles(*b, host).is_empty();
    let at = backends.iter().position(works).unwrap_or(backends.len() - 1);
    let backend = backends[at];
    let mut why = match (host.kvm_works(), &host.cpu_virtualisation) {
        (true, flag) => {
            format!("/dev/kvm opens and the processor has {}", flag.as_deref().unwrap_or_default())
        }
        (false, Some(_)) => "/dev/kvm does not open".to_owned(),
        (false, None) => "KVM cannot work (the processor shows neither vmx nor svm)".to_owned(),
    };
    for passed_over in &backends[..at] {
        why.push_str(&format!("; {passed_over} does not work: {}", obstacles(*passed_over, host).join(", ")));
    }
    match accelerator(backend, host) {
        Some(Accelerator::Kvm) => {}
        None => why.push_str(&format!("; {backend} machines run on this host's kernel")),
        Some(Accelerator::Tcg) => why.push_str(&format!("; so {backend} emulates, which is slow")),
    }
    Choice { backend, why }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::host::{CgroupFacts, Device, NAMESPACES};
    use std::path::PathBuf;
    use stead_model::Bytes;

    /// A host on which all is well.
    pub(crate) fn well() -> HostFacts {
        HostFacts {
            root: true,
            kernel: "6.12".into(),
            tools: ALL
                .iter()
                .flat_map(|b| tools(*b))
                .map(|p| (p.name.to_owned(), Some(PathBuf::from("/usr/bin").join(p.name))))
                .collect(),
            go: Some(format!("go{}", stead_model::go::SHIPPED_RECIPES_NEED)),
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

    #[test]
    fn kvm_then_namespaces_then_emulation() {
        assert_eq!(choose(&well()).backend, Backend::Qemu);
        // The device opens and the processor has nothing: never KVM.
        let no_flags = HostFacts { cpu_virtualisation: None, ..well() };
        let choice = choose(&no_flags);
        assert_eq!(choice.backend, Backend::Namespace);
        assert!(choice.why.contains("neither vmx nor svm"), "{}", choice.why);
        let no_device = HostFacts { kvm: Device::Missing, ..well() };
        assert_eq!(choose(&no_device).backend, Backend::Namespace);
        let mut no_qemu = well();
        no_qemu.tools.insert("qemu-system-x86_64".into(), None);
        let choice = choose(&no_qemu);
        assert_eq!(choice.backend, Backend::Namespace);
        assert!(choice.why.contains("qemu does not work: qemu-system-x86_64"), "{}", choice.why);
        let no_taps = HostFacts { tun: Device::Missing, ..well() };
        assert_eq!(choose(&no_taps).backend, Backend::Namespace);
        let user = HostFacts { root: false, ..no_flags };
        let choice = choose(&user);
        assert_eq!(choice.backend, Backend::Qemu);
        assert!(choice.why.contains("does not run as root") && choice.why.contains("slow"), "{}", choice.why);
    }

    #[test]
    fn only_what_is_emulated_is_slow() {
        let machine =
            |backend, accelerator| MachineSpec { backend, accelerator, ..crate::spec::tests::spec() };
        for backend in ALL {
            let ours = profile(*backend).patience;
            assert!(ours.agent < ours.running && ours.running < EMULATED.running);
            for accelerator in [None, Some(Accelerator::Kvm)] {
                assert_eq!(patience(&machine(*backend, accelerator)), ours);
            }
            assert_eq!(patience(&machine(*backend, Some(Accelerator::Tcg))), EMULATED);
        }
    }

    #[test]
    fn a_backend_with_a_kernel_of_its_own_says_what_runs_it() {
        for host in [well(), HostFacts::default()] {
            for backend in ALL {
                assert_eq!(profile(*backend).needs_kernel, accelerator(*backend, &host).is_some());
                assert_eq!(obstacles(*backend, &host).is_empty(), host == well(), "{backend}");
            }
        }
    }
}
