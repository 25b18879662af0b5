//! The state of a cluster at one moment. A plan depends on nothing but this and the policy.
//!
//! Owns the shape of the snapshot and its consistency checks. Does not read an engine's API (the caller parses
//! `limits.memory` and the like) or interpret the numbers (the policy does).

use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};
use stead_model::{Failure, FailureKind, SpecError, text};

/// Limit on every amount of memory, disk or processor: 2^40 MiB is an exbibyte. Products with a million and sums over a
/// cluster stay far from overflow in 128 bits.
pub const MAX_AMOUNT: u64 = 1 << 40;
/// Limit on the members of a snapshot. Engines become unusable long before.
pub const MAX_MEMBERS: usize = 10_000;
/// Limit on the instances of a snapshot.
pub const MAX_INSTANCES: usize = 1_000_000;
/// Limit on the length of a name in bytes; engines allow 63 for instances and members.
const MAX_NAME_BYTES: usize = 255;

/// Name of a cluster member in the engine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberName(pub String);

/// Name of a storage pool in the engine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PoolName(pub String);

macro_rules! plain_name {
    ($ty:ident) => {
        impl fmt::Display for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl From<&str> for $ty {
            fn from(name: &str) -> Self {
                Self(name.to_owned())
            }
        }
    };
}
plain_name!(MemberName);
plain_name!(PoolName);

/// Identity of an instance. Displayed as `name` in the project `default`, else as `project/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceId {
    /// Its project.
    pub project: String,
    /// Its name within the project.
    pub name: String,
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.project.as_str() {
            "default" => f.pad(&self.name),
            project => f.pad(&format!("{project}/{}", self.name)),
        }
    }
}

/// Availability of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberState {
    /// It answers.
    Online,
    /// It does not answer; no instance can be moved from it or to it.
    Offline,
    /// Its instances were moved or stopped on purpose; the remaining ones stay until it is restored.
    Evacuated,
    /// It answers but accepts no work, for example because it waits for other members to be upgraded.
    Blocked,
}

/// The member's `scheduler.instance`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedulable {
    /// Accepts any instance.
    All,
    /// Accepts only instances created for one of its cluster groups.
    Group,
    /// Accepts only instances placed by hand; its instances are not moved.
    Manual,
}

/// A cluster member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its name.
    pub name: MemberName,
    /// Architectures it can run, by the engine's names (`x86_64`, and `i686` if it runs that too).
    pub architectures: BTreeSet<String>,
    /// Its availability.
    pub state: MemberState,
    /// Instances that the engine's scheduler may place there.
    pub schedulable: Schedulable,
    /// The engine's cluster groups it belongs to.
    #[serde(default)]
    pub cluster_groups: BTreeSet<String>,
    /// Its roles in the engine.
    #[serde(default)]
    pub roles: BTreeSet<String>,
    /// Whether it can run virtual machines.
    #[serde(default)]
    pub virtual_machines: bool,
    /// Memory for instances, in MiB. The amounts of an offline member are unknown, and nothing on it is counted.
    pub memory_mib: u64,
    /// Processor threads, in thousandths.
    pub cpu_milli: u64,
    /// Storage pools on this member, with the size in MiB of those local to it. A pool with null is shared or of unknown
    /// size, and its space is not counted.
    #[serde(default)]
    pub pools_mib: BTreeMap<PoolName, Option<u64>>,
    /// Networks on this member that instances can be attached to.
    #[serde(default)]
    pub networks: BTreeSet<String>,
}

/// A system container or a virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceKind {
    /// A system container.
    Container,
    /// A virtual machine.
    VirtualMachine,
}

/// Amounts of memory and processor, each none if unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Amounts {
    /// Memory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Thousandths of a processor thread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_milli: Option<u64>,
}

/// Why one member may not accept one instance, as the engine's own objects show.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bar {
    /// A volume of the instance's name is left over in this pool: the engine refuses another one.
    LeftOver(PoolName),
    /// It lacks this custom volume, which is attached to the instance.
    Volume {
        /// The pool.
        pool: PoolName,
        /// The volume's name.
        name: String,
    },
    /// It lacks this interface, to which a device of the instance is attached.
    Parent(String),
    /// The instance's project may not use it (`restricted.cluster.groups`).
    Project(String),
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeftOver(pool) => write!(f, "has a left-over volume of its name in pool {pool}"),
            Self::Volume { pool, name } => write!(f, "has no volume {name} in pool {pool}"),
            Self::Parent(parent) => write!(f, "has no interface {parent}"),
            Self::Project(project) => write!(f, "is outside the cluster groups of project {project}"),
        }
    }
}

/// Requirements of an instance on its member, for existing and new instances alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Project and name.
    pub id: InstanceId,
    /// Container or virtual machine.
    pub kind: InstanceKind,
    /// Its architecture, by the engine's name.
    pub architecture: String,
    /// The cluster group it was created for (`--target @group`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_group: Option<String>,
    /// `limits.memory` and `limits.cpu`, if set.
    #[serde(default)]
    pub limits: Amounts,
    /// The pools of its disks, each with the space promised to it in MiB; 0 if no size is set.
    #[serde(default)]
    pub disk_mib: BTreeMap<PoolName, u64>,
    /// Networks it is attached to.
    #[serde(default)]
    pub networks: BTreeSet<String>,
    /// Its `user.stead.*` settings, by full key.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// The members, other than its own, that may not accept it, whatever the rest says.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub barred: BTreeMap<MemberName, Bar>,
}

/// `cluster.evacuate`: what becomes of an instance when its member is emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evacuation {
    /// It is moved.
    #[default]
    Move,
    /// It is moved if that is possible while it runs, and otherwise stays.
    LiveOnly,
    /// It is stopped and stays.
    Stop,
}

/// The least disruptive way in which the server can move an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Migration {
    /// Live, while it runs.
    Live,
    /// By copying it while it runs, stopping it, copying the rest, and starting it.
    Refresh,
    /// Only while it is stopped.
    Stopped,
    /// Not at all.
    Never,
}

/// An existing instance with its member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// Its requirements.
    pub workload: Workload,
    /// The member it is on.
    pub member: MemberName,
    /// Whether it runs, or is frozen.
    pub running: bool,
    /// Whether it was stopped by the evacuation of its member, and is started when it has left.
    #[serde(default)]
    pub resumes: bool,
    /// Whether stopping it deletes it.
    #[serde(default)]
    pub ephemeral: bool,
    /// What its owner wants when its member is emptied.
    #[serde(default)]
    pub evacuation: Evacuation,
    /// Whether the engine ties it to its member, for example by a device of that host.
    #[serde(default)]
    pub pinned: bool,
    /// How it can be moved.
    pub migration: Migration,
    /// Data to copy in a move, in MiB; none if unknown.
    pub size_mib: Option<u64>,
    /// The least that its data can be, in MiB, where the size is unknown; 0 if that is unknown too.
    #[serde(default)]
    pub at_least_mib: u64,
    /// Measured usage.
    #[serde(default)]
    pub measured: Amounts,
}

/// A cluster at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// Its members, in any order.
    pub members: Vec<Member>,
    /// Their instances, in any order.
    pub instances: Vec<Instance>,
}

/// The caller who provided the snapshot can correct it; code that made it from an engine's answers overrides this.
impl Failure for SnapshotError {
    fn failure_kind(&self) -> FailureKind {
        FailureKind::BadInput
    }
}

/// A snapshot is inconsistent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Two members or two instances have the same name.
    #[error("{what} {name:?} exists twice")]
    Twice {
        /// "member" or "instance".
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A name is empty or too long.
    #[error("{what} name {name:?} is empty or too long")]
    BadName {
        /// "member", "instance" or "project".
        what: &'static str,
        /// The name, cut short.
        name: String,
    },
    /// An instance is on a member that the snapshot does not list.
    #[error("instance {instance} is on {member:?}, which is not a member")]
    NoSuchMember {
        /// The instance.
        instance: String,
        /// The name of the member.
        member: String,
    },
    /// An amount exceeds [`MAX_AMOUNT`].
    #[error("{what} of {name:?} is {amount}, above the limit of {MAX_AMOUNT}")]
    TooMuch {
        /// Key of the amount, as `memory_mib`.
        what: &'static str,
        /// Name of the member or instance.
        name: String,
        /// The amount.
        amount: u64,
    },
    /// There are too many members or instances.
    #[error("{count} {what} exceed the limit of {limit}")]
    TooMany {
        /// "members" or "instances".
        what: &'static str,
        /// Their number.
        count: usize,
        /// The limit.
        limit: usize,
    },
}

impl Snapshot {
    /// Parses and checks a snapshot.
    ///
    /// # Errors
    /// The text is malformed or inconsistent; the error names file, line and key where they are known.
    pub fn from_json(file: &str, json: &str) -> Result<Self, SpecError> {
        let snapshot: Self = text::from_json(file, json)?;
        snapshot.check().map_err(|e| SpecError {
            file: file.to_owned(),
            line: None,
            column: None,
            key: None,
            message: e.to_string(),
            suggestion: None,
        })?;
        Ok(snapshot)
    }

    /// Checks that names are unique and refer to listed members, and that amounts are within bounds.
    ///
    /// # Errors
    /// The first inconsistency found.
    pub fn check(&self) -> Result<(), SnapshotError> {
        too_many("members", self.members.len(), MAX_MEMBERS)?;
        too_many("instances", self.instances.len(), MAX_INSTANCES)?;
        let mut names = BTreeSet::new();
        for m in &self.members {
            good_name("member", &m.name.0)?;
            if !names.insert(&m.name) {
                return Err(SnapshotError::Twice { what: "member", name: m.name.0.clone() });
            }
            bounded("memory_mib", &m.name, m.memory_mib)?;
            bounded("cpu_milli", &m.name, m.cpu_milli)?;
            for size in m.pools_mib.values().flatten() {
                bounded("pools_mib", &m.name, *size)?;
            }
        }
        let mut ids = std::collections::HashSet::with_capacity(self.instances.len());
        for i in &self.instances {
            i.workload.check()?;
            if !ids.insert(&i.workload.id) {
                return Err(SnapshotError::Twice { what: "instance", name: i.workload.id.to_string() });
            }
            if !names.contains(&i.member) {
                return Err(SnapshotError::NoSuchMember {
                    instance: i.workload.id.to_string(),
                    member: i.member.0.chars().take(80).collect(),
                });
            }
            bounded("size_mib", &i.workload.id, i.size_mib.unwrap_or(0))?;
            bounded("at_least_mib", &i.workload.id, i.at_least_mib)?;
            bounded("measured", &i.workload.id, i.measured.memory_mib.unwrap_or(0))?;
            bounded("measured", &i.workload.id, i.measured.cpu_milli.unwrap_or(0))?;
        }
        Ok(())
    }

    /// The snapshot after `moves` (instance, target).
    pub fn with_moves<'a>(&self, moves: impl IntoIterator<Item = (&'a InstanceId, &'a MemberName)>) -> Self {
        let mut after = self.clone();
        let at: std::collections::HashMap<InstanceId, usize> =
            self.instances.iter().enumerate().map(|(n, i)| (i.workload.id.clone(), n)).collect();
        for (id, to) in moves {
            if let Some(n) = at.get(id) {
                after.instances[*n].member = to.clone();
            }
        }
        after
    }
}

impl Workload {
    /// Checks that its name is valid and its amounts are within bounds.
    ///
    /// # Errors
    /// The first name or amount that is not.
    pub fn check(&self) -> Result<(), SnapshotError> {
        good_name("instance", &self.id.name)?;
        good_name("project", &self.id.project)?;
        bounded("limits.memory", &self.id, self.limits.memory_mib.unwrap_or(0))?;
        bounded("limits.cpu", &self.id, self.limits.cpu_milli.unwrap_or(0))?;
        self.disk_mib.values().try_for_each(|size| bounded("disk_mib", &self.id, *size))
    }
}

fn too_many(what: &'static str, count: usize, limit: usize) -> Result<(), SnapshotError> {
    if count > limit { Err(SnapshotError::TooMany { what, count, limit }) } else { Ok(()) }
}

fn good_name(what: &'static str, name: &str) -> Result<(), SnapshotError> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(SnapshotError::BadName { what, name: name.chars().take(80).collect() });
    }
    Ok(())
}

fn bounded(what: &'static str, name: &impl fmt::Display, amount: u64) -> Result<(), SnapshotError> {
    if amount > MAX_AMOUNT {
        return Err(SnapshotError::TooMuch { what, name: name.to_string(), amount });
    }
    Ok(())
}
