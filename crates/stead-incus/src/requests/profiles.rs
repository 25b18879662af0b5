//! Profiles.

use super::Scope;
use crate::{
    ETag, Feature, Request,
    request::encode,
    types::{Config, Devices, ProfilePut},
};
use serde_json::json;

/// One profile.
pub fn get(project: &str, name: &str) -> Request {
    Request::get(path(name)).query("project", project)
}
/// Creates a profile.
pub fn create(project: &str, name: &str, config: &Config, devices: &Devices, description: &str) -> Request {
    Request::post(
        "/1.0/profiles",
        &json!({ "name": name, "config": config, "devices": devices, "description": description }),
    )
    .query("project", project)
}
/// Replaces a profile; `etag` from [`get`].
pub fn update(project: &str, name: &str, profile: &ProfilePut, etag: ETag) -> Request {
    Request::put(path(name), profile, etag).query("project", project)
}
/// Renames a profile.
pub fn rename(project: &str, name: &str, new_name: &str) -> Request {
    Request::post(path(name), &json!({ "name": new_name })).query("project", project)
}
/// Deletes an unused profile.
pub fn delete(project: &str, name: &str) -> Request {
    Request::delete(path(name)).query("project", project)
}
/// All profiles.
pub fn list(scope: Scope<'_>) -> Request {
    scope.of(Request::get("/1.0/profiles?recursion=1"), Feature::ProfilesAllProjects)
}
/// Changes only the given settings and devices.
pub fn patch(project: &str, name: &str, config: &Config, devices: &Devices) -> Request {
    Request::patch(path(name), &json!({ "config": config, "devices": devices })).query("project", project)
}

fn path(name: &str) -> String {
    format!("/1.0/profiles/{}", encode(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::shown;

    #[test]
    fn requests() {
        let devices = Devices::from([("root".into(), Config::from([("type".into(), "disk".into())]))]);
        assert_eq!(
            shown(&update(
                "default",
                "default",
                &ProfilePut { devices, description: "d".into(), ..ProfilePut::default() },
                ETag::new("e")
            )),
            r#"PUT /1.0/profiles/default?project=default {"config":{},"description":"d","devices":{"root":{"type":"disk"}}}"#
        );
    }
}
