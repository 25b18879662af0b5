//! Container images: one root layer with its configuration, as the tar of an OCI layout that `docker load` reads, too.

use crate::{
    digest::{self, HashWriter},
    error::{IoContext, Result},
    merge::{Merged, Source},
    plan::architecture,
    programs::{self, ProgramParts},
    secrets,
    squashfs::EPOCH,
    store::{Scratch, Store},
    tarball::{Entry, Kind, Writer},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    fs::File,
    io::{self, BufWriter},
    path::{Path, PathBuf},
};
use stead_model::{Artifact, Bytes, Digest, Recipe, manifest::ContainerImage, recipe::ContainerConfig};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// gzip: every runtime and registry reads it.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// [`EPOCH`] as the configuration writes it.
const CREATED: &str = "2025-01-01T00:00:00Z";

/// What packing a container image gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerParts {
    /// The image.
    pub image: ContainerImage,
    /// What the user should know of what is in it.
    pub warnings: Vec<String>,
}

impl ContainerParts {
    /// Every blob of it.
    pub fn blobs(&self) -> Vec<Digest> {
        vec![self.image.archive.digest.clone()]
    }
}

/// The image's configuration, as runtimes read it.
fn config(container: &ContainerConfig, diff_id: &Digest) -> Value {
    let mut environment: Vec<String> = Vec::new();
    if !container.environment.contains_key("PATH") {
        environment.push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    }
    environment.extend(container.environment.iter().map(|(name, value)| format!("{name}={value}")));
    let mut inner = json!({ "Env": environment });
    let keys = [("Entrypoint", &container.entrypoint), ("Cmd", &container.command)];
    for (key, words) in keys.into_iter().filter(|(_, words)| !words.is_empty()) {
        inner[key] = json!(words);
    }
    for (key, value) in [("User", &container.user), ("WorkingDir", &container.working_directory)] {
        if let Some(value) = value {
            inner[key] = json!(value);
        }
    }
    if let Some(signal) = &container.stop_signal {
        inner["StopSignal"] = json!(signal);
    }
    json!({
        "created": CREATED,
        "architecture": architecture(),
        "os": "linux",
        "config": inner,
        "rootfs": { "type": "layers", "diff_ids": [diff_id.as_str()] },
        "history": [{ "created": CREATED, "created_by": "stead image build" }],
    })
}

/// An entry of the layout and its contents.
struct Part {
    path: String,
    bytes: Contents,
}

enum Contents {
    Memory(Vec<u8>),
    File(PathBuf, u64),
}

/// Packs the root of `sources` with the recipe's configuration.
pub(crate) fn pack(
    store: &Store,
    scratch: &Scratch,
    recipe: &Recipe,
    sources: &[Source],
    programs: &[ProgramParts],
) -> Result<ContainerParts> {
    let merged = Merged::of(sources)?;
    crate::space::check(store.dir(), merged.summary().bytes)?;
    let mut warnings = merged.warnings().to_vec();
    warnings.extend(programs::missing_interpreters(&recipe.programs, programs, |path| Ok(merged.has(path)))?);
    let layer_path = scratch.path("layer.tar.gz");
    let (diff_id, layer) = write_layer(&layer_path, &merged, sources, &mut warnings)?;

    let container = recipe.container.clone().unwrap_or_default();
    let config = serde_json::to_vec(&config(&container, &diff_id)).expect("plain data");
    let config_digest = digest::of_bytes(&config);
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": { "mediaType": CONFIG, "digest": config_digest.as_str(), "size": config.len() },
        "layers": [{ "mediaType": LAYER, "digest": layer.digest.as_str(), "size": layer.size.0 }],
    }))
    .expect("plain data");
    let manifest_digest = digest::of_bytes(&manifest);
    let names = names(recipe);
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": names.iter().map(|name| json!({
            "mediaType": MANIFEST,
            "digest": manifest_digest.as_str(),
            "size": manifest.len(),
            "platform": { "architecture": architecture(), "os": "linux" },
            // The first is containerd's, the second the specification's.
            "annotations": {
                "io.containerd.image.name": name,
                "org.opencontainers.image.ref.name": name.rsplit_once(':').map_or("latest", |(_, tag)| tag),
            },
        })).collect::<Vec<_>>(),
    }))
    .expect("plain data");
    let blob = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    let docker = serde_json::to_vec(&json!([{
        "Config": blob(&config_digest),
        "RepoTags": names,
        "Layers": [blob(&layer.digest)],
    }]))
    .expect("plain data");
    let memory = |path: String, bytes: Vec<u8>| Part { path, bytes: Contents::Memory(bytes) };
    let mut blobs = vec![
        memory(blob(&config_digest), config),
        memory(blob(&manifest_digest), manifest),
        Part { path: blob(&layer.digest), bytes: Contents::File(layer_path, layer.size.0) },
    ];
    blobs.sort_by(|a, b| a.path.cmp(&b.path));
    let mut parts = vec![
        memory("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        memory("index.json".into(), index),
        memory("manifest.json".into(), docker),
    ];
    parts.extend(blobs);
    let archive = write_layout(store, scratch, &parts)?;
    Ok(ContainerParts { image: ContainerImage { archive, manifest: manifest_digest, names }, warnings })
}

/// The names that the image has in a runtime.
fn names(recipe: &Recipe) -> Vec<String> {
    match recipe.container.as_ref().map(|c| &c.names[..]) {
        None | Some([]) => vec![format!("localhost/{}:latest", recipe.name)],
        Some(names) => names.to_vec(),
    }
}

/// Writes the root as a compressed tar. Gives the digest of the plain one, and the file's.
fn write_layer(
    path: &Path,
    merged: &Merged,
    sources: &[Source],
    warnings: &mut Vec<String>,
) -> Result<(Digest, Artifact)> {
    let file = HashWriter::new(BufWriter::with_capacity(256 << 10, File::create(path).at("make", path)?));
    // flate2 writes no time into gzip's header.
    let gzip = flate2::write::GzEncoder::new(file, flate2::Compression::default());
    let mut out = Writer::new(HashWriter::new(gzip), EPOCH, "");
    merged.write(sources, &mut |entry, data| {
        secrets::inspect(entry, data, warnings, &mut |entry, data| out.put(entry, data))
    })?;
    let (gzip, diff_id, _) = out.finish().at("write", path)?.finish();
    let (file, digest, size) = gzip.finish().at("write", path)?.finish();
    file.into_inner().map_err(io::IntoInnerError::into_error).at("write", path)?;
    Ok((diff_id, Artifact { digest, size: Bytes(size) }))
}

fn write_layout(store: &Store, scratch: &Scratch, parts: &[Part]) -> Result<Artifact> {
    let path = scratch.path("container.tar");
    let file = BufWriter::with_capacity(256 << 10, File::create(&path).at("make", &path)?);
    let mut out = Writer::new(file, EPOCH, "");
    for directory in ["blobs", "blobs/sha256"] {
        out.put(&Entry::directory(directory.as_bytes(), 0o755), &mut io::empty()).at("write", &path)?;
    }
    for part in parts {
        let entry = |len| Entry { kind: Kind::File(len), ..Entry::directory(part.path.as_bytes(), 0o644) };
        match &part.bytes {
            Contents::Memory(bytes) => out.put(&entry(bytes.len() as u64), &mut &bytes[..]),
            Contents::File(file, len) => out.put(&entry(*len), &mut File::open(file).at("open", file)?),
        }
        .at("write", &path)?;
    }
    let file = out.finish().at("write", &path)?;
    file.into_inner().map_err(io::IntoInnerError::into_error).at("write", &path)?;
    store.adopt(&path)
}
