//! `stead env`.

use crate::{
    cli::{App, Exit, Run},
    error::Result,
};
use clap::Args;
use stead_cluster::{Record, client_env};
use stead_model::ClusterName;

/// Print the environment with which the stock `incus` or `lxc` client uses a cluster.
///
/// Use it as: eval "$(stead env demo)"
#[derive(Debug, Args)]
pub struct Env {
    /// The cluster.
    cluster: ClusterName,
    /// Print the commands that unset it.
    #[arg(long)]
    unset: bool,
}

impl Run for Env {
    fn run(self, app: &App) -> Result<Exit> {
        let host = &app.host;
        if self.unset {
            let record = Record::require(&host.layout(&self.cluster))?;
            if let Some(facts) = record.engine.facts() {
                app.output.print(format!("unset {}\n", facts.client_variable))?;
            }
            return Ok(Exit::SUCCESS);
        }
        let env = app.wait(async { Ok(client_env::client_env(host, &self.cluster).await?) })?;
        for (variable, value) in &env.environment {
            app.output.print(format!("export {variable}={}\n", quoted(value)))?;
        }
        Ok(Exit::SUCCESS)
    }
}

/// For a POSIX shell: in single quotes, where only the quote itself needs care.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn quotes_survive_a_shell() {
        for text in ["/var/lib/stead", "a b", "it's", "$(reboot)", "`x`"] {
            let out = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", super::quoted(text))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(out.stdout).unwrap(), text);
        }
    }
}
