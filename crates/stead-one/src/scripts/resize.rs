//! `resize` (CPU and memory) and `resize_disk` of a running instance.

use super::{Call, Job, Parsed, Running, ScriptError, Words, Work, nothing};
use crate::{
    document::Vm,
    engine::{kept_document, root_pool},
    ids::{DiskId, IdError, InstanceName},
    instance, raw,
};
use stead_incus::types::Config;

/// `resize`: CPU, VCPU and MEMORY are in the document.
#[derive(Debug)]
struct Resize {
    name: InstanceName,
}

/// Reads the arguments of [`Resize`].
pub(super) fn parse(words: &Words<'_>) -> Parsed {
    Ok(Box::new(Resize { name: words.instance(0)? }))
}

impl Work for Resize {
    fn run<'c, 'l: 'c>(self: Box<Self>, call: Call<'c, 'l>) -> Running<'c> {
        Box::pin(call.on(self.name.clone(), async move |job| {
            let (vm, _) = job.document()?;
            job.resize(&vm).await.map(nothing)
        }))
    }
}

/// `resize_disk`.
#[derive(Debug)]
struct ResizeDisk {
    name: InstanceName,
    disk: DiskId,
    size_mib: u64,
}

/// Reads the arguments of [`ResizeDisk`].
pub(super) fn parse_disk(words: &Words<'_>) -> Parsed {
    Ok(Box::new(ResizeDisk {
        name: words.instance(0)?,
        disk: words.read(1)?,
        size_mib: size(words.text(2))?,
    }))
}

impl Work for ResizeDisk {
    fn run<'c, 'l: 'c>(self: Box<Self>, call: Call<'c, 'l>) -> Running<'c> {
        Box::pin(call.on(self.name.clone(), async move |job| {
            job.resize_disk(self.disk, self.size_mib).await.map(nothing)
        }))
    }
}

fn size(text: &str) -> Result<u64, IdError> {
    text.parse().map_err(|_| IdError::new("the disk's size", text, "a number of megabytes"))
}

impl Job<'_, '_> {
    pub(super) async fn resize(&mut self, vm: &Vm) -> Result<(), ScriptError> {
        let mut config = Config::new();
        instance::limits(vm, &mut config);
        // RAW still overrides the template.
        if let Some(raw) = &vm.raw {
            for (key, value) in raw::parse(raw).map_err(instance::InstanceError::from)? {
                if let Some(limit) = config.get_mut(&key) {
                    *limit = value;
                }
            }
        }
        self.engine.patch(&self.name, &config).await?;
        Ok(())
    }

    pub(super) async fn resize_disk(&mut self, disk: DiskId, size_mib: u64) -> Result<(), ScriptError> {
        let instance = self.instance().await?;
        let Some((vm, _)) = kept_document(&instance, &self.name)?.filter(|(vm, _)| !vm.is_imported()) else {
            return Err(ScriptError::Imported { action: "growing a disk", name: self.name.clone() });
        };
        let pool = root_pool(&instance).unwrap_or("default");
        let at = self.mountpoint(&vm, disk, pool);
        self.mapper()?.grow(disk, &at, size_mib).await?;
        Ok(())
    }
}
