//! What a kernel counts for instances, as files: of cgroup v2 and of network interfaces.

use std::{fs, io, path::Path};

/// The files of a running instance below `sys`, which stands for `/sys`; `interface` is the host's end of its own.
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
