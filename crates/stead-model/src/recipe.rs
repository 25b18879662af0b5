//! The recipe: YAML that says what an image contains.

use crate::{
    cluster::EngineKind,
    names::ImageName,
    programs::{self, Programs},
    text,
    text::SpecError,
};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_untagged::UntaggedEnumVisitor;
use std::collections::{BTreeMap, BTreeSet};

/// What the recipe makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum RecipeKind {
    /// An image for a machine: kernel, initrd, layers.
    #[default]
    Node,
    /// An image for system containers on Incus and LXD: metadata and rootfs.
    Instance,
    /// An image for application containers: the tar of an OCI layout.
    Container,
}

/// What an image contains. Paths in it are relative to the recipe's own folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Recipe {
    /// Name of the image.
    pub name: ImageName,
    /// What it is for: `node` (the default), `instance` or `container`.
    #[serde(default)]
    pub kind: RecipeKind,
    /// One line for `stead image ls`.
    #[serde(default)]
    pub description: Option<String>,
    /// The root filesystem to start from.
    pub base: Base,
    /// The kernel, for node images. Without one the image runs only as a namespace machine.
    #[serde(default)]
    pub kernel: Option<Kernel>,
    /// Programs besides the base's packages: built from Go modules, downloaded, or taken from a path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub programs: Vec<Programs>,
    /// Overlays baked in, in order: a directory, a tar, or a directory with an executable `tar` script.
    #[serde(default)]
    pub overlays: Vec<OverlaySource>,
    /// Single files.
    #[serde(default)]
    pub files: Vec<File>,
    /// What a runtime does with it, for container images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerConfig>,
    /// What the node does with it; a recipe writes these keys at its top level.
    #[serde(flatten, skip_deserializing)]
    pub system: SystemSpec,
}

/// What a node does besides booting: baked into an image as `/usr/lib/stead/system.json`, and added to by a node spec.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
pub struct SystemSpec {
    /// Hostname when the node spec gives none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Kernel parameters, dotted: `vm.max_map_count: "262144"`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctl: BTreeMap<String, Scalar>,
    /// Commands run once at each boot, one after the other, before any service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub onboot: Vec<Onboot>,
    /// Supervised services.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Service>,
    /// Disks to format (only when without any signature) and mount.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskRule>,
    /// The engine this image carries.
    #[serde(default, skip_serializing_if = "EngineKind::is_none")]
    pub engine: EngineKind,
}

/// A sysctl's value: any scalar, as it was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Scalar(pub String);

impl JsonSchema for Scalar {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Scalar".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": ["string", "integer"] })
    }
}

/// How a runtime starts a container image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
pub struct ContainerConfig {
    /// Names in a runtime or registry, e.g. `registry.example/pause:3.10`; `localhost/<name>:latest` when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// The program and its first arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Arguments that the user of the image may replace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Environment; `PATH` has a value when this has none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// User, and group if wanted: `65534` or `65534:65534`. Root when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Working directory; `/` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_directory: Option<String>,
    /// The signal that stops it, e.g. `SIGQUIT`; `SIGTERM` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
}

impl ContainerConfig {
    /// The rules between keys; the error is (key, why).
    fn check(&self) -> Result<(), (String, String)> {
        let err = |key: &str, why: String| Err((format!("container.{key}"), why));
        let sign = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
        let part = |p: &str| p.starts_with(|c: char| c.is_ascii_alphanumeric()) && p.bytes().all(sign);
        for name in &self.names {
            let (path, tag) = match name.rsplit_once(':') {
                Some((path, tag)) if !tag.contains('/') => (path, tag),
                _ => return err("names", format!("{name:?} has no tag: registry/name:tag")),
            };
            let (host, rest) = path.split_once('/').unwrap_or((path, ""));
            let host = host.split_once(':').map_or(host, |(host, _)| host);
            let tagged =
                !tag.is_empty() && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
            if name.len() > 255 || !part(host) || rest.is_empty() || !rest.split('/').all(part) || !tagged {
                return err("names", format!("{name:?} is not an image's name (registry/name:tag)"));
            }
        }
        let word = |w: &String| !w.contains('\0');
        if !self.entrypoint.iter().chain(&self.command).all(word)
            || self.entrypoint.first().is_some_and(String::is_empty)
        {
            return err("entrypoint", "is not an argument vector".into());
        }
        for (name, value) in &self.environment {
            if name.is_empty() || name.contains(['=', '\0']) || !word(value) {
                return err("environment", format!("{name:?} is no variable"));
            }
        }
        if let Some(dir) = &self.working_directory
            && !(dir.starts_with('/') && word(dir))
        {
            return err("working_directory", format!("{dir:?} is not an absolute path"));
        }
        Ok(())
    }
}

/// Where the root filesystem comes from: exactly one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Base {
    /// Debian packages, by mmdebstrap.
    Debian(Debian),
    /// A root filesystem as a tar file (plain, gz, xz or zst).
    Tar(String),
    /// An OCI image layout (a folder or its tar), or what `docker save` writes.
    Oci(OciBase),
    /// Nothing: the recipe's programs and files are all there is. For container images.
    Scratch,
}

/// An OCI image: a path, or a path with the image that is meant when there are several.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OciBase {
    /// The layout's folder or tar.
    pub path: String,
    /// A tag, or the digest of a manifest or an index. Without it the layout has one image for this architecture.
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

impl<'de> Deserialize<'de> for OciBase {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        UntaggedEnumVisitor::new()
            .expecting("a layout's path, or its path with \"ref\"")
            .string(|path| Ok(Self { path: path.to_owned(), reference: None }))
            .map(|keys| {
                let OciKeys { path, reference } = keys.deserialize()?;
                Ok(Self { path, reference })
            })
            .deserialize(deserializer)
    }
}

/// [`OciBase`] as a map.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OciKeys {
    /// The layout's folder or tar.
    path: String,
    /// A tag, or the digest of a manifest or an index. Without it the layout has one image for this architecture.
    #[serde(default, rename = "ref")]
    reference: Option<String>,
}

impl JsonSchema for OciBase {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "OciBase".into()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let keys = generator.subschema_for::<OciKeys>();
        schemars::json_schema!({
            "description": "An OCI image: a path, or a path with the image that is meant when there are several.",
            "anyOf": [{ "type": "string" }, keys]
        })
    }
}

/// A Debian base.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Debian {
    /// Suite: `bookworm`, `trixie`, …
    pub suite: String,
    /// Packages beyond the minimal set, by name.
    #[serde(default)]
    pub packages: Vec<String>,
    /// Mirror; absent means Debian's own.
    #[serde(default)]
    pub mirror: Option<String>,
    /// Day or instant of Debian's snapshot archive to pin to, e.g. `20261101T000000Z`.
    #[serde(default)]
    pub snapshot: Option<String>,
    /// Components; `main` when empty.
    #[serde(default)]
    pub components: Vec<String>,
}

/// A kernel for node images: exactly one of `package` and `path`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// A Debian package (or metapackage) name, e.g. `linux-image-cloud-amd64`.
    #[serde(default)]
    pub package: Option<String>,
    /// A bzImage or an ELF vmlinux.
    #[serde(default)]
    pub path: Option<String>,
    /// With `path`: the folder that holds `lib/modules/<release>`, when the kernel has modules.
    #[serde(default)]
    pub modules_path: Option<String>,
    /// Modules put into the initrd (with what they depend on) besides those every node needs.
    #[serde(default)]
    pub initrd_modules: Vec<String>,
}

/// An overlay: a path, or a path with the environment and siblings an xcluster-style `tar` script wants.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum OverlaySource {
    /// Just the path.
    Path(String),
    /// With options.
    Full(OverlayOptions),
}

impl<'de> Deserialize<'de> for OverlaySource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        UntaggedEnumVisitor::new()
            .expecting("an overlay's path, or its path with options")
            .string(|path| Ok(Self::Path(path.to_owned())))
            .map(|options| options.deserialize().map(Self::Full))
            .deserialize(deserializer)
    }
}

/// Options of an overlay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OverlayOptions {
    /// Directory, tar file, or directory with an executable `tar` script.
    pub path: String,
    /// Environment of the script, e.g. `SETUP: ipv6`. It sees nothing else but PATH, HOME, and LANG.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Paths outside the overlay that the script reads: changed content means a new layer.
    #[serde(default)]
    pub inputs: Vec<String>,
    /// Owner of a plain directory's files in the layer: root (0:0) unless true, which keeps numeric owners.
    #[serde(default)]
    pub keep_owners: bool,
}

impl OverlaySource {
    /// Path and options in one shape.
    pub fn options(&self) -> OverlayOptions {
        match self {
            Self::Path(path) => OverlayOptions {
                path: path.clone(),
                environment: BTreeMap::new(),
                inputs: Vec::new(),
                keep_owners: false,
            },
            Self::Full(o) => o.clone(),
        }
    }
}

/// One file in the image: exactly one of `contents`, `source`, `symlink`, `directory`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Absolute path in the image.
    pub path: String,
    /// Its text.
    #[serde(default)]
    pub contents: Option<String>,
    /// A file to copy, relative to the recipe.
    #[serde(default)]
    pub source: Option<String>,
    /// Make a symbolic link to this target.
    #[serde(default)]
    pub symlink: Option<String>,
    /// Make a directory.
    #[serde(default)]
    pub directory: bool,
    /// Octal mode as text; `"0644"` for files, `"0755"` for directories.
    #[serde(default)]
    pub mode: Option<String>,
    /// Numeric owner; 0.
    #[serde(default)]
    pub uid: u32,
    /// Numeric group; 0.
    #[serde(default)]
    pub gid: u32,
    /// A missing `source` is passed over.
    #[serde(default)]
    pub optional: bool,
}

/// A command run once at boot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Onboot {
    /// For the log.
    pub name: String,
    /// Argument vector; no shell.
    pub command: Vec<String>,
    /// Added to a minimal environment.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Seconds after which it is killed and counts as failed (a failure is reported, never fatal); 60.
    #[serde(default)]
    pub timeout_s: Option<u32>,
}

/// What happens when a service ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Started again, with back-off.
    #[default]
    Always,
    /// Started again unless it exited 0.
    OnFailure,
    /// Left.
    Never,
}

/// A supervised service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Unique in the node; names the log.
    pub name: String,
    /// Argument vector; no shell. It stays in the foreground.
    pub command: Vec<String>,
    /// Added to a minimal environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// Services that must be ready before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
    /// What happens when it ends.
    #[serde(default)]
    pub restart: Restart,
    /// Cgroup below the node's, e.g. `systemreserved/ntp`; `services/<name>` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// When it counts as ready; started is ready when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<Readiness>,
    /// Signal name for a clean stop; `TERM`. (Incus: `PWR` stops instances too.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Seconds between that signal and KILL; 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout_s: Option<u32>,
    /// Number of open files allowed; the node's own limit when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nofile: Option<u64>,
    /// Only the main process is signalled at stop, not its whole cgroup (engines keep instances in theirs).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stop_main_only: bool,
}

/// How readiness is seen: exactly one key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Readiness {
    /// A unix socket that accepts a connection.
    UnixSocket(String),
    /// A TCP port on loopback that accepts a connection.
    TcpPort(u16),
    /// A path that exists.
    Path(String),
    /// A command that exits 0.
    Command(Vec<String>),
}

/// A filesystem that a disk may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Filesystem {
    /// ext4
    Ext4,
    /// XFS
    Xfs,
    /// btrfs
    Btrfs,
}

/// Which disk is formatted (only when it carries no signature at all) and where it is mounted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskRule {
    /// Name of the rule, for reports.
    pub name: String,
    /// Which device.
    #[serde(rename = "match")]
    pub matches: DiskMatch,
    /// Filesystem made on a blank device.
    pub filesystem: Filesystem,
    /// Filesystem label (at most 12 characters, XFS's limit).
    pub label: String,
    /// Where it is mounted; absent: it is only formatted (an engine's storage pool).
    #[serde(default)]
    pub mount: Option<String>,
    /// Extra bind mounts out of it, `path in the disk: path in the root`, made before services start.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub binds: BTreeMap<String, String>,
}

/// Which device a rule means: exactly one key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum DiskMatch {
    /// The drive's serial (the name of a disk in cluster.yaml), virtio or SCSI.
    Serial(String),
    /// A device that carries this filesystem label, else the first blank one (as k8s-on-linuxkit does).
    LabelOrFirstBlank(String),
    /// A device node, e.g. `/dev/vdc`.
    Device(String),
}

impl Recipe {
    /// Reads a recipe and checks what types cannot say.
    ///
    /// # Errors
    /// [`SpecError`] with file, line and key.
    pub fn from_yaml(file: &str, yaml: &str) -> Result<Self, SpecError> {
        reject_unknown_top_level(file, yaml)?;
        let mut recipe: Self = text::from_yaml(file, yaml)?;
        // Read by itself: a flattened part would be read into numbers first, and lose how they are written.
        recipe.system = text::from_yaml(file, yaml)?;
        recipe.check().map_err(|(key, why)| SpecError::about(file, yaml, &key, why))?;
        recipe.check_programs().map_err(|(n, key, why)| about_programs(file, yaml, n, &key, why))?;
        Ok(recipe)
    }

    /// The rules between keys; the error is (key, why).
    fn check(&self) -> Result<(), (String, String)> {
        let err = |key: String, why: &str| Err((key, why.to_owned()));
        if let Some(k) = &self.kernel {
            if k.package.is_some() == k.path.is_some() {
                return err("kernel".into(), "needs exactly one of \"package\" and \"path\"");
            }
            if self.kind != RecipeKind::Node {
                return err("kernel".into(), "only a node image has a kernel: others run on their node's");
            }
        }
        match (&self.container, self.kind) {
            (Some(container), RecipeKind::Container) => container.check()?,
            (Some(_), _) => return err("container".into(), "\"container\" goes with \"kind: container\""),
            _ => {}
        }
        if self.kind == RecipeKind::Container && self.system != SystemSpec::default() {
            return err(
                "kind".into(),
                "a container image has no hostname, sysctl, onboot, services, disks or engine",
            );
        }
        if self.kind != RecipeKind::Container && self.base == Base::Scratch {
            return err("base".into(), "scratch is for \"kind: container\"");
        }
        if let Base::Oci(o) = &self.base
            && o.reference.as_ref().is_some_and(String::is_empty)
        {
            return err("base.oci.ref".into(), "is empty: it is a tag or a digest");
        }
        if let Base::Debian(d) = &self.base {
            let word = |s: &String| {
                !s.is_empty()
                    && !s.starts_with('-')
                    && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.:_~=*/".contains(&b))
            };
            for (key, values) in [("packages", &d.packages), ("components", &d.components)] {
                if let Some(bad) = values.iter().find(|v| !word(v)) {
                    return Err((format!("base.debian.{key}"), format!("{bad:?} is not a Debian name")));
                }
            }
            if !word(&d.suite) {
                return Err(("base.debian.suite".into(), format!("{:?} is not a suite's name", d.suite)));
            }
        }
        for f in &self.files {
            let ways = usize::from(f.contents.is_some())
                + usize::from(f.source.is_some())
                + usize::from(f.symlink.is_some())
                + usize::from(f.directory);
            if ways != 1 {
                return Err((
                    "files".into(),
                    format!(
                        "{}: needs exactly one of \"contents\", \"source\", \"symlink\", \"directory\"",
                        f.path
                    ),
                ));
            }
            if !f.path.starts_with('/') || f.path.split('/').any(|p| p == "..") || f.path.contains('\0') {
                return Err(("files".into(), format!("path {:?} must be absolute, without \"..\"", f.path)));
            }
            if let Some(m) = &f.mode
                && u32::from_str_radix(m, 8).map_or(true, |m| m > 0o7777)
            {
                return Err(("files".into(), format!("{}: mode {m:?} is not octal", f.path)));
            }
        }
        self.system.check()
    }

    /// The rules of `programs`; the error is (index, key, why).
    fn check_programs(&self) -> Result<(), (usize, String, String)> {
        let files = self.files.iter().map(|f| (programs::image_path("", &f.path), "\"files\"".to_owned()));
        programs::check_all(&self.programs, &files.collect())
    }
}

/// An error about a key of the program source with this index, with that source's line.
fn about_programs(file: &str, yaml: &str, n: usize, key: &str, why: String) -> SpecError {
    #[derive(Deserialize)]
    struct Lines {
        programs: Vec<serde_saphyr::Spanned<serde::de::IgnoredAny>>,
    }
    let key = if key.is_empty() { format!("programs[{n}]") } else { format!("programs[{n}].{key}") };
    let mut error = SpecError::about(file, yaml, "programs", why);
    if let Some(source) =
        text::from_yaml::<Lines>(file, yaml).ok().and_then(|l| l.programs.into_iter().nth(n))
    {
        error.line = Some(source.referenced.line());
        error.column = Some(source.referenced.column());
    }
    error.key = Some(key);
    error
}

impl SystemSpec {
    /// The rules between keys of the whole, with the image's part; the error is (key, why).
    pub fn check(&self) -> Result<(), (String, String)> {
        self.check_part()?;
        let names: BTreeSet<&str> = self.services.iter().map(|s| s.name.as_str()).collect();
        for (i, s) in self.services.iter().enumerate() {
            if let Some(missing) = s.after.iter().find(|a| !names.contains(a.as_str())) {
                return Err((
                    format!("services[{i}].after"),
                    format!("{}: after names {missing:?}, which is no service here", s.name),
                ));
            }
        }
        Ok(())
    }

    /// The rules that hold for a part too, whose services may wait for those of the image; the error is (key, why).
    pub fn check_part(&self) -> Result<(), (String, String)> {
        for (key, value) in &self.sysctl {
            let at = || format!("sysctl.{key}");
            if !is_sysctl(key) {
                let why = "is not a kernel parameter's name, as vm.max_map_count is";
                return Err((at(), format!("{key:?} {why}")));
            }
            if value.0.trim().is_empty() || value.0.trim_end().contains(['\n', '\0']) {
                return Err((at(), format!("{:?} is not a value on one line", value.0)));
            }
        }
        for o in &self.onboot {
            if o.command.is_empty() {
                return Err(("onboot".into(), format!("{}: command is empty", o.name)));
            }
        }
        let mut names = BTreeSet::new();
        for (i, s) in self.services.iter().enumerate() {
            let at = |key: &str| format!("services[{i}].{key}");
            if s.name.is_empty()
                || !s.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.@".contains(&b))
                || s.name.starts_with('.')
            {
                return Err((
                    at("name"),
                    format!("{:?} is not a service's name (letters, digits, - _ . @)", s.name),
                ));
            }
            if !names.insert(s.name.as_str()) {
                return Err((at("name"), format!("{} is declared twice", s.name)));
            }
            if s.command.first().is_none_or(String::is_empty) {
                return Err((at("command"), format!("{}: command is empty", s.name)));
            }
            if let Some(signal) = s.stop_signal.as_deref().filter(|s| !is_signal(s)) {
                let known = STOP_SIGNALS.join(", ");
                return Err((at("stop_signal"), format!("{signal:?} is not a signal that stops ({known})")));
            }
            if let Some(Readiness::Command(command)) = &s.ready
                && command.is_empty()
            {
                return Err((at("ready"), format!("{}: command is empty", s.name)));
            }
            if let Some(c) = &s.cgroup
                && (c.starts_with('/') || c.split('/').any(|p| p.is_empty() || p == ".." || p == "."))
            {
                return Err((at("cgroup"), format!("{}: cgroup {c:?} must be a relative path", s.name)));
            }
        }
        start_order(&self.services).map_err(|cycle| {
            ("services".to_owned(), format!("wait for each other: {}", cycle.join(" -> ")))
        })?;
        for d in &self.disks {
            if d.label.is_empty() || d.label.len() > 12 {
                return Err((
                    "disks".into(),
                    format!("{}: label {:?} must have 1 to 12 characters", d.name, d.label),
                ));
            }
        }
        Ok(())
    }

    /// `self` with what `over` adds: maps by key and lists by name, `over` winning.
    #[must_use]
    pub fn merged(mut self, over: &Self) -> Self {
        if over.hostname.is_some() {
            self.hostname.clone_from(&over.hostname);
        }
        self.sysctl.extend(over.sysctl.clone());
        merge_by(&mut self.onboot, &over.onboot, |o| &o.name);
        merge_by(&mut self.services, &over.services, |s| &s.name);
        merge_by(&mut self.disks, &over.disks, |d| &d.name);
        if over.engine != EngineKind::None {
            self.engine = over.engine;
        }
        self
    }
}

/// Signals that a service can be stopped by, without `SIG`.
pub const STOP_SIGNALS: [&str; 10] =
    ["TERM", "INT", "QUIT", "HUP", "KILL", "USR1", "USR2", "PWR", "WINCH", "CONT"];

fn is_signal(name: &str) -> bool {
    STOP_SIGNALS.contains(&name.strip_prefix("SIG").unwrap_or(name))
}

/// Folders of /proc/sys (Documentation/admin-guide/sysctl in the kernel, and those of modules).
const SYSCTL_FOLDERS: [&str; 11] =
    ["abi", "crypto", "debug", "dev", "fs", "kernel", "net", "sunrpc", "user", "vm", "xen"];

/// Whether a name has the form of a kernel parameter's: dots part it, or slashes when there is one.
fn is_sysctl(name: &str) -> bool {
    let parts: Vec<&str> = name.split(if name.contains('/') { '/' } else { '.' }).collect();
    parts.len() >= 2
        && SYSCTL_FOLDERS.contains(&parts[0])
        && parts.iter().all(|p| {
            !p.is_empty()
                && *p != ".."
                && p.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:@".contains(&b))
        })
}

fn merge_by<T: Clone>(into: &mut Vec<T>, over: &[T], name: fn(&T) -> &String) {
    for item in over {
        match into.iter_mut().find(|i| name(i) == name(item)) {
            Some(i) => *i = item.clone(),
            None => into.push(item.clone()),
        }
    }
}

/// Services in an order in which each comes after those it waits for; ties keep the order given.
///
/// # Errors
/// The names of a cycle.
pub fn start_order(services: &[Service]) -> Result<Vec<usize>, Vec<String>> {
    let mut done = BTreeSet::new();
    let mut order = Vec::with_capacity(services.len());
    while order.len() < services.len() {
        let next = services.iter().enumerate().find(|(_, s)| {
            !done.contains(s.name.as_str())
                && s.after.iter().all(|a| done.contains(a.as_str()) || !services.iter().any(|o| &o.name == a))
        });
        match next {
            Some((i, s)) => {
                done.insert(s.name.as_str());
                order.push(i);
            }
            None => {
                return Err(services
                    .iter()
                    .filter(|s| !done.contains(s.name.as_str()))
                    .map(|s| s.name.clone())
                    .collect());
            }
        }
    }
    Ok(order)
}

/// `flatten` and `deny_unknown_fields` do not go together in serde, so the top level is checked first.
fn reject_unknown_top_level(file: &str, yaml: &str) -> Result<(), SpecError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)] // read only by serde, to refuse other keys
    struct Keys {
        name: serde::de::IgnoredAny,
        base: serde::de::IgnoredAny,
        kind: Option<serde::de::IgnoredAny>,
        description: Option<serde::de::IgnoredAny>,
        kernel: Option<serde::de::IgnoredAny>,
        programs: Option<serde::de::IgnoredAny>,
        overlays: Option<serde::de::IgnoredAny>,
        files: Option<serde::de::IgnoredAny>,
        container: Option<serde::de::IgnoredAny>,
        hostname: Option<serde::de::IgnoredAny>,
        sysctl: Option<serde::de::IgnoredAny>,
        onboot: Option<serde::de::IgnoredAny>,
        services: Option<serde::de::IgnoredAny>,
        disks: Option<serde::de::IgnoredAny>,
        engine: Option<serde::de::IgnoredAny>,
    }
    text::from_yaml::<Keys>(file, yaml).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "name: base\nbase:\n  debian: {suite: trixie, packages: [iproute2]}\nkernel: {package: linux-image-cloud-amd64}\n\
        sysctl: {vm.max_map_count: 262144}\nservices:\n- name: a\n  command: [/bin/a]\n  after: [b]\n- name: b\n  command: [/bin/b]\n";

    #[test]
    fn reads_a_recipe() {
        let r = Recipe::from_yaml("r.yaml", GOOD).unwrap();
        assert_eq!(r.system.sysctl["vm.max_map_count"], Scalar("262144".into()));
        assert_eq!(start_order(&r.system.services).unwrap(), [1, 0]);
    }

    #[test]
    fn scalars_are_kept_as_they_are_written() {
        for text in ["1.50", "0755", "1e3", "yes", "0x1F", "1_000", "12345678901234567890123", ".inf"] {
            let yaml = GOOD
                .replace("262144", text)
                .replace("command: [/bin/a]", &format!("command: [/bin/a]\n  environment: {{A: {text}}}"));
            let system = Recipe::from_yaml("r.yaml", &yaml).unwrap().system;
            assert_eq!(system.sysctl["vm.max_map_count"].0, text);
            assert_eq!(system.services[0].environment["A"], text);
        }
    }

    #[test]
    fn refuses_with_line_and_key() {
        let err = |t: String| Recipe::from_yaml("r.yaml", &t).unwrap_err().to_string();
        assert!(err(GOOD.replace("sysctl", "sysctls")).starts_with("r.yaml:5:1: unknown key \"sysctls\""));
        assert!(err(GOOD.replace("after: [b]", "after: [c]")).contains("\"c\", which is no service here"));
        assert!(
            err(GOOD.replace("command: [/bin/b]", "command: [/bin/b]\n  after: [a]"))
                .contains("wait for each other: a -> b")
        );
        assert!(err(GOOD.replace("iproute2", "'--hook=x'")).contains("is not a Debian name"));
        assert!(err(GOOD.replace("suite", "suit")).contains("did you mean \"suite\""));
    }

    #[test]
    fn a_container_image_has_its_own_keys() {
        let good = "name: x\nkind: container\nbase: scratch\ncontainer:\n  names: [localhost:5000/a/b:v1.0]\n  entrypoint: [/a]\n";
        let read = Recipe::from_yaml("r.yaml", good).unwrap();
        assert_eq!((&read.base, read.container.unwrap().entrypoint.len()), (&Base::Scratch, 1));
        for (was, is, expected) in [
            ("kind: container", "kind: node", "\"container\" goes with"),
            ("kind: container", "kind: container\nhostname: h", "a container image has no hostname"),
            ("kind: container", "kind: container\nkernel: {path: k}", "only a node image has a kernel"),
            ("b:v1.0", "b", "has no tag"),
            ("b:v1.0", "B:v1.0", "is not an image's name"),
            ("localhost:5000/a/b:v1.0", "b:v1", "is not an image's name"),
            ("[/a]", "[/a]\n  working_directory: srv", "is not an absolute path"),
            ("[/a]", "[\"\"]", "is not an argument vector"),
        ] {
            let error = Recipe::from_yaml("r.yaml", &good.replace(was, is)).unwrap_err().to_string();
            assert!(error.contains(expected), "{is}: {error}");
        }
        let error = Recipe::from_yaml("r.yaml", "name: x\nbase: scratch\n").unwrap_err().to_string();
        assert!(error.contains("scratch is for \"kind: container\""), "{error}");
    }

    #[test]
    fn an_oci_base_is_a_path_or_a_path_with_a_reference() {
        let base = |text: &str| Recipe::from_yaml("r.yaml", &format!("name: x\nbase: {{oci: {text}}}\n"));
        let of = |path: &str, reference: Option<&str>| {
            Base::Oci(OciBase { path: path.into(), reference: reference.map(str::to_owned) })
        };
        assert_eq!(base("layout").unwrap().base, of("layout", None));
        assert_eq!(base("{path: layout, ref: v1}").unwrap().base, of("layout", Some("v1")));
        assert_eq!(base("{path: layout, ref: \"1.50\"}").unwrap().base, of("layout", Some("1.50")));
        assert!(base("{path: layout, tag: v1}").unwrap_err().to_string().contains("tag"));
        assert!(base("{path: layout, ref: \"\"}").unwrap_err().to_string().contains("a tag or a digest"));
    }

    proptest! {
        /// Whatever the graph: either an order in which everything follows what it waits for, or a cycle is named.
        #[test]
        fn order_respects_after(edges in proptest::collection::vec((0usize..8, 0usize..8), 0..20)) {
            let services: Vec<Service> = (0..8).map(|i| Service {
                name: format!("s{i}"), command: vec!["x".into()], environment: BTreeMap::new(),
                after: edges.iter().filter(|(a, _)| *a == i).map(|(_, b)| format!("s{b}")).collect(),
                restart: Restart::Always, cgroup: None, ready: None, stop_signal: None, stop_timeout_s: None,
                nofile: None, stop_main_only: false,
            }).collect();
            match start_order(&services) {
                Ok(order) => {
                    prop_assert_eq!(order.len(), 8);
                    for (pos, i) in order.iter().enumerate() {
                        for a in &services[*i].after {
                            let dep = services.iter().position(|s| &s.name == a).unwrap();
                            prop_assert!(order[..pos].contains(&dep));
                        }
                    }
                }
                Err(cycle) => {
                    // Everything named waits for something that is named too.
                    for name in &cycle {
                        let s = services.iter().find(|s| &s.name == name).unwrap();
                        prop_assert!(s.after.iter().any(|a| cycle.contains(a)));
                    }
                }
            }
        }
        #[test]
        fn any_text_is_answered(s in "(?s).{0,200}") { let _ = Recipe::from_yaml("x", &s); }
    }
}
