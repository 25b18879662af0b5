//! Instances that do not exist yet, as the server would create them now.
//!
//! Owns how profiles and settings add up. Does not own where instances go: that is `stead_placement::place`.

use crate::{amounts, facts::Facts, snapshot};
use stead_incus::{
    Client, Error,
    types::{Config, Devices, Profile},
};
use stead_model::{Failure, FailureKind};
use stead_placement::snapshot::{InstanceId, InstanceKind, Workload};

/// Why the workloads of new instances cannot be determined.
#[derive(Debug, thiserror::Error)]
pub enum NewcomersError {
    /// A profile does not exist.
    #[error("project {project} has no profile {profile}")]
    NoProfile {
        /// The project.
        project: String,
        /// The name that was given.
        profile: String,
    },
    /// A limit or size is not an amount.
    #[error("{key}: {value:?} is not an amount that engines understand")]
    Amount {
        /// The setting.
        key: String,
        /// What was given.
        value: String,
    },
    /// The server does not answer.
    #[error("cannot {what}")]
    Ask {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<Error>,
    },
}

impl Failure for NewcomersError {
    fn failure_kind(&self) -> FailureKind {
        match self {
            Self::NoProfile { .. } | Self::Amount { .. } => FailureKind::BadInput,
            Self::Ask { source, .. } => source.failure_kind(),
        }
    }
}

/// What all of a batch have in common, in the words of `incus launch`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Container or virtual machine.
    pub kind: InstanceKind,
    /// That of the server that answers when absent.
    pub architecture: Option<String>,
    /// The project they are for.
    pub project: String,
    /// Names of profiles; later ones win.
    pub profiles: Vec<String>,
    /// Settings, which win over those of profiles.
    pub config: Config,
    /// Settings of devices, added to those in profiles for a device of that name.
    pub devices: Devices,
    /// The cluster group they are for.
    pub cluster_group: Option<String>,
}

impl Asked {
    /// Checks that limits and sizes are amounts: engines refuse others, and planning would ignore them.
    ///
    /// # Errors
    /// [`NewcomersError::Amount`].
    pub fn check(&self) -> Result<(), NewcomersError> {
        let is_amount = |key: &str, value: &str| match key {
            "limits.memory" => amounts::memory_mib(value, 1).is_some(),
            "limits.cpu" => amounts::cpu_milli(value).is_some(),
            "size" => amounts::bytes(value).is_some(),
            _ => true,
        };
        let settings = self.config.iter().map(|(key, value)| (key.clone(), value));
        let sizes = self
            .devices
            .iter()
            .flat_map(|(name, device)| device.iter().map(move |(key, value)| (name, key, value)))
            .filter(|(_, key, _)| *key == "size")
            .map(|(name, key, value)| (format!("{name},{key}"), value));
        for (key, value) in settings.chain(sizes) {
            let setting = key.rsplit(',').next().unwrap_or(&key);
            if !value.is_empty() && !is_amount(setting, value) {
                return Err(NewcomersError::Amount { key, value: value.clone() });
            }
        }
        Ok(())
    }
}

/// The batch as workloads.
///
/// # Errors
/// A profile does not exist, or the server does not answer.
pub async fn newcomers(
    client: &Client,
    facts: &Facts,
    names: &[String],
    asked: &Asked,
) -> Result<Vec<Workload>, NewcomersError> {
    let ask = |what| move |source| NewcomersError::Ask { what, source: Box::new(source) };
    let mut profiles = Vec::new();
    for name in &asked.profiles {
        let profile = client.profile(&asked.project, name).await.map_err(|e| match e.is_not_found() {
            true => NewcomersError::NoProfile { project: asked.project.clone(), profile: name.clone() },
            false => ask("ask for the instances' profiles")(e),
        })?;
        profiles.push(profile.value);
    }
    let server = client.server_info().await.map_err(ask("ask the server for its architectures"))?;
    let native = server.environment.architectures.first().cloned();
    let architecture = asked.architecture.clone().or(native).unwrap_or_default();
    let (config, devices) = expanded(&profiles, asked);
    // A share of memory is computed from the largest member: a smaller amount would not be what was asked for.
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
    fn amounts_are_amounts() {
        let asked = |config: &[(&str, &str)], size: &str| Asked {
            kind: InstanceKind::Container,
            architecture: None,
            project: "default".into(),
            profiles: Vec::new(),
            config: map(config),
            devices: Devices::from([("root".into(), map(&[("size", size)]))]),
            cluster_group: None,
        };
        asked(&[("limits.memory", "50%"), ("limits.cpu", "0-3"), ("user.size", "large")], "")
            .check()
            .unwrap();
        let error =
            |config: &[(&str, &str)], size: &str| asked(config, size).check().unwrap_err().to_string();
        assert_eq!(
            error(&[("limits.memory", "lots")], "1GiB"),
            "limits.memory: \"lots\" is not an amount that engines understand"
        );
        assert!(error(&[("limits.cpu", "-1")], "").starts_with("limits.cpu: "));
        assert!(error(&[], "10 gigs").starts_with("root,size: "));
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
