//! Images and their names.

use super::{Config, config, nullable};
use serde::{Deserialize, Serialize};

/// An image.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Image {
    /// SHA-256, hexadecimal.
    pub fingerprint: String,
    /// Names for it.
    #[serde(default, deserialize_with = "nullable")]
    pub aliases: Vec<ImageAlias>,
    /// Properties.
    #[serde(default, deserialize_with = "config")]
    pub properties: Config,
    /// Bytes.
    #[serde(default)]
    pub size: u64,
    /// `container` or `virtual-machine`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Architecture.
    #[serde(default)]
    pub architecture: String,
    /// Seen by strangers.
    #[serde(default)]
    pub public: bool,
    /// Fetched anew when its source has a newer one.
    #[serde(default)]
    pub auto_update: bool,
    /// Kept because an instance was made of it.
    #[serde(default)]
    pub cached: bool,
    /// Profiles instances of it get.
    #[serde(default, deserialize_with = "nullable")]
    pub profiles: Vec<String>,
    /// When it may be removed; year 1: never.
    #[serde(default)]
    pub expires_at: String,
    /// When it was put here.
    #[serde(default)]
    pub uploaded_at: String,
    /// Project; old servers do not say.
    #[serde(default)]
    pub project: String,
}

impl Image {
    /// What a `PUT` changes.
    pub fn writable(&self) -> ImagePut {
        ImagePut {
            auto_update: self.auto_update,
            public: self.public,
            properties: self.properties.clone(),
            profiles: self.profiles.clone(),
            expires_at: (!self.expires_at.is_empty()).then(|| self.expires_at.clone()),
        }
    }
}

/// What can be changed of an [`Image`].
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ImagePut {
    /// Fetched anew when its source has a newer one.
    pub auto_update: bool,
    /// Seen by strangers.
    pub public: bool,
    /// Properties.
    pub properties: Config,
    /// Profiles instances of it get.
    pub profiles: Vec<String>,
    /// When it may be removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

/// A name for an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageAlias {
    /// The name.
    pub name: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Fingerprint; absent inside [`Image`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target: String,
}
