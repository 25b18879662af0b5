//! The rules of [`crate::place`] as a Starlark scriptlet for a server's `instances.placement.scriptlet`, so that every
//! client's instances go where `stead fleet place` would put them.
//!
//! Owns the text. Does not install it on a server, or decide when it must be updated: the text contains the policy and, if
//! given, the members' sizes.
//!
//! Servers differ in the functions that a scriptlet may call, and refuse one that calls another function:
//!
//! | server | API extension | instances are visible |
//! |---|---|---|
//! | Incus 6.0.3 and later of 6.0, 6.3 and later | `instances_placement_scriptlet`, `instances_scriptlet_get_instances` | yes |
//! | Incus 6.0.0 to 6.0.2 | `instances_placement_scriptlet` | no |
//! | LXD 5.21 | `instances_placement_scriptlet` | no |
//! | LXD 5.0, LXD 6.6 and later | none | |

use crate::{
    policy::{Commitment, GroupMode, GroupStrength, PerResource, Policy, Stopped},
    snapshot::{Member, Snapshot},
};
use serde_json::to_string;
use std::{collections::BTreeSet, fmt::Write};

/// The API extension of servers that accept a scriptlet.
pub const EXTENSION: &str = "instances_placement_scriptlet";
/// The API extension that lets a scriptlet see instances.
pub const INSTANCES_EXTENSION: &str = "instances_scriptlet_get_instances";

/// The beginning of every scriptlet written by Stead.
pub const HEAD: &str = "# Written by stead from a policy";

/// Data that the server's scriptlets can see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// Instances and their members.
    Instances,
    /// Only the usage of each member. Groups are ignored, and instances of strict groups are refused.
    MeasuredOnly,
}

/// The scriptlet of a policy. With a snapshot, the text contains the sizes of its members; other members are asked for
/// theirs, which takes a request to the member for each instance that is created.
pub fn generate(policy: &Policy, snapshot: Option<&Snapshot>, view: View) -> String {
    let mut members: Vec<&Member> = snapshot.iter().flat_map(|s| &s.members).collect();
    members.sort_by(|a, b| a.name.cmp(&b.name));
    let shared: BTreeSet<&str> = members
        .iter()
        .flat_map(|m| m.pools_mib.iter().filter(|(_, size)| size.is_none()).map(|(pool, _)| pool.0.as_str()))
        .collect();
    let mut text = format!(
        "{HEAD}: the next update overwrites changes made here.\n\
         # It places instances as `stead fleet place` does; docs/placement.md has the rules.\n\n",
    );
    let pair = |c: Commitment| format!("({}, {})", c.memory_mib, c.cpu_milli);
    let mode = match policy.group.mode {
        GroupMode::Spread => "spread",
        GroupMode::Compact => "compact",
    };
    let strength = match policy.group.strength {
        GroupStrength::Strict => "strict",
        GroupStrength::Preferred => "preferred",
    };
    let stopped = match policy.stopped {
        Stopped::Count => "True",
        Stopped::Ignore => "False",
    };
    for (name, value) in [
        ("OVERCOMMIT", per_resource(policy.overcommit_percent)),
        ("WEIGHT", per_resource(policy.weight_percent)),
        ("CONTAINER", pair(policy.container)),
        ("VIRTUAL_MACHINE", pair(policy.virtual_machine)),
        ("STOPPED_COUNT", stopped.to_owned()),
        ("GROUP_MODE", quoted(mode)),
        ("GROUP_STRENGTH", quoted(strength)),
        ("AVOID_ROLES", list(policy.avoid_roles.iter().map(String::as_str))),
        ("DRAIN", list(policy.drain.iter().map(|m| m.0.as_str()))),
        ("SHARED_POOLS", list(shared.into_iter())),
    ] {
        let _ = writeln!(text, "{name} = {value}");
    }
    text.push_str("# Name: (memory in MiB, thousandths of a thread, pools in MiB).\nMEMBERS = {\n");
    for m in members {
        let pools: Vec<String> = m
            .pools_mib
            .iter()
            .map(|(pool, size)| {
                format!("{}: {}", quoted(&pool.0), size.map_or("None".to_owned(), |s| s.to_string()))
            })
            .collect();
        let _ = writeln!(
            text,
            "    {}: ({}, {}, {{{}}}),",
            quoted(&m.name.0),
            m.memory_mib,
            m.cpu_milli,
            pools.join(", ")
        );
    }
    text.push_str("}\n");
    text.push_str(include_str!("body.star"));
    text.push_str(match view {
        View::Instances => include_str!("instances.star"),
        View::MeasuredOnly => include_str!("measured.star"),
    });
    text
}

fn per_resource(p: PerResource) -> String {
    format!(r#"{{"memory": {}, "cpu": {}, "disk": {}}}"#, p.memory, p.cpu, p.disk)
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    format!("[{}]", names.map(quoted).collect::<Vec<_>>().join(", "))
}

/// A Starlark string literal: for names, the same as in JSON.
fn quoted(text: &str) -> String {
    to_string(text).unwrap_or_default()
}
