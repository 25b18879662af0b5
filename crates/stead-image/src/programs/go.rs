//! Programs from Go modules: what a build depends on, Go's invocations as values, what its failures mean.
//!
//! go.sum pins every byte that is compiled: Go checks it when it downloads a module, and `go mod verify` checks Go's cache.
//! Everything else that changes the result is set here, so that no flag of the user's reaches a build. The user's `go env`
//! says where modules come from and where they are kept: GOPROXY, GOSUMDB, GOMODCACHE, GOCACHE and the like.

use crate::{
    digest::Key,
    error::{ImageError, IoContext, Result},
    inputs::Inputs,
    plan::architecture,
    programs::{
        elf,
        gomod::{self, GoMod},
    },
    source,
    tarball::Kind,
    tools::{GO, GO_UPSTREAM, Invocation, Stopper, Tool},
};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};
use stead_model::{
    Digest, GoVersion,
    programs::{GoSource, Variable},
};

/// Variables of the user's that say where modules come from and where Go keeps things. None of them changes what is built.
const OF_THE_USER: [&str; 11] = [
    "GOAUTH",
    "GOCACHE",
    "GOCACHEPROG",
    "GOINSECURE",
    "GOMODCACHE",
    "GONOPROXY",
    "GONOSUMDB",
    "GOPRIVATE",
    "GOPROXY",
    "GOSUMDB",
    "GOVCS",
];

/// Variables that change what is built.
fn of_the_build() -> [(&'static str, &'static str); 12] {
    [
        ("CGO_ENABLED", "0"),
        ("GO111MODULE", "on"),
        ("GOAMD64", "v1"),
        ("GOARCH", architecture()),
        ("GOARM64", "v8.0"),
        ("GOENV", "off"),
        ("GOEXPERIMENT", ""),
        ("GOFIPS140", "off"),
        ("GOFLAGS", ""),
        ("GOOS", "linux"),
        ("GOTOOLCHAIN", "local"),
        ("GOWORK", "off"),
    ]
}

/// Begins every cache key. Change the number when the way of building changes.
const BUILD: &str = "program-go-1";
/// Number of lines of Go's output in an error.
const SHOWN_LINES: usize = 12;

/// The Go on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Go {
    tool: Tool,
    /// As `go env GOVERSION` has it.
    pub version: String,
    environment: Vec<(&'static str, OsString)>,
}

impl Go {
    /// Asks the host's Go for its version and the user's configuration.
    ///
    /// # Errors
    /// There is none, or it does not answer.
    pub fn observe() -> Result<Self> {
        let ask = |tool| {
            let names = OF_THE_USER.into_iter().chain(["GOVERSION"]);
            let run = Invocation::new(tool, ["env", "-json"].into_iter().chain(names));
            run.env("GOTOOLCHAIN", "local").cwd("/").output()
        };
        let (tool, json) = match ask(GO) {
            Err(missing @ ImageError::ToolMissing { .. }) => {
                (GO_UPSTREAM, ask(GO_UPSTREAM).map_err(|_| missing)?)
            }
            json => (GO, json?),
        };
        let mut values: BTreeMap<String, String> =
            serde_json::from_slice(&json).map_err(|e| ImageError::ToolFailed {
                tool: "go env".into(),
                status: "exit status: 0".into(),
                stderr: e.to_string(),
            })?;
        let version = values.remove("GOVERSION").unwrap_or_default();
        let environment = OF_THE_USER
            .iter()
            .filter_map(|name| Some((*name, values.remove(*name).filter(|v| !v.is_empty())?.into())))
            .collect();
        Ok(Self { tool, version, environment })
    }

    /// Refuses a module that needs a newer Go.
    fn check(&self, needed: Option<&GoVersion>, by: &str) -> Result<()> {
        // A version in another form is that of a Go of the user's own.
        let (Ok(found), Some(needed)) = (self.version.parse::<GoVersion>(), needed) else { return Ok(()) };
        if found >= *needed {
            return Ok(());
        }
        Err(ImageError::ToolTooOld {
            tool: GO.name.into(),
            found: found.to_string(),
            needed: needed.to_string(),
            by: by.to_owned(),
        })
    }

    fn invocation<'a>(&self, cwd: &Path, args: impl IntoIterator<Item = &'a str>) -> Invocation {
        let mut run = Invocation::new(self.tool, args).cwd(cwd);
        run.env.extend(self.environment.iter().cloned());
        run.env.extend(of_the_build().map(|(name, value)| (name, value.into())));
        run.env.push(("GODEBUG", OsString::new()));
        run
    }
}

/// A module to build from.
#[derive(Debug, Clone)]
pub struct Module {
    go: Go,
    source: GoSource,
    /// The folder with go.mod, when it is the user's own.
    dir: Option<PathBuf>,
    /// Linker flags.
    ldflags: String,
    /// Hash of everything the programs depend on.
    pub inputs: Digest,
}

impl Module {
    /// Looks at a source.
    ///
    /// # Errors
    /// Go or a file is missing, Go is too old, or the module depends on more than its folder.
    pub fn observe(source: &GoSource, base_dir: &Path, inputs: &mut Inputs) -> Result<Self> {
        let go = Go::observe()?;
        let mut key = Key::new(BUILD);
        key.text(&go.version);
        for (name, value) in of_the_build() {
            key.text(name).text(value);
        }
        let (dir, module) = match &source.dir {
            Some(dir) => {
                let dir = base_dir.join(dir);
                let module = own_module(&dir)?;
                go.check(module.go.as_ref(), &dir.join("go.mod").display().to_string())?;
                key.text("dir").text(inputs.tree(&dir, false)?.as_str());
                (Some(dir), module)
            }
            None => {
                let (path, version) = published(source);
                let Some(sum) = &source.sum else {
                    return Err(ImageError::input("programs: go.sum", missing_sum(path, version)));
                };
                key.text("module").text(path).text(version).text(sum);
                let require = BTreeMap::from([(path.to_owned(), version.to_owned())]);
                (None, GoMod { require, ..GoMod::default() })
            }
        };
        let ldflags = ldflags(source, &module)?;
        let mut tags = source.tags.clone();
        tags.sort();
        key.text(&ldflags).text(&tags.join(","));
        source.packages.iter().for_each(|pick| {
            key.text(&pick.path);
        });
        Ok(Self { go, source: source.clone(), dir, ldflags, inputs: key.digest() })
    }

    /// Go building the package with this number into `out`, in the module's folder `dir`.
    fn build_invocation(&self, n: usize, dir: &Path, out: &Path) -> Invocation {
        let tags = format!("-tags={}", self.source.tags.join(","));
        let ldflags = format!("-ldflags={}", self.ldflags);
        let out = out.to_string_lossy();
        let mut args = vec!["build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-v"];
        if !self.source.tags.is_empty() {
            args.push(&tags);
        }
        args.extend([&ldflags, "-o", &out, "--", &self.source.packages[n].path]);
        self.go.invocation(dir, args)
    }

    /// The command that builds the first package, for plans.
    pub fn argv(&self) -> Vec<String> {
        self.build_invocation(0, Path::new("/"), Path::new("PROGRAM")).argv()
    }

    /// Builds every package, in order, into `scratch`.
    ///
    /// # Errors
    /// A module cannot be downloaded or is not what was pinned, or a package cannot be built.
    pub fn build(
        &self,
        stopper: &Stopper,
        scratch: &Path,
        note: &(dyn Fn(&str) + Sync),
    ) -> Result<Vec<PathBuf>> {
        let dir = match &self.dir {
            Some(dir) => dir.clone(),
            None => self.fetch(stopper, scratch, note)?,
        };
        let mut programs = Vec::new();
        for (n, pick) in self.source.packages.iter().enumerate() {
            let out = scratch.join(format!("program-{n}"));
            // What an interrupted Go leaves behind is removed with the scratch directory.
            let run = self.build_invocation(n, &dir, &out).env("GOTMPDIR", scratch);
            let mut compiled = 0u32;
            self.run(stopper, &run, &pick.path, &dir, |line| {
                if is_package(line) {
                    compiled += 1;
                    note(&format!("{}: compiled {line} ({compiled})", pick.path));
                } else if line.starts_with("go: downloading ") {
                    note(&line["go: ".len()..]);
                }
            })?;
            check_program(&pick.path, &out)?;
            programs.push(out);
        }
        note("verifying the modules that were built in");
        let verify = self.go.invocation(&dir, ["mod", "verify"]);
        self.run(stopper, &verify, "all", &dir, |_| ())?;
        Ok(programs)
    }

    fn run(
        &self,
        stopper: &Stopper,
        run: &Invocation,
        package: &str,
        dir: &Path,
        each: impl FnMut(&str) + Send,
    ) -> Result<Vec<u8>> {
        let mut printed = Vec::new();
        let read = |mut stdout: std::process::ChildStdout| {
            stdout.read_to_end(&mut printed).map(drop).at("read the output of", GO.name)
        };
        let (status, said) = stopper.run(run, read, each)?;
        if status.success() {
            return Ok(printed);
        }
        // `go mod download -json` and `go mod verify` report errors on standard output.
        let said = [String::from_utf8_lossy(&said), String::from_utf8_lossy(&printed)].concat();
        let of = self
            .dir
            .as_ref()
            .map_or_else(|| self.source.module.clone().unwrap_or_default(), |_| dir.display().to_string());
        Err(explain(&self.go, &of, package, &status.to_string(), &said))
    }

    /// Downloads a published module into Go's cache, and gives the folder it is in.
    fn fetch(&self, stopper: &Stopper, scratch: &Path, note: &(dyn Fn(&str) + Sync)) -> Result<PathBuf> {
        let (path, version) = published(&self.source);
        let named = format!("{path}@{version}");
        note(&format!("downloading {named}"));
        let run = self.go.invocation(scratch, ["mod", "download", "-json", "--", &named]);
        let json = self.run(stopper, &run, path, scratch, |_| ())?;
        let found: Downloaded = serde_json::from_slice(&json).map_err(|e| ImageError::ToolFailed {
            tool: "go mod download".into(),
            status: "exit status: 0".into(),
            stderr: e.to_string(),
        })?;
        let wanted = self.source.sum.as_deref().unwrap_or_default();
        if found.sum != wanted {
            let why = format!("{named} has the sum {}, not {wanted} as the recipe says", found.sum);
            return Err(ImageError::input("programs: go.sum", why));
        }
        let module = read_gomod(&found.dir)?;
        self.go.check(module.go.as_ref(), &named)?;
        check_folders(&module, &found.dir)?;
        Ok(found.dir)
    }
}

/// What `go mod download -json` prints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Downloaded {
    dir: PathBuf,
    sum: String,
}

/// Path and version of a source that is a published module.
fn published(source: &GoSource) -> (&str, &str) {
    (source.module.as_deref().unwrap_or_default(), source.version.as_deref().unwrap_or_default())
}

fn missing_sum(path: &str, version: &str) -> String {
    format!(
        "is missing: the hash that pins {path} {version} and, by the go.sum in it, all that it needs. \
         `go mod download -json {path}@{version}` prints it as \"Sum\", checked against the checksum database"
    )
}

/// Looks at a module of the user's own.
fn own_module(dir: &Path) -> Result<GoMod> {
    let shown = dir.display().to_string();
    if !dir.is_dir() {
        return Err(ImageError::input(shown, "is not a folder: \"go.dir\" is one with go.mod and go.sum"));
    }
    let module = read_gomod(dir)?;
    if !module.require.is_empty() && !dir.join("go.sum").is_file() {
        let why =
            "has no go.sum, which pins what is built in: `go mod tidy` writes it, a review makes it yours";
        return Err(ImageError::input(shown, why));
    }
    check_folders(&module, dir)?;
    source::walk_dir(dir, false, &mut |entry, _| match entry.kind {
        Kind::Symlink(_) => {
            let why = "is a symbolic link, whose target would not be looked at for changes";
            Err(ImageError::input(dir.join(entry.name()).display().to_string(), why))
        }
        _ => Ok(()),
    })?;
    Ok(module)
}

fn read_gomod(dir: &Path) -> Result<GoMod> {
    let path = dir.join("go.mod");
    let mut text = Vec::new();
    let file = match File::open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(ImageError::input(dir.display().to_string(), "has no go.mod"));
        }
        file => file.at("open", &path)?,
    };
    file.take(gomod::MAX_BYTES as u64 + 1).read_to_end(&mut text).at("read", &path)?;
    if text.len() > gomod::MAX_BYTES {
        return Err(ImageError::input(
            path.display().to_string(),
            format!("has more than {} bytes", gomod::MAX_BYTES),
        ));
    }
    Ok(gomod::parse(&String::from_utf8_lossy(&text)))
}

/// Refuses folders outside the module's as replacements of modules: they are not looked at for changes.
fn check_folders(module: &GoMod, dir: &Path) -> Result<()> {
    for (replaced, folder) in module.folders() {
        let inside = !folder.starts_with('/') && folder.split('/').all(|p| p != "..");
        if !inside {
            let why =
                format!("replaces {replaced} by {folder}, which lies outside its folder and has no sum");
            return Err(ImageError::input(dir.join("go.mod").display().to_string(), why));
        }
    }
    Ok(())
}

/// Flags of the linker: without symbols, debugging data and the build id, which depends on how the compiler was built.
fn ldflags(source: &GoSource, module: &GoMod) -> Result<String> {
    let mut flags = "-s -w -buildid=".to_owned();
    for (name, value) in &source.variables {
        let value = match value {
            Variable::Text(text) => text.clone(),
            Variable::VersionOf(of) => module.version_of(of).ok_or_else(|| {
                let why = format!("{name}: go.mod names no version of {}", of.version_of);
                ImageError::input("programs: go.variables", why)
            })?,
        };
        flags.push_str(&format!(" -X {name}={value}"));
    }
    Ok(flags)
}

/// Checks that what was built is a static program.
fn check_program(package: &str, path: &Path) -> Result<()> {
    let refuse = |why: &str| Err(ImageError::GoBuild { package: package.to_owned(), detail: why.to_owned() });
    match elf::program(&fs::read(path).at("read", path)?) {
        elf::Program::Elf { interpreter: None, .. } => Ok(()),
        elf::Program::Elf { interpreter: Some(i), .. } => {
            refuse(&format!("it needs {i}, so it is not static"))
        }
        _ => refuse("it is not a main package"),
    }
}

/// Whether a line of `go build -v` is the name of a package that was compiled.
fn is_package(line: &str) -> bool {
    !line.is_empty() && line.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~/+@".contains(&b))
}

/// What a failure of Go means.
fn explain(go: &Go, module: &str, package: &str, status: &str, said: &str) -> ImageError {
    // In JSON, line ends and quotes are escaped.
    let said = said.replace("\\n", "\n").replace("\\t", "\t").replace("\\\"", "\"");
    let mut lines: Vec<&str> = said
        .lines()
        .map(str::trim_end)
        .filter(|l| !is_package(l) && !l.starts_with("go: downloading ") && !l.is_empty())
        .collect();
    let find = |words: &[&str]| lines.iter().find(|l| words.iter().any(|w| l.contains(w))).map(|l| l.trim());
    let input = |why: String| ImageError::input(module, why);
    if let Some(line) = find(&["requires go >= "])
        && let Some((by, needed)) = line.split_once(" requires go >= ")
    {
        return ImageError::ToolTooOld {
            tool: GO.name.into(),
            found: go.version.trim_start_matches("go").to_owned(),
            needed: needed
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .trim_end_matches([';', ','])
                .to_owned(),
            by: by.rsplit("go: ").next().unwrap_or(by).to_owned(),
        };
    }
    if let Some(line) = find(&["checksum mismatch", "dir has been modified", "zip has been modified"]) {
        return input(format!("a module is not what go.sum says: {}", line.trim_start_matches("go: ")));
    }
    if find(&["missing go.sum entry"]).is_some() {
        return input(
            "its go.sum lacks modules that are needed: `go mod tidy` adds them, a review makes them yours"
                .into(),
        );
    }
    if find(&["updates to go.mod needed", "no required module provides package"]).is_some() {
        return input(
            "its go.mod lacks modules that are needed: `go mod tidy` adds them, a review makes them yours"
                .into(),
        );
    }
    let cut = |line: &str| match line.rsplit_once("\": ") {
        // `path: module@version: Get "address": words`: the words are enough.
        Some((_, words)) => words.to_owned(),
        None => line.to_owned(),
    };
    let unreachable = [
        "dial tcp",
        "no such host",
        "connection refused",
        "i/o timeout",
        "network is unreachable",
        "TLS handshake timeout",
        "proxyconnect",
        "module lookup disabled by GOPROXY=off",
        "502 Bad Gateway",
        "503 Service Unavailable",
    ];
    if let Some(line) = find(&unreachable) {
        return ImageError::GoProxy { detail: cut(line).trim_end_matches(['"', ',']).to_owned() };
    }
    if let Some(line) =
        find(&["404 Not Found", "410 Gone", "403 Forbidden", "unknown revision", "invalid version"])
    {
        return input(format!("the Go module proxy does not have it: {}", cut(line)));
    }
    if status.starts_with("signal") {
        return ImageError::ToolFailed {
            tool: "go build".into(),
            status: status.to_owned(),
            stderr: String::new(),
        };
    }
    // The first package that failed: later errors are often of packages that need it.
    let mut failed = package.to_owned();
    if let Some(at) = lines.iter().position(|l| l.starts_with("# ")) {
        failed = lines[at].trim_start_matches("# ").to_owned();
        let block = lines[at + 1..].iter().take_while(|l| !l.starts_with("# ")).copied().collect();
        lines = block;
    }
    let more = lines.len().saturating_sub(SHOWN_LINES);
    lines.truncate(SHOWN_LINES);
    let mut detail = lines.join("\n");
    if more > 0 {
        detail.push_str(&format!("\n({more} more lines)"));
    }
    if detail.is_empty() {
        detail = status.to_owned();
    }
    ImageError::GoBuild { package: failed, detail }
}
