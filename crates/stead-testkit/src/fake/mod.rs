//! A cluster in memory that speaks HTTP over a real unix socket.
//!
//! ```no_run
//! # async fn example() -> Result<(), stead_incus::Error> {
//! use stead_incus::Dialect;
//! use stead_testkit::fake::{Fake, Fault};
//! let fake = Fake::cluster(Dialect::Incus, 3).start();
//! fake.inject(Fault::Fail { operation: "Migrating instance".into(), message: "no space left".into() }, 1);
//! let members = fake.client().members().await?;
//! assert_eq!(members.len(), 3);
//! # Ok(())
//! # }
//! ```
//!
//! Owns a model of members, groups, projects, profiles, images, instances, snapshots, operations, events and warnings.
//! Runs nothing: a started instance only has that status, and no commands or files.

mod faults;
mod model;
mod operations;
mod routes;
mod server;

pub use faults::Fault;
pub use model::{MemberSize, Usage, Volume, VolumeKind};

use model::{Instance, Member, World};
use operations::Running;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use stead_incus::{
    Client, Dialect, Endpoint, Feature,
    requests::instances::NewInstance,
    types::{Config, Devices},
};
use tokio::sync::{broadcast, watch};

/// Events kept for a slow listener.
const BACKLOG: usize = 4096;

/// Configuration of a fake.
#[derive(Debug)]
pub struct FakeBuilder {
    world: World,
}

/// A running fake. Dropping it removes it with everything it contains.
#[derive(Debug)]
pub struct Fake {
    shared: Arc<Shared>,
    dialect: Dialect,
    socket: PathBuf,
    _directory: tempfile::TempDir,
    listener: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

pub(crate) struct Shared {
    inner: Mutex<Inner>,
    faults: faults::Faults,
    events: broadcast::Sender<Value>,
    /// Counts restarts: connections from before a restart end.
    life: watch::Sender<u64>,
    requests: Mutex<Vec<String>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared(…)")
    }
}

struct Inner {
    world: World,
    operations: BTreeMap<String, Running>,
}

impl FakeBuilder {
    /// Adds a member.
    #[must_use]
    pub fn member(mut self, name: &str, size: MemberSize) -> Self {
        let number = self.world.members.len() + 1;
        // Three members have the database, as by the servers' defaults; the next two are standbys.
        let roles = match number {
            1 => vec!["database-leader".to_owned(), "database".to_owned()],
            2 | 3 => vec!["database".to_owned()],
            4 | 5 => vec!["database-standby".to_owned()],
            _ => Vec::new(),
        };
        let member = Member {
            status: "Online",
            address: format!("10.0.{}.{}:8443", number / 250, number % 250 + 1),
            roles,
            failure_domain: "default".into(),
            description: String::new(),
            config: Config::new(),
            architecture: "x86_64".into(),
            size,
        };
        self.world.config.insert("cluster.https_address".into(), "10.0.0.2:8443".into());
        self.world.members.insert(name.to_owned(), member);
        if let Some(group) = self.world.groups.get_mut("default") {
            group.members.insert(name.to_owned());
        }
        self
    }
    /// Sets the driver of its storage pool; the default is btrfs.
    #[must_use]
    pub fn pool_driver(mut self, driver: &str) -> Self {
        self.world.pool_driver = driver.to_owned();
        self
    }
    /// Adds an API extension that this engine's version in Debian lacks.
    #[must_use]
    pub fn with(mut self, feature: Feature) -> Self {
        if let Some(extension) = feature.extension(self.world.dialect) {
            self.world.extensions.push(extension.to_owned());
        }
        self
    }
    /// Removes an API extension.
    #[must_use]
    pub fn without(mut self, feature: Feature) -> Self {
        let extension = feature.extension(self.world.dialect);
        self.world.extensions.retain(|e| Some(e.as_str()) != extension);
        self
    }
    /// Starts the server. Needs a tokio runtime.
    ///
    /// # Panics
    /// A temporary directory or socket cannot be created.
    pub fn start(self) -> Fake {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = directory.path().join("unix.socket");
        let dialect = self.world.dialect;
        let shared = Arc::new(Shared {
            inner: Mutex::new(Inner { world: self.world, operations: BTreeMap::new() }),
            faults: faults::Faults::default(),
            events: broadcast::channel(BACKLOG).0,
            life: watch::channel(0).0,
            requests: Mutex::new(Vec::new()),
        });
        let fake = Fake { shared, dialect, socket, _directory: directory, listener: Mutex::new(None) };
        fake.resume();
        fake
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn tell_operation(&self, project: &str, operation: &Value) {
        self.tell("operation", project, operation.clone());
    }
    fn tell_lifecycle(&self, project: &str, action: &str, source: &str) {
        self.tell("lifecycle", project, json!({ "action": action, "source": source, "context": {} }));
    }
    fn tell(&self, kind: &str, project: &str, metadata: Value) {
        let timestamp = &metadata["updated_at"];
        // There may be no listener.
        let _ = self.events.send(json!({
            "type": kind,
            "timestamp": if timestamp.is_null() { model::NEVER.into() } else { timestamp.clone() },
            "metadata": metadata,
            "location": "none",
            "project": project,
        }));
    }
}

impl Fake {
    /// A server without members: not clustered.
    pub fn server(dialect: Dialect) -> FakeBuilder {
        let extensions = Feature::ALL
            .iter()
            .filter(|f| routes::debian_has(dialect, **f))
            .filter_map(|f| f.extension(dialect))
            .map(str::to_owned)
            .chain(["etag".to_owned(), "clustering".to_owned()])
            .collect();
        FakeBuilder { world: World::new(dialect, extensions) }
    }
    /// A cluster of members `node1`, `node2`, … of the same size.
    pub fn cluster(dialect: Dialect, members: usize) -> FakeBuilder {
        (1..=members).fold(Self::server(dialect), |builder, n| {
            builder.member(&format!("node{n}"), MemberSize::default())
        })
    }

    /// Where it listens.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.socket.clone())
    }
    /// A client of it.
    ///
    /// # Panics
    /// Never: a unix socket needs no identity.
    pub fn client(&self) -> Client {
        Client::new(self.dialect, self.endpoint()).expect("a client of a unix socket")
    }

    /// Injects a fault, `times` times.
    pub fn inject(&self, fault: Fault, times: u32) {
        self.shared.faults.add(fault, times);
    }
    /// Removes all injected faults.
    pub fn clear_faults(&self) {
        self.shared.faults.clear();
    }
    /// Every request so far: `POST /1.0/instances?project=default`.
    pub fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops the server as if killed: connections break, nothing listens, and running operations are lost without
    /// effect.
    pub fn halt(&self) {
        if let Some(listener) = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take() {
            listener.abort();
        }
        let _ = std::fs::remove_file(&self.socket);
        for (_, operation) in std::mem::take(&mut self.shared.lock().operations) {
            if let Some(task) = operation.task {
                task.abort();
            }
        }
        self.shared.life.send_modify(|life| *life += 1);
    }
    /// Starts the server again, with its database and without its operations.
    ///
    /// # Panics
    /// Its socket cannot be created.
    pub fn resume(&self) {
        let listener = tokio::net::UnixListener::bind(&self.socket).expect("a unix socket");
        let task = tokio::spawn(server::listen(listener, Arc::clone(&self.shared)));
        *self.listener.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
    }

    /// Takes a member offline or online.
    pub fn set_online(&self, member: &str, online: bool) {
        if let Some(m) = self.shared.lock().world.members.get_mut(member) {
            m.status = if online { "Online" } else { "Offline" };
        }
    }
    /// Adds an instance without using the API, for large clusters.
    pub fn put_instance(&self, project: &str, member: &str, new: &NewInstance, running: bool, usage: Usage) {
        let mut inner = self.shared.lock();
        let created_at = inner.world.now();
        let architecture =
            inner.world.members.get(member).map_or_else(|| "x86_64".into(), |m| m.architecture.clone());
        let instance = Instance {
            kind: "container".into(),
            location: member.into(),
            status: if running { "Running" } else { "Stopped" },
            architecture,
            description: new.description.clone(),
            ephemeral: new.ephemeral,
            stateful: false,
            config: new.config.clone(),
            devices: new.devices.clone(),
            profiles: if new.profiles.is_empty() { vec!["default".into()] } else { new.profiles.clone() },
            created_at,
            snapshots: BTreeMap::new(),
            usage,
        };
        inner.world.projects.entry(project.into()).or_default().instances.insert(new.name.clone(), instance);
    }
    /// Puts a volume there without asking the API.
    pub fn put_volume(&self, volume: Volume) {
        self.shared.lock().world.volumes.push(volume);
    }
    /// Removes all volumes of that name that are no instance's.
    pub fn remove_volumes(&self, name: &str) {
        self.shared.lock().world.volumes.retain(|v| v.name != name);
    }
    /// Stops or freezes an instance, or whatever else its status may be, without asking the API.
    pub fn set_status(&self, project: &str, instance: &str, status: &'static str) {
        let mut inner = self.shared.lock();
        let found = inner.world.projects.get_mut(project).and_then(|p| p.instances.get_mut(instance));
        if let Some(i) = found {
            i.status = status;
        }
    }
    /// Sets what an instance uses while it runs.
    pub fn set_usage(&self, project: &str, instance: &str, usage: Usage) {
        let mut inner = self.shared.lock();
        let found = inner.world.projects.get_mut(project).and_then(|p| p.instances.get_mut(instance));
        if let Some(i) = found {
            i.usage = usage;
        }
    }
    /// Sets a member's architecture.
    pub fn set_architecture(&self, member: &str, architecture: &str) {
        if let Some(m) = self.shared.lock().world.members.get_mut(member) {
            m.architecture = architecture.into();
        }
    }
    /// Adds a warning.
    pub fn warn(&self, kind: &str, severity: &str, message: &str) {
        let mut inner = self.shared.lock();
        let (uuid, now) = (inner.world.uuid(), inner.world.now());
        let warning = json!({
            "status": "new", "uuid": uuid, "location": "", "project": "", "type": kind, "count": 1,
            "first_seen_at": now, "last_seen_at": now, "last_message": message, "severity": severity,
            "entity_url": "",
        });
        inner.world.warnings.insert(uuid, warning);
    }
    /// Member and status of an instance, without using the API.
    pub fn whereabouts(&self, project: &str, instance: &str) -> Option<(String, String)> {
        let inner = self.shared.lock();
        let i = inner.world.projects.get(project)?.instances.get(instance)?;
        Some((i.location.clone(), i.status.to_owned()))
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.halt();
    }
}

/// Config of a request's body.
fn config_of(body: &Value) -> Config {
    map(&body["config"])
}
fn devices_of(body: &Value) -> Devices {
    body["devices"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, device)| (name.clone(), map(device)))
        .collect()
}
fn map(value: &Value) -> Config {
    value
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
        .collect()
}
fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| Some(v.as_str()?.to_owned())).collect()
}
