//! The path and name under which this program was called, and what follows from them: the driver, its remotes, its
//! configuration.
//!
//! A value from the caller; nothing here reads the environment.

use crate::engine::{self, Driver};
use std::{fs, path::PathBuf};

/// Context of a script.
#[derive(Debug, Clone)]
pub struct Context {
    /// The script's path as it was called; `None`: called by hand.
    pub script_path: Option<PathBuf>,
    /// This program, which supervises consoles.
    pub program: PathBuf,
    /// `/run/stead-one`.
    pub run: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
    /// The caller of sudo, who makes connections to other hosts.
    pub user: Option<String>,
    /// The socket of the ssh agent that OpenNebula forwards, with which those connections are made.
    pub ssh_agent: Option<PathBuf>,
}

impl Context {
    /// The driver that was called.
    pub fn driver(&self) -> Driver {
        self.script_path.as_deref().and_then(engine::remotes).map_or(Driver::Lxd, |(_, driver)| driver)
    }
    /// OpenNebula's directory on hosts.
    pub fn remotes(&self) -> PathBuf {
        let found = self.script_path.as_deref().and_then(engine::remotes).map(|(remotes, _)| remotes);
        found.unwrap_or_else(|| PathBuf::from("/var/tmp/one"))
    }
    /// The driver's configuration.
    pub fn lxdrc(&self) -> PathBuf {
        self.remotes().join("etc/vmm").join(self.driver().name()).join("lxdrc")
    }
    /// Whether OpenNebula calls reboot and reset twice: 5.10 to 6.8 do, for drivers named lxd. `VERSION` is in the
    /// remotes; without it the release is not 5.8.
    pub fn restarts_twice(&self) -> bool {
        let version = fs::read_to_string(self.remotes().join("VERSION")).unwrap_or_default();
        let mut numbers = version.trim().split('.').map(|n| n.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let twice = version == (0, 0) || ((5, 10)..=(6, 8)).contains(&version);
        self.driver() == Driver::Lxd && twice
    }
}
