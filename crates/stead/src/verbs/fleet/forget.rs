//! `stead fleet forget`.

use crate::{
    cli::{App, Exit, Run},
    error::{Doing, Result},
};
use clap::Args;
use stead_model::RemoteName;

/// Remove a registered cluster, and make it stop trusting this host.
#[derive(Debug, Args)]
pub struct Forget {
    /// The cluster's name here.
    name: RemoteName,
}

impl Run for Forget {
    fn run(self, app: &App) -> Result<Exit> {
        let (remotes, name) = (super::remotes(app), &self.name);
        let remote = remotes.get(name)?;
        let renounced = app.wait(async { Ok(remote.renounce().await) })?;
        remotes.remove(name)?;
        if renounced.is_err() {
            let own = remote.own_fingerprint()?;
            renounced
                .context(format!("{name} is forgotten here, but may still trust the certificate {own}"))?;
        }
        Ok(Exit::SUCCESS)
    }
}
