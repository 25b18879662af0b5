//! Networks managed by the engine.

use super::Scope;
use crate::{
    ETag, Feature, Request,
    request::encode,
    types::{Config, NetworkPut},
};
use serde_json::json;

/// All networks.
pub fn list(scope: Scope<'_>) -> Request {
    scope.of(Request::get("/1.0/networks?recursion=1"), Feature::NetworksAllProjects)
}
/// One network.
pub fn get(project: &str, name: &str) -> Request {
    Request::get(path(name)).query("project", project)
}
/// Creates a network.
pub fn create(project: &str, name: &str, kind: &str, config: &Config, description: &str) -> Request {
    Request::post(
        "/1.0/networks",
        &json!({ "name": name, "type": kind, "config": config, "description": description }),
    )
    .query("project", project)
}
/// Replaces a network's settings; `etag` from [`get`].
pub fn update(project: &str, name: &str, network: &NetworkPut, etag: ETag) -> Request {
    Request::put(path(name), network, etag).query("project", project)
}
/// A network's addresses and traffic, on the member that answers or on `target`.
pub fn state(project: &str, name: &str, target: Option<&str>) -> Request {
    Request::get(format!("{}/state", path(name)))
        .query("project", project)
        .query_if("target", target)
        .needs(Feature::NetworkState)
}
/// The addresses a network has leased.
pub fn leases(project: &str, name: &str) -> Request {
    Request::get(format!("{}/leases", path(name))).query("project", project).needs(Feature::NetworkLeases)
}
/// Deletes an unused network.
pub fn delete(project: &str, name: &str) -> Request {
    Request::delete(path(name)).query("project", project)
}
/// Changes only the given settings.
pub fn patch(project: &str, name: &str, config: &Config) -> Request {
    Request::patch(path(name), &json!({ "config": config })).query("project", project)
}

fn path(name: &str) -> String {
    format!("/1.0/networks/{}", encode(name))
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
