//! Kernel modules of a VM: those in the initrd, then the ones the engine will want.
//!
//! Owns loading by `finit_module` in a given order. The order is made when the image is built; anything else is loaded
//! by the kernel through the image's own `modprobe`.

use rustix::{io::Errno, system::finit_module};
use std::{fs::File, io};

/// The initrd's list: paths of module files, one a line, each after those it depends on.
pub const ORDER: &str = "/modules.order.stead";

/// Asked of `modprobe` once the root is there, so that engines need not wait for them one by one. A kernel that has
/// them built in, or an image without, is no worse off.
pub const FOR_ENGINES: [&str; 8] =
    ["bridge", "veth", "tun", "nf_tables", "nft_chain_nat", "vhost_net", "vhost_vsock", "loop"];

/// The paths in the text of [`ORDER`].
pub fn parse_order(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).collect()
}

/// What the root cannot be put together without; the rest of the initrd's modules may come while that is done.
const FOR_THE_ROOT: [&str; 8] =
    ["virtio_pci", "virtio_mmio", "virtio_blk", "virtio_scsi", "nvme", "ahci", "squashfs", "overlay"];

/// Splits the initrd's list into what the root needs and the rest, each in order. A module that depends on one of the
/// other half may fail at first: [`load`] it again when both halves are done.
pub fn split<'a>(order: &[&'a str]) -> (Vec<&'a str>, Vec<&'a str>) {
    order.iter().partition(|path| {
        let name = path.rsplit('/').next().unwrap_or(path);
        let name = name.split('.').next().unwrap_or(name).replace('-', "_");
        FOR_THE_ROOT.contains(&name.as_str())
    })
}

/// Loads modules in order. Those that are there already are passed over; the errors of others are returned, and the
/// next ones tried all the same: the boot knows soon enough whether a drive or filesystem is really missing.
pub fn load(paths: &[&str]) -> Vec<String> {
    let mut errors = Vec::new();
    for path in paths {
        if let Err(e) = load_one(path) {
            errors.push(format!("module {path}: {e}"));
        }
    }
    errors
}

fn load_one(path: &str) -> io::Result<()> {
    let file = File::open(path)?;
    match finit_module(&file, c"", 0) {
        Err(Errno::EXIST) => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_root_comes_first() {
        let order =
            ["/l/virtio_blk.ko", "/l/net_failover.ko", "/l/virtio-rng.ko", "/l/squashfs.ko", "/l/x/ahci.ko"];
        assert_eq!(super::split(&order), (vec![order[0], order[3], order[4]], vec![order[1], order[2]]));
    }

    #[test]
    fn order_is_kept() {
        assert_eq!(super::parse_order("/a.ko\n\n# x\n /b.ko \n"), ["/a.ko", "/b.ko"]);
    }
    #[test]
    fn a_missing_module_is_reported_and_passed_over() {
        let errors = super::load(&["/nowhere/a.ko", "/nowhere/b.ko"]);
        assert_eq!(errors.len(), 2);
        assert!(errors[0].starts_with("module /nowhere/a.ko: "), "{errors:?}");
    }
}
