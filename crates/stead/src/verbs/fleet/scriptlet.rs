//! `stead fleet scriptlet`.

use super::{client, policy};
use crate::{cli::fleet::Scriptlet, output};
use anyhow::Result;
use std::process::ExitCode;
use stead_cluster::Host;
use stead_fleet::scriptlet;

pub async fn scriptlet(host: &Host, args: Scriptlet) -> Result<ExitCode> {
    let policy = policy(args.policy.as_deref(), None)?;
    let client = client(host, &args.target).await?;
    if args.remove {
        output::print(match scriptlet::remove(&client, args.force).await? {
            true => "removed: new instances are placed by the server's own rule\n",
            false => "there is no scriptlet\n",
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let text = scriptlet::generate(&client, &policy).await?;
    output::print(match args.install {
        true if scriptlet::install(&client, &text, args.force).await? => {
            "installed: new instances are placed by it from now on\n"
        }
        true => "it is installed already\n",
        false => &text,
    })?;
    Ok(ExitCode::SUCCESS)
}
