//! Projects, profiles, and the single network.

use super::{Asked, Reply, done, listed, refuse, tagged, writable};
use crate::fake::{
    Shared, config_of, devices_of,
    model::{Profile, Project, in_project},
};
use serde_json::json;
use std::sync::Arc;

pub(super) fn answer(shared: &Arc<Shared>, asked: &Asked, segments: &[&str]) -> Reply {
    match segments {
        ["projects", ..] => project(shared, asked, &segments[1..]),
        ["profiles", ..] => profile(shared, asked, &segments[1..]),
        _ => network(asked, &segments[1..]),
    }
}

fn project(shared: &Arc<Shared>, asked: &Asked, rest: &[&str]) -> Reply {
    let mut inner = shared.lock();
    let world = &mut inner.world;
    const MISSING: &str = "Project not found";
    match (asked.method.as_str(), rest) {
        ("GET", []) => listed(
            asked.recursion(),
            world.projects.keys().map(|n| (format!("/1.0/projects/{n}"), world.project(n))),
        ),
        ("POST", []) => {
            let name = asked.text("name");
            if world.projects.contains_key(&name) {
                return refuse(
                    500,
                    format!(
                        "Failed creating project {name:?}: Failed adding database record: UNIQUE constraint failed: projects.name"
                    ),
                );
            }
            let mut config = config_of(&asked.body);
            for feature in ["images", "profiles"] {
                config.entry(format!("features.{feature}")).or_insert_with(|| "true".into());
            }
            let mut new = Project { description: asked.text("description"), config, ..Project::default() };
            let profile = Profile {
                description: format!("Default {} profile for project {name}", world.dialect),
                ..Profile::default()
            };
            new.profiles.insert("default".into(), profile);
            world.projects.insert(name.clone(), new);
            shared.tell_lifecycle(&name, "project-created", &format!("/1.0/projects/{name}"));
            done()
        }
        ("GET", [name]) => tagged(world.project(name), writable::PROJECT, MISSING),
        ("GET", [name, "state"]) => match world.projects.get(*name) {
            None => refuse(404, MISSING),
            Some(p) => Reply::Done(json!({ "resources": {
                "containers": { "Limit": -1, "Usage": p.instances.len() },
                "instances": { "Limit": -1, "Usage": p.instances.len() },
            } })),
        },
        ("PUT" | "PATCH", [name]) => {
            let Some(now) = world.project(name) else { return refuse(404, MISSING) };
            if let Err(refused) = asked.fits(&now, writable::PROJECT) {
                return refused;
            }
            if let Some(p) = world.projects.get_mut(*name) {
                let config = config_of(&asked.body);
                if asked.method == "PUT" {
                    p.description = asked.text("description");
                    p.config = config;
                } else {
                    p.config.extend(config);
                }
            }
            done()
        }
        ("DELETE", ["default"]) => refuse(403, "The 'default' project cannot be deleted"),
        ("DELETE", [name]) => match world.projects.get(*name) {
            None => refuse(404, MISSING),
            Some(p) if !p.instances.is_empty() || !p.images.is_empty() => {
                refuse(400, "Only empty projects can be removed")
            }
            Some(_) => {
                world.projects.remove(*name);
                done()
            }
        },
        _ => refuse(404, "not found"),
    }
}

fn profile(shared: &Arc<Shared>, asked: &Asked, rest: &[&str]) -> Reply {
    let mut inner = shared.lock();
    let world = &mut inner.world;
    const MISSING: &str = "Fetch profile: Profile not found";
    if !world.projects.contains_key(asked.project()) {
        return refuse(404, "Project not found");
    }
    let home = world.home(asked.project(), "profiles").to_owned();
    let path = |name: &str| in_project(format!("/1.0/profiles/{name}"), &home);
    match (asked.method.as_str(), rest) {
        ("GET", []) => {
            let homes: Vec<&String> =
                world.projects.keys().filter(|p| asked.all_projects() || **p == home).collect();
            listed(
                asked.recursion(),
                homes
                    .iter()
                    .flat_map(|p| world.projects[*p].profiles.keys().map(|n| (path(n), world.profile(p, n)))),
            )
        }
        ("POST", []) => {
            let name = asked.text("name");
            let profile = Profile {
                description: asked.text("description"),
                config: config_of(&asked.body),
                devices: devices_of(&asked.body),
            };
            let profiles = &mut world.projects.entry(home.clone()).or_default().profiles;
            if profiles.contains_key(&name) {
                return refuse(
                    500,
                    format!("Error inserting {name:?} into database: The profile already exists"),
                );
            }
            profiles.insert(name.clone(), profile);
            shared.tell_lifecycle(&home, "profile-created", &path(&name));
            done()
        }
        ("GET", [name]) => tagged(world.profile(asked.project(), name), writable::PROFILE, MISSING),
        ("PUT" | "PATCH", [name]) => {
            let Some(now) = world.profile(asked.project(), name) else { return refuse(404, MISSING) };
            if let Err(refused) = asked.fits(&now, writable::PROFILE) {
                return refused;
            }
            let profile = world.projects.get_mut(&home).and_then(|p| p.profiles.get_mut(*name));
            if let Some(p) = profile {
                if asked.method == "PUT" {
                    (p.config, p.devices) = (config_of(&asked.body), devices_of(&asked.body));
                    p.description = asked.text("description");
                } else {
                    p.config.extend(config_of(&asked.body));
                    p.devices.extend(devices_of(&asked.body));
                }
            }
            shared.tell_lifecycle(&home, "profile-updated", &path(name));
            done()
        }
        (_, ["default"]) => refuse(403, "The \"default\" profile cannot be deleted"),
        ("POST", [name]) => {
            let Some(profiles) = world.projects.get_mut(&home).map(|p| &mut p.profiles) else {
                return refuse(404, MISSING);
            };
            match profiles.remove(*name) {
                None => refuse(404, MISSING),
                Some(profile) => {
                    profiles.insert(asked.text("name"), profile);
                    done()
                }
            }
        }
        ("DELETE", [name]) => {
            let Some(now) = world.profile(asked.project(), name) else { return refuse(404, MISSING) };
            if now["used_by"].as_array().is_some_and(|u| !u.is_empty()) {
                return refuse(400, "Profile is currently in use");
            }
            if let Some(p) = world.projects.get_mut(&home) {
                p.profiles.remove(*name);
            }
            done()
        }
        _ => refuse(404, "not found"),
    }
}

fn network(asked: &Asked, rest: &[&str]) -> Reply {
    let bridge = json!({
        "config": {}, "description": "", "name": "br0", "type": "bridge", "used_by": [], "managed": false,
        "status": "", "locations": null,
    });
    match (asked.method.as_str(), rest) {
        ("GET", []) => listed(asked.recursion(), std::iter::once(("/1.0/networks/br0".into(), Some(bridge)))),
        ("GET", ["br0"]) => tagged(Some(bridge), writable::POOL, ""),
        ("GET", ["br0", "state"]) => Reply::Done(json!({
            "addresses": [], "counters": null, "hwaddr": "10:66:6a:00:00:01", "mtu": 1500, "state": "up",
            "type": "broadcast",
        })),
        _ => refuse(404, "Network not found"),
    }
}
