//! Runs one test in its own process group, with its output in a file, and kills the whole group when its time is up.

use super::binaries::Test;
use rustix::process::{Pid, Signal, kill_process_group};
use std::{fs, io, path::Path, process::Stdio, time::Duration};
use stead_testkit::parts::MARK;
use tokio::process::Command;

/// How a test, or a part of one, ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It passed.
    Passed,
    /// It cannot run here, for this reason.
    Skipped(String),
    /// It failed: the exit code, signal or time limit, in a few words.
    Failed(String),
}

/// A part of a test (`stead_testkit::parts`) that has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Its name within the test.
    pub name: String,
    /// How long it took.
    pub seconds: f64,
    /// How it ended.
    pub outcome: Outcome,
    /// Its lines in the test's output, from 0.
    pub lines: std::ops::Range<usize>,
}

/// The parts reported in a test's output.
pub fn parts(output: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut begun = 0;
    for (n, line) in output.lines().enumerate() {
        let Some((name, rest)) = line.strip_prefix(MARK).and_then(|l| l.split_once(": ")) else { continue };
        let (end, reason) = rest.split_once(": ").unwrap_or((rest, ""));
        let Some((word, seconds)) = end.split_once(' ') else { continue };
        let Ok(seconds) = seconds.parse() else { continue };
        let outcome = match word {
            "ok" => Outcome::Passed,
            "SKIP" => Outcome::Skipped(reason.to_owned()),
            _ => Outcome::Failed(reason.to_owned()),
        };
        parts.push(Part { name: name.to_owned(), seconds, outcome, lines: begun..n + 1 });
        begun = n + 1;
    }
    parts
}

/// Kills what is left of the group: nothing after a test that ended, everything of one that did not.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        // ESRCH: nothing is left, as expected.
        let _ = kill_process_group(self.0, Signal::KILL);
    }
}

/// Runs a test. Dropping the future kills it.
pub async fn run(test: &Test, timeout: Duration, output: &Path) -> Outcome {
    match try_run(test, timeout, output).await {
        Ok(outcome) => outcome,
        Err(error) => Outcome::Failed(format!("cannot run: {error}")),
    }
}

async fn try_run(test: &Test, timeout: Duration, output: &Path) -> io::Result<Outcome> {
    let out = fs::File::create(output)?;
    let folder = &test.binary.folder;
    let mut child = Command::new(&test.binary.file)
        .args(["--exact", &test.name, "--nocapture"])
        .current_dir(folder)
        // The first is what cargo sets; without the second insta would run cargo in each process.
        .env("CARGO_MANIFEST_DIR", folder)
        .env("INSTA_WORKSPACE_ROOT", &test.binary.workspace)
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .process_group(0)
        .spawn()?;
    let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed())).map(Group);
    let ended = tokio::time::timeout(timeout, child.wait()).await;
    drop(group);
    let Ok(status) = ended else {
        child.wait().await?;
        return Ok(Outcome::Failed(format!("not done after {} s", timeout.as_secs())));
    };
    let status = status?;
    let text = String::from_utf8_lossy(&fs::read(output)?).into_owned();
    Ok(match skipped(&text) {
        _ if !status.success() => Outcome::Failed(status.to_string()),
        Some(reason) => Outcome::Skipped(reason),
        None if ran(&text) => Outcome::Passed,
        None => Outcome::Failed("the binary ran no such test".into()),
    })
}

/// The reason in the first line `SKIP name: reason`.
fn skipped(output: &str) -> Option<String> {
    let line = output.lines().find_map(|l| l.strip_prefix("SKIP "))?;
    Some(line.split_once(": ").map_or(line, |(_, reason)| reason).to_owned())
}

/// Whether the harness reports one passed test: a binary that exits with 0 early has proved nothing.
fn ran(output: &str) -> bool {
    output.lines().any(|l| l.starts_with("test result: ok. 1 passed;"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::binaries::Binary;
    use std::sync::Arc;

    #[test]
    fn skips_are_read_with_their_reason() {
        assert_eq!(skipped("\nrunning 1 test\nSKIP a: needs root: no\nok"), Some("needs root: no".into()));
        assert_eq!(skipped("not SKIP a: b"), None);
    }

    #[test]
    fn parts_are_read_with_their_output() {
        let output = "running 1 test\nPART up: ok 1.250\nthread panicked\nPART b/c: FAIL 0.5: no: such\nPART d: SKIP 0: not here\nPART of a sentence\nPART x: y\n";
        let part = |name: &str, seconds, outcome, lines| Part { name: name.into(), seconds, outcome, lines };
        assert_eq!(
            parts(output),
            [
                part("up", 1.25, Outcome::Passed, 0..2),
                part("b/c", 0.5, Outcome::Failed("no: such".into()), 2..4),
                part("d", 0.0, Outcome::Skipped("not here".into()), 4..5),
            ]
        );
    }

    #[test]
    fn only_a_test_that_ran_has_passed() {
        assert!(ran(
            "running 1 test\nx\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out"
        ));
        assert!(!ran(
            "running 0 tests\ntest result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 4 filtered out"
        ));
        assert!(!ran(""));
    }

    /// Runs a script in place of a test binary.
    async fn outcome(script: &str, timeout: Duration) -> (Outcome, String) {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("binary");
        // Written by another process: a fork by a concurrent test must not hold it open for writing (ETXTBSY).
        let written = std::process::Command::new("sh")
            .args(["-c", "printf '%s' \"$1\" >\"$0\""])
            .arg(&file)
            .arg(format!("#!/bin/sh\n{script}\n"))
            .status()
            .unwrap();
        assert!(written.success());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        let binary = Binary {
            package: "p".into(),
            folder: dir.path().into(),
            workspace: "/".into(),
            file,
            integration: None,
        };
        let test = Test { binary: Arc::new(binary), name: "t".into() };
        let output = dir.path().join("output");
        let outcome = run(&test, timeout, &output).await;
        (outcome, fs::read_to_string(output).unwrap())
    }

    #[tokio::test]
    async fn outcomes_of_processes() {
        const LONG: Duration = Duration::from_secs(600);
        let passed = "echo $1 $2; echo 'test result: ok. 1 passed; 0 failed'";
        assert_eq!(outcome(passed, LONG).await.0, Outcome::Passed);
        assert!(outcome(passed, LONG).await.1.starts_with("--exact t\n"));
        assert_eq!(outcome("echo SKIP t: no root", LONG).await.0, Outcome::Skipped("no root".into()));
        let failed = outcome("echo SKIP t: no root; exit 101", LONG).await.0;
        assert_eq!(failed, Outcome::Failed("exit status: 101".into()));
        assert!(matches!(outcome("exit 0", LONG).await.0, Outcome::Failed(_)));
    }

    /// Its children are killed too.
    #[tokio::test]
    async fn a_test_that_takes_too_long_is_killed_with_its_children() {
        let (outcome, output) = outcome("sleep 1000 & echo $! $$; wait", Duration::from_secs(3)).await;
        assert!(matches!(outcome, Outcome::Failed(why) if why.starts_with("not done")));
        assert_eq!(output.split_whitespace().count(), 2, "{output}");
        for pid in output.split_whitespace() {
            // It dies a moment after the signal, and stays a zombie until init reaps it.
            let runs = || {
                fs::read_to_string(format!("/proc/{pid}/stat"))
                    .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, s)| !s.starts_with(['Z', 'X'])))
            };
            for _ in 0..6000 {
                if !runs() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert!(!runs(), "{pid} is still running");
        }
    }
}
