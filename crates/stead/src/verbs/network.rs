//! `stead network run`, which `up` starts in the background: the supervisor of one cluster's network.

use crate::{
    cli::{App, Exit, Run},
    error::Result,
};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Supervise the network of one cluster (started by `up`).
#[derive(Debug, Args)]
#[command(hide = true)]
pub struct Network {
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

impl Run for Network {
    fn run(self, app: &App) -> Result<Exit> {
        let Verb::Run { file } = self.verb;
        stead_os::origin::become_known();
        stead_os::origin::allow_files();
        stead_machine::network::run(super::read_spec(app, &file)?)?;
        Ok(Exit::SUCCESS)
    }
}
