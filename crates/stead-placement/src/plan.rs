//! The plan: moves in their order, and the report that says what each gains and what could not be done.
//!
//! Owns the shape of the answer and its words for people. Does not own how it was found.

use crate::{
    policy::{Downtime, GroupMode, GroupStrength},
    problem::Resource,
    settings::GroupId,
    snapshot::{InstanceId, MemberName, MemberState, PoolName},
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a member is no place for an instance, room aside.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hindrance {
    /// It does not run this architecture.
    Architecture(String),
    /// It runs no virtual machines.
    VirtualMachines,
    /// It is not in the cluster group that the instance was created for.
    ClusterGroup(String),
    /// It has not a role that the instance asks for.
    RoleMissing(String),
    /// It has a role that the policy keeps free of instances.
    RoleAvoided(String),
    /// It has not this storage pool.
    Pool(PoolName),
    /// It has not this network.
    Network(String),
    /// It is being emptied.
    Drained,
    /// It takes only instances of its cluster groups.
    GroupOnly,
    /// It takes only what is put there by hand.
    Manual,
    /// It is not online.
    MemberIs(MemberState),
}

impl fmt::Display for Hindrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Architecture(a) => write!(f, "does not run {a}"),
            Self::VirtualMachines => f.write_str("runs no virtual machines"),
            Self::ClusterGroup(g) => write!(f, "is not in cluster group {g}"),
            Self::RoleMissing(r) => write!(f, "has not the role {r}"),
            Self::RoleAvoided(r) => write!(f, "has the role {r}, which the policy keeps free"),
            Self::Pool(p) => write!(f, "has no pool {p}"),
            Self::Network(n) => write!(f, "has no network {n}"),
            Self::Drained => f.write_str("is being emptied"),
            Self::GroupOnly => f.write_str("takes only instances of its cluster groups"),
            Self::Manual => f.write_str("takes only what is put there by hand"),
            Self::MemberIs(state) => f.write_str(match state {
                MemberState::Online => "is online",
                MemberState::Offline => "is offline",
                MemberState::Evacuated => "is evacuated",
                MemberState::Blocked => "is blocked",
            }),
        }
    }
}

/// Why an instance cannot be moved.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fixed {
    /// The engine ties it to its member.
    Pinned,
    /// `user.stead.pin` says so.
    PinnedBySetting,
    /// The server has no way to move it.
    CannotMigrate,
    /// Its member is not online.
    MemberIs(MemberState),
    /// Its member is filled by hand.
    ManualMember,
    /// It would be away for longer than the policy allows.
    Downtime(Downtime),
    /// It was put by hand where the scheduler would not put it.
    ByHand,
    /// No other member may take it.
    NowhereElse,
}

impl fmt::Display for Fixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pinned => "it is tied to its member",
            Self::PinnedBySetting => "user.stead.pin keeps it there",
            Self::CannotMigrate => "the server cannot move it",
            Self::MemberIs(MemberState::Offline) => "its member is offline",
            Self::MemberIs(MemberState::Evacuated) => "its member is evacuated",
            Self::MemberIs(_) => "its member is blocked",
            Self::ManualMember => "its member is filled by hand",
            Self::Downtime(Downtime::Short) => "it runs, and the policy allows no downtime",
            Self::Downtime(_) => "it runs and must be stopped for a move, which the policy does not allow",
            Self::ByHand => "it was put by hand where the scheduler would not put it",
            Self::NowhereElse => "no other member may take it",
        })
    }
}

/// Something that should not be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Violation {
    /// An instance is where it should not be.
    Misplaced {
        /// The instance.
        instance: InstanceId,
        /// Where it is.
        member: MemberName,
        /// Why it should not be there.
        why: Vec<Hindrance>,
    },
    /// A member has promised more than it can.
    Overload {
        /// The member.
        member: MemberName,
        /// Of what.
        resource: Resource,
        /// How much is promised: MiB, thousandths of a thread.
        promised: u64,
        /// How much could be, in the same unit, with overcommitment.
        usable: u64,
    },
    /// A strict group is not as it must be.
    Group {
        /// The group.
        group: GroupId,
        /// What it must be.
        mode: GroupMode,
        /// How many pairs of its instances are not so.
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
                "{member} has promised {} and has {}",
                Resource::Cpu.show(*promised),
                Resource::Cpu.show(*usable)
            ),
            Self::Overload { member, resource, promised, usable } => write!(
                f,
                "{member} has promised {} of {resource} and has {}",
                resource.show(*promised),
                resource.show(*usable)
            ),
            Self::Group { group, mode: GroupMode::Spread, .. } => {
                write!(f, "instances of the strictly spread group {group} are together on a member")
            }
            Self::Group { group, mode: GroupMode::Compact, .. } => {
                write!(f, "instances of the strictly compact group {group} are apart")
            }
        }
    }
}

/// How sure it is that something cannot be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Proved: no moves that keep to the rules get there.
    Impossible,
    /// Proved: it can be done, but not together with what else is done.
    AtOdds,
    /// No way was found; there may be one.
    NotFound,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Impossible => "impossible",
            Self::AtOdds => "not together with the rest",
            Self::NotFound => "no way found",
        })
    }
}

/// A violation that the plan leaves, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// What stays as it is.
    pub violation: Violation,
    /// How sure that is.
    pub verdict: Verdict,
    /// Why, with numbers.
    pub why: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.violation, self.verdict, self.why)
    }
}

/// What a move is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The instance must not stay where it is.
    Misplaced,
    /// Its member had promised too much of this.
    Overload(Resource),
    /// It mends a group, wholly or in part.
    Group(GroupId),
    /// The members become more even.
    Balance,
    /// It makes room for a later move, or is one half of an exchange.
    MakesRoom,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misplaced => f.write_str("must not stay there"),
            Self::Overload(r) => write!(f, "too much {r} promised there"),
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
    /// What is moved.
    pub instance: InstanceId,
    /// Where it is before.
    pub from: MemberName,
    /// Where it is afterwards.
    pub to: MemberName,
    /// What it suffers.
    pub downtime: Downtime,
    /// What is copied.
    pub size_mib: u64,
    /// What it is for; never empty.
    pub reasons: Vec<Reason>,
    /// [`Imbalance`] before it, in millionths.
    pub imbalance_before_ppm: u64,
    /// And after it.
    pub imbalance_after_ppm: u64,
    /// Utilisation that weighs most on the member it leaves, before and after, in millionths of what is usable.
    pub from_level_ppm: (u64, u64),
    /// The same of the member it goes to.
    pub to_level_ppm: (u64, u64),
    /// Numbers of the earlier moves (counted from 0) that must have ended before this one begins. Others may run at the
    /// same time: room that a move needs is taken when it begins and given back when it ends.
    pub after: Vec<usize>,
}

/// How uneven the members are. A member's even share of a resource is the level at which all the load that can be moved
/// would fill the members evenly, over what cannot be moved; its overhang is how far it is above that. The imbalance is
/// 1 + the largest overhang, in parts of the mean utilisation of the resource that is used most. 1 is even; where load
/// comes in large pieces, even cannot be reached, and `bound_ppm` says what is out of reach for certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Imbalance {
    /// As it is, in millionths.
    pub before_ppm: u64,
    /// After the plan.
    pub after_ppm: u64,
    /// No placement is below this.
    pub bound_ppm: u64,
}

/// A group that is not quite as it would be, before or after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupReport {
    /// The group.
    pub group: GroupId,
    /// What it wants.
    pub mode: GroupMode,
    /// How much.
    pub strength: GroupStrength,
    /// Pairs of its instances that are not so.
    pub pairs_before: u64,
    /// After the plan.
    pub pairs_after: u64,
}

/// What is odd about the instances' settings.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finding {
    /// A value that is not understood; it counts as not set (of `user.stead.pin`: as set).
    BadSetting {
        /// Whose.
        instance: InstanceId,
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
    /// Instances of one group say different things; spread goes before compact, strict before preferred.
    GroupDisagrees {
        /// The group.
        group: GroupId,
        /// The key.
        key: String,
        /// Who says what holds.
        one: InstanceId,
        /// Who says something else.
        other: InstanceId,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadSetting { instance, key, value } => {
                write!(f, "{instance}: {key} has a value that is not understood: {value:?}")
            }
            Self::GroupDisagrees { group, key, one, other } => {
                write!(f, "group {group}: {one} and {other} have different {key}; that of {one} holds")
            }
        }
    }
}

/// What was found and what the plan does about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// How even.
    pub imbalance: Imbalance,
    /// What should not be, as it is.
    pub violations: Vec<Violation>,
    /// What of it stays.
    pub refusals: Vec<Refusal>,
    /// Groups that are not quite as they would be.
    pub groups: Vec<GroupReport>,
    /// What is odd about settings.
    pub findings: Vec<Finding>,
}

/// Moves in their order, and what they are good for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// One after the other; each is possible when those before it are done.
    pub moves: Vec<Move>,
    /// What, and what not.
    pub report: Report,
}
