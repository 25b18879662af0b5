//! `stead fleet trust`.

use crate::{
    cli::{App, Exit, Run},
    error::{Doing, Error, Result},
};
use clap::{Args, ValueHint};
use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    time::SystemTime,
};
use stead_fleet::remote;
use stead_model::RemoteName;

/// A token is some hundred bytes, with many addresses a few thousand.
const MAX_TOKEN_BYTES: u64 = 64 << 10;

/// Register a cluster under a name for `--remote`, by a one-time trust token.
///
/// The token is what `incus config trust add NAME` or `lxc config trust add --name NAME` prints on a member. It is
/// read from a file or from stdin.
///
/// Example: ssh node1 incus config trust add stead | stead fleet trust lab
#[derive(Debug, Args)]
pub struct Trust {
    /// The name to register the cluster under.
    name: RemoteName,
    /// The file with the token [default: standard input]
    #[arg(long, value_name = "FILE", default_value = "-", hide_default_value = true, value_hint = ValueHint::FilePath)]
    token: PathBuf,
    /// The address of a member, if those in the token cannot be reached from here; may be repeated.
    #[arg(long, value_name = "HOST[:PORT]")]
    address: Vec<String>,
}

impl Run for Trust {
    fn run(self, app: &App) -> Result<Exit> {
        let remotes = super::remotes(app);
        remotes.vacant(&self.name)?;
        let token = token(app, &self.token)?;
        let remote =
            app.wait(async { Ok(remote::trust(&token, &self.address, SystemTime::now()).await?) })?;
        remotes.put(&self.name, &remote)?;
        let name = &self.name;
        app.output.print(format!("{name} trusts this host; next: `stead fleet plan --remote {name}`\n"))?;
        Ok(Exit::SUCCESS)
    }
}

/// The token: the last line with anything on it, since the engines' tools print a line before it.
fn token(app: &App, file: &Path) -> Result<String> {
    let stdin = file == Path::new("-");
    let what = match stdin {
        true => "cannot read the token from standard input".to_owned(),
        false => format!("cannot read the token from {}", file.display()),
    };
    let mut text = String::new();
    if stdin && app.context.terminals.stdin {
        // The first line is all: a person cannot be asked to end the input.
        app.output.prompt("token: ");
        io::stdin().read_line(&mut text).named_by_user(&what)?;
    } else {
        let from: Box<dyn Read> = match stdin {
            true => Box::new(io::stdin().lock()),
            false => Box::new(File::open(app.context.absolute(file)).named_by_user(&what)?),
        };
        from.take(MAX_TOKEN_BYTES).read_to_string(&mut text).named_by_user(&what)?;
    }
    let last = text.lines().map(str::trim).rfind(|l| !l.is_empty());
    Ok(last.ok_or_else(|| Error::bad_input(format!("{what}: it is empty")))?.to_owned())
}
