//! Instances: listing, creating, changing, state, snapshots.

use super::{
    Asked, Reply, begin, images,
    moves::{relocate, resolve},
    on_instance, refuse, tagged, writable,
};
use crate::fake::{
    Shared, config_of, devices_of,
    model::{Instance, NEVER, Snapshot, Usage, World, instance_path, instance_state},
    texts,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};
use stead_incus::types::Config;

const MISSING: &str = "Instance not found";

pub(super) fn answer(shared: &Arc<Shared>, asked: &Asked, segments: &[&str]) -> Reply {
    let project = asked.project().to_owned();
    match (asked.method.as_str(), &segments[1..]) {
        ("GET", []) => list(&shared.lock().world, asked),
        ("POST", []) => create(shared, asked, &project),
        (_, [name, rest @ ..]) => {
            let exists =
                shared.lock().world.projects.get(&project).is_some_and(|p| p.instances.contains_key(*name));
            if !exists {
                return refuse(404, MISSING);
            }
            if let ["snapshots", rest @ ..] = rest {
                return snapshots(shared, asked, &project, name, rest);
            }
            one(shared, asked, &project, name, rest)
        }
        _ => refuse(404, "not found"),
    }
}

fn list(world: &World, asked: &Asked) -> Reply {
    let mut found = Vec::new();
    for (project, name, instance) in world.instances() {
        if !asked.all_projects() && project != asked.project() {
            continue;
        }
        if !asked.query.get("filter").is_none_or(|f| fits(f, name, instance)) {
            continue;
        }
        found.push(match asked.recursion() {
            0 => instance_path(project, name).into(),
            recursion => world.instance(project, name, recursion > 1).unwrap_or_default(),
        });
    }
    Reply::Done(found.into())
}

/// `key eq value`, joined by `and`: the part of the servers' filter language that Stead uses.
fn fits(filter: &str, name: &str, instance: &Instance) -> bool {
    filter.split(" and ").all(|clause| {
        let mut words = clause.split_whitespace();
        let (Some(key), Some("eq"), Some(value)) = (words.next(), words.next(), words.next()) else {
            return false;
        };
        match key {
            "name" => name == value,
            "status" => instance.status.eq_ignore_ascii_case(value),
            "location" => instance.location == value,
            _ => key
                .strip_prefix("config.")
                .is_some_and(|key| instance.config.get(key).is_some_and(|v| v == value)),
        }
    })
}

fn create(shared: &Arc<Shared>, asked: &Asked, project: &str) -> Reply {
    let inner = shared.lock();
    let world = &inner.world;
    if !world.projects.contains_key(project) {
        return refuse(404, "Project not found");
    }
    let name = asked.text("name");
    let sound = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if name.is_empty() || !name.chars().all(sound) {
        return refuse(
            400,
            "Invalid instance name: Name can only contain alphanumeric and hyphen characters",
        );
    }
    let target = match asked.target() {
        None if !world.clustered() => String::new(),
        None => match world.emptiest(None, None) {
            Some(member) => member,
            None => return refuse(400, "Couldn't find a cluster member for the instance"),
        },
        Some(target) => match resolve(world, target) {
            Ok(member) => member,
            Err(refused) => return refused,
        },
    };
    let source = &asked.body["source"];
    let home = world.home(project, "images");
    let mut config = config_of(&asked.body);
    let mut copied = None;
    match source["type"].as_str().unwrap_or_default() {
        "none" => {}
        "image" => {
            let alias = source["alias"].as_str().and_then(|a| world.projects.get(home)?.aliases.get(a));
            let prefix = match alias {
                Some(alias) => alias.target.as_str(),
                None => source["fingerprint"].as_str().unwrap_or_default(),
            };
            let Some(fingerprint) = images::found(world, home, prefix) else {
                let alias = source["alias"].as_str();
                return match alias {
                    // As the servers answer.
                    Some(_) => refuse(500, "No fingerprint prefix specified for the image"),
                    None => refuse(404, format!("Image {prefix:?} not found")),
                };
            };
            config.insert("volatile.base_image".into(), fingerprint);
        }
        "copy" => {
            let from = source["project"].as_str().unwrap_or(project);
            let (parent, snapshot) = match source["source"].as_str().unwrap_or_default().split_once('/') {
                Some((parent, snapshot)) => (parent, Some(snapshot)),
                None => (source["source"].as_str().unwrap_or_default(), None),
            };
            let original = world.projects.get(from).and_then(|p| p.instances.get(parent));
            let there = |i: &&Instance| snapshot.is_none_or(|s| i.snapshots.contains_key(s));
            let Some(original) = original.filter(there) else { return refuse(404, MISSING) };
            copied = Some((original.clone(), source["instance_only"] == true || snapshot.is_some()));
        }
        other => return refuse(400, format!("Unknown source type {other:?}")),
    }
    let refresh = source["refresh"] == true;
    let start = asked.body["start"] == true;
    let body = asked.body.clone();
    let owner = project.to_owned();
    drop(inner);
    let path = instance_path(project, &name);
    let mut tells = vec![("instance-created", path.clone())];
    if start {
        tells.push(("instance-started", path));
    }
    let new_name = name.clone();
    begin(
        shared,
        on_instance("Creating instance", project, &name, tells, move |world| {
            let created_at = world.now();
            let there = world.projects.get(&owner).is_some_and(|p| p.instances.contains_key(&new_name));
            if there && !refresh {
                return Err(format!("Failed creating instance record: Instance {new_name:?} already exists"));
            }
            let mut instance = Instance {
                kind: body["type"].as_str().unwrap_or("container").to_owned(),
                architecture: world
                    .members
                    .get(&target)
                    .map_or_else(|| "x86_64".to_owned(), |m| m.architecture.clone()),
                location: target,
                status: if start { "Running" } else { "Stopped" },
                description: body["description"].as_str().unwrap_or_default().to_owned(),
                ephemeral: body["ephemeral"] == true,
                stateful: false,
                config,
                devices: devices_of(&body),
                profiles: texts(&body["profiles"]),
                created_at,
                snapshots: BTreeMap::new(),
                usage: Usage::default(),
            };
            if let Some((original, without_snapshots)) = copied {
                instance.usage = original.usage;
                if !without_snapshots {
                    instance.snapshots = original.snapshots;
                }
            }
            world.projects.entry(owner).or_default().instances.insert(new_name, instance);
            Ok(json!({}))
        }),
    )
}

/// Changes an instance at the end of an operation.
fn change(
    project: &str,
    name: &str,
    change: impl FnOnce(&mut Instance) -> Result<(), String> + Send + 'static,
) -> impl FnOnce(&mut World) -> Result<Value, String> + Send + 'static {
    let (project, name) = (project.to_owned(), name.to_owned());
    move |world| {
        let found = world.projects.get_mut(&project).and_then(|p| p.instances.get_mut(&name));
        change(found.ok_or(MISSING)?)?;
        Ok(json!({}))
    }
}

fn one(shared: &Arc<Shared>, asked: &Asked, project: &str, name: &str, rest: &[&str]) -> Reply {
    let inner = shared.lock();
    let world = &inner.world;
    let instance = &world.projects[project].instances[name];
    let offline = world.members.get(&instance.location).is_some_and(|m| m.status == "Offline");
    let path = instance_path(project, name);
    match (asked.method.as_str(), rest) {
        ("GET", []) => {
            tagged(world.instance(project, name, asked.recursion() > 0), writable::INSTANCE, MISSING)
        }
        ("GET", ["state"]) if !offline => Reply::Done(instance_state(instance)),
        (_, _) if offline && asked.body["migration"] != true => {
            refuse(503, format!("Failed to connect to cluster member {:?}: no answer", instance.location))
        }
        ("PUT", []) if asked.body["restore"].is_string() => {
            let snapshot = asked.text("restore");
            let restored = change(project, name, move |i| {
                let s = i.snapshots.get(&snapshot).ok_or(format!("Snapshot {snapshot} does not exist"))?;
                (i.config, i.devices) = (s.config.clone(), s.devices.clone());
                i.profiles.clone_from(&s.profiles);
                Ok(())
            });
            let now = world.instance(project, name, false).unwrap_or_default();
            if let Err(refused) = asked.fits(&now, writable::INSTANCE) {
                return refused;
            }
            drop(inner);
            begin(
                shared,
                on_instance("Restoring snapshot", project, name, vec![("instance-restored", path)], restored),
            )
        }
        ("PUT" | "PATCH", []) => {
            let now = world.instance(project, name, false).unwrap_or_default();
            if let Err(refused) = asked.fits(&now, writable::INSTANCE) {
                return refused;
            }
            let body = asked.body.clone();
            let tells = vec![("instance-updated", path)];
            drop(inner);
            if asked.method == "PATCH" {
                let mut inner = shared.lock();
                let patched = change(project, name, move |i| {
                    // As on the servers, a missing description empties it.
                    i.description = body["description"].as_str().unwrap_or_default().to_owned();
                    i.config.extend(config_of(&body));
                    i.devices.extend(devices_of(&body));
                    Ok(())
                })(&mut inner.world);
                return match patched {
                    Ok(_) => super::done(),
                    Err(e) => refuse(500, e),
                };
            }
            let effect = change(project, name, move |i| {
                i.config = config_of(&body);
                i.devices = devices_of(&body);
                i.profiles = texts(&body["profiles"]);
                i.ephemeral = body["ephemeral"] == true;
                i.description = body["description"].as_str().unwrap_or_default().to_owned();
                Ok(())
            });
            begin(shared, on_instance("Updating instance", project, name, tells, effect))
        }
        ("PUT", ["state"]) => {
            drop(inner);
            state(shared, asked, project, name)
        }
        ("POST", []) if asked.body["migration"] == true => {
            drop(inner);
            relocate(shared, asked, project, name)
        }
        ("POST", []) => {
            let new_name = asked.text("name");
            if world.projects[project].instances.contains_key(&new_name) {
                return refuse(409, format!("Name {new_name:?} already in use"));
            }
            let (owner, old) = (project.to_owned(), name.to_owned());
            let tells = vec![("instance-renamed", instance_path(project, &new_name))];
            drop(inner);
            begin(
                shared,
                on_instance("Renaming instance", project, name, tells, move |world| {
                    let instances = &mut world.projects.entry(owner).or_default().instances;
                    if instances.get(&old).is_some_and(|i| i.status != "Stopped") {
                        return Err("Renaming of running instance not allowed".into());
                    }
                    let instance = instances.remove(&old).ok_or(MISSING)?;
                    instances.insert(new_name, instance);
                    Ok(json!({}))
                }),
            )
        }
        ("POST", ["rebuild"]) => {
            if instance.status != "Stopped" {
                return refuse(400, "Instance must be stopped to be rebuilt");
            }
            drop(inner);
            let effect = change(project, name, |_| Ok(()));
            begin(shared, on_instance("Rebuilding instance", project, name, Vec::new(), effect))
        }
        ("DELETE", []) => {
            if instance.status != "Stopped" {
                return refuse(400, "Instance is running");
            }
            let (owner, name) = (project.to_owned(), name.to_owned());
            drop(inner);
            begin(
                shared,
                on_instance(
                    "Deleting instance",
                    project,
                    &name.clone(),
                    vec![("instance-deleted", path)],
                    move |world| {
                        world.projects.entry(owner).or_default().instances.remove(&name).ok_or(MISSING)?;
                        Ok(json!({}))
                    },
                ),
            )
        }
        _ => refuse(404, "not found"),
    }
}

fn state(shared: &Arc<Shared>, asked: &Asked, project: &str, name: &str) -> Reply {
    let path = instance_path(project, name);
    let (description, action) = match asked.text("action").as_str() {
        "start" => ("Starting instance", "instance-started"),
        "stop" => ("Stopping instance", "instance-shutdown"),
        "restart" => ("Restarting instance", "instance-restarted"),
        "freeze" => ("Freezing instance", "instance-paused"),
        "unfreeze" => ("Unfreezing instance", "instance-resumed"),
        other => return refuse(400, format!("Unknown action: '{other}'")),
    };
    let stateful = asked.body["stateful"] == true;
    let (owner, of) = (project.to_owned(), name.to_owned());
    let changed = change(project, name, move |i| {
        let (wanted, becomes): (&[&str], _) = match action {
            "instance-started" => (&["Stopped"], "Running"),
            "instance-shutdown" => (&["Running", "Frozen"], "Stopped"),
            "instance-paused" => (&["Running"], "Frozen"),
            "instance-resumed" => (&["Frozen"], "Running"),
            _ => (&["Running"], "Running"),
        };
        if !wanted.contains(&i.status) {
            return Err(match (action, i.status) {
                ("instance-started", _) => "The instance is already running".into(),
                (_, "Stopped") => "The instance is already stopped".into(),
                (_, status) => format!("The instance is {}", status.to_lowercase()),
            });
        }
        i.status = becomes;
        i.stateful = stateful;
        Ok(())
    });
    let effect = move |world: &mut World| {
        changed(world)?;
        // An ephemeral instance is deleted when it stops.
        if let Some(p) = world.projects.get_mut(&owner) {
            p.instances.retain(|name, i| *name != of || !(i.ephemeral && i.status == "Stopped"));
        }
        Ok(json!({}))
    };
    begin(shared, on_instance(description, project, name, vec![(action, path)], effect))
}

fn snapshots(shared: &Arc<Shared>, asked: &Asked, project: &str, name: &str, rest: &[&str]) -> Reply {
    let mut inner = shared.lock();
    let world = &mut inner.world;
    let path = |snapshot: &str| format!("{}/snapshots/{snapshot}", instance_path(project, name));
    let missing = |s: &str| {
        format!(
            "Failed to fetch snapshot {s:?} of instance {name:?} in project {project:?}: Instance_snapshot not found"
        )
    };
    match (asked.method.as_str(), rest) {
        ("GET", []) => {
            let instance = &world.projects[project].instances[name];
            super::listed(
                asked.recursion(),
                instance.snapshots.keys().map(|s| (path(s), world.snapshot(project, name, s))),
            )
        }
        ("POST", []) => {
            let snapshot = match asked.text("name") {
                n if n.is_empty() => "snap0".to_owned(),
                n => n,
            };
            let created_at = world.now();
            let stateful = asked.body["stateful"] == true;
            let expires_at = asked.body["expires_at"].as_str().unwrap_or(NEVER).to_owned();
            let tells = vec![("instance-snapshot-created", path(&snapshot))];
            drop(inner);
            let effect = change(project, name, move |i| {
                if i.snapshots.contains_key(&snapshot) {
                    return Err(format!(
                        "Failed creating instance snapshot record {snapshot:?}: UNIQUE constraint failed"
                    ));
                }
                let own = |(k, _): &(&String, &String)| !k.starts_with("volatile.evacuate");
                let config: Config =
                    i.config.iter().filter(own).map(|(k, v)| (k.clone(), v.clone())).collect();
                let (devices, profiles) = (i.devices.clone(), i.profiles.clone());
                i.snapshots.insert(
                    snapshot,
                    Snapshot { created_at, expires_at, stateful, config, devices, profiles },
                );
                Ok(())
            });
            begin(shared, on_instance("Snapshotting instance", project, name, tells, effect))
        }
        (_, [snapshot]) if world.snapshot(project, name, snapshot).is_none() => {
            refuse(404, missing(snapshot))
        }
        ("GET", [snapshot]) => {
            tagged(world.snapshot(project, name, snapshot), writable::SNAPSHOT, &missing(snapshot))
        }
        ("PUT", [snapshot]) => {
            let now = world.snapshot(project, name, snapshot).unwrap_or_default();
            if let Err(refused) = asked.fits(&now, writable::SNAPSHOT) {
                return refused;
            }
            let (old, expires_at) = ((*snapshot).to_owned(), asked.text("expires_at"));
            drop(inner);
            let effect = change(project, name, move |i| {
                i.snapshots.get_mut(&old).ok_or("Instance_snapshot not found")?.expires_at = expires_at;
                Ok(())
            });
            begin(shared, on_instance("Updating snapshot", project, name, Vec::new(), effect))
        }
        ("POST", [snapshot]) => {
            let (old, new) = ((*snapshot).to_owned(), asked.text("name"));
            let tells = vec![("instance-snapshot-renamed", path(&new))];
            drop(inner);
            let effect = change(project, name, move |i| {
                let s = i.snapshots.remove(&old).ok_or("Instance_snapshot not found")?;
                i.snapshots.insert(new, s);
                Ok(())
            });
            begin(shared, on_instance("Renaming snapshot", project, name, tells, effect))
        }
        ("DELETE", [snapshot]) => {
            let old = (*snapshot).to_owned();
            let tells = vec![("instance-snapshot-deleted", path(&old))];
            drop(inner);
            let effect = change(project, name, move |i| {
                i.snapshots.remove(&old).ok_or("Instance_snapshot not found")?;
                Ok(())
            });
            begin(shared, on_instance("Deleting snapshot", project, name, tells, effect))
        }
        _ => refuse(404, "not found"),
    }
}
