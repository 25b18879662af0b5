//! Images and their aliases. An image is the bytes that were sent.

use super::{Asked, Reply, begin, done, listed, refuse, tagged, writable};
use crate::fake::{
    Shared, map,
    model::{Alias, Image, NEVER, World, in_project},
    operations::Work,
    texts,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, sync::Arc};
use stead_incus::types::Config;

pub(super) fn answer(shared: &Arc<Shared>, asked: &Asked, segments: &[&str]) -> Reply {
    let mut inner = shared.lock();
    let world = &mut inner.world;
    if !world.projects.contains_key(asked.project()) {
        return refuse(404, "Project not found");
    }
    let home = world.home(asked.project(), "images").to_owned();
    let rest = &segments[1..];
    if let ["aliases", rest @ ..] = rest {
        return alias(shared, world, asked, &home, rest);
    }
    match (asked.method.as_str(), rest) {
        ("GET", []) => {
            let homes: Vec<&String> =
                world.projects.keys().filter(|p| asked.all_projects() || **p == home).collect();
            listed(
                asked.recursion(),
                homes.iter().flat_map(|p| {
                    world.projects[*p]
                        .images
                        .keys()
                        .map(|f| (in_project(format!("/1.0/images/{f}"), p), world.image(p, f)))
                }),
            )
        }
        ("POST", []) => {
            let contents = match &asked.boundary {
                Some(boundary) => joined_parts(&asked.raw, boundary).into(),
                None => asked.raw.clone(),
            };
            let properties = asked.properties.as_deref().map(parse_properties).unwrap_or_default();
            drop(inner);
            begin(
                shared,
                Work {
                    description: "Downloading image",
                    project: home.clone(),
                    resources: BTreeMap::new(),
                    claims: Vec::new(),
                    may_cancel: false,
                    effect: Box::new(move |world| add(world, &home, contents, properties)),
                    tells: Vec::new(),
                },
            )
        }
        (_, [prefix, rest @ ..]) => {
            let found = found(world, &home, prefix);
            let Some(fingerprint) = found else { return refuse(404, format!("Image {prefix:?} not found")) };
            one(shared, inner, asked, home, fingerprint, rest)
        }
        _ => refuse(404, "not found"),
    }
}

fn one(
    shared: &Arc<Shared>,
    mut inner: std::sync::MutexGuard<'_, crate::fake::Inner>,
    asked: &Asked,
    home: String,
    fingerprint: String,
    rest: &[&str],
) -> Reply {
    let world = &mut inner.world;
    match (asked.method.as_str(), rest) {
        ("GET", []) => tagged(world.image(&home, &fingerprint), writable::IMAGE, ""),
        ("GET", ["export"]) => Reply::Bytes(world.projects[&home].images[&fingerprint].contents.clone()),
        ("PUT" | "PATCH", []) => {
            let now = world.image(&home, &fingerprint).unwrap_or_default();
            if let Err(refused) = asked.fits(&now, writable::IMAGE) {
                return refused;
            }
            let image = world.projects.get_mut(&home).and_then(|p| p.images.get_mut(&fingerprint));
            if let Some(image) = image {
                let properties = map(&asked.body["properties"]);
                if asked.method == "PUT" {
                    image.properties = properties;
                    image.public = asked.body["public"] == true;
                    image.auto_update = asked.body["auto_update"] == true;
                    image.profiles = texts(&asked.body["profiles"]);
                    image.expires_at = asked.body["expires_at"].as_str().unwrap_or(NEVER).to_owned();
                } else {
                    image.properties.extend(properties);
                }
            }
            done()
        }
        ("DELETE", []) => {
            drop(inner);
            let path = in_project(format!("/1.0/images/{fingerprint}"), &home);
            begin(
                shared,
                Work {
                    description: "Deleting image",
                    project: home.clone(),
                    resources: BTreeMap::new(),
                    claims: Vec::new(),
                    may_cancel: false,
                    effect: Box::new(move |world| {
                        if let Some(p) = world.projects.get_mut(&home) {
                            p.images.remove(&fingerprint);
                            p.aliases.retain(|_, a| a.target != fingerprint);
                        }
                        Ok(Value::Null)
                    }),
                    tells: vec![("image-deleted", path)],
                },
            )
        }
        _ => refuse(404, "not found"),
    }
}

fn alias(shared: &Shared, world: &mut World, asked: &Asked, home: &str, rest: &[&str]) -> Reply {
    let name = rest.join("/");
    let missing = || refuse(404, "Image alias not found");
    let new = Alias { target: asked.text("target"), description: asked.text("description") };
    let known = |world: &World| world.projects[home].images.contains_key(&new.target);
    match (asked.method.as_str(), rest) {
        ("GET", []) => listed(
            asked.recursion(),
            world.projects[home]
                .aliases
                .keys()
                .map(|n| (in_project(format!("/1.0/images/aliases/{n}"), home), world.alias(home, n))),
        ),
        ("POST", []) => {
            let name = asked.text("name");
            if world.projects[home].aliases.contains_key(&name) {
                return refuse(409, format!("Alias {name:?} already exists"));
            }
            if !known(world) {
                return refuse(404, format!("Image {:?} not found", new.target));
            }
            shared.tell_lifecycle(home, "image-alias-created", &format!("/1.0/images/aliases/{name}"));
            world.projects.entry(home.to_owned()).or_default().aliases.insert(name, new);
            done()
        }
        ("GET", _) => tagged(world.alias(home, &name), writable::ALIAS, "Image alias not found"),
        ("PUT", _) => {
            let Some(now) = world.alias(home, &name) else { return missing() };
            if let Err(refused) = asked.fits(&now, writable::ALIAS) {
                return refused;
            }
            if !known(world) {
                return refuse(404, format!("Image {:?} not found", new.target));
            }
            shared.tell_lifecycle(home, "image-alias-updated", &format!("/1.0/images/aliases/{name}"));
            world.projects.entry(home.to_owned()).or_default().aliases.insert(name, new);
            done()
        }
        ("POST", _) => {
            let aliases = &mut world.projects.entry(home.to_owned()).or_default().aliases;
            match aliases.remove(&name) {
                None => missing(),
                Some(alias) => {
                    aliases.insert(asked.text("name"), alias);
                    done()
                }
            }
        }
        ("DELETE", _) => {
            let aliases = &mut world.projects.entry(home.to_owned()).or_default().aliases;
            if aliases.remove(&name).is_some() { done() } else { missing() }
        }
        _ => refuse(404, "not found"),
    }
}

fn add(world: &mut World, home: &str, contents: bytes::Bytes, properties: Config) -> Result<Value, String> {
    let fingerprint: String = Sha256::digest(&contents).iter().map(|b| format!("{b:02x}")).collect();
    let size = contents.len() as u64;
    let uploaded_at = world.now();
    let images = &mut world.projects.entry(home.to_owned()).or_default().images;
    if images.contains_key(&fingerprint) {
        return Err("Image with same fingerprint already exists".into());
    }
    let image = Image {
        properties,
        public: false,
        auto_update: false,
        profiles: vec!["default".into()],
        expires_at: NEVER.into(),
        size,
        uploaded_at,
        contents,
    };
    images.insert(fingerprint.clone(), image);
    Ok(json!({ "fingerprint": fingerprint, "size": size.to_string() }))
}

/// The contents of a form's parts, concatenated: a split image's fingerprint is their hash.
fn joined_parts(body: &[u8], boundary: &str) -> Vec<u8> {
    let delimiter = format!("--{boundary}");
    let find = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|w| w == what);
    let (mut joined, mut rest) = (Vec::new(), body);
    while let Some(at) = find(rest, delimiter.as_bytes()) {
        let part = &rest[..at];
        if let Some(head) = find(part, b"\r\n\r\n") {
            joined.extend_from_slice(part[head + 4..].strip_suffix(b"\r\n").unwrap_or_default());
        }
        rest = &rest[at + delimiter.len()..];
    }
    joined
}

/// The image with this fingerprint or fingerprint prefix.
pub(super) fn found(world: &World, home: &str, prefix: &str) -> Option<String> {
    let images = &world.projects.get(home)?.images;
    let mut fitting = images.keys().filter(|f| !prefix.is_empty() && f.starts_with(prefix));
    fitting.next().filter(|_| fitting.next().is_none()).cloned()
}

fn parse_properties(header: &str) -> Config {
    header
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(k, v)| (super::decode(k), super::decode(v)))
        .collect()
}
