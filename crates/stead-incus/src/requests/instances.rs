//! Instances.

use crate::{
    Request,
    request::encode,
    types::{Config, Devices},
};
use serde_json::json;

/// All instances of all projects, with their states.
pub fn list_all() -> Request {
    Request::get("/1.0/instances?recursion=2&all-projects=true")
}
/// All instances of one project, with their states.
pub fn list(project: &str) -> Request {
    Request::get("/1.0/instances?recursion=2").query("project", project)
}

/// What an instance is to be.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NewInstance {
    /// Its name.
    pub name: String,
    /// Alias of a local image.
    pub image_alias: String,
    /// Settings.
    pub config: Config,
    /// Devices.
    pub devices: Devices,
    /// Profiles, first applied first; none: `default`.
    pub profiles: Vec<String>,
}

/// Makes an instance, on `target` when that is given.
pub fn create(project: &str, target: Option<&str>, instance: &NewInstance) -> Request {
    let profiles =
        if instance.profiles.is_empty() { vec!["default".to_owned()] } else { instance.profiles.clone() };
    let request = Request::post(
        "/1.0/instances",
        &json!({
            "name": instance.name,
            "type": "container",
            "source": { "type": "image", "alias": instance.image_alias },
            "config": instance.config,
            "devices": instance.devices,
            "profiles": profiles,
        }),
    )
    .query("project", project);
    match target {
        Some(t) => request.query("target", t),
        None => request,
    }
}

/// For [`set_state`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateAction {
    /// Start it.
    Start,
    /// Ask it to shut down.
    Stop,
    /// Do not ask.
    Kill,
    /// Stop and start.
    Restart,
}

/// Starts or stops an instance; `timeout_s` is how long it may take to shut down.
pub fn set_state(project: &str, name: &str, action: StateAction, timeout_s: u32) -> Request {
    let (action, force) = match action {
        StateAction::Start => ("start", false),
        StateAction::Stop => ("stop", false),
        StateAction::Kill => ("stop", true),
        StateAction::Restart => ("restart", false),
    };
    Request::put(
        format!("/1.0/instances/{}/state", encode(name)),
        &json!({ "action": action, "force": force, "timeout": timeout_s }),
    )
    .query("project", project)
}
/// Deletes a stopped instance.
pub fn delete(project: &str, name: &str) -> Request {
    Request::delete(format!("/1.0/instances/{}", encode(name))).query("project", project)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::shown;

    #[test]
    fn requests() {
        assert_eq!(shown(&list_all()), "GET /1.0/instances?recursion=2&all-projects=true");
        let i = NewInstance { name: "c1".into(), image_alias: "debian".into(), ..Default::default() };
        assert_eq!(
            shown(&create("default", Some("node2"), &i)),
            r#"POST /1.0/instances?project=default&target=node2 {"name":"c1","type":"container","source":{"type":"image","alias":"debian"},"config":{},"devices":{},"profiles":["default"]}"#
        );
        assert_eq!(
            shown(&set_state("default", "c1", StateAction::Kill, 30)),
            r#"PUT /1.0/instances/c1/state?project=default {"action":"stop","force":true,"timeout":30}"#
        );
    }
}
