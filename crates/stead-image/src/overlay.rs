//! Overlays: a directory, a tar, or a directory with an executable `tar` script as in xcluster. Each becomes one
//! squashfs layer, cached by the content of its inputs.

use crate::{
    digest::Key,
    error::{ImageError, IoContext, Result},
    inputs::Inputs,
    merge::{Merged, Source},
    secrets, squashfs,
    store::{Scratch, Store},
    tarball::TarPolicy,
    tools,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use stead_model::{
    Artifact, Digest,
    manifest::{FlatArtifact, Layer},
    recipe::OverlayOptions,
};

/// `PATH` of `tar` scripts: Debian's default for root. A script declares anything else it needs.
const SCRIPT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Kind of an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OverlayKind {
    /// A plain directory.
    Directory,
    /// A tar file.
    Tar,
    /// A directory with an executable `tar`.
    Script,
}

/// An observed overlay: its kind and the hash of everything its layer depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Observed {
    /// The path's last part, for messages and the layer's name.
    pub name: String,
    /// Absolute path.
    pub path: PathBuf,
    /// What it is.
    pub kind: OverlayKind,
    /// The cache key.
    pub inputs: Digest,
}

/// A packed layer as it is cached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerParts {
    /// The squashfs.
    pub artifact: Artifact,
    /// What the user should know of what is in it.
    pub warnings: Vec<String>,
}

/// Observes an overlay and hashes its inputs.
///
/// # Errors
/// It or one of its declared inputs is missing or cannot be read.
pub fn observe(store: &Store, options: &OverlayOptions, base_dir: &Path) -> Result<Observed> {
    let path = base_dir.join(&options.path);
    let shown = || path.display().to_string();
    let meta = match fs::metadata(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(ImageError::input(shown(), "no such overlay"));
        }
        other => other.at("look at", &path)?,
    };
    let path = fs::canonicalize(&path).at("resolve", &path)?;
    let script = path.join("tar");
    let kind = if meta.is_file() {
        OverlayKind::Tar
    } else if !meta.is_dir() {
        return Err(ImageError::input(shown(), "is neither a directory nor a tar file"));
    } else if fs::metadata(&script).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0) {
        OverlayKind::Script
    } else {
        OverlayKind::Directory
    };
    if kind != OverlayKind::Script && !(options.environment.is_empty() && options.inputs.is_empty()) {
        let why = "has \"environment\" or \"inputs\", but no executable \"tar\" script that could use them";
        return Err(ImageError::input(shown(), why));
    }
    let mut inputs = Inputs::open(store, &path.to_string_lossy());
    let mut key = Key::new("overlay-2");
    key.text(match kind {
        OverlayKind::Directory => "directory",
        OverlayKind::Tar => "tar",
        OverlayKind::Script => "script",
    });
    key.number(u64::from(options.keep_owners));
    key.text(inputs.any(&path, options.keep_owners && kind == OverlayKind::Directory)?.as_str());
    for (name, value) in &options.environment {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(ImageError::input(
                shown(),
                format!("environment {name:?} is not a valid variable name"),
            ));
        }
        key.text(name).text(value);
    }
    key.number(options.inputs.len() as u64);
    for input in &options.inputs {
        let at = base_dir.join(input);
        if !at.exists() {
            return Err(ImageError::input(
                at.display().to_string(),
                format!("is missing: an input of {}", shown()),
            ));
        }
        key.text(inputs.any(&at, false)?.as_str());
    }
    inputs.save();
    let name = path.file_name().map_or("overlay".into(), |n| n.to_string_lossy().into_owned());
    Ok(Observed { name, path, kind, inputs: key.digest() })
}

/// The layer of one overlay: from the cache when nothing it depends on has changed, else made now.
///
/// `options.path` and its inputs are relative to `base_dir`. Several may be made at once, also the same one. Returns
/// the layer and warnings for the user.
///
/// # Errors
/// The overlay is missing or refused, its script failed, or a tool did.
pub fn build_layer(store: &Store, options: &OverlayOptions, base_dir: &Path) -> Result<(Layer, Vec<String>)> {
    let _shared = store.share()?;
    build_layer_unshared(store, options, base_dir).map(|made| (made.layer, made.warnings))
}

/// A layer that was made or came from the cache.
pub(crate) struct Made {
    pub layer: Layer,
    pub warnings: Vec<String>,
    pub cached: bool,
}

/// As [`build_layer`], for callers that hold the store's shared lock. Also returns whether the layer was cached.
pub(crate) fn build_layer_unshared(store: &Store, options: &OverlayOptions, base_dir: &Path) -> Result<Made> {
    let observed = observe(store, options, base_dir)?;
    let made = |parts: LayerParts, cached| Made {
        layer: Layer {
            name: format!("overlay:{}", observed.name),
            artifact: FlatArtifact { digest: parts.artifact.digest, size: parts.artifact.size },
            inputs: observed.inputs.clone(),
        },
        warnings: parts.warnings,
        cached,
    };
    if let Some(parts) = store.cached(&observed.inputs) {
        return Ok(made(parts, true));
    }
    let _once = store.lock(observed.inputs.hex())?;
    if let Some(parts) = store.cached(&observed.inputs) {
        return Ok(made(parts, true));
    }
    let scratch = store.scratch()?;
    let source = source(&observed, options, &scratch)?;
    let sources = [source];
    let merged = Merged::of(&sources)?;
    crate::space::check(store.dir(), merged.summary().bytes)?;
    let parts = pack(store, &scratch, &observed.name, &merged, &sources)?;
    // The hashed and the packed content must be the same: a file edited meanwhile would be cached under the wrong key.
    if observe(store, options, base_dir)?.inputs != observed.inputs {
        return Err(ImageError::Io {
            operation: "pack",
            path: observed.path,
            source: std::io::Error::other("it changed during the build; build again"),
        });
    }
    store.remember(&observed.inputs, vec![parts.artifact.digest.clone()], &parts)?;
    Ok(made(parts, false))
}

/// Packs a merge and searches it for private keys.
pub(crate) fn pack(
    store: &Store,
    scratch: &Scratch,
    name: &str,
    merged: &Merged,
    sources: &[Source],
) -> Result<LayerParts> {
    let mut warnings = merged.warnings().to_vec();
    let artifact = squashfs::pack(store, scratch, name, |sink| {
        merged.write(sources, &mut |entry, data| {
            secrets::inspect(entry, data, &mut warnings, &mut |entry, data| sink.put(entry, data))
        })
    })?;
    Ok(LayerParts { artifact, warnings })
}

/// The overlay as a tree; a script is run and its output read.
pub(crate) fn source(observed: &Observed, options: &OverlayOptions, scratch: &Scratch) -> Result<Source> {
    let name = observed.path.display().to_string();
    Ok(match observed.kind {
        OverlayKind::Directory => {
            Source::Directory { path: observed.path.clone(), keep_owners: options.keep_owners }
        }
        OverlayKind::Tar => {
            Source::Tar { path: observed.path.clone(), part: None, name, policy: TarPolicy::OVERLAY }
        }
        OverlayKind::Script => {
            let path = run_script(observed, options, scratch)?;
            Source::Tar {
                path,
                part: None,
                name: format!("output of {name}/tar"),
                policy: TarPolicy::OVERLAY,
            }
        }
    })
}

/// Runs `./tar -` in the overlay's directory with a clean environment.
fn run_script(observed: &Observed, options: &OverlayOptions, scratch: &Scratch) -> Result<PathBuf> {
    let out = scratch.path(&format!("{}.tar", observed.inputs.short()));
    let home = scratch.path(&format!("{}.home", observed.inputs.short()));
    fs::create_dir_all(&home).at("make", &home)?;
    let script = observed.path.join("tar");
    let stdout = File::create(&out).at("make", &out)?;
    let mut child = Command::new(&script)
        .arg("-")
        .current_dir(&observed.path)
        .env_clear()
        .env("PATH", SCRIPT_PATH)
        // A private, empty directory: files of a real home would be undeclared inputs.
        .env("HOME", &home)
        .env("LANG", "C")
        .envs(&options.environment)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .at("start", &script)?;
    let stderr = tools::drain_lines(child.stderr.take().expect("piped"), |_| ());
    let status = child.wait().at("wait for", &script)?;
    tools::check(&script.display().to_string(), status, &stderr)?;
    if fs::metadata(&out).at("look at", &out)?.len() == 0 {
        return Err(ImageError::input(script.display().to_string(), "wrote no tar on its standard output"));
    }
    Ok(out)
}
