//! OCI image layouts as bases: index, manifest and layers, each checked against its digest before it is used.

use crate::{
    digest,
    error::{ImageError, IoContext, Result},
    merge::Source,
    tarball::TarPolicy,
};
use serde::Deserialize;
use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};
use stead_model::Digest;

/// The largest index or manifest that is read; the specification asks registries to take 4 MiB.
const MAX_JSON_BYTES: u64 = 4 << 20;
/// The most layers of an image; Docker's own limit is 127.
const MAX_LAYERS: usize = 512;
/// How deep indexes may be nested.
const MAX_NESTING: u32 = 4;

#[derive(Debug, Deserialize)]
struct Descriptor {
    digest: String,
    size: u64,
    #[serde(default, rename = "mediaType")]
    media_type: String,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
}

#[derive(Debug, Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct ImageManifest {
    layers: Vec<Descriptor>,
}

/// The layers of the layout's image for this architecture (or of its first), lowest first, their digests verified.
///
/// # Errors
/// Something is missing, malformed, or not what its digest says.
pub fn layers(dir: &Path, architecture: &str) -> Result<Vec<Source>> {
    let shown = dir.display().to_string();
    let bad = |why: String| ImageError::input(shown.clone(), why);
    let path = dir.join("index.json");
    let mut json = read_bounded(&path)?;
    let mut manifest: Option<ImageManifest> = None;
    for _ in 0..MAX_NESTING {
        let index: Index =
            serde_json::from_str(&json).map_err(|e| bad(format!("index not understood: {e}")))?;
        let fits = |d: &&Descriptor| d.platform.as_ref().is_some_and(|p| p.architecture == architecture);
        let chosen = index
            .manifests
            .iter()
            .find(fits)
            .or_else(|| index.manifests.first())
            .ok_or_else(|| bad("its index lists no image".into()))?;
        json = read_bounded(&verified(dir, chosen)?)?;
        if chosen.media_type.contains("image.index") || chosen.media_type.contains("manifest.list") {
            continue;
        }
        manifest =
            Some(serde_json::from_str(&json).map_err(|e| bad(format!("manifest not understood: {e}")))?);
        break;
    }
    let manifest = manifest.ok_or_else(|| bad(format!("indexes are nested deeper than {MAX_NESTING}")))?;
    if manifest.layers.is_empty() || manifest.layers.len() > MAX_LAYERS {
        return Err(bad(format!("{} layers are not 1 to {MAX_LAYERS}", manifest.layers.len())));
    }
    manifest
        .layers
        .iter()
        .map(|layer| {
            if layer.media_type.contains("encrypted") || !layer.media_type.contains("tar") {
                return Err(bad(format!(
                    "layer {} is of kind {:?}, not a tar",
                    layer.digest, layer.media_type
                )));
            }
            let path = verified(dir, layer)?;
            Ok(Source::Tar { path, name: format!("layer {}", layer.digest), policy: TarPolicy::OCI })
        })
        .collect()
}

/// The blob of a descriptor, once its size and digest are found right.
fn verified(dir: &Path, descriptor: &Descriptor) -> Result<PathBuf> {
    let bad =
        |why: String| ImageError::input(format!("blob {:?} of {}", descriptor.digest, dir.display()), why);
    let digest: Digest = descriptor.digest.parse().map_err(bad)?;
    let path = dir.join("blobs/sha256").join(digest.hex());
    match fs::metadata(&path) {
        Ok(meta) if meta.len() == descriptor.size => {}
        Ok(meta) => return Err(bad(format!("has {} bytes, not {}", meta.len(), descriptor.size))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(bad("is missing".into())),
        Err(e) => return Err(e).at("look at", &path),
    }
    let (found, _) = digest::of_file(&path)?;
    if found == digest { Ok(path) } else { Err(bad(format!("has digest {found}"))) }
}

fn read_bounded(path: &Path) -> Result<String> {
    let mut text = String::new();
    let file = match File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(ImageError::input(path.display().to_string(), "is missing: not an OCI image layout"));
        }
        other => other.at("open", path)?,
    };
    file.take(MAX_JSON_BYTES).read_to_string(&mut text).at("read", path)?;
    Ok(text)
}
