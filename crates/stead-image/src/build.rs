//! Runs a build: each step's result comes from the cache or is made, and the manifest is published last.

use crate::{
    container::{self, ContainerParts},
    debian,
    error::{ImageError, IoContext, Result},
    files, initrd,
    inputs::Inputs,
    instance::{self, InstanceParts},
    kernel::{self, KernelParts},
    merge::{Merged, Source},
    oci,
    overlay::{self, LayerParts},
    plan::{BaseParts, BuildRequest, Job, architecture, existing},
    programs::{self, ProgramParts},
    secrets, space, squashfs,
    store::{Scratch, Store},
    tarball::{TarPolicy, Writer},
    tools::Stopper,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, mpsc},
    thread,
    time::Instant,
};
use stead_model::{
    Artifact, Bytes, Digest, Failure, ImageName, Manifest,
    manifest::{Boot, FlatArtifact, Layer},
    recipe::{Base, RecipeKind},
};

/// Nice value of the steps that run beside the base.
const GIVING_WAY: i32 = 10;

/// Progress of a running build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Progress {
    /// A step that is not cached starts.
    Started {
        /// Its name in the plan.
        step: String,
        /// What it does.
        what: String,
    },
    /// Progress of a step.
    Note {
        /// Its name.
        step: String,
        /// A few words.
        text: String,
    },
    /// Something the user should know about the image's contents, cached or not.
    Warning {
        /// One sentence.
        text: String,
    },
    /// A step succeeded.
    Done(StepReport),
}

/// Result of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepReport {
    /// Its name in the plan.
    pub step: String,
    /// Its result came from the cache.
    pub cached: bool,
    /// Its duration in milliseconds.
    pub ms: u64,
}

/// Result of a build.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BuildOutcome {
    /// The image's name.
    pub name: ImageName,
    /// Digest of its manifest.
    pub digest: Digest,
    /// Its manifest.
    pub manifest: Manifest,
    /// Whether the store already had this image.
    pub reused: bool,
    /// What the user should know about the image's contents.
    pub warnings: Vec<String>,
    /// The steps with their durations.
    pub steps: Vec<StepReport>,
    /// Duration of the whole build in milliseconds.
    pub ms: u64,
}

/// Builds a recipe's image into the store. If nothing changed, nothing is done.
///
/// Builds of the same image wait for each other; different images may be built at once. A build that fails or is killed
/// leaves only finished, cached steps in the store.
///
/// # Errors
/// [`ImageError`]; [`Failure::is_bad_input`] distinguishes mistakes of the caller.
pub fn build(
    store: &Store,
    request: &BuildRequest,
    progress: &mut dyn FnMut(Progress),
) -> Result<BuildOutcome> {
    let begun = Instant::now();
    let _shared = store.share()?;
    let job = Job::observe(store, request)?;
    let _once = store.lock(&format!("image-{}", job.recipe.name))?;
    let (sender, receiver) = mpsc::channel();
    let (result, steps, warnings) = thread::scope(|scope| {
        let (refresh, sender) = (request.refresh, Mutex::new(sender));
        let run = Run { store, job: &job, refresh, sender, stopper: Stopper::default() };
        let worker = scope.spawn(move || match run.job.recipe.kind {
            RecipeKind::Node => run.node(),
            RecipeKind::Instance => run.instance(),
            RecipeKind::Container => run.container(),
        });
        let (mut steps, mut warnings) = (Vec::new(), Vec::new());
        for event in receiver {
            match &event {
                Progress::Done(report) => steps.push(report.clone()),
                Progress::Warning { text } if warnings.contains(text) => continue,
                Progress::Warning { text } => warnings.push(text.clone()),
                Progress::Started { .. } | Progress::Note { .. } => {}
            }
            progress(event);
        }
        warnings.sort();
        let result = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (result, steps, warnings)
    });
    let (manifest, keys) = result?;
    let before = store.manifest(&manifest.name).ok().map(|(digest, _)| digest);
    let digest = store.publish(&manifest, &keys)?;
    Ok(BuildOutcome {
        name: manifest.name.clone(),
        reused: before.as_ref() == Some(&digest),
        digest,
        manifest,
        warnings,
        steps,
        ms: begun.elapsed().as_millis() as u64,
    })
}

/// A running build.
struct Run<'a> {
    store: &'a Store,
    job: &'a Job,
    refresh: bool,
    sender: Mutex<mpsc::Sender<Progress>>,
    /// Of what builds and downloads programs, which may take many minutes.
    stopper: Stopper,
}

impl Run<'_> {
    fn tell(&self, event: Progress) {
        // The receiver is gone only when the build is being torn down.
        if let Ok(sender) = self.sender.lock() {
            let _ = sender.send(event);
        }
    }

    fn warn(&self, warnings: &[String]) {
        warnings.iter().for_each(|text| self.tell(Progress::Warning { text: text.clone() }));
    }

    fn done(&self, step: &str, cached: bool, begun: Instant) {
        let ms = begun.elapsed().as_millis() as u64;
        self.tell(Progress::Done(StepReport { step: step.to_owned(), cached, ms }));
    }

    fn note(&self, step: &str, text: &str) {
        self.tell(Progress::Note { step: step.to_owned(), text: text.to_owned() });
    }

    /// A step's result from the cache, or made now: once even when two builds need it.
    fn step<T: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        what: &str,
        key: &Digest,
        anew: bool,
        blobs: impl Fn(&T) -> Vec<Digest>,
        make: impl FnOnce(&Scratch) -> Result<T>,
    ) -> Result<T> {
        let begun = Instant::now();
        let known = || if anew { None } else { self.store.cached::<T>(key) };
        if let Some(result) = known() {
            self.done(name, true, begun);
            return Ok(result);
        }
        self.tell(Progress::Started { step: name.to_owned(), what: what.to_owned() });
        let _once = self.store.lock(key.hex())?;
        if let Some(result) = known() {
            self.done(name, true, begun);
            return Ok(result);
        }
        let scratch = self.store.scratch()?;
        let result = make(&scratch)?;
        self.store.remember(key, blobs(&result), &result)?;
        self.done(name, false, begun);
        Ok(result)
    }

    fn base(&self) -> Result<BaseParts> {
        let what = match &self.job.recipe.base {
            Base::Debian(d) => format!("Debian {}", d.suite),
            Base::Tar(path) => path.clone(),
            Base::Oci(oci) => format!("OCI image {}", oci.path),
            Base::Scratch => "nothing".to_owned(),
        };
        let blobs = |b: &BaseParts| vec![b.artifact.digest.clone()];
        let base = self.step("base", &what, &self.job.base_key, self.refresh, blobs, |scratch| {
            self.make_base(scratch)
        })?;
        self.warn(&base.warnings);
        let renews = self.job.recipe.kind == RecipeKind::Node || base.packages.contains_key("systemd");
        self.warn(&secrets::warnings(&base.left_out, renews));
        Ok(base)
    }

    fn make_base(&self, scratch: &Scratch) -> Result<BaseParts> {
        let node = self.job.recipe.kind == RecipeKind::Node;
        match &self.job.recipe.base {
            Base::Debian(d) => {
                if !rustix::process::geteuid().is_root() {
                    return Err(ImageError::Privilege {
                        what: format!("a Debian base ({})", self.job.recipe.name),
                        why: "the packages are installed in a root of their own".into(),
                    });
                }
                space::check(self.store.dir(), debian::SPACE_NEEDED)?;
                let run = debian::bootstrap(d, scratch.dir())?;
                let note = |text: &str| self.note("base", text);
                let mut made = debian::Bootstrapped::default();
                let artifact = if node {
                    squashfs::pack(self.store, scratch, "base", |sink| {
                        made = debian::stream(&run, d, note, |entry, data| sink.put(entry, data))?;
                        Ok(())
                    })?
                } else {
                    let path = scratch.path("base.tar.zst");
                    write_tar(&path, |out| {
                        made = debian::stream(&run, d, note, |entry, data| out.put(entry, data))?;
                        Ok(())
                    })?;
                    self.store.adopt(&path)?
                };
                let left_out = made.left_out.into_iter().collect();
                // An instance's base is read again together with its overlays; private keys are found then.
                let warnings = if node { made.warnings } else { Vec::new() };
                Ok(BaseParts { artifact, packages: made.packages, left_out, warnings })
            }
            Base::Scratch => self.merged_base(scratch, &[]),
            Base::Tar(path) => {
                let full = existing(&self.job.dir, path, "base.tar")?;
                let source =
                    Source::Tar { path: full, part: None, name: path.clone(), policy: TarPolicy::BASE };
                self.merged_base(scratch, &[source])
            }
            Base::Oci(oci) => {
                let full = existing(&self.job.dir, &oci.path, "base.oci")?;
                let wanted =
                    oci::Wanted { architecture: architecture().to_owned(), reference: oci.reference.clone() };
                let sources = oci::layers(&full, &wanted)?;
                self.merged_base(scratch, &sources)
            }
        }
    }

    fn merged_base(&self, scratch: &Scratch, sources: &[Source]) -> Result<BaseParts> {
        let merged = Merged::of(sources)?;
        space::check(self.store.dir(), merged.summary().bytes)?;
        let (mut packages, mut warnings) = (BTreeMap::new(), Vec::new());
        let mut look = |entry: &crate::tarball::Entry,
                        data: &mut dyn Read,
                        put: &mut dyn FnMut(&mut dyn Read) -> std::io::Result<()>| {
            if entry.path != b"var/lib/dpkg/status" {
                return put(data);
            }
            let mut status = Vec::new();
            data.read_to_end(&mut status)?;
            packages = debian::installed(&String::from_utf8_lossy(&status));
            put(&mut &status[..])
        };
        let artifact = if self.job.recipe.kind == RecipeKind::Node {
            squashfs::pack(self.store, scratch, "base", |sink| {
                merged.write(sources, &mut |entry, data| {
                    secrets::inspect(entry, data, &mut warnings, &mut |entry, data| {
                        look(entry, data, &mut |d| sink.put(entry, d))
                    })
                })
            })?
        } else {
            let path = scratch.path("base.tar.zst");
            write_tar(&path, |out| {
                merged.write(sources, &mut |entry, data| look(entry, data, &mut |d| out.put(entry, d)))
            })?;
            self.store.adopt(&path)?
        };
        Ok(BaseParts { artifact, packages, left_out: Vec::new(), warnings })
    }

    fn kernel(&self) -> Result<Option<KernelParts>> {
        let (Some(key), Some(spec)) = (&self.job.kernel_key, &self.job.recipe.kernel) else {
            return Ok(None);
        };
        let what = spec.package.as_ref().or(spec.path.as_ref()).map_or("", String::as_str);
        let make = |scratch: &Scratch| match (&spec.package, &spec.path, &self.job.recipe.base) {
            (Some(package), _, Base::Debian(d)) => {
                kernel::from_package(self.store, scratch, package, d, |text| self.note("kernel", text))
            }
            (_, Some(path), _) => {
                let modules = match &spec.modules_path {
                    Some(m) => Some(existing(&self.job.dir, m, "kernel.modules_path")?),
                    None => None,
                };
                let path = existing(&self.job.dir, path, "kernel.path")?;
                kernel::from_path(self.store, scratch, &path, modules.as_deref())
            }
            _ => Err(ImageError::input("kernel", "needs exactly one of \"package\" and \"path\"")),
        };
        self.step("kernel", what, key, self.refresh, KernelParts::blobs, make).map(Some)
    }

    /// The programs of each source, one source after the other: a Go build takes all processors by itself.
    fn programs(&self) -> Result<Vec<ProgramParts>> {
        let sources = self.job.recipe.programs.iter().zip(&self.job.programs);
        sources
            .map(|(source, observed)| {
                let make = |scratch: &Scratch| {
                    let note = |text: &str| self.note(&observed.step, text);
                    let parts = observed.make(self.store, scratch, &self.stopper, &note)?;
                    let mut again = Inputs::open(self.store, &format!("programs {}", observed.inputs));
                    if programs::observe(source, &self.job.dir, &mut again)?.inputs != observed.inputs {
                        return Err(ImageError::Io {
                            operation: "build",
                            path: self.job.dir.join(source.label()),
                            source: std::io::Error::other("it changed while it was read; build again"),
                        });
                    }
                    Ok(parts)
                };
                self.step(&observed.step, &observed.what, &observed.inputs, false, ProgramParts::blobs, make)
            })
            .collect()
    }

    fn programs_layer(&self, parts: &[ProgramParts]) -> Result<Option<(Artifact, Digest)>> {
        let Some(key) = self.job.programs_key() else { return Ok(None) };
        let blobs = |parts: &LayerParts| vec![parts.artifact.digest.clone()];
        let packed = self.step("programs", "all programs", &key, false, blobs, |scratch| {
            let sources = [programs::tree(self.store, &self.job.recipe.programs, parts)?];
            let merged = Merged::of(&sources)?;
            space::check(self.store.dir(), merged.summary().bytes)?;
            overlay::pack(self.store, scratch, "programs", &merged, &sources)
        })?;
        self.warn(&packed.warnings);
        Ok(Some((packed.artifact, key)))
    }

    fn overlays(&self) -> Result<Vec<Layer>> {
        // All at once: each mostly waits for its own mksquashfs.
        thread::scope(|scope| {
            let threads: Vec<_> = self
                .job
                .overlays
                .iter()
                .map(|(options, observed)| {
                    scope.spawn(move || {
                        let begun = Instant::now();
                        let name = format!("overlay:{}", observed.name);
                        let made = overlay::build_layer_unshared(self.store, options, &self.job.dir)?;
                        self.warn(&made.warnings);
                        self.done(&name, made.cached, begun);
                        Ok(made.layer)
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        })
    }

    fn files_layer(&self, base: &BaseParts) -> Result<(Artifact, Digest)> {
        let key = self.job.files_layer_key(Some(base)).expect("the base is known");
        let blobs = |parts: &LayerParts| vec![parts.artifact.digest.clone()];
        let parts = self.step("files", "the recipe's files", &key, false, blobs, |scratch| {
            let recipe = secrets::with_steps(&self.job.recipe, &base.left_out);
            let sources = [files::tree(&recipe, &self.job.dir)?];
            overlay::pack(self.store, scratch, "files", &Merged::of(&sources)?, &sources)
        })?;
        self.warn(&parts.warnings);
        Ok((parts.artifact, key))
    }

    fn stead_node(&self, digest: &Digest) -> Result<Artifact> {
        let begun = Instant::now();
        let path = self.store.blob(digest);
        let cached = path.exists();
        let artifact = if cached {
            let size = fs::metadata(&path).at("look at", &path)?.len();
            Artifact { digest: digest.clone(), size: Bytes(size) }
        } else {
            let copy = self.store.copy_in(&self.job.stead_node, &self.store.scratch()?)?;
            if copy.digest != *digest {
                return Err(ImageError::Io {
                    operation: "copy",
                    path: self.job.stead_node.clone(),
                    source: std::io::Error::other("it changed during the build; build again"),
                });
            }
            copy
        };
        // The only artifact that is executed from the store. Also set when cached: an earlier step may have been interrupted.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o555)).at("make executable", &path)?;
        self.done("stead-node", cached, begun);
        Ok(artifact)
    }

    fn initrd(&self, kernel: Option<&KernelParts>) -> Result<(Option<Artifact>, Option<Digest>)> {
        let (Some(key), Some(kernel)) = (self.job.initrd_key(kernel), kernel) else {
            return Ok((None, None));
        };
        let extra = self.job.recipe.kernel.as_ref().map_or(&[][..], |k| &k.initrd_modules);
        let made = self.step("initrd", "stead-node and modules", &key, false, one_blob, |scratch| {
            // The store's copy: the file itself may have been rebuilt since this build started.
            let path = self.store.blob(self.job.node_digest.as_ref().expect("its key was made of it"));
            let node = fs::read(&path).at("read", &path)?;
            let layer = kernel.modules.as_ref().map(|m| self.store.blob(&m.digest));
            let modules = layer.as_deref().map(|l: &Path| (l, kernel.release.as_str()));
            self.store.put(&initrd::build(scratch, &node, modules, extra)?)
        })?;
        Ok((Some(made), Some(key)))
    }

    fn node(&self) -> Result<(Manifest, Vec<Digest>)> {
        let job = self.job;
        let node_digest = job.node_digest.as_ref().expect("a node's job has looked at stead-node");
        // Small steps first, so that their mistakes show before the long bootstrap.
        Merged::of(&[files::tree(&job.recipe, &job.dir)?])?;
        let stead_node = self.stead_node(node_digest)?;
        let (base, kernel, overlays, parts) = thread::scope(|scope| {
            // A failure elsewhere ends Go and curl, which may run for many minutes, so that it is reported at once.
            let stop = |_: &ImageError| self.stopper.stop();
            // The base is waited for, so the other steps and their programs run at low priority. On Linux the nice value
            // belongs to the thread.
            let give_way = || rustix::process::setpriority_process(None, GIVING_WAY);
            let base = scope.spawn(move || self.base().inspect_err(stop));
            let kernel = scope.spawn(move || {
                let _ = give_way();
                self.kernel().inspect_err(stop)
            });
            let parts = scope.spawn(move || {
                let _ = give_way();
                self.programs()
            });
            let overlays = self.overlays().inspect_err(stop);
            let join = "a thread of this build panicked";
            (base.join().expect(join), kernel.join().expect(join), overlays, parts.join().expect(join))
        });
        // Mistakes in the recipe are reported before faults of the host.
        let overlays = overlays?;
        let (base, kernel) = match (base, kernel) {
            (Err(b), Err(k)) if k.is_bad_input() && !b.is_bad_input() => return Err(k),
            (base, kernel) => (base?, kernel?),
        };
        let parts = parts?;
        let programs = self.programs_layer(&parts)?;
        let (files, files_key) = self.files_layer(&base)?;
        let (initrd, initrd_key) = self.initrd(kernel.as_ref())?;

        let layer = |name: &str, artifact: &Artifact, inputs: &Digest| Layer {
            name: name.to_owned(),
            artifact: FlatArtifact { digest: artifact.digest.clone(), size: artifact.size },
            inputs: inputs.clone(),
        };
        let mut layers = vec![layer("base", &base.artifact, &job.base_key)];
        if let (Some(modules), Some(key)) =
            (kernel.as_ref().and_then(|k| k.modules.as_ref()), &job.kernel_key)
        {
            layers.push(layer("kernel", modules, key));
        }
        layers.extend(programs.iter().map(|(artifact, key)| layer("programs", artifact, key)));
        layers.push(layer("files", &files, &files_key));
        layers.extend(overlays);
        if !parts.is_empty() {
            let of = |l: &Layer| self.store.blob(&l.artifact.digest);
            let blobs: Vec<PathBuf> = layers.iter().map(of).collect();
            let has = |path: &str| programs::in_layers(&blobs, path);
            self.warn(&programs::missing_interpreters(&job.recipe.programs, &parts, has)?);
        }
        let mut packages = base.packages;
        packages.extend(kernel.as_ref().and_then(|k| k.package.clone()));
        let release = kernel.as_ref().map(|k| k.release.clone()).filter(|r| !r.is_empty());
        let manifest = Manifest {
            schema: 1,
            name: job.recipe.name.clone(),
            kind: RecipeKind::Node,
            architecture: architecture().to_owned(),
            engine: self.job.recipe.system.engine,
            recipe: job.recipe_digest.clone(),
            layers,
            boot: Some(Boot {
                kernel_release: release,
                vmlinux: kernel.as_ref().map(|k| k.vmlinux.clone()),
                bzimage: kernel.as_ref().and_then(|k| k.bzimage.clone()),
                initrd,
                stead_node,
            }),
            instance: None,
            container: None,
            packages,
        };
        let mut keys = vec![job.base_key.clone(), files_key];
        keys.extend(job.kernel_key.clone());
        keys.extend(initrd_key);
        keys.extend(job.programs.iter().map(|p| p.inputs.clone()));
        keys.extend(job.programs_key());
        keys.extend(job.overlays.iter().map(|(_, o)| o.inputs.clone()));
        Ok((manifest, keys))
    }

    /// What the root of an instance or a container is made of, lowest first.
    fn sources(&self, base: &BaseParts, programs: &[ProgramParts], scratch: &Scratch) -> Result<Vec<Source>> {
        let job = self.job;
        let mut sources = vec![Source::Tar {
            path: self.store.blob(&base.artifact.digest),
            part: None,
            name: "base".into(),
            policy: TarPolicy::BASE,
        }];
        if base.packages.contains_key("systemd") {
            sources.push(Source::Memory(secrets::units(&base.left_out)));
        }
        sources.push(programs::tree(self.store, &job.recipe.programs, programs)?);
        sources.push(files::tree(&job.recipe, &job.dir)?);
        for (options, observed) in &job.overlays {
            sources.push(overlay::source(observed, options, scratch)?);
        }
        Ok(sources)
    }

    fn instance(&self) -> Result<(Manifest, Vec<Digest>)> {
        let job = self.job;
        let base = self.base()?;
        let programs = self.programs()?;
        let key = job.rootfs_key(Some(&base)).expect("the base is known");
        let parts: InstanceParts =
            self.step("rootfs", "root and metadata", &key, false, InstanceParts::blobs, |scratch| {
                let sources = self.sources(&base, &programs, scratch)?;
                let of = architecture();
                instance::pack(self.store, scratch, &job.recipe, of, &sources, &programs, job.unified)
            })?;
        self.warn(&parts.warnings);
        Ok((Manifest { instance: Some(parts.image), ..self.rootless(base) }, self.keys_with_root(key)))
    }

    fn container(&self) -> Result<(Manifest, Vec<Digest>)> {
        let job = self.job;
        let base = self.base()?;
        let programs = self.programs()?;
        let key = job.rootfs_key(Some(&base)).expect("the base is known");
        let parts: ContainerParts =
            self.step("rootfs", "OCI layout", &key, false, ContainerParts::blobs, |scratch| {
                let sources = self.sources(&base, &programs, scratch)?;
                container::pack(self.store, scratch, &job.recipe, &sources, &programs)
            })?;
        self.warn(&parts.warnings);
        Ok((Manifest { container: Some(parts.image), ..self.rootless(base) }, self.keys_with_root(key)))
    }

    /// The manifest of an image without layers, but for the image itself.
    fn rootless(&self, base: BaseParts) -> Manifest {
        let recipe = &self.job.recipe;
        Manifest {
            schema: 1,
            name: recipe.name.clone(),
            kind: recipe.kind,
            architecture: architecture().to_owned(),
            engine: recipe.system.engine,
            recipe: self.job.recipe_digest.clone(),
            layers: Vec::new(),
            boot: None,
            instance: None,
            container: None,
            packages: base.packages,
        }
    }

    /// Cache keys of an image without layers.
    fn keys_with_root(&self, root: Digest) -> Vec<Digest> {
        let mut keys = vec![self.job.base_key.clone(), root];
        keys.extend(self.job.programs.iter().map(|p| p.inputs.clone()));
        keys
    }
}

fn one_blob(artifact: &Artifact) -> Vec<Digest> {
    vec![artifact.digest.clone()]
}

/// Writes entries as a zstd tar.
fn write_tar(
    path: &Path,
    fill: impl FnOnce(&mut Writer<zstd::stream::write::Encoder<'static, BufWriter<File>>>) -> Result<()>,
) -> Result<()> {
    let file = BufWriter::with_capacity(256 << 10, File::create(path).at("make", path)?);
    // Level 1: only this build reads it again.
    let zstd = zstd::stream::write::Encoder::new(file, 1).at("write", path)?;
    let mut writer = Writer::new(zstd, squashfs::EPOCH, "");
    fill(&mut writer)?;
    let zstd = writer.finish().at("write", path)?;
    let file = zstd.finish().at("write", path)?;
    file.into_inner().map_err(|e| e.into_error()).at("write", path)?;
    Ok(())
}
