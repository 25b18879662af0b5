//! What members have that instances need: volumes, interfaces, projects. A member that lacks something is barred to the
//! instance.
//!
//! Owns the requests, and the rule of each [`Bar`], which planning and the preflight of a move share. Does not own amounts
//! (that is placement) or the requests of a single move (that is [`crate::preflight`]).

use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use stead_incus::{
    Client, Error, Feature, Scope, requests,
    types::{Config, Devices, Instance, Member, Network, Project, StoragePool, Volume},
};
use stead_placement::snapshot::{Bar, MemberName, PoolName};

/// Storage that every member reaches: moving an instance in it copies nothing (Incus: "Remote storage").
const SHARED_DRIVERS: [&str; 6] = ["ceph", "cephfs", "cephobject", "lvmcluster", "linstor", "truenas"];

/// Requests at the same time.
const AT_ONCE: usize = 8;

/// The volumes of a pool.
#[derive(Debug, Clone, Default)]
pub struct Volumes {
    all: Vec<Volume>,
    /// (of an instance or custom, member, project, name without a snapshot's).
    at: HashSet<(bool, String, String, String)>,
}

impl Volumes {
    /// From a list of them.
    pub fn new(all: Vec<Volume>) -> Self {
        let key = |v: &Volume| {
            let of_instance = is_of_instance(v);
            (of_instance || v.kind == "custom").then(|| {
                (
                    of_instance,
                    v.location.clone(),
                    project_or_default(&v.project).to_owned(),
                    base(&v.name).to_owned(),
                )
            })
        };
        let at = all.iter().filter_map(key).collect();
        Self { all, at }
    }

    fn has(&self, of_instance: bool, member: &str, project: &str, name: &str) -> bool {
        self.at.contains(&(of_instance, member.to_owned(), project.to_owned(), name.to_owned()))
    }
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Ground {
    /// Storage pools.
    pub pools: Vec<StoragePool>,
    /// Volumes of the pools that are local to members, by pool.
    pub volumes: BTreeMap<String, Volumes>,
    /// Networks of all projects.
    pub networks: Vec<Network>,
    /// Projects.
    pub projects: Vec<Project>,
    /// Members without an interface that a device of some instance is attached to: (member, interface).
    pub without_parent: BTreeSet<(String, String)>,
}

impl Ground {
    /// Asks for what these instances need on these members, which must be online.
    ///
    /// # Errors
    /// The cluster does not answer.
    pub async fn gather(client: &Client, members: &[&str], instances: &[&Instance]) -> Result<Self, Error> {
        let (pools, projects) = (client.storage_pools().await?, client.projects().await?);
        let networks = networks_of(client, &projects).await?;
        let mut volumes = BTreeMap::new();
        for pool in pools.iter().filter(|p| !is_shared(p)) {
            volumes.insert(pool.name.clone(), Volumes::new(volumes_of(client, &pool.name, &projects).await?));
        }
        let parents: BTreeSet<&str> = instances.iter().flat_map(|i| parents(&i.expanded_devices)).collect();
        let mut without_parent = BTreeSet::new();
        if !parents.is_empty() && client.has(Feature::NetworkState).await? {
            let pairs = members.iter().flat_map(|m| parents.iter().map(move |p| (*m, *p)));
            let found: Vec<Option<(String, String)>> = stream::iter(pairs)
                .map(|(member, parent)| async move {
                    match client.network_state("default", parent, Some(member)).await {
                        Err(e) if e.is_not_found() => Ok(Some((member.to_owned(), parent.to_owned()))),
                        // Not every kind of interface has a state: what cannot be asked is no obstacle.
                        Ok(_) | Err(Error::Api { .. } | Error::Shape { .. }) => Ok(None),
                        Err(e) => Err(e),
                    }
                })
                .buffered(AT_ONCE)
                .try_collect()
                .await?;
            without_parent = found.into_iter().flatten().collect();
        }
        Ok(Self { pools, volumes, networks, projects, without_parent })
    }

    /// Whether a pool is reached by every member.
    pub fn is_shared(&self, pool: &str) -> bool {
        self.pools.iter().any(|p| p.name == pool && is_shared(p))
    }

    /// Why a member, other than its own, may not accept an instance.
    pub fn bar(&self, instance: &Instance, member: &Member) -> Option<Bar> {
        let name = member.server_name.as_str();
        let project = project_of(instance);
        if self.projects.iter().any(|p| p.name == project && excludes(&p.config, member)) {
            return Some(Bar::Project(project.to_owned()));
        }
        for (pool, source) in disks(&instance.expanded_devices) {
            let Some(volumes) = self.volumes.get(pool) else { continue };
            match source.map(base) {
                Some(volume) if !volumes.has(false, name, self.volume_project(project), volume) => {
                    return Some(Bar::Volume { pool: PoolName(pool.to_owned()), name: volume.to_owned() });
                }
                None if volumes.has(true, name, project, &instance.name) => {
                    return Some(Bar::LeftOver(PoolName(pool.to_owned())));
                }
                _ => {}
            }
        }
        parents(&instance.expanded_devices)
            .find(|parent| self.without_parent.contains(&(name.to_owned(), (*parent).to_owned())))
            .map(|parent| Bar::Parent(parent.to_owned()))
    }

    /// All bars of an instance.
    pub fn bars(&self, instance: &Instance, members: &[&Member]) -> BTreeMap<MemberName, Bar> {
        let others = members.iter().filter(|m| m.server_name != instance.location);
        others.filter_map(|m| Some((MemberName(m.server_name.clone()), self.bar(instance, m)?))).collect()
    }

    /// Volumes that carry the name of an instance on another member than the instance's, with their pools.
    pub fn left_overs<'a>(&'a self, instances: &'a [Instance]) -> Vec<(&'a str, &'a Volume, &'a Instance)> {
        let known: HashMap<(&str, &str), &Instance> =
            instances.iter().map(|i| ((project_of(i), i.name.as_str()), i)).collect();
        let mut found = Vec::new();
        for (pool, volumes) in &self.volumes {
            for v in volumes.all.iter().filter(|v| is_of_instance(v) && !v.name.contains('/')) {
                let of = known.get(&(project_or_default(&v.project), v.name.as_str()));
                if let Some(i) = of.filter(|i| !v.location.is_empty() && v.location != i.location) {
                    found.push((pool.as_str(), v, *i));
                }
            }
        }
        found
    }

    /// The project that keeps the custom volumes of a project.
    fn volume_project<'a>(&self, project: &'a str) -> &'a str {
        let own = self
            .projects
            .iter()
            .find(|p| p.name == project)
            .and_then(|p| p.config.get("features.storage.volumes"))
            .is_none_or(|v| v == "true");
        if own { project } else { "default" }
    }
}

async fn networks_of(client: &Client, projects: &[Project]) -> Result<Vec<Network>, Error> {
    if client.has(Feature::NetworksAllProjects).await? {
        return client.list(&requests::networks::list(Scope::AllProjects)).await;
    }
    let mut all = Vec::new();
    for project in projects {
        // Projects without networks of their own list those of the default project; duplicates do no harm.
        all.extend(client.networks(&project.name).await?);
    }
    Ok(all)
}

async fn volumes_of(client: &Client, pool: &str, projects: &[Project]) -> Result<Vec<Volume>, Error> {
    if client.has(Feature::VolumesAllProjects).await? {
        return client.volumes(pool, Scope::AllProjects).await;
    }
    let mut all = Vec::new();
    for project in projects {
        for mut volume in client.volumes(pool, Scope::Project(&project.name)).await? {
            if volume.project.is_empty() {
                volume.project.clone_from(&project.name);
            }
            all.push(volume);
        }
    }
    Ok(all)
}

/// Whether a pool is reached by every member.
pub fn is_shared(pool: &StoragePool) -> bool {
    SHARED_DRIVERS.contains(&pool.driver.as_str())
}

/// The project of an instance.
pub fn project_of(instance: &Instance) -> &str {
    project_or_default(&instance.project)
}

fn is_of_instance(volume: &Volume) -> bool {
    matches!(volume.kind.as_str(), "container" | "virtual-machine")
}

/// Old servers leave the project of a volume out.
fn project_or_default(project: &str) -> &str {
    if project.is_empty() { "default" } else { project }
}

/// The name of a volume without that of its snapshot.
fn base(name: &str) -> &str {
    name.split('/').next().unwrap_or(name)
}

/// Whether a project may not use a member (internal/server/project/permissions.go, AllowClusterMember).
fn excludes(project: &Config, member: &Member) -> bool {
    let restricted = project.get("restricted").is_some_and(|v| v == "true");
    let groups = project.get("restricted.cluster.groups").map_or("", String::as_str);
    let mut allowed = groups.split(',').map(str::trim).filter(|g| !g.is_empty()).peekable();
    restricted && allowed.peek().is_some() && !allowed.any(|g| member.groups.iter().any(|of| of == g))
}

/// Disks in pools: the pool, and the custom volume's name unless it is the root disk.
fn disks(devices: &Devices) -> impl Iterator<Item = (&str, Option<&str>)> {
    devices.values().filter(|d| d.get("type").is_some_and(|t| t == "disk")).filter_map(|d| {
        let pool = d.get("pool").map(String::as_str).filter(|p| !p.is_empty())?;
        Some((pool, d.get("source").map(String::as_str).filter(|s| !s.is_empty())))
    })
}

/// The members' interfaces that devices are attached to by name.
fn parents(devices: &Devices) -> impl Iterator<Item = &str> {
    devices
        .values()
        .filter(|d| d.get("type").is_some_and(|t| t == "nic") && d.contains_key("nictype"))
        .filter_map(|d| d.get("parent").map(String::as_str).filter(|p| !p.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> Config {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }
    fn volume(kind: &str, name: &str, location: &str) -> Volume {
        Volume {
            kind: kind.into(),
            name: name.into(),
            location: location.into(),
            project: "p".into(),
            ..Volume::default()
        }
    }
    fn member(name: &str, groups: &[&str]) -> Member {
        let groups = groups.iter().map(|g| (*g).to_owned()).collect();
        Member { server_name: name.into(), groups, ..Member::default() }
    }
    fn instance(devices: &[&[(&str, &str)]]) -> Instance {
        let devices = devices.iter().enumerate().map(|(n, d)| (format!("d{n}"), map(d)));
        Instance {
            name: "c1".into(),
            project: "p".into(),
            location: "a".into(),
            expanded_devices: devices.collect(),
            ..Instance::default()
        }
    }
    const ROOT: &[(&str, &str)] = &[("type", "disk"), ("path", "/"), ("pool", "local")];

    fn ground(volumes: Vec<Volume>, project: &[(&str, &str)]) -> Ground {
        Ground {
            volumes: BTreeMap::from([("local".into(), Volumes::new(volumes))]),
            projects: vec![Project { name: "p".into(), config: map(project), ..Project::default() }],
            without_parent: BTreeSet::from([("b".into(), "br7".into())]),
            ..Ground::default()
        }
    }

    #[test]
    fn what_only_the_source_has_bars_the_others() {
        let (a, b) = (member("a", &["default"]), member("b", &["default", "east"]));
        let data: &[(&str, &str)] =
            &[("type", "disk"), ("path", "/srv"), ("pool", "local"), ("source", "data/snap")];
        let with_data = instance(&[ROOT, data]);
        let lacking = ground(vec![volume("container", "c1", "a"), volume("custom", "data", "a")], &[]);
        let want = Bar::Volume { pool: PoolName("local".into()), name: "data".into() };
        assert_eq!(lacking.bar(&with_data, &b), Some(want.clone()));
        // A volume of another project is not its volume.
        let mut foreign = volume("custom", "data", "b");
        foreign.project = "other".into();
        assert_eq!(ground(vec![foreign], &[]).bar(&with_data, &b), Some(want));
        let has = ground(vec![volume("custom", "data", "b")], &[]);
        assert_eq!(has.bar(&with_data, &b), None);

        let nic: &[(&str, &str)] = &[("type", "nic"), ("nictype", "macvlan"), ("parent", "br7")];
        assert_eq!(has.bar(&instance(&[ROOT, nic]), &b), Some(Bar::Parent("br7".into())));
        assert_eq!(has.bar(&instance(&[ROOT, nic]), &a), None);
        let managed: &[(&str, &str)] = &[("type", "nic"), ("network", "br7")];
        assert_eq!(has.bar(&instance(&[ROOT, managed]), &b), None);

        let east = [("restricted", "true"), ("restricted.cluster.groups", "east, west")];
        assert_eq!(ground(vec![], &east).bar(&instance(&[ROOT]), &a), Some(Bar::Project("p".into())));
        assert_eq!(ground(vec![], &east).bar(&instance(&[ROOT]), &b), None);
        assert_eq!(ground(vec![], &east[1..]).bar(&instance(&[ROOT]), &a), None);
    }

    #[test]
    fn a_name_on_two_members_is_a_left_over() {
        let (b, c) = (member("b", &[]), member("c", &[]));
        let i = instance(&[ROOT]);
        let g = ground(
            vec![
                volume("container", "c1", "a"),
                volume("container", "c1", "b"),
                volume("container", "c1/s", "c"),
                volume("custom", "c1", "d"),
            ],
            &[],
        );
        let left = Some(Bar::LeftOver(PoolName("local".into())));
        assert_eq!((g.bar(&i, &b), g.bar(&i, &c)), (left.clone(), left));
        assert_eq!(g.bar(&i, &member("d", &[])), None);
        let all = [i];
        let found: Vec<_> = g.left_overs(&all).into_iter().map(|(_, v, _)| v.location.as_str()).collect();
        assert_eq!(found, ["b"]);
    }
}
