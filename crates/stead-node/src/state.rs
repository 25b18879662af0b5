//! The state that the first stage of a boot passes to the second: in a VM as a value, in a namespace as a file that
//! only root can read and that is removed once read.

use crate::{
    handle::say,
    modules::{self, Module},
};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    time::{Duration, Instant},
};
use stead_model::{
    agent::{EventKind, TimelineEvent},
    node::NodeSpec,
};

/// The file between the stages in a namespace. It contains the agent's key, so it has mode 0600 and is removed once
/// read.
pub const STATE_PATH: &str = "/run/stead/boot.json";

/// Kind of a machine, as far as the boot depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Has its own kernel: VM or metal.
    Vm,
    /// Shares its host's kernel.
    Namespace,
}

/// Where the root's changes are written, with the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Upper {
    /// Memory, at most this many bytes; without a limit, half of the memory.
    Tmpfs(Option<u64>),
    /// The data disk on this device.
    Disk(PathBuf),
}

/// The state of a boot between its stages.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BootState {
    /// VM or namespace.
    pub mode: Mode,
    /// Start of the node's init, on the kernel's boot-time clock.
    pub started_ns: u64,
    /// New at each boot.
    pub boot_id: String,
    /// The node spec, unless it could not be read.
    pub spec: Option<NodeSpec>,
    /// Why the root could not be made.
    pub rescue: Option<String>,
    /// Events so far.
    pub timeline: Vec<TimelineEvent>,
    /// Warnings so far.
    pub warnings: Vec<String>,
    /// Where the root's changes are written.
    pub upper: Option<Upper>,
    /// Modules of a VM's initrd that are not loaded yet.
    #[serde(skip)]
    pub later: Vec<Module>,
}

/// The present time on the kernel's boot-time clock, which cannot be set.
pub fn boot_clock_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

impl BootState {
    /// The state of an init that starts now.
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            started_ns: boot_clock_ns(),
            boot_id: String::new(),
            spec: None,
            rescue: None,
            timeline: Vec::new(),
            warnings: Vec::new(),
            upper: None,
            later: Vec::new(),
        }
    }

    /// Time since init began.
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(boot_clock_ns().saturating_sub(self.started_ns))
    }

    /// Start of init, on this process' clock.
    pub fn started(&self) -> Instant {
        Instant::now().checked_sub(self.elapsed()).unwrap_or_else(Instant::now)
    }

    /// Notes a stage of the boot.
    pub fn note(&mut self, event: &str) {
        let at_ms = self.elapsed().as_millis() as u64;
        say(format_args!("[{at_ms:>6} ms] {event}"));
        self.timeline.push(TimelineEvent { at_ms, kind: EventKind::Boot, event: event.to_owned() });
    }

    /// Adds a warning for the operator.
    pub fn warn(&mut self, warning: String) {
        say(format_args!("warning: {warning}"));
        self.warnings.push(warning);
    }

    /// Loads the modules left for later.
    pub fn load_later_modules(&mut self) {
        let modules = std::mem::take(&mut self.later);
        modules::load(&modules).into_iter().for_each(|error| self.warn(error));
    }

    /// Writes the file for the second stage.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save(&self) -> io::Result<()> {
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(STATE_PATH)?;
        serde_json::to_writer(io::BufWriter::new(file), self).map_err(io::Error::other)
    }

    /// Reads the first stage's file and removes it.
    ///
    /// # Errors
    /// It is missing or malformed.
    pub fn take() -> io::Result<Self> {
        let text = fs::read(STATE_PATH)?;
        fs::remove_file(STATE_PATH)?;
        serde_json::from_slice(&text).map_err(io::Error::other)
    }
}
