//! RAW of type `lxd` or `incus`: the inside of a JSON object, merged into the instance's settings last.
//!
//! Parsed strictly: anything but a JSON object of plain values is an error, because it would otherwise be lost
//! silently.

use serde_json::{Map, Value};
use stead_incus::types::Config;

/// RAW cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RawError {
    /// It is not the inside of a JSON object.
    #[error("RAW is not the inside of a JSON object")]
    Json(#[source] serde_json::Error),
    /// A value is a list, an object or null.
    #[error("RAW sets {key:?} to {found}, but the engine accepts only text, a number, true or false")]
    Value {
        /// Its key.
        key: String,
        /// Type of the value.
        found: &'static str,
    },
    /// A key is repeated, so its value is ambiguous.
    #[error("RAW sets {0:?} twice")]
    Twice(String),
}

/// Reads RAW's DATA.
///
/// # Errors
/// [`RawError`].
pub fn parse(data: &str) -> Result<Config, RawError> {
    let entries: Entries = serde_json::from_str(&format!("{{{data}}}")).map_err(RawError::Json)?;
    let mut config = Config::new();
    for (key, value) in entries.0 {
        let text = match value {
            Value::String(text) => text,
            Value::Number(number) => number.to_string(),
            Value::Bool(flag) => flag.to_string(),
            Value::Null => return Err(RawError::Value { key, found: "null" }),
            Value::Array(_) => return Err(RawError::Value { key, found: "a list" }),
            Value::Object(Map { .. }) => return Err(RawError::Value { key, found: "an object" }),
        };
        if config.contains_key(&key) {
            return Err(RawError::Twice(key));
        }
        config.insert(key, text);
    }
    Ok(config)
}

/// An object's entries as written: a map would drop one of two equal keys.
struct Entries(Vec<(String, Value)>);

impl<'de> serde::Deserialize<'de> for Entries {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Entries;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_manuals_example() {
        let config = parse(r#""boot.autostart": "true", "limits.processes": "10000""#).unwrap();
        assert_eq!(
            config,
            Config::from([
                ("boot.autostart".into(), "true".into()),
                ("limits.processes".into(), "10000".into())
            ])
        );
        assert_eq!(parse("").unwrap(), Config::new());
        assert_eq!(parse(r#""a": 1, "b": false"#).unwrap()["b"], "false");
    }

    #[test]
    fn broken_raw_is_an_error() {
        assert!(matches!(parse("boot.autostart: true"), Err(RawError::Json(_))));
        assert!(matches!(parse(r#""a": "1"} , {"b": "2""#), Err(RawError::Json(_))));
        assert!(matches!(parse(r#""a": {"b": 1}"#), Err(RawError::Value { .. })));
        assert!(matches!(parse(r#""a": null"#), Err(RawError::Value { .. })));
        assert!(matches!(parse(r#""a": "1", "a": "2""#), Err(RawError::Twice(_))));
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in ".{0,200}") { let _ = parse(&text); }
    }
}
