//! Lays the driver's scripts and probes out in OpenNebula's remotes, and takes them away again.
//!
//! OpenNebula copies the remotes to its hosts, following links, so a script is three lines that call this program, which
//! is installed on the hosts itself. What was there before is kept and put back by [`uninstall`]; a file somebody
//! changed after the installation is left alone.

use crate::{engine::Driver, monitor::Probe, script::Script};
use serde::Serialize;
use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

/// In every file of ours; a file without it is somebody else's.
const MARK: &str = "Installed by stead one install";
/// What was there before has this at the end of its name.
const KEPT: &str = "before-stead";

/// Something to be there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// A script.
    Script {
        /// Below the remotes.
        path: PathBuf,
        /// Its text.
        text: String,
    },
    /// A link to a script of OpenNebula's own, if that is there.
    Link {
        /// Below the remotes.
        path: PathBuf,
        /// Where it leads, below the remotes.
        to: PathBuf,
    },
    /// A configuration; one that is there is left as it is.
    Configuration {
        /// Below the remotes.
        path: PathBuf,
        /// Its text.
        text: String,
    },
}

impl Step {
    fn path(&self) -> &Path {
        match self {
            Self::Script { path, .. } | Self::Link { path, .. } | Self::Configuration { path, .. } => path,
        }
    }
}

/// The remotes cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", .path.display())]
pub struct InstallError {
    /// What was done.
    pub action: &'static str,
    /// With which.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

fn error(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.into();
    move |source| InstallError { action, path, source }
}

/// Probes of OpenNebula that tell what this driver does not: `lxc-probes.d` and `node-probes.d` are there in releases
/// that have no `lxd-probes.d` any more.
const SHARED: &[(&str, &str)] = &[
    ("host/beacon/date.sh", "common.d/date.sh"),
    ("host/beacon/monitord-client-shepherd.sh", "common.d/monitord-client-shepherd.sh"),
    ("host/system/monitor_ds.rb", "node-probes.d/monitor_ds.rb"),
    ("host/system/numa_host.rb", "node-probes.d/numa_host.rb"),
    ("host/system/pci.rb", "node-probes.d/pci.rb"),
    ("host/system/version.sh", "common.d/version.sh"),
    ("host/monitor/numa_usage.rb", "node-probes.d/numa_usage.rb"),
    ("vm/monitor/monitor_ds_vm.rb", "node-probes.d/monitor_ds_vm.rb"),
];
/// The client that runs the probes, by driver: `im/<driver>.d`.
const CLIENTS: &[&str] = &["monitord-client.rb", "monitord-client_control.sh"];
/// Probes of 5.8 and 5.10 lie flat in `im/<driver>-probes.d`.
const FLAT: &[(&str, &str)] = &[("stead-system.sh", "host-system"), ("stead-usage.sh", "host-usage")];

/// Everything that is to be there. `program` is where this program is on the hosts; `old`: the layout of 5.8 and 5.10.
pub fn plan(program: &Path, old: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    for driver in [Driver::Lxd, Driver::Incus] {
        let vmm = Path::new("vmm").join(driver.name());
        for script in Script::ALL {
            let path = vmm.join(script.name());
            steps.push(Step::Script { path, text: stub(program, script.name()) });
        }
        let im = Path::new("im").join(format!("{}-probes.d", driver.name()));
        if old {
            for (file, probe) in FLAT {
                steps.push(Step::Script { path: im.join(file), text: stub(program, probe) });
            }
            // All VMs at once, by the probe that 5.8 has for it.
            steps.push(Step::Script { path: im.join("poll.sh"), text: stub(program, "poll -t") });
        } else {
            for (_, directory, name) in Probe::ALL {
                let path = im.join(directory).join(format!("stead-{name}.sh"));
                steps.push(Step::Script { path, text: stub(program, name) });
            }
            for (file, to) in SHARED {
                steps.push(Step::Link { path: im.join(file), to: Path::new("im").join(to) });
            }
            for client in CLIENTS {
                steps.push(Step::Link {
                    path: Path::new("im").join(format!("{}.d", driver.name())).join(client),
                    to: Path::new("im/common.d").join(client),
                });
            }
        }
        let path = Path::new("etc/vmm").join(driver.name()).join("lxdrc");
        steps.push(Step::Configuration { path, text: LXDRC.to_owned() });
    }
    steps
}

/// A script: arguments are passed on as they are. `$0` tells the program which driver was called.
fn stub(program: &Path, name: &str) -> String {
    format!("#!/bin/sh\n# {MARK}.\nexec {} one run --script \"$0\" {name} \"$@\"\n", word(program))
}

/// A path as a word of the shell.
fn word(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

/// The configuration as it is installed.
pub const LXDRC: &str = "\
# Installed by stead one install. Keys are those of OpenNebula's LXD driver, and a few more.

# The console: command in the instance, pixels, seconds without a key (0: never ends).
:vnc:
  :command: /bin/login
  :width: 800
  :height: 600
  :timeout: 300
  # Consoles without a password on addresses that others can reach.
  #:allow_no_password: true

# Filesystem of volatile disks: ext4, xfs or btrfs.
:filesystem: ext4

# Where the datastores are on this host.
:datastore_location: /var/lib/one/datastores

# Storage pool (driver dir) that instances are made in; otherwise the profile's, or the first that can be used.
#:storage_pool: default

# The engine's socket; otherwise it is looked for in the usual places.
#:socket: /var/lib/incus/unix.socket
";

/// Does a plan; what was changed. Done twice, the second time changes nothing.
///
/// # Errors
/// The first file that cannot be written.
pub fn install(remotes: &Path, steps: &[Step]) -> Result<Vec<PathBuf>, InstallError> {
    let mut changed = Vec::new();
    for step in steps {
        let path = remotes.join(step.path());
        let parent = path.parent().unwrap_or(remotes);
        let done = match step {
            Step::Configuration { text, .. } => {
                !path.exists() && {
                    fs::create_dir_all(parent).map_err(error("make", parent))?;
                    write(&path, text, 0o644)?;
                    true
                }
            }
            Step::Script { text, .. } => {
                let same = fs::read_to_string(&path).is_ok_and(|t| t == *text)
                    && fs::metadata(&path).is_ok_and(|m| m.permissions().mode() & 0o777 == 0o755);
                !same && {
                    fs::create_dir_all(parent).map_err(error("make", parent))?;
                    keep(&path)?;
                    write(&path, text, 0o755)?;
                    true
                }
            }
            Step::Link { to, .. } => {
                let there = path.symlink_metadata().is_ok();
                // Relative, for the remotes are copied as a whole.
                remotes.join(to).exists() && !there && {
                    fs::create_dir_all(parent).map_err(error("make", parent))?;
                    let up: PathBuf =
                        step.path().parent().into_iter().flat_map(Path::components).map(|_| "..").collect();
                    symlink(up.join(to), &path).map_err(error("link", &path))?;
                    true
                }
            }
        };
        if done {
            changed.push(path);
        }
    }
    Ok(changed)
}

/// Takes away what [`install`] put there; what was taken away.
///
/// # Errors
/// The first file that cannot be removed.
pub fn uninstall(remotes: &Path, steps: &[Step]) -> Result<Vec<PathBuf>, InstallError> {
    let mut removed = Vec::new();
    for step in steps {
        let path = remotes.join(step.path());
        let ours = match step {
            Step::Script { .. } => fs::read_to_string(&path).is_ok_and(|t| t.contains(MARK)),
            // Changed by its administrator it stays.
            Step::Configuration { text, .. } => fs::read_to_string(&path).is_ok_and(|t| t == *text),
            Step::Link { to, .. } => {
                fs::read_link(&path).is_ok_and(|l| l.ends_with(to)) && !before(&path).exists()
            }
        };
        if ours {
            fs::remove_file(&path).map_err(error("remove", &path))?;
            let kept = before(&path);
            if kept.symlink_metadata().is_ok() {
                fs::rename(&kept, &path).map_err(error("put back", &path))?;
            }
            removed.push(path.clone());
        }
        // Directories that are empty now were ours, or as good as.
        let mut directory = path.parent();
        while let Some(d) = directory.filter(|d| *d != remotes && fs::remove_dir(d).is_ok()) {
            directory = d.parent();
        }
    }
    Ok(removed)
}

fn before(path: &Path) -> PathBuf {
    path.with_file_name(format!("{}.{KEPT}", path.file_name().unwrap_or_default().to_string_lossy()))
}

/// Keeps what is there unless it is ours.
fn keep(path: &Path) -> Result<(), InstallError> {
    let there = path.symlink_metadata().is_ok();
    let ours = fs::read_to_string(path).is_ok_and(|t| t.contains(MARK));
    if there && !ours {
        fs::rename(path, before(path)).map_err(error("keep", path))?;
    }
    Ok(())
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), InstallError> {
    let beside =
        path.with_file_name(format!(".{}.new", path.file_name().unwrap_or_default().to_string_lossy()));
    fs::write(&beside, text)
        .and_then(|()| fs::set_permissions(&beside, fs::Permissions::from_mode(mode)))
        .and_then(|()| fs::rename(&beside, path))
        .map_err(error("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(root: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut directories = vec![root.to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    directories.push(entry.path());
                } else {
                    found.push(entry.path().strip_prefix(root).unwrap().display().to_string());
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn what_is_installed_goes_without_a_trace() {
        let remotes = tempfile::tempdir().unwrap();
        let root = remotes.path();
        fs::create_dir_all(root.join("im/common.d")).unwrap();
        fs::write(root.join("im/common.d/date.sh"), "date").unwrap();
        fs::create_dir_all(root.join("vmm/lxd")).unwrap();
        fs::write(root.join("vmm/lxd/deploy"), "the original").unwrap();
        let before = tree(root);
        let steps = plan(Path::new("/usr/bin/stead"), false);
        assert!(install(root, &steps).unwrap().len() > 2 * Script::ALL.len());
        assert_eq!(install(root, &steps).unwrap(), Vec::<PathBuf>::new(), "twice is once");
        let date = root.join("im/lxd-probes.d/host/beacon/date.sh");
        assert_eq!(fs::read_to_string(date).unwrap(), "date", "the link leads astray");
        assert!(root.join("etc/vmm/incus/lxdrc").exists());
        uninstall(root, &steps).unwrap();
        assert_eq!(tree(root), before);
        assert_eq!(fs::read_to_string(root.join("vmm/lxd/deploy")).unwrap(), "the original");
    }

    #[test]
    fn stubs_pass_on_what_they_get() {
        insta::assert_snapshot!(stub(Path::new("/opt/it's/stead"), "deploy"), @r#"
        #!/bin/sh
        # Installed by stead one install.
        exec '/opt/it'\''s/stead' one run --script "$0" deploy "$@"
        "#);
        assert_eq!(crate::lxdrc::parse("lxdrc", LXDRC).unwrap(), (crate::lxdrc::Lxdrc::default(), vec![]));
    }
}
