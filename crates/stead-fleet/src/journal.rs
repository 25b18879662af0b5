//! The record of a rebalance: one JSON object a line, each on disk before what it announces is done.
//!
//! Owns the file and its lock. It holds enough for another run to finish every move that was under way: the instance, its
//! source and target, and whether it ran. Does not own how a move is finished.

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};
use stead_model::Failure;
use stead_os::{PathContext, PathError};
use stead_placement::{
    plan::{Move, Plan},
    snapshot::InstanceId,
};

/// The largest journal that is read. A plan of 20,000 moves takes some 10 MB.
const MAX_BYTES: u64 = 256 << 20;

/// One line of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Entry {
    /// A run begins. Always the first line.
    Run {
        /// The cluster: SHA-256 of its certificate.
        cluster: String,
        /// What it carries out.
        plan: Plan,
        /// Seconds since 1970.
        at_s: u64,
    },
    /// A move begins: from here on the instance may be stopped, or on its way.
    Begun {
        /// Its number in the plan.
        number: usize,
        /// Whether the instance ran.
        running: bool,
        /// Seconds since 1970.
        at_s: u64,
    },
    /// A move has succeeded.
    Done {
        /// Its number in the plan.
        number: usize,
        /// Seconds since 1970.
        at_s: u64,
    },
    /// A move has failed. The instance is unchanged, or the text says what is wrong with it.
    Failed {
        /// Its number in the plan.
        number: usize,
        /// Why.
        why: String,
        /// Seconds since 1970.
        at_s: u64,
    },
    /// The run has ended. A move that was begun and has no end of its own is left to the next run.
    Ended {
        /// Seconds since 1970.
        at_s: u64,
    },
}

/// A move that an earlier run began and did not end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// Its number in that run's plan.
    pub number: usize,
    /// The move.
    pub planned: Move,
    /// Whether the instance ran before.
    pub running: bool,
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] PathError),
    /// Another run holds it.
    #[error("another rebalance of this cluster is running (it holds {})", .0.display())]
    Busy(PathBuf),
    /// A line is not an entry.
    #[error("{}:{line} is not an entry of a journal", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The journal belongs to another cluster.
    #[error("{} is the journal of another cluster", .0.display())]
    OtherCluster(PathBuf),
}

impl Failure for JournalError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Busy(_) => Some("wait until it ends, or stop it: the next run continues".into()),
            Self::Damaged { path, .. } => Some(format!(
                "if another version of stead wrote it, finish with that one; if no instance is being moved, delete {}",
                path.display()
            )),
            _ => None,
        }
    }
}

/// An open journal, locked against other runs.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens the journal of a cluster in `dir`, and returns the moves that an earlier run left unfinished.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(dir: &Path, cluster: &str) -> Result<(Self, Vec<Unfinished>), JournalError> {
        let path = dir.join(format!("{cluster}.journal"));
        fs::create_dir_all(dir).at("make directory", dir)?;
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .at("open", &path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(JournalError::Busy(path)),
            locked => locked.at("lock", &path)?,
        }
        let mut text = Vec::new();
        (&mut file).take(MAX_BYTES).read_to_end(&mut text).at("read", &path)?;
        // A line cut short by a power failure announced nothing: what it announces is done after it is on disk.
        let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
        if whole < text.len() {
            file.set_len(whole as u64).at("shorten", &path)?;
        }
        let unfinished = unfinished(&text[..whole], &path, cluster)?;
        Ok((Self { path, file }, unfinished))
    }

    /// Begins a run, and drops the entries of the earlier one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn begin(&mut self, cluster: &str, plan: &Plan, at_s: u64) -> Result<(), JournalError> {
        self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0))).at("empty", &self.path)?;
        self.write(&Entry::Run { cluster: cluster.to_owned(), plan: plan.clone(), at_s })
    }

    /// Writes a line, and returns when it is on disk.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&mut self, entry: &Entry) -> Result<(), JournalError> {
        let mut line = serde_json::to_vec(entry).expect("an entry is a plain tree");
        line.push(b'\n');
        Ok(self.file.write_all(&line).and_then(|()| self.file.sync_data()).at("write", &self.path)?)
    }
}

fn unfinished(text: &[u8], path: &Path, cluster: &str) -> Result<Vec<Unfinished>, JournalError> {
    let mut moves: Vec<Move> = Vec::new();
    let mut begun: BTreeMap<usize, bool> = BTreeMap::new();
    for (n, line) in text.split(|b| *b == b'\n').enumerate().filter(|(_, l)| !l.is_empty()) {
        let entry = serde_json::from_slice(line).map_err(|source| JournalError::Damaged {
            path: path.to_owned(),
            line: n + 1,
            source,
        })?;
        match entry {
            Entry::Run { cluster: of, .. } if of != cluster => {
                return Err(JournalError::OtherCluster(path.to_owned()));
            }
            Entry::Run { plan, .. } => {
                moves = plan.moves;
                begun.clear();
            }
            Entry::Begun { number, running, .. } => {
                // Begun twice: the first entry has the state before the move.
                begun.entry(number).or_insert(running);
            }
            Entry::Done { number, .. } | Entry::Failed { number, .. } => {
                begun.remove(&number);
            }
            Entry::Ended { .. } => {}
        }
    }
    Ok(begun
        .into_iter()
        .filter_map(|(number, running)| {
            Some(Unfinished { number, planned: moves.get(number)?.clone(), running })
        })
        .collect())
}

impl Unfinished {
    /// The instance.
    pub fn instance(&self) -> &InstanceId {
        &self.planned.instance
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_placement::{Policy, Snapshot, plan};

    fn a_plan() -> Plan {
        let json = r#"{"members":[
            {"name":"a","architectures":["x86_64"],"state":"online","schedulable":"all","memory_mib":4096,"cpu_milli":4000},
            {"name":"b","architectures":["x86_64"],"state":"online","schedulable":"all","memory_mib":4096,"cpu_milli":4000}],
          "instances":[
            {"workload":{"id":{"project":"default","name":"c1"},"kind":"container","architecture":"x86_64","limits":{"memory_mib":1024}},
             "member":"a","running":true,"migration":"stopped","size_mib":100},
            {"workload":{"id":{"project":"default","name":"c2"},"kind":"container","architecture":"x86_64","limits":{"memory_mib":1024}},
             "member":"a","running":true,"migration":"stopped","size_mib":100}]}"#;
        let plan = plan(&Snapshot::from_json("s.json", json).unwrap(), &Policy::default()).unwrap();
        assert_eq!(plan.moves.len(), 1);
        plan
    }

    #[test]
    fn tells_what_was_on_its_way() {
        let dir = tempfile::tempdir().unwrap();
        let plan = a_plan();
        let (mut journal, before) = Journal::open(dir.path(), "f00").unwrap();
        assert_eq!(before, []);
        journal.begin("f00", &plan, 1).unwrap();
        journal.write(&Entry::Begun { number: 0, running: true, at_s: 2 }).unwrap();
        assert!(matches!(Journal::open(dir.path(), "f00"), Err(JournalError::Busy(_))));
        drop(journal);

        let (mut journal, left) = Journal::open(dir.path(), "f00").unwrap();
        assert_eq!(left, [Unfinished { number: 0, planned: plan.moves[0].clone(), running: true }]);
        // Begun again by the run that goes on with it, when it was stopped already.
        journal.write(&Entry::Begun { number: 0, running: false, at_s: 3 }).unwrap();
        drop(journal);
        let (mut journal, left) = Journal::open(dir.path(), "f00").unwrap();
        assert!(left[0].running);
        journal.write(&Entry::Done { number: 0, at_s: 4 }).unwrap();
        drop(journal);
        assert_eq!(Journal::open(dir.path(), "f00").unwrap().1, []);
    }

    #[test]
    fn a_line_cut_short_is_no_line_and_nonsense_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path(), "f00").unwrap();
        journal.begin("f00", &a_plan(), 1).unwrap();
        drop(journal);
        let path = dir.path().join("f00.journal");
        let whole = fs::read(&path).unwrap();
        let torn = [&whole[..], br#"{"event":"begun","num"#].concat();
        fs::write(&path, torn).unwrap();
        let (mut journal, left) = Journal::open(dir.path(), "f00").unwrap();
        assert_eq!(left, []);
        journal.write(&Entry::Ended { at_s: 2 }).unwrap();
        drop(journal);
        assert!(fs::read(&path).unwrap().starts_with(&whole));
        assert!(Journal::open(dir.path(), "f00").is_ok());

        let unknown = br#"{"event":"ended","at_s":2,"of":"a later version"}"#;
        fs::write(&path, [&whole[..], unknown, b"\n"].concat()).unwrap();
        let error = Journal::open(dir.path(), "f00").unwrap_err();
        assert!(stead_os::chain(&error).contains("unknown field `of`"), "{error}");
        assert!(error.hint().unwrap().contains("another version"));
        fs::write(&path, [&whole[..], b"{}\n"].concat()).unwrap();
        let error = Journal::open(dir.path(), "f00").unwrap_err();
        assert!(matches!(error, JournalError::Damaged { line: 2, .. }), "{error}");
        fs::copy(&path, dir.path().join("f11.journal")).unwrap();
        fs::write(dir.path().join("f11.journal"), whole).unwrap();
        assert!(matches!(Journal::open(dir.path(), "f11"), Err(JournalError::OtherCluster(_))));
    }
}
