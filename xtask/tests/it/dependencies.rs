//! docs/dependencies.md gives a reason for each dependency, and lists no others.

use std::{collections::BTreeSet, fs, path::Path};

/// Names under the `[…dependencies]` tables of a manifest, without our own crates.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut inside = false;
    let mut names = BTreeSet::new();
    for line in manifest.lines() {
        if let Some(table) = line.strip_prefix('[') {
            inside = table.trim_end_matches(']').ends_with("dependencies");
        } else if inside
            && let Some((name, _)) = line.split_once(['.', '=', ' '])
            && !name.is_empty()
            && !name.starts_with('#')
            && !name.starts_with("stead")
        {
            names.insert(name.to_owned());
        }
    }
    names
}

#[test]
fn every_dependency_has_its_reason() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut manifests: Vec<_> = ["Cargo.toml", "xtask/Cargo.toml", "fuzz/Cargo.toml", "scriptlet/Cargo.toml"]
        .map(|m| top.join(m))
        .to_vec();
    for entry in fs::read_dir(top.join("crates")).expect("crates/") {
        manifests.push(entry.expect("an entry").path().join("Cargo.toml"));
    }
    let used: BTreeSet<String> = manifests
        .iter()
        .flat_map(|path| {
            dependencies(&fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        })
        .collect();
    let text = fs::read_to_string(top.join("docs/dependencies.md")).expect("docs/dependencies.md");
    let told: BTreeSet<String> =
        text.lines().filter_map(|l| Some(l.strip_prefix("| `")?.split_once('`')?.0.to_owned())).collect();
    assert!(used.len() > 20, "dependencies were not found: {used:?}");
    assert_eq!(used, told, "docs/dependencies.md and the manifests differ");
}

/// Packages with their features, as cargo resolves them for a build with these arguments.
fn resolved(arguments: &[&str]) -> BTreeSet<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = std::process::Command::new(cargo)
        .args(["tree", "--offline", "--locked", "--prefix", "none", "--format", "{p} [{f}]"])
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .output()
        .expect("cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    // A star marks what has been printed before.
    text.lines().map(|l| l.trim_end_matches(" (*)").to_owned()).filter(|l| !l.is_empty()).collect()
}

/// Else `make build` and the tests compile crates twice, with everything above them.
#[test]
fn tests_add_no_features_to_what_ships() {
    let ships = resolved(&["--edges", "normal,build", "-p", "stead", "-p", "stead-node"]);
    let tests = resolved(&["--edges", "normal,build,dev", "--workspace"]);
    assert!(ships.len() > 100, "{ships:?}");
    let differ: Vec<&String> = ships.difference(&tests).collect();
    assert!(differ.is_empty(), "the tests build these with other features: {differ:#?}");
}
