//! What must hold before an instance is stopped for a move: it may be moved, and will start at its target.
//!
//! Owns the questions of a single move, asked when it begins. What planning already knew is asked again, because time has
//! passed. Limits of projects are not asked for: engines do not count a move within the cluster against them.

use crate::{
    ground::{Ground, project_of},
    power,
    shell::{NoShell, Shell},
    size::{self, Size, volume_path},
    snapshot::{disks, unmovable},
};
use std::{collections::BTreeMap, fmt};
use stead_incus::{
    Client, Error,
    types::{Instance, Member},
};
use stead_placement::{
    plan::Move,
    snapshot::{Bar, PoolName},
};

/// Why a move must not begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// It may not be moved at all.
    Unmovable(&'static str),
    /// The engine moves no instance that has backups.
    Backups(usize),
    /// The target would refuse it.
    Barred(Bar),
    /// The target lacks a pool.
    NoPool(String),
    /// The target lacks a network of the engine.
    NoNetwork(String),
    /// The pool is too full.
    NoSpace {
        /// The pool.
        pool: String,
        /// MiB that are free.
        free_mib: u64,
        /// MiB that it has at least.
        needs_mib: u64,
    },
}

impl Obstacle {
    /// Whether another member may not have it, and planning sees it.
    pub fn is_of_the_target(&self) -> bool {
        matches!(self, Self::Barred(_) | Self::NoPool(_) | Self::NoNetwork(_))
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unmovable(why) => f.write_str(why),
            Self::Backups(n) => {
                write!(f, "it has {n} backups, and the engine moves no instance that has any")
            }
            Self::Barred(bar) => write!(f, "the target {bar}"),
            Self::NoPool(pool) => write!(f, "the target has no pool {pool}"),
            Self::NoNetwork(network) => write!(f, "the target has no network {network}"),
            Self::NoSpace { pool, free_mib, needs_mib } => {
                write!(f, "the target has {free_mib} MiB free in pool {pool}, and it needs {needs_mib} MiB")
            }
        }
    }
}

/// Everything in the way of a move.
///
/// # Errors
/// The cluster does not answer.
pub async fn obstacles(
    client: &Client,
    shell: &dyn Shell,
    instance: &Instance,
    planned: &Move,
    members: &[Member],
) -> Result<Vec<Obstacle>, Error> {
    let mut found: Vec<Obstacle> = unmovable(instance).map(Obstacle::Unmovable).into_iter().collect();
    let full = client.instance_full(project_of(instance), &instance.name).await?;
    let backups = full.backups.map_or(0, |b| b.len());
    if backups > 0 {
        found.push(Obstacle::Backups(backups));
    }
    let to = planned.to.0.as_str();
    let ground = Ground::gather(client, &[to], &[instance]).await?;
    let target = members.iter().find(|m| m.server_name == to);
    found.extend(target.and_then(|m| ground.bar(instance, m)).map(Obstacle::Barred));
    let here = |locations: &[String]| locations.is_empty() || locations.iter().any(|l| l == to);
    for (device, pool, _) in disks(&instance.expanded_devices) {
        if !ground.pools.iter().any(|p| p.name == pool && here(&p.locations)) {
            found.push(Obstacle::NoPool(pool.to_owned()));
            continue;
        }
        let is_root = instance.expanded_devices[device].get("path").is_some_and(|p| p == "/");
        if is_root && !ground.is_shared(pool) {
            found.extend(space(client, planned, instance, pool).await?);
            let bar = Obstacle::Barred(Bar::LeftOver(PoolName(pool.to_owned())));
            if !found.contains(&bar) && is_on_disk(client, shell, to, pool, instance).await {
                found.push(bar);
            }
        }
    }
    for network in instance.expanded_devices.values().filter_map(|d| d.get("network")) {
        if !ground.networks.iter().any(|n| n.name == *network && here(&n.locations)) {
            found.push(Obstacle::NoNetwork(network.clone()));
        }
    }
    Ok(found)
}

/// Whether something is already where the target would put the instance's volume, though the database does not know of it.
/// Asked where programs can be run.
async fn is_on_disk(
    client: &Client,
    shell: &dyn Shell,
    member: &str,
    pool: &str,
    instance: &Instance,
) -> bool {
    let path = volume_path(client.dialect().facts().directory, pool, instance);
    let Some(path) = path.filter(|_| shell.reaches(member)) else { return false };
    let argv = ["test", "-e", path.as_str()].map(str::to_owned);
    shell.run(member, &argv).await.is_ok_and(|ran| ran.code == 0)
}

/// Whether the target's pool is too full, as far as the size is known.
async fn space(
    client: &Client,
    planned: &Move,
    instance: &Instance,
    pool: &str,
) -> Result<Option<Obstacle>, Error> {
    let needs_mib = match planned.size_mib {
        Some(mib) => mib,
        None if planned.at_least_mib > 0 => planned.at_least_mib,
        None => {
            let Size { mib, at_least_mib } =
                size::of_root(client, &NoShell, &mut BTreeMap::new(), pool, instance).await?;
            mib.unwrap_or(at_least_mib)
        }
    };
    let space = client.storage_space(pool, Some(&planned.to.0)).await?.space;
    let free_mib = space.total.saturating_sub(space.used) >> 20;
    let lacks = space.total > 0 && free_mib < needs_mib;
    Ok(lacks.then(|| Obstacle::NoSpace { pool: pool.to_owned(), free_mib, needs_mib }))
}

/// Whether an instance must be stopped for a move, and how it can be moved while it runs: live, or by refreshed copies.
pub fn ways(instance: &Instance, refresh: bool) -> (bool, bool) {
    if !power::may_run(instance) {
        return (false, false);
    }
    let container = instance.kind != "virtual-machine";
    (crate::snapshot::moves_live(instance), container && refresh)
}
