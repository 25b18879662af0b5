//! Background work of the server.

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
    /// For people.
    #[serde(default)]
    pub description: String,
    /// 103 running, 200 success, 400 failure, 401 cancelled; see [`Self::outcome`].
    pub status_code: u16,
    /// Depends on what it does.
    #[serde(default)]
    pub metadata: Value,
    /// Why it failed.
    #[serde(default)]
    pub err: String,
    /// What it works on: kind to paths.
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
    /// When it was told of last.
    #[serde(default)]
    pub updated_at: String,
}

/// Metadata may hold secrets, of websockets or tokens: they stay out of logs.
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

/// How an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on.
    Running,
    /// It succeeded.
    Success,
    /// It failed.
    Failure,
    /// It was cancelled.
    Cancelled,
}

/// How far an operation is, in as far as the server says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// As the server puts it for people: `rootfs: 52.4MB (10.1MB/s)`.
    pub text: String,
    /// 0 to 100.
    pub percent: Option<u8>,
    /// Bytes so far.
    pub processed_bytes: Option<u64>,
    /// Bytes a second.
    pub speed_bytes: Option<u64>,
}

impl OperationStatus {
    /// How it stands.
    pub fn outcome(&self) -> Outcome {
        match self.status_code {
            200 => Outcome::Success,
            401 => Outcome::Cancelled,
            400.. => Outcome::Failure,
            _ => Outcome::Running,
        }
    }
    /// How far it is. Servers write a text under `<stage>_progress` and, for some work, numbers (as texts) under
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
    /// The secrets of its websockets by their names: `control`, `fs`, … at the top for migrations, `0`, `1`, `2`,
    /// `control` under `fds` for commands.
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
