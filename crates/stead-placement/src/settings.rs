//! The `user.stead.*` keys with which instances control their placement.
//!
//! Owns the keys, their values and the treatment of invalid values. Does not own the effect of a group on placement.

use crate::{
    policy::{GroupMode, GroupStrength},
    snapshot::Workload,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt};

/// The instance's group; groups belong to a project.
pub const GROUP: &str = "user.stead.group";
/// `spread` or `compact`.
pub const GROUP_MODE: &str = "user.stead.group.mode";
/// `strict` or `preferred`.
pub const GROUP_STRENGTH: &str = "user.stead.group.strength";
/// `true` if the instance must never be moved.
pub const PIN: &str = "user.stead.pin";
/// Roles that its member must have, separated by commas.
pub const ROLES: &str = "user.stead.roles";

/// The longest group name, in bytes.
const MAX_GROUP_BYTES: usize = 63;

/// Identity of a group of instances. Displayed as an instance is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupId {
    /// The project of its instances.
    pub project: String,
    /// The value of [`GROUP`].
    pub name: String,
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.project.as_str() {
            "default" => f.pad(&self.name),
            project => f.pad(&format!("{project}/{}", self.name)),
        }
    }
}

/// The parsed settings of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InstanceSettings {
    /// Its group.
    pub group: Option<GroupId>,
    /// Mode of the group, if this instance sets it.
    pub mode: Option<GroupMode>,
    /// Strength of the group, if this instance sets it.
    pub strength: Option<GroupStrength>,
    /// Whether it must never be moved.
    pub pinned: bool,
    /// Roles its member must have.
    pub roles: BTreeSet<String>,
    /// Keys with invalid values, and these values. They count as not set, except that [`PIN`] counts as set.
    pub bad: Vec<(&'static str, String)>,
}

impl InstanceSettings {
    /// Parses a workload's settings. An invalid value is recorded and not an error, because engines accept any value of
    /// `user.*` keys.
    pub fn of(workload: &Workload) -> Self {
        let mut parsed = Self::default();
        if workload.settings.is_empty() {
            return parsed;
        }
        let get = |key| workload.settings.get(key).map(String::as_str).filter(|v| !v.is_empty());
        let mut bad = |key, value: &str| parsed.bad.push((key, value.chars().take(80).collect()));
        match get(GROUP) {
            Some(name) if name.len() > MAX_GROUP_BYTES => bad(GROUP, name),
            Some(name) => {
                parsed.group = Some(GroupId { project: workload.id.project.clone(), name: name.to_owned() });
            }
            None => {}
        }
        match get(GROUP_MODE) {
            Some("spread") => parsed.mode = Some(GroupMode::Spread),
            Some("compact") => parsed.mode = Some(GroupMode::Compact),
            Some(other) => bad(GROUP_MODE, other),
            None => {}
        }
        match get(GROUP_STRENGTH) {
            Some("strict") => parsed.strength = Some(GroupStrength::Strict),
            Some("preferred") => parsed.strength = Some(GroupStrength::Preferred),
            Some(other) => bad(GROUP_STRENGTH, other),
            None => {}
        }
        match get(PIN) {
            Some("true" | "1" | "yes" | "on") => parsed.pinned = true,
            Some("false" | "0" | "no" | "off") | None => {}
            Some(other) => {
                // The value was set for a reason: not moving the instance does no harm.
                parsed.pinned = true;
                bad(PIN, other);
            }
        }
        if let Some(roles) = get(ROLES) {
            parsed.roles =
                roles.split(',').map(str::trim).filter(|r| !r.is_empty()).map(str::to_owned).collect();
        }
        parsed
    }
}
