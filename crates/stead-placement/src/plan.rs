//! The plan: an ordered list of moves, and a report with the gain of each move and the violations that remain.
//!
//! Owns the shape of the result and its texts for people. Does not compute it.

use crate::{
    policy::{Downtime, GroupMode, GroupStrength},
    problem::Resource,
    settings::GroupId,
    snapshot::{Bar, InstanceId, MemberName, MemberState, PoolName},
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a member may not accept an instance, regardless of room.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hindrance {
    /// It does not run this architecture.
    Architecture(String),
    /// It runs no virtual machines.
    VirtualMachines,
    /// It is not in the cluster group that the instance was created for.
    ClusterGroup(String),
    /// It lacks a role that the instance requires.
    RoleMissing(String),
    /// It has a role that the policy keeps free of instances.
    RoleAvoided(String),
    /// It lacks this storage pool.
    Pool(PoolName),
    /// It lacks this network.
    Network(String),
    /// It is being drained.
    Drained,
    /// It accepts only instances of its cluster groups.
    GroupOnly,
    /// It accepts only instances placed by hand.
    Manual,
    /// It is not online.
    MemberIs(MemberState),
    /// The engine would refuse this instance there.
    Barred(Bar),
}

impl fmt::Display for Hindrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Architecture(a) => write!(f, "does not run {a}"),
            Self::VirtualMachines => f.write_str("runs no virtual machines"),
            Self::ClusterGroup(g) => write!(f, "is not in cluster group {g}"),
            Self::RoleMissing(r) => write!(f, "lacks the role {r}"),
            Self::RoleAvoided(r) => write!(f, "has the role {r}, which the policy keeps free of instances"),
            Self::Pool(p) => write!(f, "has no pool {p}"),
            Self::Network(n) => write!(f, "has no network {n}"),
            Self::Drained => f.write_str("is being drained"),
            Self::GroupOnly => f.write_str("accepts only instances of its cluster groups"),
            Self::Manual => f.write_str("accepts only instances placed by hand"),
            Self::MemberIs(state) => f.write_str(match state {
                MemberState::Online => "is online",
                MemberState::Offline => "is offline",
                MemberState::Evacuated => "is evacuated",
                MemberState::Blocked => "is blocked",
            }),
            Self::Barred(bar) => bar.fmt(f),
        }
    }
}

/// Why an instance cannot be moved.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fixed {
    /// The engine ties it to its member.
    Pinned,
    /// `user.stead.pin` is set.
    PinnedBySetting,
    /// The server cannot move it.
    CannotMigrate,
    /// It runs, must be stopped for a move, and is deleted when it stops.
    Ephemeral,
    /// Its `cluster.evacuate` has it stopped on its member.
    StopsInPlace,
    /// Its `cluster.evacuate` has it moved only while it runs, which the server cannot do.
    OnlyLive,
    /// Its member is not online.
    MemberIs(MemberState),
    /// Its member accepts only instances placed by hand.
    ManualMember,
    /// Its downtime would exceed the policy's limit.
    Downtime(Downtime),
    /// It was placed by hand on a member that the scheduler would not choose.
    ByHand,
    /// No other member may accept it.
    NowhereElse,
}

impl fmt::Display for Fixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pinned => "it is tied to its member",
            Self::PinnedBySetting => "user.stead.pin is set on it",
            Self::CannotMigrate => "the server cannot move it",
            Self::Ephemeral => "it is ephemeral: stopping it for a move would delete it",
            Self::StopsInPlace => "its cluster.evacuate has it stay on its member",
            Self::OnlyLive => "its cluster.evacuate allows only a live migration, which the server cannot do",
            Self::MemberIs(MemberState::Offline) => "its member is offline",
            Self::MemberIs(MemberState::Evacuated) => "its member is evacuated",
            Self::MemberIs(_) => "its member is blocked",
            Self::ManualMember => "its member accepts only instances placed by hand",
            Self::Downtime(Downtime::Short) => "it runs, and the policy allows no downtime",
            Self::Downtime(_) => "it runs and must be stopped for a move, which the policy does not allow",
            Self::ByHand => "it was placed by hand on a member that the scheduler would not choose",
            Self::NowhereElse => "no other member may accept it",
        })
    }
}

/// A violation of a hard constraint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Violation {
    /// An instance is on a member where it should not be.
    Misplaced {
        /// The instance.
        instance: InstanceId,
        /// The member it is on.
        member: MemberName,
        /// Why it should not be there.
        why: Vec<Hindrance>,
    },
    /// A member has promised more of a resource than it has.
    Overload {
        /// The member.
        member: MemberName,
        /// The resource.
        resource: Resource,
        /// Amount promised: MiB, or thousandths of a thread.
        promised: u64,
        /// Amount it can promise, including overcommitment, in the same unit.
        usable: u64,
    },
    /// A strict group is not spread or compact as required.
    Group {
        /// The group.
        group: GroupId,
        /// The required mode.
        mode: GroupMode,
        /// Number of pairs of its instances that violate the mode.
        pairs: u64,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misplaced { instance, member, why } => {
                let why: Vec<String> = why.iter().map(Hindrance::to_string).collect();
                write!(f, "{instance} should not be on {member}, which {}", why.join(" and "))
            }
            Self::Overload { member, resource: Resource::Cpu, promised, usable } => write!(
                f,
                "{member} has promised {} but has only {}",
                Resource::Cpu.show(*promised),
                Resource::Cpu.show(*usable)
            ),
            Self::Overload { member, resource, promised, usable } => write!(
                f,
                "{member} has promised {} of {resource} but has only {}",
                resource.show(*promised),
                resource.show(*usable)
            ),
            Self::Group { group, mode: GroupMode::Spread, .. } => {
                write!(f, "instances of the strictly spread group {group} share a member")
            }
            Self::Group { group, mode: GroupMode::Compact, .. } => {
                write!(f, "instances of the strictly compact group {group} are on different members")
            }
        }
    }
}

/// Certainty that a violation cannot be repaired, or that an instance cannot be placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Proved: no sequence of permitted moves does it.
    Impossible,
    /// Proved: it is possible, but not together with the rest.
    AtOdds,
    /// No solution was found; there may be one.
    NotFound,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Impossible => "impossible",
            Self::AtOdds => "not possible together with the rest",
            Self::NotFound => "no solution found",
        })
    }
}

/// A violation that the plan does not repair, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// The violation.
    pub violation: Violation,
    /// Certainty that it cannot be repaired.
    pub verdict: Verdict,
    /// The reason as text, with numbers.
    pub why: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.violation, self.verdict, self.why)
    }
}

/// Purpose of a move.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The instance must leave its member.
    Misplaced,
    /// Its member has promised too much of this resource.
    Overload(Resource),
    /// It repairs a group, fully or in part.
    Group(GroupId),
    /// It makes the members more even.
    Balance,
    /// It makes room for a later move, or is one half of an exchange.
    MakesRoom,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misplaced => f.write_str("must leave its member"),
            Self::Overload(r) => write!(f, "too much {r} promised"),
            Self::Group(g) => write!(f, "group {g}"),
            Self::Balance => f.write_str("balance"),
            Self::MakesRoom => f.write_str("makes room"),
        }
    }
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Move {
    /// The instance to move.
    pub instance: InstanceId,
    /// The member it leaves.
    pub from: MemberName,
    /// The member it goes to.
    pub to: MemberName,
    /// Its downtime.
    pub downtime: Downtime,
    /// Data to copy, in MiB; none if unknown.
    pub size_mib: Option<u64>,
    /// The least to copy, in MiB, where the amount is unknown; 0 if that is unknown too.
    #[serde(default)]
    pub at_least_mib: u64,
    /// The purposes of the move; never empty.
    pub reasons: Vec<Reason>,
    /// [`Imbalance`] before the move, in millionths.
    pub imbalance_before_ppm: u64,
    /// [`Imbalance`] after the move, in millionths.
    pub imbalance_after_ppm: u64,
    /// Utilisation of the scarcest resource on the member it leaves, before and after, in millionths of the usable
    /// amount.
    pub from_level_ppm: (u64, u64),
    /// The same for the member it goes to.
    pub to_level_ppm: (u64, u64),
    /// Numbers (from 0) of the earlier moves that must end before this one begins. Other moves may run at the same time:
    /// a move takes its room on the target when it begins and frees its room on the source when it ends.
    pub after: Vec<usize>,
}

/// How uneven the members are. A member's even share of a resource is the level to which the movable load would fill all
/// members evenly, on top of the load that cannot be moved; its overhang is the amount above that level. The imbalance is
/// 1 + the largest overhang, as a fraction of the mean utilisation of the most used resource. 1 is even. Load in large
/// pieces cannot be spread evenly: `bound_ppm` is a proved lower limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Imbalance {
    /// Before the plan, in millionths.
    pub before_ppm: u64,
    /// After the plan, in millionths.
    pub after_ppm: u64,
    /// Lower bound for every placement, in millionths.
    pub bound_ppm: u64,
}

/// A group with violations of its mode, before or after the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupReport {
    /// The group.
    pub group: GroupId,
    /// Its mode.
    pub mode: GroupMode,
    /// Its strength.
    pub strength: GroupStrength,
    /// Pairs of its instances that violate the mode before the plan.
    pub pairs_before: u64,
    /// Pairs of its instances that violate the mode after the plan.
    pub pairs_after: u64,
}

/// A problem with the settings of instances, or with a member.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finding {
    /// A value is invalid; it counts as not set (for `user.stead.pin`: as set).
    BadSetting {
        /// The instance.
        instance: InstanceId,
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
    /// A member is offline: its instances stay, and what it has and promises is not counted.
    Offline {
        /// The member.
        member: MemberName,
        /// How many instances it has.
        instances: usize,
    },
    /// Instances of a group set different values; spread wins over compact, strict over preferred.
    GroupDisagrees {
        /// The group.
        group: GroupId,
        /// The key.
        key: String,
        /// An instance with the value that is used.
        one: InstanceId,
        /// An instance with another value.
        other: InstanceId,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadSetting { instance, key, value } => {
                write!(f, "{instance}: {key} has the invalid value {value:?}")
            }
            Self::Offline { member, instances: 0 } => write!(f, "{member} is offline"),
            Self::Offline { member, instances: 1 } => {
                write!(f, "{member} is offline: its instance stays, and is not counted")
            }
            Self::Offline { member, instances } => {
                write!(f, "{member} is offline: its {instances} instances stay, and are not counted")
            }
            Self::GroupDisagrees { group, key, one, other } => {
                write!(
                    f,
                    "group {group}: {one} and {other} have different values of {key}; that of {one} is used"
                )
            }
        }
    }
}

/// The state before and after the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// How uneven the members are.
    pub imbalance: Imbalance,
    /// Violations before the plan.
    pub violations: Vec<Violation>,
    /// Violations that remain after the plan.
    pub refusals: Vec<Refusal>,
    /// Groups with violations of their mode, strict or preferred, before or after the plan.
    pub groups: Vec<GroupReport>,
    /// Problems with settings.
    pub findings: Vec<Finding>,
}

/// Ordered moves, and their effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The moves in order; each is possible once the earlier ones are done.
    pub moves: Vec<Move>,
    /// The effect of the moves, and the remaining violations.
    pub report: Report,
}
