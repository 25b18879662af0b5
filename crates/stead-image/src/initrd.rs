//! The initrd: `stead-node` as `/init`, the modules that every node needs to reach its layers and disks, and their load
//! order.

use crate::{
    cpio::{Archive, Node},
    error::{ImageError, IoContext, Result},
    modules::ModuleIndex,
    store::Scratch,
    tools::{Invocation, UNSQUASHFS},
};
use std::{
    ffi::OsString,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

/// Modules without which a node in a VM finds neither its drives nor its layers. Each may also be built in.
pub const REQUIRED: [&str; 6] = ["virtio_pci", "virtio_blk", "virtio_net", "squashfs", "overlay", "loop"];

/// Modules included when the kernel has them: virtio on microVMs, randomness, packet sockets for DHCP, and the data
/// disk's ext4 with its checksums. btrfs is left out: it needs raid6 and xor, whose self-tests take seconds under
/// emulation; a node loads it from its root when a disk needs it. button and evdev provide the power button: without
/// them a VM ignores a request by ACPI to stop.
pub const OPTIONAL: [&str; 8] =
    ["virtio_mmio", "virtio_rng", "af_packet", "crc32c_generic", "crc32c_intel", "ext4", "button", "evdev"];

/// File in the initrd that lists the modules in load order, one absolute path a line.
pub const ORDER_FILE: &str = "modules.order.stead";

/// The largest module after decompression, in bytes. The largest in use, for graphics, have about 20 MiB.
const MAX_MODULE_BYTES: u64 = 128 << 20;

/// Builds the initrd's bytes.
///
/// `modules` is the modules' layer (a squashfs) and the kernel's release; `extra` are the recipe's own modules.
///
/// # Errors
/// The kernel lacks a module of the recipe (bad input).
pub(crate) fn build(
    scratch: &Scratch,
    stead_node: &[u8],
    modules: Option<(&Path, &str)>,
    extra: &[String],
) -> Result<Vec<u8>> {
    let mut archive = skeleton(stead_node);
    if let Some((layer, release)) = modules {
        add_modules(&mut archive, scratch, layer, release, extra)?;
    } else {
        archive.put(ORDER_FILE, 0o644, Node::File(Vec::new()));
    }
    Ok(archive.to_bytes())
}

/// Everything except the modules.
fn skeleton(stead_node: &[u8]) -> Archive {
    let mut archive = Archive::default();
    for dir in ["dev", "proc", "sys", "run", "newroot"] {
        archive.put(dir, 0o755, Node::Directory);
    }
    // The kernel opens the console for init before anything is mounted.
    archive.put("dev/console", 0o600, Node::CharDevice { major: 5, minor: 1 });
    archive.put("dev/null", 0o666, Node::CharDevice { major: 1, minor: 3 });
    archive.put("init", 0o755, Node::File(stead_node.to_vec()));
    archive
}

fn add_modules(
    archive: &mut Archive,
    scratch: &Scratch,
    layer: &Path,
    release: &str,
    extra: &[String],
) -> Result<()> {
    let prefix = format!("{}/{release}", crate::kernel::MODULES_DIR);
    let at = |file: &str| format!("{prefix}/{file}");
    let lists =
        extract(scratch, layer, "lists", ["dep", "builtin", "softdep"].map(|n| at(&format!("modules.{n}"))))?;
    let text =
        |name: &str| fs::read_to_string(lists.join(at(&format!("modules.{name}")))).unwrap_or_default();
    let index = ModuleIndex::parse(&text("dep"), &text("builtin"), &text("softdep"));
    let required = REQUIRED.iter().copied().chain(extra.iter().map(String::as_str));
    let order = index
        .load_order(required, OPTIONAL)
        .map_err(|e| ImageError::input("kernel.initrd_modules", format!("{e} (release {release})")))?;
    let files = extract(scratch, layer, "files", order.iter().map(|f| at(f)))?;
    let mut listing = String::new();
    for file in &order {
        let source = files.join(at(file));
        let (plain, bytes) = decompress(&source, file)?;
        let path = format!("lib/modules/{release}/{plain}");
        listing.push_str(&format!("/{path}\n"));
        archive.put(&path, 0o644, Node::File(bytes));
    }
    archive.put(ORDER_FILE, 0o644, Node::File(listing.into_bytes()));
    Ok(())
}

/// Unpacks some files of a layer.
fn extract(
    scratch: &Scratch,
    layer: &Path,
    name: &str,
    files: impl IntoIterator<Item = String>,
) -> Result<PathBuf> {
    let dir = scratch.path(name);
    let mut args: Vec<OsString> = vec![
        "-no-progress".into(),
        "-quiet".into(),
        "-no-xattrs".into(),
        "-d".into(),
        dir.clone().into(),
        layer.into(),
    ];
    args.extend(files.into_iter().map(OsString::from));
    Invocation::new(UNSQUASHFS, args).output()?;
    Ok(dir)
}

/// A module's name and decompressed bytes.
fn decompress(path: &Path, name: &str) -> Result<(String, Vec<u8>)> {
    let file = fs::File::open(path).at("open", path)?;
    let reader = crate::compression::decompressed(file).at("read", path)?;
    let mut bytes = Vec::new();
    reader.take(MAX_MODULE_BYTES + 1).read_to_end(&mut bytes).at("decompress", path)?;
    if bytes.len() as u64 > MAX_MODULE_BYTES {
        return Err(ImageError::Damaged {
            what: format!("module {name} has more than {MAX_MODULE_BYTES} bytes"),
        });
    }
    if !bytes.starts_with(b"\x7fELF") {
        return Err(ImageError::Damaged { what: format!("module {name} is not an ELF file") });
    }
    let plain = [".xz", ".zst", ".gz"].iter().find_map(|s| name.strip_suffix(s)).unwrap_or(name);
    Ok((plain.to_owned(), bytes))
}
