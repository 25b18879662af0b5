//! Programs of a recipe: built by the real Go, unpacked, taken from folders. Nothing is downloaded here; what needs a module
//! proxy says SKIP when there is none. Downloads are tested in `programs::fetch` and through the command line.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};
use stead_image::{BuildOutcome, BuildRequest, ImageError, Progress, Store, build, plan};
use stead_model::{Failure, GoVersion};

/// Says why a test cannot run here.
fn tools_missing(test: &str, tools: &[&str]) -> bool {
    for tool in tools {
        let version = if *tool == "go" { "version" } else { "-version" };
        if Command::new(tool).arg(version).output().is_err() {
            println!("SKIP {test}: {tool} is not installed");
            return true;
        }
    }
    false
}

const SQUASHFS: [&str; 2] = ["mksquashfs", "unsquashfs"];
const WITH_GO: [&str; 3] = ["mksquashfs", "unsquashfs", "go"];

/// A program that says by which name it was called and which version it has.
const MAIN: &str = "package main\n\nimport (\n\t\"os\"\n\t\"path/filepath\"\n\n\t\"example.com/multi/internal/words\"\n)\n\n\
    var version = \"none\"\n\nfunc main() { print(words.Join(filepath.Base(os.Args[0]), version)) }\n";
const WORDS: &str = "package words\n\nfunc Join(a, b string) string { return a + \" \" + b + \"\\n\" }\n";

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap() };
        let mut builder = tar::Builder::new(Vec::new());
        for path in ["etc/os-release", "usr/bin/sh"] {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o755);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(2);
            builder.append_data(&mut header, path, &b"#!"[..]).unwrap();
        }
        bench.write("base.tar", builder.into_inner().unwrap());
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bench.write("stead-node", elf);
        bench.write("multi/go.mod", "module example.com/multi\n\ngo 1.21\n");
        bench.write("multi/main.go", MAIN);
        bench.write("multi/internal/words/words.go", WORDS);
        bench
    }
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }
    fn program(&self, name: &str, contents: impl AsRef<[u8]>) {
        self.write(name, contents);
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fn recipe(&self, programs: &str) {
        self.write("t.yaml", format!("name: t\nbase: {{tar: base.tar}}\nprograms:\n{programs}"));
    }
    fn request(&self) -> BuildRequest {
        BuildRequest::new(self.path("t.yaml"), self.path("stead-node"))
    }
    fn store(&self, name: &str) -> Store {
        Store::open(&self.path(name)).unwrap()
    }
    fn build(&self, store: &Store) -> Result<BuildOutcome, ImageError> {
        build(store, &self.request(), &mut |_| ())
    }
    fn error(&self, programs: &str) -> ImageError {
        self.recipe(programs);
        self.build(&self.store("s")).unwrap_err()
    }
}

fn made(outcome: &BuildOutcome) -> Vec<&str> {
    outcome.steps.iter().filter(|s| !s.cached).map(|s| s.step.as_str()).collect()
}

fn layer(store: &Store, outcome: &BuildOutcome) -> PathBuf {
    let layer = outcome.manifest.layers.iter().find(|l| l.name == "programs").unwrap();
    store.blob(&layer.artifact.digest)
}

fn unpacked(squashfs: &Path, to: &Path) {
    let out = Command::new("unsquashfs").args(["-no-progress", "-d"]).arg(to).arg(squashfs).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn a_go_module_becomes_a_layer_with_all_names_of_its_program() {
    const TEST: &str = "a_go_module_becomes_a_layer_with_all_names_of_its_program";
    if tools_missing(TEST, &WITH_GO) {
        return;
    }
    let bench = Bench::new();
    let recipe = "- go:\n    dir: multi\n    packages: [{path: ., name: control, links: [api, etcd]}]\n    \
        variables: {main.version: v1.2.3}\n  to: /opt/bin\n";
    bench.recipe(recipe);
    let (one, two) = (bench.store("one"), bench.store("two"));
    let steps: Vec<(String, bool)> = plan(&one, &bench.request())
        .unwrap()
        .steps
        .into_iter()
        .filter(|s| s.name.starts_with("programs"))
        .map(|s| (format!("{}: {} {}", s.name, s.what, s.argv.join(" ")), s.cached))
        .collect();
    let argv = "go build -mod=readonly -trimpath -buildvcs=false -v -ldflags=-s -w -buildid= -X main.version=v1.2.3 -o PROGRAM -- .";
    let first = (format!("programs:multi: build 1 program of Go module multi {argv}"), false);
    assert_eq!(steps, [first, ("programs: pack the programs ".into(), false)]);

    let first = bench.build(&one).unwrap();
    let names: Vec<&str> = first.manifest.layers.iter().map(|l| l.name.as_str()).collect();
    assert_eq!(names, ["base", "programs", "files"]);
    assert_eq!(first.warnings, Vec::<String>::new());
    let root = bench.path("root");
    unpacked(&layer(&one, &first), &root);
    for name in ["control", "api", "etcd"] {
        let out = Command::new(root.join("opt/bin").join(name)).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stderr), format!("{name} v1.2.3\n"));
    }
    let meta = fs::symlink_metadata(root.join("opt/bin/control")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o755);
    assert_eq!(fs::read_link(root.join("opt/bin/api")).unwrap(), Path::new("control"));

    // The same bytes elsewhere, from a copy of the module in another folder.
    fs::rename(bench.path("multi"), bench.path("moved")).unwrap();
    bench.recipe(&recipe.replace("dir: multi", "dir: moved"));
    let second = bench.build(&two).unwrap();
    assert_eq!(layer(&two, &second).file_name(), layer(&one, &first).file_name());

    // Nothing is done twice; another name does not build again; another source does.
    assert_eq!(made(&bench.build(&two).unwrap()), Vec::<&str>::new());
    assert!(plan(&two, &bench.request()).unwrap().is_done());
    bench.recipe(&recipe.replace("dir: multi", "dir: moved").replace("etcd", "scheduler"));
    assert_eq!(made(&bench.build(&two).unwrap()), ["programs"]);
    bench.write("moved/internal/words/words.go", WORDS.replace("\" \"", "\"-\""));
    assert_eq!(made(&bench.build(&two).unwrap()), ["programs:moved", "programs"]);
    // What the image is made of outlives a collection.
    two.gc(&Default::default()).unwrap();
    assert_eq!(made(&bench.build(&two).unwrap()), Vec::<&str>::new());
}

#[test]
fn what_is_wrong_with_a_go_module_is_said() {
    const TEST: &str = "what_is_wrong_with_a_go_module_is_said";
    if tools_missing(TEST, &WITH_GO) {
        return;
    }
    let bench = Bench::new();
    let go = |keys: &str| format!("- go: {{dir: multi, {keys}}}\n");
    let says = |programs: &str, expected: &str| {
        let e = bench.error(programs);
        let chain = stead_os::chain(&e).to_string();
        assert!(e.is_bad_input() && chain.contains(expected), "{programs}: {chain}");
    };
    bench.write("multi/cmd/broken/main.go", "package main\n\nfunc main() { x := 1 }\n");
    says(
        &go("packages: [./cmd/broken]"),
        "Go package example.com/multi/cmd/broken cannot be built: cmd/broken/main.go:3:15: declared and not used: x",
    );
    says(&go("packages: [./cmd/none]"), "Go package ./cmd/none cannot be built: ");
    says(&go("packages: [./internal/words]"), "it is not a main package");
    says(&go("packages: [.], variables: {main.v: {version_of: a.b/c}}"), "go.mod names no version of a.b/c");
    says("- go: {dir: nowhere, packages: [.]}\n", "is not a folder");
    says("- go: {module: a.b/c, version: v1.0.0, packages: [.]}\n", "go mod download -json a.b/c@v1.0.0");

    bench.write("multi/go.mod", "module example.com/multi\ngo 1.21\nrequire a.b/c v1.0.0\n");
    says(&go("packages: [.]"), "has no go.sum");
    bench.write("multi/go.sum", "");
    bench.write("multi/cmd/needs/main.go", "package main\n\nimport _ \"a.b/c\"\n\nfunc main() {}\n");
    says(&go("packages: [./cmd/needs]"), "go mod tidy");
    bench.write("multi/go.mod", "module example.com/multi\ngo 1.21\nreplace a.b/c => ../c\n");
    says(&go("packages: [.]"), "replaces a.b/c by ../c, which lies outside its folder");
    bench.write("multi/go.mod", "module example.com/multi\ngo 1.21\n");
    std::os::unix::fs::symlink("/etc/hostname", bench.path("multi/l")).unwrap();
    says(&go("packages: [.]"), "is a symbolic link");
    fs::remove_file(bench.path("multi/l")).unwrap();

    // A newer Go is this host's to have. Nothing was started: the plan says it, too.
    bench.write("multi/go.mod", "module example.com/multi\ngo 1.999\n");
    bench.recipe(&go("packages: [.]"));
    let e = plan(&bench.store("s"), &bench.request()).unwrap_err();
    assert!(
        matches!(&e, ImageError::ToolTooOld { needed, .. } if needed == "1.999") && !e.is_bad_input(),
        "{e}"
    );
}

/// Go is interrupted, and what it started, when the build fails elsewhere.
#[test]
fn a_base_that_fails_ends_the_go_build() {
    const TEST: &str = "a_base_that_fails_ends_the_go_build";
    if tools_missing(TEST, &WITH_GO) {
        return;
    }
    let bench = Bench::new();
    // Many functions take the compiler a while; the base fails at once.
    let many: String =
        (0..200_000).map(|n| format!("func F{n}(x int) int {{ return x*{n} + F0(x) }}\n")).collect();
    bench.write("multi/big/big.go", format!("package big\n\n{many}"));
    bench.write(
        "multi/main.go",
        "package main\n\nimport \"example.com/multi/big\"\n\nfunc main() { println(big.F1(1)) }\n",
    );
    bench.write("base.tar", "no tar");
    bench.recipe("- go: {dir: multi, packages: [.]}\n");
    let (mut started, mut done) = (false, false);
    let result = build(&bench.store("s"), &bench.request(), &mut |p| match p {
        Progress::Started { step, .. } => started |= step == "programs:multi",
        Progress::Done(report) => done |= report.step == "programs:multi",
        _ => {}
    });
    let e = result.unwrap_err();
    assert!(stead_os::chain(&e).to_string().contains("base.tar"), "{e}");
    assert!(started && !done, "Go went on to its end");
}

#[test]
fn programs_of_a_path_are_checked() {
    const TEST: &str = "programs_of_a_path_are_checked";
    if tools_missing(TEST, &SQUASHFS) {
        return;
    }
    let bench = Bench::new();
    bench.program("bin/script", "#!/bin/sh\n");
    bench.program("bin/python", "#!/usr/bin/python9 -u\n");
    bench.write("bin/README", "not a program\n");
    bench.recipe("- {path: bin}\n- {path: bin, members: [script], to: /opt/x}\n- {path: bin/script, name: other, links: [o]}\n");
    let store = bench.store("s");
    let outcome = bench.build(&store).unwrap();
    assert_eq!(
        outcome.warnings,
        ["/usr/local/bin/python needs /usr/bin/python9, which the image does not have: it will not run"]
    );
    let root = bench.path("root");
    unpacked(&layer(&store, &outcome), &root);
    let names = |dir: &str| {
        let mut names: Vec<String> = fs::read_dir(root.join(dir))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names("usr/local/bin"), ["o", "other", "python", "script"]);
    assert_eq!(names("opt/x"), ["script"]);
    let again = bench.build(&store).unwrap();
    assert_eq!((made(&again), again.warnings.len()), (Vec::new(), 1), "a warning is for every build");

    let says = |programs: &str, expected: &str| {
        let e = bench.error(programs);
        assert!(e.is_bad_input() && e.to_string().contains(expected), "{programs}: {e}");
    };
    says("- {path: nowhere}\n", "does not exist");
    says("- {path: bin, members: [none]}\n", "is not a file: a member of programs");
    says("- {path: bin/README}\n", "is neither an ELF program of 64 bits nor a script");
    says("- {path: bin}\n- {path: bin/script, name: python}\n", "/usr/local/bin/python is there twice");
    let mut elf = vec![0; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[0x12] = 243;
    bench.program("riscv/x", &elf);
    says("- {path: riscv}\n", "is for another architecture");
    fs::create_dir(bench.path("empty")).unwrap();
    says("- {path: empty}\n", "has no executable file");
}

#[test]
fn an_instance_has_its_programs_in_its_root() {
    const TEST: &str = "an_instance_has_its_programs_in_its_root";
    if tools_missing(TEST, &SQUASHFS) {
        return;
    }
    let bench = Bench::new();
    bench.program("bin/tool", "#!/bin/sh\n");
    bench.program("bin/snake", "#!/usr/bin/python9\n");
    bench.recipe("- {path: bin}\n");
    let text = fs::read_to_string(bench.path("t.yaml")).unwrap();
    bench.write("t.yaml", text.replace("name: t\n", "name: t\nkind: instance\n"));
    let store = bench.store("s");
    let outcome = bench.build(&store).unwrap();
    let root = bench.path("root");
    unpacked(&store.blob(&outcome.manifest.instance.as_ref().unwrap().rootfs.digest), &root);
    assert_eq!(fs::read_to_string(root.join("usr/local/bin/tool")).unwrap(), "#!/bin/sh\n");
    // The test's base has no links of a merged /usr, so its shell is at /usr/bin alone.
    assert_eq!(outcome.warnings.len(), 2, "{:?}", outcome.warnings);
    fs::write(bench.path("bin/tool"), "#!/usr/bin/sh\n").unwrap();
    let outcome = bench.build(&store).unwrap();
    assert_eq!(outcome.warnings.len(), 1, "{:?}", outcome.warnings);
}

/// The Go that `stead doctor` asks for builds what is shipped, and what the recipes name is in their go.mod files.
#[test]
fn shipped_recipes_agree_with_their_modules() {
    const TEST: &str = "shipped_recipes_agree_with_their_modules";
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images");
    let text = fs::read_to_string(images.join("kubernetes/go.mod")).unwrap();
    let module = stead_image::programs::gomod::parse(&text);
    let needed: GoVersion = stead_model::go::SHIPPED_RECIPES_NEED.parse().unwrap();
    for name in ["coredns", "kubernetes", "pause"] {
        let text = fs::read_to_string(images.join(name).join("go.mod")).unwrap();
        assert!(stead_image::programs::gomod::parse(&text).go.unwrap() <= needed, "{name}");
    }
    // The parts of Kubernetes have its own version, with another number before it.
    let version = &module.require["k8s.io/kubernetes"];
    let expected = format!("v0.{}", version.strip_prefix("v1.").unwrap());
    assert!(module.replace.len() > 30);
    for (part, (by, of)) in &module.replace {
        assert!(part == by && of.as_ref() == Some(&expected), "{part} => {by} {of:?} beside {version}");
    }
    if tools_missing(TEST, &["go"]) {
        return;
    }
    let bench = Bench::new();
    let pause = BuildRequest::new(images.join("pause.yaml"), bench.path("stead-node"));
    let container = build(&bench.store("s"), &pause, &mut |_| ()).unwrap().manifest.container.unwrap();
    assert_eq!(container.names, ["localhost/pause:1"]);
    let request = BuildRequest::new(images.join("kubernetes-node.yaml"), bench.path("stead-node"));
    match plan(&bench.store("s"), &request) {
        Err(ImageError::ToolTooOld { found, .. }) => println!("SKIP {TEST}: Go {found} is too old"),
        planned => {
            let steps = planned.unwrap().steps;
            let argv = steps.iter().find(|s| s.name == "programs:kubernetes").unwrap().argv.join(" ");
            assert!(argv.contains(&format!("version.gitVersion={version} ")), "{argv}");
        }
    }
}

/// A module's own sources and its dependency's come from the proxy; every byte is pinned by one hash.
#[test]
fn a_published_module_is_built_as_it_was_pinned() {
    const TEST: &str = "a_published_module_is_built_as_it_was_pinned";
    if tools_missing(TEST, &WITH_GO) {
        return;
    }
    const MODULE: &str = "rsc.io/quote";
    let asked = Command::new("go")
        .args(["mod", "download", "-json", "rsc.io/quote@v1.5.2"])
        .current_dir("/")
        .output()
        .unwrap();
    if !asked.status.success() {
        println!("SKIP {TEST}: the Go module proxy cannot be reached");
        return;
    }
    let bench = Bench::new();
    // Its one main package is its own test's helper; a module of ours builds in the same dependency.
    bench.write("dep/go.mod", "module example.com/dep\n\ngo 1.21\n\nrequire rsc.io/quote v1.5.2\n\nrequire (\n\t\
        golang.org/x/text v0.0.0-20170915032832-14c0d48ead0c // indirect\n\trsc.io/sampler v1.3.0 // indirect\n)\n");
    let sums = "golang.org/x/text v0.0.0-20170915032832-14c0d48ead0c h1:qgOY6WgZOaTkIIMiVjBQcw93ERBE4m30iBm00nkL0i8=\n\
        golang.org/x/text v0.0.0-20170915032832-14c0d48ead0c/go.mod h1:NqM8EUOU14njkJ3fqMW+pc6Ldnwhi/IjpwHt7yyuwOQ=\n\
        rsc.io/quote v1.5.2 h1:w5fcysjrx7yqtD/aO+QwRjYZOKnaM9Uh2b40tElTs3Y=\n\
        rsc.io/quote v1.5.2/go.mod h1:LzX7hefJvL54yjefDEDHNONDjII0t9xZLPXsUe+TKr0=\n\
        rsc.io/sampler v1.3.0 h1:7uVkIFmeBqHfdjD+gZwtXXI+RODJ2Wc4O7MPEh/QiW4=\n\
        rsc.io/sampler v1.3.0/go.mod h1:T1hPZKmBbMNahiBKFy5HrXp6adAjACjK9JXDnKaTXpA=\n";
    bench.write("dep/go.sum", sums);
    bench.write(
        "dep/main.go",
        "package main\n\nimport \"rsc.io/quote\"\n\nvar of string\n\nfunc main() { print(of, quote.Go()) }\n",
    );
    bench.recipe("- go: {dir: dep, packages: [.], variables: {main.of: {version_of: rsc.io/quote}}}\n");
    let store = bench.store("one");
    let first = bench.build(&store).unwrap();
    let root = bench.path("root");
    unpacked(&layer(&store, &first), &root);
    let said = Command::new(root.join("usr/local/bin/dep")).output().unwrap().stderr;
    assert!(
        String::from_utf8_lossy(&said).starts_with("v1.5.2Don't communicate"),
        "{}",
        String::from_utf8_lossy(&said)
    );
    let two = bench.store("two");
    assert_eq!(layer(&two, &bench.build(&two).unwrap()).file_name(), layer(&store, &first).file_name());

    bench.write("dep/go.sum", sums.replace("h1:w5fcysjrx7", "h1:x5fcysjrx7"));
    let e = bench.build(&store).unwrap_err();
    assert!(e.is_bad_input() && e.to_string().contains("is not what go.sum says"), "{e}");
    let other = format!(
        "- go: {{module: {MODULE}, version: v1.5.2, sum: \"h1:{}=\", packages: [.]}}\n",
        "A".repeat(43)
    );
    let e = bench.error(&other);
    assert!(e.is_bad_input() && e.to_string().contains("has the sum h1:w5fcysjrx7yqtD/"), "{e}");
}

#[test]
fn progress_is_reported_while_go_compiles() {
    const TEST: &str = "progress_is_reported_while_go_compiles";
    if tools_missing(TEST, &WITH_GO) {
        return;
    }
    let bench = Bench::new();
    bench.recipe("- go: {dir: multi, packages: [.]}\n");
    // A constant of its own, so that no cache has the package.
    let nonce = format!("{:?}", std::time::SystemTime::now());
    bench.write("multi/internal/words/words.go", format!("{WORDS}\nconst Nonce = {nonce:?}\n"));
    let mut notes = Vec::new();
    let store = bench.store("s");
    build(&store, &bench.request(), &mut |p| {
        if let Progress::Note { step, text } = p {
            notes.push(format!("{step}: {text}"));
        }
    })
    .unwrap();
    let compiled =
        |n: &String| n.starts_with("programs:multi: .: compiled example.com/multi/internal/words (");
    assert!(notes.iter().any(compiled), "{notes:?}");
    assert_eq!(notes.last().unwrap(), "programs:multi: verifying the modules that were built in");
}
