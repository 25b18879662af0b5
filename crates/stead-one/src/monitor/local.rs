//! Resource usage of instances, from the kernel's own counters: their cgroups, of either version, and the host's ends
//! of their interfaces.
//!
//! The engines report the same, but enter every instance for it: Incus 6.0 takes 9 ms for each running one, on two
//! cores. They are asked only if the counters cannot be read reliably.

use std::{fs, path::Path};
use stead_incus::types::{Instance, InstanceCpu, InstanceMemory, InstanceNetwork, InstanceState, Traffic};

/// Fills in the usage of running instances; returns false if it is incomplete. `sys` is `/sys`.
pub(super) fn fill(sys: &Path, instances: &mut [Instance]) -> bool {
    let names: Vec<String> = instances.iter().map(|i| i.name.clone()).collect();
    instances.iter_mut().filter(|i| matches!(i.status.as_str(), "Running" | "Frozen")).all(|instance| {
        instance.state = state(sys, instance, &names);
        instance.state.is_some()
    })
}

fn state(sys: &Path, instance: &Instance, names: &[String]) -> Option<InstanceState> {
    let name = &instance.name;
    let group = format!("lxc.payload.{name}");
    let root = sys.join("fs/cgroup");
    let (cpu, memory) = match number(&root.join("cpuacct").join(&group).join("cpuacct.usage")) {
        Some(cpu_ns) => (cpu_ns, root.join("memory").join(&group).join("memory.usage_in_bytes")),
        None => (cpu_ns(&root.join(&group).join("cpu.stat"))?, root.join(&group).join("memory.current")),
    };
    // LXC uses another name if a cgroup with this one was left over: then this is the wrong one.
    let other = format!("{name}-1");
    let others = [root.join("memory"), root].map(|r| r.join(format!("lxc.payload.{other}")));
    if !names.contains(&other) && others.iter().any(|o| o.exists()) {
        return None;
    }
    let nics = instance.expanded_devices.iter().filter(|(_, d)| d.get("type").is_some_and(|t| t == "nic"));
    let network = nics.map(|(device, _)| {
        let host =
            instance.config.get(&format!("volatile.{device}.host_name")).filter(|h| !h.contains('/'))?;
        let statistics = sys.join("class/net").join(host).join("statistics");
        // The host's end receives what the instance sends.
        let counters = Traffic {
            bytes_received: number(&statistics.join("tx_bytes"))?,
            bytes_sent: number(&statistics.join("rx_bytes"))?,
            ..Traffic::default()
        };
        Some((device.clone(), InstanceNetwork { counters, ..InstanceNetwork::default() }))
    });
    Some(InstanceState {
        status: instance.status.clone(),
        cpu: InstanceCpu { usage_ns: cpu },
        memory: InstanceMemory { usage: number(&memory)?, ..InstanceMemory::default() },
        network: network.collect::<Option<_>>()?,
        ..InstanceState::default()
    })
}

fn number(file: &Path) -> Option<i64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// `usage_usec` of a `cpu.stat`.
fn cpu_ns(file: &Path) -> Option<i64> {
    let text = fs::read_to_string(file).ok()?;
    let used = text.lines().find_map(|l| l.strip_prefix("usage_usec "))?;
    used.trim().parse::<i64>().ok()?.checked_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(name: &str, status: &str) -> Instance {
        let text = format!(
            r#"{{"name": "{name}", "status": "{status}", "type": "container",
                "config": {{"volatile.eth0.host_name": "veth1"}},
                "expanded_devices": {{"eth0": {{"type": "nic"}}, "root": {{"type": "disk"}}}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }
    fn write(sys: &Path, file: &str, text: &str) {
        let file = sys.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    fn told(i: &Instance) -> (i64, i64, i64, i64) {
        let state = i.state.as_ref().unwrap();
        let traffic = state.network["eth0"].counters;
        (state.cpu.usage_ns, state.memory.usage, traffic.bytes_received, traffic.bytes_sent)
    }

    #[test]
    fn both_versions_of_cgroups() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(one.path(), "fs/cgroup/cpuacct/lxc.payload.one-7/cpuacct.usage", "12170616\n");
        write(one.path(), "fs/cgroup/memory/lxc.payload.one-7/memory.usage_in_bytes", "425984\n");
        write(two.path(), "fs/cgroup/lxc.payload.one-7/cpu.stat", "usage_usec 12170\nuser_usec 1\n");
        write(two.path(), "fs/cgroup/lxc.payload.one-7/memory.current", "425984\n");
        for (sys, cpu) in [(one.path(), 12_170_616), (two.path(), 12_170_000)] {
            let mut all = [instance("one-7", "Running"), instance("one-8", "Stopped")];
            assert!(!fill(sys, &mut all), "its interface is not there");
            write(sys, "class/net/veth1/statistics/rx_bytes", "5\n");
            write(sys, "class/net/veth1/statistics/tx_bytes", "6\n");
            assert!(fill(sys, &mut all));
            assert_eq!(told(&all[0]), (cpu, 425_984, 6, 5));
            assert!(all[1].state.is_none());
            assert!(!fill(sys, &mut [instance("one-9", "Running")]), "its cgroup is not there");
        }
        // A second cgroup of the name, of no instance.
        fs::create_dir(two.path().join("fs/cgroup/lxc.payload.one-7-1")).unwrap();
        assert!(!fill(two.path(), &mut [instance("one-7", "Running")]));
        assert!(fill(two.path(), &mut [instance("one-7", "Running"), instance("one-7-1", "Stopped")]));
    }
}
