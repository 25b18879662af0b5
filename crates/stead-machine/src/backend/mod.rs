//! Which backend `auto` means on this host.

pub(crate) mod namespace;
pub(crate) mod qemu;

use crate::doctor::HostFacts;
use stead_model::cluster::Backend;

/// A backend and the reason for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// `namespace` or `qemu`.
    pub backend: Backend,
    /// Why, a sentence fragment for people.
    pub why: String,
}

/// What `auto` means: qemu where KVM really works, else namespaces when they do, else qemu by emulation. Pure.
pub fn choose(facts: &HostFacts) -> Choice {
    let say = |backend, why: String| Choice { backend, why };
    if facts.kvm_works() && facts.has_qemu() {
        let flag = facts.cpu_virtualisation.as_deref().unwrap_or_default();
        return say(Backend::Qemu, format!("/dev/kvm opens and the processor has {flag}"));
    }
    let no_kvm = match (facts.kvm_works(), facts.cpu_virtualisation.is_some()) {
        (true, _) => "KVM works, but qemu is not installed",
        (false, true) => "/dev/kvm does not open",
        (false, false) => "KVM cannot work (the processor shows neither vmx nor svm)",
    };
    let obstacles = facts.namespace_obstacles();
    if obstacles.is_empty() {
        return say(Backend::Namespace, format!("{no_kvm}, and this is root on a kernel with all it needs"));
    }
    say(
        Backend::Qemu,
        format!("{no_kvm}, and no namespaces: {}; so qemu emulates, which is slow", obstacles.join(", ")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Device, tests::well};

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
        assert_eq!(choose(&no_qemu).backend, Backend::Namespace);
        let user = HostFacts { root: false, ..no_flags };
        let choice = choose(&user);
        assert_eq!(choice.backend, Backend::Qemu);
        assert!(choice.why.contains("not root") && choice.why.contains("slow"), "{}", choice.why);
    }
}
