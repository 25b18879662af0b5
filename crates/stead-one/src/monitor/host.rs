//! What the host is and how much of it is in use, from /proc and /sys.

use super::text::quoted;
use crate::engine::Driver;
use std::{fmt::Write as _, fs, thread, time::Duration};

/// Use of the processors is looked at over this.
const CPU_INTERVAL: Duration = Duration::from_millis(250);

/// What the host is. How much room its datastores have is told by OpenNebula's own probe.
pub fn host_system(driver: Driver) -> String {
    let cpuinfo = read("/proc/cpuinfo");
    let uname = rustix::system::uname();
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|l| l.split(':').next().is_some_and(|k| k.trim() == name));
        line.and_then(|l| l.split_once(':')).map(|(_, v)| v.trim().to_owned()).unwrap_or_default()
    };
    let mhz = field("cpu MHz").parse::<f64>().unwrap_or(0.0).round() as u64;
    let memory = memory(&read("/proc/meminfo"));
    let mut out = String::new();
    let mut put = |name: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(out, "{name}={value}");
    };
    put("ARCH", &quoted(&uname.machine().to_string_lossy()));
    put("MODELNAME", &format!("\"{}\"", quoted(&field("model name"))));
    put("HOSTNAME", &quoted(&uname.nodename().to_string_lossy()));
    put("HYPERVISOR", &driver.name());
    put("TOTALCPU", &(cores(&read("/proc/stat")) * 100));
    put("CPUSPEED", &mhz);
    put("TOTALMEMORY", &memory.total_kib);
    put(
        "CGROUPS_VERSION",
        &if fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap_or(false) { 2 } else { 1 },
    );
    out
}

/// How much of the host is in use.
pub fn host_usage(driver: Driver) -> String {
    let before = jiffies(&read("/proc/stat"));
    thread::sleep(CPU_INTERVAL);
    let stat = read("/proc/stat");
    let now = jiffies(&stat);
    let memory = memory(&read("/proc/meminfo"));
    let total = cores(&stat) * 100;
    let (all, idle) = (now.0.saturating_sub(before.0).max(1), now.1.saturating_sub(before.1));
    let free = (total * idle / all).min(total);
    let (received, sent) = traffic(&read("/proc/net/dev"));
    format!(
        "HYPERVISOR={}\nUSEDMEMORY={}\nFREEMEMORY={}\nFREECPU={free}\nUSEDCPU={}\nNETRX={received}\nNETTX={sent}\n",
        driver.name(),
        memory.total_kib - memory.free_kib,
        memory.free_kib,
        total - free,
    )
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

struct Memory {
    total_kib: u64,
    free_kib: u64,
}

/// Free is what programs could get: without caches, as OpenNebula counts.
fn memory(meminfo: &str) -> Memory {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    let total_kib = field("MemTotal");
    Memory { total_kib, free_kib: (field("MemFree") + field("Buffers") + field("Cached")).min(total_kib) }
}

fn cores(stat: &str) -> u64 {
    let is_core =
        |l: &&str| l.strip_prefix("cpu").is_some_and(|r| r.starts_with(|c: char| c.is_ascii_digit()));
    stat.lines().filter(is_core).count() as u64
}

/// All and idle time of all cores together.
fn jiffies(stat: &str) -> (u64, u64) {
    let line = stat.lines().next().unwrap_or_default();
    // user nice system idle iowait irq softirq steal; guest times are in user's.
    let times: Vec<u64> = line.split_whitespace().skip(1).take(8).filter_map(|t| t.parse().ok()).collect();
    (times.iter().sum(), times.get(3).copied().unwrap_or(0) + times.get(4).copied().unwrap_or(0))
}

/// Bytes of the host's own interfaces: not loopback, bridges' ports or tunnels.
fn traffic(dev: &str) -> (u64, u64) {
    let own = |name: &str| {
        name.starts_with("eth") || name.starts_with("en") || name.starts_with("ib") || name.starts_with("em")
    };
    let mut sums = (0, 0);
    for (name, counters) in dev.lines().filter_map(|l| l.split_once(':')) {
        if own(name.trim()) {
            let numbers: Vec<u64> = counters.split_whitespace().filter_map(|n| n.parse().ok()).collect();
            sums.0 += numbers.first().copied().unwrap_or(0);
            sums.1 += numbers.get(8).copied().unwrap_or(0);
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_proc() {
        let stat = "cpu  10 0 10 70 10 0 0 0 5 0\ncpu0 5 0\ncpu1 5 0\nintr 1\n";
        assert_eq!((cores(stat), jiffies(stat)), (2, (100, 80)));
        let memory = memory(
            "MemTotal:  1000 kB\nMemFree: 100 kB\nMemAvailable: 500 kB\nBuffers: 50 kB\nCached: 250 kB\n",
        );
        assert_eq!((memory.total_kib, memory.free_kib), (1000, 400));
        let dev = "Inter-| Receive\n eth0: 10 0 0 0 0 0 0 0 20 0\n lo: 5 0 0 0 0 0 0 0 5 0\nveth1: 9 0 0 0 0 0 0 0 9\n";
        assert_eq!(traffic(dev), (10, 20));
    }
}
