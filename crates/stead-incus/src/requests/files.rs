//! Files in instances.

use super::instances::path as instance;
use crate::{Body, Dialect, Feature, Request, Source, dialect::Header};
use bytes::Bytes;

/// Owner and permissions of a new file. The servers do not change those of an existing file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes {
    /// User id; none for root.
    pub uid: Option<u32>,
    /// Group id; none for root.
    pub gid: Option<u32>,
    /// Permission bits, as `0o755`; none for the server's default.
    pub mode: Option<u32>,
}

/// A file, link or directory to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewFile {
    /// A file with these contents; replaces those of an existing file.
    File(Source),
    /// Bytes to append to a file.
    Append(Source),
    /// A directory; it may exist already.
    Directory,
    /// A symbolic link to this target.
    Symlink(String),
}

/// Reads a path. The answer is a file's contents (bytes), a link's target (bytes) or the names in a directory (an
/// envelope); the headers say which.
pub fn get(project: &str, name: &str, path: &str) -> Request {
    file(Request::get(instance(name, "/files")), project, path)
}
/// Writes a file, directory or link.
pub fn put(
    dialect: Dialect,
    project: &str,
    name: &str,
    path: &str,
    new: &NewFile,
    attributes: Attributes,
) -> Request {
    let (kind, write, source, feature) = match new {
        NewFile::File(source) => ("file", "overwrite", source.clone(), None),
        NewFile::Append(source) => ("file", "append", source.clone(), Some(Feature::FileAppend)),
        NewFile::Directory => {
            ("directory", "overwrite", Source::Bytes(Bytes::new()), Some(Feature::Directories))
        }
        NewFile::Symlink(target) => {
            let target = Source::Bytes(Bytes::from(target.clone()));
            ("symlink", "overwrite", target, Some(Feature::FileSymlinks))
        }
    };
    let mut request = Request::upload(instance(name, "/files"), Body::Raw(source))
        .header(dialect.header(Header::Kind), kind)
        .header(dialect.header(Header::Write), write)
        .header(dialect.header(Header::Uid), attributes.uid.unwrap_or(0).to_string())
        .header(dialect.header(Header::Gid), attributes.gid.unwrap_or(0).to_string());
    if let Some(mode) = attributes.mode {
        request = request.header(dialect.header(Header::Mode), format!("{mode:04o}"));
    }
    if let Some(feature) = feature {
        request = request.needs(feature);
    }
    file(request, project, path)
}
/// Deletes a file or an empty directory.
pub fn delete(project: &str, name: &str, path: &str) -> Request {
    file(Request::delete(instance(name, "/files")), project, path).needs(Feature::FileDelete)
}

fn file(request: Request, project: &str, path: &str) -> Request {
    request.query("path", path).query("project", project)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::shown;

    #[test]
    fn requests() {
        assert_eq!(
            shown(&get("default", "c1", "/etc/os release")),
            "GET /1.0/instances/c1/files?path=%2Fetc%2Fos%20release&project=default"
        );
        let attributes = Attributes { uid: Some(33), gid: None, mode: Some(0o640) };
        let r = put(Dialect::Lxd, "default", "c1", "/d", &NewFile::Directory, attributes);
        let headers: Vec<_> = r.headers().iter().map(|(n, v)| format!("{n}: {v}")).collect();
        assert_eq!(
            headers,
            [
                "X-LXD-type: directory",
                "X-LXD-write: overwrite",
                "X-LXD-uid: 33",
                "X-LXD-gid: 0",
                "X-LXD-mode: 0640"
            ]
        );
        assert_eq!(r.needed(), [Feature::Directories]);
    }
}
