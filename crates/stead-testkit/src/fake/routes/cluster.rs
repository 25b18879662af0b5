//! Members, groups, resources, pools.

use super::{
    Asked, Reply, begin, done, listed,
    moves::{evacuate, restore},
    refuse, tagged, writable,
};
use crate::fake::{Shared, config_of, model::Group, operations::Work, texts};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use stead_incus::Dialect;

pub(super) fn answer(shared: &Arc<Shared>, asked: &Asked, segments: &[&str]) -> Reply {
    let mut inner = shared.lock();
    let world = &mut inner.world;
    let first = world.members.keys().next().cloned().unwrap_or_default();
    let asked_of = asked.target().map_or(first.clone(), str::to_owned);
    let no_member = |name: &str| refuse(404, format!("Cluster member {name:?} not found"));
    match (asked.method.as_str(), segments) {
        ("GET", ["resources"]) => {
            world.resources(&asked_of).map_or_else(|| no_member(&asked_of), Reply::Done)
        }
        ("GET", ["storage-pools"]) => {
            let pool = world.pool();
            listed(asked.recursion(), std::iter::once(("/1.0/storage-pools/default".into(), Some(pool))))
        }
        // LXD 5.0 fails to make an ETag of a pool.
        ("GET", ["storage-pools", "default"]) if world.dialect == Dialect::Lxd => Reply::Done(world.pool()),
        ("GET", ["storage-pools", name]) => {
            tagged((*name == "default").then(|| world.pool()), writable::POOL, "Storage pool not found")
        }
        ("GET", ["storage-pools", "default", "resources"]) => {
            world.pool_space(&asked_of).map_or_else(|| no_member(&asked_of), Reply::Done)
        }
        ("GET", ["storage-pools", "default", "volumes"]) => {
            let here = |v: &serde_json::Value| asked.all_projects() || v["project"] == asked.project();
            Reply::Done(world.volumes().into_iter().filter(here).collect())
        }
        // As of a driver that does not measure.
        ("GET", ["storage-pools", "default", "volumes", _, _, "state"]) => {
            Reply::Done(json!({ "usage": null }))
        }
        ("GET", ["cluster"]) => {
            Reply::Done(json!({ "server_name": first, "enabled": world.clustered(), "member_config": [] }))
        }
        ("GET", ["cluster", "members"]) => listed(
            asked.recursion(),
            world.members.keys().map(|n| (format!("/1.0/cluster/members/{n}"), world.member(n))),
        ),
        ("GET", ["cluster", "members", name]) => {
            tagged(world.member(name), writable::MEMBER, "Cluster member not found")
        }
        ("PUT", ["cluster", "members", name]) => {
            let Some(now) = world.member(name) else { return refuse(404, "Cluster member not found") };
            if let Err(refused) = asked.fits(&now, writable::MEMBER) {
                return refused;
            }
            let groups = texts(&asked.body["groups"]);
            if groups.is_empty() {
                return refuse(400, "Cluster members need to belong to at least one group");
            }
            if let Some(unknown) = groups.iter().find(|g| !world.groups.contains_key(*g)) {
                return refuse(404, format!("Cluster group {unknown:?} not found"));
            }
            for (group, g) in &mut world.groups {
                if groups.contains(group) {
                    g.members.insert((*name).to_owned());
                } else {
                    g.members.remove(*name);
                }
            }
            if let Some(m) = world.members.get_mut(*name) {
                m.roles = texts(&asked.body["roles"]);
                m.failure_domain = asked.text("failure_domain");
                m.description = asked.text("description");
                m.config = config_of(&asked.body);
            }
            shared.tell_lifecycle(
                "default",
                "cluster-member-updated",
                &format!("/1.0/cluster/members/{name}"),
            );
            done()
        }
        ("DELETE", ["cluster", "members", name]) => {
            let forced = asked.query.get("force").is_some_and(|f| f == "1");
            if world.member(name).is_none() {
                return refuse(404, "Cluster member not found");
            }
            if !forced && world.instances().any(|(_, _, i)| i.location == **name) {
                return refuse(400, "Cluster member still has the following instances: …");
            }
            world.members.remove(*name);
            for g in world.groups.values_mut() {
                g.members.remove(*name);
            }
            for project in world.projects.values_mut() {
                project.instances.retain(|_, i| i.location != **name);
            }
            done()
        }
        ("GET", ["cluster", "members", name, "state"]) => {
            world.member_state(name).map_or_else(|| no_member(name), Reply::Done)
        }
        ("POST", ["cluster", "members", name, "state"]) => {
            if world.member(name).is_none() {
                return refuse(404, "Cluster member not found");
            }
            let (name, mode) = ((*name).to_owned(), asked.text("mode"));
            let (description, action, effect): (_, _, super::operations::Effect) =
                match asked.text("action").as_str() {
                    "evacuate" => {
                        let member = name.clone();
                        (
                            "Evacuating cluster member",
                            "cluster-member-evacuated",
                            Box::new(move |world| evacuate(world, &member, &mode)),
                        )
                    }
                    "restore" => {
                        let member = name.clone();
                        (
                            "Restoring cluster member",
                            "cluster-member-restored",
                            Box::new(move |world| restore(world, &member)),
                        )
                    }
                    other => return refuse(400, format!("Unknown action {other:?}")),
                };
            drop(inner);
            let path = format!("/1.0/cluster/members/{name}");
            begin(
                shared,
                Work {
                    description,
                    project: "default".into(),
                    resources: BTreeMap::new(),
                    claims: Vec::new(),
                    may_cancel: false,
                    effect,
                    tells: vec![(action, path)],
                },
            )
        }
        ("GET", ["cluster", "groups"]) => listed(
            asked.recursion(),
            world.groups.keys().map(|n| (format!("/1.0/cluster/groups/{n}"), world.group(n))),
        ),
        ("POST", ["cluster", "groups"]) => {
            let name = asked.text("name");
            if world.groups.contains_key(&name) {
                return refuse(
                    500,
                    "Failed to create \"cluster_groups\" entry: UNIQUE constraint failed: cluster_groups.name",
                );
            }
            let members = texts(&asked.body["members"]);
            if let Some(unknown) = members.iter().find(|m| !world.members.contains_key(*m)) {
                return refuse(404, format!("Cluster member {unknown:?} not found"));
            }
            let group =
                Group { description: asked.text("description"), members: members.into_iter().collect() };
            world.groups.insert(name, group);
            done()
        }
        ("GET", ["cluster", "groups", name]) => {
            tagged(world.group(name), writable::GROUP, "Cluster_group not found")
        }
        // The ETag is ignored, as by the servers.
        ("PUT", ["cluster", "groups", name]) => {
            let Some(old) = world.groups.get(*name).map(|g| g.members.clone()) else {
                return refuse(404, "Cluster_group not found");
            };
            let mut members: BTreeSet<String> = texts(&asked.body["members"]).into_iter().collect();
            for member in old {
                let elsewhere = world.groups.iter().any(|(n, g)| n != *name && g.members.contains(&member));
                if !elsewhere {
                    members.insert(member);
                }
            }
            let group = Group { description: asked.text("description"), members };
            world.groups.insert((*name).to_owned(), group);
            done()
        }
        ("POST", ["cluster", "groups", name]) => {
            if *name == "default" {
                return refuse(403, "The 'default' cluster group cannot be renamed");
            }
            match world.groups.remove(*name) {
                Some(group) => {
                    world.groups.insert(asked.text("name"), group);
                    done()
                }
                None => refuse(404, "Cluster_group not found"),
            }
        }
        ("DELETE", ["cluster", "groups", "default"]) => {
            refuse(403, "The 'default' cluster group cannot be deleted")
        }
        ("DELETE", ["cluster", "groups", name]) => match world.groups.get(*name) {
            None => refuse(404, "Cluster_group not found"),
            Some(g) if !g.members.is_empty() => refuse(500, "Only empty cluster groups can be removed"),
            Some(_) => {
                world.groups.remove(*name);
                done()
            }
        },
        _ => refuse(404, "not found"),
    }
}
