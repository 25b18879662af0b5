//! The operator's policy for placement: ratios, weights, tolerance, and limits on moves.
//!
//! Owns the shape, defaults and checks of the policy file, and the amounts committed to an instance under a policy. Does
//! not plan.

use crate::snapshot::{Amounts, Instance, InstanceKind, MemberName, Workload};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use stead_model::{SpecError, text};

/// A percentage for each kind of resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerResource {
    /// For memory.
    pub memory: u32,
    /// For processor threads.
    pub cpu: u32,
    /// For each storage pool that is local to a member.
    pub disk: u32,
}

/// Memory and processor promised to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commitment {
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Thousandths of a processor thread.
    pub cpu_milli: u64,
}

/// Amounts committed to an instance whose `limits.memory` or `limits.cpu` is not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unlimited {
    /// [`Policy::container`] or [`Policy::virtual_machine`].
    Default,
    /// Its measured usage, or the default if nothing was measured.
    Measured,
}

/// Whether memory and processor of a stopped instance count. Its disk always counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stopped {
    /// They count: it may be started at any moment.
    Count,
    /// They do not count.
    Ignore,
}

/// Longest downtime of a running instance in a move. Ordered: each value allows the earlier ones too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Downtime {
    /// No downtime: a live migration, or the instance is stopped anyway.
    None,
    /// While the last changes are copied.
    Short,
    /// While the whole instance is copied.
    Full,
}

/// How a group of instances is to be placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupMode {
    /// Each instance on a different member.
    Spread,
    /// All instances on one member.
    Compact,
}

/// How binding the mode of a group is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupStrength {
    /// A rule: no move or placement may break it.
    Strict,
    /// A preference, followed as far as there is room.
    Preferred,
}

/// Defaults for groups whose instances do not set mode or strength.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupDefaults {
    /// Default of `user.stead.group.mode`.
    pub mode: GroupMode,
    /// Default of `user.stead.group.strength`.
    pub strength: GroupStrength,
}

/// The policy. Every key may be left out; unknown keys are errors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Share of a member's resources that may be promised.
    pub overcommit_percent: PerResource,
    /// Weight of a resource in balance; a resource with 0 is not balanced.
    pub weight_percent: PerResource,
    /// Amounts that count if no limit is set.
    pub unlimited: Unlimited,
    /// Amounts of a container without limits.
    pub container: Commitment,
    /// Amounts of a virtual machine without limits; the defaults are the engines'.
    pub virtual_machine: Commitment,
    /// Whether stopped instances count.
    pub stopped: Stopped,
    /// Defaults of groups.
    pub group: GroupDefaults,
    /// How far a member may be above its even share before instances are moved for balance, in per cent of the cluster's
    /// level.
    pub tolerance_percent: u32,
    /// Least gain of a move (or an exchange) for balance, in the same measure. A move that brings a member within the
    /// tolerance may gain less.
    pub least_gain_percent: u32,
    /// Limit on the moves of a plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_moves: Option<usize>,
    /// Longest downtime of running instances.
    pub downtime: Downtime,
    /// Members to drain: all instances must leave them.
    pub drain: BTreeSet<MemberName>,
    /// Members with one of these roles accept no instances.
    pub avoid_roles: BTreeSet<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            // Processors can be time-shared, memory and disk cannot.
            overcommit_percent: PerResource { memory: 100, cpu: 400, disk: 100 },
            // A full disk is as bad as full memory, but uneven disks matter less than uneven memory.
            weight_percent: PerResource { memory: 100, cpu: 100, disk: 50 },
            unlimited: Unlimited::Default,
            // A Debian container with one service.
            container: Commitment { memory_mib: 512, cpu_milli: 500 },
            virtual_machine: Commitment { memory_mib: 1024, cpu_milli: 1000 },
            stopped: Stopped::Count,
            group: GroupDefaults { mode: GroupMode::Spread, strength: GroupStrength::Preferred },
            // Nobody notices a smaller difference, and each move has a cost.
            tolerance_percent: 5,
            least_gain_percent: 1,
            max_moves: None,
            downtime: Downtime::Full,
            drain: BTreeSet::new(),
            avoid_roles: BTreeSet::new(),
        }
    }
}

/// Limit on overcommit ratios and weights.
const MAX_PERCENT: u32 = 10_000;

impl Policy {
    /// Parses and checks a policy (YAML or JSON).
    ///
    /// # Errors
    /// Malformed text, unknown keys, or invalid numbers; with file, line and key.
    pub fn from_yaml(file: &str, yaml: &str) -> Result<Self, SpecError> {
        let policy: Self = text::from_yaml(file, yaml)?;
        policy.check().map_err(|(key, message)| SpecError::about(file, yaml, key, message))?;
        Ok(policy)
    }

    /// Checks its numbers.
    ///
    /// # Errors
    /// The first key with an invalid number, and what is wrong with it.
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
            return Err(("weight_percent", "all weights are 0, so nothing would be balanced".to_owned()));
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
                return Err((
                    key,
                    format!("memory_mib and cpu_milli must not exceed {}", crate::snapshot::MAX_AMOUNT),
                ));
            }
        }
        Ok(())
    }

    /// Amounts committed to an existing instance.
    pub fn committed(&self, instance: &Instance) -> Commitment {
        if !(instance.running || instance.resumes) && self.stopped == Stopped::Ignore {
            return Commitment { memory_mib: 0, cpu_milli: 0 };
        }
        self.asked(&instance.workload, instance.measured)
    }

    /// Amounts committed to a workload, given its measured usage.
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
        assert!(
            error("weight_percent: { memory: 0, cpu: 0, disk: 0 }\n").contains("nothing would be balanced")
        );
        assert_eq!(Policy::from_yaml("p.yaml", "{}").unwrap(), Policy::default());
        let json = serde_json::to_string(&Policy::default()).unwrap();
        assert_eq!(Policy::from_yaml("p.yaml", &json).unwrap(), Policy::default());
    }
}
