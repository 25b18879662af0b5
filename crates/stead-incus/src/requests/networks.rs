//! Networks the engine makes.

use crate::{Request, request::encode, types::Config};
use serde_json::json;

/// All networks of a project.
pub fn list(project: &str) -> Request {
    Request::get("/1.0/networks?recursion=1").query("project", project)
}
/// One network.
pub fn get(project: &str, name: &str) -> Request {
    Request::get(format!("/1.0/networks/{}", encode(name))).query("project", project)
}
/// Makes a network.
pub fn create(project: &str, name: &str, kind: &str, config: &Config, description: &str) -> Request {
    Request::post(
        "/1.0/networks",
        &json!({ "name": name, "type": kind, "config": config, "description": description }),
    )
    .query("project", project)
}
/// Replaces a network's settings; `etag` from [`get`].
pub fn update(
    project: &str,
    name: &str,
    config: &Config,
    description: &str,
    etag: Option<String>,
) -> Request {
    Request::put(
        format!("/1.0/networks/{}", encode(name)),
        &json!({ "config": config, "description": description }),
    )
    .query("project", project)
    .if_match(etag)
}
/// Deletes an unused network.
pub fn delete(project: &str, name: &str) -> Request {
    Request::delete(format!("/1.0/networks/{}", encode(name))).query("project", project)
}
/// Changes the settings given, leaves the others.
pub fn patch(project: &str, name: &str, config: &Config) -> Request {
    Request::patch(format!("/1.0/networks/{}", encode(name)), &json!({ "config": config }))
        .query("project", project)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::shown;

    #[test]
    fn requests() {
        assert_eq!(
            shown(&create("default", "lan", "bridge", &Config::new(), "")),
            r#"POST /1.0/networks?project=default {"name":"lan","type":"bridge","config":{},"description":""}"#
        );
        assert_eq!(shown(&get("p", "lan")), "GET /1.0/networks/lan?project=p");
    }
}
