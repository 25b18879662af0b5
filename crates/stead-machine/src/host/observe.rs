//! Looking at the host. Reads, opens and closes; changes nothing.

use super::{CgroupFacts, Device, HostFacts};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};
use stead_model::Bytes;
use stead_os::{
    Program,
    cgroup::{Version, hierarchies},
    command, mountinfo,
};

/// Where state is kept unless told otherwise; its nearest existing parent is measured.
const STATE_DIR: &str = "/var/lib/stead";

/// It answers in milliseconds; one that hangs is as good as none.
const GO_PATIENCE: Duration = Duration::from_secs(20);

/// Looks at the host, and looks for these programs.
pub fn observe(programs: impl IntoIterator<Item = &'static str>) -> HostFacts {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let limit = memory_limit();
    let (disk_at, disk_free) = disk();
    let tools: BTreeMap<String, Option<PathBuf>> =
        programs.into_iter().map(|p| (p.to_owned(), command::find(p))).collect();
    // Go's own distribution is unpacked there, which few search paths name.
    let go = command::find("go").or_else(|| command::find("/usr/local/go/bin/go"));
    HostFacts {
        root: rustix::process::geteuid().is_root(),
        tools,
        go: go.and_then(|path| go_version(&path)),
        cpu_virtualisation: virtualisation(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
        kvm: device("/dev/kvm"),
        tun: device("/dev/net/tun"),
        loop_control: device("/dev/loop-control"),
        namespaces: names("/proc/self/ns"),
        filesystems: filesystems(&kernel),
        cgroups: cgroups(),
        subids: ["/etc/subuid", "/etc/subgid"]
            .iter()
            .all(|f| has_range(&fs::read_to_string(f).unwrap_or_default())),
        memory: limit.map_or(mem(&meminfo, "MemTotal"), |l| l.min(mem(&meminfo, "MemTotal"))),
        memory_available: limit
            .map_or(mem(&meminfo, "MemAvailable"), |l| l.min(mem(&meminfo, "MemAvailable"))),
        disk_free,
        disk_at,
        kernel,
    }
}

fn device(path: &str) -> Device {
    match File::options().read(true).write(true).open(path) {
        Ok(_) => Device::Opens,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Device::Missing,
        Err(_) => Device::Refused,
    }
}

/// Asks a Go for its version.
fn go_version(path: &Path) -> Option<String> {
    let ask = Program::new(path).args(["env", "GOVERSION"]).inherit_env().env("GOTOOLCHAIN", "local");
    let answer = ask.timeout(GO_PATIENCE).run().ok()?;
    Some(answer.text().trim().to_owned()).filter(|v| !v.is_empty())
}

/// The processor's flag for virtualisation out of /proc/cpuinfo's text.
fn virtualisation(cpuinfo: &str) -> Option<String> {
    let flags = cpuinfo.lines().find(|l| l.starts_with("flags"))?.split_once(':')?.1;
    flags.split_whitespace().find(|f| ["vmx", "svm"].contains(f)).map(str::to_owned)
}

fn names(dir: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned())).collect()
}

/// Filesystems in the kernel, and those it has a module for.
fn filesystems(kernel: &str) -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let mut found: BTreeSet<String> =
        text.lines().filter_map(|l| l.split('\t').nth(1)).map(str::to_owned).collect();
    let modules = Path::new("/lib/modules").join(kernel);
    for list in ["modules.dep", "modules.builtin"] {
        let text = fs::read_to_string(modules.join(list)).unwrap_or_default();
        for line in text.lines().filter(|l| l.starts_with("kernel/fs/")) {
            let module = line.split(':').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
            found.insert(module.split('.').next().unwrap_or_default().to_owned());
        }
    }
    found
}

fn cgroups() -> CgroupFacts {
    let mut facts = CgroupFacts::default();
    for hierarchy in hierarchies(&mountinfo::read().unwrap_or_default()) {
        match hierarchy.version {
            Version::V2 => {
                facts.v2 = true;
                let list = fs::read_to_string(hierarchy.root.join("cgroup.controllers")).unwrap_or_default();
                facts.controllers.extend(list.split_whitespace().map(str::to_owned));
            }
            Version::V1(controllers) => {
                facts.v1 = true;
                facts.controllers.extend(controllers);
            }
        }
    }
    facts
}

fn has_range(text: &str) -> bool {
    text.lines().any(|l| l.starts_with("root:") || l.starts_with("0:"))
}

/// A value of /proc/meminfo, which counts in KiB.
fn mem(meminfo: &str, key: &str) -> Bytes {
    let value =
        meminfo.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':')?.split_whitespace().next());
    Bytes(value.and_then(|v| v.parse::<u64>().ok()).unwrap_or(0) << 10)
}

/// The limit of the cgroup this runs in, as seen from inside a container.
fn memory_limit() -> Option<Bytes> {
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|f| fs::read_to_string(f).ok()?.trim().parse().ok())
        .map(Bytes)
}

fn disk() -> (PathBuf, Bytes) {
    let at = Path::new(STATE_DIR).ancestors().find(|p| p.exists()).unwrap_or(Path::new("/")).to_owned();
    let free = rustix::fs::statvfs(&at).map_or(0, |s| s.f_bavail * s.f_frsize);
    (at, Bytes(free))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_texts() {
        assert_eq!(virtualisation("processor: 0\nflags\t\t: fpu svm x\n").as_deref(), Some("svm"));
        assert_eq!(virtualisation("flags\t\t: fpu svm_lock\n"), None);
        assert_eq!(mem("MemTotal:       2048 kB\nMemFree: 1 kB\n", "MemTotal"), Bytes::mib(2));
        assert!(has_range("user:1:2\nroot:1000000:65536\n") && !has_range("user:1:2\n"));
    }

    #[test]
    fn a_look_at_this_host_finds_something() {
        let facts = observe(["sh", "no-such-program"]);
        assert!(facts.has("sh") && !facts.has("no-such-program"));
        assert!(!facts.kernel.is_empty() && facts.memory.0 > 0 && facts.namespaces.contains("net"));
    }
}
