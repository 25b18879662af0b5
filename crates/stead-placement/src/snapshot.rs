//! What a cluster looks like at one moment: the only thing besides the policy that a plan depends on.
//!
//! Owns the shape of the snapshot and what makes one contradictory. Does not own how it is made from an engine's
//! API (parsing `limits.memory` and the like is the maker's), nor what the numbers are taken to mean (the policy's).

use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};
use stead_model::{Failure, FailureKind, SpecError, text};

/// The largest memory, disk or processor number that is read: 2^40 MiB are an exbibyte. Products with a million and
/// sums over a cluster stay far from overflow in 128 bits.
pub const MAX_AMOUNT: u64 = 1 << 40;
/// The most members a snapshot may have. Engines stop being usable long before.
pub const MAX_MEMBERS: usize = 10_000;
/// The most instances a snapshot may have.
pub const MAX_INSTANCES: usize = 1_000_000;
/// The longest name of anything, in bytes; engines allow 63 for instances and members.
const MAX_NAME_BYTES: usize = 255;

/// Name of a cluster member, as the engine has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberName(pub String);

/// Name of a storage pool, as the engine has it.
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

/// What an instance is known by. Display: `name` in the project `default`, else `project/name`.
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

/// Whether a member can be worked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberState {
    /// It answers.
    Online,
    /// It does not; nothing can be moved from or to it.
    Offline,
    /// Its instances were moved or stopped on purpose; what is still there stays until it is restored.
    Evacuated,
    /// It answers but takes no work, as while it waits for other members to be upgraded.
    Blocked,
}

/// The member's `scheduler.instance`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedulable {
    /// Takes any instance.
    All,
    /// Takes only instances that were created for one of its cluster groups.
    Group,
    /// Takes only what somebody puts there by hand; what is there is left alone.
    Manual,
}

/// A cluster member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its name.
    pub name: MemberName,
    /// Every architecture it can run, in the engine's names (`x86_64`, and `i686` when it runs that too).
    pub architectures: BTreeSet<String>,
    /// Whether it can be worked with.
    pub state: MemberState,
    /// What the engine's scheduler may put there.
    pub schedulable: Schedulable,
    /// The engine's cluster groups it is in.
    #[serde(default)]
    pub cluster_groups: BTreeSet<String>,
    /// Its roles, as the engine has them.
    #[serde(default)]
    pub roles: BTreeSet<String>,
    /// Whether it can run virtual machines.
    #[serde(default)]
    pub virtual_machines: bool,
    /// Memory for instances.
    pub memory_mib: u64,
    /// Processor threads, in thousandths.
    pub cpu_milli: u64,
    /// Storage pools that are there, with their size when it is this member's own. Null: shared or of unknown size;
    /// the pool is there, but its space is not counted.
    #[serde(default)]
    pub pools_mib: BTreeMap<PoolName, Option<u64>>,
    /// Networks that instances can be attached to there.
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

/// Amounts of memory and processor, each when known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Amounts {
    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Thousandths of a processor thread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_milli: Option<u64>,
}

/// What an instance asks of the member it is on, whether it exists already or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Project and name.
    pub id: InstanceId,
    /// Container or virtual machine.
    pub kind: InstanceKind,
    /// Its architecture, in the engine's name.
    pub architecture: String,
    /// The cluster group it was created for (`--target @group`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_group: Option<String>,
    /// `limits.memory` and `limits.cpu`, where set.
    #[serde(default)]
    pub limits: Amounts,
    /// The pools its disks are in, each with the space promised to it there; 0 where no size was set.
    #[serde(default)]
    pub disk_mib: BTreeMap<PoolName, u64>,
    /// Networks it is attached to.
    #[serde(default)]
    pub networks: BTreeSet<String>,
    /// Its `user.stead.*` settings, with their whole keys.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
}

/// The best way in which an instance can be moved by its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Migration {
    /// While it runs.
    Live,
    /// Copied while it runs, then stopped, the rest copied, and started.
    Refresh,
    /// Only while it is stopped.
    Stopped,
    /// Not at all.
    Never,
}

/// An instance and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// What it asks.
    pub workload: Workload,
    /// The member it is on.
    pub member: MemberName,
    /// Whether it runs.
    pub running: bool,
    /// Whether something that the engine knows (a device of that host, say) keeps it there.
    #[serde(default)]
    pub pinned: bool,
    /// How it can be moved.
    pub migration: Migration,
    /// What has to be copied to move it.
    pub size_mib: u64,
    /// What it was seen to use.
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

/// Whoever gave the snapshot can put it right. Who made it from an engine's answers says otherwise.
impl Failure for SnapshotError {
    fn failure_kind(&self) -> FailureKind {
        FailureKind::BadInput
    }
}

/// Why a snapshot contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Two things have one name.
    #[error("{what} {name:?} is there twice")]
    Twice {
        /// "member" or "instance".
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A name that no engine gives.
    #[error("{what} name {name:?} is empty or too long")]
    BadName {
        /// "member" or "instance".
        what: &'static str,
        /// The name, cut short.
        name: String,
    },
    /// An instance is on a member that is not there.
    #[error("instance {instance} is on {member:?}, which is no member")]
    NoSuchMember {
        /// The instance.
        instance: String,
        /// The name of the member.
        member: String,
    },
    /// A number out of all bounds.
    #[error("{what} of {name:?} is {amount}, more than the {MAX_AMOUNT} that is read")]
    TooMuch {
        /// `memory_mib` and the like.
        what: &'static str,
        /// Whose.
        name: String,
        /// The number.
        amount: u64,
    },
    /// More members or instances than are planned for.
    #[error("{count} {what} are more than the {limit} that are planned for")]
    TooMany {
        /// "members" or "instances".
        what: &'static str,
        /// How many.
        count: usize,
        /// How many may be.
        limit: usize,
    },
}

impl Snapshot {
    /// Reads and checks a snapshot.
    ///
    /// # Errors
    /// Malformed or contradictory text; the error names file, line and key where they are known.
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

    /// Whether names are unique and resolve, and numbers are within bounds.
    ///
    /// # Errors
    /// The first contradiction found.
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
            bounded("size_mib", &i.workload.id, i.size_mib)?;
            bounded("measured", &i.workload.id, i.measured.memory_mib.unwrap_or(0))?;
            bounded("measured", &i.workload.id, i.measured.cpu_milli.unwrap_or(0))?;
        }
        Ok(())
    }

    /// The snapshot after `moves` (instance, target): what planning again starts from.
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
    /// Whether its name can be one and its numbers are within bounds.
    ///
    /// # Errors
    /// The first that is not.
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
