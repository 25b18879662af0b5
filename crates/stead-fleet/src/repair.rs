//! Left-over volumes of moves that were cut short: found, explained, and removed where programs can be run.
//!
//! A move that loses its target's daemon or link in the middle may leave a volume there, in the engine's database, on its
//! disk, or both; from then on the engine refuses that instance on that member. The engine's API deletes no volume of an
//! instance (cmd/incusd/storage_volumes.go), so this needs a way to run programs on the member.
//!
//! Owns what is left over, and the commands that remove it. Does not own how programs are run.

use crate::{
    facts::{Facts, FactsError},
    ground::project_of,
    journal::Past,
    shell::{Shell, quoted},
    size::{snapshots_path, volume_path},
    snapshot::id_of,
};
use std::fmt;
use stead_incus::{Client, Dialect, Error, types::Instance};
use stead_model::{Failure, FailureKind};
use stead_placement::snapshot::{Bar, InstanceId, MemberName, PoolName};

/// A volume that belongs to no instance on its member.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeftOver {
    /// The instance whose name it has.
    pub instance: InstanceId,
    /// The member that the instance is on.
    pub at: MemberName,
    /// The member that the volume is on.
    pub member: MemberName,
    /// Its pool.
    pub pool: PoolName,
    /// The pool's driver.
    pub driver: String,
    /// Whether the engine's database has it.
    pub recorded: bool,
    /// Where it is on the disk, if anything is there.
    pub path: String,
    /// The commands that remove it, one after the other.
    pub remedy: Vec<Command>,
}

impl fmt::Display for LeftOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instance, at, member, pool, recorded, .. } = self;
        let known = match recorded {
            true => "the engine still has a record of",
            false => "the engine refused, because there may be",
        };
        write!(f, "{instance} is on {at}, but on {member} {known} a volume of its name in pool {pool}")
    }
}

/// Why a left-over volume was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The cluster cannot be observed.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// The cluster does not answer.
    #[error("cannot ask for the state of {instance}")]
    Ask {
        /// The instance.
        instance: InstanceId,
        /// Why.
        #[source]
        source: Box<Error>,
    },
    /// It is not left over any more.
    #[error("{0} is being moved or has been moved: look again when that has ended")]
    Moving(InstanceId),
    /// Only the driver's own tools remove its volumes.
    #[error("pool {pool} is of the driver {driver}, whose volumes only its own tools remove")]
    Driver {
        /// The pool.
        pool: PoolName,
        /// Its driver.
        driver: String,
    },
    /// No program can be run on the member.
    #[error("there is no way to run programs on {0}")]
    NoShell(MemberName),
    /// A command failed.
    #[error("on {member}, {command} failed: {why}")]
    Command {
        /// The member.
        member: MemberName,
        /// The command.
        command: String,
        /// Why.
        why: String,
    },
}

impl Failure for RepairError {
    fn failure_kind(&self) -> FailureKind {
        match self {
            Self::Facts(source) => source.failure_kind(),
            Self::NoShell(_) => FailureKind::BadInput,
            _ => FailureKind::Failed,
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            Self::Facts(source) => source.hint(),
            Self::NoShell(member) => Some(format!(
                "give one (--shell 'ssh root@{{member}}'), or run the commands on {member} yourself"
            )),
            _ => None,
        }
    }
}

/// Everything that is left over: by the engine's volumes, and by what earlier runs learned.
pub fn left_overs(facts: &Facts, past: &Past, dialect: Dialect) -> Vec<LeftOver> {
    let mut found = Vec::new();
    let mut add = |instance: &Instance, member: &str, pool: &str, recorded: bool| {
        let driver = facts.ground.pools.iter().find(|p| p.name == pool).map_or("", |p| p.driver.as_str());
        let Some(path) = volume_path(dialect.facts().directory, pool, instance) else { return };
        found.push(LeftOver {
            instance: id_of(instance),
            at: MemberName(instance.location.clone()),
            member: MemberName(member.to_owned()),
            pool: PoolName(pool.to_owned()),
            driver: driver.to_owned(),
            recorded,
            remedy: remedy(dialect, instance, member, pool, driver, &path),
            path,
        });
    };
    for (pool, volume, instance) in facts.ground.left_overs(&facts.instances) {
        add(instance, &volume.location, pool, true);
    }
    let recorded: Vec<(InstanceId, String)> = facts
        .ground
        .left_overs(&facts.instances)
        .into_iter()
        .map(|(_, v, i)| (id_of(i), v.location.clone()))
        .collect();
    for b in &past.barred {
        let Bar::LeftOver(pool) = &b.bar else { continue };
        let instance = facts.instances.iter().find(|i| id_of(i) == b.instance);
        let shown = recorded.iter().any(|(id, member)| *id == b.instance && *member == b.member.0);
        if let Some(i) = instance.filter(|i| !shown && i.location != b.member.0) {
            add(i, &b.member.0, &pool.0, false);
        }
    }
    found.sort();
    found
}

/// A command on a member.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Command {
    /// Its words.
    pub argv: Vec<String>,
    /// Whether the next one does its work if it fails.
    pub may_fail: bool,
}

impl Command {
    fn new(argv: &[&str]) -> Self {
        Self { argv: argv.iter().map(|w| (*w).to_owned()).collect(), may_fail: false }
    }
}

/// As it is typed.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.argv.iter().map(|word| quoted(word)).collect();
        f.write_str(&words.join(" "))
    }
}

/// The commands that remove a volume, on its member: first from the disk, then from the database, where it is still seen
/// if the first was all that was done. None for drivers that keep volumes outside of the file system, and none for `dir`:
/// its directory may be one that all members share, and then the left-over would be the instance itself.
fn remedy(
    dialect: Dialect,
    instance: &Instance,
    member: &str,
    pool: &str,
    driver: &str,
    path: &str,
) -> Vec<Command> {
    if driver != "btrfs" {
        return Vec::new();
    }
    // A subvolume that is still read-only is not removed as a directory is; anything else is no subvolume.
    let subvolume = Command::new(&["btrfs", "subvolume", "delete", path]);
    let mut commands = vec![
        Command { may_fail: true, ..subvolume },
        Command::new(&["rm", "-rf", "--", &snapshots_path(path), path]),
    ];
    let kind = if instance.kind == "virtual-machine" { 3 } else { 0 };
    let (name, project) = (sql(&instance.name), sql(project_of(instance)));
    // Once more in the same statement: never the volume of an instance where it is.
    let query = format!(
        "DELETE FROM storage_volumes WHERE type={kind} AND name={name} AND \
         node_id=(SELECT id FROM nodes WHERE name={member}) AND \
         project_id=(SELECT id FROM projects WHERE name={project}) AND \
         storage_pool_id=(SELECT id FROM storage_pools WHERE name={pool}) AND \
         NOT EXISTS (SELECT 1 FROM instances JOIN nodes ON nodes.id=instances.node_id JOIN projects ON \
         projects.id=instances.project_id WHERE instances.name={name} AND nodes.name={member} AND \
         projects.name={project})",
        member = sql(member),
        pool = sql(pool),
    );
    commands.push(match dialect {
        Dialect::Incus => Command::new(&["incus", "admin", "sql", "global", &query]),
        Dialect::Lxd => Command::new(&["lxd", "sql", "global", &query]),
    });
    commands
}

/// A string of SQL.
fn sql(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Removes a left-over volume.
///
/// # Errors
/// [`RepairError`]. What was done before the error is not undone; doing it again is right.
pub async fn repair(client: &Client, shell: &dyn Shell, left: &LeftOver) -> Result<(), RepairError> {
    if !shell.reaches(&left.member.0) {
        return Err(RepairError::NoShell(left.member.clone()));
    }
    if left.remedy.is_empty() {
        return Err(RepairError::Driver { pool: left.pool.clone(), driver: left.driver.clone() });
    }
    is_idle(client, left).await?;
    for command in &left.remedy {
        let failed =
            |why| RepairError::Command { member: left.member.clone(), command: command.to_string(), why };
        let ran = shell.run(&left.member.0, &command.argv).await.map_err(failed)?;
        if ran.code != 0 && !command.may_fail {
            let said = if ran.stderr.trim().is_empty() { &ran.stdout } else { &ran.stderr };
            return Err(failed(format!("exit code {}: {}", ran.code, said.trim())));
        }
    }
    Ok(())
}

/// Whether the instance is where it was, and nobody is at work on it.
async fn is_idle(client: &Client, left: &LeftOver) -> Result<(), RepairError> {
    let ask = |source| RepairError::Ask { instance: left.instance.clone(), source: Box::new(source) };
    let (project, name) = (left.instance.project.as_str(), left.instance.name.as_str());
    let busy = crate::rebalance::is_busy(client, project, name).await.map_err(ask)?;
    let now = client.instance(project, name).await.map_err(ask)?.value;
    match busy || now.location != left.at.0 {
        true => Err(RepairError::Moving(left.instance.clone())),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_name_one_volume_of_one_member() {
        let instance = Instance { name: "c'1".into(), project: "web".into(), ..Instance::default() };
        let path = "/var/lib/incus/storage-pools/default/containers/web_c1";
        let shown: Vec<String> = remedy(Dialect::Incus, &instance, "node2", "default", "btrfs", path)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            shown[..2],
            [
                format!("btrfs subvolume delete {path}"),
                format!("rm -rf -- {} {path}", path.replace("containers", "containers-snapshots")),
            ]
        );
        let query = &remedy(Dialect::Lxd, &instance, "node2", "default", "btrfs", path)[2].argv;
        assert_eq!(query[..3], ["lxd", "sql", "global"]);
        assert!(query[3].contains("name='c''1'") && query[3].contains("nodes.name='node2'"), "{}", query[3]);
        for driver in ["dir", "zfs"] {
            assert_eq!(remedy(Dialect::Incus, &instance, "node2", "default", driver, path), []);
        }
    }
}
