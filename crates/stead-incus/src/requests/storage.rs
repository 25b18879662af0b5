//! Storage pools.

use crate::{Request, request::encode, types::Config};
use serde_json::json;

/// All pools.
pub fn pools() -> Request {
    Request::get("/1.0/storage-pools?recursion=1")
}
/// One pool.
pub fn pool(name: &str) -> Request {
    Request::get(format!("/1.0/storage-pools/{}", encode(name)))
}
/// Makes a pool.
pub fn create_pool(name: &str, driver: &str, config: &Config, description: &str) -> Request {
    Request::post(
        "/1.0/storage-pools",
        &json!({ "name": name, "driver": driver, "config": config, "description": description }),
    )
}
/// Replaces a pool's settings; `etag` from [`pool`].
pub fn update_pool(name: &str, config: &Config, description: &str, etag: Option<String>) -> Request {
    Request::put(
        format!("/1.0/storage-pools/{}", encode(name)),
        &json!({ "config": config, "description": description }),
    )
    .if_match(etag)
}
/// Deletes an unused pool.
pub fn delete_pool(name: &str) -> Request {
    Request::delete(format!("/1.0/storage-pools/{}", encode(name)))
}
/// Changes the settings given, leaves the others.
pub fn patch_pool(name: &str, config: &Config) -> Request {
    Request::patch(format!("/1.0/storage-pools/{}", encode(name)), &json!({ "config": config }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::shown;

    #[test]
    fn requests() {
        let c = Config::from([("source".into(), "/dev/vdb".into())]);
        assert_eq!(
            shown(&create_pool("default", "btrfs", &c, "")),
            r#"POST /1.0/storage-pools {"name":"default","driver":"btrfs","config":{"source":"/dev/vdb"},"description":""}"#
        );
        assert_eq!(shown(&delete_pool("default")), "DELETE /1.0/storage-pools/default");
    }
}
