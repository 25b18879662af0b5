//! Lists the test binaries, from cargo's messages, and the tests in them, from the binaries.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

/// A built test binary.
#[derive(Debug, PartialEq, Eq)]
pub struct Binary {
    /// The crate.
    pub package: String,
    /// The crate's folder, in which tests run, as under cargo.
    pub folder: PathBuf,
    /// The workspace's folder.
    pub workspace: PathBuf,
    /// The file to run.
    pub file: PathBuf,
    /// The name of an integration test binary, `it` where a crate has only one.
    pub integration: Option<String>,
}

/// One test of a binary.
#[derive(Debug, Clone)]
pub struct Test {
    /// The binary that contains it.
    pub binary: Arc<Binary>,
    /// Its name in the binary.
    pub name: String,
}

impl Test {
    /// `crate::name` of a unit test, `crate::it::name` of an integration test.
    pub fn full_name(&self) -> String {
        format!("{}{}", self.prefix(), self.name)
    }

    /// What its name in the binary is preceded by.
    pub fn prefix(&self) -> String {
        let Binary { package, integration, .. } = &*self.binary;
        match integration.as_deref() {
            None => format!("{package}::"),
            Some("it") => format!("{package}::it::"),
            Some(other) => format!("{package}::it::{other}::"),
        }
    }
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    executable: Option<PathBuf>,
    profile: Option<Profile>,
}
#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}
#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// Builds the tests of a workspace and lists them.
///
/// # Errors
/// They cannot be built, or a binary does not list its tests.
pub fn build(manifest: &Path, profile: &str) -> Result<Vec<Test>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["test", "--locked", "--workspace", "--no-run", "--profile", profile, "--quiet"])
        .args(["--message-format", "json-render-diagnostics", "--manifest-path"])
        .arg(manifest)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "the tests of {} cannot be built", manifest.display());
    let mut tests = Vec::new();
    let workspace = manifest.canonicalize()?.parent().context("a manifest at the top")?.to_owned();
    for binary in read(&String::from_utf8(output.stdout)?, &workspace)? {
        tests.extend(list(Arc::new(binary))?);
    }
    Ok(tests)
}

/// The test binaries in cargo's messages.
fn read(messages: &str, workspace: &Path) -> Result<Vec<Binary>> {
    let mut binaries = Vec::new();
    for line in messages.lines() {
        let message: Message = serde_json::from_str(line).with_context(|| format!("cargo printed {line}"))?;
        let (Some(file), Some(manifest), Some(target), Some(Profile { test: true })) =
            (message.executable, message.manifest_path, message.target, message.profile)
        else {
            continue;
        };
        if message.reason != "compiler-artifact" {
            continue;
        }
        let folder = manifest.parent().context("a manifest without a folder")?.to_owned();
        let package = folder.file_name().context("a manifest at the top")?.to_string_lossy().into_owned();
        let integration = (target.kind == ["test"]).then_some(target.name);
        binaries.push(Binary { package, folder, workspace: workspace.to_owned(), file, integration });
    }
    Ok(binaries)
}

fn list(binary: Arc<Binary>) -> Result<Vec<Test>> {
    let output = Command::new(&binary.file)
        .args(["--list", "--format", "terse"])
        .current_dir(&binary.folder)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", binary.file.display()))?;
    ensure!(output.status.success(), "{} does not list its tests", binary.file.display());
    let mut tests = Vec::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let Some(name) = line.strip_suffix(": test") else {
            bail!("{} lists {line:?}, which is not a test", binary.file.display());
        };
        tests.push(Test { binary: binary.clone(), name: name.to_owned() });
    }
    Ok(tests)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_binaries_are_found_in_messages() {
        let messages = r#"{"reason":"compiler-artifact","manifest_path":"/w/crates/a/Cargo.toml","target":{"name":"a","kind":["lib"]},"profile":{"test":false},"executable":null}
{"reason":"compiler-artifact","manifest_path":"/w/crates/a/Cargo.toml","target":{"name":"a","kind":["bin"]},"profile":{"test":false},"executable":"/t/a"}
{"reason":"compiler-artifact","manifest_path":"/w/crates/a/Cargo.toml","target":{"name":"a","kind":["lib"]},"profile":{"test":true},"executable":"/t/a-1"}
{"reason":"compiler-artifact","manifest_path":"/w/crates/a/Cargo.toml","target":{"name":"it","kind":["test"]},"profile":{"test":true},"executable":"/t/it-2"}
{"reason":"build-finished","success":true}"#;
        let found = read(messages, Path::new("/w")).unwrap();
        let [unit, it] = &found[..] else { panic!("{found:?}") };
        assert_eq!((unit.file.to_str(), &unit.integration), (Some("/t/a-1"), &None));
        assert_eq!((it.package.as_str(), it.folder.to_str()), ("a", Some("/w/crates/a")));
        let of = |binary| Test { binary: Arc::new(binary), name: "m::t".into() }.full_name();
        let names: Vec<String> = found.into_iter().map(of).collect();
        assert_eq!(names, ["a::m::t", "a::it::m::t"]);
        assert!(read("not json", Path::new("/w")).is_err());
    }
}
