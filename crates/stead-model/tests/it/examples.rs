//! Every shipped example and recipe parses.

use std::{fs, path::Path};
use stead_model::{ClusterSpec, Recipe};

/// Name and text of each `*.yaml` in a folder of the repository; empty if there is no such folder.
fn yaml_files(folder: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder);
    let Ok(entries) = fs::read_dir(&folder) else { return Vec::new() };
    let mut files: Vec<_> = entries
        .map(|e| e.expect("a readable folder").path())
        .filter(|p| p.extension().is_some_and(|x| x == "yaml"))
        .map(|p| {
            let text = fs::read_to_string(&p).expect("a readable file");
            (p.file_name().expect("a file name").to_string_lossy().into_owned(), text)
        })
        .collect();
    files.sort();
    files
}

#[test]
fn examples_are_cluster_files() {
    let files = yaml_files("examples");
    assert!(files.iter().any(|(name, _)| name == "demo.yaml"), "no examples/demo.yaml");
    let mut names = std::collections::BTreeSet::new();
    for (file, text) in &files {
        let cluster = ClusterSpec::from_yaml(file, text).unwrap_or_else(|e| panic!("{e}"));
        assert!(!cluster.resolve().is_empty(), "{file} has no nodes");
        assert!(
            names.insert(cluster.name.clone()),
            "{file}: another example has the name {} too",
            cluster.name
        );
        if file == "demo.yaml" {
            assert_eq!((cluster.name.as_str(), cluster.resolve().len()), ("demo", 3));
        }
    }
}

#[test]
fn images_are_recipes() {
    for (file, text) in yaml_files("images") {
        let recipe = Recipe::from_yaml(&file, &text).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(format!("{}.yaml", recipe.name), file, "a recipe's file is named as its image");
    }
}
