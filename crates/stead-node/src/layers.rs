//! Checks that the modules of this crate depend on each other in one direction, by reading the sources: the compiler
//! allows cycles.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The modules that each top-level module uses.
fn uses() -> BTreeMap<String, BTreeSet<String>> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&top, &mut files);
    let mut modules: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in &files {
        let first = file.strip_prefix(&top).unwrap().components().next().unwrap();
        let module = Path::new(first.as_os_str()).with_extension("").display().to_string();
        let text = fs::read_to_string(file).unwrap();
        modules.entry(module).or_default().extend(named(&text));
    }
    let names: BTreeSet<String> = modules.keys().cloned().collect();
    for (module, used) in &mut modules {
        used.retain(|u| u != module && names.contains(u));
    }
    modules
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() && name != "tests" {
            collect(&path, files);
        } else if name.ends_with(".rs") && !name.contains("tests.rs") && name != "layers.rs" {
            files.push(path);
        }
    }
}

/// The first names after `crate::` in the code, also of a group in braces. Tests may use any module.
fn named(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let code: String =
        code.lines().filter(|l| !l.trim_start().starts_with("//")).flat_map(|l| [l, "\n"]).collect();
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if rest.starts_with('{') {
            let mut depth = 0;
            let mut word = String::new();
            for c in rest.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 1 => break,
                    '}' => depth -= 1,
                    ',' if depth == 1 => found.push(std::mem::take(&mut word)),
                    c if depth == 1 && !c.is_whitespace() => word.push(c),
                    _ => {}
                }
            }
            found.push(word);
        } else {
            found.push(rest.chars().take_while(|c| c.is_alphanumeric() || "_:".contains(*c)).collect());
        }
    }
    found.iter().filter_map(|w| w.split("::").next()).map(str::to_owned).collect()
}

#[test]
fn modules_build_on_each_other_in_one_direction() {
    let mut uses = uses();
    assert!(uses["boot"].contains("disks") && uses["run"].contains("services"), "{uses:?}");
    // Repeatedly remove the modules that use none of the remaining ones.
    while !uses.is_empty() {
        let left: BTreeSet<String> = uses.keys().cloned().collect();
        uses.retain(|_, used| used.iter().any(|u| left.contains(u)));
        let circle: BTreeMap<_, Vec<_>> =
            uses.iter().map(|(m, u)| (m, u.iter().filter(|u| uses.contains_key(*u)).collect())).collect();
        assert!(uses.len() < left.len(), "modules in a cycle, or built on one: {circle:?}");
    }
}

#[test]
fn groups_and_paths_are_read() {
    let text = "use crate::{\n    a::{b, c},\n    d,\n};\n// crate::no\nlet x = crate::e::f();\n#[cfg(test)]\nmod tests { use crate::g; }";
    assert_eq!(named(text), ["a", "d", "", "e"]);
}
