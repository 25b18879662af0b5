//! `stead fleet trust`, `remotes` and `forget`.

use super::remotes;
use crate::{
    cli::fleet::{Json, Trust},
    output,
};
use anyhow::Result;
use std::{
    fs::File,
    io::{self, IsTerminal, Read},
    path::Path,
    process::ExitCode,
    time::SystemTime,
};
use stead_cluster::Host;
use stead_fleet::remote;
use stead_model::RemoteName;

/// A token is some hundred bytes, with many addresses a few thousand.
const MAX_TOKEN_BYTES: u64 = 64 << 10;

pub async fn trust(host: &Host, args: Trust) -> Result<ExitCode> {
    let remotes = remotes(host);
    remotes.vacant(&args.name)?;
    let token = token(&args.token)?;
    let remote = remote::trust(&token, &args.address, SystemTime::now()).await?;
    remotes.put(&args.name, &remote)?;
    output::print(&format!(
        "{} trusts this host; `stead fleet plan --remote {}` is next\n",
        args.name, args.name
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// The token: the last line with anything on it, since the engines' tools print a line before it.
fn token(file: &Path) -> Result<String> {
    let bad = |why: &str| output::BadInput(format!("read the token from {}: {why}", file.display()));
    let from: Box<dyn Read> = if file == Path::new("-") {
        if io::stdin().is_terminal() {
            eprint!("token: ");
            let mut line = String::new();
            io::stdin().read_line(&mut line).map_err(|e| bad(&e.to_string()))?;
            return Ok(line.trim().to_owned());
        }
        Box::new(io::stdin().lock())
    } else {
        Box::new(File::open(file).map_err(|e| bad(&e.to_string()))?)
    };
    let mut text = String::new();
    from.take(MAX_TOKEN_BYTES).read_to_string(&mut text).map_err(|e| bad(&e.to_string()))?;
    let last = text.lines().map(str::trim).rfind(|l| !l.is_empty());
    Ok(last.ok_or_else(|| bad("there is none"))?.to_owned())
}

pub fn list(host: &Host, args: &Json) -> Result<ExitCode> {
    let remotes = remotes(host);
    let mut rows = Vec::new();
    for name in remotes.names()? {
        let remote = remotes.get(&name)?;
        rows.push((name, remote));
    }
    if args.json {
        let all: Vec<_> = rows
            .iter()
            .map(|(name, r)| serde_json::json!({ "name": name, "addresses": r.addresses, "fingerprint": r.fingerprint }))
            .collect();
        output::json(&all)?;
    } else {
        let rows: Vec<Vec<String>> = rows
            .iter()
            .map(|(name, r)| {
                vec![name.to_string(), r.addresses.join(" "), r.fingerprint.chars().take(12).collect()]
            })
            .collect();
        output::print(&output::table(&["NAME", "ADDRESSES", "CERTIFICATE"], &rows))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub async fn forget(host: &Host, name: &RemoteName) -> Result<ExitCode> {
    let remotes = remotes(host);
    let remote = remotes.get(name)?;
    let renounced = remote.renounce().await;
    remotes.remove(name)?;
    match renounced {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(e) => {
            let own = remote.own_fingerprint()?;
            Err(anyhow::Error::new(e)
                .context(format!("{name} is forgotten here, but may still trust the certificate {own}")))
        }
    }
}
