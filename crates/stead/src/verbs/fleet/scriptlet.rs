//! `stead fleet scriptlet`.

use super::{PolicyFile, Target};
use crate::{
    cli::{App, Exit, Run},
    error::Result,
};
use clap::Args;
use stead_fleet::scriptlet;

/// Print the scriptlet by which the server itself places new instances as `place` would; or install it there.
#[derive(Debug, Args)]
pub struct Scriptlet {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    policy: PolicyFile,
    /// Install it on the server.
    #[arg(long, conflicts_with = "remove")]
    install: bool,
    /// Remove it from the server.
    #[arg(long)]
    remove: bool,
    /// Replace or remove a scriptlet that Stead did not write.
    #[arg(long)]
    force: bool,
}

impl Run for Scriptlet {
    fn run(self, app: &App) -> Result<Exit> {
        let policy = self.policy.read(app)?;
        app.wait(async {
            let client = self.target.client(app).await?;
            if self.remove {
                app.output.print(match scriptlet::remove(&client, self.force).await? {
                    true => "removed: the server places new instances by its own rule\n",
                    false => "there is no scriptlet\n",
                })?;
                return Ok(Exit::SUCCESS);
            }
            let text = scriptlet::generate(&client, &policy).await?;
            app.output.print(match self.install {
                true if scriptlet::install(&client, &text, self.force).await? => {
                    "installed: the server places new instances by it from now on\n"
                }
                true => "it is installed already\n",
                false => &text,
            })?;
            Ok(Exit::SUCCESS)
        })
    }
}
