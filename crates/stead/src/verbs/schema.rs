//! `stead schema`.

use crate::{
    cli::{App, Exit, Run},
    error::Result,
};
use clap::{Args, ValueEnum};
use stead_model::{ClusterSpec, Manifest, NodeSpec, Recipe};

/// Print the JSON Schema of a file format.
#[derive(Debug, Args)]
pub struct Schema {
    /// The format.
    #[arg(value_enum)]
    of: Format,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// The recipe of an image.
    Recipe,
    /// The cluster file.
    Cluster,
    /// The spec a node boots with.
    Node,
    /// The manifest of a built image.
    Manifest,
}

impl Run for Schema {
    fn run(self, app: &App) -> Result<Exit> {
        app.output.json(&match self.of {
            Format::Recipe => schemars::schema_for!(Recipe),
            Format::Cluster => schemars::schema_for!(ClusterSpec),
            Format::Node => schemars::schema_for!(NodeSpec),
            Format::Manifest => schemars::schema_for!(Manifest),
        })?;
        Ok(Exit::SUCCESS)
    }
}
