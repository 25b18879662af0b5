//! PCI devices: a container cannot have one, but it can have the device nodes of the host's driver.

use crate::document::Pci;
use serde::Serialize;
use std::path::{Path, PathBuf};
use stead_incus::types::{Config, Devices};

/// First two digits of the class of display controllers.
const DISPLAY: &str = "03";

/// The host's device at a PCI address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct HostPci {
    /// Its class, hexadecimal, as in sysfs: `0x030000`.
    pub class: String,
    /// Whether its driver provides a graphics device (DRM).
    pub graphics: bool,
    /// Character devices of its driver.
    pub characters: Vec<PathBuf>,
}

/// A PCI device that cannot be given to the instance.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// It does not exist.
    #[error("the host has no PCI device {0}")]
    Absent(String),
    /// It exists, but its driver provides no device node.
    #[error(
        "PCI device {address} (class {class}) cannot be given to a container: the host's driver offers neither graphics nor a character device for it"
    )]
    NoNode {
        /// Its address.
        address: String,
        /// Its class.
        class: String,
    },
}

/// The instance's devices for a PCI device.
pub(super) fn devices(pci: &Pci, host: Option<&HostPci>) -> Result<Devices, PciError> {
    let host = host.ok_or_else(|| PciError::Absent(pci.address.clone()))?;
    let name = |n: usize| format!("pci-{}-{n}", pci.address.replace([':', '.'], "-"));
    let is_display = host.class.trim_start_matches("0x").starts_with(DISPLAY);
    if is_display && host.graphics {
        let gpu = [("type", "gpu"), ("gputype", "physical"), ("pci", pci.address.as_str())];
        let gpu: Config = gpu.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        return Ok(Devices::from([(name(0), gpu)]));
    }
    if host.characters.is_empty() {
        return Err(PciError::NoNode { address: pci.address.clone(), class: host.class.clone() });
    }
    let unix_char = |path: &PathBuf| {
        let path = path.display().to_string();
        Config::from([
            ("type".to_owned(), "unix-char".to_owned()),
            ("source".to_owned(), path.clone()),
            ("path".to_owned(), path),
        ])
    };
    Ok(host.characters.iter().enumerate().map(|(n, path)| (name(n), unix_char(path))).collect())
}

impl HostPci {
    /// Looks at an address under `sys` (`/sys`); `None`: there is no device.
    pub fn observe(sys: &Path, address: &str) -> Option<Self> {
        let device = sys.join("bus/pci/devices").join(address);
        let class = std::fs::read_to_string(device.join("class")).ok()?.trim().to_owned();
        let mut characters = Vec::new();
        nodes(&device, 0, &mut characters);
        characters.sort();
        Some(Self { class, graphics: device.join("drm").is_dir(), characters })
    }
}

/// Device nodes below a device: each directory with `dev` and, in `uevent`, a name below /dev. Block devices, in the
/// subsystem `block`, are left out.
fn nodes(directory: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    // device/class/node, or one bus in between.
    const DEEPEST: usize = 4;
    if depth > DEEPEST || found.len() >= 64 {
        return;
    }
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        // Links lead out of the device, and `block` has no character devices.
        if !entry.file_type().is_ok_and(|t| t.is_dir()) || entry.file_name() == "block" {
            continue;
        }
        if path.join("dev").is_file()
            && let Ok(uevent) = std::fs::read_to_string(path.join("uevent"))
            && let Some(name) = uevent.lines().find_map(|l| l.strip_prefix("DEVNAME="))
            && !name.contains("..")
        {
            found.push(Path::new("/dev").join(name));
        }
        nodes(&path, depth + 1, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_device_is_what_its_driver_provides() {
        let sys = tempfile::tempdir().unwrap();
        let device = sys.path().join("bus/pci/devices/0000:01:00.0");
        let node = device.join("qat/qat_dev0");
        fs::create_dir_all(&node).unwrap();
        fs::create_dir_all(device.join("block/nvme0n1")).unwrap();
        fs::write(device.join("class"), "0x0b4000\n").unwrap();
        fs::write(node.join("dev"), "240:0\n").unwrap();
        fs::write(node.join("uevent"), "MAJOR=240\nMINOR=0\nDEVNAME=qat_dev0\n").unwrap();
        fs::write(device.join("block/nvme0n1/dev"), "259:0\n").unwrap();
        fs::write(device.join("block/nvme0n1/uevent"), "DEVNAME=nvme0n1\n").unwrap();
        let found = HostPci::observe(sys.path(), "0000:01:00.0").unwrap();
        assert_eq!(found.characters, [Path::new("/dev/qat_dev0")]);
        assert!(!found.graphics);
        assert_eq!(HostPci::observe(sys.path(), "0000:02:00.0"), None);
    }
}
