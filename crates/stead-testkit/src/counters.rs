//! A kernel's counters of instances, as files: cgroup v2 and network interfaces.

use std::{fs, io, path::Path};

/// Writes the counters of a running instance below `sys`, in place of `/sys`; `interface` is the host's end of its NIC.
///
/// # Errors
/// They cannot be written.
pub fn write(sys: &Path, instance: &str, interface: &str, cpu_ms: u64, memory_mib: u64) -> io::Result<()> {
    let group = sys.join("fs/cgroup").join(format!("lxc.payload.{instance}"));
    fs::create_dir_all(&group)?;
    fs::write(group.join("cpu.stat"), format!("usage_usec {}\n", cpu_ms * 1000))?;
    fs::write(group.join("memory.current"), format!("{}\n", memory_mib << 20))?;
    let statistics = sys.join("class/net").join(interface).join("statistics");
    fs::create_dir_all(&statistics)?;
    ["rx_bytes", "tx_bytes"].iter().try_for_each(|file| fs::write(statistics.join(file), "0\n"))
}
