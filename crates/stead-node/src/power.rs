//! The end of a node: the signals and the power button that ask for it, and its last steps.

use crate::{
    blocking::blocking,
    handle::{Handle, Stop, say},
    mounts,
    state::Mode,
};
use rustix::{
    mount::{MountFlags, UnmountFlags, mount_remount, unmount},
    process::{Pid, Signal, getpid, kill_process},
    system::{RebootCommand, reboot},
};
use std::{
    fs,
    io::Read,
    path::Path,
    time::{Duration, Instant},
};
use stead_model::agent::EventKind;
use tokio::signal::unix::{SignalKind, signal};

/// Deadline for services after a signal or the power button. Shorter than the time after which supervisors kill a
/// machine, so that disks are unmounted.
pub const DEADLINE: Duration = Duration::from_secs(25);
/// How long processes outside services have after SIGTERM.
const STRAGGLERS: Duration = Duration::from_millis(500);

/// Turns signals into requests to stop: TERM and PWR power off; INT, which the kernel sends for ctrl-alt-del, reboots.
pub fn listen(handle: &Handle, mode: Mode) {
    if mode == Mode::Vm {
        // Otherwise ctrl-alt-del resets the machine at once.
        let _ = reboot(RebootCommand::CadOff);
    }
    let wishes = [
        (SignalKind::terminate(), Stop::Shutdown(DEADLINE)),
        (SignalKind::from_raw(Signal::POWER.as_raw()), Stop::Shutdown(DEADLINE)),
        (SignalKind::interrupt(), Stop::Reboot(DEADLINE)),
    ];
    for (kind, stop) in wishes {
        match signal(kind) {
            Ok(mut signals) => {
                let handle = handle.clone();
                tokio::spawn(async move {
                    if signals.recv().await.is_some() {
                        handle.request_stop(stop);
                    }
                });
            }
            Err(e) => handle.warn(format!("no handler for signal {}: {e}", kind.as_raw_value())),
        }
    }
}

/// `struct input_event` of a 64-bit kernel: two 8-byte times, type, code, value (linux/input.h).
const EVENT_BYTES: usize = 24;
/// EV_KEY and KEY_POWER (linux/input-event-codes.h).
const KEY_POWER: (u16, u16, i32) = (1, 116, 1);

/// Whether one input event is the power button going down.
fn is_power_button(event: &[u8; EVENT_BYTES]) -> bool {
    let kind = u16::from_ne_bytes([event[16], event[17]]);
    let code = u16::from_ne_bytes([event[18], event[19]]);
    let value = i32::from_ne_bytes([event[20], event[21], event[22], event[23]]);
    (kind, code, value) == KEY_POWER
}

/// Turns the power button into a request to stop, once the kernel has its driver. Every input device is watched; those
/// that are not buttons never send the event.
pub fn watch_buttons(handle: &Handle) {
    for entry in fs::read_dir("/dev/input").into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with("event") {
            continue;
        }
        let Ok(file) = fs::File::open(entry.path()) else { continue };
        let _ = rustix::io::ioctl_fionbio(&file, true);
        // SAFETY: a `File` has one descriptor for its whole life, and closes it only when the `AsyncFd` drops it.
        #[allow(unsafe_code)]
        let Ok(device) = (unsafe { tokio::io::unix::AsyncFd::register(file) }) else { continue };
        let handle = handle.clone();
        tokio::spawn(async move {
            let mut event = [0u8; EVENT_BYTES];
            while let Ok(mut guard) = device.readable().await {
                match guard.try_io(|d| d.get_ref().read(&mut event)) {
                    Ok(Ok(EVENT_BYTES)) if is_power_button(&event) => {
                        handle.note(EventKind::Stop, "power button");
                        return handle.request_stop(Stop::Shutdown(DEADLINE));
                    }
                    Ok(Ok(EVENT_BYTES)) | Err(_) => {}
                    Ok(_) => return,
                }
            }
        });
    }
}

/// Kills the remaining processes, syncs, unmounts, and ends the machine. Returns only if the kernel does not obey: in a
/// namespace it ends init by HUP (reboot) or INT (power off), which the machine's supervisor reads.
pub async fn leave(stop: Stop, mode: Mode) {
    end_stragglers().await;
    // This may take long on a slow disk; the agent still answers.
    blocking(move || {
        rustix::fs::sync();
        unmount_all(mode);
    })
    .await;
    let command = match stop {
        Stop::Shutdown(_) => RebootCommand::PowerOff,
        Stop::Reboot(_) => RebootCommand::Restart,
    };
    if getpid() != Pid::INIT {
        // Only in tests: reboot(2) would end the machine that tests run on.
        return;
    }
    let error = reboot(command);
    say(format_args!("reboot: {error:?}"));
}

/// Every process except this one and kernel threads.
fn others() -> Vec<Pid> {
    let me = getpid();
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok().and_then(Pid::from_raw))
        .filter(|pid| *pid != me)
        // Kernel threads and zombies have no memory and so no command line.
        .filter(|pid| {
            fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).is_ok_and(|c| !c.is_empty())
        })
        .collect()
}

async fn end_stragglers() {
    if getpid() != Pid::INIT {
        return;
    }
    for sig in [Signal::TERM, Signal::KILL] {
        for pid in others() {
            let _ = kill_process(pid, sig);
        }
        let until = Instant::now() + STRAGGLERS;
        while !others().is_empty() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Unmounts filesystems with state on disks, last mounted first; a root on a disk is made read-only.
fn unmount_all(mode: Mode) {
    if getpid() != Pid::INIT {
        return;
    }
    for mount in mounts::current().iter().rev() {
        if ["ext4", "xfs", "btrfs"].contains(&mount.filesystem.as_str()) && mount.at != Path::new("/") {
            let _ = unmount(&mount.at, UnmountFlags::empty());
        }
    }
    let _ = mount_remount("/", MountFlags::RDONLY, c"");
    if mode == Mode::Vm {
        // The filesystem under the overlay has no path; this makes the kernel remount all filesystems read-only.
        let _ = fs::write("/proc/sysrq-trigger", "u");
    }
    rustix::fs::sync();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_power_button_is_distinguished_from_other_events() {
        let mut event = [0u8; EVENT_BYTES];
        event[16..18].copy_from_slice(&1u16.to_ne_bytes());
        event[18..20].copy_from_slice(&116u16.to_ne_bytes());
        event[20..24].copy_from_slice(&1i32.to_ne_bytes());
        assert!(is_power_button(&event));
        event[20] = 0;
        assert!(!is_power_button(&event), "the button going up");
        event[18] = 30;
        assert!(!is_power_button(&event));
    }
}
