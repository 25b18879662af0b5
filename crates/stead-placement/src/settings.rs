//! The `user.stead.*` keys by which instances say what they want.
//!
//! Owns the keys, their values and what becomes of bad ones. Does not own what a group means for placement.

use crate::{
    policy::{GroupMode, GroupStrength},
    snapshot::Workload,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt};

/// The group the instance is in; groups belong to a project.
pub const GROUP: &str = "user.stead.group";
/// `spread` or `compact`.
pub const GROUP_MODE: &str = "user.stead.group.mode";
/// `strict` or `preferred`.
pub const GROUP_STRENGTH: &str = "user.stead.group.strength";
/// `true`: it is never moved.
pub const PIN: &str = "user.stead.pin";
/// Roles that its member must have, with commas between.
pub const ROLES: &str = "user.stead.roles";

/// The longest group name, in bytes.
const MAX_GROUP_BYTES: usize = 63;

/// A group of instances: project and name. Display as of an instance.
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

/// What an instance's settings say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wishes {
    /// Its group.
    pub group: Option<GroupId>,
    /// What it says of the group's mode.
    pub mode: Option<GroupMode>,
    /// What it says of the group's strength.
    pub strength: Option<GroupStrength>,
    /// It is never moved.
    pub pinned: bool,
    /// Roles its member must have.
    pub roles: BTreeSet<String>,
    /// Keys whose values are not understood, with the value; they count as not set.
    pub bad: Vec<(&'static str, String)>,
}

impl Wishes {
    /// What a workload's settings say. Engines keep any value of `user.*` keys, so a bad one is noted, not an error.
    pub fn of(workload: &Workload) -> Self {
        let mut wishes = Self::default();
        if workload.settings.is_empty() {
            return wishes;
        }
        let get = |key| workload.settings.get(key).map(String::as_str).filter(|v| !v.is_empty());
        let mut bad = |key, value: &str| wishes.bad.push((key, value.chars().take(80).collect()));
        match get(GROUP) {
            Some(name) if name.len() > MAX_GROUP_BYTES => bad(GROUP, name),
            Some(name) => {
                wishes.group = Some(GroupId { project: workload.id.project.clone(), name: name.to_owned() });
            }
            None => {}
        }
        match get(GROUP_MODE) {
            Some("spread") => wishes.mode = Some(GroupMode::Spread),
            Some("compact") => wishes.mode = Some(GroupMode::Compact),
            Some(other) => bad(GROUP_MODE, other),
            None => {}
        }
        match get(GROUP_STRENGTH) {
            Some("strict") => wishes.strength = Some(GroupStrength::Strict),
            Some("preferred") => wishes.strength = Some(GroupStrength::Preferred),
            Some(other) => bad(GROUP_STRENGTH, other),
            None => {}
        }
        match get(PIN) {
            Some("true" | "1" | "yes" | "on") => wishes.pinned = true,
            Some("false" | "0" | "no" | "off") | None => {}
            Some(other) => {
                // Somebody meant to say something about moving it: leaving it where it is does no harm.
                wishes.pinned = true;
                bad(PIN, other);
            }
        }
        if let Some(roles) = get(ROLES) {
            wishes.roles =
                roles.split(',').map(str::trim).filter(|r| !r.is_empty()).map(str::to_owned).collect();
        }
        wishes
    }
}
