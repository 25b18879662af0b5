//! Storage pools and their volumes.

use super::Scope;
use crate::{
    ETag, Feature, Request,
    request::encode,
    types::{Config, StoragePoolPut, VolumePut},
};
use serde_json::json;

/// All pools.
pub fn pools() -> Request {
    Request::get("/1.0/storage-pools?recursion=1")
}
/// One pool.
pub fn pool(name: &str) -> Request {
    Request::get(path(name))
}
/// Creates a pool.
pub fn create_pool(name: &str, driver: &str, config: &Config, description: &str) -> Request {
    Request::post(
        "/1.0/storage-pools",
        &json!({ "name": name, "driver": driver, "config": config, "description": description }),
    )
}
/// Replaces a pool's settings; `etag` from [`pool`]. It is none only for LXD 5.0, which sends none for pools.
pub fn update_pool(name: &str, pool: &StoragePoolPut, etag: Option<ETag>) -> Request {
    match etag {
        Some(etag) => Request::put(path(name), pool, etag),
        None => Request::put_untagged(path(name), pool),
    }
}
/// A pool's space on the member that answers, or on `target`.
pub fn pool_space(name: &str, target: Option<&str>) -> Request {
    Request::get(format!("{}/resources", path(name))).query_if("target", target)
}
/// Deletes an unused pool.
pub fn delete_pool(name: &str) -> Request {
    Request::delete(path(name))
}
/// Changes only the given settings.
pub fn patch_pool(name: &str, config: &Config) -> Request {
    Request::patch(path(name), &json!({ "config": config }))
}

/// Volumes of a pool, of every member and kind.
pub fn volumes(pool: &str, scope: Scope<'_>) -> Request {
    let list = Request::get(format!("{}/volumes?recursion=1", path(pool)));
    scope.of(list, Feature::VolumesAllProjects)
}
/// One volume. `kind` is `custom`, `container`, …; `target` is the member that holds it, needed for local storage.
pub fn volume(pool: &str, project: &str, kind: &str, name: &str, target: Option<&str>) -> Request {
    Request::get(volume_path(pool, kind, name)).query("project", project).query_if("target", target)
}
/// Creates an empty custom volume. `content_type` is `filesystem` or `block`.
pub fn create_volume(
    pool: &str,
    project: &str,
    name: &str,
    content_type: &str,
    config: &Config,
    target: Option<&str>,
) -> Request {
    Request::post(
        format!("{}/volumes/custom", path(pool)),
        &json!({ "name": name, "content_type": content_type, "config": config, "description": "" }),
    )
    .query("project", project)
    .query_if("target", target)
}
/// Replaces a volume's settings; `etag` from [`volume`].
pub fn update_volume(
    pool: &str,
    project: &str,
    kind: &str,
    name: &str,
    target: Option<&str>,
    volume: &VolumePut,
    etag: ETag,
) -> Request {
    Request::put(volume_path(pool, kind, name), volume, etag)
        .query("project", project)
        .query_if("target", target)
}
/// Space used by a volume.
pub fn volume_state(pool: &str, project: &str, kind: &str, name: &str, target: Option<&str>) -> Request {
    Request::get(format!("{}/state", volume_path(pool, kind, name)))
        .query("project", project)
        .query_if("target", target)
        .needs(Feature::VolumeState)
}
/// Deletes an unused volume.
pub fn delete_volume(pool: &str, project: &str, kind: &str, name: &str, target: Option<&str>) -> Request {
    Request::delete(volume_path(pool, kind, name)).query("project", project).query_if("target", target)
}

fn path(name: &str) -> String {
    format!("/1.0/storage-pools/{}", encode(name))
}
fn volume_path(pool: &str, kind: &str, name: &str) -> String {
    format!("{}/volumes/{}/{}", path(pool), encode(kind), encode(name))
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
        assert_eq!(
            shown(&pool_space("default", Some("node2"))),
            "GET /1.0/storage-pools/default/resources?target=node2"
        );
        assert_eq!(
            shown(&volumes("default", Scope::Project("p"))),
            "GET /1.0/storage-pools/default/volumes?recursion=1&project=p"
        );
        assert_eq!(
            shown(&delete_volume("default", "p", "custom", "data", Some("node2"))),
            "DELETE /1.0/storage-pools/default/volumes/custom/data?project=p&target=node2"
        );
    }
}
