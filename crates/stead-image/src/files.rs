//! The recipe's own files as entries: `files`, the system spec, and directories that every node mounts on.

use crate::{
    error::{ImageError, IoContext, Result},
    merge::Source,
    tarball::{Entry, Kind},
};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};
use stead_model::{
    Recipe,
    node::SYSTEM_SPEC_PATH,
    recipe::{File, RecipeKind},
};

/// Directories that a node's root needs whatever its base contains.
const NODE_DIRECTORIES: [(&str, u32); 9] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("var", 0o755),
];

/// The largest `source` accepted, in bytes. Larger content belongs in an overlay.
const MAX_SOURCE_BYTES: u64 = 1 << 30;

/// The files that the recipe takes from its folder, in the recipe's order; missing optional ones are left out.
///
/// # Errors
/// A file that is not optional is missing.
pub fn sources(recipe: &Recipe, dir: &Path) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for file in &recipe.files {
        out.extend(source_of(file, dir)?);
    }
    Ok(out)
}

fn source_of(file: &File, dir: &Path) -> Result<Option<PathBuf>> {
    let Some(source) = &file.source else { return Ok(None) };
    let path = dir.join(source);
    match fs::metadata(&path) {
        Ok(meta) if meta.is_file() && meta.len() <= MAX_SOURCE_BYTES => Ok(Some(path)),
        Ok(meta) if meta.is_file() => Err(ImageError::input(
            path.display().to_string(),
            format!("is larger than {MAX_SOURCE_BYTES} bytes; make it an overlay"),
        )),
        Ok(_) => Err(ImageError::input(path.display().to_string(), "is not a file; make it an overlay")),
        Err(e) if e.kind() == io::ErrorKind::NotFound && file.optional => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(ImageError::input(
            path.display().to_string(),
            format!("is missing: the source of {}", file.path),
        )),
        Err(e) => Err(e).at("look at", &path),
    }
}

/// The recipe's files as a tree.
///
/// # Errors
/// A source cannot be read.
pub fn tree(recipe: &Recipe, dir: &Path) -> Result<Source> {
    let mut entries: BTreeMap<Vec<u8>, (Entry, Vec<u8>)> = BTreeMap::new();
    let mut put = |path: &str, mode: u32, owner: (u32, u32), kind: Kind, data: Vec<u8>| {
        let clean: Vec<&str> = path.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
        let directory = kind == Kind::Directory;
        let path = crate::tarball::merge_usr(clean.join("/").into_bytes(), directory);
        let (uid, gid) = (u64::from(owner.0), u64::from(owner.1));
        let entry = Entry { path: path.clone(), kind, mode, uid, gid, xattrs: Vec::new() };
        if !path.is_empty() {
            entries.insert(path, (entry, data));
        }
    };
    if recipe.kind == RecipeKind::Node {
        for (path, mode) in NODE_DIRECTORIES {
            put(path, mode, (0, 0), Kind::Directory, Vec::new());
        }
        let mut json = serde_json::to_vec_pretty(&recipe.system).expect("plain data");
        json.push(b'\n');
        put(SYSTEM_SPEC_PATH, 0o644, (0, 0), Kind::File(json.len() as u64), json);
    }
    if let Some(hostname) = &recipe.system.hostname {
        let text = format!("{hostname}\n").into_bytes();
        put("etc/hostname", 0o644, (0, 0), Kind::File(text.len() as u64), text);
    }
    for disk in &recipe.system.disks {
        if let Some(mount) = &disk.mount {
            put(mount, 0o755, (0, 0), Kind::Directory, Vec::new());
        }
    }
    for file in &recipe.files {
        let mode =
            |default| file.mode.as_deref().map_or(default, |m| u32::from_str_radix(m, 8).unwrap_or(default));
        let owner = (file.uid, file.gid);
        if file.directory {
            put(&file.path, mode(0o755), owner, Kind::Directory, Vec::new());
        } else if let Some(target) = &file.symlink {
            put(&file.path, 0o777, owner, Kind::Symlink(target.clone().into_bytes()), Vec::new());
        } else {
            let data = match (&file.contents, source_of(file, dir)?) {
                (Some(text), _) => text.clone().into_bytes(),
                (None, Some(path)) => fs::read(&path).at("read", &path)?,
                (None, None) => continue,
            };
            put(&file.path, mode(0o644), owner, Kind::File(data.len() as u64), data);
        }
    }
    for (entry, _) in entries.values() {
        crate::tarball::check_entry_link(entry)
            .map_err(|e| ImageError::input(format!("files: /{}", entry.name()), e.to_string()))?;
    }
    Ok(Source::Memory(entries.into_values().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_model::Failure;

    #[test]
    fn recipe_files_become_entries() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("s"), "from source").unwrap();
        let yaml = "name: x\nbase: {tar: b.tar}\nhostname: h1\nfiles:\n\
            - {path: /etc/a, contents: \"A\", mode: \"0600\", uid: 7}\n- {path: /bin/s, source: s}\n\
            - {path: /opt/none, source: missing, optional: true}\n- {path: /etc/l, symlink: ../a}\n\
            - {path: /srv/d, directory: true}\n";
        let recipe = Recipe::from_yaml("x.yaml", yaml).unwrap();
        let Source::Memory(entries) = tree(&recipe, dir.path()).unwrap() else { unreachable!() };
        let find = |p: &str| entries.iter().find(|(e, _)| e.name() == p);
        let (a, text) = find("etc/a").unwrap();
        assert_eq!((a.mode, a.uid, &text[..]), (0o600, 7, &b"A"[..]));
        assert_eq!(find("usr/bin/s").unwrap().1, b"from source");
        assert!(find("opt/none").is_none() && find("srv/d").is_some() && find("tmp").is_some());
        assert_eq!(find("etc/hostname").unwrap().1, b"h1\n");
        assert!(find("usr/lib/stead/system.json").is_some());

        let missing = yaml.replace(", optional: true", "");
        let recipe = Recipe::from_yaml("x.yaml", &missing).unwrap();
        let e = tree(&recipe, dir.path()).unwrap_err();
        assert!(e.is_bad_input() && e.to_string().contains("missing"), "{e}");
        let escaping = yaml.replace("../a", "../../../a");
        let e = tree(&Recipe::from_yaml("x.yaml", &escaping).unwrap(), dir.path()).unwrap_err();
        assert!(e.is_bad_input() && e.to_string().contains("leaves the root"), "{e}");
    }
}
