//! Load order of kernel modules. Pure over the text of `modules.dep`, `modules.builtin` and `modules.softdep`.

use std::collections::{BTreeMap, BTreeSet};

/// The modules of one kernel, from depmod's files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModuleIndex {
    /// Each module's file, relative to the modules' directory.
    files: BTreeMap<String, String>,
    /// The files that each file needs, in load order.
    needs: BTreeMap<String, Vec<String>>,
    /// Names of modules built into the kernel.
    builtin: BTreeSet<String>,
    /// Names of the modules that should be loaded before each module.
    soft: BTreeMap<String, Vec<String>>,
}

/// A module that is neither a file nor built in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the kernel has no module {0}")]
pub struct NoModule(pub String);

/// A module's name: its file's name without suffixes and with `_` for `-`.
pub fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let stem = file.split(".ko").next().unwrap_or(file);
    stem.replace('-', "_")
}

impl ModuleIndex {
    /// Parses the text of `modules.dep`, `modules.builtin` and `modules.softdep`; empty for a missing file.
    pub fn parse(dep: &str, builtin: &str, softdep: &str) -> Self {
        let mut index = Self::default();
        for line in dep.lines() {
            let Some((file, needs)) = line.split_once(':') else { continue };
            // depmod lists direct dependencies first, so the module that must be loaded first comes last.
            let needs: Vec<String> = needs.split_whitespace().rev().map(str::to_owned).collect();
            index.files.insert(name_of(file), file.to_owned());
            index.needs.insert(file.to_owned(), needs);
        }
        index.builtin = builtin.lines().filter(|l| !l.trim().is_empty()).map(name_of).collect();
        for line in softdep.lines() {
            let mut words = line.split_whitespace();
            if words.next() != Some("softdep") {
                continue;
            }
            let Some(module) = words.next() else { continue };
            let pre = words.skip_while(|w| *w != "pre:").skip(1).take_while(|w| !w.ends_with(':'));
            index.soft.entry(module.replace('-', "_")).or_default().extend(pre.map(|w| w.replace('-', "_")));
        }
        index
    }

    /// Files to load, each after its dependencies, for required modules and for optional ones. Built-in modules are
    /// left out.
    ///
    /// # Errors
    /// [`NoModule`] for a missing required module.
    pub fn load_order<'a>(
        &self,
        required: impl IntoIterator<Item = &'a str>,
        optional: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<String>, NoModule> {
        let mut order = Vec::new();
        for name in required {
            let name = name.replace('-', "_");
            if !self.files.contains_key(&name) && !self.builtin.contains(&name) {
                return Err(NoModule(name));
            }
            self.add(&name, &mut order, 0);
        }
        for name in optional {
            self.add(&name.replace('-', "_"), &mut order, 0);
        }
        Ok(order)
    }

    fn add(&self, name: &str, order: &mut Vec<String>, depth: u32) {
        // A file takes precedence over a built-in module of the same name. Soft dependencies may be circular, hard ones
        // are not; no real chain is nearly this deep.
        let Some(file) = self.files.get(name).filter(|_| depth < 32) else { return };
        if order.contains(file) {
            return;
        }
        for soft in self.soft.get(name).into_iter().flatten() {
            self.add(soft, order, depth + 1);
        }
        for need in self.needs.get(file).into_iter().flatten() {
            self.add(&name_of(need), order, depth + 1);
        }
        if !order.contains(file) {
            order.push(file.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DEP: &str = "kernel/fs/ext4/ext4.ko.xz: kernel/fs/mbcache.ko.xz kernel/fs/jbd2/jbd2.ko.xz kernel/lib/crc16.ko.xz\n\
        kernel/fs/jbd2/jbd2.ko.xz: kernel/lib/crc32.ko.xz\nkernel/fs/mbcache.ko.xz:\nkernel/lib/crc16.ko.xz:\n\
        kernel/lib/crc32.ko.xz:\nkernel/drivers/virtio-blk.ko:\nkernel/crypto/crc32c_generic.ko.xz:\n";
    const SOFT: &str = "# comment\nsoftdep ext4 pre: crc32c_generic post: other\n";

    #[test]
    fn dependencies_come_first() {
        let index = ModuleIndex::parse(DEP, "kernel/drivers/virtio/virtio_pci.ko\n", SOFT);
        let order = index.load_order(["virtio_blk", "virtio_pci", "ext4"], ["no_such", "crc16"]).unwrap();
        assert_eq!(
            order,
            [
                "kernel/drivers/virtio-blk.ko",
                "kernel/crypto/crc32c_generic.ko.xz",
                "kernel/lib/crc16.ko.xz",
                "kernel/lib/crc32.ko.xz",
                "kernel/fs/jbd2/jbd2.ko.xz",
                "kernel/fs/mbcache.ko.xz",
                "kernel/fs/ext4/ext4.ko.xz",
            ]
        );
        assert_eq!(index.load_order(["no_such"], []).unwrap_err(), NoModule("no_such".into()));
    }

    proptest! {
        #[test]
        fn every_need_comes_before(edges in proptest::collection::vec((1usize..12, 0usize..12), 0..30)) {
            // Needs point to smaller numbers, as hard dependencies have no cycles.
            let file = |i: usize| format!("kernel/m{i}.ko");
            let needs = |i: usize| edges.iter().filter(move |(a, b)| *a == i && b < a).map(|(_, b)| *b);
            let dep: String = (0..12).map(|i| {
                let list: Vec<String> = needs(i).map(file).collect();
                format!("{}: {}\n", file(i), list.join(" "))
            }).collect();
            let index = ModuleIndex::parse(&dep, "", "");
            let order = index.load_order(["m11", "m5"], ["m3"]).unwrap();
            for (at, f) in order.iter().enumerate() {
                let i: usize = name_of(f)[1..].parse().unwrap();
                for need in needs(i) {
                    prop_assert!(order[..at].contains(&file(need)));
                }
            }
            let unique: BTreeSet<_> = order.iter().collect();
            prop_assert_eq!(unique.len(), order.len());
        }
        #[test]
        fn any_text_is_answered(a in "(?s).{0,100}", b in "(?s).{0,100}", c in "(?s).{0,100}") {
            let _ = ModuleIndex::parse(&a, &b, &c).load_order([], [a.as_str()]);
        }
    }
}
