//! Files in instances, and what the server keeps of their logs.

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

/// What there is at a path in an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStat {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permissions.
    pub mode: u32,
    /// What it is, and what is in it.
    pub kind: FileKind,
}

/// Part of [`FileStat`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileKind {
    /// A file's contents.
    File(Bytes),
    /// Where a symbolic link leads.
    Symlink(String),
    /// Names in a directory.
    Directory(Vec<String>),
}

impl Client {
    /// What there is at a path in an instance; a file of at most `limit_bytes`.
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
    /// Puts a file, directory or link into an instance. What is there already keeps its owner and permissions.
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
    /// One of an instance's log files, of at most `limit_bytes`.
    pub async fn instance_log(
        &self,
        project: &str,
        instance: &str,
        file: &str,
        limit_bytes: u64,
    ) -> Result<Bytes, Error> {
        Ok(self.raw(&instances::log(project, instance, file).at_most(limit_bytes)).await?.body)
    }
    /// What an instance's console has shown, at most `limit_bytes` of it.
    pub async fn console_log(&self, project: &str, instance: &str, limit_bytes: u64) -> Result<Bytes, Error> {
        Ok(self.raw(&instances::console_log(project, instance).at_most(limit_bytes)).await?.body)
    }
}
