//! `stead env`.

use crate::{cli, output};
use anyhow::Result;
use std::process::ExitCode;
use stead_cluster::{Host, Record, client_env};

pub async fn env(host: &Host, args: cli::Env) -> Result<ExitCode> {
    if args.unset {
        let record = Record::require(&host.layout(&args.cluster))?;
        let variable = if record.engine == stead_model::EngineKind::Lxd { "LXD_CONF" } else { "INCUS_CONF" };
        output::print(&format!("unset {variable}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let env = client_env::client_env(host, &args.cluster).await?;
    output::print(&format!("export {}={}\n", env.variable, quoted(&env.dir.to_string_lossy())))?;
    Ok(ExitCode::SUCCESS)
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
