//! How far bootstrap came, in a small file beside the engine's own state, so that both live and die together.

use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// Name of the file in the engine's directory.
const FILE: &str = "stead-bootstrap.json";

/// How far this node's engine came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Nothing was begun by Stead.
    #[default]
    Fresh,
    /// The engine has never answered: a first start that was cut short may never succeed (Incus takes its half-made
    /// database for one of an older version), and nobody has used it yet.
    Starting,
    /// Stead has begun to initialise and has not seen it succeed: whatever is there, nobody has used it yet.
    Initialising,
    /// Stead has begun to join and has not seen it succeed: as above.
    Joining,
    /// It was a member and online.
    Member,
    /// It was a member and was removed: it joins again only with a new token, and never begins a cluster of its own.
    Removed,
}

/// The file.
#[derive(Debug, Clone)]
pub struct Journal {
    directory: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Content {
    phase: Phase,
}

impl Journal {
    /// Of the engine whose state is in `directory`.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }
    /// What it says. No file: [`Phase::Fresh`]. A file that cannot be read as one (it is only ever replaced whole) was
    /// not written by us: then nothing may be taken for unused, so [`Phase::Member`].
    pub fn read(&self) -> Phase {
        match fs::read(self.directory.join(FILE)) {
            Ok(bytes) => serde_json::from_slice::<Content>(&bytes).map_or(Phase::Member, |c| c.phase),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Phase::Fresh,
            Err(_) => Phase::Member,
        }
    }
    /// Notes that the engine is yet to start for the first time, if that is so; to be called while it does not run.
    ///
    /// # Errors
    /// Of writing.
    pub fn note_first_start(&self) -> io::Result<()> {
        let never_started = self.directory.is_dir() && !self.directory.join("database").exists();
        if never_started && self.read() == Phase::Fresh { self.write(Phase::Starting) } else { Ok(()) }
    }
    /// Replaces it, on disk before this returns.
    ///
    /// # Errors
    /// Of writing, renaming, syncing.
    pub fn write(&self, phase: Phase) -> io::Result<()> {
        let temporary = self.directory.join(format!("{FILE}.new"));
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(&Content { phase })?)?;
        file.sync_all()?;
        fs::rename(&temporary, self.directory.join(FILE))?;
        File::open(&self.directory)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::new(dir.path());
        assert_eq!(journal.read(), Phase::Fresh);
        for phase in [
            Phase::Starting,
            Phase::Initialising,
            Phase::Joining,
            Phase::Member,
            Phase::Removed,
            Phase::Fresh,
        ] {
            journal.write(phase).unwrap();
            assert_eq!(journal.read(), phase);
        }
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(journal.read(), Phase::Member);
    }
}
