//! Operations: background work of the server.

use super::nullable;
use serde::Deserialize;
use serde_json::Value;
use std::{collections::BTreeMap, fmt};

/// An operation.
#[derive(Clone, PartialEq, Deserialize)]
pub struct OperationStatus {
    /// UUID.
    pub id: String,
    /// `task`, `websocket`, `token`.
    #[serde(default)]
    pub class: String,
    /// Free-text description.
    #[serde(default)]
    pub description: String,
    /// 103 running, 200 success, 400 failure, 401 cancelled; see [`Self::outcome`].
    pub status_code: u16,
    /// Details, which depend on the kind of work.
    #[serde(default)]
    pub metadata: Value,
    /// The error if it failed.
    #[serde(default)]
    pub err: String,
    /// API paths of the objects it works on, by kind.
    #[serde(default, deserialize_with = "nullable")]
    pub resources: BTreeMap<String, Option<Vec<String>>>,
    /// Whether it can be cancelled.
    #[serde(default)]
    pub may_cancel: bool,
    /// Member it runs on; `none` when not clustered.
    #[serde(default)]
    pub location: String,
    /// When it began.
    #[serde(default)]
    pub created_at: String,
    /// When its state last changed.
    #[serde(default)]
    pub updated_at: String,
}

/// Leaves out the metadata, which may hold secrets of websockets or tokens.
impl fmt::Debug for OperationStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OperationStatus")
            .field("id", &self.id)
            .field("description", &self.description)
            .field("status_code", &self.status_code)
            .field("err", &self.err)
            .finish_non_exhaustive()
    }
}

/// State of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is still running.
    Running,
    /// It succeeded.
    Success,
    /// It failed.
    Failure,
    /// It was cancelled.
    Cancelled,
}

/// Progress of an operation, as far as the server reports it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// The server's text for people: `rootfs: 52.4MB (10.1MB/s)`.
    pub text: String,
    /// Percentage, 0 to 100.
    pub percent: Option<u8>,
    /// Bytes processed so far.
    pub processed_bytes: Option<u64>,
    /// Bytes per second.
    pub speed_bytes: Option<u64>,
}

impl OperationStatus {
    /// Its state, from the status code.
    pub fn outcome(&self) -> Outcome {
        match self.status_code {
            200 => Outcome::Success,
            401 => Outcome::Cancelled,
            400.. => Outcome::Failure,
            _ => Outcome::Running,
        }
    }
    /// Its progress. Servers write a text under `<stage>_progress` and, for some work, numbers (as strings) under
    /// `progress`.
    pub fn progress(&self) -> Option<Progress> {
        let map = self.metadata.as_object()?;
        let text = map
            .iter()
            .filter(|(key, _)| key.ends_with("_progress"))
            .find_map(|(_, value)| value.as_str())
            .map(str::to_owned);
        let number = |key: &str| -> Option<u64> {
            match map.get("progress")?.get(key)? {
                Value::String(text) => text.parse().ok(),
                other => other.as_u64(),
            }
        };
        let percent = number("percent").and_then(|p| u8::try_from(p.min(100)).ok());
        if text.is_none() && !map.contains_key("progress") {
            return None;
        }
        Some(Progress {
            text: text.unwrap_or_default(),
            percent,
            processed_bytes: number("processed"),
            speed_bytes: number("speed"),
        })
    }
    /// Secrets of its websockets by name: for migrations `control`, `fs`, … at the top level, for commands `0`, `1`, `2`
    /// and `control` under `fds`.
    pub fn secrets(&self) -> BTreeMap<String, String> {
        let metadata = self.metadata.get("fds").unwrap_or(&self.metadata);
        metadata
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(name, secret)| Some((name.clone(), secret.as_str()?.to_owned())))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn operation(metadata: Value) -> OperationStatus {
        serde_json::from_value(json!({ "id": "u", "status_code": 103, "metadata": metadata })).unwrap()
    }

    #[test]
    fn progress_is_read_from_texts() {
        let o = operation(json!({
            "create_image_from_container_pack_progress": "Image pack: 45% (1.00MB/s)",
            "progress": { "stage": "create_image_from_container_pack", "percent": "45", "speed": "1000000" },
        }));
        assert_eq!(
            o.progress().unwrap(),
            Progress {
                text: "Image pack: 45% (1.00MB/s)".into(),
                percent: Some(45),
                processed_bytes: None,
                speed_bytes: Some(1_000_000),
            }
        );
        assert_eq!(operation(Value::Null).progress(), None);
        assert_eq!(operation(json!({ "fds": {} })).progress(), None);
    }

    #[test]
    fn secrets_of_both_kinds() {
        let exec = operation(json!({ "fds": { "0": "a", "control": "b" }, "command": ["x"] }));
        assert_eq!(
            exec.secrets(),
            BTreeMap::from([("0".into(), "a".into()), ("control".into(), "b".into())])
        );
        let migration = operation(json!({ "control": "c", "fs": "d" }));
        assert_eq!(migration.secrets().len(), 2);
        assert!(!format!("{:?}", operation(json!({ "control": "SECRET" }))).contains("SECRET"));
    }
}
