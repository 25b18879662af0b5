//! Resets an engine that was interrupted while it formed or joined a cluster, so that it starts over.
//!
//! A server killed while it joins or initialises can come back with a local database that names a cluster which does
//! not know it; no API undoes that. According to the journal nobody has used the engine yet, so its database may be
//! deleted. Files anywhere in its storage pools show the contrary: then nothing is touched.

use super::{daemon, disk};
use crate::blocking::blocking;
use rustix::{
    mount::{UnmountFlags, unmount},
    process::Signal,
};
use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

/// The engine could not be reset.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// It may contain data.
    #[error(
        "storage pools of the half-formed engine contain files ({0}), so it is left unchanged: move them away"
    )]
    InUse(PathBuf),
    /// A file operation failed.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another program listens on the socket.
    #[error("process {pid}, which listens on the engine's socket, is {name:?}, not an engine")]
    NotEngine {
        /// Process.
        pid: i32,
        /// Name of its executable.
        name: String,
    },
    /// A process does not end.
    #[error("engine process {0} does not end")]
    Alive(i32),
}

/// Stops the daemon, discards its database and cluster certificate, and removes its empty pools. The supervisor starts
/// it again.
///
/// # Errors
/// [`ResetError`]; after [`ResetError::InUse`] and [`ResetError::NotEngine`] nothing has changed.
pub async fn reset(socket: &Path, directory: &Path) -> Result<(), ResetError> {
    let (socket, owned) = (socket.to_owned(), directory.to_owned());
    let (stopped, discarded) = blocking(move || stop_and_discard(&socket, &owned)).await?;
    daemon::signal(&stopped, Signal::KILL);
    daemon::await_death(&stopped).await.map_err(ResetError::Alive)?;
    discarded?;
    let pools = directory.join("storage-pools");
    blocking(move || {
        entries(&pools).iter().try_for_each(|pool| remove_pool(pool).map_err(failed("remove", pool)))
    })
    .await
}

/// Returns the processes that were stopped and must now end, and whether the database could be discarded. Blocks.
fn stop_and_discard(
    socket: &Path,
    directory: &Path,
) -> Result<(BTreeSet<i32>, Result<(), ResetError>), ResetError> {
    for pool in entries(&directory.join("storage-pools")) {
        if !disk::only_directories(&pool).unwrap_or(false) {
            return Err(ResetError::InUse(pool));
        }
    }
    refuse_strangers(socket)?;
    // Stopped, not killed: it must not write while its files are removed, and a dead one would be started again. A
    // process started before the database was gone has seen it, so there is one more round.
    let mut stopped = BTreeSet::new();
    let discarded = loop {
        let daemons = daemon::running(directory);
        daemon::signal(&daemons, Signal::STOP);
        stopped.extend(daemons);
        let discarded = discard(directory);
        if discarded.is_err() || daemon::running(directory).is_subset(&stopped) {
            break discarded;
        }
    };
    Ok((stopped, discarded))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ResetError + use<> {
    let path = path.to_owned();
    move |source| ResetError::File { action, path, source }
}

/// Entries of a directory; empty when it does not exist.
pub fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|e| e.path()).collect()
}

/// Refuses when a program other than an engine listens on the engine's socket.
fn refuse_strangers(socket: &Path) -> Result<(), ResetError> {
    let Ok(pid) = daemon::listener(socket) else { return Ok(()) };
    let pid = pid.as_raw_nonzero().get();
    match daemon::executable(pid) {
        Some(name) if !daemon::is_engine(&name) => Err(ResetError::NotEngine { pid, name }),
        _ => Ok(()),
    }
}

/// Moves the database aside in one step, then deletes it: a crash in between leaves either the old state, from which
/// this is repeated, or a fresh one. The daemon must be stopped.
///
/// # Errors
/// Those of moving and deleting.
pub fn discard(directory: &Path) -> Result<(), ResetError> {
    for name in ["cluster.crt", "cluster.key", "cluster.ca"] {
        let path = directory.join(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &path)(e)),
            _ => {}
        }
    }
    let (database, aside) = (directory.join("database"), directory.join("database.half-formed"));
    match fs::remove_dir_all(&aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &aside)(e)),
        _ => {}
    }
    match fs::rename(&database, &aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("move aside", &database)(e)),
        _ => {}
    }
    let _ = fs::remove_dir_all(&aside);
    Ok(())
}

/// Unmounts and removes the remains of a pool without files.
///
/// # Errors
/// It contains files, or its disk is in use.
pub fn remove_pool(pool: &Path) -> io::Result<()> {
    loop {
        match unmount(pool, UnmountFlags::empty()) {
            // There may be another mount underneath.
            Ok(()) => {}
            // Not a mount point: a pool of plain directories.
            Err(rustix::io::Errno::INVAL) => break,
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
    remove_directories(pool)
}

/// Removes a tree of directories; fails at the first file, having removed none.
fn remove_directories(tree: &Path) -> io::Result<()> {
    for entry in fs::read_dir(tree)? {
        remove_directories(&entry?.path())?;
    }
    fs::remove_dir(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn discards_the_database_and_empty_pools() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        for d in ["database/global", "storage-pools/default/containers", "images"] {
            fs::create_dir_all(at(d)).unwrap();
        }
        for f in ["database/local.db", "cluster.crt", "cluster.key", "server.crt"] {
            fs::write(at(f), "x").unwrap();
        }
        reset(&at("unix.socket"), dir.path()).await.unwrap();
        for gone in
            ["database", "database.half-formed", "cluster.crt", "cluster.key", "storage-pools/default"]
        {
            assert!(!at(gone).exists(), "{gone} is still there");
        }
        assert!(at("server.crt").exists() && at("images").exists());
    }

    #[tokio::test]
    async fn files_in_a_pool_prevent_a_reset() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("database")).unwrap();
        fs::create_dir_all(dir.path().join("storage-pools/default/containers/c1")).unwrap();
        fs::write(dir.path().join("storage-pools/default/containers/c1/rootfs"), "x").unwrap();
        let e = reset(&dir.path().join("unix.socket"), dir.path()).await.unwrap_err();
        assert!(matches!(e, ResetError::InUse(_)));
        assert!(dir.path().join("database").exists());
    }

    #[tokio::test]
    async fn kills_nothing_but_an_engine() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("unix.socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let e = reset(&socket, dir.path()).await.unwrap_err();
        assert!(matches!(e, ResetError::NotEngine { .. }), "{e}");
    }
}
