//! Data disks: finds the device of a rule, formats it only if it is blank, mounts it.
//!
//! Owns all changes to block devices. The first stage prepares the root's own disk by [`prepare_root_disk`], the second
//! one everything else by [`set_up`].

pub mod probe;

use crate::{
    blocking::blocking,
    command::read_some,
    handle::Handle,
    mounts::mount_filesystem,
    reaper::{Exit, Reaper},
};
use probe::{Content, MARK_BYTES, name};
use rustix::mount::mount_bind;
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use stead_model::{
    agent::{DiskOutcome, DiskStatus, EventKind},
    node::DATA_LABEL,
    recipe::{DiskMatch, DiskRule, Filesystem},
};
use stead_os::{CommandError, Program};

/// Directory of the links from serials to device nodes.
pub const BY_SERIAL: &str = "/dev/disk/by-serial";

/// Time limit for formatting: mkfs of a large disk with lazy initialisation takes seconds.
const FORMAT_TIMEOUT: Duration = Duration::from_secs(300);

/// A disk cannot be used. It is left unchanged.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Reading failed.
    #[error("cannot read {device}")]
    Read {
        /// Device.
        device: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is neither blank nor what the rule asks for.
    #[error("{device} contains {content}, not {wanted}; left unchanged")]
    Occupied {
        /// Device.
        device: PathBuf,
        /// Its content.
        content: String,
        /// What was asked for.
        wanted: String,
    },
    /// It has the filesystem, which cannot be mounted.
    #[error("{device} contains {content}, which cannot be mounted on {target}; left unchanged")]
    Mount {
        /// Device.
        device: PathBuf,
        /// Its content.
        content: String,
        /// Where.
        target: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The mark of a format in progress.
    #[error("cannot mark {device} as being formatted")]
    Mark {
        /// Device.
        device: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A blank device could not be formatted.
    #[error("cannot format {device}")]
    Format {
        /// Device.
        device: PathBuf,
        /// Why.
        #[source]
        source: CommandError,
    },
    /// A directory or bind mount.
    #[error("cannot bind {path}")]
    Bind {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The content of a device. Only reads.
///
/// # Errors
/// It cannot be opened or read.
pub fn look(device: &Path) -> Result<Content, DiskError> {
    let read = |source| DiskError::Read { device: device.to_owned(), source };
    let mut file = File::open(device).map_err(read)?;
    let size = file.seek(SeekFrom::End(0)).map_err(read)?;
    probe::probe(&mut file, size).map_err(read)
}

/// What to do with a device, by its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It is blank: format it.
    Format,
    /// It has what the rule asks for.
    Use,
    /// It has other content.
    Refuse,
}

/// Decides. Only a device that is blank, or was blank when a format of ours began, is ever formatted.
pub fn decide(content: &Content, filesystem: Filesystem, label: &str) -> Decision {
    match content {
        Content::Blank => Decision::Format,
        Content::Unfinished { label: found } if found == label => Decision::Format,
        Content::Filesystem { kind, label: found, damaged: false }
            if *kind == filesystem && found == label =>
        {
            Decision::Use
        }
        _ => Decision::Refuse,
    }
}

/// The tool that makes a filesystem on a device of `size` bytes, without the space of the mark at its end. No tool is told to
/// overwrite, since the tools also look for signatures.
pub fn format_command(filesystem: Filesystem, label: &str, device: &Path, size: u64) -> Program {
    let device = device.to_string_lossy().into_owned();
    // Whole KiB, which every tool accepts.
    let kib = size.saturating_sub(MARK_BYTES) / 1024;
    let bytes = format!("{}", kib * 1024);
    let mkfs = |name: &str, package| Program::new(name).package(package).timeout(FORMAT_TIMEOUT).arg("-q");
    let program = match filesystem {
        // A blank disk needs no discard, and its inode tables can be zeroed in use.
        Filesystem::Ext4 => {
            let options = ["-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", "-L", label];
            return mkfs("mkfs.ext4", "e2fsprogs").args(options).args([device, format!("{kib}k")]);
        }
        Filesystem::Xfs => mkfs("mkfs.xfs", "xfsprogs").args(["-K", "-d"]).arg(format!("size={bytes}")),
        Filesystem::Btrfs => mkfs("mkfs.btrfs", "btrfs-progs").args(["-K", "-b"]).arg(bytes),
    };
    program.args(["-L", label]).arg(device)
}

/// Writes the mark of a format in progress on a device, or removes it if there is no label.
fn set_mark(device: &Path, label: Option<&str>) -> Result<(), DiskError> {
    let failed = |source| DiskError::Mark { device: device.to_owned(), source };
    let mut file = File::options().read(true).write(true).open(device).map_err(failed)?;
    let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
    file.seek(SeekFrom::Start(size.saturating_sub(MARK_BYTES))).map_err(failed)?;
    let mark = label.map_or_else(|| vec![0; MARK_BYTES as usize], probe::mark);
    file.write_all(&mark).and_then(|()| file.sync_all()).map_err(failed)
}

/// Marks a device, then removes the remains of an earlier attempt.
fn begin_format(device: &Path, content: &Content, label: &str) -> Result<(), DiskError> {
    set_mark(device, Some(label))?;
    if matches!(content, Content::Unfinished { .. }) {
        clear_unfinished(device)?;
    }
    Ok(())
}

/// Removes the remains of an interrupted format of ours, so that tools that refuse to overwrite see a blank device.
fn clear_unfinished(device: &Path) -> Result<(), DiskError> {
    let failed = |source| DiskError::Mark { device: device.to_owned(), source };
    let size = size_of(device)?;
    let mut file = File::options().write(true).open(device).map_err(failed)?;
    for (start, length) in probe::signature_areas(size) {
        file.seek(SeekFrom::Start(start)).map_err(failed)?;
        file.write_all(&vec![0; length as usize]).map_err(failed)?;
    }
    file.sync_all().map_err(failed)
}

fn size_of(device: &Path) -> Result<u64, DiskError> {
    let read = |source| DiskError::Read { device: device.to_owned(), source };
    File::open(device).map_err(read)?.seek(SeekFrom::End(0)).map_err(read)
}

fn mount_device(
    device: &Path,
    target: &Path,
    filesystem: Filesystem,
    content: &Content,
) -> Result<(), DiskError> {
    let data = if filesystem == Filesystem::Ext4 { "errors=remount-ro" } else { "" };
    mount_filesystem(&device.to_string_lossy(), target, name(filesystem), &[], data).map_err(|source| {
        DiskError::Mount {
            device: device.to_owned(),
            content: content.to_string(),
            target: target.to_owned(),
            source,
        }
    })
}

fn occupied(device: &Path, content: &Content, filesystem: Filesystem, label: &str) -> DiskError {
    DiskError::Occupied {
        device: device.to_owned(),
        content: content.to_string(),
        wanted: format!("{} labelled {label:?}", name(filesystem)),
    }
}

/// Formats the root's data disk if it is blank, with the `mkfs.ext4` of the root at `tools`, and mounts it on `target`.
/// For the first stage: it waits, since no reaper runs yet.
///
/// # Errors
/// The disk cannot be used; it is left unchanged.
pub fn prepare_root_disk(
    device: &Path,
    target: &Path,
    tools: &Path,
    warn: &mut dyn FnMut(String),
) -> Result<(), DiskError> {
    let mut content = look(device)?;
    if let Content::Blank | Content::Filesystem { .. } = content
        && !kernel_knows(name(Filesystem::Ext4))
    {
        // The kernel would load modules with the initrd's modprobe, which does not exist.
        let _ = Program::new("modprobe").args(["-q", name(Filesystem::Ext4)]).root(tools).run();
    }
    match decide(&content, Filesystem::Ext4, DATA_LABEL) {
        Decision::Refuse => return Err(occupied(device, &content, Filesystem::Ext4, DATA_LABEL)),
        Decision::Use => {}
        Decision::Format => {
            let program = format_command(Filesystem::Ext4, DATA_LABEL, device, size_of(device)?);
            begin_format(device, &content, DATA_LABEL)?;
            let failed = |source| DiskError::Format { device: device.to_owned(), source };
            program.root(tools).run().map_err(failed)?;
            set_mark(device, None)?;
            warn(format!("data disk {} was blank and has been formatted", device.display()));
            content = look(device)?;
        }
    }
    mount_device(device, target, Filesystem::Ext4, &content)
}

/// Whether the filesystem is built in or loaded.
fn kernel_knows(filesystem: &str) -> bool {
    fs::read_to_string("/proc/filesystems")
        .is_ok_and(|text| text.lines().any(|l| l.split_whitespace().last() == Some(filesystem)))
}

/// Devices that a rule without a serial may use: whole disks, by name, without the machine's own.
pub fn candidates(sys_block: &Path, serials: &[(String, PathBuf)]) -> Vec<PathBuf> {
    let taken: BTreeSet<&Path> =
        serials.iter().filter(|(s, _)| is_machine_drive(s)).map(|(_, d)| d.as_path()).collect();
    let mut names: Vec<String> = fs::read_dir(sys_block)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|n| ["vd", "sd", "nvme", "xvd", "mmcblk"].iter().any(|p| n.starts_with(p)))
        .collect();
    names.sort();
    let devices = names.iter().map(|n| Path::new("/dev").join(n));
    devices.filter(|d| !taken.contains(d.as_path()) && d.exists()).collect()
}

/// Whether a serial names a layer or the spec.
pub fn is_machine_drive(serial: &str) -> bool {
    serial == "spec"
        || serial
            .strip_prefix("layer")
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Drives and their serials from sysfs (`/sys/block/*/serial` for virtio, `device/serial` for NVMe).
pub fn serials(sys_block: &Path) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(sys_block).into_iter().flatten().flatten() {
        for file in ["serial", "device/serial"] {
            if let Ok(serial) = fs::read_to_string(entry.path().join(file)) {
                let serial = serial.trim_matches(['\0', '\n', ' ']).to_owned();
                if !serial.is_empty() {
                    found.push((serial, Path::new("/dev").join(entry.file_name())));
                    break;
                }
            }
        }
    }
    found.sort();
    found
}

/// Sets up every rule's disk and reports the results to the node's handle.
pub async fn set_up(rules: &[DiskRule], handle: &Handle, in_namespace: bool) -> Vec<DiskStatus> {
    let mut outcomes = Vec::new();
    let mut used = BTreeSet::new();
    for rule in rules {
        let (wanted, taken) = (rule.clone(), used.clone());
        let status = match blocking(move || find(&wanted, &taken, in_namespace)).await {
            None => DiskStatus {
                name: rule.name.clone(),
                device: None,
                outcome: DiskOutcome::Missing,
                detail: "no device matches".into(),
            },
            Some(device) => {
                used.insert(device.clone());
                let (outcome, detail) = match set_up_one(rule, &device, handle.reaper()).await {
                    Ok(done) => done,
                    Err(e) => {
                        let why = crate::chain(&e);
                        handle.warn(format!("disk {}: {why}", rule.name));
                        (DiskOutcome::Refused, why)
                    }
                };
                let device = Some(device.display().to_string());
                DiskStatus { name: rule.name.clone(), device, outcome, detail }
            }
        };
        handle.note(EventKind::Disk, format!("disk {} {}", rule.name, word(status.outcome)));
        handle.add_disk(status.clone());
        outcomes.push(status);
    }
    outcomes
}

fn word(outcome: DiskOutcome) -> &'static str {
    match outcome {
        DiskOutcome::Formatted => "formatted",
        DiskOutcome::Found => "found",
        DiskOutcome::Refused => "refused",
        DiskOutcome::Missing => "missing",
    }
}

fn find(rule: &DiskRule, used: &BTreeSet<PathBuf>, in_namespace: bool) -> Option<PathBuf> {
    let by_serial = |serial: &str| {
        let link = Path::new(BY_SERIAL).join(serial);
        fs::canonicalize(link).ok()
    };
    match &rule.matches {
        DiskMatch::Serial(serial) => by_serial(serial),
        DiskMatch::Device(path) => fs::canonicalize(path).ok(),
        DiskMatch::LabelOrFirstBlank(label) => {
            let devices: Vec<PathBuf> = if in_namespace {
                let mut links: Vec<PathBuf> =
                    fs::read_dir(BY_SERIAL).ok()?.flatten().map(|e| e.path()).collect();
                links.sort();
                links.iter().filter_map(|l| fs::canonicalize(l).ok()).collect()
            } else {
                candidates(Path::new("/sys/block"), &serials(Path::new("/sys/block")))
            };
            let free: Vec<(PathBuf, Content)> = devices
                .into_iter()
                .filter(|d| !used.contains(d))
                .filter_map(|d| look(&d).ok().map(|c| (d, c)))
                .collect();
            let labelled = |c: &Content| matches!(c, Content::Filesystem { label: l, .. } | Content::Unfinished { label: l } if l == label);
            let found = free.iter().find(|(_, c)| labelled(c));
            found
                .or_else(|| free.iter().find(|(_, c)| decide(c, rule.filesystem, label) == Decision::Format))
                .map(|(d, _)| d.clone())
        }
    }
}

async fn set_up_one(
    rule: &DiskRule,
    device: &Path,
    reaper: &Reaper,
) -> Result<(DiskOutcome, String), DiskError> {
    let owned = || (rule.clone(), device.to_owned());
    let (of, path) = owned();
    let (found, blank) = blocking(move || begin(&of, &path)).await?;
    let (outcome, content) = match blank {
        None => (DiskOutcome::Found, Some(found)),
        Some(size) => {
            format(device, size, rule, reaper).await?;
            let path = device.to_owned();
            blocking(move || set_mark(&path, None)).await?;
            (DiskOutcome::Formatted, None)
        }
    };
    let (of, path) = owned();
    Ok((outcome, blocking(move || mount_rule(&of, &path, content)).await?))
}

/// Looks at a device and decides; begins the format of a blank one and then returns its size. Blocks.
fn begin(rule: &DiskRule, device: &Path) -> Result<(Content, Option<u64>), DiskError> {
    let content = look(device)?;
    match decide(&content, rule.filesystem, &rule.label) {
        Decision::Refuse => Err(occupied(device, &content, rule.filesystem, &rule.label)),
        Decision::Use => Ok((content, None)),
        Decision::Format => {
            begin_format(device, &content, &rule.label)?;
            Ok((content, Some(size_of(device)?)))
        }
    }
}

/// Mounts the filesystem and its binds, as far as the rule asks for them; returns details for people. `content` is the
/// device's content, if it is known since the format. Blocks, for long if the kernel replays a journal.
fn mount_rule(rule: &DiskRule, device: &Path, content: Option<Content>) -> Result<String, DiskError> {
    let content = content.map_or_else(|| look(device), Ok)?;
    let mut detail = content.to_string();
    if let Some(mount) = &rule.mount {
        let target = Path::new(mount);
        let bind = |path: &Path| {
            let path = path.to_owned();
            move |source| DiskError::Bind { path, source }
        };
        fs::create_dir_all(target).map_err(bind(target))?;
        mount_device(device, target, rule.filesystem, &content)?;
        for (from, to) in &rule.binds {
            let from = target.join(from.trim_start_matches('/'));
            let to = Path::new(to);
            fs::create_dir_all(&from).map_err(bind(&from))?;
            fs::create_dir_all(to).map_err(bind(to))?;
            mount_bind(&from, to).map_err(io::Error::from).map_err(bind(to))?;
        }
        detail = format!("{detail} on {mount}");
    }
    Ok(detail)
}

async fn format(device: &Path, size: u64, rule: &DiskRule, reaper: &Reaper) -> Result<(), DiskError> {
    let program = format_command(rule.filesystem, &rule.label, device, size);
    let failed = |source| DiskError::Format { device: device.to_owned(), source };
    let mut command = program.command().map_err(failed)?;
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut running = reaper.spawn(&mut command).map_err(|e| failed(program.not_run("start", e)))?;
    let said = running.child.stderr.take().map(read_some);
    let exit = match tokio::time::timeout(FORMAT_TIMEOUT, &mut running.exit).await {
        Ok(exit) => exit.unwrap_or(Exit::Signal(9)),
        Err(_) => {
            let _ = rustix::process::kill_process(running.pid, rustix::process::Signal::KILL);
            let (command, said) = (program.line(), String::new());
            return Err(failed(CommandError::TimedOut { command, after: FORMAT_TIMEOUT, said }));
        }
    };
    if exit.success() {
        return Ok(());
    }
    let said = match said {
        Some(text) => text.await,
        None => String::new(),
    };
    Err(failed(program.failed(exit, said.as_bytes(), b"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_blank_devices_are_formatted() {
        let ext4 = |label: &str, damaged| Content::Filesystem {
            kind: Filesystem::Ext4,
            label: label.into(),
            damaged,
        };
        assert_eq!(decide(&Content::Blank, Filesystem::Ext4, "a"), Decision::Format);
        assert_eq!(decide(&ext4("a", false), Filesystem::Ext4, "a"), Decision::Use);
        for other in [ext4("b", false), ext4("a", true), Content::Other("swap")] {
            assert_eq!(decide(&other, Filesystem::Ext4, "a"), Decision::Refuse, "{other}");
        }
        assert_eq!(decide(&ext4("a", false), Filesystem::Xfs, "a"), Decision::Refuse);
    }

    #[test]
    fn tools_never_get_an_option_to_overwrite() {
        for filesystem in [Filesystem::Ext4, Filesystem::Xfs, Filesystem::Btrfs] {
            let program = format_command(filesystem, "l", Path::new("/dev/vdb"), 10 << 20);
            let line = program.line();
            assert!(!program.argv().iter().any(|a| a == "-f" || a == "-F" || a == "--force"), "{line}");
            assert!(line.contains("-L l /dev/vdb"), "{line}");
            assert!(line.contains("10236k") || line.contains("10481664"), "4 KiB are left: {line}");
        }
    }

    #[test]
    fn drives_of_the_machine_are_not_data_disks() {
        let dir = tempfile::tempdir().unwrap();
        for (name, serial) in [("vda", "layer0"), ("vdb", "spec"), ("vdc", "data"), ("loop0", "")] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("serial"), serial).unwrap();
        }
        let found = serials(dir.path());
        assert_eq!(found.len(), 3);
        assert!(found.contains(&("data".to_owned(), "/dev/vdc".into())));
        assert!(!candidates(dir.path(), &found).iter().any(|d| d.ends_with("vda") || d.ends_with("vdb")));
        assert!(is_machine_drive("layer12") && !is_machine_drive("layers") && !is_machine_drive("layer"));
    }
}
