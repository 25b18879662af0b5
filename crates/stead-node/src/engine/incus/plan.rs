//! What is to be done to make the engine as wanted, given what is there. Pure.

use super::{
    disk::{Content, Disk},
    preseed::Preseed,
};
use serde::Serialize;
use std::path::PathBuf;
use stead_incus::types::{Config, Devices, Network, Profile, Project, StoragePool};

/// One change. Doing it twice does no harm, or the second time it is not planned.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // The fields are those of the API.
pub enum Step {
    /// Change server settings.
    SetConfig { config: Config },
    /// Take an unused pool's filesystem away.
    WipeDisk { device: PathBuf },
    /// Remove what is left of a pool that the engine does not know.
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
    /// Become the first member.
    Bootstrap { member: String },
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Observed {
    /// A member of a cluster.
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
    /// The disk carries a pool that holds no instance, image or volume.
    pub disk_unused: bool,
    /// Directories of pools that the engine does not know, and whether they hold files: it was killed while it made
    /// them, and will not make them again over these.
    pub leftovers: Vec<(PathBuf, bool)>,
    /// Where the engine has its pools.
    pub pools_directory: PathBuf,
}

/// There is no way from here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Somebody's data.
    #[error(
        "storage disk {0} carries something that is no pool of this engine: wipe it (wipefs -a) if it may go"
    )]
    DiskForeign(PathBuf),
    /// A pool with contents that this engine does not know.
    #[error(
        "storage disk {0} carries a pool with data that this engine does not know: recover it (admin recover) or wipe it (wipefs -a)"
    )]
    DiskInUse(PathBuf),
    /// Files in the directory of a pool that this engine does not know.
    #[error("{0} holds files of a storage pool that this engine does not know: move them away")]
    LeftoverInUse(PathBuf),
    /// A pool of the name has another driver.
    #[error("storage pool {name} is {found}, not {wanted}")]
    PoolDriver {
        /// Pool.
        name: String,
        /// Its driver.
        found: String,
        /// The preseed's.
        wanted: String,
    },
    /// A server with pools in use cannot join.
    #[error("storage pool {name} is used by {by}: a server that joins may have none")]
    PoolInUse {
        /// Pool.
        name: String,
        /// The first user.
        by: String,
    },
}

/// To become the first member of a cluster as the preseed wants it. Nothing when it is clustered already: bootstrap
/// comes last, so then all was done.
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
    // As the engines' own tool: networks of the default project, projects, the other networks.
    remove_leftovers(observed, &mut steps)?;
    plan_networks(wanted, observed, true, &mut steps);
    plan_projects(wanted, observed, &mut steps);
    plan_networks(wanted, observed, false, &mut steps);
    plan_pools(wanted, observed, &mut steps)?;
    plan_profiles(wanted, observed, &mut steps);
    steps.push(Step::Bootstrap { member: member.to_owned() });
    Ok(steps)
}

/// To be ready to join: no pool, no network, a blank disk. Nothing when it is clustered already.
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
        // After a crash the engine may have mounted it twice, and unmounts it once.
        steps.push(Step::RemoveLeftover { path: observed.pools_directory.join(&pool.name) });
    }
    if let Some(disk) = &observed.disk {
        // An unused pool of the engine that is deleted by the steps above leaves its filesystem behind.
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

/// Settings wanted that are not so.
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
                // Where a pool lives cannot be changed, and the engine rewrites it (to a UUID).
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
        // A new project comes with a profile `default`, which is not there yet when this is planned.
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
