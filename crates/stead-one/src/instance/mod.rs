//! From a VM's document to the instance that is asked of the engine.
//!
//! Owns every choice of the mapping, as a function of the document and of what is so on this host and server
//! ([`Facts`]). Does not own the disks' way to their mountpoints ([`crate::disks`]).
//!
//! Precedence: RAW over the template over the profile. What the template says is written as the instance's own setting,
//! which the engines put over those of profiles; RAW replaces what was written.

mod pci;

pub use pci::{HostPci, PciError};

use crate::{
    disks::{Mapped, plan},
    document::{Disk, DiskLimits, Nic, Vm},
    ids::DiskId,
    raw::{self, RawError},
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};
use stead_incus::types::{Config, Devices};

/// Whether monitoring is to tell of an instance: one of [`Shown`].
pub const STATUS_KEY: &str = "user.one_status";
/// Values of [`STATUS_KEY`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// A script is at work on it, and what it is in between is nobody's concern.
    Busy,
    /// Told as it is.
    Yes,
    /// Saved: OpenNebula expects nothing of it, for however long.
    Saved,
}

impl Shown {
    /// As it is written.
    pub fn value(self) -> &'static str {
        match self {
            Self::Busy => "0",
            Self::Yes => "1",
            Self::Saved => "saved",
        }
    }
    /// Of an instance's settings; what OpenNebula's own driver or nobody wrote is told.
    pub fn of(config: &Config) -> Self {
        let value = config.get(STATUS_KEY).map(String::as_str);
        [Self::Busy, Self::Saved].into_iter().find(|s| value == Some(s.value())).unwrap_or(Self::Yes)
    }
}

/// The base64 of the VM's document.
pub const DOCUMENT_KEY: &str = "user.xml";
/// The map of user ids that the root filesystem was left with.
pub const IDMAP_KEY: &str = "volatile.last_state.idmap";
/// Whether the engine starts it with the host.
const AUTOSTART_KEY: &str = "boot.autostart";
/// The map of files that carry no shifted owners.
const UNSHIFTED: &str = "[]";
/// The profile that everything falls back to; both engines always have it.
const DEFAULT_PROFILE: &str = "default";

/// What the mapping has to know of the host and the server.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Profiles of the server.
    pub profiles: BTreeSet<String>,
    /// Storage pool that the instance's own directory is made in.
    pub pool: String,
    /// Member of the cluster that runs here; absent: not clustered.
    pub member: Option<String>,
    /// Where each disk but root is mounted on the host, the context disk among them.
    pub mountpoints: BTreeMap<DiskId, PathBuf>,
    /// Disks whose owners can be shifted to those of an unprivileged instance.
    pub shiftable: BTreeSet<DiskId>,
    /// Disks with further filesystems mounted into them.
    pub nested: BTreeSet<DiskId>,
    /// What the host has at the PCI addresses of the document.
    pub pci: BTreeMap<String, HostPci>,
    /// Map of user ids kept from the last time.
    pub idmap: Option<String>,
}

impl Facts {
    /// What the mapping of a disk showed; `shifts`: the engine can shift owners.
    pub fn mapped(&mut self, disk: DiskId, mapped: &Mapped, shifts: bool) {
        let mut all = std::iter::once(&mapped.filesystem).chain(&mapped.inside);
        if shifts && all.all(|kind| plan::is_shiftable(kind)) {
            self.shiftable.insert(disk);
        }
        if !mapped.inside.is_empty() {
            self.nested.insert(disk);
        }
    }
}

/// An instance as it is asked of the engine. It is made empty: its root filesystem is mounted into it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// Its profile.
    pub profiles: Vec<String>,
    /// Its own settings.
    pub config: Config,
    /// Its own devices.
    pub devices: Devices,
}

/// The document asks for an instance that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// RAW is broken.
    #[error(transparent)]
    Raw(#[from] RawError),
    /// A PCI device cannot be given to a container.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// An interface that hangs nowhere.
    #[error("NIC {0} has no BRIDGE")]
    NoBridge(String),
    /// There is no disk that could be root.
    #[error("VM {0} has no disk to be its root filesystem")]
    NoRoot(crate::ids::VmId),
    /// Two devices at one place.
    #[error("two disks of the VM are to be at {}", .0.display())]
    SamePath(PathBuf),
}

/// The instance that a document asks for, and what should be said about it in the log.
///
/// # Errors
/// [`InstanceError`].
pub fn wanted(vm: &Vm, document: &str, facts: &Facts) -> Result<(Wanted, Vec<String>), InstanceError> {
    let mut notes = Vec::new();
    let mut config = Config::new();
    limits(vm, &mut config);
    config.insert("security.privileged".into(), vm.privileged.unwrap_or(false).to_string());
    config.insert("security.nesting".into(), vm.nesting.unwrap_or(false).to_string());
    // Without it LXD takes what is mounted into an empty instance for shifted already.
    config.insert(IDMAP_KEY.into(), facts.idmap.clone().unwrap_or_else(|| UNSHIFTED.to_owned()));
    if let Some(raw) = &vm.raw {
        config.extend(raw::parse(raw)?);
    }
    // After a reboot of the host its disks are not mounted: the engine must not start what OpenNebula has not deployed.
    if config
        .insert(AUTOSTART_KEY.into(), "false".into())
        .is_some_and(|asked| asked != "false" && asked != "0")
    {
        notes.push(format!(
            "{AUTOSTART_KEY} of RAW is not used: after a reboot of its host, OpenNebula starts the VM, with its disks"
        ));
    }
    // These are how the driver finds its own again: not even RAW may set them otherwise.
    config.insert(STATUS_KEY.into(), Shown::Busy.value().into());
    config.insert(DOCUMENT_KEY.into(), encode(document));

    let privileged = config.get("security.privileged").is_some_and(|v| v == "true" || v == "1");
    let mut devices = Devices::new();
    for nic in &vm.nics {
        devices.insert(nic.name(), nic_device(nic)?);
    }
    let root = vm.root.ok_or(InstanceError::NoRoot(vm.id))?;
    for disk in vm.disks.iter().filter(|d| !d.is_swap()) {
        if disk.id == root {
            devices.insert("root".into(), root_device(disk, &facts.pool));
        } else if let Some(device) = disk_device(disk, facts, privileged) {
            devices.insert(disk_name(disk.id), device);
        }
    }
    if let Some(swap) = vm.disks.iter().find(|d| d.is_swap()) {
        notes.push(format!("disk {} is swap, which a container cannot use: skipped", swap.id));
    }
    if let Some(source) = vm.context.as_ref().and_then(|c| facts.mountpoints.get(&c.disk)) {
        devices.insert("context".into(), context_device(source));
    }
    distinct(&devices)?;
    for device in &vm.pci {
        devices.extend(pci::devices(device, facts.pci.get(&device.address))?);
    }

    let profile = match &vm.profile {
        Some(name) if facts.profiles.contains(name) => name.clone(),
        Some(name) => {
            notes.push(format!("profile {name:?} is not known to the server: {DEFAULT_PROFILE} is used"));
            DEFAULT_PROFILE.to_owned()
        }
        None => DEFAULT_PROFILE.to_owned(),
    };
    Ok((Wanted { name: vm.name.to_string(), profiles: vec![profile], config, devices }, notes))
}

/// A document as it is kept with its instance.
pub fn encode(document: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(document)
}

/// The user on the host that root of an unprivileged instance is, by the map that its next start uses.
pub fn host_root(config: &Config) -> Option<u32> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Range {
        isuid: bool,
        hostid: u32,
        nsid: u32,
    }
    let ranges: Vec<Range> = serde_json::from_str(config.get("volatile.idmap.next")?).ok()?;
    ranges.iter().find(|r| r.isuid && r.nsid == 0).map(|r| r.hostid)
}

/// CPU and memory: all that `resize` changes.
pub fn limits(vm: &Vm, config: &mut Config) {
    if let Some(memory_mib) = vm.memory_mib {
        // LXD reads MB as 10^6 bytes.
        config.insert("limits.memory".into(), format!("{memory_mib}MiB"));
    }
    if let Some(cpu) = vm.cpu {
        // Rounded: 0.29 * 100 is 28.99… in floating point. 0 % would mean no limit.
        config.insert("limits.cpu.allowance".into(), format!("{}%", ((cpu * 100.0).round() as u64).max(1)));
    }
    if let Some(cpus) = pinned(&vm.pinned_cpus) {
        config.insert("limits.cpu".into(), cpus);
    } else if let Some(vcpu) = vm.vcpu {
        config.insert("limits.cpu".into(), vcpu.to_string());
    }
}

/// CPUs as the engines read them: a single number is a count, so a single CPU is written as a range.
fn pinned(cpus: &[u32]) -> Option<String> {
    match cpus {
        [] => None,
        [one] => Some(format!("{one}-{one}")),
        many => Some(many.iter().map(u32::to_string).collect::<Vec<_>>().join(",")),
    }
}

/// The device of an interface.
///
/// # Errors
/// It has no bridge.
pub fn nic_device(nic: &Nic) -> Result<Config, InstanceError> {
    let bridge = nic.bridge.as_ref().ok_or_else(|| InstanceError::NoBridge(nic.id.to_string()))?;
    let mut device = Config::from([
        ("type".to_owned(), "nic".to_owned()),
        ("nictype".to_owned(), "bridged".to_owned()),
        ("name".to_owned(), nic.name()),
        ("parent".to_owned(), bridge.clone()),
    ]);
    if let Some(target) = &nic.target {
        device.insert("host_name".into(), target.clone());
    }
    if let Some(mac) = &nic.mac {
        device.insert("hwaddr".into(), mac.clone());
    }
    // OpenNebula counts bytes, the engines bits.
    for (key, kbytes) in [("limits.ingress", nic.inbound_kbytes), ("limits.egress", nic.outbound_kbytes)] {
        if let Some(kbytes) = kbytes.filter(|k| *k > 0) {
            device.insert(key.into(), format!("{}kbit", kbytes.saturating_mul(8)));
        }
    }
    Ok(device)
}

/// Name of the device of a disk that is not root.
pub fn disk_name(id: DiskId) -> String {
    format!("disk{id}")
}

fn root_device(disk: &Disk, pool: &str) -> Config {
    let mut device = Config::from([
        ("type".to_owned(), "disk".to_owned()),
        ("path".to_owned(), "/".to_owned()),
        ("pool".to_owned(), pool.to_owned()),
    ]);
    io_limits(&disk.limits, &mut device);
    if disk.readonly {
        device.insert("readonly".into(), "true".into());
    }
    device
}

/// The device of a disk that is not root; `None` when it is not mounted.
pub fn disk_device(disk: &Disk, facts: &Facts, privileged: bool) -> Option<Config> {
    let source = facts.mountpoints.get(&disk.id)?;
    let path = disk.target.clone().unwrap_or_else(|| PathBuf::from(format!("/media/{}", disk.id)));
    let mut device = Config::from([
        ("type".to_owned(), "disk".to_owned()),
        ("source".to_owned(), source.display().to_string()),
        ("path".to_owned(), path.display().to_string()),
    ]);
    // The engines give only the uppermost filesystem otherwise, and refuse both at once: those of a disk that cannot be
    // written are mounted read-only on the host already.
    if facts.nested.contains(&disk.id) {
        device.insert("recursive".into(), "true".into());
    } else if disk.readonly {
        device.insert("readonly".into(), "true".into());
    }
    // Without it root in an unprivileged instance is nobody on the disk.
    if !privileged && facts.shiftable.contains(&disk.id) {
        device.insert("shift".into(), "true".into());
    }
    io_limits(&disk.limits, &mut device);
    Some(device)
}

/// The device of the context disk.
pub fn context_device(source: &std::path::Path) -> Config {
    Config::from([
        ("type".to_owned(), "disk".to_owned()),
        ("source".to_owned(), source.display().to_string()),
        ("path".to_owned(), "/context".to_owned()),
        ("readonly".to_owned(), "true".to_owned()),
    ])
}

/// A total wins over reads and writes, bytes win over operations: the engines take one limit for each direction.
fn io_limits(limits: &DiskLimits, device: &mut Config) {
    let limit = |bytes: Option<u64>, iops: Option<u64>| {
        let bytes = bytes.filter(|b| *b > 0).map(|b| b.to_string());
        bytes.or_else(|| iops.filter(|i| *i > 0).map(|i| format!("{i}iops")))
    };
    if let Some(total) = limit(limits.total_bytes, limits.total_iops) {
        device.insert("limits.max".into(), total);
        return;
    }
    for (key, bytes, iops) in [
        ("limits.read", limits.read_bytes, limits.read_iops),
        ("limits.write", limits.write_bytes, limits.write_iops),
    ] {
        if let Some(limit) = limit(bytes, iops) {
            device.insert(key.into(), limit);
        }
    }
}

fn distinct(devices: &Devices) -> Result<(), InstanceError> {
    let mut paths = BTreeSet::new();
    for path in devices.values().filter_map(|d| d.get("path")) {
        if !paths.insert(path) {
            return Err(InstanceError::SamePath(PathBuf::from(path)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_of_an_instance_is_somebody_on_the_host() {
        let map = r#"[{"Isuid":true,"Isgid":false,"Hostid":1000000,"Nsid":0,"Maprange":65536},{"Isuid":false,"Isgid":true,"Hostid":1000000,"Nsid":0,"Maprange":65536}]"#;
        let config = Config::from([("volatile.idmap.next".to_owned(), map.to_owned())]);
        assert_eq!(host_root(&config), Some(1_000_000));
        assert_eq!(host_root(&Config::new()), None);
    }

    #[test]
    fn a_disk_with_partitions_is_given_with_what_is_mounted_into_it() {
        let text = "<VM><ID>7</ID><TEMPLATE><DISK><DISK_ID>0</DISK_ID></DISK><DISK><DISK_ID>1</DISK_ID></DISK>\
                    <DISK><DISK_ID>2</DISK_ID><READONLY>YES</READONLY></DISK></TEMPLATE></VM>";
        let vm = crate::document::read(text).unwrap().0;
        let device = |id: u32, filesystem: &str, inside: &[&str]| {
            let (disk, at) = (vm.disk(DiskId(id)).unwrap(), PathBuf::from("/at"));
            let mut facts = Facts::default();
            facts.mountpoints.insert(disk.id, at.clone());
            let inside = inside.iter().map(|f| (*f).to_owned()).collect();
            facts.mapped(disk.id, &Mapped { at, filesystem: filesystem.into(), inside }, true);
            let device = disk_device(disk, &facts, false).unwrap();
            ["recursive", "readonly", "shift"].map(|key| device.contains_key(key))
        };
        assert_eq!(device(1, "ext4", &[]), [false, false, true]);
        assert_eq!(device(1, "ext4", &["xfs"]), [true, false, true]);
        assert_eq!(device(1, "ext4", &["vfat"]), [true, false, false]);
        assert_eq!(device(2, "ext4", &[]), [false, true, true]);
        assert_eq!(device(2, "ext4", &["ext4"]), [true, false, true]);
    }
}
