//! `stead man`.

use crate::{
    cli::{App, Cli, Exit, Run},
    error::{Doing, Result},
};
use clap::{Args, CommandFactory, ValueHint};
use std::{fs, path::PathBuf};

/// Write the manual pages.
#[derive(Debug, Args)]
pub struct Man {
    /// The directory they are written to.
    #[arg(value_hint = ValueHint::DirPath)]
    dir: PathBuf,
}

impl Run for Man {
    fn run(self, app: &App) -> Result<Exit> {
        let (dir, name) = (app.context.absolute(&self.dir), self.dir.display());
        fs::create_dir_all(&dir).named_by_user(format!("cannot make directory {name}"))?;
        clap_mangen::generate_to(Cli::command(), &dir).context(format!("cannot write to {name}"))?;
        Ok(Exit::SUCCESS)
    }
}
