//! `stead machine run`, which `up` starts in the background: the supervisor of one machine.

use crate::{
    cli::{App, Exit, Run},
    error::Result,
};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Supervise one machine (started by `up`).
#[derive(Debug, Args)]
#[command(hide = true)]
pub struct Machine {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run it until it ends.
    Run {
        /// Its spec.
        file: PathBuf,
    },
}

impl Run for Machine {
    fn run(self, app: &App) -> Result<Exit> {
        let Verb::Run { file } = self.verb;
        stead_os::origin::become_known();
        stead_os::origin::allow_files();
        stead_machine::supervise::run(super::read_spec(app, &file)?)?;
        Ok(Exit::SUCCESS)
    }
}
