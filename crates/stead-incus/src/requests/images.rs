//! Images and their aliases.

use super::Scope;
use crate::{
    Body, Dialect, ETag, Feature, Part, Request, Source,
    dialect::Header,
    request::{TRANSFER_TIMEOUT, encode},
    types::{Config, ImagePut},
};
use serde_json::{Value, json};
use std::path::Path;

/// All images. `filter` is in the server's filter language: `properties.os eq Debian`.
pub fn list(scope: Scope<'_>, filter: Option<&str>) -> Request {
    scope
        .of(Request::get("/1.0/images?recursion=1"), Feature::ImagesAllProjects)
        .query_if("filter", filter)
        .needs_if(filter.is_some(), Feature::Filter)
}
/// One image, by its fingerprint or a prefix of it.
pub fn get(project: &str, fingerprint: &str) -> Request {
    Request::get(path(fingerprint)).query("project", project)
}
/// Replaces the changeable fields of an image; `etag` from [`get`].
pub fn update(project: &str, fingerprint: &str, image: &ImagePut, etag: ETag) -> Request {
    Request::put(path(fingerprint), image, etag).query("project", project)
}
/// Changes only the given properties.
pub fn patch_properties(project: &str, fingerprint: &str, properties: &Config) -> Request {
    Request::patch(path(fingerprint), &json!({ "properties": properties })).query("project", project)
}
/// Uploads a unified image: one tar with metadata and root. `properties` override those of its metadata.
pub fn upload_unified(dialect: Dialect, project: &str, file: &Path, properties: &Config) -> Request {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let request = Request::upload("/1.0/images", Body::Raw(Source::File(file.to_owned())))
        .header(dialect.header(Header::FileName), name);
    with_properties(dialect, request, properties).query("project", project).within(TRANSFER_TIMEOUT)
}
/// Uploads a split image: a metadata tar and the root as tar or squashfs.
pub fn upload_split(
    dialect: Dialect,
    project: &str,
    metadata: &Path,
    rootfs: &Path,
    properties: &Config,
) -> Request {
    let part = |name, file: &Path| Part {
        name,
        file_name: file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        source: Source::File(file.to_owned()),
    };
    let parts = vec![part("metadata", metadata), part("rootfs", rootfs)];
    with_properties(dialect, Request::upload("/1.0/images", Body::Multipart(parts)), properties)
        .query("project", project)
        .within(TRANSFER_TIMEOUT)
}
fn with_properties(dialect: Dialect, request: Request, properties: &Config) -> Request {
    if properties.is_empty() {
        return request;
    }
    let pairs: Vec<String> =
        properties.iter().map(|(key, value)| format!("{}={}", encode(key), encode(value))).collect();
    request.header(dialect.header(Header::Properties), pairs.join("&"))
}

/// Another server of the same engine, as the source of an image.
#[derive(Clone, PartialEq, Eq)]
pub struct ImageServer {
    /// `https://address:port`.
    pub url: String,
    /// Its certificate, PEM.
    pub certificate: String,
    /// A secret from [`share`], needed for an image that is not public.
    pub secret: Option<String>,
    /// The image's project on that server.
    pub project: String,
}

/// Fetches an image from another server and gives it these aliases.
pub fn fetch(
    dialect: Dialect,
    project: &str,
    from: &ImageServer,
    fingerprint: &str,
    aliases: &[&str],
) -> Request {
    let aliases: Vec<Value> = aliases.iter().map(|a| json!({ "name": a, "description": "" })).collect();
    Request::post(
        "/1.0/images",
        &json!({
            "source": {
                "type": "image",
                "mode": "pull",
                "protocol": dialect.image_protocol(),
                "server": from.url,
                "certificate": from.certificate,
                "fingerprint": fingerprint,
                "secret": from.secret.as_deref().unwrap_or_default(),
                "project": from.project,
            },
            "aliases": aliases,
        }),
    )
    .query("project", project)
    .within(TRANSFER_TIMEOUT)
    .needs_if(!aliases.is_empty(), Feature::ImageAliases)
}
/// Requests a secret with which another server can fetch an image that is not public.
pub fn share(project: &str, fingerprint: &str) -> Request {
    Request::post(format!("{}/secret", path(fingerprint)), &json!({})).query("project", project)
}
/// Publishes a stopped instance or a snapshot (`name/snapshot`) as an image.
pub fn publish(project: &str, instance: &str, properties: &Config, aliases: &[&str]) -> Request {
    let kind = if instance.contains('/') { "snapshot" } else { "instance" };
    let aliases: Vec<Value> = aliases.iter().map(|a| json!({ "name": a, "description": "" })).collect();
    Request::post(
        "/1.0/images",
        &json!({ "source": { "type": kind, "name": instance }, "properties": properties, "aliases": aliases }),
    )
    .query("project", project)
    .within(TRANSFER_TIMEOUT)
    .needs_if(!aliases.is_empty(), Feature::ImageAliases)
}
/// Downloads an image: its file, or both files of a split image as a multipart form; not an envelope.
pub fn export(project: &str, fingerprint: &str) -> Request {
    Request::get(format!("{}/export", path(fingerprint))).query("project", project).within(TRANSFER_TIMEOUT)
}
/// Asks an image's source for a newer version.
pub fn refresh(project: &str, fingerprint: &str) -> Request {
    Request::post(format!("{}/refresh", path(fingerprint)), &json!({}))
        .query("project", project)
        .within(TRANSFER_TIMEOUT)
        .needs(Feature::ImageRefresh)
}
/// Deletes an image.
pub fn delete(project: &str, fingerprint: &str) -> Request {
    Request::delete(path(fingerprint)).query("project", project)
}
/// All aliases.
pub fn aliases(project: &str) -> Request {
    Request::get("/1.0/images/aliases?recursion=1").query("project", project)
}
/// One alias.
pub fn alias(project: &str, name: &str) -> Request {
    Request::get(alias_path(name)).query("project", project)
}
/// Creates an alias for an image.
pub fn create_alias(project: &str, name: &str, fingerprint: &str) -> Request {
    Request::post("/1.0/images/aliases", &json!({ "name": name, "target": fingerprint, "description": "" }))
        .query("project", project)
}
/// Points an alias at another image; `etag` from [`alias`].
pub fn update_alias(project: &str, name: &str, fingerprint: &str, etag: ETag) -> Request {
    Request::put(alias_path(name), &json!({ "target": fingerprint, "description": "" }), etag)
        .query("project", project)
}
/// Renames an alias.
pub fn rename_alias(project: &str, name: &str, new_name: &str) -> Request {
    Request::post(alias_path(name), &json!({ "name": new_name })).query("project", project)
}
/// Deletes an alias.
pub fn delete_alias(project: &str, name: &str) -> Request {
    Request::delete(alias_path(name)).query("project", project)
}

fn path(fingerprint: &str) -> String {
    format!("/1.0/images/{}", encode(fingerprint))
}
fn alias_path(name: &str) -> String {
    format!("/1.0/images/aliases/{}", encode(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::shown;

    #[test]
    fn requests() {
        let properties = Config::from([("os".into(), "A & B".into())]);
        let (meta, root) = (Path::new("/a/meta.tar"), Path::new("/a/root.squashfs"));
        let split = upload_split(Dialect::Lxd, "default", meta, root, &properties);
        assert_eq!(split.headers(), [("X-LXD-properties", "os=A%20%26%20B".to_owned())]);
        assert_eq!(shown(&split), "POST /1.0/images?project=default (bytes)");
        let Body::Multipart(parts) = split.body() else { panic!("not multipart") };
        assert_eq!(
            parts.iter().map(|p| (p.name, p.file_name.as_str())).collect::<Vec<_>>(),
            [("metadata", "meta.tar"), ("rootfs", "root.squashfs")]
        );
        assert_eq!(
            shown(&create_alias("default", "debian/12", "f00")),
            r#"POST /1.0/images/aliases?project=default {"name":"debian/12","target":"f00","description":""}"#
        );
        assert_eq!(
            shown(&alias("default", "debian/12")),
            "GET /1.0/images/aliases/debian%2F12?project=default"
        );
    }
}
