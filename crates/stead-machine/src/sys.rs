//! The few kernel calls that no safe interface offers: every `unsafe` of this crate is here.
//!
//! Owns: what a child does between fork and exec, unsharing of single threads, and the ioctls of loop devices and
//! taps. Does not own when and why they are used.
#![allow(unsafe_code)]

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags},
    io::Errno,
    ioctl::{Ioctl, IoctlOutput, Opcode, Setter, Updater, ioctl},
    mount::MountPropagationFlags,
    process::{PidfdFlags, Signal, getpid, pidfd_open, set_parent_process_death_signal},
    thread::{UnshareFlags, unshare_unsafe},
};
use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

/// Gives the calling thread namespaces of its own. Children forked by it later are in them too.
pub(crate) fn unshare_thread(flags: UnshareFlags) -> io::Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: unsharing is unsound only with CLONE_FILES, when threads stop sharing descriptors; no caller asks for it.
    Ok(unsafe { unshare_unsafe(flags) }?)
}

/// What a child does to itself between fork and exec.
#[derive(Debug, Default)]
pub(crate) struct ChildSetup {
    /// Be killed when the thread that started it ends.
    pub die_with_parent: bool,
    /// Lead a session of its own.
    pub new_session: bool,
    /// Open `cgroup.procs` files of the cgroups it moves into.
    pub cgroups: Vec<File>,
    /// Namespaces it makes for itself, after it is in its cgroups.
    pub unshare: Option<UnshareFlags>,
    /// Descriptors it passes on to the program.
    pub keep: Vec<OwnedFd>,
    /// Descriptors it does not pass on, though they are open for it.
    pub drop: Vec<RawFd>,
}

/// Has the child of `command` do what `setup` says.
pub(crate) fn prepare(command: &mut Command, setup: ChildSetup) -> io::Result<()> {
    let parent = if setup.die_with_parent { Some(pidfd_open(getpid(), PidfdFlags::empty())?) } else { None };
    let act = move || setup_child(&setup, parent.as_ref());
    // SAFETY: between fork and exec only async-signal-safe things may happen. `setup_child` makes nothing but direct
    // system calls on values prepared before the fork: it allocates nothing, takes no lock and touches no libc state.
    unsafe { command.pre_exec(act) };
    Ok(())
}

fn setup_child(setup: &ChildSetup, parent: Option<&OwnedFd>) -> io::Result<()> {
    if let Some(parent) = parent {
        tell(set_parent_process_death_signal(Some(Signal::KILL)), b"cannot tie itself to its supervisor\n")?;
        // The supervisor may have died before the line above: then no signal will come.
        let mut fds = [PollFd::new(parent, PollFlags::IN)];
        if poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0 {
            return Err(Errno::SRCH.into());
        }
    }
    if setup.new_session {
        tell(rustix::process::setsid().map(drop), b"cannot lead a session\n")?;
    }
    for procs in &setup.cgroups {
        tell(rustix::io::write(procs, b"0").map(drop), b"cannot enter its cgroup\n")?;
    }
    if let Some(flags) = setup.unshare {
        // SAFETY: as in `unshare_thread`; this process has a single thread.
        tell(unsafe { unshare_unsafe(flags) }, b"cannot make its namespaces\n")?;
        if flags.contains(UnshareFlags::NEWNS) {
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            tell(rustix::mount::mount_change(c"/", private), b"cannot make its mounts private\n")?;
        }
    }
    for fd in &setup.keep {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
    }
    for raw in &setup.drop {
        // SAFETY: borrowed for one call; a number that is not open any more just fails.
        let fd = unsafe { BorrowedFd::borrow_raw(*raw) };
        let _ = rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC);
    }
    Ok(())
}

/// Says on the child's standard error which step failed: the error number alone would not tell.
fn tell(result: Result<(), Errno>, failed: &[u8]) -> io::Result<()> {
    result.map_err(|e| {
        // SAFETY: descriptor 2 of a child is its standard error; borrowed for one call.
        let _ = rustix::io::write(unsafe { BorrowedFd::borrow_raw(2) }, failed);
        e.into()
    })
}

/// Descriptors above the standard ones that are open in this process.
pub(crate) fn open_descriptors() -> Vec<RawFd> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return Vec::new() };
    entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).filter(|fd| *fd > 2).collect()
}

const LOOP_CTL_GET_FREE: Opcode = 0x4C82;
const LOOP_CONFIGURE: Opcode = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Block devices of the loop driver.
const LOOP_MAJOR: u32 = 7;

struct LoopGetFree;
// SAFETY: LOOP_CTL_GET_FREE takes no argument and answers the number of a device.
unsafe impl Ioctl for LoopGetFree {
    type Output = IoctlOutput;
    const IS_MUTATING: bool = true;
    fn opcode(&self) -> Opcode {
        LOOP_CTL_GET_FREE
    }
    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::null_mut()
    }
    unsafe fn output_from_ptr(
        out: IoctlOutput,
        _: *mut std::ffi::c_void,
    ) -> rustix::io::Result<Self::Output> {
        Ok(out)
    }
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}
/// `struct loop_info64`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}
const _: () = assert!(size_of::<LoopConfig>() == 304 && size_of::<LoopInfo>() == 232);

/// A loop device that lets go of its file once nothing uses it. Held open for as long as this lives.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    /// Its device node.
    pub path: PathBuf,
    _device: File,
}

impl LoopDevice {
    /// Attaches `file` to a free device.
    pub(crate) fn attach(file: &Path, read_only: bool) -> io::Result<Self> {
        let backing = File::options().read(true).write(!read_only).open(file)?;
        let control = File::options().read(true).write(true).open("/dev/loop-control")?;
        // Others take devices between our asking and attaching; each round one of us gets on, so this ends.
        for _ in 0..1000 {
            // SAFETY: the control device and the ioctl belong together.
            let number = unsafe { ioctl(&control, LoopGetFree) }?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = match File::options().read(true).write(!read_only).open(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    // A /dev that the kernel does not fill by itself.
                    make_loop_node(&path, number as u32)?;
                    File::options().read(true).write(!read_only).open(&path)?
                }
                other => other?,
            };
            let mut file_name = [0; 64];
            let text = file.as_os_str().as_encoded_bytes();
            let shown = text.len().min(63);
            file_name[..shown].copy_from_slice(&text[..shown]);
            let config = LoopConfig {
                fd: backing.as_raw_fd() as u32,
                block_size: 0,
                info: LoopInfo {
                    device: 0,
                    inode: 0,
                    rdevice: 0,
                    offset: 0,
                    sizelimit: 0,
                    number: 0,
                    encrypt_type: 0,
                    encrypt_key_size: 0,
                    flags: LO_FLAGS_AUTOCLEAR | if read_only { LO_FLAGS_READ_ONLY } else { 0 },
                    file_name,
                    crypt_name: [0; 64],
                    encrypt_key: [0; 32],
                    init: [0; 2],
                },
                reserved: [0; 8],
            };
            // SAFETY: LOOP_CONFIGURE reads a `struct loop_config`, whose layout is asserted above.
            match unsafe { ioctl(&device, Setter::<LOOP_CONFIGURE, LoopConfig>::new(config)) } {
                Ok(()) => return Ok(Self { path, _device: device }),
                Err(Errno::BUSY | Errno::AGAIN) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "no free loop device after 1000 tries"))
    }
}

fn make_loop_node(path: &Path, number: u32) -> io::Result<()> {
    let device = rustix::fs::makedev(LOOP_MAJOR, number);
    match rustix::fs::mknodat(
        rustix::fs::CWD,
        path,
        rustix::fs::FileType::BlockDevice,
        Mode::RUSR | Mode::WUSR,
        device,
    ) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

const TUNSETIFF: Opcode = 0x4004_54CA;
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// `struct ifreq` as TUNSETIFF uses it.
#[repr(C)]
struct TapRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}
const _: () = assert!(size_of::<TapRequest>() == 40);

/// Makes a tap in the calling thread's network namespace; it is gone once the descriptor is closed.
pub(crate) fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let fd = rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let mut request = TapRequest { name: [0; 16], flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
    let len = name.len().min(15);
    request.name[..len].copy_from_slice(&name.as_bytes()[..len]);
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, whose size is asserted above.
    unsafe { ioctl(fd.as_fd(), Updater::<TUNSETIFF, TapRequest>::new(&mut request)) }?;
    Ok(fd)
}
