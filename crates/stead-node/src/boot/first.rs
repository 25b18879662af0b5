//! The first stage: observes the machine's parts, makes its root, and enters it.

use super::{BootPlan, Device, Facts, SELF_PATH, apply::apply, plan};
use crate::{
    cgroups::Layout,
    disks,
    handle::say,
    modules::{self, Module},
    mounts::{self, mount_filesystem},
    state::{BootState, Mode, Upper},
};
use rustix::fs::{FileType, major, minor, stat};
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};
use stead_model::{
    node::{NamespaceBoot, NodeSpec, RootUpper, VmBoot},
    text,
};

/// How long drives are waited for: the kernel finds virtio drives within milliseconds, under emulation or on slow hosts
/// within seconds.
const DRIVES_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two looks for drives.
const DRIVES_PAUSE: Duration = Duration::from_millis(2);
/// Largest file read from the spec drive, in bytes: a bound against a broken drive.
const MAX_SPEC_BYTES: u64 = text::MAX_TEXT_BYTES as u64;

/// One entry for each virtio device that its bus driver has found.
const VIRTIO_DEVICES: &str = "/sys/bus/virtio/devices";

/// Runs as `/init` of an initrd. The second stage runs in the same process: starting the program again from the new
/// root would cost an emulated machine half a second for translating it again. Without a new root, the state has the
/// reason.
pub fn vm() -> BootState {
    let mut state = BootState::new(Mode::Vm);
    for (source, target, filesystem) in
        [("proc", "/proc", "proc"), ("sysfs", "/sys", "sysfs"), ("devtmpfs", "/dev", "devtmpfs")]
    {
        let _ = fs::create_dir_all(target);
        let _ = mount_filesystem(source, Path::new(target), filesystem, &[], "");
    }
    open_console();
    quiet_kernel();
    state.boot_id = read_line("/proc/sys/kernel/random/boot_id");
    state.note("init began");
    let (now, later) = modules::split(modules::listed(), Path::new(VIRTIO_DEVICES));
    modules::load(&now).into_iter().for_each(|error| state.warn(error));
    state.note("modules loaded");
    state.later = later.into_iter().map(Module::opened).collect();
    if let Err(why) = vm_root(&mut state) {
        enter_rescue(&mut state, Path::new("/stead"), why);
    }
    state
}

/// The initrd has no /dev/console when the kernel opens it, so our output would be lost.
fn open_console() {
    if let Ok(console) = fs::OpenOptions::new().read(true).write(true).open("/dev/console") {
        let _ = rustix::stdio::dup2_stdin(&console);
        let _ = rustix::stdio::dup2_stdout(&console);
        let _ = rustix::stdio::dup2_stderr(&console);
    }
}

/// Only warnings and worse: each line on an emulated serial console takes a millisecond.
fn quiet_kernel() {
    let _ = fs::write("/proc/sys/kernel/printk", "4 4 1 4");
}

fn read_line(path: &str) -> String {
    fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default()
}

fn vm_root(state: &mut BootState) -> Result<(), String> {
    let sys_block = Path::new("/sys/block");
    let spec_drive = wait_for(&[VmBoot::SPEC_SERIAL.to_owned()], sys_block)?.remove(0);
    let (node, boot) = read_spec_drive(&spec_drive)?;
    // The agent's certificates are in the spec: from here on a rescue state can answer.
    let spec = read_spec(&node)?;
    state.spec = Some(spec.clone());
    let boot: VmBoot = text::from_json(VmBoot::FILE, &boot.ok_or("the spec drive has no boot.json")?)
        .map_err(|e| e.to_string())?;
    if boot.layers == 0 {
        return Err("boot.json lists no layers".into());
    }
    let most = super::MAX_LAYERS + 1;
    let wanted: Vec<String> = (0..boot.layers).take(most).map(VmBoot::layer_serial).collect();
    let layers = wait_for(&wanted, sys_block)?;
    let serials = disks::serials(sys_block);
    let upper = match &spec.root {
        RootUpper::Tmpfs => Upper::Tmpfs(None),
        RootUpper::Disk(serial) => {
            // The data disk's filesystem is one of them.
            state.load_later_modules();
            Upper::Disk(wait_for(std::slice::from_ref(serial), sys_block)?.remove(0))
        }
    };
    state.note("drives found");
    let facts = Facts {
        mode: Mode::Vm,
        layers,
        staging: staging("/stead"),
        upper: upper.clone(),
        cgroups: Layout::unified(),
        disks: serials
            .into_iter()
            .filter(|(serial, _)| !disks::is_machine_drive(serial))
            .filter_map(|(serial, path)| Some((serial, device_at(&path)?)))
            .collect(),
        devices: Vec::new(),
        console: None,
    };
    make_root(state, &facts)?;
    state.upper = Some(upper);
    Ok(())
}

/// The directory for assembling the root, created if the initrd lacks it.
fn staging(path: &str) -> PathBuf {
    let _ = fs::create_dir_all(path);
    path.into()
}

fn make_root(state: &mut BootState, facts: &Facts) -> Result<(), String> {
    let plan: BootPlan = plan(facts).map_err(|e| crate::chain(&e))?;
    let mut warnings = Vec::new();
    let result = apply(&plan, |w| warnings.push(w));
    for warning in warnings {
        state.warn(warning);
    }
    result.map_err(|e| crate::chain(&e))?;
    state.note("root mounted");
    Ok(())
}

/// Enters a root in memory with only this program, so that the state can still be reported. `staging` is a directory.
fn enter_rescue(state: &mut BootState, directory: &Path, why: String) {
    say(format_args!("rescue: {why}"));
    state.rescue = Some(why);
    let _ = fs::create_dir_all(directory);
    let facts = Facts {
        mode: state.mode,
        layers: Vec::new(),
        staging: directory.to_owned(),
        upper: Upper::Tmpfs(None),
        cgroups: Layout::default(),
        disks: BTreeMap::new(),
        devices: Vec::new(),
        console: None,
    };
    if let Err(e) = make_root(state, &facts) {
        state.warn(format!("rescue root: {e}"));
    }
}

/// Starts this program again in the new root. Returns the state if that fails.
fn hand_over(mut state: BootState) -> BootState {
    if let Err(e) = close_inherited().and_then(|()| state.save()) {
        state.warn(format!("hand over to the second stage: {e}"));
        return state;
    }
    let error = Command::new(SELF_PATH).arg("run").env_clear().exec();
    state.warn(format!("start {SELF_PATH}: {error}"));
    state.rescue.get_or_insert_with(|| format!("start {SELF_PATH}: {error}"));
    state
}

/// Closes inherited descriptors, which could lead back into the host's tree.
fn close_inherited() -> io::Result<()> {
    let open: Vec<i32> = fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        // SAFETY: the descriptor is borrowed only for this call, which sets a flag. If it was closed meanwhile (the
        // directory listing's own), the call fails with EBADF and nothing else happens.
        #[allow(unsafe_code)]
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        let _ = rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC);
    }
    Ok(())
}

/// Waits for drives by serial; returns them in the given order.
fn wait_for(wanted: &[String], sys_block: &Path) -> Result<Vec<PathBuf>, String> {
    let until = Instant::now() + DRIVES_TIMEOUT;
    loop {
        let there = disks::serials(sys_block);
        let find = |serial: &String| {
            there.iter().find(|(s, d)| s == serial && d.exists()).map(|(_, device)| device.clone())
        };
        let found: Vec<Option<PathBuf>> = wanted.iter().map(find).collect();
        if found.iter().all(Option::is_some) {
            return Ok(found.into_iter().flatten().collect());
        }
        if Instant::now() > until {
            let missing: Vec<&str> =
                wanted.iter().zip(&found).filter(|(_, f)| f.is_none()).map(|(w, _)| w.as_str()).collect();
            let seen: Vec<&str> = there.iter().map(|(s, _)| s.as_str()).collect();
            return Err(format!(
                "no drive with serial {} after {} s; drives: {}",
                missing.join(", "),
                DRIVES_TIMEOUT.as_secs(),
                if seen.is_empty() { "none".to_owned() } else { seen.join(", ") }
            ));
        }
        thread::sleep(DRIVES_PAUSE);
    }
}

/// `node.json` and `boot.json` from the tar on the spec drive.
fn read_spec_drive(device: &Path) -> Result<(String, Option<String>), String> {
    let file = fs::File::open(device).map_err(|e| format!("open spec drive {}: {e}", device.display()))?;
    read_spec_tar(io::BufReader::new(file))
}

/// `node.json` and `boot.json` from a tar.
///
/// # Errors
/// A fragment: it is not a tar, or has no `node.json`.
pub fn read_spec_tar(tar: impl io::Read) -> Result<(String, Option<String>), String> {
    use io::Read;
    let bad = |e: io::Error| format!("spec drive: {e}");
    let (mut node, mut boot) = (None, None);
    for entry in tar::Archive::new(tar).entries().map_err(bad)? {
        let entry = entry.map_err(bad)?;
        let path = entry.path().map_err(bad)?.into_owned();
        let slot = match path.strip_prefix("./").unwrap_or(&path).to_str() {
            Some("node.json") => &mut node,
            Some(VmBoot::FILE) => &mut boot,
            _ => continue,
        };
        let mut text = String::new();
        entry.take(MAX_SPEC_BYTES).read_to_string(&mut text).map_err(bad)?;
        *slot = Some(text);
    }
    Ok((node.ok_or("the spec drive has no node.json")?, boot))
}

fn read_spec(text: &str) -> Result<NodeSpec, String> {
    NodeSpec::from_json("node.json", text).map_err(|e| e.to_string())
}

/// Runs as PID 1 of a namespace machine; `file` is a [`NamespaceBoot`]. Returns only if the new root could not be
/// entered.
pub fn namespace(file: &Path) -> BootState {
    let mut state = BootState::new(Mode::Namespace);
    state.boot_id = read_line("/proc/sys/kernel/random/uuid");
    state.note("init began");
    let mut staging = PathBuf::from("/tmp");
    if let Err(why) = namespace_root(&mut state, file, &mut staging) {
        enter_rescue(&mut state, &staging, why);
    }
    hand_over(state)
}

/// Sets `staging` to the directory for a rescue root once a better one than the default is known.
fn namespace_root(state: &mut BootState, file: &Path, staging: &mut PathBuf) -> Result<(), String> {
    let text = fs::read_to_string(file).map_err(|e| format!("read {}: {e}", file.display()))?;
    let boot: NamespaceBoot =
        text::from_json(&file.display().to_string(), &text).map_err(|e| e.to_string())?;
    let spec_dir =
        fs::canonicalize(&boot.spec_dir).map_err(|e| format!("{}: {e}", boot.spec_dir.display()))?;
    // It exists, and once the spec has been read nothing in it is needed any more.
    staging.clone_from(&spec_dir);
    let path = spec_dir.join("node.json");
    let text = fs::read_to_string(&path).map_err(|e| format!("read {}: {e}", path.display()))?;
    let spec = read_spec(&text)?;
    state.spec = Some(spec.clone());
    if boot.layers.is_empty() {
        return Err(format!("{} lists no layers", file.display()));
    }
    for layer in &boot.layers {
        if !layer.is_dir() {
            return Err(format!("layer {} is not a directory", layer.display()));
        }
    }
    let upper = match &spec.root {
        RootUpper::Tmpfs => Upper::Tmpfs(boot.root_limit.map(|b| b.0)),
        RootUpper::Disk(serial) => match boot.disks.get(serial) {
            Some(device) => Upper::Disk(device.clone()),
            None => return Err(format!("there is no disk with serial {serial}")),
        },
    };
    let mut attached = BTreeMap::new();
    for (serial, path) in &boot.disks {
        let device =
            device_at(path).ok_or_else(|| format!("disk {serial}: {} is not a device", path.display()))?;
        attached.insert(serial.clone(), device);
    }
    let facts = Facts {
        mode: Mode::Namespace,
        layers: boot.layers,
        staging: spec_dir,
        upper: upper.clone(),
        cgroups: Layout::from_mounts(&mounts::current()),
        disks: attached,
        devices: OPTIONAL_DEVICES
            .iter()
            .filter_map(|name| device_at(&Path::new("/dev").join(name)))
            .collect(),
        console: console(),
    };
    make_root(state, &facts)?;
    state.upper = Some(upper);
    Ok(())
}

/// Devices that a namespace node gets if its host has them: for VMs as instances, and for pools in files.
const OPTIONAL_DEVICES: [&str; 6] =
    ["kvm", "vhost-net", "vhost-vsock", "loop-control", "btrfs-control", "vsock"];

/// The device node at a path, named as below /dev.
fn device_at(path: &Path) -> Option<Device> {
    let path = fs::canonicalize(path).ok()?;
    let found = stat(&path).ok()?;
    let kind = FileType::from_raw_mode(found.st_mode);
    if kind != FileType::BlockDevice && kind != FileType::CharacterDevice {
        return None;
    }
    let name = path.strip_prefix("/dev").unwrap_or(Path::new(path.file_name()?));
    Some(Device {
        name: name.to_str()?.to_owned(),
        block: kind == FileType::BlockDevice,
        major: major(found.st_rdev),
        minor: minor(found.st_rdev),
        mode: found.st_mode & 0o777,
    })
}

/// The path, in this mount namespace, of the terminal on standard input or output.
fn console() -> Option<PathBuf> {
    if !rustix::termios::isatty(io::stdout()) {
        return None;
    }
    let path = fs::read_link("/proc/self/fd/1").ok()?;
    let (ours, there) = (rustix::fs::fstat(io::stdout()).ok()?, stat(&path).ok()?);
    (ours.st_rdev == there.st_rdev && ours.st_ino == there.st_ino).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, text) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o600);
            builder.append_data(&mut header, name, text.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn the_spec_drive_is_read_with_trailing_data() {
        let mut drive = tar_of(&[("boot.json", r#"{"layers":2}"#), ("./node.json", "{}"), ("x", "y")]);
        // A drive is longer than the tar on it.
        drive.resize(drive.len() + 1_000_000, 0);
        let (node, boot) = read_spec_tar(io::Cursor::new(drive)).unwrap();
        assert_eq!(node, "{}");
        assert_eq!(text::from_json::<VmBoot>(VmBoot::FILE, &boot.unwrap()).unwrap(), VmBoot { layers: 2 });
    }

    #[test]
    fn a_drive_without_a_spec_is_refused() {
        assert!(read_spec_tar(io::Cursor::new(tar_of(&[("a", "b")]))).unwrap_err().contains("no node.json"));
        assert!(read_spec_tar(io::Cursor::new(vec![0xff; 4096])).is_err());
    }

    #[test]
    fn missing_drives_are_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(wait_for(&[], dir.path()).unwrap().is_empty());
        assert_eq!(
            device_at(Path::new("/dev/null")).unwrap(),
            Device { name: "null".into(), block: false, major: 1, minor: 3, mode: 0o666 }
        );
        assert_eq!(device_at(dir.path()), None);
    }
}
