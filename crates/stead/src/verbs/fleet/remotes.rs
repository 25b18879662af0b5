//! `stead fleet remotes`.

use crate::{
    cli::{App, Exit, Run},
    error::Result,
    output,
};
use clap::Args;

/// Of a certificate's fingerprint so many digits are shown, as the engines' clients do.
const FINGERPRINT_DIGITS: usize = 12;

/// List the registered clusters.
#[derive(Debug, Args)]
pub struct Remotes {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Run for Remotes {
    fn run(self, app: &App) -> Result<Exit> {
        let remotes = super::remotes(app);
        let mut all = Vec::new();
        for name in remotes.names()? {
            let remote = remotes.get(&name)?;
            all.push((name, remote));
        }
        if self.json {
            let all: Vec<_> = all
                .iter()
                .map(|(name, r)| {
                    serde_json::json!({ "name": name, "addresses": r.addresses, "fingerprint": r.fingerprint })
                })
                .collect();
            app.output.json(&all)?;
        } else {
            let rows: Vec<Vec<String>> = all
                .iter()
                .map(|(name, r)| {
                    let fingerprint = r.fingerprint.chars().take(FINGERPRINT_DIGITS).collect();
                    vec![name.to_string(), r.addresses.join(" "), fingerprint]
                })
                .collect();
            app.output.print(output::table(&["NAME", "ADDRESSES", "CERTIFICATE"], &rows))?;
        }
        Ok(Exit::SUCCESS)
    }
}
