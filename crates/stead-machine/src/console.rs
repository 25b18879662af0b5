//! A machine's console log: `console.log` in its directory.

use crate::{MachineError, MachineSpec, files};
use std::{
    io::{self, PipeWriter},
    path::PathBuf,
};

/// The console log turns over at this size, so one machine takes at most twice of it.
const MAX_BYTES: u64 = 16 << 20;
/// How much of the console an error carries, bytes.
const TAIL_BYTES: u64 = 1000;

fn path(spec: &MachineSpec) -> PathBuf {
    spec.dir.join("console.log")
}

/// A pipe whose content is appended to the console log for as long as anybody holds its writing end.
pub(crate) fn writer(spec: &MachineSpec) -> Result<PipeWriter, MachineError> {
    let open = || {
        let (console, writer) = io::pipe()?;
        files::log_from(console, path(spec), MAX_BYTES)?;
        Ok(writer)
    };
    open().map_err(MachineError::start(spec))
}

/// The end of the console log, for an error.
pub(crate) fn tail(spec: &MachineSpec) -> String {
    files::tail(&path(spec), TAIL_BYTES)
}
