//! Instances that do not exist yet, as they would be if the server made them now.
//!
//! Owns what profiles and settings come to. Does not own where they go: that is `stead_placement::place`.

use crate::{facts::Facts, snapshot};
use stead_incus::{
    Client, Error,
    types::{Config, Devices, Profile},
};
use stead_placement::snapshot::{InstanceId, InstanceKind, Workload};

/// What all of a batch have in common, in the words of `incus launch`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Container or virtual machine.
    pub kind: InstanceKind,
    /// None: that of the server that answers.
    pub architecture: Option<String>,
    /// The project they are for.
    pub project: String,
    /// Names of profiles; later ones win.
    pub profiles: Vec<String>,
    /// Settings, which win over those of profiles.
    pub config: Config,
    /// Settings of devices, added to what profiles say of a device of that name.
    pub devices: Devices,
    /// The cluster group they are for.
    pub cluster_group: Option<String>,
}

/// The batch.
///
/// # Errors
/// A profile is not there, or the server does not answer.
pub async fn newcomers(
    client: &Client,
    facts: &Facts,
    names: &[String],
    asked: &Asked,
) -> Result<Vec<Workload>, Error> {
    let mut profiles = Vec::new();
    for name in &asked.profiles {
        profiles.push(client.profile(&asked.project, name).await?.value);
    }
    let native = client.server_info().await?.environment.architectures.first().cloned();
    let architecture = asked.architecture.clone().or(native).unwrap_or_default();
    let (config, devices) = expanded(&profiles, asked);
    // A share of memory is taken of the largest member: with less it would not have what it asks for.
    let largest =
        facts.members.iter().filter_map(|m| m.resources.as_ref()).map(|r| r.memory.total >> 20).max();
    let workload = |name: &String| {
        let id = InstanceId { project: asked.project.clone(), name: name.clone() };
        snapshot::workload(id, asked.kind, &architecture, &config, &devices, largest.unwrap_or(0))
    };
    Ok(names.iter().map(workload).collect())
}

/// As the server expands an instance: profile after profile, then its own.
fn expanded(profiles: &[Profile], asked: &Asked) -> (Config, Devices) {
    let mut config = Config::new();
    let mut devices = Devices::new();
    for profile in profiles {
        config.extend(profile.config.clone());
        devices.extend(profile.devices.clone());
    }
    config.extend(asked.config.clone());
    if let Some(group) = &asked.cluster_group {
        config.insert(snapshot::CLUSTER_GROUP.to_owned(), group.clone());
    }
    for (name, settings) in &asked.devices {
        devices.entry(name.clone()).or_default().extend(settings.clone());
    }
    (config, devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> Config {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn what_is_nearer_wins() {
        let root = |size: &str| map(&[("type", "disk"), ("path", "/"), ("pool", "local"), ("size", size)]);
        let profile = |config: &[(&str, &str)], size: &str| Profile {
            config: map(config),
            devices: Devices::from([("root".into(), root(size))]),
            ..Profile::default()
        };
        let profiles = [
            profile(&[("limits.memory", "1GiB"), ("limits.cpu", "2")], "5GiB"),
            profile(&[("limits.memory", "2GiB")], "6GiB"),
        ];
        let asked = Asked {
            kind: InstanceKind::Container,
            architecture: None,
            project: "default".into(),
            profiles: Vec::new(),
            config: map(&[("limits.cpu", "4")]),
            devices: Devices::from([("root".into(), map(&[("size", "7GiB")]))]),
            cluster_group: Some("gpu".into()),
        };
        let (config, devices) = expanded(&profiles, &asked);
        assert_eq!(
            config,
            map(&[("limits.cpu", "4"), ("limits.memory", "2GiB"), ("volatile.cluster.group", "gpu")])
        );
        assert_eq!(devices["root"], root("7GiB"));
        let id = InstanceId { project: "default".into(), name: "n".into() };
        let workload = snapshot::workload(id, asked.kind, "x86_64", &config, &devices, 4096);
        assert_eq!(
            (workload.limits.memory_mib, workload.limits.cpu_milli, workload.cluster_group.as_deref()),
            (Some(2048), Some(4000), Some("gpu"))
        );
        assert_eq!(workload.disk_mib.into_values().collect::<Vec<_>>(), [7 * 1024]);
    }
}
