//! Kernel parameters.
//!
//! Owns the mapping from names to files below `/proc/sys`, and which parameters belong to a node in a namespace.

use std::{fs, path::PathBuf};

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

/// Sets a parameter.
///
/// # Errors
/// A fragment for a warning: the parameter is missing or refused, or belongs to the host of a namespace node and has
/// another value.
pub fn set(key: &str, value: &str, in_namespace: bool) -> Result<(), String> {
    let path = path(key);
    if in_namespace && !is_namespaced(key) {
        let now = fs::read_to_string(&path).unwrap_or_default();
        return if now.split_whitespace().eq(value.split_whitespace()) {
            Ok(())
        } else {
            Err(format!("sysctl {key} belongs to the host ({}) and is not set to {value}", now.trim()))
        };
    }
    fs::write(&path, value).map_err(|e| format!("sysctl {key} cannot be set to {value}: {e}"))
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
        assert!(set("vm.overcommit_memory", "99", true).unwrap_err().contains("belongs to the host"));
    }
}
