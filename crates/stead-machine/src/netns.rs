//! Named network namespaces, compatible with `ip netns`, entered by single threads.
//!
//! Owns their making, removal and entering. Does not own what is in them.

use crate::{files::Lock, sys};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    mount::{MountPropagationFlags, UnmountFlags},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space},
};
use std::{
    fs, io,
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Where `ip netns` looks.
const DIR: &str = "/run/netns";
/// Where the lock on it is.
const LOCK_DIR: &str = "/run/stead";
/// `f_type` of the filesystem namespaces are files of (linux/magic.h).
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// The file a named namespace is mounted on.
pub fn path(netns: &str) -> PathBuf {
    Path::new(DIR).join(netns)
}

/// Opens a named namespace; `NotFound` when there is none of that name.
pub fn open(netns: &str) -> io::Result<OwnedFd> {
    let fd = rustix::fs::open(path(netns), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    if rustix::fs::fstatfs(&fd)?.f_type as i64 != NSFS_MAGIC {
        return Err(Errno::NOENT.into());
    }
    Ok(fd)
}

/// Makes a named namespace unless it is there already; true when it was made.
pub fn create(netns: &str) -> io::Result<bool> {
    fs::create_dir_all(DIR)?;
    let _lock = lock()?;
    if open(netns).is_ok() {
        return Ok(false);
    }
    share()?;
    let file = path(netns);
    fs::File::options().append(true).create(true).open(&file)?;
    on_thread(|| {
        sys::unshare_thread(UnshareFlags::NEWNET)?;
        Ok(rustix::mount::mount_bind("/proc/thread-self/ns/net", &file)?)
    })?;
    Ok(true)
}

/// Removes the name; the namespace goes with its last user. Idempotent.
pub fn remove(netns: &str) -> io::Result<()> {
    if !Path::new(DIR).exists() {
        return Ok(());
    }
    let _lock = lock()?;
    let file = path(netns);
    while open(netns).is_ok() {
        rustix::mount::unmount(&file, UnmountFlags::DETACH)?;
    }
    match fs::remove_file(&file) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // After the last name, undo `share`. Refused while there are names.
    if fs::read_dir(DIR)?.next().is_none() {
        let _ = rustix::mount::unmount(DIR, UnmountFlags::NOFOLLOW);
    }
    Ok(())
}

/// Names are added and removed by one process at a time. The lock is not within `DIR`: it would keep that mount busy.
fn lock() -> io::Result<Lock> {
    fs::create_dir_all(LOCK_DIR)?;
    Lock::wait(&Path::new(LOCK_DIR).join("netns.lock"))
}

/// Makes the directory a shared mount, as `ip netns add` does. Otherwise the next `ip netns add` would mount one on top
/// and hide our names.
fn share() -> io::Result<()> {
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    match rustix::mount::mount_change(DIR, shared) {
        Err(Errno::INVAL) => {
            rustix::mount::mount_bind_recursive(DIR, DIR)?;
            Ok(rustix::mount::mount_change(DIR, shared)?)
        }
        other => Ok(other?),
    }
}

/// Timeout of the first attempt to connect; it doubles with each attempt.
const FIRST_TRY: Duration = Duration::from_millis(100);

/// Connects from inside the named namespace; the socket may then be used anywhere.
///
/// Within `timeout` it tries again sooner than TCP would (after a second): while machines are attached to a bridge, the
/// kernel drops its neighbour entries together with the packets that wait for them.
pub fn dial(netns: &str, addr: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    inside(open(netns)?.as_fd(), || {
        let deadline = Instant::now() + timeout;
        let mut patience = FIRST_TRY;
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            match TcpStream::connect_timeout(&addr, patience.min(left)) {
                Err(e) if e.kind() == io::ErrorKind::TimedOut && patience < left => patience *= 2,
                outcome => return outcome,
            }
        }
    })
}

/// Moves the calling thread (only) into the named namespace, for good.
pub fn enter_thread(netns: &str) -> io::Result<()> {
    enter(open(netns)?.as_fd())
}

/// Moves the calling thread (only) into an open network namespace.
pub(crate) fn enter(netns: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?)
}

/// Runs `work` on a thread of its own inside the namespace.
pub(crate) fn inside<T: Send>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    on_thread(|| {
        enter(netns)?;
        work()
    })
}

/// Runs `work` on a thread that ends with it, so that a change of the thread's namespaces affects nothing else.
pub(crate) fn on_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .spawn_scoped(scope, work)?
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
