//! `etc/vmm/<driver>/lxdrc`: YAML with keys written as Ruby symbols (`:vnc:`).
//!
//! Owns parsing it. An unknown key is reported and otherwise ignored: the file belongs to an administrator, and other
//! releases of the driver had other keys. A known key with an invalid value is an error.

use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use stead_model::{Failure, FailureKind};

/// Largest configuration accepted.
const MAX_BYTES: usize = 1 << 20;
/// The default command, as in OpenNebula's own file.
const VNC_COMMAND: &str = "/bin/login";
/// As long as OpenNebula's own driver waited.
const SHUTDOWN_TIMEOUT_S: u32 = 120;
const FILESYSTEMS: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// The driver's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lxdrc {
    /// `:vnc:`.
    pub vnc: Vnc,
    /// `:datastore_location:`: where the datastores are.
    pub datastore_location: PathBuf,
    /// `:filesystem:` of volatile disks.
    pub filesystem: String,
    /// `:storage_pool:` that instances are made in, of driver `dir`; absent: the profile's, else the first that can.
    pub storage_pool: Option<String>,
    /// `:socket:` of the engine; absent: the usual places.
    pub socket: Option<PathBuf>,
    /// `:shutdown_timeout:`: seconds that an instance has to shut down.
    pub shutdown_timeout_s: u32,
}

/// `:vnc:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vnc {
    /// `:command:` that is run in the instance.
    pub command: String,
    /// `:width:` in pixels.
    pub width: u16,
    /// `:height:` in pixels.
    pub height: u16,
    /// `:timeout:`: seconds without a key, after which the command is ended; 0: never.
    pub timeout_s: u32,
    /// `:allow_no_password:` on addresses that others can reach.
    pub allow_no_password: bool,
}

impl Default for Lxdrc {
    fn default() -> Self {
        Self {
            vnc: Vnc {
                command: VNC_COMMAND.to_owned(),
                width: 800,
                height: 600,
                timeout_s: 300,
                allow_no_password: false,
            },
            datastore_location: PathBuf::from("/var/lib/one/datastores"),
            filesystem: FILESYSTEMS[0].to_owned(),
            storage_pool: None,
            socket: None,
            shutdown_timeout_s: SHUTDOWN_TIMEOUT_S,
        }
    }
}

/// The author of the file can fix it, so all errors are bad input.
impl Failure for LxdrcError {
    fn failure_kind(&self) -> FailureKind {
        FailureKind::BadInput
    }
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LxdrcError {
    /// Could not be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not YAML. The error names line and column.
    #[error("{file} is not YAML: {message}")]
    Yaml {
        /// The file.
        file: String,
        /// The parser's message.
        message: String,
    },
    /// Longer than any configuration, or not text.
    #[error("{0} is not a configuration: larger than 1 MiB, or not text")]
    NoText(String),
    /// A known key has an invalid value.
    #[error("{file}: :{key}: is {found}, not {expected}")]
    Value {
        /// The file.
        file: String,
        /// Path of keys.
        key: String,
        /// What it is.
        found: String,
        /// The expected form.
        expected: &'static str,
    },
}

/// Reads the file; a missing file means the defaults.
///
/// # Errors
/// [`LxdrcError`].
pub fn load(path: &Path) -> Result<(Lxdrc, Vec<String>), LxdrcError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok((Lxdrc::default(), Vec::new())),
        Err(source) => return Err(LxdrcError::Read { path: path.to_owned(), source }),
    };
    let name = path.display().to_string();
    let text = String::from_utf8(bytes).map_err(|_| LxdrcError::NoText(name.clone()))?;
    parse(&name, &text)
}

/// Parses a configuration; also returns unknown keys, as `vnc.colour`.
///
/// # Errors
/// [`LxdrcError`].
pub fn parse(file: &str, text: &str) -> Result<(Lxdrc, Vec<String>), LxdrcError> {
    if text.len() > MAX_BYTES {
        return Err(LxdrcError::NoText(file.to_owned()));
    }
    let yaml: Option<Value> = serde_saphyr::from_str(text)
        .map_err(|e| LxdrcError::Yaml { file: file.to_owned(), message: first_line(&e.to_string()) })?;
    let mut reader = Reader { file, unknown: Vec::new() };
    let mut rc = Lxdrc::default();
    let top = reader.map("", yaml.unwrap_or(Value::Null))?;
    for (key, value) in top {
        match key.as_str() {
            "vnc" => reader.vnc(&mut rc.vnc, value)?,
            "datastore_location" => rc.datastore_location = reader.path(&key, value)?,
            "filesystem" => {
                let name = reader.text(&key, value)?;
                if !FILESYSTEMS.contains(&name.as_str()) {
                    return Err(reader.error(&key, &Value::String(name), "ext4, xfs or btrfs"));
                }
                rc.filesystem = name;
            }
            "storage_pool" => rc.storage_pool = Some(reader.text(&key, value)?),
            "shutdown_timeout" => {
                rc.shutdown_timeout_s = reader.number(&key, value, 1, 3600, "seconds, 1 to 3600")?;
            }
            "socket" => rc.socket = Some(reader.path(&key, value)?),
            _ => reader.unknown.push(key),
        }
    }
    Ok((rc, reader.unknown))
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

struct Reader<'a> {
    file: &'a str,
    unknown: Vec<String>,
}

impl Reader<'_> {
    fn error(&self, key: &str, found: &Value, expected: &'static str) -> LxdrcError {
        let found: String = found.to_string().chars().take(80).collect();
        LxdrcError::Value { file: self.file.to_owned(), key: key.to_owned(), found, expected }
    }

    /// A map without its keys' leading colons: `:vnc:` in YAML is the key `:vnc`. Plain keys are accepted too.
    fn map(&self, key: &str, value: Value) -> Result<Map<String, Value>, LxdrcError> {
        match value {
            Value::Null => Ok(Map::new()),
            Value::Object(map) => {
                Ok(map.into_iter().map(|(k, v)| (k.strip_prefix(':').unwrap_or(&k).to_owned(), v)).collect())
            }
            other => Err(self.error(key, &other, "a map of keys")),
        }
    }
    fn text(&self, key: &str, value: Value) -> Result<String, LxdrcError> {
        match value {
            Value::String(text) if !text.is_empty() => Ok(text),
            other => Err(self.error(key, &other, "a text")),
        }
    }
    fn path(&self, key: &str, value: Value) -> Result<PathBuf, LxdrcError> {
        let text = self.text(key, value)?;
        crate::ids::path("", &text)
            .map_err(|_| self.error(key, &Value::String(text), "an absolute path without .."))
    }
    fn number<T: TryFrom<u64>>(
        &self,
        key: &str,
        value: Value,
        least: u64,
        most: u64,
        expected: &'static str,
    ) -> Result<T, LxdrcError> {
        let number = match &value {
            Value::Number(n) => n.as_u64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        let number = number.filter(|n| (least..=most).contains(n)).and_then(|n| T::try_from(n).ok());
        number.ok_or_else(|| self.error(key, &value, expected))
    }

    fn vnc(&mut self, vnc: &mut Vnc, value: Value) -> Result<(), LxdrcError> {
        for (key, value) in self.map("vnc", value)? {
            let path = format!("vnc.{key}");
            match key.as_str() {
                "command" => vnc.command = self.text(&path, value)?,
                // At most what a frame of 4 bytes a pixel can have within 64 MiB.
                "width" => vnc.width = self.number(&path, value, 80, 4096, "pixels, 80 to 4096")?,
                "height" => vnc.height = self.number(&path, value, 80, 4096, "pixels, 80 to 4096")?,
                "timeout" => {
                    vnc.timeout_s = self.number(&path, value, 0, u64::from(u32::MAX), "seconds")?;
                }
                "allow_no_password" => match value {
                    Value::Bool(flag) => vnc.allow_no_password = flag,
                    other => return Err(self.error(&path, &other, "true or false")),
                },
                _ => self.unknown.push(path),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn as_opennebula_writes_it() {
        let text = "# VNC\n:vnc:\n  :command: /bin/bash -l\n  :width: 1024\n  :height: 768\n  :timeout: 0\n  :colour: green\n\n:datastore_location: /srv/one//datastores\n:filesystem: xfs\n:countermeasures: off\n";
        let (rc, unknown) = parse("lxdrc", text).unwrap();
        assert_eq!(unknown, ["vnc.colour", "countermeasures"]);
        assert_eq!(rc.vnc.command, "/bin/bash -l");
        assert_eq!((rc.vnc.width, rc.vnc.height, rc.vnc.timeout_s), (1024, 768, 0));
        assert_eq!(rc.datastore_location, Path::new("/srv/one/datastores"));
        assert_eq!(rc.filesystem, "xfs");
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        assert_eq!(parse("lxdrc", "").unwrap(), (Lxdrc::default(), vec![]));
        assert_eq!(parse("lxdrc", "---\n:vnc:\n").unwrap(), (Lxdrc::default(), vec![]));
        assert_eq!(load(Path::new("/nonexistent/lxdrc")).unwrap().0, Lxdrc::default());
    }

    #[test]
    fn invalid_values_are_reported() {
        let told = |text: &str| parse("lxdrc", text).unwrap_err().to_string();
        insta::assert_snapshot!(told(":vnc:\n  :width: wide\n"), @r#"lxdrc: :vnc.width: is "wide", not pixels, 80 to 4096"#);
        insta::assert_snapshot!(told(":datastore_location: ../x\n"), @r#"lxdrc: :datastore_location: is "../x", not an absolute path without .."#);
        insta::assert_snapshot!(told(":filesystem: ntfs\n"), @r#"lxdrc: :filesystem: is "ntfs", not ext4, xfs or btrfs"#);
        insta::assert_snapshot!(told("- a\n"), @r#"lxdrc: :: is ["a"], not a map of keys"#);
        assert!(told(":vnc: [\n").starts_with("lxdrc is not YAML"));
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "[:a-z\n \\[\\]{}0-9&*!-]{0,120}") { let _ = parse("lxdrc", &text); }
    }
}
