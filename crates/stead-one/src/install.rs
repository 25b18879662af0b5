//! Lays the driver's scripts and probes out in OpenNebula's remotes, and takes them away again.
//!
//! OpenNebula copies the remotes to its hosts, following links, so a script is three lines that call this program, which
//! is installed on the hosts itself. What was there before is kept in a directory of its own, for OpenNebula runs every
//! executable of a directory of probes whatever its name, and put back by [`uninstall`]; a file somebody changed after
//! the installation is left alone. Source of the layouts: `install.sh` of OpenNebula 5.8 to 7.4, which gives each
//! hypervisor its own copies of what it shares with others.

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
/// Hypervisors whose probes are linked to, the first that has one. OpenNebula has KVM's in every release.
const REFERENCES: [&str; 3] = ["kvm", "lxc", "qemu"];

/// How a release lays its probes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// 5.8 and 5.10: all in `im/<driver>-probes.d`.
    Flat,
    /// 5.12 and later: below `im/<driver>-probes.d/{host,vm}/`.
    Grouped,
}

/// What the remotes have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    layout: Layout,
    /// Of OpenNebula's files that are shared, those that a reference has: its path below the driver's directories with
    /// where it is below the remotes.
    sources: Vec<(Shared, PathBuf)>,
}

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
    /// A link to a script of OpenNebula's own, unless something is there.
    Link {
        /// Below the remotes.
        path: PathBuf,
        /// Where it leads, below the remotes.
        to: PathBuf,
    },
    /// A directory of probes of which this driver has none: OpenNebula's client ends when it is not there.
    Directory {
        /// Below the remotes.
        path: PathBuf,
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
            | Self::Directory { path }
            | Self::Aside { path }
            | Self::Configuration { path, .. } => path,
        }
    }
}

/// What an installation changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// This is there now.
    Installed(PathBuf),
    /// This was OpenNebula's and is kept elsewhere.
    SetAside {
        /// Where it was.
        from: PathBuf,
        /// Where it is.
        to: PathBuf,
    },
}

/// The remotes cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file or directory.
    #[error(transparent)]
    File(#[from] PathError),
    /// Not the remotes of any release that is known.
    #[error(
        "{} is not OpenNebula's remotes: it has neither im/run_monitord_client (5.12 and later) nor im/run_probes (5.8, 5.10)",
        .0.display()
    )]
    NoRemotes(PathBuf),
    /// Without it the host has no monitoring.
    #[error(
        "{} has no {file} below im/{{{}}}{suffix}, to which the driver's has to be linked: install the remotes of \
         OpenNebula's KVM driver (package opennebula) again",
        .remotes.display(), REFERENCES.join(",")
    )]
    Missing {
        /// The remotes.
        remotes: PathBuf,
        /// Which file.
        file: &'static str,
        /// The kind of directory it has to be in.
        suffix: &'static str,
    },
}

impl Failure for InstallError {
    fn failure_kind(&self) -> FailureKind {
        match self {
            Self::File(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => FailureKind::BadInput,
                _ => FailureKind::Failed,
            },
            Self::NoRemotes(_) | Self::Missing { .. } => FailureKind::BadInput,
        }
    }
}

/// A file of OpenNebula's that every hypervisor has a copy of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shared {
    /// `-probes.d` or `.d`: the directory, after the driver's name.
    suffix: &'static str,
    /// Below it.
    file: &'static str,
    /// Whether each release of the layout has it.
    always: bool,
}

const fn probe(file: &'static str) -> Shared {
    Shared { suffix: "-probes.d", file, always: true }
}
/// A probe that came in the course of a layout.
const fn later(file: &'static str) -> Shared {
    Shared { suffix: "-probes.d", file, always: false }
}
/// Of the client that runs the probes.
const fn client(file: &'static str) -> Shared {
    Shared { suffix: ".d", file, always: true }
}

impl Layout {
    /// The program that OpenNebula starts monitoring with.
    fn starter(self) -> &'static str {
        match self {
            Self::Flat => "im/run_probes",
            Self::Grouped => "im/run_monitord_client",
        }
    }
    /// What is OpenNebula's and tells what this driver does not. The shepherd of 5.12 and later is not among them: each
    /// ends the clients of its own hypervisor, by a file that nothing writes.
    fn shared(self) -> &'static [Shared] {
        match self {
            Self::Flat => {
                const {
                    &[
                        probe("collectd-client-shepherd.sh"),
                        probe("monitor_ds.sh"),
                        later("numa.rb"),
                        probe("pci.rb"),
                        probe("version.sh"),
                        client("collectd-client.rb"),
                        client("collectd-client_control.sh"),
                    ]
                }
            }
            Self::Grouped => {
                const {
                    &[
                        probe("host/beacon/date.sh"),
                        probe("host/system/monitor_ds.rb"),
                        probe("host/system/numa_host.rb"),
                        probe("host/system/pci.rb"),
                        probe("host/system/version.sh"),
                        later("host/system/clean_db.rb"),
                        later("host/system/nfs_automounted.rb"),
                        probe("host/monitor/numa_usage.rb"),
                        later("host/monitor/prediction.sh"),
                        probe("vm/monitor/monitor_ds_vm.rb"),
                        client("monitord-client.rb"),
                        client("monitord-client_control.sh"),
                    ]
                }
            }
        }
    }
    /// OpenNebula's probes for its LXD driver that ours replace.
    fn replaced(self) -> &'static [&'static str] {
        match self {
            Self::Flat => &["architecture.sh", "cpu.sh", "lxd.rb", "name.sh", "profiles.sh"],
            Self::Grouped => &[
                "host/monitor/linux_usage.rb",
                "host/system/architecture.sh",
                "host/system/cpu.sh",
                "host/system/linux_host.rb",
                "host/system/name.sh",
                "host/system/profiles.sh",
                "host/system/wild_vm.rb",
                "vm/monitor/poll.rb",
                "vm/status/state.rb",
            ],
        }
    }
    /// Our probes: file, and words for `stead one run`.
    fn own(self) -> Vec<(PathBuf, &'static str)> {
        match self {
            Self::Flat => [
                ("stead-system.sh", "host-system"),
                ("stead-usage.sh", "host-usage"),
                // All VMs at once, by the probe that 5.8 has for it.
                ("poll.sh", "poll -t"),
            ]
            .map(|(file, probe)| (PathBuf::from(file), probe))
            .into(),
            Self::Grouped => {
                let ours = Probe::ALL.into_iter();
                ours.map(|(_, dir, name)| (Path::new(dir).join(format!("stead-{name}.sh")), name)).collect()
            }
        }
    }
    /// Directories of probes that the client wants: snapshots since 6.0, commands in VMs since 7.4.
    fn directories(self) -> &'static [&'static str] {
        match self {
            Self::Flat => &[],
            Self::Grouped => &["vm/execution", "vm/snapshot"],
        }
    }
}

impl Shared {
    fn below(&self, driver: &str) -> PathBuf {
        Path::new("im").join(format!("{driver}{}", self.suffix)).join(self.file)
    }
}

/// Looks at the remotes.
///
/// # Errors
/// They are of no release that is known, or lack what every release has.
pub fn look(remotes: &Path) -> Result<Found, InstallError> {
    let layouts = [Layout::Grouped, Layout::Flat];
    let layout = layouts.into_iter().find(|l| remotes.join(l.starter()).exists());
    let layout = layout.ok_or_else(|| InstallError::NoRemotes(remotes.to_owned()))?;
    let mut sources = Vec::new();
    for shared in layout.shared() {
        let paths = REFERENCES.iter().map(|driver| shared.below(driver));
        match paths.into_iter().find(|path| remotes.join(path).is_file()) {
            Some(path) => sources.push((*shared, path)),
            None if shared.always => {
                let (remotes, file, suffix) = (remotes.to_owned(), shared.file, shared.suffix);
                return Err(InstallError::Missing { remotes, file, suffix });
            }
            None => {}
        }
    }
    Ok(Found { layout, sources })
}

/// Everything that is to be there. `program` is where this program is on the hosts.
pub fn plan(program: &Path, found: &Found) -> Vec<Step> {
    let layout = found.layout;
    let mut steps = Vec::new();
    for driver in [Driver::Lxd, Driver::Incus] {
        let vmm = Path::new("vmm").join(driver.name());
        for script in SCRIPTS {
            let path = vmm.join(script.name);
            steps.push(Step::Script { path, text: stub(program, script.name) });
        }
        let im = Path::new("im").join(format!("{}-probes.d", driver.name()));
        for (file, words) in layout.own() {
            steps.push(Step::Script { path: im.join(file), text: probe_stub(program, words) });
        }
        steps.extend(layout.replaced().iter().map(|file| Step::Aside { path: im.join(file) }));
        steps.extend(layout.directories().iter().map(|d| Step::Directory { path: im.join(d) }));
        for (shared, to) in &found.sources {
            steps.push(Step::Link { path: shared.below(driver.name()), to: to.clone() });
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

/// A probe: 5.8's `run_probes` and the client of later releases give it arguments of their own, which are not ours.
fn probe_stub(program: &Path, words: &str) -> String {
    format!("#!/bin/sh\n# {MARK}.\nexec {} one run --script \"$0\" {words}\n", word(program))
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

# Seconds that an instance has to shut down.
:shutdown_timeout: 120

# Storage pool (driver dir) that instances are made in; otherwise the profile's, or the first that can be used.
#:storage_pool: default

# The engine's socket; otherwise it is looked for in the usual places.
#:socket: /var/lib/incus/unix.socket
";

/// Does a plan; what was changed. Done twice, the second time changes nothing.
///
/// # Errors
/// The first file that cannot be written.
pub fn install(remotes: &Path, steps: &[Step]) -> Result<Vec<Change>, InstallError> {
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
            Step::Directory { .. } => {
                !path.is_dir() && {
                    fs::create_dir_all(&path).at("make", &path)?;
                    true
                }
            }
            Step::Aside { path } => {
                if let Some(to) = keep(remotes, path)? {
                    changed.push(Change::SetAside { from: remotes.join(path), to });
                }
                false
            }
            Step::Link { to, .. } => {
                !path.exists() && {
                    fs::create_dir_all(parent).at("make", parent)?;
                    // A link that leads nowhere is of a release that had the file elsewhere.
                    if path.is_symlink() {
                        fs::remove_file(&path).at("remove", &path)?;
                    }
                    // Relative, for the remotes are copied as a whole.
                    let up: PathBuf =
                        step.path().parent().into_iter().flat_map(Path::components).map(|_| "..").collect();
                    symlink(up.join(to), &path).at("link", &path)?;
                    true
                }
            }
        };
        if done {
            changed.push(Change::Installed(path));
        }
    }
    Ok(changed)
}

/// Takes away what [`install`] put there, in either layout; what was taken away.
///
/// # Errors
/// The first file that cannot be removed.
pub fn uninstall(remotes: &Path) -> Result<Vec<PathBuf>, InstallError> {
    let mut removed = Vec::new();
    for step in [Layout::Grouped, Layout::Flat].into_iter().flat_map(everything) {
        let path = remotes.join(step.path());
        let ours = match &step {
            Step::Script { .. } => fs::read_to_string(&path).is_ok_and(|t| t.contains(MARK)),
            // Changed by its administrator it stays.
            Step::Configuration { text, .. } => fs::read_to_string(&path).is_ok_and(|t| t == *text),
            // OpenNebula installs files.
            Step::Link { .. } => fs::read_link(&path).is_ok_and(|l| l.starts_with("..")),
            Step::Directory { .. } | Step::Aside { .. } => false,
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
        for emptied in [&path.join("x"), &path, &kept] {
            let mut directory = emptied.parent();
            while let Some(d) = directory.filter(|d| *d != remotes && fs::remove_dir(d).is_ok()) {
                directory = d.parent();
            }
        }
    }
    Ok(removed)
}

/// Every step that could have been done in a layout.
fn everything(layout: Layout) -> Vec<Step> {
    let sources = layout.shared().iter().map(|s| (*s, s.below(REFERENCES[0]))).collect();
    plan(Path::new("stead"), &Found { layout, sources })
}

/// Keeps what is there unless it is ours; where it is then.
fn keep(remotes: &Path, path: &Path) -> Result<Option<PathBuf>, InstallError> {
    let at = remotes.join(path);
    let ours = fs::read_to_string(&at).is_ok_and(|t| t.contains(MARK));
    if ours || at.symlink_metadata().is_err() {
        return Ok(None);
    }
    let kept = remotes.join(KEPT).join(path);
    let parent = kept.parent().unwrap_or(remotes);
    fs::create_dir_all(parent).at("make", parent)?;
    fs::rename(&at, &kept).at("keep", at)?;
    Ok(Some(kept))
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

    /// The remotes as a release's `install.sh` lays them out: a hypervisor has files, not links.
    fn release(root: &Path, version: &str) -> Layout {
        let (layout, lxd) = match version {
            "5.8" | "5.10" => (Layout::Flat, true),
            "5.12" | "6.6" => (Layout::Grouped, true),
            _ => (Layout::Grouped, false),
        };
        script(&root.join(layout.starter()), "OpenNebula's");
        let hypervisors: &[&str] = if lxd { &["kvm", "lxd"] } else { &["kvm", "lxc"] };
        for hypervisor in hypervisors {
            for shared in layout.shared() {
                if shared.always || version == "5.10" || version == "7.4" {
                    script(&root.join(shared.below(hypervisor)), shared.file);
                }
            }
        }
        if lxd {
            for file in layout.replaced() {
                script(&root.join("im/lxd-probes.d").join(file), "OpenNebula's");
            }
            script(&root.join("vmm/lxd/deploy"), "OpenNebula's");
            if layout == Layout::Flat {
                script(&root.join("im/lxd-probes.d/poll.sh"), "OpenNebula's");
            }
        }
        script(&root.join("vmm/kvm/deploy"), "KVM's");
        layout
    }

    #[test]
    fn in_every_releases_layout_one_probe_tells_each_thing_and_what_is_installed_goes_without_a_trace() {
        for version in ["5.8", "5.10", "5.12", "6.6", "6.10", "7.4"] {
            let remotes = tempfile::tempdir().unwrap();
            let root = remotes.path();
            let layout = release(root, version);
            let before = contents(root);

            let found = look(root).unwrap();
            assert_eq!(found.layout, layout, "{version}");
            let steps = plan(Path::new("/usr/bin/stead"), &found);
            let changed = install(root, &steps).unwrap();
            assert!(changed.len() > 2 * SCRIPTS.len());
            // What is set aside is not called installed.
            for change in &changed {
                match change {
                    Change::Installed(path) => assert!(path.exists(), "{version}: {}", path.display()),
                    Change::SetAside { from, to } => assert!(!from.exists() && to.exists()),
                }
            }
            let installed = contents(root);
            assert_eq!(install(root, &steps).unwrap(), Vec::new(), "twice is once");
            assert_eq!(contents(root), installed);
            // Both drivers run the same probes, and no two of them tell the same.
            let probes = run(&root.join("im/lxd-probes.d"));
            assert_eq!(probes, run(&root.join("im/incus-probes.d")), "{version}");
            let shared: Vec<&str> = found.sources.iter().map(|(s, _)| s.file).collect();
            let ours: Vec<&String> = probes.iter().filter(|p| !shared.contains(&p.as_str())).collect();
            assert_eq!(ours.len(), layout.own().len(), "{version}: {ours:?}");
            for probe in ours {
                let text = fs::read_to_string(root.join("im/lxd-probes.d").join(probe)).unwrap();
                assert!(text.contains(MARK), "{probe} is OpenNebula's");
            }
            assert_eq!(probes.iter().any(|p| p.contains("nfs_automounted")), version == "7.4");
            for driver in ["lxd", "incus"] {
                assert_eq!(run(&root.join(format!("im/{driver}.d"))).len(), 2, "{version}: the client");
                assert!(root.join(format!("etc/im/{driver}-probes.d/pci.conf")).exists());
                assert!(root.join(format!("etc/vmm/{driver}/lxdrc")).exists());
                for wanted in layout.directories() {
                    assert!(root.join(format!("im/{driver}-probes.d")).join(wanted).is_dir(), "{wanted}");
                }
            }
            // An upgrade of OpenNebula puts its own back.
            if root.join("before-stead/vmm/lxd/deploy").exists() {
                script(&root.join("vmm/lxd/deploy"), "OpenNebula's, newer");
                assert_eq!(install(root, &steps).unwrap(), [Change::Installed(root.join("vmm/lxd/deploy"))]);
                script(&root.join("before-stead/vmm/lxd/deploy"), "OpenNebula's");
            }
            // A configuration that was changed is its administrator's.
            fs::write(root.join("etc/vmm/lxd/lxdrc"), ":vnc:\n").unwrap();
            for _ in 0..2 {
                uninstall(root).unwrap();
            }
            assert_eq!(fs::read_to_string(root.join("etc/vmm/lxd/lxdrc")).unwrap(), ":vnc:\n");
            fs::remove_dir_all(root.join("etc")).unwrap();
            assert_eq!(contents(root), before, "{version}");
        }
    }

    #[test]
    fn what_cannot_be_linked_is_an_error() {
        let remotes = tempfile::tempdir().unwrap();
        let root = remotes.path();
        assert!(look(root).unwrap_err().to_string().contains("is not OpenNebula's remotes"));
        for version in ["5.8", "7.4"] {
            let remotes = tempfile::tempdir().unwrap();
            let root = remotes.path();
            let layout = release(root, version);
            for shared in layout.shared() {
                // One hypervisor that has it is enough.
                fs::remove_file(root.join(shared.below("kvm"))).unwrap_or_default();
                let other = root.join(shared.below("lxc"));
                assert_eq!(
                    look(root).is_ok(),
                    !shared.always || other.exists(),
                    "{version}: {}",
                    shared.file
                );
                fs::remove_file(other).unwrap_or_default();
                match look(root) {
                    Ok(_) => assert!(!shared.always, "{version}: {}", shared.file),
                    Err(error) => assert!(error.to_string().contains(shared.file), "{error}"),
                }
                script(&root.join(shared.below("kvm")), shared.file);
            }
        }
    }

    #[test]
    fn stubs_pass_on_what_they_get() {
        insta::assert_snapshot!(stub(Path::new("/opt/it's/stead"), "deploy"), @r#"
        #!/bin/sh
        # Installed by stead one install.
        exec '/opt/it'\''s/stead' one run --script "$0" deploy "$@"
        "#);
        // Arguments of a probe are those of whoever runs all probes.
        insta::assert_snapshot!(probe_stub(Path::new("/usr/bin/stead"), "poll -t"), @r#"
        #!/bin/sh
        # Installed by stead one install.
        exec '/usr/bin/stead' one run --script "$0" poll -t
        "#);
        assert_eq!(crate::lxdrc::parse("lxdrc", LXDRC).unwrap(), (crate::lxdrc::Lxdrc::default(), vec![]));
    }
}
