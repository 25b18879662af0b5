//! `stead completions`.

use crate::{
    cli::{App, Cli, Exit, Run},
    error::Result,
};
use clap::{Args, CommandFactory};

/// Print the completions of a shell.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell.
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

impl Run for Completions {
    fn run(self, app: &App) -> Result<Exit> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "stead", &mut text);
        app.output.print(text)?;
        Ok(Exit::SUCCESS)
    }
}
