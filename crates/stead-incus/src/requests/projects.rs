//! Projects.

use crate::{
    ETag, Feature, Request,
    request::encode,
    types::{Config, ProjectPut},
};
use serde_json::json;

/// One project.
pub fn get(name: &str) -> Request {
    Request::get(path(name))
}
/// Creates a project.
pub fn create(name: &str, config: &Config, description: &str) -> Request {
    Request::post("/1.0/projects", &json!({ "name": name, "config": config, "description": description }))
}
/// Replaces a project's settings; `etag` from [`get`].
pub fn update(name: &str, project: &ProjectPut, etag: ETag) -> Request {
    Request::put(path(name), project, etag)
}
/// Deletes an empty project.
pub fn delete(name: &str) -> Request {
    Request::delete(path(name))
}
/// Usage of a project against its limits.
pub fn state(name: &str) -> Request {
    Request::get(format!("{}/state", path(name))).needs(Feature::ProjectUsage)
}
/// All projects.
pub fn list() -> Request {
    Request::get("/1.0/projects?recursion=1")
}
/// Changes only the given settings.
pub fn patch(name: &str, config: &Config) -> Request {
    Request::patch(path(name), &json!({ "config": config }))
}

fn path(name: &str) -> String {
    format!("/1.0/projects/{}", encode(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::shown;

    #[test]
    fn requests() {
        assert_eq!(
            shown(&create("p", &Config::new(), "")),
            r#"POST /1.0/projects {"name":"p","config":{},"description":""}"#
        );
    }
}
