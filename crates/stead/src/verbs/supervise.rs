//! The hidden verbs that `up` starts in the background.

use crate::cli::Supervise;
use anyhow::{Context, Result};
use std::process::ExitCode;

pub fn machine(args: &Supervise) -> Result<ExitCode> {
    let Supervise::Run { file } = args;
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let spec = serde_json::from_str(&text).with_context(|| format!("understand {}", file.display()))?;
    stead_machine::supervise::run(spec)?;
    Ok(ExitCode::SUCCESS)
}

pub fn network(args: &Supervise) -> Result<ExitCode> {
    let Supervise::Run { file } = args;
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let spec = serde_json::from_str(&text).with_context(|| format!("understand {}", file.display()))?;
    stead_machine::network::run(spec)?;
    Ok(ExitCode::SUCCESS)
}
