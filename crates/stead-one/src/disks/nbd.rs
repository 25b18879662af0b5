//! Network block devices: the choice of a device, and the two programs behind them.
//!
//! A device has no owner until a program is connected, which takes a while: a script holds its lock until then. Does
//! not own the images.

use super::{DiskError, program, step::Cache};
use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};
use stead_os::{PathContext, command};

/// Pause between two looks while waiting.
const GLANCE: Duration = Duration::from_millis(20);
/// Time limit for a device to get its size while it is being connected.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// Time limit for a disconnected qemu-nbd to write back its cache and end. It is not killed, because that would leave
/// the image half written.
const DISCONNECT_PATIENCE: Duration = Duration::from_secs(60);
/// Most devices considered: the kernel makes 16 by default, or as many as configured.
const MOST: u32 = 256;

/// The program that needs a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// qemu-nbd.
    Qemu,
    /// rbd-nbd.
    Rbd,
}

/// A device that nothing is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Free {
    /// `/dev/nbd0`.
    pub device: PathBuf,
    /// Whether the kernel would send it NBD_CMD_WRITE_ZEROES.
    pub zeroes: bool,
}

/// The devices that a program may use, the best first.
///
/// A kernel that knows WRITE_ZEROES (observed with 6.12) keeps sending it to a device whose previous program supported
/// it, as qemu-nbd does. rbd-nbd (observed with 18.2) does not support it, logs that, and stops answering: writers to
/// the device hang until the host is reset. So rbd-nbd gets devices that qemu-nbd never had, from the first on as it
/// chooses itself, and qemu-nbd those it had before, then the last.
pub fn choice(program: Program, free: &[Free]) -> Vec<PathBuf> {
    let devices = |zeroes: bool| free.iter().filter(move |f| f.zeroes == zeroes).map(|f| f.device.clone());
    match program {
        Program::Qemu => devices(true).chain(devices(false).rev()).collect(),
        Program::Rbd => devices(false).collect(),
    }
}

/// The device that this host offers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Offer {
    /// None, because the module is not loaded.
    #[default]
    NoModule,
    /// No free, suitable device.
    NoneFree,
    /// This device.
    Device(PathBuf),
}

/// Finds a device for `program` and locks it against other scripts while the file is open. `locks` is a directory.
pub(super) fn reserve(program: Program, locks: &Path) -> Result<(Offer, Option<fs::File>), DiskError> {
    if !sys("nbd0").exists() {
        return Ok((Offer::NoModule, None));
    }
    fs::create_dir_all(locks).at("make", locks)?;
    for device in choice(program, &free()) {
        let name = device.file_name().unwrap_or_default();
        let path = locks.join(name);
        let lock = fs::File::create(&path).at("open", &path)?;
        let locked = rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok();
        // The previous owner of the lock may have connected it.
        if locked && name.to_str().is_some_and(is_free) {
            return Ok((Offer::Device(device), Some(lock)));
        }
    }
    Ok((Offer::NoneFree, None))
}

fn free() -> Vec<Free> {
    let names = (0..MOST).map(|n| format!("nbd{n}"));
    let free = names.filter(|name| Path::new("/dev").join(name).exists() && is_free(name));
    free.map(|name| {
        let most = fs::read_to_string(sys(&name).join("queue/write_zeroes_max_bytes"));
        Free { device: Path::new("/dev").join(&name), zeroes: most.is_ok_and(|bytes| bytes.trim() != "0") }
    })
    .collect()
}

fn is_free(name: &str) -> bool {
    let sys = sys(name);
    !sys.join("pid").exists() && fs::read_to_string(sys.join("size")).is_ok_and(|s| s.trim() == "0")
}

fn sys(name: &str) -> PathBuf {
    Path::new("/sys/block").join(name)
}

fn sys_of(device: &Path) -> PathBuf {
    Path::new("/sys/block").join(device.file_name().unwrap_or_default())
}

fn qemu_arguments(image: &Path, device: &Path, cache: Option<&Cache>, readonly: bool) -> Vec<String> {
    let mut arguments =
        vec![format!("--connect={}", device.display()), "--format=qcow2".into(), "--discard=unmap".into()];
    if let Some(cache) = cache {
        arguments.push(format!("--cache={}", cache.0));
    }
    if readonly {
        arguments.push("--read-only".into());
    }
    arguments.push(image.display().to_string());
    arguments
}

/// Connects a qcow2 image.
pub(super) fn connect(
    image: &Path,
    device: &Path,
    cache: Option<&Cache>,
    readonly: bool,
) -> Result<(), DiskError> {
    program("qemu-nbd").args(qemu_arguments(image, device, cache, readonly)).run()?;
    let size = sys_of(device).join("size");
    let deadline = Instant::now() + CONNECT_PATIENCE;
    while fs::read_to_string(&size).map_or(true, |s| s.trim() == "0") {
        if Instant::now() > deadline {
            return Err(DiskError::Unexpected(format!("{} did not get a size", device.display())));
        }
        thread::sleep(GLANCE);
    }
    Ok(())
}

/// Disconnects a qcow2 image, if it is this one that the device is connected to.
pub(super) fn disconnect(device: &Path, image: &Path) -> Result<(), DiskError> {
    let Ok(pid) = fs::read_to_string(sys_of(device).join("pid")) else { return Ok(()) };
    // The kernel reports the waiting thread, which ends first; its process closes the image afterwards.
    let status = fs::read_to_string(format!("/proc/{}/status", pid.trim())).unwrap_or_default();
    let Some(process) = process_of(&status) else { return Ok(()) };
    let ours = || {
        let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&*image.to_string_lossy())
    };
    if !ours() {
        return Ok(());
    }
    program("qemu-nbd").arg("--disconnect").arg(device).run()?;
    // The next user of the image, the transfer driver or a deploy, finds it complete and unlocked.
    let deadline = Instant::now() + DISCONNECT_PATIENCE;
    while ours() {
        if Instant::now() > deadline {
            return Err(DiskError::Unexpected(format!(
                "qemu-nbd (process {process}) does not release {}",
                image.display()
            )));
        }
        thread::sleep(GLANCE);
    }
    Ok(())
}

/// The process of a thread, by its `/proc/<id>/status`.
fn process_of(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())
}

fn rbd_arguments(
    image: &str,
    device: Option<&Path>,
    user: Option<&str>,
    conf: Option<&Path>,
    readonly: bool,
) -> Vec<String> {
    let mut arguments = vec!["map".to_owned()];
    if let Some(conf) = conf {
        arguments.extend(["--conf".to_owned(), conf.display().to_string()]);
    }
    if let Some(device) = device {
        arguments.extend(["--device".to_owned(), device.display().to_string()]);
    }
    if let Some(user) = user {
        arguments.extend(["--id".to_owned(), user.to_owned()]);
    }
    if readonly {
        arguments.push("--read-only".to_owned());
    }
    arguments.push(image.to_owned());
    arguments
}

/// Maps a Ceph image; returns its device. Without a given device rbd-nbd loads the module and chooses one.
pub(super) fn map_rbd(
    image: &str,
    device: Option<&Path>,
    user: Option<&str>,
    conf: Option<&Path>,
    readonly: bool,
) -> Result<PathBuf, DiskError> {
    let said = program("rbd-nbd").args(rbd_arguments(image, device, user, conf, readonly)).run()?.text();
    Ok(PathBuf::from(said.trim()))
}

/// Unmaps a Ceph image, wherever it is mapped.
pub(super) fn unmap_rbd(image: &str) -> Result<(), DiskError> {
    // Without rbd-nbd nothing was mapped, so there is nothing to undo.
    if command::find("rbd-nbd").is_none() {
        return Ok(());
    }
    let said = program("rbd-nbd").args(["list-mapped", "--format", "json"]).run()?.text();
    for device in rbd_devices(&said, image) {
        program("rbd-nbd").args(["unmap", &device]).run()?;
    }
    Ok(())
}

/// Devices of an image in the output of `rbd-nbd list-mapped`.
fn rbd_devices(said: &str, image: &str) -> Vec<String> {
    let list: Vec<serde_json::Map<String, serde_json::Value>> =
        serde_json::from_str(said).unwrap_or_default();
    let text = |m: &serde_json::Map<String, serde_json::Value>, key: &str| {
        m.get(key).and_then(|v| v.as_str()).unwrap_or_default().to_owned()
    };
    list.iter()
        .filter(|m| {
            let parts = [text(m, "pool"), text(m, "namespace"), text(m, "image")];
            parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join("/") == image
        })
        .map(|m| text(m, "device"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rbd_gets_no_device_that_qemu_had() {
        let free = [("/dev/nbd0", false), ("/dev/nbd2", true), ("/dev/nbd3", false), ("/dev/nbd4", true)];
        let free = free.map(|(device, zeroes)| Free { device: device.into(), zeroes });
        let names = |program| {
            let devices = choice(program, &free);
            devices.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(Program::Qemu), "/dev/nbd2 /dev/nbd4 /dev/nbd3 /dev/nbd0");
        assert_eq!(names(Program::Rbd), "/dev/nbd0 /dev/nbd3");
    }

    #[test]
    fn programs_arguments() {
        let cache = Cache("none".into());
        insta::assert_snapshot!(
            qemu_arguments(Path::new("/ds/0/7/disk.0"), Path::new("/dev/nbd3"), Some(&cache), true).join(" "),
            @"--connect=/dev/nbd3 --format=qcow2 --discard=unmap --cache=none --read-only /ds/0/7/disk.0"
        );
        let (device, conf) = (Path::new("/dev/nbd1"), Path::new("/etc/ceph/two.conf"));
        insta::assert_snapshot!(
            rbd_arguments("one/one-7-54-0", Some(device), Some("libvirt"), Some(conf), false).join(" "),
            @"map --conf /etc/ceph/two.conf --device /dev/nbd1 --id libvirt one/one-7-54-0"
        );
        insta::assert_snapshot!(rbd_arguments("one/x", None, None, None, true).join(" "), @"map --read-only one/x");
        let said = r#"[{"id":"1","pool":"one","namespace":"","image":"one-7-54-0","snap":"-","device":"/dev/nbd0"},
                      {"id":"2","pool":"one","namespace":"","image":"one-7-54-01","snap":"-","device":"/dev/nbd1"}]"#;
        assert_eq!(rbd_devices(said, "one/one-7-54-0"), ["/dev/nbd0"]);
        assert_eq!(rbd_devices("", "one/x"), Vec::<String>::new());
    }

    #[test]
    fn a_threads_process() {
        let thread =
            "Name:\tqemu-nbd\nUmask:\t0022\nState:\tD (disk sleep)\nTgid:\t1106\nNgid:\t0\nPid:\t1109\n";
        assert_eq!(process_of(thread), Some(1106));
        // It ended meanwhile.
        assert_eq!(process_of(""), None);
        let own = fs::read_to_string("/proc/thread-self/status").unwrap();
        assert_eq!(process_of(&own), Some(std::process::id()));
    }
}
