//! Programs on members, where there is a way to run them: an agent, ssh, or this host itself.
//!
//! Owns the seam and the ways that need no agent. Does not own what is run.

use futures_util::future::BoxFuture;
use std::{collections::BTreeSet, process::Stdio};

/// What a program printed, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it said of itself.
    pub stderr: String,
}

/// A way to run programs on members.
pub trait Shell: Send + Sync {
    /// Whether programs can be run on this member.
    fn reaches(&self, member: &str) -> bool;
    /// Runs a program to its end, without input, as root.
    ///
    /// # Errors
    /// It could not be run, in words.
    fn run<'a>(&'a self, member: &'a str, argv: &'a [String]) -> BoxFuture<'a, Result<Ran, String>>;
}

/// No way to run anything.
#[derive(Debug, Clone, Copy)]
pub struct NoShell;

impl Shell for NoShell {
    fn reaches(&self, _: &str) -> bool {
        false
    }
    fn run<'a>(&'a self, member: &'a str, _: &'a [String]) -> BoxFuture<'a, Result<Ran, String>> {
        Box::pin(async move { Err(format!("there is no way to run programs on {member}")) })
    }
}

/// A command that runs another one on a member, such as `ssh root@{member}`; or this host, for the member that it is.
#[derive(Debug, Clone)]
pub struct Commands {
    /// Its words; `{member}` stands for the member's name. Empty: no such command.
    pub template: Vec<String>,
    /// Members that are this host.
    pub here: BTreeSet<String>,
}

/// What stands for the member's name in a template.
pub const MEMBER: &str = "{member}";

impl Commands {
    /// The argument vector of a program on a member. A remote shell joins its words, so each is quoted for it.
    fn argv(&self, member: &str, argv: &[String]) -> Vec<String> {
        if self.here.contains(member) {
            return argv.to_vec();
        }
        let words = self.template.iter().map(|word| word.replace(MEMBER, member));
        words.chain(argv.iter().map(|word| quoted(word))).collect()
    }
}

impl Shell for Commands {
    fn reaches(&self, member: &str) -> bool {
        !self.template.is_empty() || self.here.contains(member)
    }
    fn run<'a>(&'a self, member: &'a str, argv: &'a [String]) -> BoxFuture<'a, Result<Ran, String>> {
        let argv = self.argv(member, argv);
        Box::pin(async move {
            let (program, arguments) = argv.split_first().ok_or("there is nothing to run")?;
            let output = tokio::process::Command::new(program)
                .args(arguments)
                .stdin(Stdio::null())
                .kill_on_drop(true)
                .output()
                .await
                .map_err(|e| format!("cannot run {program}: {e}"))?;
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            Ok(Ran {
                // As shells pass a signal on.
                code: output.status.code().unwrap_or(128),
                stdout: text(&output.stdout),
                stderr: text(&output.stderr),
            })
        })
    }
}

/// A word as a POSIX shell reads it back.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remote_shell_gets_quoted_words() {
        let words = |all: &[&str]| all.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let commands = Commands {
            template: words(&["ssh", "-o", "BatchMode=yes", "root@{member}"]),
            here: BTreeSet::from(["node1".to_owned()]),
        };
        let argv = words(&["incus", "admin", "sql", "global", "SELECT 'x'", ""]);
        assert_eq!(
            commands.argv("node2", &argv),
            words(&[
                "ssh",
                "-o",
                "BatchMode=yes",
                "root@node2",
                "incus",
                "admin",
                "sql",
                "global",
                r"'SELECT '\''x'\'''",
                "''",
            ])
        );
        assert_eq!(commands.argv("node1", &argv), argv);
        assert!(commands.reaches("node3") && !NoShell.reaches("node3"));
    }

    #[tokio::test]
    async fn what_was_printed_comes_back() {
        let here = Commands { template: Vec::new(), here: BTreeSet::from(["me".to_owned()]) };
        let argv = ["sh".to_owned(), "-c".to_owned(), "echo out; echo err >&2; exit 3".to_owned()];
        let ran = here.run("me", &argv).await.unwrap();
        assert_eq!(ran, Ran { code: 3, stdout: "out\n".into(), stderr: "err\n".into() });
        assert!(here.run("me", &["/no/such/program".to_owned()]).await.unwrap_err().contains("cannot run"));
    }
}
