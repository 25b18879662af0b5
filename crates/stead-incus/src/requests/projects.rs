//! Projects.

use crate::{Request, request::encode, types::Config};
use serde_json::json;

/// One project.
pub fn get(name: &str) -> Request {
    Request::get(format!("/1.0/projects/{}", encode(name)))
}
/// Makes a project.
pub fn create(name: &str, config: &Config, description: &str) -> Request {
    Request::post("/1.0/projects", &json!({ "name": name, "config": config, "description": description }))
}
/// Replaces a project's settings; `etag` from [`get`].
pub fn update(name: &str, config: &Config, description: &str, etag: Option<String>) -> Request {
    Request::put(
        format!("/1.0/projects/{}", encode(name)),
        &json!({ "config": config, "description": description }),
    )
    .if_match(etag)
}
/// All projects.
pub fn list() -> Request {
    Request::get("/1.0/projects?recursion=1")
}
/// Changes the settings given, leaves the others.
pub fn patch(name: &str, config: &Config) -> Request {
    Request::patch(format!("/1.0/projects/{}", encode(name)), &json!({ "config": config }))
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
