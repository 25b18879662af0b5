//! The server itself.

use crate::{ETag, Feature, Request, types::Config};
use serde_json::json;

/// What the server is and can do.
pub fn get() -> Request {
    Request::get("/1.0")
}
/// What the server is, with the settings that `member` has for itself.
pub fn get_of(member: &str) -> Request {
    get().query("target", member)
}
/// Changes the settings given, leaves the others. An empty text removes one.
pub fn patch_config(config: &Config) -> Request {
    Request::patch("/1.0", &json!({ "config": config }))
}
/// Changes settings that `member` has for itself.
pub fn patch_config_of(member: &str, config: &Config) -> Request {
    patch_config(config).query("target", member)
}
/// Replaces all settings; `etag` from [`get`]. Those of `user.*` stay unless they are given as an empty text.
pub fn put_config(config: &Config, etag: ETag) -> Request {
    Request::put("/1.0", &json!({ "config": config }), etag)
}
/// What the server, or `member` of its cluster, has.
pub fn resources(member: Option<&str>) -> Request {
    Request::get("/1.0/resources").query_if("target", member).needs(Feature::Resources)
}
/// Measurements of the instances and of the server, as OpenMetrics; bytes, not an envelope. Of the member that is
/// asked, or of `member`.
pub fn metrics(project: Option<&str>, member: Option<&str>) -> Request {
    Request::get("/1.0/metrics")
        .query_if("project", project)
        .query_if("target", member)
        .needs(Feature::Metrics)
}
/// Runs SQL on one of the engine's databases (`local` or `global`), as its own `admin sql` does. Unix socket only; the
/// API has no other way to see a member that began to join and never finished.
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
