//! Messages of the YAML and JSON parsers in the words of a file's author: they are written for programmers and name Rust
//! types and functions.
//!
//! Works on text, because a parser quotes the errors of nested values as text.

/// A parser's message, without its place, as an author reads it.
pub(super) fn ours(message: &str) -> String {
    if let Some(rest) = message.strip_prefix("invalid type: ").or(message.strip_prefix("invalid value: "))
        && let Some((found, expected)) = rest.rsplit_once(", expected ")
    {
        let kind = &message[..message.len() - rest.len()];
        return format!("{kind}{}, expected {}", found_value(found), expected_value(expected));
    }
    if let Some(expected) = message.strip_prefix("invalid ").filter(|ty| is_type(ty)) {
        return format!("expected {}", expected_value(expected));
    }
    if let Some((count, expected)) =
        message.strip_prefix("invalid length ").and_then(|rest| rest.split_once(", expected "))
    {
        return format!("a list of {count}, expected {}", expected_value(expected));
    }
    if let Some(name) = quoted(message, "missing field `") {
        return format!("key {name:?} is missing");
    }
    if let Some(key) = message.strip_prefix("duplicate mapping key") {
        let key = key.split(", set DuplicateKeyPolicy").next().unwrap_or_default().trim_start_matches(": ");
        return if key.is_empty() { "duplicate key".to_owned() } else { format!("duplicate key {key:?}") };
    }
    if let Some(tag) = quoted(message, "tagged enum `").or(quoted(message, "unsupported tag `")) {
        return format!("unknown tag {tag:?}");
    }
    let known = [
        ("cannot deserialize null into string", "no value, expected text"),
        ("invalid char: cannot deserialize null", "no value, expected one character"),
        ("invalid boolean (strict mode", "expected true or false"),
        ("multiple YAML documents detected", "several YAML documents, expected one"),
        ("data did not match any variant of untagged enum", "a value of none of the allowed forms"),
        ("externally tagged enum expected", "expected a word, or a map with one key"),
        ("expected string key for externally tagged enum", "expected a word, or a map with one key"),
        ("unexpected value for unit enum variant", "this word takes no value"),
        ("unexpected value for unit", "expected no value"),
        ("cannot deserialize tagged scalar into string", "expected text without a tag"),
        ("!!binary scalar is not valid UTF-8", "!!binary data is not UTF-8 text"),
        ("bytes not supported", "expected !!binary data"),
        ("YAML merge keys are not allowed", "merge keys (<<) are not supported"),
        ("recursive references require", "an alias must not contain itself"),
        ("non-finite float", "expected a finite number"),
        ("budget breached", "too large or too deeply nested"),
        ("alias replay", "too many aliases"),
        ("alias expansion limit", "too many aliases"),
    ];
    if let Some((_, text)) = known.iter().find(|(theirs, _)| message.starts_with(theirs)) {
        return (*text).to_owned();
    }
    match message.strip_prefix("expected ") {
        Some(expected) => format!("expected {}", expected_value(expected)),
        None => message.to_owned(),
    }
}

/// The name after `prefix`, up to the closing quote.
fn quoted<'m>(message: &'m str, prefix: &str) -> Option<&'m str> {
    Some(message.strip_prefix(prefix)?.split_once('`')?.0)
}

fn is_type(text: &str) -> bool {
    matches!(text, "boolean" | "bool" | "floating point" | "f32" | "f64") || range(text).is_some()
}

/// The numbers of an integer type, in words.
fn range(ty: &str) -> Option<String> {
    let bits: u32 = match ty.strip_prefix(['u', 'i'])? {
        "size" => 64,
        bits => bits.parse().ok()?,
    };
    match (ty.starts_with('u'), bits) {
        // Nobody counts up to these.
        (true, 64..) => Some("a whole number from 0".to_owned()),
        (false, 64..) => Some("a whole number".to_owned()),
        (true, _) => Some(format!("a whole number from 0 to {}", (1u64 << bits) - 1)),
        (false, _) => {
            Some(format!("a whole number from -{} to {}", 1u64 << (bits - 1), (1u64 << (bits - 1)) - 1))
        }
    }
}

/// What a parser expected.
fn expected_value(expected: &str) -> String {
    if let Some(range) = range(expected) {
        return range;
    }
    if expected.starts_with("struct ") || expected.starts_with("internally tagged enum ") {
        return "a map of keys".to_owned();
    }
    if expected.starts_with("enum ") || expected.starts_with("variant identifier") {
        return "a word, or a map with one key".to_owned();
    }
    let text = match expected {
        "boolean" | "bool" | "a boolean" => "true or false",
        "floating point" | "f32" | "f64" => "a number",
        "map" | "a map" | "mapping start" | "struct" => "a map of keys",
        "seq" | "a sequence" | "sequence start" => "a list",
        "string" | "a string" => "text",
        "scalar" | "string scalar" => "a single value",
        "mapping end" => "the end of the map",
        "unit" | "null" => "no value",
        other => other,
    };
    text.to_owned()
}

/// What a parser found.
fn found_value(found: &str) -> String {
    let text = match found {
        "unit value" | "null" | "Option value" => "no value",
        "map" => "a map",
        "sequence" => "a list",
        other => other,
    };
    text.replace("floating point `", "number `").replace("boolean `", "`")
}

#[cfg(test)]
mod tests {
    use super::super::{from_json, from_yaml};
    use serde::{Deserialize, de::DeserializeOwned};
    use std::collections::BTreeMap;

    /// A value of every kind that files have.
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct All {
        name: String,
        #[serde(default)]
        port: u16,
        #[serde(default)]
        offset: i8,
        #[serde(default)]
        size: u64,
        #[serde(default)]
        share: f64,
        #[serde(default)]
        on: bool,
        #[serde(default)]
        list: Vec<String>,
        #[serde(default)]
        map: BTreeMap<String, u32>,
        word: Option<Word>,
        inner: Option<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    #[allow(dead_code)]
    enum Word {
        One,
        Two(u32),
    }

    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Inner {
        x: u32,
    }

    const VALUES: &[&str] = &[
        "name: ",
        "name: [a]",
        "name: {a: b}",
        "port: 70000",
        "port: -1",
        "port: many",
        "port: [1]",
        "port: ",
        "offset: 300",
        "size: -1",
        "share: high",
        "on: maybe",
        "on: 3",
        "list: a",
        "list: {a: b}",
        "map: [a]",
        "map: {a: b}",
        "map: {a: 1, a: 2}",
        "word: three",
        "word: [one]",
        "word: {one: 1}",
        "word: {two: x}",
        "inner: 3",
        "inner: []",
        "inner: {}",
        "inner: {x: y}",
        "port: 1\n---\nname: b",
        "port: &a 1\nsize: *b",
        "port: !!binary x",
        "port: {",
        "port: 1\n  x",
    ];

    fn failure<T: DeserializeOwned + std::fmt::Debug>(text: &str) -> String {
        from_yaml::<T>("f", text).unwrap_err().to_string()
    }

    #[test]
    fn parsers_words_are_the_authors() {
        let told = |text: &&str| {
            let head = if text.starts_with("name") { "" } else { "name: a\n" };
            format!("{text:?}: {}\n", failure::<All>(&format!("{head}{text}")))
        };
        let all: String = VALUES.iter().map(told).collect();
        insta::assert_snapshot!(all);
    }

    #[test]
    fn no_message_names_a_rust_type_or_function() {
        let tell = |error: String| {
            for word in
                ["struct", "enum ", "Option", "_", "u16", "u32", "u64", "i8", "f64", "serde", "policy"]
            {
                assert!(!error.contains(word), "{word:?} in {error}");
            }
        };
        for text in VALUES {
            tell(failure::<All>(&format!("name: a\n{text}")));
        }
        for text in ["", "[]", "3", "name", "port: 1", "name: a\nname: b", "name: a\nother: b"] {
            tell(failure::<All>(text));
        }
        for text in
            ["{", "[]", r#"{"name": 3}"#, r#"{"name": "a", "port": 70000}"#, r#"{"name": "a", "on": "x"}"#]
        {
            tell(from_json::<All>("f", text).unwrap_err().to_string());
        }
    }
}
