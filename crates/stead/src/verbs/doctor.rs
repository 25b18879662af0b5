//! `stead doctor`.

use crate::{
    cli::{App, Exit, Run},
    error::Result,
    output,
};
use clap::Args;
use stead_machine::doctor::{self, Verdict};

/// Check what this host offers, and say how to get what it lacks.
///
/// The exit code is 1 when a check failed.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Run for Doctor {
    fn run(self, app: &App) -> Result<Exit> {
        let checks = doctor::checks(&doctor::observe());
        if self.json {
            app.output.json(&checks)?;
        } else {
            let rows: Vec<Vec<String>> = checks
                .iter()
                .map(|c| {
                    let verdict = match c.ok {
                        Verdict::Ok => "ok",
                        Verdict::Warn => "warn",
                        Verdict::Fail => "FAIL",
                    };
                    let fix = c.fix.as_ref().map(|f| format!(" -> {f}")).unwrap_or_default();
                    vec![verdict.to_owned(), c.name.to_string(), format!("{}{fix}", c.detail)]
                })
                .collect();
            app.output.print(output::table(&["", "CHECK", "FOUND"], &rows))?;
        }
        Ok(Exit::success_if(checks.iter().all(|c| c.ok != Verdict::Fail)))
    }
}
