//! The server itself.

use crate::{ETag, Feature, Request, types::Config};
use serde_json::json;

/// The server's settings, version and extensions.
pub fn get() -> Request {
    Request::get("/1.0")
}
/// The same with the settings specific to `member`.
pub fn get_of(member: &str) -> Request {
    get().query("target", member)
}
/// Changes only the given settings. An empty value removes a setting.
pub fn patch_config(config: &Config) -> Request {
    Request::patch("/1.0", &json!({ "config": config }))
}
/// Changes settings specific to `member`.
pub fn patch_config_of(member: &str, config: &Config) -> Request {
    patch_config(config).query("target", member)
}
/// Replaces all settings; `etag` from [`get`]. `user.*` settings stay unless given with an empty value.
pub fn put_config(config: &Config, etag: ETag) -> Request {
    Request::put("/1.0", &json!({ "config": config }), etag)
}
/// Hardware resources of the server, or of `member` of its cluster.
pub fn resources(member: Option<&str>) -> Request {
    Request::get("/1.0/resources").query_if("target", member).needs(Feature::Resources)
}
/// Measurements of the server that answers, or of `member`, and of the instances on it. The answer is OpenMetrics text,
/// not an envelope.
pub fn metrics(project: Option<&str>, member: Option<&str>) -> Request {
    Request::get("/1.0/metrics")
        .query_if("project", project)
        .query_if("target", member)
        .needs(Feature::Metrics)
}
/// Runs SQL on one of the engine's databases (`local` or `global`), as `admin sql` does. Unix socket only. The API has no
/// other way to see a member that began to join and never finished.
pub fn sql(database: &str, query: &str) -> Request {
    Request::post("/internal/sql", &json!({ "database": database, "query": query }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::shown;

    #[test]
    fn requests() {
        let c = Config::from([("core.https_address".into(), "10.0.0.1:8443".into())]);
        assert_eq!(
            shown(&patch_config(&c)),
            r#"PATCH /1.0 {"config":{"core.https_address":"10.0.0.1:8443"}}"#
        );
        let put = put_config(&c, ETag::new("e"));
        assert_eq!((put.method().as_str(), put.etag().map(ETag::as_str)), ("PUT", Some("e")));
        assert_eq!(shown(&resources(Some("node2"))), "GET /1.0/resources?target=node2");
    }
}
