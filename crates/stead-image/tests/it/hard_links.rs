//! Layers with hard links, merged by Stead and unpacked in turn by GNU tar, give the same tree, link for link.

use proptest::{collection::vec, prelude::*, test_runner::TestRunner};
use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read, Write},
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Stdio},
};
use stead_image::{
    ImageError,
    merge::{Merged, Source},
    tarball::{Entry, Kind, TarPolicy, Writer},
};
use stead_model::Failure;

/// Paths that hold files and links. `d` and `e` are directories, or files in their place.
const FILES: [&str; 6] = ["a", "b", "c", "d/a", "d/b", "e/a"];
const DIRECTORIES: [&str; 2] = ["d", "e"];

#[derive(Debug, Clone)]
enum Op {
    File(usize),
    /// A file where there may be a directory.
    FileOver(usize),
    Link(usize, usize),
    Symlink(usize),
    Directory(usize),
    Whiteout(usize),
    WhiteoutOver(usize),
    Opaque(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let (f, d) = (0..FILES.len(), 0..DIRECTORIES.len());
    prop_oneof![
        4 => f.clone().prop_map(Op::File),
        1 => d.clone().prop_map(Op::FileOver),
        5 => (f.clone(), f.clone()).prop_map(|(a, b)| Op::Link(a, b)),
        1 => f.clone().prop_map(Op::Symlink),
        1 => d.clone().prop_map(Op::Directory),
        3 => f.prop_map(Op::Whiteout),
        1 => d.clone().prop_map(Op::WhiteoutOver),
        1 => d.prop_map(Op::Opaque),
    ]
}

/// A layer, or a part of one, as a tar: each file with contents of its own.
fn layer<'a>(number: usize, ops: impl Iterator<Item = (usize, &'a Op)>) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (at, op) in ops {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o600 + at as u32 % 8);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        let text = format!("{number}.{at}");
        let mut put = |name: &str, text: &str| {
            header.set_size(text.len() as u64);
            builder.append_data(&mut header, name, text.as_bytes()).unwrap();
        };
        let hidden = |path: &str| match path.rsplit_once('/') {
            Some((dir, name)) => format!("{dir}/.wh.{name}"),
            None => format!(".wh.{path}"),
        };
        match op {
            Op::File(f) => put(FILES[*f], &text),
            Op::FileOver(d) => put(DIRECTORIES[*d], &text),
            Op::Whiteout(f) => put(&hidden(FILES[*f]), ""),
            Op::WhiteoutOver(d) => put(&hidden(DIRECTORIES[*d]), ""),
            Op::Opaque(d) => put(&format!("{}/.wh..wh..opq", DIRECTORIES[*d]), ""),
            Op::Link(f, target) => {
                header.set_entry_type(tar::EntryType::Link);
                builder.append_link(&mut header, FILES[*f], FILES[*target]).unwrap();
            }
            Op::Symlink(f) => {
                header.set_entry_type(tar::EntryType::Symlink);
                builder.append_link(&mut header, FILES[*f], format!("to-{text}")).unwrap();
            }
            Op::Directory(d) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(0o755);
                builder.append_data(&mut header, DIRECTORIES[*d], io::empty()).unwrap();
            }
        }
    }
    builder.into_inner().unwrap()
}

fn unpack(tar: &[u8], dir: &Path) {
    let mut child = Command::new("tar")
        .args(["-x", "-p", "--exclude=.wh.*", "-f", "-", "-C"])
        .arg(dir)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(tar);
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "GNU tar: {}", String::from_utf8_lossy(&out.stderr));
}

fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.is_dir())
}
fn remove(path: &Path) {
    if is_directory(path) {
        fs::remove_dir_all(path).unwrap();
    } else if fs::symlink_metadata(path).is_ok() {
        fs::remove_file(path).unwrap();
    }
}

/// Applies a layer as an engine does: for each entry, remove what is in its way and unpack with GNU tar; then remove
/// the lower names that are hidden.
fn apply(number: usize, ops: &[Op], dir: &Path) {
    let mut own = BTreeSet::new();
    for (at, op) in ops.iter().enumerate() {
        match op {
            Op::File(f) | Op::Link(f, _) | Op::Symlink(f) => {
                if let Some((parent, _)) = FILES[*f].split_once('/')
                    && !is_directory(&dir.join(parent))
                {
                    remove(&dir.join(parent));
                }
                own.insert(FILES[*f]);
            }
            Op::FileOver(d) => {
                if is_directory(&dir.join(DIRECTORIES[*d])) {
                    remove(&dir.join(DIRECTORIES[*d]));
                }
                own.insert(DIRECTORIES[*d]);
            }
            Op::Directory(d) => drop(own.insert(DIRECTORIES[*d])),
            Op::Whiteout(_) | Op::WhiteoutOver(_) | Op::Opaque(_) => continue,
        }
        unpack(&layer(number, std::iter::once((at, op))), dir);
    }
    for op in ops {
        let below =
            |d: &str| FILES.iter().filter(|f| f.starts_with(&format!("{d}/"))).copied().collect::<Vec<_>>();
        match op {
            Op::Whiteout(f) if !own.contains(FILES[*f]) => remove(&dir.join(FILES[*f])),
            Op::Opaque(d) | Op::WhiteoutOver(d) => {
                let d = DIRECTORIES[*d];
                below(d).iter().filter(|f| !own.contains(*f)).for_each(|f| remove(&dir.join(f)));
                let kept = own.contains(d) || below(d).iter().any(|f| own.contains(f));
                if matches!(op, Op::WhiteoutOver(_)) && !kept {
                    remove(&dir.join(d));
                }
            }
            _ => {}
        }
    }
}

/// Each path with its kind; files and links with all their names.
fn tree(dir: &Path) -> BTreeMap<String, String> {
    let (mut all, mut groups) = (BTreeMap::new(), BTreeMap::<u64, Vec<String>>::new());
    for path in FILES.iter().chain(&DIRECTORIES) {
        let full = dir.join(path);
        let Ok(meta) = fs::symlink_metadata(&full) else { continue };
        let what = if meta.is_dir() {
            "directory".to_owned()
        } else if meta.is_symlink() {
            format!("-> {}", fs::read_link(&full).unwrap().display())
        } else {
            format!("{:o} {}", meta.mode() & 0o7777, fs::read_to_string(&full).unwrap())
        };
        if !meta.is_dir() {
            groups.entry(meta.ino()).or_default().push((*path).to_owned());
        }
        all.insert((*path).to_owned(), what);
    }
    for names in groups.values() {
        for name in names {
            let links = fs::symlink_metadata(dir.join(name)).unwrap().nlink();
            assert_eq!(links, names.len() as u64, "{name} has names elsewhere");
            all.get_mut(name).unwrap().push_str(&format!(" {names:?}"));
        }
    }
    all
}

#[test]
fn hard_links_of_merged_layers_are_those_of_layers_unpacked_one_after_another() {
    let mut runner =
        TestRunner::new(ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() });
    let (taken, linked) = (Cell::new(0), Cell::new(0));
    // Something to link to, replace and remove.
    let base = [Op::File(0), Op::File(1), Op::Link(2, 0), Op::File(3), Op::Link(4, 3), Op::Link(5, 0)];
    let result = runner.run(&vec(vec(op(), 1..6), 1..4), |mut layers| {
        layers.insert(0, base.to_vec());
        let dir = tempfile::tempdir().unwrap();
        let sources: Vec<Source> = layers
            .iter()
            .enumerate()
            .map(|(number, ops)| {
                let path = dir.path().join(format!("{number}.tar"));
                fs::write(&path, layer(number, ops.iter().enumerate())).unwrap();
                Source::Tar { path, part: None, name: format!("layer {number}"), policy: TarPolicy::OCI }
            })
            .collect();
        let merged = match Merged::of(&sources) {
            Ok(merged) => merged,
            // E.g. a link to a missing file.
            Err(e @ ImageError::Archive { .. }) if e.is_bad_input() => return Ok(()),
            Err(e) => panic!("{e}"),
        };
        let mut writer = Writer::new(Vec::new(), 0, "");
        let mut put = |entry: &Entry, data: &mut dyn Read| {
            linked.set(linked.get() + usize::from(matches!(entry.kind, Kind::Hardlink(_))));
            writer.put(entry, data)
        };
        merged.write(&sources, &mut put).unwrap();
        let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
        fs::create_dir(&ours).unwrap();
        fs::create_dir(&theirs).unwrap();
        unpack(&writer.finish().unwrap(), &ours);
        for (number, ops) in layers.iter().enumerate() {
            apply(number, ops, &theirs);
        }
        taken.set(taken.get() + 1);
        prop_assert_eq!(tree(&ours), tree(&theirs));
        Ok(())
    });
    result.unwrap();
    let (taken, linked) = (taken.get(), linked.get());
    assert!(
        taken > 20 && linked > 20,
        "{taken} cases were accepted, with {linked} links: too few to prove anything"
    );
}
