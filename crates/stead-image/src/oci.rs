//! OCI images as bases: an image layout as a directory or tar, or an archive of `docker save`. Chooses the image and
//! checks each of its layers against its digest before use.
//!
//! Choosing is pure ([`choose`]): an image matches the wanted platform when its configuration says so and its index
//! does not contradict. If none or several match, the error lists the images that the layout has.

use crate::{
    compression::{Compression, decompressed},
    digest,
    error::{ImageError, IoContext, Result},
    members::Members,
    merge::Source,
    tarball::TarPolicy,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};
use stead_model::Digest;

/// The largest index, manifest or configuration that is read, in bytes; the specification asks registries to accept 4
/// MiB.
const MAX_JSON_BYTES: u64 = 4 << 20;
/// The most layers of an image; Docker's limit is 127.
const MAX_LAYERS: usize = 512;
/// How deep indexes may be nested.
const MAX_NESTING: u32 = 4;
/// The most manifests that are read to find one.
const MAX_MANIFESTS: u32 = 1000;
/// The most files in an archive with a layout.
const MAX_ARCHIVE_FILES: usize = 100_000;
/// How many images a message lists.
const SHOWN: usize = 12;

/// Reference to an index, a manifest, a configuration or a layer.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Digest of its bytes.
    pub digest: String,
    /// Its size in bytes.
    pub size: u64,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    artifact_type: Option<String>,
}

/// The platform of an image, in an index and in a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Platform {
    /// `linux` and others.
    #[serde(default)]
    pub os: String,
    /// `amd64` and others.
    #[serde(default)]
    pub architecture: String,
    /// `v8` and others; empty for the default variant.
    #[serde(default)]
    pub variant: String,
}

impl Platform {
    /// With Go's names, and without a variant that is the default.
    fn normal(&self) -> Self {
        let architecture = match self.architecture.to_ascii_lowercase().as_str() {
            "x86_64" | "x86-64" => "amd64".to_owned(),
            "aarch64" => "arm64".to_owned(),
            other => other.to_owned(),
        };
        let usual =
            matches!((architecture.as_str(), self.variant.as_str()), ("amd64", "v1") | ("arm64", "v8"));
        let variant = if usual { String::new() } else { self.variant.clone() };
        Self { os: self.os.to_ascii_lowercase(), architecture, variant }
    }
    fn says_nothing(&self) -> bool {
        self.os.is_empty() && self.architecture.is_empty()
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

/// An index or a manifest, distinguished by its fields.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    media_type: String,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    artifact_type: Option<String>,
    subject: Option<serde::de::IgnoredAny>,
}

/// The fields of an image's configuration that are used here.
#[derive(Debug, Default, Deserialize)]
struct Config {
    #[serde(flatten)]
    platform: Platform,
    #[serde(default)]
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// An image in a layout.
#[derive(Debug)]
struct Offer {
    /// Digest of its manifest (of its configuration, in Docker's archives).
    digest: String,
    /// All its names: tags, its digest, and the digests of the indexes that contain it.
    names: BTreeSet<String>,
    tags: BTreeSet<String>,
    /// The platform in the index.
    indexed: Option<Platform>,
    config: Config,
    layers: Vec<Layer>,
}

/// A layer of the chosen image.
#[derive(Debug, Clone)]
pub enum Layer {
    /// A blob.
    Blob(Descriptor),
    /// A file of a Docker archive, and the digest of its uncompressed bytes.
    File(String, String),
}

impl Offer {
    /// Its platform; `Err` when index and configuration disagree or name none.
    fn platform(&self) -> Result<Platform, String> {
        let config = self.config.platform.normal();
        let Some(indexed) = self.indexed.as_ref().map(Platform::normal).filter(|p| !p.says_nothing()) else {
            return if config.says_nothing() { Err("names no platform".into()) } else { Ok(config) };
        };
        if config.says_nothing() {
            return Ok(indexed);
        }
        let differ = |a: &str, b: &str| !a.is_empty() && !b.is_empty() && a != b;
        if differ(&config.os, &indexed.os)
            || differ(&config.architecture, &indexed.architecture)
            || differ(&config.variant, &indexed.variant)
        {
            return Err(format!("{config} by its configuration, {indexed} by its index"));
        }
        let or = |a: String, b: String| if a.is_empty() { b } else { a };
        Ok(Platform {
            os: or(config.os, indexed.os),
            architecture: or(config.architecture, indexed.architecture),
            variant: or(config.variant, indexed.variant),
        })
    }

    fn shown(&self) -> String {
        let platform = self.platform().map_or_else(|why| why, |p| p.to_string());
        let tags: Vec<String> = self.tags.iter().map(|t| format!("{t:?}")).collect();
        if tags.is_empty() {
            // In full, because it is the image's only name.
            return format!("{} ({platform})", self.digest);
        }
        let digest: String = self.digest.chars().take(19).collect();
        format!("{} ({platform}, {digest})", tags.join(" "))
    }
}

fn list(offers: &[Offer]) -> String {
    let mut shown: Vec<String> = offers.iter().take(SHOWN).map(Offer::shown).collect();
    if offers.len() > SHOWN {
        shown.push(format!("and {} more", offers.len() - SHOWN));
    }
    if shown.is_empty() { "no image at all".to_owned() } else { shown.join(", ") }
}

/// Which image is wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Go's name of the architecture; the operating system is Linux.
    pub architecture: String,
    /// A tag, or the digest of a manifest or index.
    pub reference: Option<String>,
}

/// Reads and verifies the JSON document of a descriptor.
type ReadBlob<'a> = dyn Fn(&Descriptor) -> Result<Vec<u8>> + 'a;

/// The layers of the matching image of an OCI index, lowest first.
///
/// # Errors
/// A document is malformed, or none or several images match. The error does not have the layout's name.
pub fn choose(index: &[u8], wanted: &Wanted, read: &ReadBlob<'_>) -> Result<Vec<Layer>, ImageError> {
    let mut offers = Vec::new();
    let mut walk = Walk { read, left: Cell::new(MAX_MANIFESTS) };
    let document: Document = parse(index, "its index")?;
    let manifests = document.manifests.ok_or_else(|| bad("index.json lists no manifests"))?;
    walk.index(&manifests, &Found::default(), &mut offers)?;
    pick(offers, wanted)
}

fn bad(why: impl Into<String>) -> ImageError {
    ImageError::input("layout", why)
}

fn parse<T: DeserializeOwned>(json: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(json).map_err(|e| bad(format!("{what} cannot be parsed: {e}")))
}

struct Walk<'a> {
    read: &'a ReadBlob<'a>,
    left: Cell<u32>,
}

/// Where a manifest was found.
#[derive(Debug, Clone, Default)]
struct Found {
    names: BTreeSet<String>,
    tags: BTreeSet<String>,
    depth: u32,
}

const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFEST_TYPES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

impl Walk<'_> {
    fn index(&mut self, manifests: &[Descriptor], above: &Found, offers: &mut Vec<Offer>) -> Result<()> {
        if above.depth >= MAX_NESTING {
            return Err(bad(format!("indexes are nested deeper than {MAX_NESTING}")));
        }
        for descriptor in manifests {
            if is_attachment(descriptor) {
                continue;
            }
            let left = self.left.get();
            self.left.set(
                left.checked_sub(1)
                    .ok_or_else(|| bad(format!("lists more than {MAX_MANIFESTS} manifests")))?,
            );
            let mut found = above.clone();
            found.depth += 1;
            found.names.insert(descriptor.digest.clone());
            // Only the layout's own index gives tags; a nested index names no image.
            if above.depth == 0 {
                for key in ["org.opencontainers.image.ref.name", "io.containerd.image.name"] {
                    found.tags.extend(descriptor.annotations.get(key).filter(|t| !t.is_empty()).cloned());
                }
                found.names.extend(found.tags.iter().cloned());
            }
            self.manifest(descriptor, found, offers)?;
        }
        Ok(())
    }

    fn manifest(&mut self, descriptor: &Descriptor, found: Found, offers: &mut Vec<Offer>) -> Result<()> {
        let what = format!("manifest {}", descriptor.digest);
        let document: Document = parse(&(self.read)(descriptor)?, &what)?;
        let declared = [&descriptor.media_type, &document.media_type];
        let is = |types: &[&str]| declared.iter().any(|t| types.contains(&t.as_str()));
        // A document that some programs read as an index and others as a manifest is meant to deceive.
        if document.manifests.is_some() && document.layers.is_some()
            || is(&INDEX_TYPES) && is(&MANIFEST_TYPES)
            || document.manifests.is_some() && is(&MANIFEST_TYPES)
            || document.layers.is_some() && is(&INDEX_TYPES)
        {
            return Err(bad(format!("{what} is an index and a manifest at once")));
        }
        if let Some(manifests) = &document.manifests {
            return self.index(manifests, &found, offers);
        }
        let (Some(layers), Some(config)) = (document.layers, document.config) else {
            return Err(bad(format!("{what} has no layers or no configuration")));
        };
        // Signatures, attestations and charts have the form of an image without being one.
        let no_image = document.artifact_type.is_some()
            || document.subject.is_some()
            || !(config.media_type.is_empty() || CONFIG_TYPES.contains(&config.media_type.as_str()))
            || (!layers.is_empty() && !layers.iter().any(|l| l.media_type.contains("tar")));
        if no_image {
            return Ok(());
        }
        let config: Config = parse(&(self.read)(&config)?, &format!("configuration {}", config.digest))?;
        offers.push(Offer {
            digest: descriptor.digest.clone(),
            names: found.names,
            tags: found.tags,
            indexed: descriptor.platform.clone(),
            config,
            layers: layers.into_iter().map(Layer::Blob).collect(),
        });
        Ok(())
    }
}

/// Whether a descriptor refers to metadata about an image rather than to an image.
fn is_attachment(descriptor: &Descriptor) -> bool {
    let known = |t: &str| t.is_empty() || INDEX_TYPES.contains(&t) || MANIFEST_TYPES.contains(&t);
    descriptor.annotations.contains_key("vnd.docker.reference.type")
        || descriptor
            .artifact_type
            .as_ref()
            .is_some_and(|t| !t.is_empty() && !CONFIG_TYPES.contains(&t.as_str()))
        || descriptor.platform.as_ref().is_some_and(|p| p.os == "unknown" && p.architecture == "unknown")
        || !known(&descriptor.media_type)
}

/// The only offer that matches.
fn pick(mut offers: Vec<Offer>, wanted: &Wanted) -> Result<Vec<Layer>> {
    // Several names of one image are one image.
    let mut seen: Vec<Offer> = Vec::new();
    for offer in offers.drain(..) {
        let same = |o: &&mut Offer| o.digest == offer.digest && o.indexed == offer.indexed;
        match seen.iter_mut().find(same) {
            Some(other) => {
                other.names.extend(offer.names);
                other.tags.extend(offer.tags);
            }
            None => seen.push(offer),
        }
    }
    let everything = list(&seen);
    let platform =
        Platform { os: "linux".into(), architecture: wanted.architecture.clone(), variant: String::new() };
    if let Some(reference) = &wanted.reference {
        seen.retain(|o| o.names.contains(reference));
        if seen.is_empty() {
            return Err(bad(format!("has no image {reference:?}; it has {everything}")));
        }
    }
    let named = list(&seen);
    seen.retain(|offer| {
        // An image for a later processor generation matches only when its digest is given.
        let by_digest = wanted.reference.as_ref() == Some(&offer.digest);
        offer.platform().is_ok_and(|p| {
            let p = if by_digest { Platform { variant: String::new(), ..p } } else { p };
            p == platform
        })
    });
    let chosen = match (seen.pop(), seen.is_empty()) {
        (Some(only), true) => only,
        (None, _) => return Err(bad(format!("has no image for {platform}; it has {named}"))),
        (Some(last), false) => {
            seen.push(last);
            let count = seen.len();
            return Err(bad(format!(
                "has {count} images for {platform}; choose one with \"ref\", a tag or a digest: {}",
                list(&seen)
            )));
        }
    };
    let (layers, ids) = (chosen.layers.len(), chosen.config.rootfs.diff_ids.len());
    if layers == 0 || layers > MAX_LAYERS {
        return Err(bad(format!("image {}: has {layers} layers, not 1 to {MAX_LAYERS}", chosen.shown())));
    }
    if ids != 0 && ids != layers {
        return Err(bad(format!(
            "image {}: its manifest has {layers} layers, its configuration {ids}",
            chosen.shown()
        )));
    }
    Ok(chosen.layers)
}

/// One image in an archive of `docker save`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The layers of the matching image in a Docker archive's `manifest.json`.
///
/// # Errors
/// As [`choose`].
pub fn choose_saved(
    manifest: &[u8],
    wanted: &Wanted,
    read: &dyn Fn(&str) -> Result<Vec<u8>>,
) -> Result<Vec<Layer>> {
    let saved: Vec<Saved> = parse(manifest, "manifest.json")?;
    if saved.len() > MAX_MANIFESTS as usize {
        return Err(bad(format!("lists more than {MAX_MANIFESTS} images")));
    }
    let mut offers = Vec::new();
    for image in saved {
        let json = read(&image.config)?;
        let config: Config = parse(&json, &image.config)?;
        let ids = &config.rootfs.diff_ids;
        // The layers have no other digests.
        if ids.len() != image.layers.len() {
            let counts = format!("{} layers, {} in its configuration", image.layers.len(), ids.len());
            return Err(bad(format!("{}: {counts}", image.config)));
        }
        let tags: BTreeSet<String> = image.repo_tags.unwrap_or_default().into_iter().collect();
        let digest = digest::of_bytes(&json).to_string();
        offers.push(Offer {
            names: tags.iter().cloned().chain([digest.clone()]).collect(),
            tags,
            digest,
            indexed: None,
            layers: image
                .layers
                .iter()
                .cloned()
                .zip(ids.iter().cloned())
                .map(|(f, d)| Layer::File(f, d))
                .collect(),
            config,
        });
    }
    pick(offers, wanted)
}

/// The files of a layout: a directory, or an archive with the offset and length of each file.
enum Layout {
    Folder(PathBuf),
    Archive { path: PathBuf, files: BTreeMap<String, (u64, u64)>, links: BTreeMap<String, String> },
}

/// The file of a layout that refers to all others by digest.
pub fn key_file(path: &Path) -> PathBuf {
    if path.is_file() {
        return path.to_owned();
    }
    let (index, saved) = (path.join("index.json"), path.join("manifest.json"));
    if !index.exists() && saved.exists() { saved } else { index }
}

/// The layers of the matching image, lowest first, with verified digests.
///
/// # Errors
/// A file is missing or malformed or does not match its digest; or none or several images match.
pub fn layers(path: &Path, wanted: &Wanted) -> Result<Vec<Source>> {
    let layout = Layout::open(path)?;
    layout.layers(wanted).map_err(|e| match e {
        ImageError::Input { subject, why } if subject == "layout" => {
            ImageError::input(path.display().to_string(), why)
        }
        other => other,
    })
}

impl Layout {
    fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        let shown = path.display().to_string();
        let mut file = File::open(path).at("open", path)?;
        let mut magic = [0; 6];
        let n = file.read(&mut magic).at("read", path)?;
        if Compression::of(&magic[..n]) != Compression::Plain {
            return Err(ImageError::input(shown, "is a compressed archive; decompress it first"));
        }
        file.seek(SeekFrom::Start(0)).at("read", path)?;
        let mut members = Members::new(BufReader::with_capacity(256 << 10, file));
        let (mut files, mut links) = (BTreeMap::new(), BTreeMap::new());
        let refused = |source| ImageError::Archive { archive: shown.clone(), source };
        while let Some(member) = members.advance().map_err(refused)? {
            let name = String::from_utf8_lossy(&member.name);
            let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
            if let (true, Some(offset)) = (member.kind.is_file(), member.offset) {
                files.insert(name, (offset, member.size));
            } else if !member.link.is_empty() {
                links.insert(name, String::from_utf8_lossy(&member.link).into_owned());
            }
            if files.len() + links.len() > MAX_ARCHIVE_FILES {
                return Err(ImageError::input(shown, format!("has more than {MAX_ARCHIVE_FILES} files")));
            }
        }
        members.finish(false, MAX_JSON_BYTES).map_err(refused)?;
        Ok(Self::Archive { path: path.to_owned(), files, links })
    }

    /// Location of a file of the layout: a file, and offset and length within it.
    fn find(&self, name: &str) -> Result<Option<(PathBuf, u64, u64)>> {
        match self {
            Self::Folder(dir) => {
                let path = dir.join(name);
                match fs::metadata(&path) {
                    Ok(meta) if meta.is_file() => Ok(Some((path, 0, meta.len()))),
                    Ok(_) => Ok(None),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    Err(e) => Err(e).at("look at", path),
                }
            }
            Self::Archive { path, files, links } => {
                // Docker writes a layer that several images share only once, with links to it.
                let name = match links.get(name) {
                    Some(target) => beside(name, target),
                    None => name.to_owned(),
                };
                Ok(files.get(&name).map(|(offset, len)| (path.clone(), *offset, *len)))
            }
        }
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some((path, offset, len)) = self.find(name)? else { return Ok(None) };
        if len > MAX_JSON_BYTES {
            return Err(bad(format!("{name} has {len} bytes, more than {MAX_JSON_BYTES}")));
        }
        let mut bytes = Vec::new();
        part(&path, offset, len)?.read_to_end(&mut bytes).at("read", &path)?;
        Ok(Some(bytes))
    }

    fn layers(&self, wanted: &Wanted) -> Result<Vec<Source>> {
        let chosen = if let Some(index) = self.read("index.json")? {
            choose(&index, wanted, &|descriptor| self.blob(descriptor))?
        } else if let Some(manifest) = self.read("manifest.json")? {
            choose_saved(&manifest, wanted, &|name| {
                harmless(name)?;
                self.read(name)?.ok_or_else(|| bad(format!("{name} is missing")))
            })?
        } else {
            return Err(bad("index.json is missing: not an OCI image layout"));
        };
        chosen.iter().map(|layer| self.layer(layer)).collect()
    }

    /// The location of a blob, after checking its size.
    fn located(&self, descriptor: &Descriptor) -> Result<(Digest, PathBuf, u64, u64)> {
        let why = |why: String| bad(format!("blob {:?} {why}", descriptor.digest));
        let digest: Digest = descriptor.digest.parse().map_err(bad)?;
        match self.find(&format!("blobs/sha256/{}", digest.hex()))? {
            Some((path, offset, len)) if len == descriptor.size => Ok((digest, path, offset, len)),
            Some((_, _, len)) => Err(why(format!("has {len} bytes, not {}", descriptor.size))),
            None => Err(why("is missing".into())),
        }
    }

    /// The bytes of an index, manifest or configuration, verified.
    fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        if descriptor.size > MAX_JSON_BYTES {
            let (size, digest) = (descriptor.size, &descriptor.digest);
            return Err(bad(format!("blob {digest:?} has {size} bytes, more than {MAX_JSON_BYTES}")));
        }
        let (digest, path, offset, len) = self.located(descriptor)?;
        let mut bytes = Vec::new();
        part(&path, offset, len)?.read_to_end(&mut bytes).at("read", &path)?;
        let found = digest::of_bytes(&bytes);
        if found == digest { Ok(bytes) } else { Err(bad(format!("blob {digest} has digest {found}"))) }
    }

    fn layer(&self, layer: &Layer) -> Result<Source> {
        let (name, path, part) = match layer {
            Layer::Blob(descriptor) => {
                let (digest, media) = (&descriptor.digest, &descriptor.media_type);
                if media.contains("encrypted") || !media.contains("tar") {
                    return Err(bad(format!("layer {digest} is of kind {media:?}, not a tar")));
                }
                let (digest, path, offset, len) = self.located(descriptor)?;
                let found = digest::of_reader(part(&path, offset, len)?).at("read", &path)?.0;
                if found != digest {
                    return Err(bad(format!("layer {digest} has digest {found}")));
                }
                (format!("layer {digest}"), path, (offset, len))
            }
            Layer::File(name, said) => {
                harmless(name)?;
                let (path, offset, len) =
                    self.find(name)?.ok_or_else(|| bad(format!("layer {name} is missing")))?;
                let broken = |e| bad(format!("layer {name} cannot be read: {e}"));
                let plain = decompressed(part(&path, offset, len)?).map_err(broken)?;
                let found = digest::of_reader(plain).map_err(broken)?.0;
                if found.as_str() != said {
                    return Err(bad(format!("layer {name} has digest {found}, not {said}")));
                }
                (format!("layer {name}"), path, (offset, len))
            }
        };
        Ok(Source::Tar { path, part: Some(part), name, policy: TarPolicy::OCI })
    }
}

/// A part of a file.
fn part(path: &Path, offset: u64, len: u64) -> Result<std::io::Take<File>> {
    let mut file = File::open(path).at("open", path)?;
    file.seek(SeekFrom::Start(offset)).at("read", path)?;
    Ok(file.take(len))
}

/// Checks that a file's name stays within the layout.
fn harmless(name: &str) -> Result<()> {
    if name.is_empty() || name.starts_with('/') || name.split('/').any(|p| p == "..") || name.contains('\0') {
        return Err(bad(format!("{name:?} is outside the layout")));
    }
    Ok(())
}

/// The path that a link at `name` to `target` refers to, within an archive.
fn beside(name: &str, target: &str) -> String {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::slice::from_ref;

    const MANIFEST: &str = MANIFEST_TYPES[0];
    const INDEX: &str = INDEX_TYPES[0];

    /// Blobs in memory.
    #[derive(Default)]
    struct Blobs(std::cell::RefCell<BTreeMap<String, Vec<u8>>>);
    impl Blobs {
        fn put(&self, media: &str, value: &Value) -> Value {
            let bytes = value.to_string().into_bytes();
            let digest = digest::of_bytes(&bytes).to_string();
            let descriptor = json!({ "mediaType": media, "digest": digest, "size": bytes.len() });
            self.0.borrow_mut().insert(digest, bytes);
            descriptor
        }
        /// An image with the single layer `layer`.
        fn image(&self, platform: &str, layer: &str) -> Value {
            let mut parts = platform.split('/');
            let mut next = || parts.next().unwrap_or("");
            let config = self.put(
                CONFIG_TYPES[0],
                &json!({ "os": next(), "architecture": next(), "variant": next(), "rootfs": { "diff_ids": [layer] } }),
            );
            let layer = json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer, "size": 1 });
            self.put(MANIFEST, &json!({ "schemaVersion": 2, "config": config, "layers": [layer] }))
        }
        fn index(&self, manifests: &[Value]) -> Value {
            self.put(INDEX, &json!({ "schemaVersion": 2, "manifests": manifests }))
        }
        fn choose(&self, manifests: &[Value], reference: Option<&str>) -> Result<String, String> {
            let wanted = Wanted { architecture: "amd64".into(), reference: reference.map(str::to_owned) };
            let index = json!({ "schemaVersion": 2, "manifests": manifests }).to_string();
            let read = |d: &Descriptor| {
                self.0.borrow().get(&d.digest).cloned().ok_or_else(|| bad(format!("{} is missing", d.digest)))
            };
            match choose(index.as_bytes(), &wanted, &read) {
                Ok(layers) => match &layers[..] {
                    [Layer::Blob(d)] => Ok(d.digest.clone()),
                    other => panic!("{other:?}"),
                },
                Err(e) => Err(e.to_string()),
            }
        }
    }
    fn on(mut descriptor: Value, platform: &str) -> Value {
        let mut parts = platform.split('/');
        let mut next = || parts.next().unwrap_or("");
        descriptor["platform"] = json!({ "os": next(), "architecture": next(), "variant": next() });
        descriptor
    }
    fn tagged(mut descriptor: Value, tag: &str) -> Value {
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        descriptor
    }

    #[test]
    fn the_image_for_this_platform_is_chosen_wherever_it_stands() {
        let b = Blobs::default();
        let (amd, arm) = (b.image("linux/amd64", "amd"), b.image("linux/arm64", "arm"));
        let windows = b.image("windows/amd64", "win");
        assert_eq!(b.choose(from_ref(&amd), None).unwrap(), "amd");
        // With and without platforms in the index; another operating system or architecture first.
        assert_eq!(b.choose(&[windows.clone(), arm.clone(), amd.clone()], None).unwrap(), "amd");
        let listed = [
            on(windows.clone(), "windows/amd64"),
            on(arm.clone(), "linux/arm64/v8"),
            on(amd.clone(), "linux/amd64"),
        ];
        assert_eq!(b.choose(&listed, None).unwrap(), "amd");
        let nested = b.index(&[b.index(&listed), on(arm.clone(), "linux/arm64")]);
        assert_eq!(b.choose(from_ref(&nested), None).unwrap(), "amd");
        let deep = b.index(&[b.index(&[nested])]);
        assert!(b.choose(&[deep], None).unwrap_err().contains("nested deeper than 4"));
        // Other names of the architecture, and the default variant.
        assert_eq!(b.choose(&[b.image("Linux/x86_64/v1", "x")], None).unwrap(), "x");
        // Two names of one image are one image.
        assert_eq!(b.choose(&[tagged(amd.clone(), "a"), tagged(amd, "b")], None).unwrap(), "amd");
    }

    #[test]
    fn an_ambiguous_choice_is_refused_with_a_list() {
        let b = Blobs::default();
        let (one, two) =
            (tagged(b.image("linux/amd64", "1"), "one"), tagged(b.image("linux/amd64", "2"), "two"));
        let e = b.choose(&[one.clone(), two.clone()], None).unwrap_err();
        assert!(e.contains("has 2 images for linux/amd64; choose one with \"ref\""), "{e}");
        assert!(e.contains("\"one\" (linux/amd64, sha256:") && e.contains("\"two\" ("), "{e}");
        assert_eq!(b.choose(&[one.clone(), two.clone()], Some("two")).unwrap(), "2");
        let digest = two["digest"].as_str().unwrap();
        assert_eq!(b.choose(&[one.clone(), two.clone()], Some(digest)).unwrap(), "2");
        let e = b.choose(&[one.clone(), two], Some("three")).unwrap_err();
        assert!(e.contains("has no image \"three\"; it has \"one\" ("), "{e}");
        let e = b.choose(&[b.image("linux/arm64", "arm"), b.image("windows/amd64", "w")], None).unwrap_err();
        assert!(
            e.contains("has no image for linux/amd64; it has sha256:") && e.contains("windows/amd64"),
            "{e}"
        );
        // The index contradicts the configuration.
        let lying = on(b.image("linux/arm64", "arm"), "linux/amd64");
        let e = b.choose(from_ref(&lying), None).unwrap_err();
        assert!(e.contains("linux/arm64 by its configuration, linux/amd64 by its index"), "{e}");
        let e = b.choose(&[on(b.image("linux/amd64", "1"), "linux/arm64")], None).unwrap_err();
        assert!(e.contains("linux/amd64 by its configuration, linux/arm64 by its index"), "{e}");
        assert_eq!(b.choose(&[lying, one], None).unwrap(), "1");
        assert!(b.choose(&[b.image("", "1")], None).unwrap_err().contains("names no platform"));
        assert!(b.choose(&[], None).unwrap_err().contains("it has no image at all"));
        // An image without a tag is listed by its digest.
        let (x, y) = (b.image("linux/amd64", "x"), b.image("linux/amd64", "y"));
        let e = b.choose(&[x.clone(), y], None).unwrap_err();
        assert!(e.contains(x["digest"].as_str().unwrap()), "{e}");
        // A later processor generation is chosen only by its digest.
        let v3 = tagged(b.image("linux/amd64/v3", "3"), "v3");
        assert!(b.choose(from_ref(&v3), Some("v3")).unwrap_err().contains("linux/amd64/v3"));
        assert_eq!(b.choose(from_ref(&v3), v3["digest"].as_str()).unwrap(), "3");
        assert_eq!(b.choose(&[v3, b.image("linux/amd64", "1")], None).unwrap(), "1");
    }

    #[test]
    fn attachments_of_images_are_skipped() {
        let b = Blobs::default();
        let amd = on(b.image("linux/amd64", "amd"), "linux/amd64");
        let in_toto = json!({ "mediaType": "application/vnd.in-toto+json", "digest": "x", "size": 1 });
        let config = b.put(CONFIG_TYPES[0], &json!({ "os": "linux", "architecture": "amd64" }));
        let attestation = json!({ "config": config, "layers": [in_toto] });
        let plain = b.put(MANIFEST, &attestation);
        let unknown = on(plain.clone(), "unknown/unknown");
        let mut marked = plain.clone();
        marked["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
        let empty = b.put("application/vnd.oci.empty.v1+json", &json!({}));
        let layer =
            json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": "x", "size": 1 });
        let chart = b.put(MANIFEST, &json!({ "config": empty, "layers": [layer] }));
        let artifact =
            b.put(MANIFEST, &json!({ "artifactType": "x/y", "config": config, "layers": [layer] }));
        let signature = b.put(MANIFEST, &json!({ "subject": amd, "config": config, "layers": [layer] }));
        let missing = json!({ "mediaType": "application/x-other+json", "digest": "sha256:0", "size": 1 });
        let others = [plain, unknown, marked, chart, artifact, signature, missing];
        let all: Vec<Value> = others.iter().cloned().chain([amd]).collect();
        assert_eq!(b.choose(&all, None).unwrap(), "amd");
        assert_eq!(b.choose(&[b.index(&all)], None).unwrap(), "amd");
        assert!(b.choose(&others, None).unwrap_err().contains("it has no image at all"));
    }

    #[test]
    fn a_document_that_is_index_and_manifest_is_refused() {
        let b = Blobs::default();
        let amd = b.image("linux/amd64", "amd");
        let config = b.put(CONFIG_TYPES[0], &json!({ "os": "linux", "architecture": "amd64" }));
        for two_faced in [
            b.put(MANIFEST, &json!({ "manifests": [amd], "config": config, "layers": [] })),
            b.put(INDEX, &json!({ "mediaType": MANIFEST, "manifests": [amd] })),
            b.put(INDEX, &json!({ "config": config, "layers": [] })),
        ] {
            assert!(b.choose(&[two_faced], None).unwrap_err().contains("an index and a manifest at once"));
        }
        let counts = b.put(
            CONFIG_TYPES[0],
            &json!({ "os": "linux", "architecture": "amd64", "rootfs": { "diff_ids": ["a", "b"] } }),
        );
        let layer =
            json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": "x", "size": 1 });
        let manifest = b.put(MANIFEST, &json!({ "config": counts, "layers": [layer] }));
        assert!(b.choose(&[manifest], None).unwrap_err().contains("has 1 layers, its configuration 2"));
    }

    #[test]
    fn links_of_an_archive_lead_within_it() {
        assert_eq!(beside("abc/layer.tar", "../def/layer.tar"), "def/layer.tar");
        assert_eq!(beside("abc/layer.tar", "../../../x"), "x");
        assert!(harmless("../x").is_err() && harmless("/x").is_err() && harmless("a/b").is_ok());
    }
}
