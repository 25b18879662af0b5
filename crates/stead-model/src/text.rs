//! Parses YAML or JSON text into a typed value, with errors that name file, line, key and the likely correction.

mod words;

use crate::{Failure, FailureKind};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_saphyr::Spanned;
use serde_untagged::UntaggedEnumVisitor;
use std::{collections::BTreeMap, fmt};

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
    /// An error about `key` in a file, with the line of the key in `text` if that is certain. The key is a path, as
    /// `base.debian.suite` or `networks[1].ipv4`, or the name of a key at any depth.
    pub fn about(file: &str, text: &str, key: &str, message: impl Into<String>) -> Self {
        let line = place_of(text, key).or_else(|| line_of(text, key));
        Self::at(file, line, key, message)
    }

    /// As [`Self::about`], for a JSON text: does without the YAML parser, which would be a fifth of `stead-node`.
    pub fn about_json(file: &str, json: &str, key: &str, message: impl Into<String>) -> Self {
        Self::at(file, line_of(json, key), key, message)
    }

    fn at(file: &str, line: Option<u64>, key: &str, message: impl Into<String>) -> Self {
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

/// A line that begins with a key, or with an item of a list.
struct Entry<'t> {
    /// From 1.
    line: u64,
    /// Column of the key or of the item's dash.
    indent: usize,
    /// Empty for a dash.
    key: &'t str,
}

/// The entries of a text in block style, in order; of what stands within one line, only the first key. JSON with a key a
/// line is read as well.
fn entries(text: &str) -> Vec<Entry<'_>> {
    let mut entries = Vec::new();
    for (line, mut rest) in (1..).zip(text.lines()) {
        let mut indent = 0;
        loop {
            let trimmed = rest.trim_start();
            indent += rest.len() - trimmed.len();
            let Some(item) = trimmed.strip_prefix("- ").or((trimmed == "-").then_some("")) else {
                let key = trimmed.split_once(':').map(|(key, _)| key.trim_end().trim_matches(['"', '\'']));
                let plain = |k: &&str| !k.is_empty() && !k.contains([' ', '#', '{', '[', '"', '\'']);
                entries.extend(key.filter(plain).map(|key| Entry { line, indent, key }));
                break;
            };
            entries.push(Entry { line, indent, key: "" });
            indent += 2;
            rest = item;
        }
    }
    entries
}

/// The line of a key, or of the nearest key above it that the text has; `None` if several lines could be meant.
fn line_of(text: &str, path: &str) -> Option<u64> {
    let all = entries(text);
    let mut within = &all[..];
    let mut line = None;
    for segment in path.split('.') {
        let (key, number) = match segment.strip_suffix(']').and_then(|s| s.split_once('[')) {
            Some((key, number)) => (key, number.parse::<usize>().ok()),
            None => (segment, None),
        };
        let Some(found) = member(within, |e| e.key == key, 0) else { break };
        line = Some(within[found].line);
        within = below(within, found);
        if let Some(number) = number {
            let Some(found) = member(within, |e| e.key.is_empty(), number) else { break };
            line = Some(within[found].line);
            within = below(within, found);
        }
    }
    // No path: a name that may stand at any depth.
    line.or_else(|| {
        let mut same = all.iter().filter(|e| e.key == path);
        same.next().filter(|_| same.next().is_none()).map(|e| e.line)
    })
}

/// Which of `entries` is the `n`th such at their outermost level.
fn member(entries: &[Entry<'_>], is: impl Fn(&Entry<'_>) -> bool, n: usize) -> Option<usize> {
    let outermost = entries.iter().map(|e| e.indent).min()?;
    let found = entries.iter().enumerate().filter(|(_, e)| e.indent == outermost && is(e));
    found.map(|(at, _)| at).nth(n)
}

/// What stands below the entry `at`: deeper than it, or the items of a list at its own column.
fn below<'e, 't>(entries: &'e [Entry<'t>], at: usize) -> &'e [Entry<'t>] {
    let parent = &entries[at];
    let rest = &entries[at + 1..];
    let inside = |e: &Entry<'_>| {
        e.indent > parent.indent || e.indent == parent.indent && e.key.is_empty() && !parent.key.is_empty()
    };
    &rest[..rest.iter().position(|e| !inside(e)).unwrap_or(rest.len())]
}

/// A YAML document as places of its values.
struct Tree {
    below: Vec<(String, Spanned<Tree>)>,
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        UntaggedEnumVisitor::new()
            .expecting("any value")
            .unit(|| Ok(Self { below: vec![] }))
            .bool(|_| Ok(Self { below: vec![] }))
            .i64(|_| Ok(Self { below: vec![] }))
            .i128(|_| Ok(Self { below: vec![] }))
            .u64(|_| Ok(Self { below: vec![] }))
            .u128(|_| Ok(Self { below: vec![] }))
            .f64(|_| Ok(Self { below: vec![] }))
            .string(|_| Ok(Self { below: vec![] }))
            .seq(|items| {
                let items: Vec<Spanned<Self>> = items.deserialize()?;
                let named = items.into_iter().enumerate().map(|(i, item)| (i.to_string(), item));
                Ok(Self { below: named.collect() })
            })
            .map(|keys| {
                let keys: BTreeMap<String, Spanned<Self>> = keys.deserialize()?;
                Ok(Self { below: keys.into_iter().collect() })
            })
            .deserialize(d)
    }
}

/// The line of the scalar at a path such as `nodes[1].machine.cpus`, also where several values share a line or keys have dots.
fn place_of(text: &str, path: &str) -> Option<u64> {
    if !path.contains(['.', '[']) {
        return None;
    }
    let mut tree: Tree = serde_saphyr::from_str(text).ok()?;
    let mut place = None;
    let mut rest = path;
    while !rest.is_empty() {
        // Keys may have dots in them: the longest that fits.
        let bare = rest.trim_start_matches(['.', '[']);
        let fits = |name: &str| {
            bare.strip_prefix(name).is_some_and(|r| r.is_empty() || r.starts_with(['.', '[', ']']))
        };
        let found = tree.below.into_iter().filter(|(name, _)| fits(name)).max_by_key(|(name, _)| name.len());
        let (name, value) = found?;
        place = Some(value.referenced.line());
        tree = value.value;
        rest = bare[name.len()..].trim_start_matches(']');
    }
    place.filter(|_| tree.below.is_empty())
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
    // A type that wants no number answers `.inf` in its own words.
    let options = serde_saphyr::options! {
        non_finite_float_policy: serde_saphyr::options::NonFiniteFloatPolicy::PassThrough,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|e| {
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

    #[test]
    fn the_line_is_that_of_the_key_which_is_meant() {
        use super::line_of;
        let text = "# mtu: in a comment\n\
            name: demo\n\
            machine:\n  memory: 1GiB\n  disks:\n  - {name: a, size: 1}\n\
            networks:\n- name: lan\n  ipv4: 10.0.0.0/8\n- name: wan\n  nodes: [a]\n  ipv4: 10.1.0.0/30\n  \"mtu\" : 1\n\
            nodes: 3\n\
            services:\n  -\n    name: x\n    memory: 5\n";
        // Not that of a network's name or nodes.
        assert_eq!(line_of(text, "name"), Some(2));
        assert_eq!(line_of(text, "nodes"), Some(14));
        // Paths.
        assert_eq!(line_of(text, "networks[0].ipv4"), Some(9));
        assert_eq!(line_of(text, "networks[1].ipv4"), Some(12));
        assert_eq!(line_of(text, "networks[1]"), Some(10));
        assert_eq!(line_of(text, "networks[1].mtu"), Some(13));
        assert_eq!(line_of(text, "machine.memory"), Some(4));
        assert_eq!(line_of(text, "services[0].memory"), Some(18));
        // As far as the text has it.
        assert_eq!(line_of(text, "machine.cpus"), Some(3));
        assert_eq!(line_of(text, "networks[2].ipv4"), Some(7));
        // Names at any depth: of several none is better than another.
        assert_eq!(line_of(text, "mtu"), Some(13));
        assert_eq!(line_of(text, "memory"), None);
        assert_eq!(line_of(text, "ipv6"), None);
        let json = "{\n  \"a\": {\n    \"b\": 1\n  },\n  \"b\": [\n    2\n  ]\n}\n";
        assert_eq!((line_of(json, "b"), line_of(json, "a.b")), (Some(5), Some(3)));
    }
}
