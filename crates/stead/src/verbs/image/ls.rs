//! `stead image ls`.

use crate::{
    cli::{App, Exit, Run},
    error::Result,
    output,
};
use clap::Args;

/// List the images in the store.
#[derive(Debug, Args)]
pub struct Ls {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Run for Ls {
    fn run(self, app: &App) -> Result<Exit> {
        let list = app.host.store()?.list()?;
        if self.json {
            app.output.json(&list)?;
            return Ok(Exit::SUCCESS);
        }
        let rows: Vec<Vec<String>> = list
            .iter()
            .map(|i| {
                vec![
                    i.name.to_string(),
                    format!("{:?}", i.manifest.kind).to_lowercase(),
                    i.manifest.engine.to_string(),
                    output::size(i.size.0),
                    i.digest.short().to_owned(),
                ]
            })
            .collect();
        app.output.print(output::table(&["IMAGE", "KIND", "ENGINE", "SIZE", "DIGEST"], &rows))?;
        Ok(Exit::SUCCESS)
    }
}
