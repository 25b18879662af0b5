//! Lays the driver's scripts and probes out in OpenNebula's remotes, and takes them away again.
//!
//! OpenNebula copies the remotes to its hosts, following links, so a script is three lines that call this program, which
//! is installed on the hosts itself. What was there before is kept in a directory of its own, for OpenNebula runs every
//! executable of a directory of probes whatever its name, and put back by [`uninstall`]; a file somebody changed after
//! the installation is left alone. Source of the layouts: the remotes of OpenNebula 5.8 to 7.4.

use crate::{engine::Driver, monitor::Probe, scripts::SCRIPTS};
use serde::Serialize;
use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};
use stead_model::{Failure, FailureKind};
use stead_os::{PathContext, PathError};

/// In every file of ours; a file without it is somebody else's.
const MARK: &str = "Installed by stead one install";
/// What was there before is kept in this directory of the remotes, under the path it had.
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
    /// A probe of OpenNebula's own whose work ours does: with both, every value would be told twice, and one that asks an
    /// engine which is not there would fail its whole group.
    Aside {
        /// Below the remotes.
        path: PathBuf,
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
            Self::Script { path, .. }
            | Self::Link { path, .. }
            | Self::Aside { path }
            | Self::Configuration { path, .. } => path,
        }
    }
}

/// The remotes cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct InstallError(#[from] PathError);

impl Failure for InstallError {
    fn failure_kind(&self) -> FailureKind {
        match self.0.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => FailureKind::BadInput,
            _ => FailureKind::Failed,
        }
    }
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
/// OpenNebula's probes for its LXD driver that ours replace.
const REPLACED: &[&str] = &[
    "host/monitor/linux_usage.rb",
    "host/system/architecture.sh",
    "host/system/cpu.sh",
    "host/system/linux_host.rb",
    "host/system/name.sh",
    "host/system/profiles.sh",
    "host/system/wild_vm.rb",
    "vm/monitor/poll.rb",
    "vm/status/state.rb",
];
/// Probes of 5.8 and 5.10 lie flat in `im/<driver>-probes.d`.
const FLAT: &[(&str, &str)] = &[
    ("stead-system.sh", "host-system"),
    ("stead-usage.sh", "host-usage"),
    // All VMs at once, by the probe that 5.8 has for it.
    ("poll.sh", "poll -t"),
];
/// As [`SHARED`].
const FLAT_SHARED: &[(&str, &str)] = &[
    ("collectd-client-shepherd.sh", "common.d/collectd-client-shepherd.sh"),
    ("monitor_ds.sh", "common.d/monitor_ds.sh"),
    ("numa.rb", "node-probes.d/numa.rb"),
    ("pci.rb", "node-probes.d/pci.rb"),
    ("version.sh", "common.d/version.sh"),
];
/// As [`CLIENTS`].
const FLAT_CLIENTS: &[&str] = &["collectd-client.rb", "collectd-client_control.sh"];
/// As [`REPLACED`].
const FLAT_REPLACED: &[&str] = &["architecture.sh", "cpu.sh", "lxd.rb", "name.sh", "profiles.sh"];

/// Everything that is to be there. `program` is where this program is on the hosts; `old`: the layout of 5.8 and 5.10.
pub fn plan(program: &Path, old: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    for driver in [Driver::Lxd, Driver::Incus] {
        let vmm = Path::new("vmm").join(driver.name());
        for script in SCRIPTS {
            let path = vmm.join(script.name);
            steps.push(Step::Script { path, text: stub(program, script.name) });
        }
        let im = Path::new("im").join(format!("{}-probes.d", driver.name()));
        let probes: Vec<(PathBuf, &str)> = if old {
            FLAT.iter().map(|(file, probe)| (PathBuf::from(file), *probe)).collect()
        } else {
            let ours = Probe::ALL.into_iter();
            ours.map(|(_, dir, name)| (Path::new(dir).join(format!("stead-{name}.sh")), name)).collect()
        };
        for (file, probe) in probes {
            steps.push(Step::Script { path: im.join(file), text: stub(program, probe) });
        }
        let (replaced, shared, clients) = match old {
            true => (FLAT_REPLACED, FLAT_SHARED, FLAT_CLIENTS),
            false => (REPLACED, SHARED, CLIENTS),
        };
        steps.extend(replaced.iter().map(|file| Step::Aside { path: im.join(file) }));
        for (file, to) in shared {
            steps.push(Step::Link { path: im.join(file), to: Path::new("im").join(to) });
        }
        for client in clients {
            steps.push(Step::Link {
                path: Path::new("im").join(format!("{}.d", driver.name())).join(client),
                to: Path::new("im/common.d").join(client),
            });
        }
        // Without it OpenNebula's probe of PCI devices fails, and with it all others.
        let path = Path::new("etc/im").join(format!("{}-probes.d", driver.name())).join("pci.conf");
        steps.push(Step::Configuration { path, text: PCI.to_owned() });
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

/// Which PCI devices OpenNebula is told of: none, as in its own file.
const PCI: &str = "\
# Installed by stead one install. As pci.conf of OpenNebula's other drivers: which PCI devices VMs can be given, by lspci's
# vendor:device:class, and by address or name.
:filter: '0:0'
:short_address: []
:device_name: []
";

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
                    fs::create_dir_all(parent).at("make", parent)?;
                    write(&path, text, 0o644)?;
                    true
                }
            }
            Step::Script { text, .. } => {
                let same = fs::read_to_string(&path).is_ok_and(|t| t == *text)
                    && fs::metadata(&path).is_ok_and(|m| m.permissions().mode() & 0o777 == 0o755);
                !same && {
                    fs::create_dir_all(parent).at("make", parent)?;
                    keep(remotes, step.path())?;
                    write(&path, text, 0o755)?;
                    true
                }
            }
            Step::Aside { path } => keep(remotes, path)?,
            Step::Link { to, .. } => {
                let there = path.symlink_metadata().is_ok();
                // Relative, for the remotes are copied as a whole.
                remotes.join(to).exists() && !there && {
                    fs::create_dir_all(parent).at("make", parent)?;
                    let up: PathBuf =
                        step.path().parent().into_iter().flat_map(Path::components).map(|_| "..").collect();
                    symlink(up.join(to), &path).at("link", &path)?;
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
                fs::read_link(&path).is_ok_and(|l| l.starts_with("..") && l.ends_with(to))
            }
            Step::Aside { .. } => false,
        };
        if ours {
            fs::remove_file(&path).at("remove", &path)?;
            removed.push(path.clone());
        }
        let kept = remotes.join(KEPT).join(step.path());
        if kept.symlink_metadata().is_ok() && path.symlink_metadata().is_err() {
            let parent = path.parent().unwrap_or(remotes);
            fs::create_dir_all(parent).and_then(|()| fs::rename(&kept, &path)).at("put back", &path)?;
        }
        // Directories that are empty now were ours, or as good as.
        for emptied in [&path, &kept] {
            let mut directory = emptied.parent();
            while let Some(d) = directory.filter(|d| *d != remotes && fs::remove_dir(d).is_ok()) {
                directory = d.parent();
            }
        }
    }
    Ok(removed)
}

/// Keeps what is there unless it is ours; whether there was something.
fn keep(remotes: &Path, path: &Path) -> Result<bool, InstallError> {
    let at = remotes.join(path);
    let ours = fs::read_to_string(&at).is_ok_and(|t| t.contains(MARK));
    if ours || at.symlink_metadata().is_err() {
        return Ok(false);
    }
    let kept = remotes.join(KEPT).join(path);
    let parent = kept.parent().unwrap_or(remotes);
    fs::create_dir_all(parent).at("make", parent)?;
    fs::rename(&at, &kept).at("keep", at)?;
    Ok(true)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), PathError> {
    let beside =
        path.with_file_name(format!(".{}.new", path.file_name().unwrap_or_default().to_string_lossy()));
    fs::write(&beside, text)
        .and_then(|()| fs::set_permissions(&beside, fs::Permissions::from_mode(mode)))
        .and_then(|()| fs::rename(&beside, path))
        .at("write", path)
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

    /// What OpenNebula runs of a directory of probes: every executable, by name.
    fn run(probes: &Path) -> Vec<String> {
        let is_run = |path: &String| {
            fs::metadata(probes.join(path)).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        };
        tree(probes).into_iter().filter(is_run).collect()
    }
    fn script(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fn contents(root: &Path) -> Vec<(String, String)> {
        tree(root).into_iter().map(|p| (p.clone(), fs::read_to_string(root.join(&p)).unwrap())).collect()
    }

    /// The remotes as 5.12 to 6.8 and as 5.8 and 5.10 lay them out, as far as they matter here.
    #[test]
    fn only_one_probe_tells_each_thing_and_what_is_installed_goes_without_a_trace() {
        for old in [false, true] {
            let remotes = tempfile::tempdir().unwrap();
            let root = remotes.path();
            let (shared, clients, replaced) = match old {
                true => (FLAT_SHARED, FLAT_CLIENTS, FLAT_REPLACED),
                false => (SHARED, CLIENTS, REPLACED),
            };
            for (file, to) in shared {
                script(&root.join("im").join(to), file);
                let link = root.join("im/lxd-probes.d").join(file);
                fs::create_dir_all(link.parent().unwrap()).unwrap();
                let up = "../".repeat(Path::new(file).components().count());
                symlink(format!("{up}{to}"), link).unwrap();
            }
            for client in clients {
                script(&root.join("im/common.d").join(client), client);
            }
            for file in replaced {
                script(&root.join("im/lxd-probes.d").join(file), "OpenNebula's");
            }
            if old {
                script(&root.join("im/lxd-probes.d/poll.sh"), "OpenNebula's");
            }
            script(&root.join("vmm/lxd/deploy"), "OpenNebula's");
            script(&root.join("vmm/kvm/deploy"), "KVM's");
            let before = contents(root);

            let steps = plan(Path::new("/usr/bin/stead"), old);
            assert!(install(root, &steps).unwrap().len() > 2 * SCRIPTS.len());
            let installed = contents(root);
            assert_eq!(install(root, &steps).unwrap(), Vec::<PathBuf>::new(), "twice is once");
            assert_eq!(contents(root), installed);
            // Both drivers run the same probes, and no two of them tell the same.
            let probes = run(&root.join("im/lxd-probes.d"));
            assert_eq!(probes, run(&root.join("im/incus-probes.d")));
            let shared: Vec<&str> = shared.iter().map(|(file, _)| *file).collect();
            let ours: Vec<&String> = probes.iter().filter(|p| !shared.contains(&p.as_str())).collect();
            assert_eq!(ours.len(), if old { FLAT.len() } else { Probe::ALL.len() }, "{ours:?}");
            for probe in ours {
                let text = fs::read_to_string(root.join("im/lxd-probes.d").join(probe)).unwrap();
                assert!(text.contains(MARK), "{probe} is OpenNebula's");
            }
            assert_eq!(run(&root.join("im/incus.d")), clients);
            for driver in ["lxd", "incus"] {
                assert!(root.join(format!("etc/im/{driver}-probes.d/pci.conf")).exists());
                assert!(root.join(format!("etc/vmm/{driver}/lxdrc")).exists());
            }
            // An upgrade of OpenNebula puts its own back.
            script(&root.join("vmm/lxd/deploy"), "OpenNebula's, newer");
            assert_eq!(install(root, &steps).unwrap(), [root.join("vmm/lxd/deploy")]);
            script(&root.join("before-stead/vmm/lxd/deploy"), "OpenNebula's");
            // A configuration that was changed is its administrator's.
            fs::write(root.join("etc/vmm/lxd/lxdrc"), ":vnc:\n").unwrap();
            for _ in 0..2 {
                uninstall(root, &steps).unwrap();
            }
            assert_eq!(fs::read_to_string(root.join("etc/vmm/lxd/lxdrc")).unwrap(), ":vnc:\n");
            fs::remove_dir_all(root.join("etc")).unwrap();
            assert_eq!(contents(root), before, "old: {old}");
        }
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
