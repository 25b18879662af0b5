//! A VM, as described by its document.

use super::{
    Context, Disk, DocumentError, Graphics, Nic, Pci,
    xml::{Element, parse},
};
use crate::ids::{DatastoreId, DiskId, IdError, InstanceName, VmId};
use serde::Serialize;

/// Limits on CPUs and memory, more than any host has: larger values are mistakes.
const MAX_CPU: f64 = 100_000.0;

/// A VM.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Vm {
    /// Its number.
    pub id: VmId,
    /// Its instance: DEPLOY_ID, otherwise `one-<id>`.
    pub name: InstanceName,
    /// NAME, for people.
    pub label: String,
    /// CPU: shares of a core.
    pub cpu: Option<f64>,
    /// VCPU: visible cores.
    pub vcpu: Option<u64>,
    /// MEMORY.
    pub memory_mib: Option<u64>,
    /// CPUs of all NUMA nodes that it is pinned to, in order; empty: not pinned.
    pub pinned_cpus: Vec<u32>,
    /// Disks, in the order of the document.
    pub disks: Vec<Disk>,
    /// The root disk.
    pub root: Option<DiskId>,
    /// Network interfaces.
    pub nics: Vec<Nic>,
    /// PCI devices.
    pub pci: Vec<Pci>,
    /// The context disk.
    pub context: Option<Context>,
    /// The console.
    pub graphics: Option<Graphics>,
    /// DATA of RAW of type lxd or incus.
    pub raw: Option<String>,
    /// LXD_SECURITY_PRIVILEGED.
    pub privileged: Option<bool>,
    /// LXD_SECURITY_NESTING.
    pub nesting: Option<bool>,
    /// LXD_PROFILE.
    pub profile: Option<String>,
    /// The system datastore its directory is in, by the newest history record.
    pub datastore: Option<DatastoreId>,
}

impl Vm {
    /// Whether it was imported into OpenNebula: such an instance has another name, and no disks of OpenNebula.
    pub fn is_imported(&self) -> bool {
        self.name.vm() != Some(self.id)
    }
    /// The disk with this number.
    pub fn disk(&self, id: DiskId) -> Option<&Disk> {
        self.disks.iter().find(|d| d.id == id)
    }
}

/// Parses a document: a `<VM>`, or one that contains a `<VM>`. Returns the VM and the text of its element, which is
/// kept with the instance.
///
/// # Errors
/// [`DocumentError`].
pub fn read(text: &str) -> Result<(Vm, String), DocumentError> {
    let document = parse(text)?;
    let root = document.root_element();
    let vm = if root.has_tag_name("VM") {
        root
    } else if root.has_tag_name("VMM_DRIVER_ACTION_DATA") {
        Element(Some(root)).child("VM").0.ok_or(DocumentError::Missing("VM"))?
    } else {
        return Err(DocumentError::Root(root.tag_name().name().chars().take(80).collect()));
    };
    Ok((of(Element(Some(vm)))?, kept(vm, text)))
}

/// The text of a VM's element without what the driver never reads: the user's own attributes and the context's. They may be
/// megabytes, and whatever is kept with an instance is in each answer of the engine about it.
fn kept(vm: roxmltree::Node<'_, '_>, text: &str) -> String {
    let of = |parent: &'static str| vm.descendants().find(move |n| n.has_tag_name(parent)).into_iter();
    let dropped = |parent: &'static str, is_read: fn(&str) -> bool| {
        let elements = of(parent).flat_map(|n| n.children()).filter(roxmltree::Node::is_element);
        elements.filter(move |n| !is_read(n.tag_name().name())).map(|n| n.range())
    };
    let user = dropped("USER_TEMPLATE", |name| name.starts_with("LXD_"));
    let context = dropped("CONTEXT", |name| matches!(name, "DISK_ID" | "TARGET"));
    let mut ranges: Vec<_> = user.chain(context).collect();
    ranges.sort_by_key(|r| r.start);
    let (mut kept, mut from) = (String::new(), vm.range().start);
    for range in ranges {
        kept.push_str(text.get(from..range.start).unwrap_or_default());
        from = range.end.max(from);
    }
    kept.push_str(text.get(from..vm.range().end).unwrap_or_default());
    kept
}

fn of(vm: Element<'_>) -> Result<Vm, DocumentError> {
    let template = vm.child("TEMPLATE");
    let user = vm.child("USER_TEMPLATE");
    let id: VmId = match (vm.value("ID")?, template.value("VMID")?) {
        (Some(a), Some(b)) if a != b => {
            return Err(DocumentError::TwoVms(format!("ID is {a}, VMID is {b}")));
        }
        (Some(id), _) | (None, Some(id)) => id,
        (None, None) => return Err(DocumentError::Missing("VM/ID")),
    };
    // Before it is deployed, DEPLOY_ID is empty.
    let name = vm.value("DEPLOY_ID")?.unwrap_or_else(|| InstanceName::of(id));
    if let Some(other) = name.vm().filter(|other| *other != id) {
        return Err(DocumentError::TwoVms(format!("ID is {id}, DEPLOY_ID is one-{other}")));
    }
    let disks = template.children("DISK").map(|d| Disk::of(id, d)).collect::<Result<Vec<_>, _>>()?;
    let nics = template.children("NIC").map(Nic::of).collect::<Result<Vec<_>, _>>()?;
    let context = Context::of(template.child("CONTEXT"))?;
    let mut taken: Vec<DiskId> = disks.iter().map(|d| d.id).chain(context.iter().map(|c| c.disk)).collect();
    taken.sort_unstable();
    if let Some(twice) = taken.windows(2).find(|w| w[0] == w[1]) {
        return Err(DocumentError::Twice(format!("DISK_ID {}", twice[0])));
    }
    let mut taken: Vec<_> = nics.iter().map(|n| n.id).collect();
    taken.sort_unstable();
    if let Some(twice) = taken.windows(2).find(|w| w[0] == w[1]) {
        return Err(DocumentError::Twice(format!("NIC_ID {}", twice[0])));
    }
    let history = vm.child("HISTORY_RECORDS").children("HISTORY").map(|h| Ok((h.number("SEQ")?, h)));
    let newest = history.collect::<Result<Vec<_>, DocumentError>>()?.into_iter().max_by_key(|(seq, _)| *seq);
    Ok(Vm {
        id,
        name,
        label: vm.text("NAME").unwrap_or_default(),
        cpu: cpu(template)?,
        vcpu: positive(template, "VCPU")?,
        memory_mib: positive(template, "MEMORY")?,
        pinned_cpus: pinned_cpus(template)?,
        root: root_disk(template, &disks)?,
        disks,
        nics,
        pci: template.children("PCI").map(Pci::of).collect::<Result<Vec<_>, _>>()?,
        context,
        graphics: template
            .children("GRAPHICS")
            .find(|g| g.text("TYPE").is_some_and(|t| t.eq_ignore_ascii_case("vnc")))
            .map(Graphics::of)
            .transpose()?
            .flatten(),
        raw: template
            .children("RAW")
            .find(|r| {
                let kind = r.text("TYPE").unwrap_or_default();
                kind.eq_ignore_ascii_case("lxd") || kind.eq_ignore_ascii_case("incus")
            })
            .and_then(|r| r.text("DATA")),
        privileged: flag(user, "LXD_SECURITY_PRIVILEGED")?,
        nesting: flag(user, "LXD_SECURITY_NESTING")?,
        profile: user.text("LXD_PROFILE").map(profile).transpose()?,
        datastore: newest.map(|(_, h)| h.value("DS_ID")).transpose()?.flatten(),
    })
}

fn cpu(template: Element<'_>) -> Result<Option<f64>, DocumentError> {
    let Some(text) = template.text("CPU") else { return Ok(None) };
    match text.parse::<f64>() {
        Ok(cpu) if cpu > 0.0 && cpu <= MAX_CPU => Ok(Some(cpu)),
        _ => Err(IdError::new("CPU", &text, "a number above 0").into()),
    }
}

fn positive(template: Element<'_>, name: &'static str) -> Result<Option<u64>, DocumentError> {
    match template.number(name)? {
        Some(0) => Err(IdError::new(name, "0", "a number above 0").into()),
        other => Ok(other),
    }
}

fn flag(user: Element<'_>, name: &'static str) -> Result<Option<bool>, DocumentError> {
    let Some(text) = user.text(name) else { return Ok(None) };
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "1" => Ok(Some(true)),
        "false" | "no" | "0" => Ok(Some(false)),
        _ => Err(IdError::new(name, &text, "true or false").into()),
    }
}

/// Profiles' names become part of a URL's path; the engines allow nearly all others.
fn profile(name: String) -> Result<String, DocumentError> {
    if name.contains('/') || name.starts_with('.') || name.len() > 63 || name.chars().any(char::is_control) {
        return Err(IdError::new("LXD_PROFILE", &name, "a profile's name").into());
    }
    Ok(name)
}

/// CPUs of every NUMA_NODE, each `0,4` or `0-3`.
fn pinned_cpus(template: Element<'_>) -> Result<Vec<u32>, DocumentError> {
    let mut cpus = Vec::new();
    for node in template.children("NUMA_NODE") {
        let Some(text) = node.text("CPUS") else { continue };
        let error = || IdError::new("NUMA_NODE/CPUS", &text, "numbers of CPUs");
        for part in text.split(',').map(str::trim) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |t: &str| t.parse::<u16>().map(u32::from).map_err(|_| error());
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(error().into());
            }
            cpus.extend(first..=last);
        }
    }
    cpus.sort_unstable();
    cpus.dedup();
    Ok(cpus)
}

/// The first disk in OS/BOOT, otherwise the first suitable one. BOOT is like `disk10,nic0,disk2`.
fn root_disk(template: Element<'_>, disks: &[Disk]) -> Result<Option<DiskId>, DocumentError> {
    let boot = template.child("OS").text("BOOT").unwrap_or_default();
    for entry in boot.split(',').map(str::trim) {
        if let Some(number) = entry.strip_prefix("disk") {
            let id: DiskId = number.parse()?;
            if !disks.iter().any(|d| d.id == id && !d.is_swap()) {
                return Err(IdError::new("OS/BOOT", entry, "a disk of the VM that can be root").into());
            }
            return Ok(Some(id));
        }
    }
    Ok(disks.iter().find(|d| !d.is_swap()).map(|d| d.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_says_the_same_and_is_small() {
        let large = "x".repeat(100_000);
        let text = format!(
            "<VM><ID>7</ID><TEMPLATE><DISK><DISK_ID>0</DISK_ID></DISK><CONTEXT><DISK_ID>1</DISK_ID><START_SCRIPT>{large}\
             </START_SCRIPT><TARGET>hda</TARGET></CONTEXT></TEMPLATE><USER_TEMPLATE><A><B>{large}</B></A>\
             <LXD_SECURITY_NESTING>yes</LXD_SECURITY_NESTING><C/></USER_TEMPLATE></VM>"
        );
        let (vm, kept) = read(&text).unwrap();
        assert!(kept.len() < 400, "{kept}");
        assert_eq!(read(&kept).unwrap(), (vm, kept));
    }
}
