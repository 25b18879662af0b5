//! Kernel parameters.
//!
//! Owns the mapping from names to files below `/proc/sys`, which parameters belong to a node in a namespace, and the copies
//! of the host's parameters that such a node sees instead.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// File of a dotted parameter: `net.ipv4.ip_forward`. A name with `/` is read as by sysctl(8): slashes separate it,
/// dots stay (`net/ipv4/conf/eth0.5/forwarding`).
pub fn path(key: &str) -> PathBuf {
    let relative = if key.contains('/') { key.to_owned() } else { key.replace('.', "/") };
    PathBuf::from("/proc/sys").join(relative)
}

/// Whether the kernel has the parameter once per namespace, so that a namespace node may set it without changing its
/// host.
pub fn is_namespaced(key: &str) -> bool {
    let key = key.replace('/', ".");
    key.starts_with("net.")
        || key.starts_with("fs.mqueue.")
        || ["kernel.shm", "kernel.msg", "kernel.sem"].iter().any(|p| key.starts_with(p))
        || key == "kernel.hostname"
        || key == "kernel.domainname"
}

/// Copies of the host's parameters in a namespace node: each is mounted over the parameter.
pub const SHADOWS: &str = "/run/stead/sysctl";

/// Mounts a copy of the file `path`, kept at `copy`, over it: with this value, or with the one that it has. Does nothing when
/// there is no such file.
///
/// # Errors
/// The copy cannot be made or mounted.
pub fn shadow(path: &Path, copy: &Path, value: Option<&str>) -> io::Result<()> {
    let now = match fs::read(path) {
        Ok(now) => now,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        // Some can only be written.
        Err(_) => Vec::new(),
    };
    if let Some(folder) = copy.parent() {
        fs::create_dir_all(folder)?;
    }
    let new = !copy.try_exists()?;
    let content = value.map_or(now, |value| format!("{}\n", value.trim_end()).into_bytes());
    fs::write(copy, content)?;
    if new { Ok(rustix::mount::mount_bind(copy, path)?) } else { Ok(()) }
}

/// Sets a parameter. In a namespace node one of the host's is set for the node's eyes alone.
///
/// # Errors
/// A fragment for a warning: it is missing or refused.
pub fn set(key: &str, value: &str, in_namespace: bool) -> Result<(), String> {
    let path = path(key);
    let failed = |e: io::Error| format!("sysctl {key} cannot be set to {value}: {e}");
    if !in_namespace || is_namespaced(key) {
        match fs::write(&path, value) {
            // Also of what is in the network namespace the kernel keeps some for the host alone.
            Err(e) if in_namespace && e.kind() == io::ErrorKind::PermissionDenied => {}
            done => return done.map_err(failed),
        }
    }
    if !path.exists() {
        return Err(failed(io::ErrorKind::NotFound.into()));
    }
    let below = path.strip_prefix("/proc/sys").unwrap_or(&path);
    shadow(&path, &Path::new(SHADOWS).join(below), Some(value)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths() {
        assert_eq!(path("vm.max_map_count").to_str(), Some("/proc/sys/vm/max_map_count"));
        assert_eq!(
            path("net/ipv4/conf/eth0.5/forwarding").to_str(),
            Some("/proc/sys/net/ipv4/conf/eth0.5/forwarding")
        );
    }

    #[test]
    fn a_namespace_does_not_set_the_hosts_parameters() {
        for mine in
            ["net.ipv4.ip_forward", "net/ipv6/conf/all/forwarding", "kernel.shmmax", "fs.mqueue.msg_max"]
        {
            assert!(is_namespaced(mine), "{mine}");
        }
        for hosts in ["vm.max_map_count", "kernel.panic", "fs.inotify.max_user_instances", "kernel.pid_max"] {
            assert!(!is_namespaced(hosts), "{hosts}");
        }
    }
}
