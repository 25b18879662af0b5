//! What the scripts do.
//!
//! Owns the order of things on this host: which VM is locked, what is mapped, made, started, and what is undone when
//! something fails. Does not own how an instance is described ([`crate::instance`]), how a disk is mapped
//! ([`crate::disks`]) or what the engine is asked ([`crate::engine`]).
//!
//! Two VMs never wait for each other, but where both look for a free device.

mod context;
mod deploy;
mod hotplug;
mod migrate;
mod resize;
mod save;
mod snapshot;
mod stop;

use crate::{
    disks::{DiskError, Mapper, Place},
    document::{self, DocumentError, Vm},
    engine::{self, Driver, Engine, EngineError},
    ids::{DiskId, IdError, InstanceName},
    instance::InstanceError,
    lxdrc::{self, Lxdrc, LxdrcError},
    monitor::Probe,
    payload::{self, PayloadError},
    say::{Ending, Log},
    script::{self, Ask, Call, CallError, Script},
};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

/// A script failed.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    /// Called wrongly.
    #[error(transparent)]
    Call(#[from] CallError),
    /// No document on stdin.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// An unusable document.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A value of it.
    #[error(transparent)]
    Value(#[from] IdError),
    /// An unusable configuration.
    #[error(transparent)]
    Lxdrc(#[from] LxdrcError),
    /// An instance that cannot be.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The disks.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The call and its document speak of different VMs.
    #[error("the script was called for {called}, but its document is of {document}")]
    OtherVm {
        /// By the arguments.
        called: String,
        /// By the document.
        document: String,
    },
    /// There is an instance of this name that runs.
    #[error("instance {0} runs already")]
    Running(InstanceName),
    /// There is an instance of this name that OpenNebula did not make.
    #[error("instance {0} is there already, and was not made by OpenNebula")]
    Foreign(InstanceName),
    /// No such instance on this host.
    #[error("there is no instance {0} on this host")]
    Absent(InstanceName),
    /// Something that imported instances cannot have done to them.
    #[error(
        "{action} is not possible for instance {name}, which was imported: it has no disks of OpenNebula"
    )]
    Imported {
        /// What was asked.
        action: &'static str,
        /// For whom.
        name: InstanceName,
    },
    /// The document does not tell which device is meant.
    #[error("the document has no {0}")]
    NoDevice(String),
    /// A file of the driver's own.
    #[error("cannot {action} {}", .path.display())]
    File {
        /// What was done.
        action: &'static str,
        /// With which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file outside of the datastores.
    #[error("{} is not in {}", .path.display(), .datastores.display())]
    OutsideDatastores {
        /// Which.
        path: PathBuf,
        /// Where it should be.
        datastores: PathBuf,
    },
    /// What `save` wrote is not what `restore` got.
    #[error("{} was not written by save", .0.display())]
    Checkpoint(PathBuf),
    /// A VM with snapshots cannot leave.
    #[error("instance {0} has snapshots, which cannot move with it: delete them first")]
    Snapshots(InstanceName),
    /// The other host refused.
    #[error("host {host} could not take the VM over: {said}")]
    Elsewhere {
        /// Which.
        host: String,
        /// What it said.
        said: String,
    },
    /// Nowhere to go.
    #[error("{0}")]
    Refused(String),
    /// The console.
    #[error(transparent)]
    Console(#[from] crate::console::ConsoleError),
}

impl From<crate::disks::place::PlaceError> for ActError {
    fn from(error: crate::disks::place::PlaceError) -> Self {
        Self::Disk(error.into())
    }
}

/// Where and as what a script runs.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The script's path as it was called; absent: by hand.
    pub script_path: Option<PathBuf>,
    /// This program, which supervises consoles.
    pub program: PathBuf,
    /// `/run/stead-one`.
    pub run: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
    /// Who called sudo: connections to other hosts are theirs.
    pub user: Option<String>,
}

impl Surroundings {
    /// The driver that was called.
    pub fn driver(&self) -> Driver {
        self.script_path.as_deref().and_then(engine::remotes).map_or(Driver::Lxd, |(_, driver)| driver)
    }
    /// OpenNebula's directory on hosts.
    pub fn remotes(&self) -> PathBuf {
        let found = self.script_path.as_deref().and_then(engine::remotes).map(|(remotes, _)| remotes);
        found.unwrap_or_else(|| PathBuf::from("/var/tmp/one"))
    }
    /// The driver's configuration.
    pub fn lxdrc(&self) -> PathBuf {
        self.remotes().join("etc/vmm").join(self.driver().name()).join("lxdrc")
    }
    /// Whether reboot and reset come twice: OpenNebula 5.10 to 6.8, for drivers of the name lxd. `VERSION` lies in the
    /// remotes; without one it is not 5.8.
    pub fn restarts_twice(&self) -> bool {
        let version = fs::read_to_string(self.remotes().join("VERSION")).unwrap_or_default();
        let mut numbers = version.trim().split('.').map(|n| n.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let twice = version == (0, 0) || ((5, 10)..=(6, 8)).contains(&version);
        self.driver() == Driver::Lxd && twice
    }
}

/// Whether there is a script or a probe of this name.
pub fn is_known(name: &str) -> bool {
    name.parse::<Script>().is_ok() || Probe::ALL.iter().any(|(_, _, n)| *n == name)
}

/// Runs what an installed script calls: a script of the protocol or a probe, by its name.
pub fn run_named(
    name: &str,
    arguments: &[String],
    surroundings: &Surroundings,
    stdin: impl Read,
    stdout: impl Write,
    stderr: impl Write,
) -> Ending {
    if let Some((probe, ..)) = Probe::ALL.into_iter().find(|(_, _, n)| *n == name) {
        return run_probe(probe, name, surroundings, stdout, stderr);
    }
    match name.parse::<Script>() {
        Ok(script) => run(script, arguments, surroundings, stdin, stdout, stderr),
        Err(error) => {
            Log::new("stead one", stderr).failure(&error);
            Ending::Failure
        }
    }
}

/// Runs a probe. What it reads of stdin is nothing: OpenNebula sends its own configuration there.
fn run_probe(
    probe: Probe,
    name: &str,
    surroundings: &Surroundings,
    mut stdout: impl Write,
    stderr: impl Write,
) -> Ending {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime
        .map_err(|source| ActError::File { action: "start", path: "the runtime".into(), source })
        .and_then(|runtime| {
            let (rc, _) = lxdrc::load(&surroundings.lxdrc())?;
            runtime.block_on(crate::monitor::probe(probe, surroundings, &rc))
        });
    match result {
        Ok(text) if stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_ok() => {
            Ending::Success
        }
        Ok(_) => Ending::Failure,
        Err(error) => {
            let mut stderr = stderr;
            let _ = writeln!(stderr, "ERROR: {name}: {}", stead_os::chain(&error));
            Ending::Failure
        }
    }
}

/// Runs a script to its end. Nothing is read of `stdin` by a script that needs none.
pub fn run(
    script: Script,
    arguments: &[String],
    surroundings: &Surroundings,
    stdin: impl Read,
    mut stdout: impl Write,
    stderr: impl Write,
) -> Ending {
    let mut log = Log::new(script.name(), stderr);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(act(script, arguments, surroundings, stdin, &mut log)),
        Err(source) => Err(ActError::File { action: "start", path: "the runtime".into(), source }),
    };
    match result {
        Ok(answer) => {
            if !answer.is_empty() && writeln!(stdout, "{answer}").and_then(|()| stdout.flush()).is_err() {
                log.error("the answer could not be written");
                return Ending::Failure;
            }
            Ending::Success
        }
        Err(error) => {
            log.failure(&error);
            Ending::Failure
        }
    }
}

async fn act(
    script: Script,
    arguments: &[String],
    surroundings: &Surroundings,
    stdin: impl Read,
    log: &mut Log<'_>,
) -> Result<String, ActError> {
    let Call { ask, vm: called } = script::parse(script, arguments)?;
    let document = if script.reads_stdin() { Some(payload::read(stdin)?) } else { None };
    if let Ask::Migrate { local: true, from, destination, name } = &ask {
        // On the frontend there is no engine: the VM's host does it.
        return migrate::ask(surroundings, from, destination, name, called, &document.unwrap_or_default());
    }
    let document = document.map(|text| document::read(&text)).transpose()?;
    if let (Some((vm, _)), Some(called)) = (&document, called)
        && vm.id != called
    {
        return Err(ActError::OtherVm { called: format!("VM {called}"), document: format!("VM {}", vm.id) });
    }
    let (rc, unknown) = lxdrc::load(&surroundings.lxdrc())?;
    for key in unknown {
        log.info(format_args!("lxdrc: key {key} is not known and does nothing"));
    }
    if let Ask::Poll { name } = &ask {
        return crate::monitor::poll_one(surroundings, &rc, name).await;
    }
    if let Ask::PollAll = &ask {
        let templates = arguments.iter().any(|a| a == "-t");
        return crate::monitor::poll_all(surroundings, &rc, templates).await;
    }
    let name = match (&ask, &document) {
        (Ask::Deploy, Some((vm, _))) => vm.name.clone(),
        _ => name_of(&ask),
    };
    if let Some((vm, _)) = &document
        && vm.name != name
    {
        return Err(ActError::OtherVm { called: name.to_string(), document: vm.name.to_string() });
    }
    let place = Place { run: surroundings.run.clone(), datastores: rc.datastore_location.clone() };
    let _lock = lock(&place, &name)?;
    let engine = Engine::connect(surroundings.driver(), &rc).await?;
    engine.settle(&name).await?;
    let mut job = Job { name, rc: &rc, place: &place, engine: &engine, surroundings, log };
    let (vm, text) = document.unzip();
    let need = || DocumentError::Missing("VM");
    match ask {
        Ask::Deploy => job.deploy(&vm.ok_or_else(need)?, &text.unwrap_or_default(), None).await,
        Ask::Stop { force, .. } => job.stop(force).await.map(|()| String::new()),
        Ask::Restart { force, .. } => job.restart(force).await.map(|()| String::new()),
        Ask::Save { checkpoint, .. } => job.save(&checkpoint).await.map(|()| String::new()),
        Ask::Restore { checkpoint, .. } => job.restore(&checkpoint, vm, text).await.map(|()| String::new()),
        Ask::Migrate { destination, .. } => {
            let text = text.unwrap_or_default();
            job.migrate(&vm.ok_or_else(need)?, &text, &destination).await.map(|()| String::new())
        }
        Ask::AttachDisk { .. } => {
            job.attach_disk(&vm.ok_or_else(need)?, &text.unwrap_or_default()).await.map(|()| String::new())
        }
        Ask::DetachDisk { .. } => job.detach_disk(&vm.ok_or_else(need)?).await.map(|()| String::new()),
        Ask::AttachNic { mac, .. } => job
            .attach_nic(&vm.ok_or_else(need)?, &text.unwrap_or_default(), &mac)
            .await
            .map(|()| String::new()),
        Ask::DetachNic { mac, .. } => {
            job.detach_nic(&vm.ok_or_else(need)?, &mac).await.map(|()| String::new())
        }
        Ask::DropContext { .. } => job.drop_context().await.map(|()| String::new()),
        Ask::PutContext { present: false, .. } => Ok(String::new()),
        Ask::PutContext { .. } => {
            job.put_context(&vm.ok_or_else(need)?, &text.unwrap_or_default()).await.map(|()| String::new())
        }
        Ask::SnapshotCreate { id, .. } => job.snapshot_create(id).await,
        Ask::SnapshotRevert { snapshot, .. } => job.snapshot_revert(&snapshot).await.map(|()| String::new()),
        Ask::SnapshotDelete { snapshot, .. } => job.snapshot_delete(&snapshot).await.map(|()| String::new()),
        Ask::ResizeDisk { disk, size_mib, .. } => {
            job.resize_disk(disk, size_mib).await.map(|()| String::new())
        }
        Ask::Resize { .. } => job.resize(&vm.ok_or_else(need)?).await.map(|()| String::new()),
        Ask::Poll { .. } | Ask::PollAll => Ok(String::new()),
    }
}

fn name_of(ask: &Ask) -> InstanceName {
    match ask {
        Ask::Stop { name, .. }
        | Ask::Restart { name, .. }
        | Ask::Save { name, .. }
        | Ask::Restore { name, .. }
        | Ask::Migrate { name, .. }
        | Ask::AttachDisk { name }
        | Ask::DetachDisk { name }
        | Ask::AttachNic { name, .. }
        | Ask::DetachNic { name, .. }
        | Ask::DropContext { name }
        | Ask::PutContext { name, .. }
        | Ask::SnapshotCreate { name, .. }
        | Ask::SnapshotRevert { name, .. }
        | Ask::SnapshotDelete { name, .. }
        | Ask::ResizeDisk { name, .. }
        | Ask::Resize { name }
        | Ask::Poll { name } => name.clone(),
        Ask::Deploy | Ask::PollAll => InstanceName::of(crate::ids::VmId(0)),
    }
}

/// One VM, one script at a time.
fn lock(place: &Place, name: &InstanceName) -> Result<File, ActError> {
    let directory = place.run.join("locks");
    let make = |source| ActError::File { action: "make", path: directory.clone(), source };
    fs::create_dir_all(&directory).map_err(make)?;
    // What is mounted below is nobody else's to see.
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&place.run, fs::Permissions::from_mode(0o711)).map_err(make)?;
    let path = directory.join(name.as_str());
    let file = File::create(&path).map_err(|source| ActError::File {
        action: "open",
        path: path.clone(),
        source,
    })?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).map_err(|e| ActError::File {
        action: "lock",
        path,
        source: e.into(),
    })?;
    Ok(file)
}

/// A script at work on one VM.
struct Job<'a, 'l> {
    name: InstanceName,
    rc: &'a Lxdrc,
    place: &'a Place,
    engine: &'a Engine,
    surroundings: &'a Surroundings,
    log: &'a mut Log<'l>,
}

impl<'a> Job<'a, '_> {
    fn mapper(&self) -> Result<Mapper<'a>, ActError> {
        Ok(Mapper::open(self.place, &self.name, &self.rc.filesystem)?)
    }
    /// The instance, which must be there.
    async fn instance(&self) -> Result<stead_incus::types::Instance, ActError> {
        let found = self.engine.instance(&self.name).await?;
        found.map(|t| t.value).ok_or_else(|| ActError::Absent(self.name.clone()))
    }
    /// Where a disk is mounted on this host.
    fn mountpoint(&self, vm: &Vm, disk: DiskId, pool: &str) -> PathBuf {
        if vm.root == Some(disk) {
            self.engine.rootfs(pool, &self.name)
        } else {
            self.place.mountpoint(&self.name, disk)
        }
    }
    fn say_notes(&mut self, mapper: &mut Mapper<'_>) {
        for note in mapper.notes.drain(..) {
            self.log.info(note);
        }
    }
    /// A path for a file of the VM in a datastore; links in its directory do not lead out.
    fn in_datastores(&self, path: &Path) -> Result<PathBuf, ActError> {
        let outside = || ActError::OutsideDatastores {
            path: path.to_owned(),
            datastores: self.place.datastores.clone(),
        };
        let parent = path.parent().and_then(|p| fs::canonicalize(p).ok()).ok_or_else(outside)?;
        let file = path.file_name().ok_or_else(outside)?;
        let datastores = fs::canonicalize(&self.place.datastores).map_err(|_| outside())?;
        // A datastore may itself be a link to where there is room.
        let own = self.place.datastores.read_dir().into_iter().flatten().flatten();
        let roots = own.filter_map(|d| fs::canonicalize(d.path()).ok()).chain([datastores]);
        if !roots.into_iter().any(|root| parent.starts_with(root)) {
            return Err(outside());
        }
        Ok(parent.join(file))
    }
}
