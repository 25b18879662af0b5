//! The engine on this host: where it is, what it offers, and the few requests that several scripts make.
//!
//! Everything here is about one local daemon. In a cluster it acts on the instances of its own member only: the disks of
//! an instance are mounted on the host of the member that holds it, where no other member sees them.

use crate::{
    document::{self, DocumentError, Vm},
    ids::InstanceName,
    instance::{DOCUMENT_KEY, Facts, STATUS_KEY, Shown, Wanted},
    lxdrc::Lxdrc,
};
use base64::Engine as _;
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use stead_incus::{
    Client, Dialect, Endpoint, Error, Scope, Tagged,
    requests::{
        self,
        instances::{Detail, InstanceSource, NewInstance, StateAction, list},
    },
    types::{Config, Devices, Instance, OperationStatus, Outcome},
};

/// OpenNebula knows nothing of projects.
pub const PROJECT: &str = "default";
/// An engine that is busy with an instance after a stop, or a start that failed, is done within this.
const BUSY_PATIENCE: Duration = Duration::from_secs(30);
/// An engine that starts, or waits for its cluster's majority, is waited for as long.
const READY_PATIENCE: Duration = Duration::from_secs(30);
/// What engines say that have no access to the cluster's database.
const UNREADY: [&str; 5] = [
    "isn't ready yet",
    "is starting up",
    "leader server found",
    "context deadline exceeded",
    "Failed to begin transaction",
];
/// How often is looked whether it has.
const GLANCE: Duration = Duration::from_millis(100);
/// The log of one start.
const MAX_LOG_BYTES: u64 = 1 << 20;
/// The first few tell the cause.
const MAX_LOG_ERRORS: usize = 5;
/// An instance that somebody else changes at the same moment is looked at again, so often.
const CHANGE_TRIES: usize = 5;

/// Which of OpenNebula's driver directories was called; it says which engine is looked for first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// `vmm/lxd`.
    Lxd,
    /// `vmm/incus`.
    Incus,
}

impl Driver {
    /// Its directory's name, and HYPERVISOR.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lxd => "lxd",
            Self::Incus => "incus",
        }
    }
    /// Sockets, most likely first: its own engine's, then the other's.
    pub fn sockets(self) -> impl Iterator<Item = &'static str> {
        let dialects = match self {
            Self::Lxd => [Dialect::Lxd, Dialect::Incus],
            Self::Incus => [Dialect::Incus, Dialect::Lxd],
        };
        dialects.into_iter().flat_map(|d| d.facts().sockets).copied()
    }
}

/// The engine cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A request failed.
    #[error(transparent)]
    Request(#[from] Error),
    /// No daemon.
    #[error("no Incus or LXD answers on this host; looked for {}", .0.join(", "))]
    NoSocket(Vec<String>),
    /// No pool that instances can be made in.
    #[error(
        "no storage pool of driver dir on this server; instances need one for their root to be mounted into"
    )]
    NoPool,
    /// The pool of the configuration.
    #[error("storage pool {name:?} of lxdrc is of driver {driver}, not dir")]
    PoolDriver {
        /// Which.
        name: String,
        /// Its driver.
        driver: String,
    },
    /// The pool of the configuration.
    #[error("the server has no storage pool {0:?}, which lxdrc names")]
    UnknownPool(String),
    /// The document kept with an instance.
    #[error("the document kept with instance {name} is unusable")]
    Kept {
        /// Which.
        name: InstanceName,
        /// Why.
        #[source]
        source: DocumentError,
    },
    /// Its root filesystem could not be readied.
    #[error(transparent)]
    Disk(#[from] crate::disks::DiskError),
    /// Deleting it would delete what is mounted into it.
    #[error("instance {0} is not deleted: its root filesystem is still mounted")]
    StillMounted(InstanceName),
    /// It does not serve yet, or not any more.
    #[error(
        "the engine is not ready: in a cluster it answers only while more than half of the members that keep the cluster's \
         database are up (`incus admin cluster list-database` or `lxd cluster list-database` lists them)"
    )]
    NotReady(#[source] Error),
    /// The member that holds an instance is down.
    #[error(
        "instance {name} is held by member {member} of the engine's cluster, which is offline: start that member; or, when it \
         is certain that it does not run any more, remove it from the cluster by force and deploy again"
    )]
    MemberDown {
        /// Which.
        name: InstanceName,
        /// The member that holds it.
        member: String,
        /// What the engine said.
        #[source]
        source: Error,
    },
    /// Another host's: its disks, if mounted, are mounted there.
    #[error("instance {name} is on member {member} of the engine's cluster, not on this host")]
    Elsewhere {
        /// Which.
        name: InstanceName,
        /// The member that holds it.
        member: String,
    },
}

impl EngineError {
    /// Whether the engine does not shift the owners of a disk. It has no code for it.
    pub fn is_shift_refused(&self) -> bool {
        matches!(self, Self::Request(Error::Operation { .. } | Error::Api { .. }))
            && self.to_string().contains("idmapping abilities")
    }
}

/// A daemon.
#[derive(Debug)]
pub struct Engine {
    /// Its client.
    pub client: Client,
    /// Its member's name; absent: not clustered.
    pub member: Option<String>,
    /// Where it keeps its state.
    pub directory: PathBuf,
    /// Whether it can shift the owners of a mounted filesystem.
    pub shifts: bool,
    /// An instance has this long to shut down.
    pub shutdown_timeout: Duration,
}

impl Engine {
    /// Finds and asks the daemon.
    ///
    /// # Errors
    /// [`EngineError::NoSocket`]; a request's.
    pub async fn connect(driver: Driver, rc: &Lxdrc) -> Result<Self, EngineError> {
        let candidates: Vec<PathBuf> = match &rc.socket {
            Some(socket) => vec![socket.clone()],
            None => driver.sockets().map(PathBuf::from).collect(),
        };
        let Some(socket) = candidates.iter().find(|s| s.exists()) else {
            return Err(EngineError::NoSocket(candidates.iter().map(|c| c.display().to_string()).collect()));
        };
        let client = when_ready(async || Client::discover(Endpoint::Unix(socket.clone())).await).await?;
        let server: Value = client.fetch(&requests::server::get()).await?;
        let text = |pointer: &str| server.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let clustered = server.pointer("/environment/server_clustered").and_then(Value::as_bool);
        let directory = match socket.parent() {
            // Incus puts a second socket there.
            Some(parent) if !parent.starts_with("/run") => parent.to_owned(),
            _ => PathBuf::from(client.dialect().facts().directory),
        };
        if clustered == Some(true) {
            // The first request that needs the cluster's database.
            when_ready(async || client.members().await).await?;
        }
        Ok(Self {
            member: (clustered == Some(true)).then(|| text("/environment/server_name").to_owned()),
            shifts: text("/environment/kernel_features/idmapped_mounts") == "true",
            shutdown_timeout: Duration::from_secs(rc.shutdown_timeout_s.into()),
            directory,
            client,
        })
    }

    /// Where the root filesystem of an instance is.
    pub fn rootfs(&self, pool: &str, name: &InstanceName) -> PathBuf {
        self.directory.join("storage-pools").join(pool).join("containers").join(name.as_str()).join("rootfs")
    }
    /// Whether an instance is on this host's member.
    pub fn is_here(&self, instance: &Instance) -> bool {
        self.member.as_ref().is_none_or(|m| *m == instance.location)
    }
    /// Refuses an instance that another member holds.
    ///
    /// # Errors
    /// [`EngineError::Elsewhere`].
    pub fn require_here(&self, instance: &Instance, name: &InstanceName) -> Result<(), EngineError> {
        match self.is_here(instance) {
            true => Ok(()),
            false => Err(EngineError::Elsewhere { name: name.clone(), member: instance.location.clone() }),
        }
    }

    /// An instance; `None`: there is none.
    ///
    /// # Errors
    /// A request's.
    pub async fn instance(&self, name: &InstanceName) -> Result<Option<Tagged<Instance>>, EngineError> {
        let deadline = Instant::now() + READY_PATIENCE;
        loop {
            let error = match self.client.instance(PROJECT, name.as_str()).await {
                Ok(instance) => return Ok(Some(instance)),
                Err(e) if e.is_not_found() => return Ok(None),
                Err(e) => e,
            };
            match self.explain(name, error).await {
                // The member that holds it starts, or is gone for less long than the engine takes to notice.
                EngineError::Request(e) if is_unready(&e) && Instant::now() < deadline => {
                    tokio::time::sleep(GLANCE).await;
                }
                other => return Err(other),
            }
        }
    }
    /// Why an instance cannot be asked about: the member that holds it may be down, which the engine tells only in lists.
    async fn explain(&self, name: &InstanceName, error: Error) -> EngineError {
        let request = list(Scope::Project(PROJECT), Detail::Settings, None);
        let (Some(_), Ok(members)) = (&self.member, self.client.members().await) else { return error.into() };
        let all: Vec<Instance> = self.client.list(&request).await.unwrap_or_default();
        let holder = all.into_iter().find(|i| i.name == name.as_str()).map(|i| i.location);
        let is_down =
            |holder: &String| members.iter().any(|m| m.server_name == *holder && m.status == "Offline");
        match holder.filter(is_down) {
            Some(member) => EngineError::MemberDown { name: name.clone(), member, source: error },
            None => error.into(),
        }
    }
    /// Waits until nothing works on an instance that a script began: one that was killed leaves the server at it, and what
    /// it is found to be now is not what it will be in a moment. What takes longer than any script would wait is left alone.
    ///
    /// # Errors
    /// A request's.
    pub async fn settle(&self, name: &InstanceName) -> Result<(), EngineError> {
        let deadline = Instant::now() + self.shutdown_timeout + BUSY_PATIENCE;
        let path = format!("/1.0/instances/{name}");
        loop {
            let all = self.client.operations(Scope::Project(PROJECT)).await?;
            // Commands that run in it are websockets, and may run for ever.
            let is_at_it = |o: &OperationStatus| {
                let mut paths = o.resources.values().flatten().flatten();
                o.class == "task"
                    && o.outcome() == Outcome::Running
                    && paths.any(|p| p.split_once('?').map_or(p.as_str(), |(path, _)| path) == path)
            };
            if !all.iter().any(is_at_it) || Instant::now() > deadline {
                return Ok(());
            }
            tokio::time::sleep(GLANCE).await;
        }
    }
    /// What the host of another member may be called: the member's name, and its address in the cluster.
    ///
    /// # Errors
    /// A request's.
    pub async fn names_of(&self, member: &str) -> Result<Vec<String>, EngineError> {
        let url = self.client.member(member).await?.value.url;
        Ok(std::iter::once(member.to_owned()).chain(host_of(&url).map(str::to_owned)).collect())
    }
    /// The facts for a mapping that are the server's.
    ///
    /// # Errors
    /// A request's; no usable pool.
    pub async fn facts(&self, rc: &Lxdrc, vm: &Vm) -> Result<Facts, EngineError> {
        let profiles = self.client.profiles(PROJECT).await?;
        let pools = self.client.storage_pools().await?;
        let wanted = vm.profile.as_deref().unwrap_or("default");
        let pool = match &rc.storage_pool {
            Some(name) => {
                let pool = pools.iter().find(|p| p.name == *name);
                let pool = pool.ok_or_else(|| EngineError::UnknownPool(name.clone()))?;
                if pool.driver != "dir" {
                    let (name, driver) = (name.clone(), pool.driver.clone());
                    return Err(EngineError::PoolDriver { name, driver });
                }
                name.clone()
            }
            None => {
                let is_dir = |name: &&String| pools.iter().any(|p| p.name == **name && p.driver == "dir");
                let of_profile = profiles
                    .iter()
                    .filter(|p| p.name == wanted)
                    .flat_map(|p| p.devices.values())
                    .filter(|d| d.get("path").is_some_and(|p| p == "/"))
                    .filter_map(|d| d.get("pool"))
                    .find(is_dir);
                let any = || pools.iter().find(|p| p.driver == "dir").map(|p| &p.name);
                of_profile.or_else(any).cloned().ok_or(EngineError::NoPool)?
            }
        };
        Ok(Facts {
            profiles: profiles.into_iter().map(|p| p.name).collect(),
            pool,
            member: self.member.clone(),
            ..Facts::default()
        })
    }

    /// Makes an instance, empty and stopped, on this host's member.
    ///
    /// # Errors
    /// A request's.
    pub async fn create(&self, wanted: &Wanted) -> Result<(), EngineError> {
        let new = NewInstance {
            name: wanted.name.clone(),
            source: InstanceSource::Empty,
            config: wanted.config.clone(),
            devices: wanted.devices.clone(),
            profiles: wanted.profiles.clone(),
            ..NewInstance::default()
        };
        self.client.create_instance(PROJECT, self.member.as_deref(), &new).await?;
        Ok(())
    }
    /// Starts, stops, …
    ///
    /// # Errors
    /// A request's.
    pub async fn set_state(&self, name: &InstanceName, action: StateAction) -> Result<(), EngineError> {
        if action == StateAction::Start {
            self.brace(name).await?;
        }
        self.client.set_instance_state(PROJECT, name.as_str(), action, self.shutdown_timeout).await?;
        Ok(())
    }
    /// Before anything that makes LXD start an instance: see [`crate::disks::brace`].
    ///
    /// # Errors
    /// A request's; it cannot be mounted.
    pub async fn brace(&self, name: &InstanceName) -> Result<(), EngineError> {
        if self.client.dialect() == Dialect::Lxd {
            let instance = self.client.instance(PROJECT, name.as_str()).await?.value;
            if let Some(pool) = root_pool(&instance) {
                crate::disks::brace(&self.rootfs(pool, name))?;
            }
        }
        Ok(())
    }
    /// Whether monitoring is to tell of it.
    ///
    /// # Errors
    /// A request's.
    pub async fn show(&self, name: &InstanceName, shown: Shown) -> Result<(), EngineError> {
        self.patch(name, &Config::from([(STATUS_KEY.to_owned(), shown.value().to_owned())])).await
    }
    /// Changes settings.
    ///
    /// # Errors
    /// A request's.
    pub async fn patch(&self, name: &InstanceName, config: &Config) -> Result<(), EngineError> {
        let patch =
            async || self.client.patch_instance(PROJECT, name.as_str(), config, &Devices::new()).await;
        Ok(when_free(patch).await?)
    }
    /// Changes settings and devices together; somebody else's change in between is kept.
    ///
    /// # Errors
    /// A request's.
    pub async fn change(
        &self,
        name: &InstanceName,
        change: impl Fn(&mut Config, &mut Devices),
    ) -> Result<(), EngineError> {
        let mut tries = 0;
        loop {
            let changed = when_free(async || {
                let Tagged { value, etag } = self.client.instance(PROJECT, name.as_str()).await?;
                let mut put = value.writable();
                change(&mut put.config, &mut put.devices);
                self.client.update_instance(PROJECT, name.as_str(), &put, etag).await
            });
            tries += 1;
            match changed.await {
                Err(Error::Changed { .. }) if tries < CHANGE_TRIES => {}
                other => return Ok(other?),
            }
        }
    }
    /// Deletes a stopped instance of this host, unless something is mounted into it.
    ///
    /// # Errors
    /// A request's; [`EngineError::StillMounted`]; [`EngineError::Elsewhere`].
    pub async fn delete(&self, instance: &Instance, name: &InstanceName) -> Result<(), EngineError> {
        self.require_here(instance, name)?;
        if root_pool(instance).is_some_and(|pool| crate::disks::is_mounted(&self.rootfs(pool, name))) {
            return Err(EngineError::StillMounted(name.clone()));
        }
        match when_free(async || self.client.delete_instance(PROJECT, name.as_str()).await).await {
            Err(e) if !e.is_not_found() => Err(e.into()),
            _ => Ok(()),
        }
    }
    /// The errors in the log of an instance that did not start; as many as fit in a log line or two.
    pub async fn start_errors(&self, name: &InstanceName) -> Vec<String> {
        let log = self.client.instance_log(PROJECT, name.as_str(), "lxc.log", MAX_LOG_BYTES).await;
        let Ok(log) = log else { return Vec::new() };
        let text = String::from_utf8_lossy(&log).into_owned();
        let errors = text.lines().filter(|l| l.contains(" ERROR ")).map(str::to_owned);
        errors.take(MAX_LOG_ERRORS).collect()
    }
}

/// Repeats a request while the engine starts, or has no access to its cluster's database: a majority that comes back within
/// the time is waited for.
async fn when_ready<T>(request: impl AsyncFn() -> Result<T, Error>) -> Result<T, EngineError> {
    let deadline = Instant::now() + READY_PATIENCE;
    loop {
        match request().await {
            Err(e) if !is_unready(&e) => return Err(e.into()),
            Err(e) if Instant::now() > deadline => return Err(EngineError::NotReady(e)),
            Err(_) => tokio::time::sleep(GLANCE).await,
            Ok(answer) => return Ok(answer),
        }
    }
}

/// Neither engine has a code for it alone.
fn is_unready(error: &Error) -> bool {
    let says = |message: &str| UNREADY.iter().any(|words| message.contains(words));
    match error {
        Error::Api { code, message, .. } => *code == 503 || says(message),
        Error::Timeout { .. } => true,
        _ => false,
    }
}

/// Repeats a request while the engine is busy with the instance: for a moment after it has reported a stop as done, and while
/// it puts away a start that failed. Neither has an operation to wait for.
async fn when_free<T>(request: impl AsyncFn() -> Result<T, Error>) -> Result<T, Error> {
    let deadline = Instant::now() + BUSY_PATIENCE;
    loop {
        match request().await {
            Err(e) if e.is_busy() && Instant::now() < deadline => tokio::time::sleep(GLANCE).await,
            other => return other,
        }
    }
}

/// The pool of an instance's root.
pub fn root_pool(instance: &Instance) -> Option<&str> {
    let devices = instance.expanded_devices.values().chain(instance.devices.values());
    devices
        .filter(|d| d.get("path").is_some_and(|p| p == "/"))
        .find_map(|d| d.get("pool"))
        .map(String::as_str)
}

/// The host of `https://host:port`.
fn host_of(url: &str) -> Option<&str> {
    let (host, _) = url.strip_prefix("https://")?.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then_some(host)
}

/// The document kept with an instance; `None`: it has none, so OpenNebula did not make it.
///
/// # Errors
/// It is unusable.
pub fn kept_document(instance: &Instance, name: &InstanceName) -> Result<Option<(Vm, String)>, EngineError> {
    let Some(packed) = instance.config.get(DOCUMENT_KEY).filter(|v| !v.is_empty()) else { return Ok(None) };
    let text = base64::engine::general_purpose::STANDARD.decode(packed).ok();
    let text = text.and_then(|t| String::from_utf8(t).ok()).unwrap_or_default();
    let read = document::read(&text).map_err(|source| EngineError::Kept { name: name.clone(), source })?;
    Ok(Some(read))
}

/// What a script's path tells: the remotes it is in, and for which driver it was called. Scripts are
/// `<remotes>/vmm/<driver>/<script>`, probes below `<remotes>/im/<driver>-probes.d`; the client that runs them goes there
/// by `<remotes>/im/<driver>.d/..`.
pub fn remotes(script: &Path) -> Option<(PathBuf, Driver)> {
    let mut parts: Vec<&std::ffi::OsStr> = Vec::new();
    for part in script {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    let at = parts.iter().rposition(|p| *p == "vmm" || *p == "im").filter(|at| at + 1 < parts.len())?;
    let name = parts[at + 1].to_str()?;
    let driver = match name.strip_suffix("-probes.d").unwrap_or(name) {
        "incus" => Driver::Incus,
        _ => Driver::Lxd,
    };
    Some((parts[..at].iter().collect(), driver))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_is_repeated_while_the_engine_is_busy_and_for_nothing_else() {
        let refused =
            |message: &str| Error::Api { request: "PATCH".into(), code: 500, message: message.into() };
        let answers = std::cell::RefCell::new(vec![
            Err(refused("no such profile")),
            Ok(7),
            Err(refused("Instance is busy running a \"stop\" operation")),
            Err(refused("Instance is busy running a \"stop\" operation")),
        ]);
        let request = async || answers.borrow_mut().pop().unwrap();
        assert_eq!(when_free(request).await.unwrap(), 7);
        assert!(when_free(request).await.unwrap_err().to_string().ends_with("no such profile"));
        assert!(answers.borrow().is_empty());
    }

    #[test]
    fn what_passes_when_a_majority_is_back_is_told_from_what_does_not() {
        let refused =
            |code, message: &str| Error::Api { request: "GET".into(), code, message: message.into() };
        assert!(is_unready(&refused(500, "Server isn't ready yet")));
        assert!(is_unready(&refused(
            500,
            "Failed to begin transaction: no available cowsql leader server found"
        )));
        assert!(is_unready(&Error::Timeout { request: "GET".into(), after: READY_PATIENCE }));
        assert!(!is_unready(&refused(404, "Instance not found")));
    }

    #[test]
    fn a_members_address_is_its_urls_host() {
        assert_eq!(host_of("https://10.0.0.2:8443"), Some("10.0.0.2"));
        assert_eq!(host_of("https://[fd00::2]:8443"), Some("fd00::2"));
        assert_eq!(host_of(""), None);
    }

    #[test]
    fn a_scripts_path_tells_its_driver() {
        let found = |path: &str| remotes(Path::new(path)).map(|(r, d)| (r.display().to_string(), d.name()));
        assert_eq!(found("/var/tmp/one/vmm/lxd/deploy"), Some(("/var/tmp/one".into(), "lxd")));
        assert_eq!(found("/var/tmp/one/vmm/incus/deploy"), Some(("/var/tmp/one".into(), "incus")));
        assert_eq!(
            found("/var/tmp/one/im/incus-probes.d/vm/status/x.sh"),
            Some(("/var/tmp/one".into(), "incus"))
        );
        for driver in ["incus", "lxd"] {
            let path = format!("/var/tmp/one/im/{driver}.d/../{driver}-probes.d/vm/status/x.sh");
            assert_eq!(found(&path), Some(("/var/tmp/one".into(), driver)));
        }
        assert_eq!(found("deploy"), None);
    }
}
