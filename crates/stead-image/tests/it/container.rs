//! Container images: built twice, read back as a base, and by a tool that is not ours.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Command};
use stead_image::{BuildOutcome, BuildRequest, Store, build, plan};

fn missing(test: &str, tools: &[&str]) -> bool {
    for tool in tools {
        let version = if tool.contains("squashfs") { "-version" } else { "--version" };
        if Command::new(tool).arg(version).output().is_err() {
            println!("SKIP {test}: {tool} is not installed");
            return true;
        }
    }
    false
}

const RECIPE: &str = "name: pause\nkind: container\nbase: scratch\nprograms:\n- {path: pause}\n\
    files:\n- {path: /etc/pause.conf, contents: \"x\\n\"}\n- {path: /tmp, directory: true, mode: \"1777\"}\n\
    container:\n  names: [\"registry.test/k8s/pause:3.10\", \"registry.test/pause:v1\"]\n  entrypoint: [/usr/local/bin/pause]\n  \
    command: [--quietly]\n  user: \"65535:65535\"\n  environment: {A: b}\n";

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap() };
        fs::write(bench.path("pause"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(bench.path("pause"), fs::Permissions::from_mode(0o755)).unwrap();
        bench
    }
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn request(&self, recipe: &str) -> BuildRequest {
        fs::write(self.path("r.yaml"), recipe).unwrap();
        BuildRequest::new(self.path("r.yaml"), self.path("no stead-node"))
    }
    fn build(&self, store: &Store, recipe: &str) -> BuildOutcome {
        build(store, &self.request(recipe), &mut |_| ()).unwrap()
    }
}

fn archive(store: &Store, outcome: &BuildOutcome) -> PathBuf {
    store.blob(&outcome.manifest.container.as_ref().unwrap().archive.digest)
}

#[test]
fn a_container_image_is_the_same_twice_and_a_base_for_others() {
    if missing("a_container_image_is_the_same_twice_and_a_base_for_others", &["mksquashfs", "unsquashfs"]) {
        return;
    }
    let bench = Bench::new();
    let (one, two) = (Store::open(&bench.path("one")).unwrap(), Store::open(&bench.path("two")).unwrap());
    let steps: Vec<String> =
        plan(&one, &bench.request(RECIPE)).unwrap().steps.into_iter().map(|s| s.name).collect();
    assert_eq!(steps, ["base", "programs:pause", "rootfs"]);
    let first = bench.build(&one, RECIPE);
    assert_eq!(first.digest, bench.build(&two, RECIPE).digest);
    assert_eq!(
        first.warnings,
        ["/usr/local/bin/pause needs /bin/sh, which the image does not have: it will not run"]
    );
    assert!(plan(&one, &bench.request(RECIPE)).unwrap().is_done());
    let again = bench.build(&one, RECIPE);
    assert!(again.reused && again.steps.iter().all(|s| s.cached), "{:?}", again.steps);
    // Another configuration is another image of the same root.
    let other = bench.build(&two, &RECIPE.replace("--quietly", "--loudly"));
    assert_ne!(other.digest, first.digest);
    two.gc(&Default::default()).unwrap();
    assert!(two.verify(&"pause".parse().unwrap()).unwrap().bad.is_empty());

    fs::copy(archive(&one, &first), bench.path("layout.tar")).unwrap();
    let over =
        bench.build(&one, "name: over\nkind: instance\nbase: {oci: {path: layout.tar, ref: \"3.10\"}}\n");
    let root = bench.path("root");
    let rootfs = one.blob(&over.manifest.instance.as_ref().unwrap().rootfs.digest);
    let out =
        Command::new("unsquashfs").args(["-no-progress", "-d"]).arg(&root).arg(rootfs).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(fs::read_to_string(root.join("etc/pause.conf")).unwrap(), "x\n");
    let mode = |path: &str| fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("usr/local/bin/pause"), mode("tmp")), (0o755, 0o1777));
}

#[test]
fn skopeo_reads_it_as_an_oci_layout_and_as_docker_save_writes() {
    if missing("skopeo_reads_it_as_an_oci_layout_and_as_docker_save_writes", &["skopeo"]) {
        return;
    }
    let bench = Bench::new();
    let store = Store::open(&bench.path("s")).unwrap();
    let outcome = bench.build(&store, RECIPE);
    let archive = archive(&store, &outcome);
    let inspect = |transport: &str, suffix: &str, arguments: &[&str]| -> serde_json::Value {
        let image = format!("{transport}:{}{suffix}", archive.display());
        let out = Command::new("skopeo").arg("inspect").args(arguments).arg(image).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    };
    for (transport, suffix) in [("oci-archive", ":3.10"), ("docker-archive", ":registry.test/pause:v1")] {
        let config = inspect(transport, suffix, &["--config"]);
        assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["/usr/local/bin/pause"]));
        assert_eq!(config["config"]["Cmd"], serde_json::json!(["--quietly"]));
        assert_eq!(config["config"]["User"], "65535:65535");
        assert!(config["config"]["Env"].as_array().unwrap().contains(&"A=b".into()), "{config}");
    }
    let container = outcome.manifest.container.unwrap();
    let manifest = inspect("oci-archive", ":v1", &["--format", "{{json .}}"]);
    assert_eq!(manifest["Digest"], container.manifest.as_str());
    // Copying checks the digests of the layer, packed and unpacked.
    let to = format!("oci:{}:x", bench.path("copy").display());
    let from = format!("docker-archive:{}:registry.test/k8s/pause:3.10", archive.display());
    let out = Command::new("skopeo").args(["copy", "--insecure-policy", &from, &to]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}
