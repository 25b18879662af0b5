//! Kernel modules of a VM: those in the initrd, then the ones that the engine needs.
//!
//! Owns loading by `finit_module` in a given order, which is computed when the image is built. The image's own
//! `modprobe` loads anything else.

use rustix::{io::Errno, system::finit_module};
use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
};

/// The initrd's list: paths of module files, one a line, each after those it depends on.
pub const ORDER: &str = "/modules.order.stead";

/// A module's file, by path, or open if it must outlive the initrd.
#[derive(Debug, Clone)]
pub struct Module {
    path: String,
    file: Option<Arc<File>>,
}

impl Module {
    /// A module by its path.
    pub fn new(path: impl Into<String>) -> Self {
        Self { path: path.into(), file: None }
    }
    /// Opens the file, so that it can be loaded after the initrd is gone.
    #[must_use]
    pub fn opened(self) -> Self {
        let file = File::open(&self.path).ok().map(Arc::new);
        Self { file, ..self }
    }
    /// The name as for `modprobe`: without directory and suffix, with `_` for `-`.
    fn name(&self) -> String {
        let file = self.path.rsplit('/').next().unwrap_or(&self.path);
        file.split('.').next().unwrap_or(file).replace('-', "_")
    }
    fn load(&self) -> io::Result<()> {
        let loaded = match &self.file {
            Some(file) => finit_module(file, c"", 0),
            None => finit_module(File::open(&self.path)?, c"", 0),
        };
        match loaded {
            Err(Errno::EXIST) => Ok(()),
            other => Ok(other?),
        }
    }
}

/// The modules of the initrd's list.
pub fn listed() -> Vec<Module> {
    parse_order(&fs::read_to_string(ORDER).unwrap_or_default()).into_iter().map(Module::new).collect()
}

/// The paths in the text of [`ORDER`].
pub fn parse_order(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).collect()
}

/// Modules that root, network and agent do not need. Verifying a module's signature takes up to a tenth of a second
/// under emulation, so these are loaded once the agent answers. The ext4 ones are loaded earlier when the root is on a
/// disk.
const LATER: [&str; 13] = [
    "af_packet",
    "button",
    "crc16",
    "crc32c_generic",
    "crc32c_intel",
    "evdev",
    "ext4",
    "jbd2",
    "loop",
    "mbcache",
    "rng_core",
    "virtio_rng",
    VIRTIO_MMIO,
];

/// Virtio without PCI, as on microVMs.
const VIRTIO_MMIO: &str = "virtio_mmio";

/// Splits the initrd's modules into those to load at once and those for later, each in order. A module not listed here,
/// e.g. a recipe's own for a disk or network card, is loaded at once. `virtio_devices` is where the kernel lists its
/// virtio devices: if PCI has some, the other bus is not tried at once.
pub fn split(modules: Vec<Module>, virtio_devices: &Path) -> (Vec<Module>, Vec<Module>) {
    let by_pci = fs::read_dir(virtio_devices).is_ok_and(|mut devices| devices.next().is_some());
    modules.into_iter().partition(|module| {
        let name = module.name();
        (name == VIRTIO_MMIO && !by_pci) || !LATER.contains(&name.as_str())
    })
}

/// Loads modules in order. Loaded ones are skipped. An error does not stop the next ones; all errors are returned: the
/// boot soon finds out whether a drive or filesystem is really missing.
pub fn load(modules: &[Module]) -> Vec<String> {
    let failed = |module: &Module| module.load().err().map(|e| format!("module {}: {e}", module.path));
    modules.iter().filter_map(failed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(modules: &[Module]) -> Vec<&str> {
        modules.iter().map(|m| m.path.as_str()).collect()
    }

    #[test]
    fn modules_that_the_agent_does_not_need_come_later() {
        let order = [
            "/l/virtio_blk.ko",
            "/l/virtio_mmio.ko",
            "/l/crc16.ko",
            "/l/ext4.ko",
            "/l/virtio-rng.ko",
            "/l/my-nic.ko",
        ];
        let modules = || order.into_iter().map(Module::new).collect();
        let found = tempfile::tempdir().unwrap();
        let (now, later) = split(modules(), found.path());
        assert_eq!(paths(&now), [order[0], order[1], order[5]]);
        assert_eq!(paths(&later), [order[2], order[3], order[4]]);
        fs::write(found.path().join("virtio0"), "").unwrap();
        let (now, later) = split(modules(), found.path());
        assert_eq!(paths(&now), [order[0], order[5]]);
        assert_eq!(later.len(), 4);
    }

    #[test]
    fn order_is_kept() {
        assert_eq!(parse_order("/a.ko\n\n# x\n /b.ko \n"), ["/a.ko", "/b.ko"]);
    }

    #[test]
    fn a_missing_module_is_reported_and_skipped() {
        let errors = load(&[Module::new("/nowhere/a.ko"), Module::new("/nowhere/b.ko").opened()]);
        assert_eq!(errors.len(), 2);
        assert!(errors[0].starts_with("module /nowhere/a.ko: "), "{errors:?}");
    }
}
