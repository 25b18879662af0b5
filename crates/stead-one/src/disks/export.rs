//! Exports a qcow2 image as a raw file, by a qemu-storage-daemon with a FUSE export and a control socket.
//!
//! Owns the daemon from its start to its end. Does not own the paths of its files, which the plan chooses.

use super::{DiskError, mounts, program, step::Cache};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};
use stead_os::{
    PathContext, PathError, command,
    qmp::{BlockResize, Qmp, QmpError},
};

const DAEMON: &str = "qemu-storage-daemon";
/// Name of the image among the daemon's block nodes.
const NODE: &str = "disk";
/// Time limit for a daemon to end before it is killed.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// Pause between two looks while waiting.
const GLANCE: Duration = Duration::from_millis(20);
/// Time limit for connecting: the daemon listens before it daemonises.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// Time limit for growing an image, which only writes metadata.
const GROW_PATIENCE: Duration = Duration::from_secs(60);

/// Whether this host supports it.
pub(super) fn is_possible() -> bool {
    command::find(DAEMON).is_some() && Path::new("/dev/fuse").exists()
}

/// Grows the image that the daemon behind `control` exports.
pub(super) async fn grow(control: &Path, size_bytes: u64) -> Result<(), DiskError> {
    let failed = |source: QmpError| DiskError::Daemon { control: control.to_owned(), source };
    let qmp = Qmp::connect(control, CONNECT_PATIENCE).await.map_err(failed)?;
    let resize = BlockResize { node_name: NODE.to_owned(), size: size_bytes };
    qmp.execute(&resize, GROW_PATIENCE).await.map_err(failed)?;
    Ok(())
}

/// QEMU's options for OpenNebula's CACHE.
fn cache_options(cache: Option<&Cache>) -> serde_json::Value {
    let cache = cache.map_or("", |c| c.0.as_str());
    serde_json::json!({
        "direct": matches!(cache, "none" | "directsync"),
        "no-flush": cache == "unsafe",
    })
}

/// Starts a daemon that exports a qcow2 image as the file `at`.
pub(super) fn begin(
    image: &Path,
    at: &Path,
    pidfile: &Path,
    control: &Path,
    cache: Option<&Cache>,
    readonly: bool,
) -> Result<(), DiskError> {
    fs::write(at, "").at("make", at)?;
    let file = serde_json::json!({
        "driver": "file", "node-name": "file", "filename": image, "read-only": readonly,
        "auto-read-only": false, "cache": cache_options(cache), "discard": "unmap",
    });
    let format = serde_json::json!({
        "driver": "qcow2", "node-name": NODE, "file": "file", "read-only": readonly, "discard": "unmap",
        "cache": cache_options(cache),
    });
    let export = serde_json::json!({
        "type": "fuse", "id": "export", "node-name": NODE, "mountpoint": at, "writable": !readonly,
        "growable": false,
    });
    let control = control.display().to_string();
    if control.contains(',') {
        return Err(DiskError::Unexpected(format!("{control} cannot be a control socket: it has a comma")));
    }
    let pidfile = pidfile.display().to_string();
    let arguments = [
        "--daemonize".to_owned(),
        "--pidfile".to_owned(),
        pidfile,
        "--chardev".to_owned(),
        format!("socket,id=control,path={control},server=on,wait=off"),
        "--monitor".to_owned(),
        "chardev=control".to_owned(),
        "--blockdev".to_owned(),
        file.to_string(),
        "--blockdev".to_owned(),
        format.to_string(),
        "--export".to_owned(),
        export.to_string(),
    ];
    program(DAEMON).args(arguments).run()?;
    Ok(())
}

/// Ends the daemon, if it is this one, and removes its files.
pub(super) fn end(pidfile: &Path, at: &Path) -> Result<(), DiskError> {
    let pid = fs::read_to_string(pidfile).ok().and_then(|t| t.trim().parse::<i32>().ok());
    // The number may belong to another process by now: its arguments identify it.
    let ours = |pid: i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&*at.to_string_lossy())
    };
    if let Some(pid) = pid.filter(|pid| ours(*pid))
        && let Some(process) = Pid::from_raw(pid)
    {
        let deadline = Instant::now() + END_PATIENCE;
        let _ = kill_process(process, Signal::TERM);
        while ours(pid) {
            if Instant::now() > deadline {
                let _ = kill_process(process, Signal::KILL);
            }
            thread::sleep(GLANCE);
        }
    }
    mounts::detach(at)?;
    for path in [at.to_owned(), pidfile.to_owned(), control(pidfile)] {
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(PathError::new("remove", &path)(e).into());
            }
            _ => {}
        }
    }
    Ok(())
}

/// The control socket beside a daemon's process id.
pub(super) fn control(pidfile: &Path) -> PathBuf {
    pidfile.with_extension("control")
}
