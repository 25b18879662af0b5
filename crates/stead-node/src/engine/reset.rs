//! Puts away an engine that was interrupted half-way into a cluster, so that it begins anew.
//!
//! A server killed while it joins (or initialises) can come back with a local database that names a cluster which does
//! not know it; no API undoes that. As long as the journal says so, nobody has used the engine, so its database
//! may go. Files anywhere in its storage pools are taken as a sign to the contrary: then nothing is touched.

use super::disk;
use rustix::{
    mount::{UnmountFlags, unmount},
    net::sockopt::socket_peercred,
    process::{Pid, Signal, kill_process},
};
use std::{
    fs, io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

/// The engine could not be put away.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// Not ours to throw away.
    #[error("storage pools of the half-formed engine hold files ({0}): they are left alone")]
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
    /// What listens is no engine.
    #[error("process {pid} that listens on the engine's socket is {name:?}, not an engine")]
    NotEngine {
        /// Process.
        pid: i32,
        /// Name of its executable.
        name: String,
    },
    /// It does not die.
    #[error("engine process {0} does not end")]
    Alive(i32),
}

/// A killed process is gone within milliseconds; one that hangs in the kernel (on a dead disk) may take for ever.
const DEATH: Duration = Duration::from_secs(10);

/// Stops the daemon, discards its database and cluster certificate, and takes its empty pools away. The supervisor
/// starts it again.
///
/// # Errors
/// [`ResetError`]; nothing is changed by [`ResetError::InUse`] and [`ResetError::NotEngine`].
pub async fn reset(socket: &Path, directory: &Path) -> Result<(), ResetError> {
    let pools = directory.join("storage-pools");
    for pool in entries(&pools) {
        if !disk::only_directories(&pool).unwrap_or(false) {
            return Err(ResetError::InUse(pool));
        }
    }
    let daemon = daemon(socket)?;
    if let Some(pid) = daemon {
        // Stopped first: it must not write while its files are taken away, and dead it would be started again.
        let _ = kill_process(pid, Signal::STOP);
    }
    let discarded = discard(directory);
    if let Some(pid) = daemon {
        let _ = kill_process(pid, Signal::KILL);
        await_death(pid).await?;
    }
    discarded?;
    for pool in entries(&pools) {
        remove_pool(&pool).map_err(failed("remove", &pool))?;
    }
    Ok(())
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ResetError + use<> {
    let path = path.to_owned();
    move |source| ResetError::File { action, path, source }
}

/// What is in a directory; nothing when there is none.
pub fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|e| e.path()).collect()
}

/// The process that listens on the socket.
fn daemon(socket: &Path) -> Result<Option<Pid>, ResetError> {
    let Ok(stream) = UnixStream::connect(socket) else { return Ok(None) };
    let Ok(credentials) = socket_peercred(&stream) else { return Ok(None) };
    let pid = credentials.pid;
    let raw = pid.as_raw_nonzero().get();
    // A process that is just dying has no executable any more.
    let Ok(exe) = fs::read_link(format!("/proc/{raw}/exe")) else { return Ok(Some(pid)) };
    let name = exe.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // An upgraded package leaves "incusd (deleted)".
    match name.split(' ').next() {
        Some("incusd" | "lxd") => Ok(Some(pid)),
        _ => Err(ResetError::NotEngine { pid: raw, name }),
    }
}

/// Moves the database aside in one step, then deletes it: a crash in between leaves either the old state, from which
/// this is done again, or a fresh one. The daemon must be stopped.
///
/// # Errors
/// Of moving and deleting.
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

async fn await_death(pid: Pid) -> Result<(), ResetError> {
    let raw = pid.as_raw_nonzero().get();
    let deadline = tokio::time::Instant::now() + DEATH;
    while alive(raw) {
        if tokio::time::Instant::now() > deadline {
            return Err(ResetError::Alive(raw));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// A zombie is dead: only its parent has not looked yet.
fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|s| s.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z')))
}

/// Unmounts and removes what is left of a pool without files.
///
/// # Errors
/// It holds files, or its disk is in use.
pub fn remove_pool(pool: &Path) -> io::Result<()> {
    loop {
        match unmount(pool, UnmountFlags::empty()) {
            // There may be another mount below.
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
    async fn files_in_a_pool_stop_it() {
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
