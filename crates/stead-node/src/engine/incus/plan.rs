//! The steps that bring the engine from its observed state to the wanted one. Pure.

use super::{
    disk::{Content, Disk},
    preseed::Preseed,
};
use serde::Serialize;
use std::path::PathBuf;
use stead_incus::types::{Config, Devices, Network, Profile, Project, StoragePool};

/// One change. Repeating it does no harm, or it is not planned a second time.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // The fields are those of the API.
pub enum Step {
    /// Change server settings.
    SetConfig { config: Config },
    /// Wipe an unused pool's filesystem.
    WipeDisk { device: PathBuf },
    /// Remove the remains of a pool that the engine does not know.
    RemoveLeftover { path: PathBuf },
    /// Make a pool.
    CreatePool { name: String, driver: String, config: Config, description: String },
    /// Change a pool's settings.
    PatchPool { name: String, config: Config },
    /// Delete a pool that a failed join left.
    DeletePool { name: String },
    /// Make a network.
    CreateNetwork { project: String, name: String, kind: String, config: Config, description: String },
    /// Change a network's settings.
    PatchNetwork { project: String, name: String, config: Config },
    /// Delete a network that a failed join left.
    DeleteNetwork { project: String, name: String },
    /// Make a project.
    CreateProject { name: String, config: Config, description: String },
    /// Change a project's settings.
    PatchProject { name: String, config: Config },
    /// Make a profile.
    CreateProfile { project: String, name: String, config: Config, devices: Devices, description: String },
    /// Change a profile.
    PatchProfile { project: String, name: String, config: Config, devices: Devices },
    /// Become the first member of a cluster.
    Bootstrap { member: String },
}

/// The observed state.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Observed {
    /// Whether it is a member of a cluster.
    pub clustered: bool,
    /// Server settings.
    pub config: Config,
    /// Pools.
    pub pools: Vec<StoragePool>,
    /// Managed networks, with their projects.
    pub networks: Vec<(String, Network)>,
    /// Projects.
    pub projects: Vec<Project>,
    /// Profiles, with their projects.
    pub profiles: Vec<(String, Profile)>,
    /// The storage disk.
    pub disk: Option<Disk>,
    /// Whether the disk has a pool without any instance, image or volume.
    pub disk_unused: bool,
    /// Directories of pools that the engine does not know, and whether they contain files: it was killed while it made
    /// them, and cannot make them again over these.
    pub leftovers: Vec<(PathBuf, bool)>,
    /// Directory of the engine's pools.
    pub pools_directory: PathBuf,
}

/// There is no plan from the observed state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The disk has other data.
    #[error(
        "storage disk {0} contains something other than a pool of this engine: wipe it (wipefs -a) if it is not needed"
    )]
    DiskForeign(PathBuf),
    /// A pool with contents that this engine does not know.
    #[error(
        "storage disk {0} contains a pool with data that this engine does not know: recover it (admin recover) or wipe it (wipefs -a)"
    )]
    DiskInUse(PathBuf),
    /// Files in the directory of a pool that this engine does not know.
    #[error("{0} contains files of a storage pool that this engine does not know: move them away")]
    LeftoverInUse(PathBuf),
    /// A pool of this name has another driver.
    #[error("storage pool {name} has the driver {found}, not {wanted}")]
    PoolDriver {
        /// Pool.
        name: String,
        /// Its driver.
        found: String,
        /// The preseed's.
        wanted: String,
    },
    /// A server with pools in use cannot join.
    #[error("storage pool {name} is used by {by}: a server that joins must not have pools in use")]
    PoolInUse {
        /// Pool.
        name: String,
        /// The first user.
        by: String,
    },
}

/// Steps to become the first member of a cluster as in the preseed. None if it is already clustered: bootstrap is the
/// last step, so everything was done.
///
/// # Errors
/// [`PlanError`].
pub fn init(wanted: &Preseed, member: &str, observed: &Observed) -> Result<Vec<Step>, PlanError> {
    if observed.clustered {
        return Ok(Vec::new());
    }
    let mut steps = Vec::new();
    let config = changed(&wanted.config, &observed.config);
    if !config.is_empty() {
        steps.push(Step::SetConfig { config });
    }
    // In the order of the engines' own tool: networks of the default project, projects, the other networks.
    remove_leftovers(observed, &mut steps)?;
    plan_networks(wanted, observed, true, &mut steps);
    plan_projects(wanted, observed, &mut steps);
    plan_networks(wanted, observed, false, &mut steps);
    plan_pools(wanted, observed, &mut steps)?;
    plan_profiles(wanted, observed, &mut steps);
    steps.push(Step::Bootstrap { member: member.to_owned() });
    Ok(steps)
}

/// Steps to be ready for a join: no pool, no network, a blank disk. None if it is already clustered.
///
/// # Errors
/// [`PlanError`].
pub fn before_join(observed: &Observed) -> Result<Vec<Step>, PlanError> {
    if observed.clustered {
        return Ok(Vec::new());
    }
    let mut steps = Vec::new();
    remove_leftovers(observed, &mut steps)?;
    for (project, network) in &observed.networks {
        steps.push(Step::DeleteNetwork { project: project.clone(), name: network.name.clone() });
    }
    for pool in &observed.pools {
        if let Some(by) = pool.used_by.first() {
            return Err(PlanError::PoolInUse { name: pool.name.clone(), by: by.clone() });
        }
        steps.push(Step::DeletePool { name: pool.name.clone() });
        // After a crash the engine may have mounted it twice, but unmounts it only once.
        steps.push(Step::RemoveLeftover { path: observed.pools_directory.join(&pool.name) });
    }
    if let Some(disk) = &observed.disk {
        // An unused pool that the steps above delete leaves its filesystem behind.
        make_blank(disk, observed.disk_unused || !observed.pools.is_empty(), &mut steps)?;
    }
    Ok(steps)
}

fn remove_leftovers(observed: &Observed, steps: &mut Vec<Step>) -> Result<(), PlanError> {
    for (path, holds_files) in &observed.leftovers {
        if *holds_files {
            return Err(PlanError::LeftoverInUse(path.clone()));
        }
        steps.push(Step::RemoveLeftover { path: path.clone() });
    }
    Ok(())
}

fn make_blank(disk: &Disk, unused: bool, steps: &mut Vec<Step>) -> Result<(), PlanError> {
    match &disk.content {
        Content::Blank => {}
        Content::HalfMade => steps.push(Step::WipeDisk { device: disk.device.clone() }),
        Content::Btrfs { .. } if unused => steps.push(Step::WipeDisk { device: disk.device.clone() }),
        Content::Btrfs { .. } => return Err(PlanError::DiskInUse(disk.device.clone())),
        Content::Other => return Err(PlanError::DiskForeign(disk.device.clone())),
    }
    Ok(())
}

/// The wanted settings that differ from the present ones.
fn changed(wanted: &Config, found: &Config) -> Config {
    wanted
        .iter()
        .filter(|(k, v)| found.get(*k).map_or("", String::as_str) != v.as_str())
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

fn plan_pools(wanted: &Preseed, observed: &Observed, steps: &mut Vec<Step>) -> Result<(), PlanError> {
    for pool in &wanted.storage_pools {
        match observed.pools.iter().find(|p| p.name == pool.name) {
            Some(found) if found.driver != pool.driver => {
                return Err(PlanError::PoolDriver {
                    name: pool.name.clone(),
                    found: found.driver.clone(),
                    wanted: pool.driver.clone(),
                });
            }
            Some(found) => {
                // A pool's source cannot be changed, and the engine rewrites it to a UUID.
                let mut config = changed(&pool.config, &found.config);
                config.retain(|k, _| !super::preseed::MEMBER_POOL_KEYS.contains(&k.as_str()));
                if !config.is_empty() {
                    steps.push(Step::PatchPool { name: pool.name.clone(), config });
                }
            }
            None => {
                if let Some(disk) = &observed.disk
                    && pool.config.get("source").is_some_and(|s| disk.device.as_os_str() == s.as_str())
                {
                    make_blank(disk, observed.disk_unused, steps)?;
                }
                steps.push(Step::CreatePool {
                    name: pool.name.clone(),
                    driver: pool.driver.clone(),
                    config: pool.config.clone(),
                    description: pool.description.clone(),
                });
            }
        }
    }
    Ok(())
}

fn plan_networks(wanted: &Preseed, observed: &Observed, default_project: bool, steps: &mut Vec<Step>) {
    for n in wanted.networks.iter().filter(|n| (n.project == "default") == default_project) {
        let (project, name) = (n.project.clone(), n.name.clone());
        match observed.networks.iter().find(|(p, f)| *p == project && f.name == name) {
            Some((_, found)) => {
                let config = changed(&n.config, &found.config);
                if !config.is_empty() {
                    steps.push(Step::PatchNetwork { project, name, config });
                }
            }
            None => steps.push(Step::CreateNetwork {
                project,
                name,
                kind: n.kind.clone(),
                config: n.config.clone(),
                description: n.description.clone(),
            }),
        }
    }
}

fn plan_projects(wanted: &Preseed, observed: &Observed, steps: &mut Vec<Step>) {
    for p in &wanted.projects {
        match observed.projects.iter().find(|f| f.name == p.name) {
            Some(found) => {
                let config = changed(&p.config, &found.config);
                if !config.is_empty() {
                    steps.push(Step::PatchProject { name: p.name.clone(), config });
                }
            }
            None => steps.push(Step::CreateProject {
                name: p.name.clone(),
                config: p.config.clone(),
                description: p.description.clone(),
            }),
        }
    }
}

fn plan_profiles(wanted: &Preseed, observed: &Observed, steps: &mut Vec<Step>) {
    for p in &wanted.profiles {
        let (project, name) = (p.project.clone(), p.name.clone());
        // A new project comes with a profile `default`, which does not exist yet at the time of planning.
        let born_with_project = name == "default";
        match observed.profiles.iter().find(|(q, f)| *q == project && f.name == name) {
            None if !born_with_project => steps.push(Step::CreateProfile {
                project,
                name,
                config: p.config.clone(),
                devices: p.devices.clone(),
                description: p.description.clone(),
            }),
            found => {
                let found = found.map(|(_, f)| f);
                let config = changed(&p.config, found.map_or(&Config::new(), |f| &f.config));
                let devices: Devices = p
                    .devices
                    .iter()
                    .filter(|(k, v)| found.and_then(|f| f.devices.get(*k)) != Some(*v))
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect();
                if !config.is_empty() || !devices.is_empty() {
                    steps.push(Step::PatchProfile { project, name, config, devices });
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
