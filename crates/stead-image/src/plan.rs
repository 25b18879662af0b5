//! The plan of a build, as a value: made by observation, printed by `--dry-run`, executed by `build`.

use crate::{
    debian,
    digest::Key,
    error::{ImageError, IoContext, Result},
    files,
    inputs::Inputs,
    kernel::KernelParts,
    overlay::{self, Observed},
    programs::{self, ProgramParts},
    store::Store,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};
use stead_model::{
    Artifact, Digest, ImageName, Recipe,
    recipe::{Base, Kernel, OverlayOptions, RecipeKind},
};

/// What to build, and with what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildRequest {
    /// The recipe's file. Paths in it are relative to its folder.
    pub recipe_path: PathBuf,
    /// The static `stead-node` that goes into node images.
    pub stead_node: PathBuf,
    /// Rebuild base and kernel although their inputs are unchanged: the mirror may have newer packages.
    pub refresh: bool,
    /// For instance images: also make the unified tar.
    pub unified: bool,
}

impl BuildRequest {
    /// A request with the default options.
    pub fn new(recipe_path: impl Into<PathBuf>, stead_node: impl Into<PathBuf>) -> Self {
        Self {
            recipe_path: recipe_path.into(),
            stead_node: stead_node.into(),
            refresh: false,
            unified: false,
        }
    }
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlanStep {
    /// `base`, `kernel`, `programs:<source>`, `programs`, `files`, `overlay:<name>`, `initrd`, `stead-node`, `rootfs`, `metadata`.
    pub name: String,
    /// Description for people.
    pub what: String,
    /// Hash of everything its result depends on; `None` while that depends on an earlier step's result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inputs: Option<Digest>,
    /// Whether its result is cached.
    pub cached: bool,
    /// The program it runs, if it runs one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub argv: Vec<String>,
}

/// What a build will do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BuildPlan {
    /// The image.
    pub name: ImageName,
    /// Node or instance.
    pub kind: RecipeKind,
    /// Hash of the parsed recipe and of the contents of the files it names.
    pub recipe: Digest,
    /// Steps in order. Those before `files` run side by side.
    pub steps: Vec<PlanStep>,
}

impl BuildPlan {
    /// Whether there is nothing to do.
    pub fn is_done(&self) -> bool {
        self.steps.iter().all(|s| s.cached)
    }
}

/// Result of the base step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseParts {
    /// The base: a squashfs for nodes, a zstd tar for instances (which get one merged root).
    pub artifact: Artifact,
    /// Installed packages and their versions.
    pub packages: BTreeMap<String, String>,
    /// Names of the identities left out ([`crate::secrets::IDENTITIES`]), sorted.
    pub left_out: Vec<String>,
    /// What the user should know about its contents.
    pub warnings: Vec<String>,
}

/// Everything that observation found; nothing else is looked up later.
#[derive(Debug)]
pub(crate) struct Job {
    pub recipe: Recipe,
    pub dir: PathBuf,
    pub stead_node: PathBuf,
    pub unified: bool,
    pub recipe_digest: Digest,
    pub base_key: Digest,
    pub kernel_key: Option<Digest>,
    pub files_key: Digest,
    pub node_digest: Option<Digest>,
    pub programs: Vec<programs::Observed>,
    pub overlays: Vec<(OverlayOptions, Observed)>,
}

/// Debian's name of the architecture that images are built for, which is the builder's own.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Job {
    /// Reads the recipe and observes everything it names.
    pub fn observe(store: &Store, request: &BuildRequest) -> Result<Self> {
        let path = &request.recipe_path;
        let text = match fs::read_to_string(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(ImageError::input(path.display().to_string(), "no such recipe"));
            }
            other => other.at("read", path)?,
        };
        let recipe = Recipe::from_yaml(&path.display().to_string(), &text).map_err(ImageError::Recipe)?;
        let absolute = std::path::absolute(path).at("resolve", path)?;
        let dir = absolute.parent().unwrap_or(Path::new("/")).to_owned();
        let node = recipe.kind == RecipeKind::Node;
        let mut inputs = Inputs::open(store, &format!("recipe {}", absolute.display()));

        let base_key = base_key(&recipe, &dir, &mut inputs)?;
        let kernel_key = match &recipe.kernel {
            Some(kernel) if node => Some(kernel_key(kernel, &recipe, &dir, &mut inputs)?),
            _ => None,
        };
        let mut files_key = Key::new("files-2");
        files_key.text(&json(&recipe.kind)).text(&json(&recipe.files)).text(&json(&recipe.system));
        for source in files::sources(&recipe, &dir)? {
            files_key.text(&source.to_string_lossy()).text(inputs.file(&source)?.as_str());
        }
        let files_key = files_key.digest();
        let programs = recipe
            .programs
            .iter()
            .map(|source| programs::observe(source, &dir, &mut inputs))
            .collect::<Result<Vec<_>>>()?;
        let node_digest = if node { Some(check_stead_node(&request.stead_node, &mut inputs)?) } else { None };
        inputs.save();

        let mut overlays = Vec::new();
        for source in &recipe.overlays {
            let options = source.options();
            let observed = overlay::observe(store, &options, &dir)?;
            overlays.push((options, observed));
        }
        let mut recipe_key = Key::new("recipe-1");
        recipe_key.text(&json(&recipe)).text(base_key.as_str()).text(files_key.as_str());
        recipe_key.text(kernel_key.as_ref().map_or("", Digest::as_str));
        for (_, observed) in &overlays {
            recipe_key.text(observed.inputs.as_str());
        }
        if !programs.is_empty() {
            recipe_key.text(programs::tree_key(&recipe.programs, &programs).as_str());
        }
        Ok(Self {
            recipe,
            dir,
            stead_node: request.stead_node.clone(),
            unified: request.unified,
            recipe_digest: recipe_key.digest(),
            base_key,
            kernel_key,
            files_key,
            node_digest,
            programs,
            overlays,
        })
    }

    /// Key of the files' layer, once the base is known: the layer has the steps that regenerate what was left out of
    /// the base.
    pub fn files_layer_key(&self, base: Option<&BaseParts>) -> Option<Digest> {
        if !matches!(self.recipe.base, Base::Debian(_)) {
            return Some(self.files_key.clone());
        }
        let base = base?;
        let mut key = Key::new("files-layer-1");
        key.text(self.files_key.as_str()).text(&json(&base.left_out));
        // The steps themselves may change.
        key.text(&json(&crate::secrets::with_steps(&self.recipe, &base.left_out).system.onboot));
        Some(key.digest())
    }

    /// Key of the programs' layer, when there are any.
    pub fn programs_key(&self) -> Option<Digest> {
        (!self.programs.is_empty()).then(|| programs::tree_key(&self.recipe.programs, &self.programs))
    }

    /// Key of the initrd, once the kernel is known.
    pub fn initrd_key(&self, kernel: Option<&KernelParts>) -> Option<Digest> {
        let node = self.node_digest.as_ref()?;
        let recipe = self.recipe.kernel.as_ref()?;
        let kernel = kernel?;
        let mut key = Key::new("initrd-1");
        key.text(node.as_str()).text(&kernel.release).text(&json(&recipe.initrd_modules));
        key.text(kernel.modules.as_ref().map_or("", |m| m.digest.as_str()));
        key.text(&json(&(crate::initrd::REQUIRED, crate::initrd::OPTIONAL)));
        Some(key.digest())
    }

    /// Key of the instance's root and metadata, once the base is known.
    pub fn rootfs_key(&self, base: Option<&BaseParts>) -> Option<Digest> {
        let base = base?;
        let mut key = Key::new("rootfs-2");
        key.text(base.artifact.digest.as_str()).text(self.files_key.as_str());
        for (_, observed) in &self.overlays {
            key.text(observed.inputs.as_str());
        }
        if let Some(programs) = self.programs_key() {
            key.text(programs.as_str());
        }
        if self.recipe.kind == RecipeKind::Container {
            key.text("container-1").text(&json(&self.recipe.container));
        }
        for (entry, text) in crate::secrets::units(&base.left_out) {
            key.part(&entry.path).part(&text);
        }
        key.number(u64::from(self.unified));
        key.text(self.recipe.name.as_str())
            .text(&json(&self.recipe.description))
            .text(&json(&self.recipe.base));
        Some(key.digest())
    }

    /// The plan's printable form.
    pub fn plan(&self, store: &Store, refresh: bool) -> BuildPlan {
        let mut steps = Vec::new();
        let mut step = |name: &str, what: String, inputs: Option<Digest>, cached: bool, argv: Vec<String>| {
            steps.push(PlanStep { name: name.to_owned(), what, inputs, cached, argv });
        };
        let base: Option<BaseParts> = store.cached(&self.base_key).filter(|_| !refresh);
        let (what, argv) = match &self.recipe.base {
            Base::Debian(d) => (
                format!("bootstrap Debian {} with {} packages named", d.suite, d.packages.len()),
                debian::bootstrap(d, &store.dir().join("tmp")).map(|i| i.argv()).unwrap_or_default(),
            ),
            Base::Tar(path) => (format!("take the root filesystem {path}"), Vec::new()),
            Base::Scratch => ("begin with nothing".to_owned(), Vec::new()),
            Base::Oci(oci) => {
                let which = oci.reference.as_ref().map_or(String::new(), |r| format!("{r} "));
                (format!("take the OCI image {which}in {}", oci.path), Vec::new())
            }
        };
        step("base", what, Some(self.base_key.clone()), base.is_some(), argv);
        let mut kernel: Option<KernelParts> = None;
        if let (Some(key), Some(spec)) = (&self.kernel_key, &self.recipe.kernel) {
            kernel = store.cached(key).filter(|_| !refresh);
            let what = match (&spec.package, &spec.path) {
                (Some(package), _) => format!("take kernel and modules out of {package}"),
                (_, path) => format!("take the kernel {}", path.as_deref().unwrap_or_default()),
            };
            step("kernel", what, Some(key.clone()), kernel.is_some(), Vec::new());
        }
        for p in &self.programs {
            let cached = store.cached::<ProgramParts>(&p.inputs).is_some();
            step(&p.step, p.what.clone(), Some(p.inputs.clone()), cached, p.argv.clone());
        }
        if let Some(key) = self.programs_key().filter(|_| self.recipe.kind == RecipeKind::Node) {
            let cached = store.cached::<overlay::LayerParts>(&key).is_some();
            step("programs", "pack the programs".into(), Some(key), cached, Vec::new());
        }
        for (_, o) in &self.overlays {
            let what = match o.kind {
                overlay::OverlayKind::Directory => "pack the directory",
                overlay::OverlayKind::Tar => "repack the tar",
                overlay::OverlayKind::Script => "run ./tar and pack what it writes",
            };
            let cached = if self.recipe.kind == RecipeKind::Node {
                store.cached::<overlay::LayerParts>(&o.inputs).is_some()
            } else {
                // Part of the root; that step knows whether it is cached.
                true
            };
            let name = format!("overlay:{}", o.name);
            step(&name, format!("{what} {}", o.path.display()), Some(o.inputs.clone()), cached, Vec::new());
        }
        if self.recipe.kind == RecipeKind::Container {
            let key = self.rootfs_key(base.as_ref());
            let cached =
                key.as_ref().is_some_and(|k| store.cached::<crate::container::ContainerParts>(k).is_some());
            let what = "lay files and overlays over the base, pack an OCI layout".to_owned();
            step("rootfs", what, key, cached, Vec::new());
        } else if self.recipe.kind == RecipeKind::Instance {
            let key = self.rootfs_key(base.as_ref());
            let cached =
                key.as_ref().is_some_and(|k| store.cached::<crate::instance::InstanceParts>(k).is_some());
            let what = "lay files and overlays over the base, pack root and metadata".to_owned();
            step("rootfs", what, key, cached, Vec::new());
        } else {
            let key = self.files_layer_key(base.as_ref());
            let cached = key.as_ref().is_some_and(|k| store.cached::<overlay::LayerParts>(k).is_some());
            let what = format!("pack the system spec and {} files", self.recipe.files.len());
            step("files", what, key, cached, Vec::new());
            if let Some(node) = &self.node_digest {
                let cached = store.blob(node).exists();
                step(
                    "stead-node",
                    self.stead_node.display().to_string(),
                    Some(node.clone()),
                    cached,
                    Vec::new(),
                );
            }
            if self.recipe.kernel.is_some() {
                let key = self.initrd_key(kernel.as_ref());
                let cached = key.as_ref().is_some_and(|k| store.cached::<Artifact>(k).is_some());
                step("initrd", "pack stead-node and modules".into(), key, cached, Vec::new());
            }
        }
        BuildPlan {
            name: self.recipe.name.clone(),
            kind: self.recipe.kind,
            recipe: self.recipe_digest.clone(),
            steps,
        }
    }
}

/// Observes a recipe and everything it names, and returns what building it would do.
///
/// # Errors
/// The recipe, or something it names, is missing or malformed.
pub fn plan(store: &Store, request: &BuildRequest) -> Result<BuildPlan> {
    let job = Job::observe(store, request)?;
    Ok(job.plan(store, request.refresh))
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain data")
}

fn base_key(recipe: &Recipe, dir: &Path, inputs: &mut Inputs) -> Result<Digest> {
    let mut key = Key::new("base-3");
    // Nodes and instances have their base in different forms.
    key.text(&json(&recipe.kind)).text(architecture());
    match &recipe.base {
        Base::Debian(debian) => {
            debian::archive(debian)?;
            let mut sorted = debian.clone();
            sorted.packages.sort();
            sorted.packages.dedup();
            key.text("debian").text(&json(&sorted));
        }
        Base::Scratch => {
            key.text("scratch");
        }
        Base::Tar(path) => {
            let path = existing(dir, path, "base.tar")?;
            key.text("tar").text(inputs.file(&path)?.as_str());
        }
        Base::Oci(oci) => {
            let path = existing(dir, &oci.path, "base.oci")?;
            let index = crate::oci::key_file(&path);
            if !index.exists() {
                let why = "has neither index.json nor manifest.json: not an OCI image layout";
                return Err(ImageError::input(path.display().to_string(), why));
            }
            key.text("oci").text(inputs.file(&index)?.as_str());
            key.text(oci.reference.as_deref().unwrap_or_default());
        }
    }
    Ok(key.digest())
}

fn kernel_key(kernel: &Kernel, recipe: &Recipe, dir: &Path, inputs: &mut Inputs) -> Result<Digest> {
    let mut key = Key::new("kernel-1");
    key.text(architecture());
    if let Some(package) = &kernel.package {
        let Base::Debian(debian) = &recipe.base else {
            let why = "needs a Debian base, from whose suite it is downloaded; or set \"path\" instead";
            return Err(ImageError::input("kernel.package", why));
        };
        let valid = |b: u8| b.is_ascii_alphanumeric() || b"+-.~".contains(&b);
        if package.starts_with('-') || !package.bytes().all(valid) {
            return Err(ImageError::input(
                "kernel.package",
                format!("{package:?} is not a valid package name"),
            ));
        }
        let from = (&debian.suite, &debian.mirror, &debian.snapshot, &debian.components);
        key.text("package").text(package).text(&json(&from));
    }
    if let Some(path) = &kernel.path {
        key.text("path").text(inputs.file(&existing(dir, path, "kernel.path")?)?.as_str());
        if let Some(modules) = &kernel.modules_path {
            let modules = existing(dir, modules, "kernel.modules_path")?.join("lib/modules");
            key.text(inputs.tree(&modules, false)?.as_str());
        }
    }
    Ok(key.digest())
}

/// A path of the recipe that must exist.
pub(crate) fn existing(dir: &Path, path: &str, key: &str) -> Result<PathBuf> {
    let full = dir.join(path);
    if full.exists() {
        return Ok(full);
    }
    Err(ImageError::input(key, format!("{} does not exist", full.display())))
}

/// The node's binary runs without any library: it must be a static ELF executable.
fn check_stead_node(path: &Path, inputs: &mut Inputs) -> Result<Digest> {
    let shown = path.display().to_string();
    if !path.is_file() {
        return Err(ImageError::input(shown, "no such file: the static stead-node that goes into the image"));
    }
    let digest = inputs.file(path)?;
    let bytes = fs::read(path).at("read", path)?;
    if !matches!(programs::elf::program(&bytes), programs::elf::Program::Elf { interpreter: None, .. }) {
        return Err(ImageError::input(shown, "is not a statically linked executable"));
    }
    Ok(digest)
}
