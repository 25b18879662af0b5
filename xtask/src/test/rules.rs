//! What tests need, by their names: one table, in which the first matching row counts.

use std::time::Duration;

/// What a test runs on; `ARCHITECTURE.md` has the tiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Functions, plans, properties, servers and clients in one process.
    Unit,
    /// Programs, files and sockets, without root.
    Files,
    /// Namespaces, mounts, loop devices, netlink.
    Host,
    /// Real engines in namespaces.
    Engine,
    /// Virtual machines, by emulation where there is no KVM.
    Emulated,
}

impl Tier {
    /// All of them, the cheapest first.
    pub const ALL: [Self; 5] = [Self::Unit, Self::Files, Self::Host, Self::Engine, Self::Emulated];

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Files => "files",
            Self::Host => "host",
            Self::Engine => "engine",
            Self::Emulated => "emulated",
        }
    }
}

/// What a test needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// What it runs on.
    pub tier: Tier,
    /// Memory of its machines and engines, in MiB.
    pub memory_mib: u64,
    /// No two tests with the same word here run at the same time.
    pub alone: Option<&'static str>,
    /// It is killed after this: many times its duration on an idle machine.
    pub timeout: Duration,
    /// Its expected duration before its first run, in seconds.
    pub expected_s: f64,
}

/// What a tier's tests need, unless a row of [`TABLE`] says more.
fn usual(tier: Tier) -> Rule {
    let (memory_mib, timeout_s, expected_s) = match tier {
        Tier::Unit => (0, 300, 0.05),
        Tier::Files => (0, 300, 0.5),
        Tier::Host => (256, 600, 5.0),
        Tier::Engine => (2048, 900, 30.0),
        Tier::Emulated => (2048, 1200, 60.0),
    };
    Rule { tier, memory_mib, alone: None, timeout: Duration::from_secs(timeout_s), expected_s }
}

/// Prefixes of names, as `crate::it::module::test`, with the tier of those tests and the resource they need
/// exclusively. Loop devices belong to the kernel, and the paths behind them are the same on all nodes: a test of the
/// OpenNebula driver could not distinguish its own from another's.
const TABLE: &[(&str, Tier, Option<&str>)] = &[
    ("stead::it::cli::", Tier::Files, None),
    ("stead::it::base_cluster::", Tier::Host, None),
    ("stead::it::surroundings::", Tier::Host, None),
    ("stead::it::kill::incus_cluster", Tier::Engine, None),
    ("stead::it::kill::a_removal", Tier::Engine, None),
    ("stead::it::kill::", Tier::Host, None),
    ("stead::it::qemu::", Tier::Emulated, None),
    // These have a kernel of their own.
    ("stead::it::one::disks_of_every_kind", Tier::Emulated, None),
    ("stead::it::one::values_of_cgroup_v2", Tier::Emulated, None),
    ("stead::it::one::", Tier::Engine, Some("one")),
    ("stead::it::", Tier::Engine, None),
    ("stead-node::it::engine::", Tier::Engine, None),
    ("stead-node::it::qemu::", Tier::Emulated, None),
    ("stead-node::it::", Tier::Host, None),
    ("stead-machine::it::vm::", Tier::Emulated, None),
    ("stead-machine::it::", Tier::Host, None),
    ("stead-os::it::", Tier::Host, None),
    ("stead-one::it::disks::", Tier::Host, None),
    ("stead-image::it::debian::", Tier::Host, None),
];

/// The rule of a test, by its full name.
pub fn of(full_name: &str) -> Rule {
    for (beginning, tier, alone) in TABLE {
        if full_name.starts_with(beginning) {
            return Rule { alone: *alone, ..usual(*tier) };
        }
    }
    usual(if full_name.contains("::it::") { Tier::Files } else { Tier::Unit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_matching_row_counts() {
        assert_eq!(of("stead-model::names::a_name").tier, Tier::Unit);
        assert_eq!(of("stead-model::it::examples::all").tier, Tier::Files);
        assert_eq!(of("stead::it::fleet::spread").tier, Tier::Engine);
        assert_eq!(of("stead::it::one::disks_of_every_kind_x").tier, Tier::Emulated);
        assert_eq!(of("stead::it::one::every_script").alone, Some("one"));
    }

    /// A row that no name can match is an error.
    #[test]
    fn every_row_can_match() {
        for (n, (beginning, ..)) in TABLE.iter().enumerate() {
            assert!(!TABLE[..n].iter().any(|(earlier, ..)| beginning.starts_with(earlier)), "{beginning}");
        }
    }
}
