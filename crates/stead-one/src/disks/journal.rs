//! The undo journal of a VM's disks: one JSON line for each step, written before the step is executed.
//!
//! It is in `/run` and lives as long as the mounts. A line truncated by a crash is the last one, and its step was not
//! begun.

use super::{DiskError, step::Undo};
use crate::ids::DiskId;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};
use stead_os::{PathContext, PathError};

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The disk.
    pub disk: DiskId,
    /// The undo of the step.
    #[serde(flatten)]
    pub undo: Undo,
}

/// The journal of one VM.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    entries: Vec<Entry>,
}

impl Journal {
    /// Opens the journal in `directory`, which is created if it is missing. The first malformed line ends it.
    ///
    /// # Errors
    /// The directory cannot be created or the file cannot be read.
    pub fn open(directory: &Path) -> Result<Self, DiskError> {
        fs::create_dir_all(directory).at("make", directory)?;
        let path = directory.join("journal");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(PathError::new("read", &path)(e).into()),
        };
        let mut journal = Self { path, entries: parse(&text) };
        if !text.is_empty() && !text.ends_with('\n') {
            journal.rewrite()?;
        }
        Ok(journal)
    }
    /// All entries, oldest first.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
    /// Writes an entry; only then may its step be executed.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add(&mut self, disk: DiskId, undo: Undo) -> Result<(), DiskError> {
        let entry = Entry { disk, undo };
        let mut line = serde_json::to_string(&entry).unwrap_or_default();
        line.push('\n');
        let open = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path);
        open.and_then(|mut f| f.write_all(line.as_bytes())).at("write", &self.path)?;
        self.entries.push(entry);
        Ok(())
    }
    /// Removes entries that are undone. The file is deleted with the last one.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn retain(&mut self, keep: impl Fn(&Entry) -> bool) -> Result<(), DiskError> {
        self.entries.retain(|e| keep(e));
        self.rewrite()
    }

    fn rewrite(&mut self) -> Result<(), DiskError> {
        if self.entries.is_empty() {
            return match fs::remove_file(&self.path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    Err(PathError::new("remove", &self.path)(e).into())
                }
                _ => Ok(()),
            };
        }
        let beside = self.path.with_extension("new");
        let write = || {
            let mut file = File::create(&beside)?;
            for entry in &self.entries {
                serde_json::to_writer(&mut file, entry)?;
                file.write_all(b"\n")?;
            }
            fs::rename(&beside, &self.path)
        };
        Ok(write().at("write", &self.path)?)
    }
}

fn parse(text: &str) -> Vec<Entry> {
    text.split_inclusive('\n')
        .map_while(|line| line.strip_suffix('\n').and_then(|l| serde_json::from_str(l).ok()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        journal.add(DiskId(0), Undo::Unmount { at: "/a".into() }).unwrap();
        journal.add(DiskId(1), Undo::UnmapRbd { image: "one/x".into() }).unwrap();
        // Killed in the middle of a line.
        let path = dir.path().join("journal");
        let mut text = fs::read_to_string(&path).unwrap();
        insta::assert_snapshot!(text, @r#"
        {"disk":0,"undo":"unmount","at":"/a"}
        {"disk":1,"undo":"unmap_rbd","image":"one/x"}
        "#);
        text.push_str(r#"{"disk":1,"und"#);
        fs::write(&path, text).unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        assert_eq!(journal.entries().len(), 2);
        journal.add(DiskId(1), Undo::Unmount { at: "/b".into() }).unwrap();
        assert_eq!(Journal::open(dir.path()).unwrap().entries().len(), 3);
        journal.retain(|e| e.disk == DiskId(0)).unwrap();
        assert_eq!(Journal::open(dir.path()).unwrap().entries().len(), 1);
        journal.retain(|_| false).unwrap();
        assert!(!path.exists());
    }
}
