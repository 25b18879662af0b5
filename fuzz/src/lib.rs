//! The fuzz targets' functions: each takes any bytes, must return, and asserts what must hold of what it read.

use stead_model::{ClusterSpec, NodeSpec, Recipe};

/// A fuzz target.
pub type Target = fn(&[u8]);

/// Every target by name; its seeds are in `seeds/<name>/`.
pub const TARGETS: &[(&str, Target)] =
    &[("cluster_file", cluster_file), ("node_spec", node_spec), ("recipe", recipe)];

/// A recipe is refused, or reads the same again from what it is written as.
pub fn recipe(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Recipe::from_yaml("recipe.yaml", text) {
        Ok(recipe) => {
            let json = serde_json::to_string(&recipe).expect("a recipe can be written");
            let again = Recipe::from_yaml("recipe.yaml", &json).expect("a written recipe can be read");
            assert_eq!(recipe, again);
        }
        Err(error) => assert!(error.to_string().starts_with("recipe.yaml")),
    }
}

/// A cluster file is refused, or its nodes have names, hardware addresses and addresses of their own.
pub fn cluster_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match ClusterSpec::from_yaml("cluster.yaml", text) {
        Ok(cluster) => {
            let nodes = cluster.resolve();
            assert_eq!(nodes.len(), cluster.node_names().len());
            let mut macs: Vec<_> = nodes.iter().flat_map(|n| n.nics.iter().map(|i| i.mac)).collect();
            let all = macs.len();
            macs.sort();
            macs.dedup();
            assert_eq!(macs.len(), all, "a hardware address was given twice");
        }
        Err(error) => assert!(error.to_string().starts_with("cluster.yaml")),
    }
}

/// A node spec is refused, or reads the same again from what it is written as.
pub fn node_spec(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match NodeSpec::from_json("node.json", text) {
        Ok(spec) => {
            let json = serde_json::to_string(&spec).expect("a node spec can be written");
            let again = NodeSpec::from_json("node.json", &json).expect("a written node spec can be read");
            assert_eq!(spec, again);
        }
        Err(error) => assert!(error.to_string().starts_with("node.json")),
    }
}
