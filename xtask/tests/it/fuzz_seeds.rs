//! Runs every fuzz target's function over its seeds, and over pieces of them, without libFuzzer.

#[path = "../../../fuzz/src/lib.rs"]
mod fuzz;

use std::{collections::BTreeSet, fs, path::Path};

#[test]
fn targets_survive_their_seeds() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
    for (name, target) in fuzz::TARGETS {
        let folder = seeds.join(name);
        let mut files = 0;
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let seed = fs::read(entry.expect("a readable folder").path()).expect("a readable seed");
            target(&seed);
            // Truncated at every sixteenth, where readers of lengths and brackets may fail.
            for cut in 0..16 {
                target(&seed[..seed.len() * cut / 16]);
            }
            files += 1;
        }
        assert!(files > 0, "{name} has no seeds");
    }
}

#[test]
fn every_target_is_built_and_listed() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let listed: BTreeSet<String> = fuzz::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let built: BTreeSet<String> = fs::read_dir(fuzz.join("fuzz_targets"))
        .expect("fuzz/fuzz_targets")
        .map(|e| e.expect("an entry").path().file_stem().expect("a name").to_string_lossy().into_owned())
        .collect();
    assert_eq!(listed, built);
}
