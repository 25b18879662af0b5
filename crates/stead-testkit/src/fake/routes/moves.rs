//! Moves of instances, evacuation and restoration of members.

use super::{Asked, Reply, begin, on_instance, refuse};
use crate::fake::{
    Shared, config_of, devices_of,
    model::{VolumeKind, World},
    texts,
};
use serde_json::{Value, json};
use std::sync::Arc;
use stead_incus::Dialect;

/// The servers' key for the member that an evacuated instance came from.
const ORIGIN: &str = "volatile.evacuate.origin";

/// A member by name, or the emptiest of `@group`.
pub(super) fn resolve(world: &World, target: &str) -> Result<String, Reply> {
    if let Some(group) = target.strip_prefix('@') {
        if !world.groups.contains_key(group) {
            return Err(refuse(404, format!("Cluster group {group:?} doesn't exist")));
        }
        return world
            .emptiest(Some(group), None)
            .ok_or_else(|| refuse(400, "Couldn't find a cluster member for the instance"));
    }
    match world.members.get(target) {
        None => Err(refuse(404, format!("Cluster member {target:?} not found"))),
        Some(m) if m.status == "Offline" => Err(refuse(400, "Target cluster member is offline")),
        Some(_) => Ok(target.to_owned()),
    }
}

/// `POST /1.0/instances/NAME` with `migration`.
pub(super) fn relocate(shared: &Arc<Shared>, asked: &Asked, project: &str, name: &str) -> Reply {
    let inner = shared.lock();
    let world = &inner.world;
    let Some(instance) = world.projects.get(project).and_then(|p| p.instances.get(name)) else {
        return refuse(404, "Instance not found");
    };
    let running = instance.status != "Stopped";
    let live = asked.body["live"] == true;
    let refresh = asked.body["refresh"] == true;
    if world.members.get(&instance.location).is_some_and(|m| m.status == "Offline") {
        return refuse(400, "Can't perform action as server is currently offline");
    }
    let lxd = world.dialect == Dialect::Lxd;
    if running && !live && !refresh && !lxd {
        return refuse(400, "Instance must be stopped to be moved statelessly");
    }
    let target = match asked.target() {
        None => None,
        Some(target) => match resolve(world, target) {
            Ok(member) if member == instance.location && !lxd => {
                return refuse(400, "Requested target server is the same as current server");
            }
            Ok(member) => Some(member),
            Err(refused) => return refused,
        },
    };
    let new_name = match asked.text("name") {
        n if n.is_empty() => name.to_owned(),
        n => n,
    };
    let new_project = match asked.text("project") {
        p if p.is_empty() => project.to_owned(),
        p if !world.projects.contains_key(&p) => return refuse(404, "Project not found"),
        p => p,
    };
    let body = asked.body.clone();
    let (project, name) = (project.to_owned(), name.to_owned());
    drop(inner);
    let tells = vec![("instance-migrated", format!("/1.0/instances/{new_name}"))];
    begin(
        shared,
        on_instance("Migrating instance", &project.clone(), &name.clone(), tells, move |world| {
            if running && live {
                return Err("Failed setting up instance migration on source: Unable to perform live container migration. \
                    CRIU isn't installed on the source server. To migrate the container, stop the container before \
                    migration or install CRIU on the source server".into());
            }
            let instances = &world.projects.entry(project.clone()).or_default().instances;
            let location = instances.get(&name).map(|i| i.location.clone());
            if target.is_some() && target == location {
                return Err("Target must be different than instance's current location".into());
            }
            if (&new_project, &new_name) != (&project, &name)
                && world.projects[&new_project].instances.contains_key(&new_name)
            {
                return Err(format!("Instance {new_name:?} already exists"));
            }
            let left = world
                .volumes
                .iter()
                .find(|v| Some(&v.member) == target.as_ref() && (&v.project, &v.name) == (&project, &name));
            match left.map(|v| v.kind) {
                Some(VolumeKind::LeftOver) => {
                    return Err("Instance move to destination failed: Error transferring instance data: Failed creating \
                        instance on target: Volume exists in database but not on storage".into());
                }
                // LXD copies to another name, deletes the original, and then fails to rename.
                Some(VolumeKind::Hidden) if world.dialect == Dialect::Lxd => {
                    let p = world.projects.entry(project.clone()).or_default();
                    let Some(mut instance) = p.instances.remove(&name) else {
                        return Err("Instance not found".into());
                    };
                    instance.location = target.unwrap_or_default();
                    let uuid = instance.config.get("volatile.uuid").cloned().unwrap_or_default();
                    let temporary = format!("lxd-move-of-{uuid}");
                    p.instances.insert(temporary.clone(), instance);
                    return Err(format!(
                        "Rename instance operation failed: rename {temporary} {name}: file exists"
                    ));
                }
                Some(VolumeKind::Hidden) => {
                    return Err("Instance move to destination failed: Error transferring instance data: Failed creating \
                        instance on target: Volume already exists on storage but not in database".into());
                }
                Some(VolumeKind::Custom) | None => {}
            }
            let moved = world.projects.get_mut(&project).and_then(|p| p.instances.remove(&name));
            let Some(mut instance) = moved else { return Err("Instance not found".into()) };
            if let Some(target) = target {
                instance.location = target;
            }
            if body["config"].is_object() {
                instance.config = config_of(&body);
            }
            if body["devices"].is_object() {
                instance.devices = devices_of(&body);
            }
            if body["profiles"].is_array() {
                instance.profiles = texts(&body["profiles"]);
            }
            world.projects.entry(new_project).or_default().instances.insert(new_name, instance);
            Ok(json!({}))
        }),
    )
}

/// Moves a member's instances away; running ones are restarted elsewhere.
pub(super) fn evacuate(world: &mut World, member: &str, mode: &str) -> Result<Value, String> {
    if world.members.get(member).is_some_and(|m| m.status == "Evacuated") {
        return Err("Cluster member is already evacuated".into());
    }
    let here: Vec<(String, String)> = world
        .instances()
        .filter(|(_, _, i)| i.location == member)
        .map(|(p, n, _)| (p.clone(), n.clone()))
        .collect();
    if let Some(m) = world.members.get_mut(member) {
        m.status = "Evacuated";
    }
    for (project, name) in here {
        let target = if mode == "stop" { None } else { world.emptiest(None, Some(member)) };
        let instance = world.projects.get_mut(&project).and_then(|p| p.instances.get_mut(&name));
        let Some(instance) = instance else { continue };
        instance.config.insert(ORIGIN.into(), member.to_owned());
        match target {
            Some(target) => instance.location = target,
            None => {
                instance.config.insert("volatile.last_state.power".into(), instance.status.to_uppercase());
                instance.status = "Stopped";
            }
        }
    }
    Ok(json!({}))
}

/// Brings a member's instances back.
pub(super) fn restore(world: &mut World, member: &str) -> Result<Value, String> {
    match world.members.get_mut(member) {
        Some(m) if m.status == "Evacuated" => m.status = "Online",
        _ => return Err("Cluster member is already restored".into()),
    }
    for project in world.projects.values_mut() {
        for instance in project.instances.values_mut() {
            if instance.config.get(ORIGIN).is_some_and(|origin| origin == member) {
                instance.config.remove(ORIGIN);
                if instance.location == member
                    && instance.config.remove("volatile.last_state.power").as_deref() == Some("RUNNING")
                {
                    instance.status = "Running";
                }
                instance.location = member.to_owned();
            }
        }
    }
    Ok(json!({}))
}
