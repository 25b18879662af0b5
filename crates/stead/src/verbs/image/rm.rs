//! `stead image rm`.

use crate::{
    cli::{App, Exit, Run},
    error::Result,
};
use clap::Args;
use stead_model::ImageName;

/// Remove images by name. The next `gc` deletes their files.
#[derive(Debug, Args)]
pub struct Rm {
    /// The images.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<ImageName>,
}

impl Run for Rm {
    fn run(self, app: &App) -> Result<Exit> {
        let store = app.host.store()?;
        for name in &self.names {
            store.remove(name)?;
        }
        Ok(Exit::SUCCESS)
    }
}
