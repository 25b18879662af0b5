//! How much a move copies: what the engine does not say by itself is asked for, of the instances that are to be moved.
//!
//! Owns where to ask, and in which order. Does not own what an unknown size means: placement prices it, and a limit on the
//! rate refuses it.

use crate::{facts::Facts, ground::project_of, shell::Shell, snapshot::disks};
use std::collections::BTreeMap;
use stead_incus::{Client, Error, Feature, types::Instance};
use stead_placement::snapshot::InstanceId;

/// What is known of a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// MiB; none if unknown.
    pub mib: Option<u64>,
    /// MiB that it is at least.
    pub at_least_mib: u64,
}

/// Asks for the size of an instance's root disk, if its pool is local: attached volumes stay where they are. Images that
/// were asked for are kept in `images`.
///
/// # Errors
/// The cluster does not answer. That a server cannot measure is not an error.
pub async fn ask(
    client: &Client,
    facts: &Facts,
    shell: &dyn Shell,
    images: &mut Images,
    instance: &Instance,
) -> Result<Size, Error> {
    for (device, pool, limit) in disks(&instance.expanded_devices) {
        let is_root = instance.expanded_devices[device].get("path").is_some_and(|p| p == "/");
        if is_root && !facts.ground.is_shared(pool) {
            let size = of_root(client, shell, images, pool, instance).await?;
            // A limit is the most that is copied.
            return Ok(Size { mib: size.mib.or((limit > 0).then_some(limit)), ..size });
        }
    }
    Ok(Size { mib: Some(0), at_least_mib: 0 })
}

/// What can be known of a root disk in a pool.
///
/// # Errors
/// As [`ask`].
pub async fn of_root(
    client: &Client,
    shell: &dyn Shell,
    images: &mut Images,
    pool: &str,
    instance: &Instance,
) -> Result<Size, Error> {
    let measured = match of_volume(client, pool, instance).await? {
        Some(mib) => Some(mib),
        None => by_du(client, shell, pool, instance).await,
    };
    let at_least_mib = match measured {
        Some(mib) => mib,
        None => of_image(client, images, instance).await?,
    };
    Ok(Size { mib: measured, at_least_mib })
}

async fn of_volume(client: &Client, pool: &str, instance: &Instance) -> Result<Option<u64>, Error> {
    if !client.has(Feature::VolumeState).await? {
        return Ok(None);
    }
    let (project, name) = (project_of(instance), &instance.name);
    let kind = if instance.kind == "virtual-machine" { "virtual-machine" } else { "container" };
    match client.volume_state(pool, project, kind, name, Some(&instance.location)).await {
        Ok(state) => Ok(state.usage.map(|u| u.used).filter(|used| *used > 0).map(mib)),
        // A driver that does not measure says so in several ways.
        Err(Error::Api { .. } | Error::Shape { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

/// By `du` on the member. Sparse files and shared extents make it too large rather than too small.
async fn by_du(client: &Client, shell: &dyn Shell, pool: &str, instance: &Instance) -> Option<u64> {
    if !shell.reaches(&instance.location) {
        return None;
    }
    let directory = client.dialect().facts().directory;
    let path = volume_path(directory, pool, instance)?;
    let mut argv = ["du", "-s", "-k", path.as_str()].map(str::to_owned).to_vec();
    if instance.snapshots.as_ref().is_some_and(|s| !s.is_empty()) {
        // They are copied too.
        argv.push(snapshots_path(&path));
    }
    let ran = shell.run(&instance.location, &argv).await.ok().filter(|ran| ran.code == 0)?;
    let kib = ran.stdout.lines().map(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Some(kib.sum::<Option<u64>>()?.div_ceil(1 << 10))
}

/// Where a pool keeps the volume of an instance on its member: `<directory>/storage-pools/POOL/containers/NAME`, the name
/// prefixed by a project other than `default`. None if a name is no name.
pub fn volume_path(directory: &str, pool: &str, instance: &Instance) -> Option<String> {
    let project = project_of(instance);
    let plain = |name: &str| !name.is_empty() && !name.contains('/') && !name.starts_with('.');
    if ![pool, project, &instance.name].into_iter().all(plain) {
        return None;
    }
    let kind = if instance.kind == "virtual-machine" { "virtual-machines" } else { "containers" };
    let name = match project {
        "default" => instance.name.clone(),
        project => format!("{project}_{}", instance.name),
    };
    Some(format!("{directory}/storage-pools/{pool}/{kind}/{name}"))
}

/// Where a pool keeps the snapshots of the volume at `path`.
pub fn snapshots_path(path: &str) -> String {
    path.replacen("/containers/", "/containers-snapshots/", 1).replacen(
        "/virtual-machines/",
        "/virtual-machines-snapshots/",
        1,
    )
}

/// The size of the image that an instance was made from, compressed: it has at least that much.
async fn of_image(client: &Client, images: &mut Images, instance: &Instance) -> Result<u64, Error> {
    let project = project_of(instance);
    let Some(fingerprint) = instance.config.get("volatile.base_image") else { return Ok(0) };
    let key = (project.to_owned(), fingerprint.clone());
    if let Some(known) = images.get(&key) {
        return Ok(*known);
    }
    let size = match client.image(project, fingerprint).await {
        Ok(image) => mib(image.value.size),
        // The image may be gone, and only the instance be left.
        Err(Error::Api { .. } | Error::Shape { .. } | Error::NoETag { .. }) => 0,
        Err(e) => return Err(e),
    };
    images.insert(key, size);
    Ok(size)
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// Sizes of images in MiB, by project and fingerprint.
pub type Images = BTreeMap<(String, String), u64>;

/// Sizes that were asked for.
pub type Sizes = BTreeMap<InstanceId, Size>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_where_the_engine_keeps_it() {
        let at = |project: &str, kind: &str, name: &str| {
            let instance = Instance {
                name: name.into(),
                project: project.into(),
                kind: kind.into(),
                ..Instance::default()
            };
            volume_path("/var/lib/incus", "default", &instance)
        };
        assert_eq!(
            at("", "container", "c1").as_deref(),
            Some("/var/lib/incus/storage-pools/default/containers/c1")
        );
        assert_eq!(
            at("web", "virtual-machine", "v1").as_deref(),
            Some("/var/lib/incus/storage-pools/default/virtual-machines/web_v1")
        );
        assert_eq!(
            [at("", "container", "../x"), at("a/b", "container", "c"), at("", "container", "")],
            [None, None, None]
        );
    }
}
