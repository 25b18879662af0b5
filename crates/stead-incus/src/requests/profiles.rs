//! Profiles.

use crate::{
    Request,
    request::encode,
    types::{Config, Devices},
};
use serde_json::json;

/// One profile.
pub fn get(project: &str, name: &str) -> Request {
    Request::get(format!("/1.0/profiles/{}", encode(name))).query("project", project)
}
/// Makes a profile.
pub fn create(project: &str, name: &str, config: &Config, devices: &Devices, description: &str) -> Request {
    Request::post(
        "/1.0/profiles",
        &json!({ "name": name, "config": config, "devices": devices, "description": description }),
    )
    .query("project", project)
}
/// Replaces a profile; `etag` from [`get`].
pub fn update(
    project: &str,
    name: &str,
    config: &Config,
    devices: &Devices,
    description: &str,
    etag: Option<String>,
) -> Request {
    Request::put(
        format!("/1.0/profiles/{}", encode(name)),
        &json!({ "config": config, "devices": devices, "description": description }),
    )
    .query("project", project)
    .if_match(etag)
}
/// All profiles of a project.
pub fn list(project: &str) -> Request {
    Request::get("/1.0/profiles?recursion=1").query("project", project)
}
/// Changes the settings and devices given, leaves the others.
pub fn patch(project: &str, name: &str, config: &Config, devices: &Devices) -> Request {
    Request::patch(
        format!("/1.0/profiles/{}", encode(name)),
        &json!({ "config": config, "devices": devices }),
    )
    .query("project", project)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::shown;

    #[test]
    fn requests() {
        let devices = Devices::from([("root".into(), Config::from([("type".into(), "disk".into())]))]);
        assert_eq!(
            shown(&update("default", "default", &Config::new(), &devices, "d", None)),
            r#"PUT /1.0/profiles/default?project=default {"config":{},"devices":{"root":{"type":"disk"}},"description":"d"}"#
        );
    }
}
