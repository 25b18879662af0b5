//! Records the progress of bootstrap in a small file beside the engine's own state, so that both live and die together.

use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// Name of the file in the engine's directory.
const FILE: &str = "stead-bootstrap.json";

/// Progress of this node's engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Stead has begun nothing.
    #[default]
    Fresh,
    /// The engine has never answered, so nobody has used it yet. An interrupted first start may never succeed: Incus
    /// takes its half-made database for one of an older version.
    Starting,
    /// Stead has begun to initialise it and has not seen success: nobody has used it yet.
    Initialising,
    /// Stead has begun a join and has not seen success: nobody has used it yet.
    Joining,
    /// It was an online member.
    Member,
    /// It was a member and was removed: it joins again only with a new token, and never forms a cluster of its own.
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
    /// The journal of the engine with its state in `directory`.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }
    /// The recorded phase; [`Phase::Fresh`] without a file. A malformed file was not written by us, since it is only
    /// ever replaced atomically: nothing may then count as unused, so it means [`Phase::Member`].
    pub fn read(&self) -> Phase {
        match fs::read(self.directory.join(FILE)) {
            Ok(bytes) => serde_json::from_slice::<Content>(&bytes).map_or(Phase::Member, |c| c.phase),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Phase::Fresh,
            Err(_) => Phase::Member,
        }
    }
    /// Notes that the first start is still to come, if so; to be called while the engine does not run.
    ///
    /// # Errors
    /// Those of writing.
    pub fn note_first_start(&self) -> io::Result<()> {
        let never_started = self.directory.is_dir() && !self.directory.join("database").exists();
        if never_started && self.read() == Phase::Fresh { self.write(Phase::Starting) } else { Ok(()) }
    }
    /// Replaces the file, which is on disk when this returns.
    ///
    /// # Errors
    /// Those of writing, renaming and syncing.
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
    fn a_written_phase_is_read_back() {
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
