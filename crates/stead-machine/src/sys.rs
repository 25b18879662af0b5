//! The few kernel calls that no safe interface offers: every `unsafe` of this crate is here.
//!
//! Owns what a child does between fork and exec, unsharing of single threads, and the ioctl of taps.
#![allow(unsafe_code)]

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags},
    io::Errno,
    ioctl::{Opcode, Updater, ioctl},
    mount::MountPropagationFlags,
    process::{PidfdFlags, Signal, getpid, pidfd_open, set_parent_process_death_signal},
    thread::{UnshareFlags, unshare_unsafe},
};
use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
};
use stead_os::cgroup::Entrance;

/// Moves the calling thread, and the children it forks later, into new namespaces.
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
    /// Cgroups it moves into.
    pub cgroups: Entrance,
    /// Namespaces it makes for itself, after it is in its cgroups.
    pub unshare: Option<UnshareFlags>,
    /// Descriptors it passes on to the program.
    pub keep: Vec<OwnedFd>,
    /// Inherited descriptors that it does not pass on.
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
    tell(setup.cgroups.enter(), b"cannot enter its cgroups\n")?;
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

/// Writes to the child's standard error which step failed: the error number alone does not show it.
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
