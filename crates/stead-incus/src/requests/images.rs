//! Images and their aliases.

use crate::{Body, Part, Request, Source, request::encode};
use serde_json::json;
use std::{path::Path, time::Duration};

/// An upload may take this long: a gigabyte over a slow disk, and the server packs it anew.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(1800);

/// All images of a project.
pub fn list(project: &str) -> Request {
    Request::get("/1.0/images?recursion=1").query("project", project)
}
/// Uploads a unified image: one tar with metadata and root.
pub fn upload_unified(project: &str, file: &Path) -> Request {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Request::upload("/1.0/images", Body::Raw(Source::File(file.to_owned())))
        .query("project", project)
        .header("X-Incus-filename", name.clone())
        .header("X-LXD-filename", name)
        .within(UPLOAD_TIMEOUT)
}
/// Uploads a split image: a metadata tar and the root as tar or squashfs.
pub fn upload_split(project: &str, metadata: &Path, rootfs: &Path) -> Request {
    let part = |name, file: &Path| Part {
        name,
        file_name: file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        source: Source::File(file.to_owned()),
    };
    Request::upload("/1.0/images", Body::Multipart(vec![part("metadata", metadata), part("rootfs", rootfs)]))
        .query("project", project)
        .within(UPLOAD_TIMEOUT)
}
/// Deletes an image.
pub fn delete(project: &str, fingerprint: &str) -> Request {
    Request::delete(format!("/1.0/images/{}", encode(fingerprint))).query("project", project)
}
/// What a name stands for.
pub fn alias(project: &str, name: &str) -> Request {
    Request::get(format!("/1.0/images/aliases/{}", encode(name))).query("project", project)
}
/// Names an image.
pub fn create_alias(project: &str, name: &str, fingerprint: &str) -> Request {
    Request::post("/1.0/images/aliases", &json!({ "name": name, "target": fingerprint, "description": "" }))
        .query("project", project)
}
/// Lets a name stand for another image.
pub fn update_alias(project: &str, name: &str, fingerprint: &str) -> Request {
    Request::put(
        format!("/1.0/images/aliases/{}", encode(name)),
        &json!({ "target": fingerprint, "description": "" }),
    )
    .query("project", project)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::shown;

    #[test]
    fn requests() {
        let split = upload_split("default", Path::new("/a/meta.tar"), Path::new("/a/root.squashfs"));
        assert_eq!(shown(&split), "POST /1.0/images?project=default (bytes)");
        let Body::Multipart(parts) = &split.body else { panic!("not multipart") };
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
