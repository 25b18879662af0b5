//! The record of a rebalance: one JSON object a line, each on disk before what it announces is done.
//!
//! Owns the file and its lock. It holds enough for another run to finish every move that was under way: the instance, its
//! source and target, and whether it ran; which instances are still to be started ([`Debt`]); and which members refused an
//! instance in a way that the cluster does not show. Does not own how a move is finished.

use crate::{power::Power, snapshot::Learned};
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
    snapshot::{Bar, InstanceId, MemberName},
};

/// The largest journal that is read. A plan of 20,000 moves takes some 10 MB.
const MAX_BYTES: u64 = 256 << 20;

/// How long a member that refused an instance is gone round. Then it is tried again: somebody may have cleaned it up.
const BARRED_S: u64 = 24 * 3600;

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
        /// Debts of earlier runs.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        owed: Vec<Debt>,
        /// What earlier runs learned.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        barred: Vec<Barred>,
        /// Seconds since 1970.
        at_s: u64,
    },
    /// A move begins: from here on the instance may be stopped, or on its way.
    Begun {
        /// Its number in the plan.
        number: usize,
        /// Whether the instance ran.
        power: Power,
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
    /// An instance that ran is stopped, and could not be started.
    Owed(Debt),
    /// It runs again, or exists no more.
    Paid {
        /// The instance.
        instance: InstanceId,
        /// Seconds since 1970.
        at_s: u64,
    },
    /// A member has refused an instance.
    Barred(Barred),
    /// What made a member refuse an instance has been removed.
    Cleared {
        /// The instance.
        instance: InstanceId,
        /// The member.
        member: MemberName,
        /// Seconds since 1970.
        at_s: u64,
    },
    /// The run has ended. A move that was begun and has no end of its own is left to the next run.
    Ended {
        /// Seconds since 1970.
        at_s: u64,
    },
}

/// An instance that ran before it was moved and is stopped: it is to be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Debt {
    /// The instance.
    pub instance: InstanceId,
    /// The member on which it ran.
    pub home: MemberName,
    /// How it is to be.
    pub power: Power,
    /// Its `volatile.uuid`, by which LXD may still call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Why it could not be started.
    pub why: String,
    /// Seconds since 1970.
    pub at_s: u64,
}

/// A member that refused an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Barred {
    /// The instance.
    pub instance: InstanceId,
    /// The member.
    pub member: MemberName,
    /// Why.
    pub bar: Bar,
    /// Seconds since 1970.
    pub at_s: u64,
}

/// What earlier runs left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Past {
    /// Moves that were begun and have no end.
    pub unfinished: Vec<Unfinished>,
    /// Instances that are to be started.
    pub owed: Vec<Debt>,
    /// Members that refused an instance.
    pub barred: Vec<Barred>,
}

impl Past {
    /// The members to go round at this time, in seconds since 1970.
    pub fn learned(&self, now_s: u64) -> Learned {
        let fresh = self.barred.iter().filter(|b| now_s.saturating_sub(b.at_s) < BARRED_S);
        fresh.map(|b| ((b.instance.clone(), b.member.clone()), b.bar.clone())).collect()
    }
}

/// A move that an earlier run began and did not end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// Its number in that run's plan.
    pub number: usize,
    /// The move.
    pub planned: Move,
    /// Whether the instance ran before.
    pub power: Power,
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
    /// What the journal of a cluster in `dir` says, whether a run holds it or not.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn peek(dir: &Path, cluster: &str) -> Result<Past, JournalError> {
        let path = path(dir, cluster);
        let file = match File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Past::default()),
            file => file.at("open", &path)?,
        };
        let mut text = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut text).at("read", &path)?;
        past(&text[..whole(&text)], &path, cluster)
    }

    /// Opens the journal of a cluster in `dir`, and returns what earlier runs left.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(dir: &Path, cluster: &str) -> Result<(Self, Past), JournalError> {
        let path = path(dir, cluster);
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
        let whole = whole(&text);
        if whole < text.len() {
            file.set_len(whole as u64).at("shorten", &path)?;
        }
        let past = past(&text[..whole], &path, cluster)?;
        Ok((Self { path, file }, past))
    }

    /// Begins a run, and drops the entries of the earlier one, of which only `owed` and `barred` are kept.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn begin(
        &mut self,
        cluster: &str,
        plan: &Plan,
        owed: Vec<Debt>,
        barred: Vec<Barred>,
        at_s: u64,
    ) -> Result<(), JournalError> {
        // With a debt nothing is dropped before the new entry is on disk.
        if owed.is_empty() {
            self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0))).at("empty", &self.path)?;
        }
        self.write(&Entry::Run { cluster: cluster.to_owned(), plan: plan.clone(), owed, barred, at_s })
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

fn path(dir: &Path, cluster: &str) -> PathBuf {
    dir.join(format!("{cluster}.journal"))
}

/// The length of the whole lines.
fn whole(text: &[u8]) -> usize {
    text.iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1)
}

fn past(text: &[u8], path: &Path, cluster: &str) -> Result<Past, JournalError> {
    let mut moves: Vec<Move> = Vec::new();
    let mut begun: BTreeMap<usize, Power> = BTreeMap::new();
    let mut debts: BTreeMap<InstanceId, Debt> = BTreeMap::new();
    let mut bars: BTreeMap<(InstanceId, MemberName), Barred> = BTreeMap::new();
    let of_debt = |d: Debt| (d.instance.clone(), d);
    let of_bar = |b: Barred| ((b.instance.clone(), b.member.clone()), b);
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
            Entry::Run { plan, owed, barred, .. } => {
                moves = plan.moves;
                begun.clear();
                debts = owed.into_iter().map(of_debt).collect();
                bars = barred.into_iter().map(of_bar).collect();
            }
            Entry::Begun { number, power, .. } => {
                // Begun twice: the first entry has the state before the move.
                begun.entry(number).or_insert(power);
            }
            Entry::Done { number, .. } => {
                begun.remove(&number);
                if let Some(done) = moves.get(number) {
                    debts.remove(&done.instance);
                }
            }
            Entry::Failed { number, .. } => {
                begun.remove(&number);
            }
            Entry::Owed(debt) => {
                begun.retain(|n, _| moves.get(*n).is_none_or(|m| m.instance != debt.instance));
                debts.extend([of_debt(debt)]);
            }
            Entry::Paid { instance, .. } => {
                debts.remove(&instance);
            }
            Entry::Barred(barred) => bars.extend([of_bar(barred)]),
            Entry::Cleared { instance, member, .. } => {
                bars.remove(&(instance, member));
            }
            Entry::Ended { .. } => {}
        }
    }
    let unfinished = begun.into_iter().filter_map(|(number, power)| {
        Some(Unfinished { number, planned: moves.get(number)?.clone(), power })
    });
    Ok(Past {
        unfinished: unfinished.collect(),
        owed: debts.into_values().collect(),
        barred: bars.into_values().collect(),
    })
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
        assert_eq!(before, Past::default());
        journal.begin("f00", &plan, vec![], vec![], 1).unwrap();
        journal.write(&Entry::Begun { number: 0, power: Power::Frozen, at_s: 2 }).unwrap();
        assert!(matches!(Journal::open(dir.path(), "f00"), Err(JournalError::Busy(_))));
        drop(journal);

        let (mut journal, left) = Journal::open(dir.path(), "f00").unwrap();
        assert_eq!(Journal::peek(dir.path(), "f00").unwrap(), left, "a look needs no lock");
        let want = Unfinished { number: 0, planned: plan.moves[0].clone(), power: Power::Frozen };
        assert_eq!(left.unfinished, [want]);
        // Begun again by the run that goes on with it, when it was stopped already.
        journal.write(&Entry::Begun { number: 0, power: Power::Stopped, at_s: 3 }).unwrap();
        drop(journal);
        let (mut journal, left) = Journal::open(dir.path(), "f00").unwrap();
        assert_eq!(left.unfinished[0].power, Power::Frozen);
        journal.write(&Entry::Done { number: 0, at_s: 4 }).unwrap();
        drop(journal);
        assert_eq!(Journal::open(dir.path(), "f00").unwrap().1, Past::default());
    }

    #[test]
    fn debts_are_kept_until_they_are_paid() {
        let dir = tempfile::tempdir().unwrap();
        let plan = a_plan();
        let m = &plan.moves[0];
        let debt = Debt {
            instance: m.instance.clone(),
            home: m.from.clone(),
            power: Power::Running,
            uuid: None,
            why: "no such network".into(),
            at_s: 3,
        };
        let open = || Journal::open(dir.path(), "f00").unwrap();
        let (mut journal, _) = open();
        journal.begin("f00", &plan, vec![], vec![], 1).unwrap();
        journal.write(&Entry::Begun { number: 0, power: Power::Running, at_s: 2 }).unwrap();
        journal.write(&Entry::Owed(debt.clone())).unwrap();
        journal.write(&Entry::Ended { at_s: 4 }).unwrap();
        drop(journal);
        let (mut journal, past) = open();
        assert_eq!((past.unfinished.len(), past.owed.as_slice()), (0, &[debt.clone()][..]));
        // Another run begins; its beginning is cut short by a power failure.
        journal.begin("f00", &plan, past.owed, vec![], 5).unwrap();
        drop(journal);
        let path = dir.path().join("f00.journal");
        let text = fs::read(&path).unwrap();
        fs::write(&path, &text[..text.len() - 9]).unwrap();
        assert_eq!(open().1.owed.as_slice(), std::slice::from_ref(&debt));
        fs::write(&path, &text).unwrap();
        let (mut journal, past) = open();
        assert_eq!(past.owed, [debt]);
        journal.write(&Entry::Paid { instance: m.instance.clone(), at_s: 6 }).unwrap();
        drop(journal);
        assert_eq!(open().1.owed, []);
    }

    #[test]
    fn members_that_refused_are_remembered_for_a_day() {
        let dir = tempfile::tempdir().unwrap();
        let plan = a_plan();
        let m = &plan.moves[0];
        let bar = Bar::LeftOver("default".into());
        let barred =
            Barred { instance: m.instance.clone(), member: m.to.clone(), bar: bar.clone(), at_s: 100 };
        let open = || Journal::open(dir.path(), "f00").unwrap();
        let (mut journal, _) = open();
        journal.begin("f00", &plan, vec![], vec![], 1).unwrap();
        journal.write(&Entry::Barred(barred)).unwrap();
        drop(journal);
        let (mut journal, past) = open();
        let key = (m.instance.clone(), m.to.clone());
        assert_eq!(past.learned(100), Learned::from([(key, bar)]));
        assert_eq!(past.learned(100 + BARRED_S), Learned::new());
        journal.begin("f00", &plan, vec![], past.barred, 2).unwrap();
        drop(journal);
        assert_eq!(open().1.barred.len(), 1);
        let cleared = Entry::Cleared { instance: m.instance.clone(), member: m.to.clone(), at_s: 3 };
        open().0.write(&cleared).unwrap();
        assert_eq!(open().1.barred, []);
    }

    #[test]
    fn a_line_cut_short_is_no_line_and_nonsense_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path(), "f00").unwrap();
        journal.begin("f00", &a_plan(), vec![], vec![], 1).unwrap();
        drop(journal);
        let path = dir.path().join("f00.journal");
        let whole = fs::read(&path).unwrap();
        let torn = [&whole[..], br#"{"event":"begun","num"#].concat();
        fs::write(&path, torn).unwrap();
        let (mut journal, left) = Journal::open(dir.path(), "f00").unwrap();
        assert_eq!(left, Past::default());
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
