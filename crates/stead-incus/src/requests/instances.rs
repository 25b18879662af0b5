//! Instances: listing, creating, changing, moving, snapshots.

use super::Scope;
use crate::{
    ETag, Feature, Request,
    request::encode,
    types::{Config, Devices, InstanceKind, InstancePut},
};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Level of detail in a list of instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Detail {
    /// Settings only.
    Settings,
    /// Also state and snapshots. This is expensive: the server asks every member, and every member its instances.
    #[default]
    State,
}

/// All instances of all projects, with their states.
pub fn list_all() -> Request {
    list(Scope::AllProjects, Detail::State, None)
}
/// Instances. `filter` is in the server's filter language: `status eq Running and config.user.group eq web`.
pub fn list(scope: Scope<'_>, detail: Detail, filter: Option<&str>) -> Request {
    let recursion = match detail {
        Detail::Settings => "1",
        Detail::State => "2",
    };
    scope
        .of(Request::get("/1.0/instances").query("recursion", recursion), Feature::InstancesAllProjects)
        .query_if("filter", filter)
        .needs_if(filter.is_some(), Feature::Filter)
}
/// One instance; the answer has an ETag.
pub fn get(project: &str, name: &str) -> Request {
    Request::get(path(name, "")).query("project", project)
}
/// One instance with its state and snapshots. The answer has the same ETag as that of [`get`].
pub fn get_full(project: &str, name: &str) -> Request {
    Request::get(path(name, "")).query("recursion", "1").query("project", project)
}
/// Replaces an instance's settings.
pub fn update(project: &str, name: &str, instance: &InstancePut, etag: ETag) -> Request {
    Request::put(path(name, ""), instance, etag).query("project", project)
}
/// Changes only the given settings and devices. The description is always sent, because the servers treat a missing one as
/// empty; [`Client::patch_instance`](crate::Client::patch_instance) sends the current one.
pub fn patch(
    project: &str,
    name: &str,
    description: &str,
    config: &Config,
    devices: &Devices,
    etag: Option<ETag>,
) -> Request {
    let body = json!({ "description": description, "config": config, "devices": devices });
    Request::patch(path(name, ""), &body).if_match(etag).query("project", project)
}

/// Source of a new instance.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum InstanceSource {
    /// No source: an empty root disk.
    #[default]
    Empty,
    /// A local image by an alias.
    Alias(String),
    /// A local image by its fingerprint or a prefix of it.
    Fingerprint(String),
    /// An instance of this server or cluster, or one of its snapshots (`name/snapshot`).
    Copy {
        /// Name of the instance or snapshot.
        name: String,
        /// Its project, if it differs from the new instance's.
        project: Option<String>,
        /// Leave out its snapshots.
        instance_only: bool,
        /// Bring an earlier copy up to date instead of creating one.
        refresh: bool,
        /// Do not fail when files vanish during the copy.
        allow_inconsistent: bool,
    },
}

impl InstanceSource {
    fn body(&self) -> Value {
        match self {
            Self::Empty => json!({ "type": "none" }),
            Self::Alias(alias) => json!({ "type": "image", "alias": alias }),
            Self::Fingerprint(f) => json!({ "type": "image", "fingerprint": f }),
            Self::Copy { name, project, instance_only, refresh, allow_inconsistent } => {
                let mut body = json!({
                    "type": "copy",
                    "source": name,
                    "instance_only": instance_only,
                    "refresh": refresh,
                    "allow_inconsistent": allow_inconsistent,
                });
                if let Some(p) = project {
                    body["project"] = p.as_str().into();
                }
                body
            }
        }
    }
    fn needs(&self, request: Request) -> Request {
        match self {
            Self::Empty | Self::Alias(_) | Self::Fingerprint(_) => request,
            Self::Copy { project, instance_only, refresh, allow_inconsistent, .. } => request
                .needs_if(project.is_some(), Feature::ProjectCopy)
                .needs_if(*instance_only, Feature::InstanceOnly)
                .needs_if(*refresh, Feature::RefreshCopy)
                .needs_if(*allow_inconsistent, Feature::InconsistentCopy),
        }
    }
}

/// Parameters of a new instance.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NewInstance {
    /// Its name.
    pub name: String,
    /// Container or virtual machine.
    pub kind: InstanceKind,
    /// What it is created from.
    pub source: InstanceSource,
    /// Settings.
    pub config: Config,
    /// Devices.
    pub devices: Devices,
    /// Profiles in the order they are applied; empty for `default`.
    pub profiles: Vec<String>,
    /// Free-text description.
    pub description: String,
    /// Deleted when it stops.
    pub ephemeral: bool,
    /// Start the instance in the same operation.
    pub start: bool,
}

impl NewInstance {
    /// An instance of a local image.
    pub fn of_image(name: impl Into<String>, alias: impl Into<String>) -> Self {
        Self { name: name.into(), source: InstanceSource::Alias(alias.into()), ..Self::default() }
    }
    pub(crate) fn body(&self, source: Value) -> Map<String, Value> {
        let profiles =
            if self.profiles.is_empty() { vec!["default".to_owned()] } else { self.profiles.clone() };
        let Value::Object(mut body) = json!({
            "name": self.name,
            "type": self.kind,
            "source": source,
            "config": self.config,
            "devices": self.devices,
            "profiles": profiles,
        }) else {
            return Map::new();
        };
        if !self.description.is_empty() {
            body.insert("description".into(), self.description.as_str().into());
        }
        if self.ephemeral {
            body.insert("ephemeral".into(), true.into());
        }
        if self.start {
            body.insert("start".into(), true.into());
        }
        body
    }
}

/// Creates an instance, on `target` (a member or `@group`) if that is given.
pub fn create(project: &str, target: Option<&str>, instance: &NewInstance) -> Request {
    let body = instance.body(instance.source.body());
    let request = Request::post("/1.0/instances", &body)
        .query("project", project)
        .query_if("target", target)
        .needs_if(instance.start, Feature::CreateStart);
    instance.source.needs(request)
}
/// Recreates a stopped instance's root disk.
pub fn rebuild(project: &str, name: &str, source: &InstanceSource) -> Request {
    Request::post(path(name, "/rebuild"), &json!({ "source": source.body() }))
        .query("project", project)
        .needs(Feature::Rebuild)
}
/// Deletes a stopped instance.
pub fn delete(project: &str, name: &str) -> Request {
    Request::delete(path(name, "")).query("project", project)
}
/// Renames a stopped instance.
pub fn rename(project: &str, name: &str, new_name: &str) -> Request {
    Request::post(path(name, ""), &json!({ "name": new_name })).query("project", project)
}

/// Action of [`set_state`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateAction {
    /// Start the instance.
    Start,
    /// Ask it to shut down.
    Stop,
    /// Stop it without asking.
    Kill,
    /// Save the state of its processes and stop it; the next start resumes from that state.
    StopStateful,
    /// Stop and start it.
    Restart,
    /// Pause its processes.
    Freeze,
    /// Resume its processes.
    Unfreeze,
}

/// Current state of an instance.
pub fn state(project: &str, name: &str) -> Request {
    Request::get(path(name, "/state")).query("project", project)
}
/// Starts or stops an instance; `timeout` (whole seconds) limits its shutdown.
pub fn set_state(project: &str, name: &str, action: StateAction, timeout: Duration) -> Request {
    let (action, force, stateful) = match action {
        StateAction::Start => ("start", false, false),
        StateAction::Stop => ("stop", false, false),
        StateAction::Kill => ("stop", true, false),
        StateAction::StopStateful => ("stop", false, true),
        StateAction::Restart => ("restart", false, false),
        StateAction::Freeze => ("freeze", false, false),
        StateAction::Unfreeze => ("unfreeze", false, false),
    };
    let mut body = json!({ "action": action, "force": force, "timeout": timeout.as_secs() });
    if stateful {
        body["stateful"] = true.into();
    }
    Request::put_untagged(path(name, "/state"), &body).query("project", project)
}

/// Target and options of a move within the cluster or server.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Move {
    /// Member or `@group`; none to stay on its member.
    #[serde(skip)]
    pub target: Option<String>,
    /// New name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// New pool for its root disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// New project.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// Move it while it runs, with its processes.
    pub live: bool,
    /// Move it while it runs, by repeated copies; it is stopped only for the last copy and started on the target.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub refresh: bool,
    /// Leave its snapshots behind.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub instance_only: bool,
    /// Do not fail when files vanish during the move.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_inconsistent: bool,
    /// New settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<Config>,
    /// New devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices: Option<Devices>,
    /// New profiles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profiles: Option<Vec<String>>,
}

impl Move {
    /// Moves a stopped instance to a member.
    pub fn to(member: impl Into<String>) -> Self {
        Self { target: Some(member.into()), ..Self::default() }
    }
}

/// Moves an instance. If it runs and neither `live` nor `refresh` is set, Incus refuses; LXD 5.0 shuts it down (30 s),
/// moves it and starts it.
pub fn relocate(project: &str, name: &str, to: &Move) -> Request {
    let mut body = json!(to);
    body["migration"] = true.into();
    if to.name.is_none() {
        // Old LXD requires a name.
        body["name"] = name.into();
    }
    Request::post(path(name, ""), &body)
        .query("project", project)
        .query_if("target", to.target.as_deref())
        .needs_if(to.pool.is_some(), Feature::PoolMove)
        .needs_if(to.project.is_some(), Feature::ProjectMove)
        .needs_if(to.refresh, Feature::RefreshMigration)
        .needs_if(to.instance_only, Feature::InstanceOnly)
        .needs_if(to.allow_inconsistent, Feature::InconsistentMove)
        .needs_if(to.config.is_some() || to.devices.is_some() || to.profiles.is_some(), Feature::MoveConfig)
}

/// Snapshots of an instance.
pub fn snapshots(project: &str, name: &str) -> Request {
    Request::get(path(name, "/snapshots")).query("recursion", "1").query("project", project)
}
/// One snapshot.
pub fn snapshot(project: &str, name: &str, snapshot: &str) -> Request {
    Request::get(snapshot_path(name, snapshot)).query("project", project)
}
/// Creates a snapshot; `stateful` includes the state of the processes. `expires_at` is RFC 3339.
pub fn create_snapshot(
    project: &str,
    name: &str,
    snapshot: &str,
    stateful: bool,
    expires_at: Option<&str>,
) -> Request {
    let mut body = json!({ "name": snapshot, "stateful": stateful });
    if let Some(when) = expires_at {
        body["expires_at"] = when.into();
    }
    Request::post(path(name, "/snapshots"), &body)
        .query("project", project)
        .needs_if(expires_at.is_some(), Feature::SnapshotExpiry)
}
/// Restores an instance to one of its snapshots.
pub fn restore_snapshot(project: &str, name: &str, snapshot: &str, stateful: bool, etag: ETag) -> Request {
    Request::put(path(name, ""), &json!({ "restore": snapshot, "stateful": stateful }), etag)
        .query("project", project)
}
/// Renames a snapshot.
pub fn rename_snapshot(project: &str, name: &str, snapshot: &str, new_name: &str) -> Request {
    Request::post(snapshot_path(name, snapshot), &json!({ "name": new_name })).query("project", project)
}
/// Changes when a snapshot expires (RFC 3339).
pub fn expire_snapshot(project: &str, name: &str, snapshot: &str, expires_at: &str, etag: ETag) -> Request {
    Request::put(snapshot_path(name, snapshot), &json!({ "expires_at": expires_at }), etag)
        .query("project", project)
        .needs(Feature::SnapshotExpiry)
}
/// Deletes a snapshot.
pub fn delete_snapshot(project: &str, name: &str, snapshot: &str) -> Request {
    Request::delete(snapshot_path(name, snapshot)).query("project", project)
}

/// API paths of an instance's log files.
pub fn logs(project: &str, name: &str) -> Request {
    Request::get(path(name, "/logs")).query("project", project)
}
/// One log file; the answer is its bytes, not an envelope.
pub fn log(project: &str, name: &str, file: &str) -> Request {
    Request::get(path(name, &format!("/logs/{}", encode(file)))).query("project", project)
}
/// Log of an instance's console; the answer is bytes, not an envelope.
pub fn console_log(project: &str, name: &str) -> Request {
    Request::get(path(name, "/console")).query("project", project).needs(Feature::ConsoleLog)
}

pub(crate) fn path(name: &str, below: &str) -> String {
    format!("/1.0/instances/{}{below}", encode(name))
}
fn snapshot_path(name: &str, snapshot: &str) -> String {
    path(name, &format!("/snapshots/{}", encode(snapshot)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::shown;

    #[test]
    fn lists() {
        assert_eq!(shown(&list_all()), "GET /1.0/instances?recursion=2&all-projects=true");
        let r = list(Scope::Project("p"), Detail::Settings, Some("status eq Running"));
        assert_eq!(shown(&r), "GET /1.0/instances?recursion=1&project=p&filter=status%20eq%20Running");
        assert_eq!(r.needed(), [Feature::Filter]);
    }

    #[test]
    fn making() {
        assert_eq!(
            shown(&create("default", Some("node2"), &NewInstance::of_image("c1", "debian"))),
            r#"POST /1.0/instances?project=default&target=node2 {"name":"c1","type":"container","source":{"type":"image","alias":"debian"},"config":{},"devices":{},"profiles":["default"]}"#
        );
        let copy = NewInstance {
            name: "c2".into(),
            source: InstanceSource::Copy {
                name: "c1/before".into(),
                project: Some("p".into()),
                instance_only: false,
                refresh: true,
                allow_inconsistent: false,
            },
            start: true,
            ..NewInstance::default()
        };
        let r = create("default", None, &copy);
        assert_eq!(
            shown(&r),
            r#"POST /1.0/instances?project=default {"name":"c2","type":"container","source":{"type":"copy","source":"c1/before","instance_only":false,"refresh":true,"allow_inconsistent":false,"project":"p"},"config":{},"devices":{},"profiles":["default"],"start":true}"#
        );
        assert_eq!(r.needed(), [Feature::CreateStart, Feature::ProjectCopy, Feature::RefreshCopy]);
    }

    #[test]
    fn state() {
        assert_eq!(
            shown(&set_state("default", "c1", StateAction::Kill, Duration::from_secs(30))),
            r#"PUT /1.0/instances/c1/state?project=default {"action":"stop","force":true,"timeout":30}"#
        );
    }

    #[test]
    fn moves() {
        assert_eq!(
            shown(&relocate("default", "c1", &Move::to("node2"))),
            r#"POST /1.0/instances/c1?project=default&target=node2 {"live":false,"migration":true,"name":"c1"}"#
        );
        let r = relocate(
            "default",
            "c1",
            &Move { refresh: true, pool: Some("fast".into()), ..Move::to("node2") },
        );
        assert_eq!(
            shown(&r),
            r#"POST /1.0/instances/c1?project=default&target=node2 {"pool":"fast","live":false,"refresh":true,"migration":true,"name":"c1"}"#
        );
        assert_eq!(r.needed(), [Feature::PoolMove, Feature::RefreshMigration]);
    }

    #[test]
    fn a_snapshot_is_restored_with_an_etag() {
        let r = restore_snapshot("default", "c1", "before", false, ETag::new("e"));
        assert_eq!(
            shown(&r),
            r#"PUT /1.0/instances/c1?project=default {"restore":"before","stateful":false}"#
        );
        assert_eq!(r.etag().unwrap().as_str(), "e");
    }
}
