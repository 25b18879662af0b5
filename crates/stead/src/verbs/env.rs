use crate::cli;
use anyhow::Result;
use std::process::ExitCode;
pub async fn env(_: &stead_cluster::Host, _: cli::Env) -> Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
