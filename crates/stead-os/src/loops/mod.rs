//! Loop devices: a file, or a window of it, as a block device.
//!
//! Attaches by ioctl, so neither losetup nor udev is needed; creates the device node where the kernel does not fill
//! `/dev`. Mounts nothing.

mod ioctl;

use crate::{PathContext, PathError};
use ioctl::Info;
use rustix::{
    fs::{FileType, Mode},
    io::Errno,
};
use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// The device that allocates free loop devices.
pub const CONTROL: &str = "/dev/loop-control";

/// Major number of loop devices.
const LOOP_MAJOR: u32 = 7;
/// Attempts to attach: another process may take a free device first. In each round at least one caller gets its device,
/// so this is a bound, not a tuning value.
const MAX_TRIES: u32 = 1000;
/// Pause before another attempt on a device whose cache the kernel is still writing back.
const RETRY_PAUSE: Duration = Duration::from_millis(10);
/// Pause between two looks at a device that is being detached.
const DETACH_POLL: Duration = Duration::from_millis(10);

/// How a file is attached.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// Open the file and the device for reading only.
    pub read_only: bool,
    /// The device begins at this byte of the file.
    pub offset_bytes: u64,
    /// The device has at most this many bytes; 0 means everything after the offset.
    pub limit_bytes: u64,
    /// Detach once nothing uses the device: after the [`LoopDevice`] is dropped and what was mounted is unmounted.
    pub autoclear: bool,
    /// Make the kernel read the partition table, if it supports that kind of table; see [`partitions`].
    pub partition_scan: bool,
    /// Bypass the file's page cache, so that nothing is cached twice. Where the file's filesystem lacks direct I/O, the
    /// device works without it; [`Attached::direct_io`] shows which.
    pub direct_io: bool,
}

impl Options {
    fn flags(&self) -> u32 {
        [
            (self.read_only, ioctl::READ_ONLY),
            (self.autoclear, ioctl::AUTOCLEAR),
            (self.partition_scan, ioctl::PARTITION_SCAN),
            (self.direct_io, ioctl::DIRECT_IO),
        ]
        .iter()
        .filter(|(wanted, _)| *wanted)
        .fold(0, |flags, (_, flag)| flags | flag)
    }
}

/// A loop device with a file, held open while this value lives. With [`Options::autoclear`] this keeps the device
/// attached until it is mounted; without, the device stays attached after the drop.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    device: File,
}

/// How a file is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By `LOOP_CONFIGURE`: the device never shows anything outside its window.
    OneStep,
    /// By `LOOP_SET_FD` and `LOOP_SET_STATUS64`, for kernels before 5.8.
    TwoSteps,
}

impl LoopDevice {
    /// Attaches `file` to a free device.
    ///
    /// # Errors
    /// The file cannot be opened, the loop driver is missing, or the kernel refuses.
    pub fn attach(file: &Path, options: &Options) -> Result<Self, PathError> {
        Self::attach_by(file, options, Way::OneStep)
    }

    fn attach_by(file: &Path, options: &Options, mut way: Way) -> Result<Self, PathError> {
        let open = |path: &Path| File::options().read(true).write(!options.read_only).open(path);
        let backing = open(file).at("open", file)?;
        let control = File::options().read(true).write(true).open(CONTROL).at("open", CONTROL)?;
        let name = file.as_os_str().as_encoded_bytes();
        let info = Info::wanted(options.offset_bytes, options.limit_bytes, options.flags(), name);
        for _ in 0..MAX_TRIES {
            let number = ioctl::free_number(&control).at("get a free loop device from", CONTROL)?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = match open(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    make_node(&path, number).at("make device node", &path)?;
                    open(&path)
                }
                other => other,
            };
            let device = device.at("open", &path)?;
            let done = match way {
                Way::OneStep => ioctl::configure(&device, backing.as_fd(), &info),
                Way::TwoSteps => attach_in_two_steps(&device, backing.as_fd(), &info),
            };
            match done {
                Ok(()) => return Ok(Self { path, device }),
                // Another process took it first.
                Err(Errno::BUSY) => {}
                Err(Errno::INVAL | Errno::NOTTY) if way == Way::OneStep => way = Way::TwoSteps,
                Err(e) => return Err(e).at("attach a loop device to", file),
            }
        }
        let source =
            io::Error::new(io::ErrorKind::ResourceBusy, "other processes took every free loop device");
        Err(source).at("attach a loop device to", file)
    }

    /// Its device node.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Detaches it once nothing uses it: when this value is dropped, or when its last mount ends. As long as this value
    /// lives nobody else can detach it, so it stays the file's.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn release(&self) -> Result<(), PathError> {
        clear(&self.device, &self.path)
    }

    /// What is attached to it.
    ///
    /// # Errors
    /// It has been detached.
    pub fn attached(&self) -> Result<Attached, PathError> {
        let info = ioctl::status(&self.device).at("read the state of", &self.path)?;
        Ok(Attached::new(self.path.clone(), &info))
    }
}

fn attach_in_two_steps(
    device: &File,
    backing: std::os::fd::BorrowedFd<'_>,
    info: &Info,
) -> rustix::io::Result<()> {
    ioctl::set_fd(device, backing)?;
    let mut tries = 0;
    let set = loop {
        match ioctl::set_status(device, info) {
            Err(Errno::AGAIN) if tries < MAX_TRIES => {
                tries += 1;
                thread::sleep(RETRY_PAUSE);
            }
            other => break other,
        }
    };
    if let Err(e) = set {
        let _ = ioctl::clear(device);
        return Err(e);
    }
    if info.flags & ioctl::DIRECT_IO != 0 {
        // Optional: the device works without it.
        let _ = ioctl::set_direct_io(device, true);
    }
    Ok(())
}

fn make_node(path: &Path, number: u32) -> rustix::io::Result<()> {
    let device = rustix::fs::makedev(LOOP_MAJOR, number);
    let made =
        rustix::fs::mknodat(rustix::fs::CWD, path, FileType::BlockDevice, Mode::RUSR | Mode::WUSR, device);
    match made {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

/// An attached loop device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The device node.
    pub device: PathBuf,
    /// Where in the file it begins, in bytes.
    pub offset_bytes: u64,
    /// Its greatest size in bytes; 0 means everything after the offset.
    pub limit_bytes: u64,
    /// Whether it is read-only.
    pub read_only: bool,
    /// Whether it is detached once nothing uses it.
    pub autoclear: bool,
    /// Whether it bypasses the file's page cache.
    pub direct_io: bool,
    /// Filesystem and inode of the file.
    file: (u64, u64),
}

impl Attached {
    /// Detaches it once nothing uses it, if it is still this file's: a device that was detached since may be another
    /// file's by now.
    ///
    /// # Errors
    /// The device cannot be opened, or the kernel refuses.
    pub fn release(&self) -> Result<(), PathError> {
        // While it is open it cannot become another's.
        let device = File::open(&self.device).at("open", &self.device)?;
        match ioctl::status(&device) {
            Ok(info) if Self::new(self.device.clone(), &info).is_same(self) => clear(&device, &self.device),
            Ok(_) | Err(Errno::NXIO) => Ok(()),
            Err(e) => Err(e).at("read the state of", &self.device),
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        (self.file, self.offset_bytes, self.limit_bytes)
            == (other.file, other.offset_bytes, other.limit_bytes)
    }

    fn new(device: PathBuf, info: &Info) -> Self {
        let has = |flag| info.flags & flag != 0;
        Self {
            device,
            offset_bytes: info.offset,
            limit_bytes: info.size_limit,
            read_only: has(ioctl::READ_ONLY),
            autoclear: has(ioctl::AUTOCLEAR),
            direct_io: has(ioctl::DIRECT_IO),
            file: (info.device, info.inode),
        }
    }
}

/// Detaches now, or when the last use ends.
fn clear(device: &File, path: &Path) -> Result<(), PathError> {
    match ioctl::clear(device) {
        Err(Errno::NXIO) => Ok(()),
        other => other.at("detach loop device", path),
    }
}

/// The devices that a file is attached to, by number. A file is identified by filesystem and inode: it is found under
/// each of its names, and a new file under its old name is not taken for it.
///
/// # Errors
/// The file cannot be looked at, or `/sys/block` cannot be read.
pub fn find(file: &Path) -> Result<Vec<Attached>, PathError> {
    let meta = fs::metadata(file).at("look at", file)?;
    let mut numbers: Vec<u32> = fs::read_dir("/sys/block")
        .at("list", "/sys/block")?
        .flatten()
        .filter(|e| e.path().join("loop").is_dir())
        .filter_map(|e| e.file_name().to_str()?.strip_prefix("loop")?.parse().ok())
        .collect();
    numbers.sort_unstable();
    let attached = numbers.into_iter().filter_map(|number| {
        let path = PathBuf::from(format!("/dev/loop{number}"));
        if !path.exists() {
            make_node(&path, number).ok()?;
        }
        // A device that has just been detached fails here and is left out.
        let info = ioctl::status(&File::open(&path).ok()?).ok()?;
        (info.device == meta.dev() && info.inode == meta.ino()).then(|| Attached::new(path, &info))
    });
    Ok(attached.collect())
}

/// Detaches a device and waits until it is detached. Does nothing to a device without a file.
///
/// # Errors
/// The device cannot be opened, or the kernel refuses; [`io::ErrorKind::ResourceBusy`] when the device is still in use after `patience`. The kernel then
/// detaches it when its last use ends.
pub fn detach(device: &Path, patience: Duration) -> Result<(), PathError> {
    let sys = sys(device);
    let before = backing(&sys);
    clear(&File::open(device).at("open", device)?, device)?;
    let deadline = Instant::now() + patience;
    // The device may have been attached to another file meanwhile.
    while before.is_some() && backing(&sys) == before {
        if Instant::now() >= deadline {
            let source = io::Error::new(io::ErrorKind::ResourceBusy, "it is still in use");
            return Err(source).at("detach loop device", device);
        }
        thread::sleep(DETACH_POLL);
    }
    Ok(())
}

fn sys(device: &Path) -> PathBuf {
    Path::new("/sys/block").join(device.file_name().unwrap_or_default())
}

/// Identifies one attachment of a device: the file, the window, and the disk's sequence number (Linux 5.15).
fn backing(sys: &Path) -> Option<[Vec<u8>; 4]> {
    let file = fs::read(sys.join("loop/backing_file")).ok()?;
    let more = |name: &str| fs::read(sys.join(name)).unwrap_or_default();
    Some([file, more("loop/offset"), more("loop/sizelimit"), more("diskseq")])
}

/// Sets a device's size to the present size of its file. On network filesystems the kernel may have an old size cached,
/// so the file is queried first.
///
/// # Errors
/// The device cannot be opened, has no file, or the kernel refuses.
pub fn refresh_size(device: &Path) -> Result<(), PathError> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    if let Ok(name) = fs::read(sys(device).join("loop/backing_file")) {
        let file = OsStr::from_bytes(name.trim_ascii_end());
        let _ = statx(CWD, file, AtFlags::STATX_FORCE_SYNC, StatxFlags::SIZE);
    }
    let file = File::open(device).at("open", device)?;
    ioctl::set_capacity(&file).at("update the size of", device)
}

/// A partition that the kernel found on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number in the table, from 1.
    pub number: u32,
    /// Its device node, which exists only where the kernel or udev fills `/dev`.
    pub device: PathBuf,
    /// Where it begins on the device.
    pub offset_bytes: u64,
    /// Its size.
    pub size_bytes: u64,
}

/// The partitions that the kernel found on a device attached with [`Options::partition_scan`], by number.
///
/// # Errors
/// There is no such device.
pub fn partitions(device: &Path) -> Result<Vec<Partition>, PathError> {
    /// Unit of sizes in sysfs, whatever the device's block size.
    const SECTOR_BYTES: u64 = 512;
    let sys = sys(device);
    let mut found: Vec<Partition> = fs::read_dir(&sys)
        .at("list", &sys)?
        .flatten()
        .filter_map(|entry| {
            let number = |name: &str| -> Option<u64> {
                fs::read_to_string(entry.path().join(name)).ok()?.trim().parse().ok()
            };
            Some(Partition {
                number: number("partition")?.try_into().ok()?,
                device: Path::new("/dev").join(entry.file_name()),
                offset_bytes: number("start")? * SECTOR_BYTES,
                size_bytes: number("size")? * SECTOR_BYTES,
            })
        })
        .collect();
    found.sort_by_key(|p| p.number);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_the_kernels_flags() {
        assert_eq!(Options::default().flags(), 0);
        let all = Options {
            read_only: true,
            autoclear: true,
            partition_scan: true,
            direct_io: true,
            ..Default::default()
        };
        assert_eq!(all.flags(), 1 | 4 | 8 | 16);
    }

    #[test]
    fn a_long_name_is_cut_and_stays_a_string() {
        let info = Info::wanted(1, 2, 3, &[b'x'; 200]);
        assert_eq!((info.offset, info.size_limit, info.flags), (1, 2, 3));
        assert!(info.file_name[..63].iter().all(|b| *b == b'x') && info.file_name[63] == 0);
    }

    /// Needs root and the loop driver; the other tests of devices are in `tests/it/host.rs`.
    #[test]
    fn the_way_of_old_kernels_does_the_same() {
        if !rustix::process::geteuid().is_root() || !Path::new(CONTROL).exists() {
            eprintln!("SKIP the_way_of_old_kernels_does_the_same: needs root and {CONTROL}");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk");
        fs::write(&file, vec![7; 8192]).unwrap();
        let options = Options {
            read_only: true,
            offset_bytes: 4096,
            limit_bytes: 1024,
            autoclear: true,
            ..Default::default()
        };
        let [one, two] = [Way::OneStep, Way::TwoSteps].map(|way| {
            let device = LoopDevice::attach_by(&file, &options, way).unwrap();
            assert_eq!(fs::read(device.path()).unwrap(), vec![7; 1024], "{way:?}");
            Attached { device: PathBuf::new(), ..device.attached().unwrap() }
        });
        assert_eq!(one, two);
        assert!(one.autoclear && one.read_only && (one.offset_bytes, one.limit_bytes) == (4096, 1024));
        assert_eq!(find(&file).unwrap(), []);
    }
}
