//! The image manifest: what a build put into the store.

use crate::{cluster::EngineKind, names::ImageName, recipe::RecipeKind, sizes::Bytes};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, str::FromStr};

/// A SHA-256 digest, written `sha256:` and 64 hexadecimal digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema)]
#[schemars(transparent)]
pub struct Digest(String);

impl Digest {
    /// From the 32 raw bytes.
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        use fmt::Write;
        let mut s = String::with_capacity(71);
        s.push_str("sha256:");
        for b in bytes {
            let _ = write!(s, "{b:02x}");
        }
        Self(s)
    }
    /// The 64 hexadecimal digits without the prefix: a safe file name.
    pub fn hex(&self) -> &str {
        &self.0[7..]
    }
    /// The first 12 digits, for people.
    pub fn short(&self) -> &str {
        &self.0[7..19]
    }
    /// The whole, with its prefix.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl FromStr for Digest {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s.strip_prefix("sha256:") {
            Some(h) if h.len() == 64 && h.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) => {
                Ok(Self(s.to_owned()))
            }
            _ => Err(format!(
                "digest {:?} is not sha256: and 64 hexadecimal digits",
                s.chars().take(80).collect::<String>()
            )),
        }
    }
}
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}
impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// One stored file, named by its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// Digest of the file's bytes; the file is `blobs/sha256/<hex>` in the store.
    pub digest: Digest,
    /// Its size.
    pub size: Bytes,
}

/// One root layer: a squashfs, mounted read-only; later layers lie over earlier ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// What it came from: `base`, `kernel`, `files`, or `overlay:<name>`.
    pub name: String,
    /// The squashfs file.
    #[serde(flatten)]
    pub artifact: FlatArtifact,
    /// Hash of everything the layer was made from: the cache key of the build.
    pub inputs: Digest,
}

/// [`Artifact`] without `deny_unknown_fields`, so that it can be flattened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlatArtifact {
    /// Digest of the file's bytes.
    pub digest: Digest,
    /// Its size.
    pub size: Bytes,
}

/// What boots a node image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// Kernel release as in `/lib/modules/<release>`; absent when the recipe has no kernel (namespace machines only).
    pub kernel_release: Option<String>,
    /// Uncompressed ELF kernel with the PVH note: QEMU and Firecracker boot it directly.
    pub vmlinux: Option<Artifact>,
    /// The distribution's compressed kernel, for boot loaders.
    pub bzimage: Option<Artifact>,
    /// Plain (uncompressed) newc cpio holding `/init` (= stead-node), modules and `modules.order.stead`.
    pub initrd: Option<Artifact>,
    /// The static `stead-node` by itself, for namespace machines.
    pub stead_node: Artifact,
}

/// What a system-container image consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InstanceImage {
    /// `metadata.tar.xz`-style tar with `metadata.yaml` and `templates/` (split form).
    pub metadata: Artifact,
    /// The root filesystem as squashfs (split form).
    pub rootfs: Artifact,
    /// One tar with metadata and `rootfs/` (unified form), when asked for.
    pub unified: Option<Artifact>,
}

/// What an image for application containers consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ContainerImage {
    /// The tar of an OCI layout, which `docker load` reads, too.
    pub archive: Artifact,
    /// Digest of the image's manifest in it, by which runtimes and registries know the image.
    pub manifest: Digest,
    /// Its names.
    pub names: Vec<String>,
}

/// The result of a build: immutable, itself stored by digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this format: 1.
    pub schema: u32,
    /// The recipe's name.
    pub name: ImageName,
    /// Node, instance or container.
    pub kind: RecipeKind,
    /// Debian's word for the architecture, e.g. `amd64`.
    pub architecture: String,
    /// Hash of the recipe as understood (not of its text), with its overlays' and sources' contents.
    pub recipe: Digest,
    /// The engine it carries.
    #[serde(default)]
    pub engine: EngineKind,
    /// Root layers, lowest first. Only node images have some.
    pub layers: Vec<Layer>,
    /// What boots it. Only node images have it.
    pub boot: Option<Boot>,
    /// The instance image, if it is one.
    pub instance: Option<InstanceImage>,
    /// The container image, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerImage>,
    /// Installed packages and their versions.
    pub packages: BTreeMap<String, String>,
}
