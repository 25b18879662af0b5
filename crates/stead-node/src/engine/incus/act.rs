//! Observes an engine and executes steps on it. Makes no choices: `plan` does.

use super::{
    disk::{self, Content, Disk},
    plan::{Observed, Step},
    reset,
};
use crate::blocking::blocking;
use futures_util::{StreamExt as _, future, stream::FuturesUnordered};
use std::{
    io::ErrorKind,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};
use stead_incus::{
    Client, Error, JoinToken, Request,
    client::OPERATION_TIMEOUT,
    requests::{networks, profiles, projects, server, storage},
    tls,
    types::Server,
};

/// Time limit for a member's TLS handshake; a running member answers in milliseconds.
const HANDSHAKE: Duration = Duration::from_secs(3);
/// Pause between looks for a new filesystem: mkfs takes tens of milliseconds; the engine looks for the link right after
/// it, then only every 500 ms.
const LINK_POLL: Duration = Duration::from_millis(3);

/// How long an unmount is waited for: the kernel may still be unmounting a killed node's pool.
const UNMOUNT: Duration = Duration::from_secs(20);

/// A step or an observation failed.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    /// A request to the engine failed.
    #[error(transparent)]
    Engine(#[from] Error),
    /// An operation on the storage disk failed.
    #[error("cannot {action} storage disk {device}")]
    Disk {
        /// What was tried.
        action: &'static str,
        /// On what.
        device: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The remains of a pool cannot be removed.
    #[error("cannot remove the remains of the storage pool in {path}")]
    Leftover {
        /// Its directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No member in the token can be reached.
    #[error("none of the members that the token names ({addresses}) can be reached")]
    Unreachable {
        /// The addresses.
        addresses: String,
        /// The error of the last one.
        #[source]
        source: Option<Error>,
    },
    /// Another server answers at a member's address.
    #[error("the certificate of {address} is not that of the cluster in the token")]
    Stranger {
        /// The address.
        address: String,
    },
}

/// Observes everything that plans need. `device` is the storage disk's, `directory` the engine's.
///
/// # Errors
/// The engine does not answer, or the disk cannot be read.
pub async fn observe(
    client: &Client,
    server: &Server,
    device: Option<&Path>,
    directory: &Path,
) -> Result<Observed, ActError> {
    if server.environment.server_clustered {
        return Ok(Observed { clustered: true, config: server.config.clone(), ..Observed::default() });
    }
    let (pools, all_projects) = future::try_join(client.storage_pools(), client.projects()).await?;
    let mut networks = Vec::new();
    let mut profiles = Vec::new();
    for project in &all_projects {
        let own = |feature: &str| {
            project.name == "default" || project.config.get(feature).is_some_and(|v| v == "true")
        };
        if own("features.networks") {
            let found = client.networks(&project.name).await?;
            networks.extend(found.into_iter().filter(|n| n.managed).map(|n| (project.name.clone(), n)));
        }
        if own("features.profiles") {
            let found = client.profiles(&project.name).await?;
            profiles.extend(found.into_iter().map(|p| (project.name.clone(), p)));
        }
    }
    let (device, owned) = (device.map(Path::to_owned), directory.to_owned());
    let names = pools.iter().map(|p| p.name.clone()).collect();
    let Storage { disk, disk_unused, leftovers } =
        blocking(move || look_at_storage(device, &owned, names)).await?;
    Ok(Observed {
        clustered: false,
        config: server.config.clone(),
        pools,
        networks,
        projects: all_projects,
        profiles,
        disk,
        disk_unused,
        leftovers,
        pools_directory: directory.join("storage-pools"),
    })
}

/// Contents of the storage disk and of the engine's directory.
struct Storage {
    disk: Option<Disk>,
    disk_unused: bool,
    leftovers: Vec<(PathBuf, bool)>,
}

/// Reads the disk, and mounts its pool if needed to see whether it was used. Blocks.
fn look_at_storage(
    device: Option<PathBuf>,
    directory: &Path,
    pools: Vec<String>,
) -> Result<Storage, ActError> {
    let leftovers = leftovers(directory, &pools);
    let mut disk_unused = false;
    let disk = match device {
        None => None,
        Some(device) => {
            let failed = |action| {
                let device = device.clone();
                move |source| ActError::Disk { action, device, source }
            };
            let content = disk::probe(&device).map_err(failed("read"))?;
            if matches!(content, Content::Btrfs { .. }) && pools.is_empty() {
                // If it is still mounted where the engine left it, it cannot be mounted read-only a second time.
                let mounted = leftovers.iter().find(|(path, _)| is_mount_point(path));
                disk_unused = match mounted {
                    Some((_, holds_files)) => !holds_files,
                    None => disk::is_unused_pool(&device, directory).map_err(failed("look into"))?,
                };
            }
            Some(Disk { device, content })
        }
    };
    Ok(Storage { disk, disk_unused, leftovers })
}

/// Directories under `storage-pools` that belong to none of the engine's pools, and whether they contain files or
/// cannot be read.
fn leftovers(directory: &Path, pools: &[String]) -> Vec<(PathBuf, bool)> {
    reset::entries(&directory.join("storage-pools"))
        .into_iter()
        .filter(|path| !pools.iter().any(|p| path.ends_with(p)))
        .map(|path| {
            let holds_files = !disk::only_directories(&path).unwrap_or(false);
            (path, holds_files)
        })
        .collect()
}

fn is_mount_point(path: &Path) -> bool {
    let device = |p: &Path| std::fs::metadata(p).map(|m| m.dev()).ok();
    path.parent().is_some_and(|parent| device(path) != device(parent))
}

/// The request of a step; `None` for a step without the engine.
pub fn request(step: &Step) -> Option<Request> {
    let request = match step {
        Step::WipeDisk { .. } | Step::RemoveLeftover { .. } => return None,
        Step::SetConfig { config } => server::patch_config(config),
        Step::CreatePool { name, driver, config, description } => {
            storage::create_pool(name, driver, config, description)
        }
        Step::PatchPool { name, config } => storage::patch_pool(name, config),
        Step::DeletePool { name } => storage::delete_pool(name),
        Step::CreateNetwork { project, name, kind, config, description } => {
            networks::create(project, name, kind, config, description)
        }
        Step::PatchNetwork { project, name, config } => networks::patch(project, name, config),
        Step::DeleteNetwork { project, name } => networks::delete(project, name),
        Step::CreateProject { name, config, description } => projects::create(name, config, description),
        Step::PatchProject { name, config } => projects::patch(name, config),
        Step::CreateProfile { project, name, config, devices, description } => {
            profiles::create(project, name, config, devices, description)
        }
        Step::PatchProfile { project, name, config, devices } => {
            profiles::patch(project, name, config, devices)
        }
        Step::Bootstrap { member } => stead_incus::requests::cluster::bootstrap(member),
    };
    Some(request.within(OPERATION_TIMEOUT))
}

/// Executes one step.
///
/// # Errors
/// Those of the engine or the disk.
pub async fn apply(client: &Client, step: &Step) -> Result<(), ActError> {
    if let Step::RemoveLeftover { path } = step {
        let owned = path.clone();
        let removed = blocking(move || reset::remove_pool(&owned)).await;
        return removed.map_err(|source| ActError::Leftover { path: path.clone(), source });
    }
    if let Step::WipeDisk { device } = step {
        let begun = tokio::time::Instant::now();
        loop {
            let owned = device.clone();
            match blocking(move || disk::wipe(&owned)).await {
                Err(e) if e.kind() == ErrorKind::ResourceBusy && begun.elapsed() < UNMOUNT => {
                    tokio::time::sleep(LINK_POLL * 10).await;
                }
                done => {
                    return done.map_err(|source| ActError::Disk {
                        action: "wipe",
                        device: device.clone(),
                        source,
                    });
                }
            }
        }
    }
    if let Some(request) = request(step) {
        client.run(&request, OPERATION_TIMEOUT).await?;
    }
    Ok(())
}

/// Makes the by-uuid link of the storage disk as soon as it has a filesystem. Never ends; runs beside the step that
/// makes the pool.
pub async fn link_when_formatted(device: &Path, dev: &Path) -> std::convert::Infallible {
    let unwanted = Arc::new(AtomicBool::new(false));
    let _when_dropped = Flag(Arc::clone(&unwanted));
    let (device, dev) = (device.to_owned(), dev.to_owned());
    blocking(move || {
        while !unwanted.load(Ordering::Relaxed) {
            if let Some(uuid) = disk::btrfs_uuid(&device) {
                // A wiped pool gets a new filesystem with another UUID: keep looking.
                let _ = disk::link_by_uuid(&uuid, &device, &dev);
            }
            thread::sleep(LINK_POLL);
        }
    })
    .await;
    future::pending().await
}

/// A flag that is set when this is dropped.
struct Flag(Arc<AtomicBool>);

impl Drop for Flag {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Asks all members in the token at once for the cluster's certificate. Returns the address of the first that answers
/// with the token's certificate, and the certificate as PEM.
///
/// # Errors
/// None answers, or another server does.
pub async fn cluster_certificate(token: &JoinToken) -> Result<(String, String), ActError> {
    let mut asked: FuturesUnordered<_> = token
        .addresses
        .iter()
        .map(|address| async move { (address, tls::fetch_certificate(address, HANDSHAKE).await) })
        .collect();
    let (mut stranger, mut last) = (None, None);
    while let Some((address, answer)) = asked.next().await {
        match answer {
            Ok(der) if tls::fingerprint(&der).eq_ignore_ascii_case(&token.fingerprint) => {
                return Ok((address.clone(), tls::certificate_to_pem(&der)));
            }
            Ok(_) => stranger = Some(address.clone()),
            Err(e) => last = Some(e),
        }
    }
    Err(match stranger {
        Some(address) => ActError::Stranger { address },
        None => ActError::Unreachable { addresses: token.addresses.join(", "), source: last },
    })
}
