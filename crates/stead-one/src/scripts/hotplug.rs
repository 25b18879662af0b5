//! Attaching and detaching of disks and network interfaces.

use super::{Call, Job, Parsed, Running, ScriptError, Words, Work, nothing};
use crate::{
    disks::program,
    document::{Disk, Nic, Vm},
    engine::{EngineError, kept_document},
    ids::{DiskId, InstanceName},
    instance::{self, DOCUMENT_KEY, Facts},
};
use stead_incus::{Dialect, types::Config};

/// `attach_disk`: for the disk in the document that has ATTACH=YES.
#[derive(Debug)]
struct AttachDisk {
    name: InstanceName,
}

/// Reads the arguments of [`AttachDisk`].
pub(super) fn parse_attach_disk(words: &Words<'_>) -> Parsed {
    Ok(Box::new(AttachDisk { name: words.instance(0)? }))
}

impl Work for AttachDisk {
    fn run<'c, 'l: 'c>(self: Box<Self>, call: Call<'c, 'l>) -> Running<'c> {
        Box::pin(call.on(self.name.clone(), async move |job| {
            let (vm, document) = job.document()?;
            job.attach_disk(&vm, &document).await.map(nothing)
        }))
    }
}

/// `detach_disk`: as [`AttachDisk`].
#[derive(Debug)]
struct DetachDisk {
    name: InstanceName,
}

/// Reads the arguments of [`DetachDisk`].
pub(super) fn parse_detach_disk(words: &Words<'_>) -> Parsed {
    Ok(Box::new(DetachDisk { name: words.instance(0)? }))
}

impl Work for DetachDisk {
    fn run<'c, 'l: 'c>(self: Box<Self>, call: Call<'c, 'l>) -> Running<'c> {
        Box::pin(call.on(self.name.clone(), async move |job| {
            let (vm, _) = job.document()?;
            job.detach_disk(&vm).await.map(nothing)
        }))
    }
}

/// `attach_nic`: for the interface in the document with this MAC.
#[derive(Debug)]
struct AttachNic {
    name: InstanceName,
    mac: String,
}

/// Reads the arguments of [`AttachNic`].
pub(super) fn parse_attach_nic(words: &Words<'_>) -> Parsed {
    Ok(Box::new(AttachNic { name: words.instance(0)?, mac: words.text(1).to_owned() }))
}

impl Work for AttachNic {
    fn run<'c, 'l: 'c>(self: Box<Self>, call: Call<'c, 'l>) -> Running<'c> {
        Box::pin(call.on(self.name.clone(), async move |job| {
            let (vm, document) = job.document()?;
            job.attach_nic(&vm, &document, &self.mac).await.map(nothing)
        }))
    }
}

/// `detach_nic`: as [`AttachNic`].
#[derive(Debug)]
struct DetachNic {
    name: InstanceName,
    mac: String,
}

/// Reads the arguments of [`DetachNic`].
pub(super) fn parse_detach_nic(words: &Words<'_>) -> Parsed {
    Ok(Box::new(DetachNic { name: words.instance(0)?, mac: words.text(1).to_owned() }))
}

impl Work for DetachNic {
    fn run<'c, 'l: 'c>(self: Box<Self>, call: Call<'c, 'l>) -> Running<'c> {
        Box::pin(call.on(self.name.clone(), async move |job| {
            let (vm, _) = job.document()?;
            job.detach_nic(&vm, &self.mac).await.map(nothing)
        }))
    }
}

impl Job<'_, '_> {
    fn hotplugged<'v>(&self, vm: &'v Vm, action: &'static str) -> Result<&'v Disk, ScriptError> {
        if vm.is_imported() {
            return Err(ScriptError::Imported { action, name: self.name.clone() });
        }
        vm.disks.iter().find(|d| d.attach).ok_or_else(|| ScriptError::NoDevice("disk with ATTACH=YES".into()))
    }

    pub(super) async fn attach_disk(&mut self, vm: &Vm, document: &str) -> Result<(), ScriptError> {
        let disk = self.hotplugged(vm, "attaching a disk")?;
        if disk.is_swap() {
            self.log.info(format_args!("disk {} is swap, which a container cannot use: skipped", disk.id));
            return Ok(());
        }
        let instance = self.instance().await?;
        let privileged = instance.expanded_config.get("security.privileged").is_some_and(|v| v == "true");
        let mut mapper = self.mapper()?;
        let at = self.place.mountpoint(&self.name, disk.id);
        let mapped = mapper.map(vm, disk, &at)?;
        let mut facts = Facts::default();
        facts.mountpoints.insert(disk.id, at);
        facts.mapped(disk.id, &mapped, self.engine.shifts);
        // LXD 5.0 cannot shift the owners of nested mounts while the instance runs, and after the attempt cannot attach
        // the disk at all.
        let one_only = self.engine.client.dialect() == Dialect::Lxd && instance.status == "Running";
        if one_only {
            facts.nested.remove(&disk.id);
        }
        let mut device = instance::disk_device(disk, &facts, privileged).unwrap_or_default();
        // The kept document tells the next start which disks there are.
        let kept = instance::encode(document);
        let mut attached = self.insert(disk.id, &device, &kept).await;
        self.say_notes(&mut mapper);
        if let Err(error) = &attached
            && error.is_shift_refused()
        {
            self.log.debug(error);
            self.give(disk.id).await?;
            device.remove("shift");
            attached = self.insert(disk.id, &device, &kept).await;
        }
        if let Err(error) = attached {
            mapper.unmap(disk.id)?;
            return Err(error.into());
        }
        // The engines add only one filesystem to a running instance, `recursive` or not.
        if !mapped.inside.is_empty() {
            self.log.info(format_args!(
                "disk {}: its other partitions are visible in the instance from its next {} on",
                disk.id,
                if one_only { "deploy" } else { "start" },
            ));
        }
        Ok(())
    }

    async fn insert(&self, disk: DiskId, device: &Config, kept: &str) -> Result<(), EngineError> {
        let name = instance::disk_name(disk);
        self.engine
            .change(&self.name, |config, devices| {
                devices.insert(name.clone(), device.clone());
                config.insert(DOCUMENT_KEY.to_owned(), kept.to_owned());
            })
            .await
    }

    pub(super) async fn detach_disk(&mut self, vm: &Vm) -> Result<(), ScriptError> {
        let disk = self.hotplugged(vm, "detaching a disk")?;
        let name = instance::disk_name(disk.id);
        let instance = self.instance().await?;
        let without = kept_document(&instance, &self.name)?
            .and_then(|(_, text)| forget(&text, "DISK", "DISK_ID", &disk.id.to_string()));
        self.engine
            .change(&self.name, |config, devices| {
                devices.remove(&name);
                if let Some(text) = &without {
                    config.insert(DOCUMENT_KEY.to_owned(), instance::encode(text));
                }
            })
            .await?;
        self.mapper()?.unmap(disk.id)?;
        Ok(())
    }

    pub(super) async fn attach_nic(&mut self, vm: &Vm, document: &str, mac: &str) -> Result<(), ScriptError> {
        let nic = nic_of(vm, mac)?;
        let device = instance::nic_device(nic)?;
        // The kept document tells which ports are removed when the instance stops.
        let kept = (!vm.is_imported()).then(|| instance::encode(document));
        self.engine
            .change(&self.name, |config, devices| {
                devices.insert(nic.name(), device.clone());
                config.extend(kept.iter().map(|kept| (DOCUMENT_KEY.to_owned(), kept.clone())));
            })
            .await?;
        Ok(())
    }

    pub(super) async fn detach_nic(&mut self, vm: &Vm, mac: &str) -> Result<(), ScriptError> {
        let mac = crate::document::hardware_address(mac)?;
        let nic = nic_of(vm, &mac).ok();
        let instance = self.instance().await?;
        let without = kept_document(&instance, &self.name)?
            .zip(nic)
            .and_then(|((_, text), nic)| forget(&text, "NIC", "NIC_ID", &nic.id.to_string()));
        self.engine
            .change(&self.name, |config, devices| {
                devices.retain(|_, d| {
                    d.get("type").is_none_or(|t| t != "nic")
                        || d.get("hwaddr").is_none_or(|m| !m.eq_ignore_ascii_case(&mac))
                });
                if let Some(text) = &without {
                    config.insert(DOCUMENT_KEY.to_owned(), instance::encode(text));
                }
            })
            .await?;
        if let Some(nic) = nic {
            self.drop_port(nic);
        }
        Ok(())
    }

    /// Removes the Open vSwitch port, which outlives its interface.
    pub(super) fn drop_port(&mut self, nic: &Nic) {
        let (true, Some(bridge), Some(target)) = (nic.open_vswitch, &nic.bridge, &nic.target) else { return };
        if let Err(error) = program("ovs-vsctl").args(["--if-exists", "del-port", bridge, target]).run() {
            self.log.error(stead_os::chain(&error));
        }
    }
}

fn nic_of<'v>(vm: &'v Vm, mac: &str) -> Result<&'v Nic, ScriptError> {
    let found = vm.nics.iter().find(|n| n.mac.as_ref().is_some_and(|m| m.eq_ignore_ascii_case(mac)));
    found.ok_or_else(|| ScriptError::NoDevice(format!("NIC with the MAC {mac:.40}")))
}

/// The document without one of its devices; `None` if it does not have it.
fn forget(document: &str, device: &str, number: &str, id: &str) -> Option<String> {
    let tree = roxmltree::Document::parse(document).ok()?;
    let is_it = |c: roxmltree::Node<'_, '_>| c.has_tag_name(number) && c.text().map(str::trim) == Some(id);
    let node = tree.descendants().find(|n| n.has_tag_name(device) && n.children().any(is_it))?;
    let range = node.range();
    Some(format!("{}{}", &document[..range.start], &document[range.end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_removed_from_documents() {
        let text = "<VM><ID>7</ID><TEMPLATE><NIC><NIC_ID>1</NIC_ID></NIC><DISK><DISK_ID><![CDATA[0]]></DISK_ID></DISK><DISK><A>é</A><DISK_ID>1</DISK_ID></DISK></TEMPLATE></VM>";
        let without = forget(text, "DISK", "DISK_ID", "1").unwrap();
        assert_eq!(
            without,
            "<VM><ID>7</ID><TEMPLATE><NIC><NIC_ID>1</NIC_ID></NIC><DISK><DISK_ID><![CDATA[0]]></DISK_ID></DISK></TEMPLATE></VM>"
        );
        assert_eq!(forget(&without, "DISK", "DISK_ID", "1"), None);
        let without = forget(&without, "NIC", "NIC_ID", "1").unwrap();
        assert!(!without.contains("NIC") && crate::document::read(&without).is_ok());
    }
}
