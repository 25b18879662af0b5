//! The answers of each path. Messages and codes are those of Incus 6.0.4 where a client could depend on them.

mod cluster;
mod images;
mod instances;
mod moves;
mod projects;

use super::{
    Shared, config_of,
    model::{World, etag},
    operations::{self, Work},
};
use bytes::Bytes;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use stead_incus::{Dialect, Feature};

/// A parsed request.
pub(super) struct Asked {
    pub method: String,
    /// Segments of the path, without `1.0`, decoded.
    pub segments: Vec<String>,
    pub query: BTreeMap<String, String>,
    pub body: Value,
    pub raw: Bytes,
    if_match: Option<String>,
    pub properties: Option<String>,
    /// Of a multipart body.
    pub boundary: Option<String>,
}

/// An answer, not yet written.
pub(super) enum Reply {
    Done(Value),
    Tagged(Value, String),
    Begun(Value),
    Refused(u16, String),
    Bytes(Bytes),
    Wait { id: String, timeout: Option<Duration> },
    Events { kinds: Vec<String>, project: Option<String> },
}

impl Asked {
    pub fn new(parts: &http::request::Parts, raw: Bytes) -> Self {
        let header = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let query = parts.uri.query().unwrap_or_default();
        Self {
            method: parts.method.to_string(),
            segments: parts.uri.path().split('/').filter(|s| !s.is_empty()).skip(1).map(decode).collect(),
            query: query
                .split('&')
                .filter_map(|pair| pair.split_once('='))
                .map(|(k, v)| (k.to_owned(), decode(v)))
                .collect(),
            body: serde_json::from_slice(&raw).unwrap_or_default(),
            boundary: header("content-type")
                .and_then(|t| Some(t.strip_prefix("multipart/form-data; boundary=")?.to_owned())),
            raw,
            if_match: header("if-match"),
            properties: header("x-incus-properties").or_else(|| header("x-lxd-properties")),
        }
    }
    pub fn project(&self) -> &str {
        self.query.get("project").map_or("default", String::as_str)
    }
    pub fn all_projects(&self) -> bool {
        self.query.get("all-projects").is_some_and(|v| v == "true")
    }
    pub fn recursion(&self) -> u8 {
        self.query.get("recursion").and_then(|r| r.parse().ok()).unwrap_or(0)
    }
    pub fn target(&self) -> Option<&str> {
        self.query.get("target").map(String::as_str)
    }
    pub fn text(&self, key: &str) -> String {
        self.body[key].as_str().unwrap_or_default().to_owned()
    }
    /// Refuses with 412 unless the client's ETag matches the object.
    pub fn fits(&self, object: &Value, keys: &[&str]) -> Result<(), Reply> {
        let now = etag(object, keys);
        match &self.if_match {
            Some(then) if then.trim_matches('"') != now.trim_matches('"') => {
                Err(Reply::Refused(412, format!("ETag doesn't match: {now} vs {then}")))
            }
            _ => Ok(()),
        }
    }
}

/// The changeable keys of each kind of object, of which ETags are made.
pub(super) mod writable {
    pub const INSTANCE: &[&str] =
        &["architecture", "config", "devices", "ephemeral", "profiles", "stateful", "description"];
    pub const SNAPSHOT: &[&str] = &["expires_at"];
    pub const MEMBER: &[&str] = &["roles", "failure_domain", "description", "config", "groups"];
    pub const GROUP: &[&str] = &["description", "members"];
    pub const PROJECT: &[&str] = &["config", "description"];
    pub const PROFILE: &[&str] = &["config", "description", "devices"];
    pub const IMAGE: &[&str] = &["auto_update", "properties", "public", "expires_at", "profiles"];
    pub const ALIAS: &[&str] = &["description", "target", "name"];
    pub const POOL: &[&str] = &["name", "driver", "config"];
    pub const SERVER: &[&str] = &["config"];
}

/// Whether the version in Debian has this extension; the fake's default.
pub(super) fn debian_has(dialect: Dialect, feature: Feature) -> bool {
    match dialect {
        Dialect::Incus => !matches!(feature, Feature::RefreshMigration),
        Dialect::Lxd => !matches!(
            feature,
            Feature::MemberState
                | Feature::EvacuationMode
                | Feature::Rebuild
                | Feature::MoveConfig
                | Feature::CreateStart
                | Feature::PlacementScriptlet
                | Feature::ImagesAllProjects
                | Feature::ProfilesAllProjects
                | Feature::NetworksAllProjects
                | Feature::OperationsAllProjects
        ),
    }
}

pub(super) fn answer(shared: &Arc<Shared>, asked: &Asked) -> Reply {
    let segments: Vec<&str> = asked.segments.iter().map(String::as_str).collect();
    // A missing project is reported before anything else, except where the list is empty instead.
    match (asked.method.as_str(), segments.as_slice()) {
        (_, ["events"]) => Reply::Events {
            kinds: asked
                .query
                .get("type")
                .map(|k| k.split(',').map(str::to_owned).collect())
                .unwrap_or_default(),
            project: (!asked.all_projects()).then(|| asked.project().to_owned()),
        },
        ("GET", []) => {
            let server = shared.lock().world.server();
            let tag = etag(&server, writable::SERVER);
            Reply::Tagged(server, tag)
        }
        ("PUT" | "PATCH", []) => {
            let mut inner = shared.lock();
            if let Err(refused) = asked.fits(&inner.world.server(), writable::SERVER) {
                return refused;
            }
            let config = config_of(&asked.body);
            if asked.method == "PUT" {
                inner.world.config.retain(|key, _| key.starts_with("user."));
            }
            inner.world.config.extend(config);
            inner.world.config.retain(|_, value| !value.is_empty());
            done()
        }
        (method, ["operations", rest @ ..]) => operation(shared, method, rest, asked),
        (method, ["warnings", rest @ ..]) => warning(shared, method, rest, asked),
        (_, ["cluster", ..] | ["resources"] | ["storage-pools", ..]) => {
            cluster::answer(shared, asked, &segments)
        }
        (_, ["images", ..]) => images::answer(shared, asked, &segments),
        (_, ["instances", ..]) => instances::answer(shared, asked, &segments),
        (_, ["projects" | "profiles" | "networks", ..]) => projects::answer(shared, asked, &segments),
        _ => refuse(404, "not found"),
    }
}

fn operation(shared: &Arc<Shared>, method: &str, rest: &[&str], asked: &Asked) -> Reply {
    let inner = shared.lock();
    let gone = || refuse(404, "Operation not found");
    match (method, rest) {
        ("GET", []) => {
            let mut by_status: BTreeMap<String, Vec<Value>> = BTreeMap::new();
            for o in inner.operations.values() {
                if asked.all_projects() || o.project == asked.project() {
                    let now = o.state.borrow().clone();
                    let status = now["status"].as_str().unwrap_or_default().to_lowercase();
                    by_status.entry(status).or_default().push(now);
                }
            }
            Reply::Done(json!(by_status))
        }
        ("GET", [id]) => {
            inner.operations.get(*id).map_or_else(gone, |o| Reply::Done(o.state.borrow().clone()))
        }
        ("GET", [id, "wait"]) => {
            let timeout = asked.query.get("timeout").and_then(|t| t.parse().ok()).map(Duration::from_secs);
            Reply::Wait { id: (*id).to_owned(), timeout }
        }
        ("DELETE", [id]) => match inner.operations.get(*id) {
            None => gone(),
            Some(o) => match &o.cancel {
                Some(cancel) if !operations::ended(&o.state.borrow()) => {
                    let _ = cancel.send(true);
                    done()
                }
                _ => refuse(400, "This operation can't be cancelled"),
            },
        },
        _ => refuse(404, "not found"),
    }
}

fn warning(shared: &Arc<Shared>, method: &str, rest: &[&str], asked: &Asked) -> Reply {
    let mut inner = shared.lock();
    let missing = || refuse(404, "Warning not found");
    match (method, rest) {
        ("GET", []) => Reply::Done(inner.world.warnings.values().cloned().collect()),
        ("GET", [uuid]) => inner.world.warnings.get(*uuid).map_or_else(missing, |w| Reply::Done(w.clone())),
        ("PUT", [uuid]) => match inner.world.warnings.get_mut(*uuid) {
            None => missing(),
            Some(w) => {
                w["status"] = asked.body["status"].clone();
                done()
            }
        },
        ("DELETE", [uuid]) => {
            if inner.world.warnings.remove(*uuid).is_some() {
                done()
            } else {
                missing()
            }
        }
        _ => refuse(404, "not found"),
    }
}

pub(super) fn done() -> Reply {
    Reply::Done(json!({}))
}
pub(super) fn refuse(code: u16, message: impl Into<String>) -> Reply {
    Reply::Refused(code, message.into())
}
/// An object with its ETag, or 404 with this message.
pub(super) fn tagged(object: Option<Value>, keys: &[&str], missing: &str) -> Reply {
    match object {
        Some(object) => {
            let tag = etag(&object, keys);
            Reply::Tagged(object, tag)
        }
        None => refuse(404, missing),
    }
}
/// A list of objects, or of their paths.
pub(super) fn listed(recursion: u8, objects: impl Iterator<Item = (String, Option<Value>)>) -> Reply {
    if recursion == 0 {
        return Reply::Done(objects.map(|(path, _)| Value::from(path)).collect());
    }
    Reply::Done(objects.filter_map(|(_, object)| object).collect())
}
pub(super) fn begin(shared: &Arc<Shared>, work: Work) -> Reply {
    Reply::Begun(operations::begin(shared, work))
}
pub(super) fn on_instance(
    description: &'static str,
    project: &str,
    name: &str,
    tells: Vec<(&'static str, String)>,
    effect: impl FnOnce(&mut World) -> Result<Value, String> + Send + 'static,
) -> Work {
    let path = super::model::instance_path(project, name);
    Work {
        description,
        project: project.to_owned(),
        resources: BTreeMap::from([("instances", vec![path])]),
        claims: vec![(project.to_owned(), name.to_owned())],
        may_cancel: false,
        effect: Box::new(effect),
        tells,
    }
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(if bytes[at] == b'+' { b' ' } else { bytes[at] });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
