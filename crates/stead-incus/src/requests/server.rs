//! The server itself.

use crate::{Request, types::Config};
use serde_json::json;

/// What the server is and can do.
pub fn get() -> Request {
    Request::get("/1.0")
}
/// Changes the settings given, leaves the others.
pub fn patch_config(config: &Config) -> Request {
    Request::patch("/1.0", &json!({ "config": config }))
}
/// Replaces all settings; `etag` from [`get`].
pub fn put_config(config: &Config, etag: Option<String>) -> Request {
    Request::put("/1.0", &json!({ "config": config })).if_match(etag)
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
        let put = put_config(&c, Some("e".into()));
        assert_eq!((put.method.as_str(), put.etag.as_deref()), ("PUT", Some("e")));
    }
}
