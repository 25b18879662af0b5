//! What one host has another do: a script of this driver, called by ssh as OpenNebula's user.
//!
//! Owns the command line and what is reported of a failure. Does not own what is asked.

use super::ScriptError;
use crate::{context::Context, disks::DiskError, ids::HostName};
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
};
use stead_os::{CommandError, Program};

/// As much of what the other host says goes into an error.
const TAIL_CHARS: usize = 1000;

/// A path as a word of the other host's shell, which ssh cannot do without.
pub(super) fn path_word(path: &Path) -> Result<String, ScriptError> {
    let text = path.display().to_string();
    if text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b)) {
        Ok(text)
    } else {
        Err(ScriptError::Refused(format!(
            "path {text:?} cannot be passed to another host: only letters, digits and ./_- can"
        )))
    }
}

/// The command that calls a script on another host, as the user that OpenNebula is there.
fn command_line(
    context: &Context,
    host: &HostName,
    script: &str,
    arguments: &[String],
) -> Result<Vec<String>, ScriptError> {
    let scripts = context.remotes().join("vmm").join(context.driver().name());
    let script: PathBuf = scripts.join(script);
    let mut line = Vec::new();
    if let Some(user) = &context.user {
        line.extend(["runuser", "-u", user.as_str(), "--"].map(str::to_owned));
    }
    line.extend(["ssh", "-o", "BatchMode=yes", "--", host.as_str()].map(str::to_owned));
    line.push(path_word(&script)?);
    line.extend(arguments.iter().cloned());
    Ok(line)
}

pub(super) fn over_there(
    context: &Context,
    host: &HostName,
    script: &str,
    arguments: &[String],
    document: &str,
) -> Result<(), ScriptError> {
    let line = command_line(context, host, script, arguments)?;
    let failed = |source| {
        let error = CommandError::Io { operation: "run", program: line[0].clone(), source };
        ScriptError::Disk(DiskError::Tool(error))
    };
    let mut command =
        Program::new(&line[0]).args(&line[1..]).command().map_err(|e| ScriptError::Disk(e.into()))?;
    if let Some(home) = std::env::var_os("HOME").filter(|_| context.user.is_none()) {
        command.env("HOME", home);
    }
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A host that cannot be reached reads nothing; what it says tells why.
        let _ = stdin.write_all(document.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let skip = said.chars().count().saturating_sub(TAIL_CHARS);
    let said = said.chars().skip(skip).collect::<String>().trim().replace('\n', " | ");
    Err(ScriptError::Elsewhere { host: host.to_string(), said })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_hosts_shell_gets_plain_words() {
        let context = Context {
            script_path: Some("/var/tmp/one/vmm/incus/migrate".into()),
            program: "/usr/bin/stead".into(),
            run: "/run/stead-one".into(),
            sys: "/sys".into(),
            user: Some("oneadmin".into()),
        };
        let line = command_line(&context, &"host2".parse().unwrap(), "restore", &["a".into()]).unwrap();
        insta::assert_snapshot!(line.join(" "), @"runuser -u oneadmin -- ssh -o BatchMode=yes -- host2 /var/tmp/one/vmm/incus/restore a");
        for bad in ["/a b", "/a;b", "/$(x)", "/a'b"] {
            assert!(path_word(Path::new(bad)).is_err(), "{bad}");
        }
    }
}
