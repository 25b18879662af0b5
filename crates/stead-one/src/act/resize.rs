//! resize (CPU and memory) and resize_disk, of a running instance.

use super::{ActError, Job};
use crate::{
    document::Vm,
    engine::{kept_document, root_pool},
    ids::DiskId,
    instance, raw,
};
use stead_incus::types::Config;

impl Job<'_, '_> {
    pub(super) async fn resize(&mut self, vm: &Vm) -> Result<(), ActError> {
        let mut config = Config::new();
        instance::limits(vm, &mut config);
        // RAW stays over the template.
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

    pub(super) async fn resize_disk(&mut self, disk: DiskId, size_mib: u64) -> Result<(), ActError> {
        let instance = self.instance().await?;
        let Some((vm, _)) = kept_document(&instance, &self.name)?.filter(|(vm, _)| !vm.is_imported()) else {
            return Err(ActError::Imported { action: "growing a disk", name: self.name.clone() });
        };
        let pool = root_pool(&instance).unwrap_or("default");
        let at = self.mountpoint(&vm, disk, pool);
        self.mapper()?.grow(disk, &at, size_mib).await?;
        Ok(())
    }
}
