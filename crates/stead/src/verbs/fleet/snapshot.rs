//! `stead fleet snapshot`.

use super::{Target, directory};
use crate::{
    cli::{App, Exit, Run},
    error::Result,
};
use clap::Args;
use stead_fleet::{facts, facts::Asking, snapshot::snapshot};

/// Print what plans are made from: members and instances (JSON).
#[derive(Debug, Args)]
pub struct Snapshot {
    #[command(flatten)]
    target: Target,
}

impl Run for Snapshot {
    fn run(self, app: &App) -> Result<Exit> {
        app.wait(async {
            let client = self.target.client(app).await?;
            app.output.json(&snapshot(
                &facts::gather(
                    &client,
                    Asking { memory: Some(&directory(app)), tell: &|who| app.output.note(who) },
                )
                .await?,
            ))?;
            Ok(Exit::SUCCESS)
        })
    }
}
