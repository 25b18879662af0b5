//! Parses YAML or JSON text into a typed value, with errors that name file, line, key and the likely correction.

mod words;

use crate::{Failure, FailureKind};
use serde::de::DeserializeOwned;
use std::fmt;

/// Limit on the length of a recipe, cluster file or node spec, in bytes. Generous: the largest real one is 20 KiB, but a
/// node spec may carry a user's preseed.
pub const MAX_TEXT_BYTES: usize = 4 << 20;

/// A file is malformed or invalid. Displayed as `FILE:LINE:COLUMN: key: message; did you mean "…"?`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecError {
    /// The file's name as given by the caller, or a substitute such as `<stdin>`.
    pub file: String,
    /// Line, counted from 1, if known.
    pub line: Option<u64>,
    /// Column, counted from 1, if known.
    pub column: Option<u64>,
    /// The key the error is about, if known.
    pub key: Option<String>,
    /// The error, a lowercase fragment.
    pub message: String,
    /// The word that was probably meant, if one is similar.
    pub suggestion: Option<String>,
}

impl SpecError {
    /// An error about `key` in a file; finds the line of the key in `text` if possible.
    pub fn about(file: &str, text: &str, key: &str, message: impl Into<String>) -> Self {
        let leaf = key.rsplit('.').next().unwrap_or(key);
        let leaf = leaf.split('[').next().unwrap_or(leaf);
        let line = text
            .lines()
            .position(|l| {
                l.trim_start()
                    .trim_start_matches("- ")
                    .strip_prefix(leaf)
                    .is_some_and(|r| r.trim_start().starts_with(':'))
            })
            .map(|n| n as u64 + 1);
        Self {
            file: file.to_owned(),
            line,
            column: None,
            key: Some(key.to_owned()),
            message: message.into(),
            suggestion: None,
        }
    }
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
            if let Some(column) = self.column {
                write!(f, ":{column}")?;
            }
        }
        write!(f, ": ")?;
        if let Some(key) = self.key.as_deref().filter(|k| !self.message.contains(*k)) {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.message)?;
        if let Some(s) = &self.suggestion {
            write!(f, "; did you mean {s:?}?")?;
        }
        Ok(())
    }
}
impl std::error::Error for SpecError {}
impl Failure for SpecError {
    fn failure_kind(&self) -> FailureKind {
        FailureKind::BadInput
    }
}

/// Parses a YAML document (JSON is YAML) as `T`.
///
/// # Errors
/// Malformed text, unknown or repeated keys, wrong types, or more than [`MAX_TEXT_BYTES`].
pub fn from_yaml<T: DeserializeOwned>(file: &str, text: &str) -> Result<T, SpecError> {
    too_large(file, text)?;
    serde_saphyr::from_str(text).map_err(|e| {
        let outer = e.location().map(|l| (l.line(), l.column()));
        let full = e.without_snippet().to_string();
        let (message, place) = placed(&full);
        let (line, column) = place.or(outer).unzip();
        build(file, text, line, column, message)
    })
}

/// Splits a message from its line and column. Below a key with two forms, each level of nesting adds a place; the first
/// one is the error's.
fn placed(full: &str) -> (&str, Option<(u64, u64)>) {
    let Some((message, place)) = full.split_once(" at line ") else { return (full, None) };
    let numbers = place.split(" at line ").next().unwrap_or_default().split_once(", column ");
    (message, numbers.and_then(|(line, column)| Some((line.parse().ok()?, column.parse().ok()?))))
}

/// Parses a JSON document as `T`. Errors as [`from_yaml`].
pub fn from_json<T: DeserializeOwned>(file: &str, text: &str) -> Result<T, SpecError> {
    too_large(file, text)?;
    serde_json::from_str(text).map_err(|e| {
        let full = e.to_string();
        let (message, place) = placed(&full);
        let (line, column) = place.unwrap_or((e.line() as u64, e.column() as u64));
        build(file, text, Some(line), Some(column), message)
    })
}

fn too_large(file: &str, text: &str) -> Result<(), SpecError> {
    if text.len() <= MAX_TEXT_BYTES {
        return Ok(());
    }
    Err(SpecError {
        file: file.to_owned(),
        line: None,
        column: None,
        key: None,
        message: format!("{} bytes exceed the limit of {MAX_TEXT_BYTES}", text.len()),
        suggestion: None,
    })
}

fn build(file: &str, text: &str, line: Option<u64>, column: Option<u64>, message: &str) -> SpecError {
    let mut message = words::ours(message);
    let mut suggestion = None;
    let mut key = None;
    if let Some(rest) =
        message.strip_prefix("unknown field `").or_else(|| message.strip_prefix("unknown variant `"))
        && let Some((unknown, expected)) = rest.split_once('`')
    {
        let unknown = unknown.to_owned();
        suggestion = expected
            .trim_start_matches(", expected one of ")
            .trim_start_matches(", expected ")
            .split(',')
            .flat_map(|w| w.trim().trim_start_matches("or ").split(" or "))
            .map(|w| w.trim().trim_matches('`'))
            .map(|w| (strsim::damerau_levenshtein(w, &unknown), w))
            .filter(|(d, w)| *d <= 1 + w.len().min(unknown.len()) / 3)
            .min()
            .map(|(_, w)| w.to_owned());
        key = Some(unknown);
        message = message.replace('`', "\"").replacen("field", "key", 1);
    } else if let (Some(line), Some(column)) = (line, column) {
        key = key_before(text, line, column);
    }
    SpecError { file: file.to_owned(), line, column, key, message, suggestion }
}

/// The last `word:` on the line before the column: the key whose value is wrong.
fn key_before(text: &str, line: u64, column: u64) -> Option<String> {
    let line = text.lines().nth(usize::try_from(line).ok()?.checked_sub(1)?)?;
    let head: String = line.chars().take(usize::try_from(column).ok()?.saturating_sub(1)).collect();
    let (before, _) = head.rsplit_once(':')?;
    let key =
        before.rsplit(|c: char| !(c.is_alphanumeric() || "_-.\"".contains(c))).next()?.trim_matches('"');
    (!key.is_empty()).then(|| key.to_owned())
}

#[cfg(test)]
mod tests {
    use crate::cluster::ClusterSpec;

    fn error(text: &str) -> String {
        super::from_yaml::<ClusterSpec>("c.yaml", text).unwrap_err().to_string()
    }

    #[test]
    fn names_file_line_key_and_correction() {
        assert_eq!(
            error("name: demo\nimage: x\nnodes: 3\nnetwrks: []\n").split(", expected").next().unwrap(),
            "c.yaml:4:1: unknown key \"netwrks\""
        );
        assert!(
            error("name: demo\nimage: x\nnodes: 3\nnetwrks: []\n").ends_with("did you mean \"networks\"?")
        );
        let bad = error("name: Demo\nimage: x\nnodes: 3\n");
        assert!(bad.starts_with("c.yaml:1:7: cluster name \"Demo\" may hold"), "{bad}");
        assert!(error("name: demo\nname: demo\n").contains("duplicate"));
        assert!(error("").contains("c.yaml"));
    }
}
