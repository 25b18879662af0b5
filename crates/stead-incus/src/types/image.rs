//! Images and their aliases.

use super::{Config, config, nullable};
use serde::{Deserialize, Serialize};

/// An image.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Image {
    /// SHA-256, hexadecimal.
    pub fingerprint: String,
    /// Its aliases.
    #[serde(default, deserialize_with = "nullable")]
    pub aliases: Vec<ImageAlias>,
    /// Properties.
    #[serde(default, deserialize_with = "config")]
    pub properties: Config,
    /// Size in bytes.
    #[serde(default)]
    pub size: u64,
    /// `container` or `virtual-machine`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Architecture.
    #[serde(default)]
    pub architecture: String,
    /// Visible to untrusted clients.
    #[serde(default)]
    pub public: bool,
    /// Updated when its source has a newer version.
    #[serde(default)]
    pub auto_update: bool,
    /// Cached because an instance was created from it.
    #[serde(default)]
    pub cached: bool,
    /// Profiles of instances created from it.
    #[serde(default, deserialize_with = "nullable")]
    pub profiles: Vec<String>,
    /// When it may be deleted; year 1 means never.
    #[serde(default)]
    pub expires_at: String,
    /// When it was added to this server.
    #[serde(default)]
    pub uploaded_at: String,
    /// Its project; empty on old servers.
    #[serde(default)]
    pub project: String,
}

impl Image {
    /// The fields a `PUT` can change.
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

/// The fields of [`Image`] that a `PUT` can change.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ImagePut {
    /// Updated when its source has a newer version.
    pub auto_update: bool,
    /// Visible to untrusted clients.
    pub public: bool,
    /// Properties.
    pub properties: Config,
    /// Profiles of instances created from it.
    pub profiles: Vec<String>,
    /// When it may be deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

/// An alias of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageAlias {
    /// The alias.
    pub name: String,
    /// Free-text description.
    #[serde(default)]
    pub description: String,
    /// Fingerprint; absent inside [`Image`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target: String,
}
