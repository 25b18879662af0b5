//! docs/extending.md lists the places that name a backend or an engine; no other source does.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};
use stead_machine::backend::ALL;
use stead_model::EngineFacts;

/// Where engines are named, below crates/.
const ENGINES: [&str; 4] = [
    "stead-incus/src/dialect.rs",
    "stead-model/src/cluster.rs",
    "stead-model/src/engine.rs",
    "stead-node/src/engine/mod.rs",
];
/// The folder in which backends are named, below crates/.
const BACKENDS: &str = "stead-machine/src/backend/";

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The sources of all crates, by their path below crates/, without their tests: modules under `#[cfg(test)]`, in the
/// same file or in files of their own.
fn shipped() -> Vec<(String, String)> {
    let crates = top().join("crates");
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = fs::read_dir(&crates)
        .expect("crates/")
        .map(|e| e.expect("an entry").path())
        .filter(|path| !path.ends_with("stead-testkit"))
        .map(|path| path.join("src"))
        .collect();
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).expect("a folder of sources").map(|e| e.expect("an entry").path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push((fs::read_to_string(&path).expect("a source"), path));
            }
        }
    }
    let tests: Vec<PathBuf> = files.iter().flat_map(|(text, path)| test_modules(text, path)).collect();
    files
        .into_iter()
        .filter(|(_, path)| !tests.iter().any(|test| path.with_extension("").starts_with(test)))
        .map(|(text, path)| {
            (path.strip_prefix(&crates).expect("below crates/").display().to_string(), without_tests(&text))
        })
        .collect()
}

/// A file's text before the test module at its end.
fn without_tests(text: &str) -> String {
    const TEST: &str = "#[cfg(test)]\n";
    let opens = |at: &usize| {
        text[at + TEST.len()..].lines().next().is_some_and(|l| l.contains("mod ") && l.ends_with('{'))
    };
    let end = text.match_indices(TEST).map(|(at, _)| at).find(opens).unwrap_or(text.len());
    text[..end].to_owned()
}

/// The modules that a file declares only for tests: their paths without an extension.
fn test_modules(text: &str, path: &Path) -> Vec<PathBuf> {
    let children = match path.file_stem().and_then(|s| s.to_str()) {
        Some("lib" | "main" | "mod") => path.with_file_name(""),
        _ => path.with_extension(""),
    };
    let declared = text.split("#[cfg(test)]\n").skip(1).filter_map(|rest| {
        let line = rest.lines().next()?;
        if let Some(file) = line.strip_prefix("#[path = \"").and_then(|l| l.strip_suffix("\"]")) {
            return Some(path.with_file_name(file).with_extension(""));
        }
        line.strip_suffix(';')?.split("mod ").nth(1).map(|name| children.join(name))
    });
    declared.collect()
}

/// The sources that contain one of these words.
fn naming(words: &[String]) -> BTreeSet<String> {
    let sources = shipped();
    assert!(sources.len() > 300, "only {} sources", sources.len());
    let names = |code: &String| words.iter().any(|word| code.contains(word.as_str()));
    sources.into_iter().filter(|(_, code)| names(code)).map(|(path, _)| path).collect()
}

#[test]
fn test_modules_are_distinguished_from_shipped_ones() {
    let text = "#[cfg(test)]\npub(crate) mod fixtures;\nmod plan;\n#[cfg(test)]\nmod tests {\n}\n";
    assert_eq!(without_tests(text), "#[cfg(test)]\npub(crate) mod fixtures;\nmod plan;\n");
    assert_eq!(test_modules(text, Path::new("a/src/lib.rs")), [Path::new("a/src/fixtures")]);
    let elsewhere = "#[cfg(test)]\n#[path = \"plan_tests.rs\"]\nmod tests;\n";
    assert_eq!(test_modules(elsewhere, Path::new("a/src/plan.rs")), [Path::new("a/src/plan_tests")]);
    assert_eq!(test_modules(text, Path::new("a/src/check.rs")), [Path::new("a/src/check/fixtures")]);
}

#[test]
fn nothing_else_matches_on_a_backend() {
    let found = naming(&ALL.iter().map(|b| format!("Backend::{b:?}")).collect::<Vec<_>>());
    // In that folder the table's macro names them all.
    let elsewhere: Vec<_> = found.iter().filter(|path| !path.starts_with(BACKENDS)).collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?} name a backend");
}

#[test]
fn nothing_else_matches_on_an_engine() {
    let found = naming(&EngineFacts::all().map(|f| format!("EngineKind::{:?}", f.kind)).collect::<Vec<_>>());
    let allowed: BTreeSet<String> = ENGINES.map(str::to_owned).into();
    assert!(found.is_subset(&allowed), "{:?} name an engine", found.difference(&allowed));
    let page = fs::read_to_string(top().join("docs/extending.md")).expect("docs/extending.md");
    for place in ENGINES {
        assert!(page.contains(&format!("crates/{place}")), "docs/extending.md does not name {place}");
    }
}
