//! What the operator wants of placement: ratios, weights, tolerance, and what may be moved.
//!
//! Owns the policy file's shape, defaults and checks, and what an instance is committed to under a policy. Does not
//! own how plans are made.

use crate::snapshot::{Amounts, Instance, InstanceKind, MemberName, Workload};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use stead_model::{SpecError, text};

/// A number for each kind of resource, in per cent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerResource {
    /// For memory.
    pub memory: u32,
    /// For processor threads.
    pub cpu: u32,
    /// For each storage pool that a member has for itself.
    pub disk: u32,
}

/// Memory and processor that are promised to an instance without limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commitment {
    /// Memory.
    pub memory_mib: u64,
    /// Thousandths of a processor thread.
    pub cpu_milli: u64,
}

/// What counts for an instance whose `limits.memory` or `limits.cpu` is not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unlimited {
    /// The amounts of [`Policy::container`] and [`Policy::virtual_machine`].
    Default,
    /// What it was seen to use, and the amounts when nothing was seen.
    Measured,
}

/// Whether memory and processor of a stopped instance count. Its disk always does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stopped {
    /// They do: it may be started at any moment.
    Count,
    /// They do not.
    Ignore,
}

/// How long a running instance may be away because it is moved. In order: what comes later allows what came before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Downtime {
    /// Not at all: a live migration, or it is stopped anyway.
    None,
    /// While the last changes are copied.
    Short,
    /// While all of it is copied.
    Full,
}

/// What a group of instances wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupMode {
    /// Each on a member of its own.
    Spread,
    /// All on one member.
    Compact,
}

/// How much a group wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupStrength {
    /// Or not at all.
    Strict,
    /// As far as there is room.
    Preferred,
}

/// What holds for groups whose instances do not say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupDefaults {
    /// `user.stead.group.mode`.
    pub mode: GroupMode,
    /// `user.stead.group.strength`.
    pub strength: GroupStrength,
}

/// What the operator wants. Every key may be left out; unknown keys are errors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// How much may be promised, of what a member has.
    pub overcommit_percent: PerResource,
    /// How much a resource counts in balance; 0: not at all.
    pub weight_percent: PerResource,
    /// What counts where no limit is set.
    pub unlimited: Unlimited,
    /// A container without limits.
    pub container: Commitment,
    /// A virtual machine without limits; the defaults are the engines' own.
    pub virtual_machine: Commitment,
    /// Whether stopped instances count.
    pub stopped: Stopped,
    /// Groups that do not say.
    pub group: GroupDefaults,
    /// How far a member may be above its even share before anything is moved for balance, in per cent of the cluster's
    /// level.
    pub tolerance_percent: u32,
    /// What a move (or an exchange) for balance must gain at least, in the same measure, unless it brings a member
    /// within the tolerance.
    pub least_gain_percent: u32,
    /// The most moves of a plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_moves: Option<usize>,
    /// What running instances may suffer.
    pub downtime: Downtime,
    /// Members that must be emptied.
    pub drain: BTreeSet<MemberName>,
    /// Members with one of these roles take no instances.
    pub avoid_roles: BTreeSet<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            // Processors are shared in time, memory and disk are not.
            overcommit_percent: PerResource { memory: 100, cpu: 400, disk: 100 },
            // A full disk hurts as much as full memory, an uneven one less.
            weight_percent: PerResource { memory: 100, cpu: 100, disk: 50 },
            unlimited: Unlimited::Default,
            // A Debian container with one service.
            container: Commitment { memory_mib: 512, cpu_milli: 500 },
            virtual_machine: Commitment { memory_mib: 1024, cpu_milli: 1000 },
            stopped: Stopped::Count,
            group: GroupDefaults { mode: GroupMode::Spread, strength: GroupStrength::Preferred },
            // Less is not seen by anybody, and each move costs.
            tolerance_percent: 5,
            least_gain_percent: 1,
            max_moves: None,
            downtime: Downtime::Full,
            drain: BTreeSet::new(),
            avoid_roles: BTreeSet::new(),
        }
    }
}

/// Most of an overcommit ratio or weight, in per cent.
const MAX_PERCENT: u32 = 10_000;

impl Policy {
    /// Reads and checks a policy (YAML, of which JSON is a part).
    ///
    /// # Errors
    /// Malformed text, unknown keys, or numbers that make no sense; with file, line and key.
    pub fn from_yaml(file: &str, yaml: &str) -> Result<Self, SpecError> {
        let policy: Self = text::from_yaml(file, yaml)?;
        policy.check().map_err(|(key, message)| SpecError::about(file, yaml, key, message))?;
        Ok(policy)
    }

    /// Whether its numbers make sense: the key that does not, and why.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let (o, w) = (self.overcommit_percent, self.weight_percent);
        for (key, percent) in [("memory", o.memory), ("cpu", o.cpu), ("disk", o.disk)] {
            if percent == 0 || percent > MAX_PERCENT {
                return Err((
                    "overcommit_percent",
                    format!("{key}: {percent} is not between 1 and {MAX_PERCENT} per cent"),
                ));
            }
        }
        for (key, percent) in [("memory", w.memory), ("cpu", w.cpu), ("disk", w.disk)] {
            if percent > MAX_PERCENT {
                return Err((
                    "weight_percent",
                    format!("{key}: {percent} is more than {MAX_PERCENT} per cent"),
                ));
            }
        }
        if (w.memory, w.cpu, w.disk) == (0, 0, 0) {
            return Err(("weight_percent", "all are 0: nothing would ever be balanced".to_owned()));
        }
        for (key, percent) in
            [("tolerance_percent", self.tolerance_percent), ("least_gain_percent", self.least_gain_percent)]
        {
            if percent > MAX_PERCENT {
                return Err((key, format!("{percent} is more than {MAX_PERCENT} per cent")));
            }
        }
        for (key, c) in [("container", self.container), ("virtual_machine", self.virtual_machine)] {
            if c.memory_mib.max(c.cpu_milli) > crate::snapshot::MAX_AMOUNT {
                return Err((key, "is more than any member has".to_owned()));
            }
        }
        Ok(())
    }

    /// What an instance that exists is committed to.
    pub fn committed(&self, instance: &Instance) -> Commitment {
        if !instance.running && self.stopped == Stopped::Ignore {
            return Commitment { memory_mib: 0, cpu_milli: 0 };
        }
        self.asked(&instance.workload, instance.measured)
    }

    /// What a workload asks, given what was measured of it.
    pub fn asked(&self, workload: &Workload, measured: Amounts) -> Commitment {
        let default = match workload.kind {
            InstanceKind::Container => self.container,
            InstanceKind::VirtualMachine => self.virtual_machine,
        };
        let measured = match self.unlimited {
            Unlimited::Default => Amounts::default(),
            Unlimited::Measured => measured,
        };
        let limits = workload.limits;
        Commitment {
            memory_mib: limits.memory_mib.or(measured.memory_mib).unwrap_or(default.memory_mib),
            cpu_milli: limits.cpu_milli.or(measured.cpu_milli).unwrap_or(default.cpu_milli),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_and_nonsense_are_refused() {
        let error = |yaml| Policy::from_yaml("p.yaml", yaml).unwrap_err().to_string();
        assert!(error("tolerance: 3\n").contains("unknown key \"tolerance\""), "{}", error("tolerance: 3\n"));
        assert_eq!(
            error("overcommit_percent: { memory: 0, cpu: 1, disk: 1 }\n"),
            "p.yaml:1: overcommit_percent: memory: 0 is not between 1 and 10000 per cent"
        );
        assert!(error("weight_percent: { memory: 0, cpu: 0, disk: 0 }\n").contains("nothing would ever"));
        assert_eq!(Policy::from_yaml("p.yaml", "{}").unwrap(), Policy::default());
        let json = serde_json::to_string(&Policy::default()).unwrap();
        assert_eq!(Policy::from_yaml("p.yaml", &json).unwrap(), Policy::default());
    }
}
