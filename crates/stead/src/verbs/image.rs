use crate::cli;
use anyhow::Result;
use std::process::ExitCode;
pub fn run(_: &stead_cluster::Host, _: cli::ImageVerb) -> Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
