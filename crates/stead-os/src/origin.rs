//! Known values for what a process inherits: what the caller of a command happens to carry (umask, limits, ignored signals,
//! niceness, …) does not reach what it starts.
//!
//! Owns the values. They are those that a VM's first process has from the kernel, with limits wide enough for engines.

#![allow(unsafe_code)] // one block for each call that no safe interface offers

use rustix::{
    fs::Mode,
    process::{Resource, Rlimit, geteuid, getrlimit, setpriority_process, setrlimit, umask},
    thread::{CpuSet, Gid, sched_setaffinity, set_thread_groups, set_thread_res_gid},
};

/// Permissions that new files do not have: those of writing, for group and others.
pub const UMASK: u32 = 0o022;

/// Limit of open files: programs that use select(2) count on the soft one, others raise it to the hard one.
const NOFILE: Rlimit = Rlimit { current: Some(1024), maximum: Some(1 << 20) };
/// Limits other than [`NOFILE`]; `None` is no limit. Engines give them on to instances, which have their own by cgroups.
const LIMITS: [(Resource, Rlimit); 13] = [
    (Resource::Cpu, FREE),
    (Resource::Fsize, FREE),
    (Resource::Data, FREE),
    (Resource::Stack, Rlimit { current: Some(8 << 20), maximum: None }),
    // No core files, until a service asks for them.
    (Resource::Core, Rlimit { current: Some(0), maximum: None }),
    (Resource::Rss, FREE),
    (Resource::Nproc, FREE),
    (Resource::Memlock, FREE),
    (Resource::As, FREE),
    (Resource::Locks, FREE),
    (Resource::Sigpending, FREE),
    (Resource::Msgqueue, Rlimit { current: Some(819_200), maximum: Some(819_200) }),
    (Resource::Rttime, FREE),
];
const FREE: Rlimit = Rlimit { current: None, maximum: None };
/// Of real-time and of negative niceness: none.
const NONE: Rlimit = Rlimit { current: Some(0), maximum: Some(0) };

/// Sets the umask alone, for a command whose other inheritance is its user's business.
pub fn set_umask() {
    umask(Mode::from_raw_mode(UMASK));
}

/// Lets this process have as many open files as its hard limit says.
pub fn allow_files() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Adds the directories of [`crate::command::PATH`] to this process's PATH, behind those that it has: a user's own often
/// lacks those for root, and everything that is started must find what everything else finds.
///
/// # Safety
/// No other thread may run: the C library's environment has no lock.
pub unsafe fn extend_path() {
    let own = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<_> = std::env::split_paths(&own).filter(|d| d.is_absolute()).collect();
    for directory in crate::command::PATH.split(':').map(std::path::PathBuf::from) {
        if !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    if let Ok(all) = std::env::join_paths(directories) {
        // SAFETY: the caller's, that there is no other thread.
        unsafe { std::env::set_var("PATH", all) };
    }
}

/// Gives this process, and what it starts later, known values. To be called before there is a second thread: some belong
/// to a thread. What root alone may set stays as it is for others, and so does what the kernel does not have.
pub fn become_known() {
    set_umask();
    for (resource, wanted) in LIMITS.into_iter().chain([
        (Resource::Nofile, NOFILE),
        (Resource::Nice, NONE),
        (Resource::Rtprio, NONE),
    ]) {
        if setrlimit(resource, wanted).is_err() {
            // Only CAP_SYS_RESOURCE raises a hard limit, and root of a container may not have it.
            let hard = getrlimit(resource).maximum;
            let within = |limit: Option<u64>| match (limit, hard) {
                (Some(limit), Some(hard)) => Some(limit.min(hard)),
                (limit, hard) => limit.or(hard),
            };
            let _ = setrlimit(
                resource,
                Rlimit { current: within(wanted.current), maximum: within(wanted.maximum) },
            );
        }
    }
    signals();
    let _ = setpriority_process(None, 0);
    let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    // The kernel keeps to those that there are.
    let mut all = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|cpu| all.set(cpu));
    let _ = sched_setaffinity(None, &all);
    scheduling();
    if geteuid().is_root() {
        let _ = set_thread_groups(&[]);
        let _ = set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT);
        let _ = rustix::thread::set_capabilities_secure_bits(rustix::thread::CapabilitiesSecureBits::empty());
        let _ = rustix::thread::clear_ambient_capability_set();
        keyring();
    }
}

/// Every signal has its default effect, and none is blocked.
fn signals() {
    for signal in 1..=libc::SIGRTMAX() {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP || signal == libc::SIGPIPE {
            // The standard library ignores SIGPIPE and gives children the default.
            continue;
        }
        // SAFETY: the default effect runs no code of ours; a number that is no signal, or one of the C library's own, is
        // refused.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: the set is written by sigemptyset before it is read, and lives over both calls.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Time-sharing without priorities, memory of any node, and the personality of Linux.
fn scheduling() {
    const IOPRIO_WHO_PROCESS: libc::c_long = 1;
    let ordinary = libc::sched_param { sched_priority: 0 };
    // SAFETY: each call takes numbers, or a pointer to a value that lives over it; none writes to memory of ours.
    unsafe {
        libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const ordinary);
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0 as libc::c_long, 0 as libc::c_long);
        libc::syscall(
            libc::SYS_set_mempolicy,
            libc::MPOL_DEFAULT as libc::c_long,
            0 as libc::c_long,
            0 as libc::c_long,
        );
        libc::prctl(libc::PR_SET_THP_DISABLE, 0, 0, 0, 0);
        libc::personality(0);
    }
}

/// A session keyring of its own, so that keys of the caller's session are not possessed.
fn keyring() {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: without a name the call takes no memory of ours, and makes an anonymous keyring.
    unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0 as libc::c_long) };
}
