//! Files in instances, and their log files on the server.

use super::{Client, contents, open, shape};
use crate::{
    Error,
    dialect::Header,
    requests::{
        files::{self, Attributes, NewFile},
        instances,
    },
};
use bytes::Bytes;

/// A file, link or directory in an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStat {
    /// User id of the owner.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
    /// Its kind and contents.
    pub kind: FileKind,
}

/// Part of [`FileStat`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileKind {
    /// A file's contents.
    File(Bytes),
    /// The target of a symbolic link.
    Symlink(String),
    /// Names in a directory.
    Directory(Vec<String>),
}

impl Client {
    /// Reads the file, link or directory at a path in an instance, at most `limit_bytes`.
    ///
    /// # Errors
    /// As [`Self::send`]; [`Error::TooLong`].
    pub async fn read_file(
        &self,
        project: &str,
        instance: &str,
        path: &str,
        limit_bytes: u64,
    ) -> Result<FileStat, Error> {
        let request = files::get(project, instance, path).at_most(limit_bytes);
        let answer = self.raw(&request).await?;
        let header = |h: Header| answer.header(self.dialect().header(h)).unwrap_or_default();
        let kind = match header(Header::Kind) {
            "directory" => {
                let names = contents(open(&request, &answer)?);
                FileKind::Directory(shape::<Option<Vec<String>>>(&request, names)?.unwrap_or_default())
            }
            "symlink" => FileKind::Symlink(String::from_utf8_lossy(&answer.body).into_owned()),
            _ => FileKind::File(answer.body.clone()),
        };
        Ok(FileStat {
            uid: header(Header::Uid).parse().unwrap_or_default(),
            gid: header(Header::Gid).parse().unwrap_or_default(),
            mode: u32::from_str_radix(header(Header::Mode), 8).unwrap_or_default(),
            kind,
        })
    }
    /// Writes a file, directory or link in an instance. An existing one keeps its owner and permissions.
    pub async fn write_file(
        &self,
        project: &str,
        instance: &str,
        path: &str,
        new: &NewFile,
        attributes: Attributes,
    ) -> Result<(), Error> {
        let request = files::put(self.dialect(), project, instance, path, new, attributes)
            .within(super::TRANSFER_TIMEOUT);
        self.send(&request).await.map(drop)
    }
    /// Deletes a file or an empty directory in an instance.
    pub async fn delete_file(&self, project: &str, instance: &str, path: &str) -> Result<(), Error> {
        self.send(&files::delete(project, instance, path)).await.map(drop)
    }
    /// Names of an instance's log files.
    pub async fn instance_logs(&self, project: &str, instance: &str) -> Result<Vec<String>, Error> {
        let paths: Vec<String> = self.list(&instances::logs(project, instance)).await?;
        let name = |path: &String| path.rsplit('/').next().unwrap_or_default().to_owned();
        Ok(paths.iter().map(name).collect())
    }
    /// One of an instance's log files, at most `limit_bytes`.
    pub async fn instance_log(
        &self,
        project: &str,
        instance: &str,
        file: &str,
        limit_bytes: u64,
    ) -> Result<Bytes, Error> {
        Ok(self.raw(&instances::log(project, instance, file).at_most(limit_bytes)).await?.body)
    }
    /// Log of an instance's console, at most `limit_bytes`.
    pub async fn console_log(&self, project: &str, instance: &str, limit_bytes: u64) -> Result<Bytes, Error> {
        Ok(self.raw(&instances::console_log(project, instance).at_most(limit_bytes)).await?.body)
    }
}
