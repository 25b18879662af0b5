//! What a cluster file cannot mean, found before anything is started: addresses, networks, resources and published ports
//! that no node can have. Each error has the path of its key.

use super::{BackendChoice, ClusterSpec, Engine, EngineKind, MachineDefaults, Network, Nodes, Publish};
use crate::{
    preseed,
    recipe::SystemSpec,
    sizes::{Bytes, Memory},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::{collections::BTreeMap, net::IpAddr};

/// A key's path (`networks[1].ipv4`) and what is wrong with it.
type Fault = (String, String);

/// Names that the kernel uses in every network namespace, or for all interfaces together, and ours.
const TAKEN_LINKS: [&str; 14] = [
    "lo", "all", "default", "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0",
    "ip6gre0", "dummy0", "uplink",
];
/// A node with services boots in this; less is a mistake of the unit.
const LEAST_MEMORY: Bytes = Bytes::mib(32);
/// Kernel and initrd of a VM take half of it.
const LEAST_VM_MEMORY: Bytes = Bytes::mib(128);
/// An engine's daemon alone takes 150 MiB.
const LEAST_ENGINE_MEMORY: Bytes = Bytes::mib(256);
/// More than any host has.
const MOST_CPUS: u32 = 1024;

/// IPv4 prefixes that no interface can have, and why.
const UNUSABLE_V4: [(&str, &str); 5] = [
    ("0.0.0.0/8", "is reserved"),
    ("127.0.0.0/8", "is loopback"),
    ("169.254.0.0/16", "is link-local"),
    ("224.0.0.0/4", "is multicast"),
    ("240.0.0.0/4", "is reserved"),
];
/// The same of IPv6.
const UNUSABLE_V6: [(&str, &str); 3] =
    [("::/32", "is reserved"), ("fe80::/10", "is link-local"), ("ff00::/8", "is multicast")];

/// Everything of this module.
pub(super) fn check(spec: &ClusterSpec) -> Result<(), Fault> {
    machines(spec)?;
    networks(&spec.networks)?;
    addresses(spec)?;
    publish(&spec.publish)?;
    names(spec)?;
    if let Some(Engine::Full(options)) = &spec.engine {
        preseed::check(options.kind, &options.preseed)
            .map_err(|(key, why)| (format!("engine.preseed{key}"), why))?;
    }
    SystemSpec { sysctl: spec.sysctl.clone(), services: spec.services.clone(), ..Default::default() }
        .check_part()
}

fn machines(spec: &ClusterSpec) -> Result<(), Fault> {
    let engine = spec.engine_kind().is_some_and(|kind| kind != EngineKind::None);
    let check = |path: &str, machine: &MachineDefaults, backend: Option<BackendChoice>| {
        let fail = |key: &str, why: String| Err((format!("{path}.{key}"), why));
        if let Some(n) = machine.cpus.filter(|n| *n == 0 || *n > MOST_CPUS) {
            return fail("cpus", format!("{n} is not between 1 and {MOST_CPUS}"));
        }
        if let Some(Memory::Amount(amount)) = machine.memory {
            let (least, of) = if engine {
                (LEAST_ENGINE_MEMORY, "a node with an engine")
            } else if let Some(BackendChoice::Fixed(backend)) = backend
                && backend.has_kernel()
            {
                (LEAST_VM_MEMORY, "a VM")
            } else {
                (LEAST_MEMORY, "a node")
            };
            if amount < least {
                return fail("memory", format!("{amount} is too little: {of} needs at least {least}"));
            }
        }
        Ok(())
    };
    check("machine", &spec.machine, spec.machine.backend)?;
    if let Nodes::List(nodes) = &spec.nodes {
        for (i, node) in nodes.iter().enumerate() {
            let backend = node.machine.backend.or(spec.machine.backend);
            check(&format!("nodes[{i}].machine"), &node.machine, backend)?;
        }
    }
    Ok(())
}

fn networks(networks: &[Network]) -> Result<(), Fault> {
    let mut prefixes: Vec<(IpNet, &str)> = Vec::new();
    for (i, network) in networks.iter().enumerate() {
        let name = network.name.as_str();
        let fail = |key: &str, why: String| Err((format!("networks[{i}].{key}"), why));
        if TAKEN_LINKS.contains(&name) {
            return fail("name", format!("{name:?} is a name that the kernel uses itself"));
        }
        if !name.starts_with(|c: char| c.is_ascii_lowercase()) || name.ends_with('-') {
            return fail("name", format!("{name:?} must begin with a letter and not end with '-'"));
        }
        if let Some(p) = network.ipv4
            && let Some(why) = unusable(p.into())
        {
            return fail("ipv4", format!("{p} {why}: no node can have an address of it"));
        }
        if let Some(p) = network.ipv6
            && let Some(why) = unusable(p.into())
        {
            return fail("ipv6", format!("{p} {why}: no node can have an address of it"));
        }
        for (key, prefix) in prefixes_of(network) {
            if let Some((other, whose)) = prefixes.iter().find(|(p, _)| overlap(p, &prefix)) {
                return fail(key, format!("{prefix} overlaps with {other} of network {whose}"));
            }
            prefixes.push((prefix, name));
        }
        for (n, node) in network.nodes.iter().flatten().enumerate() {
            if network.nodes.iter().flatten().take(n).any(|other| other == node) {
                return fail("nodes", format!("{node} is listed twice"));
            }
        }
    }
    Ok(())
}

fn prefixes_of(network: &Network) -> impl Iterator<Item = (&'static str, IpNet)> {
    let v4 = network.ipv4.map(|p| ("ipv4", IpNet::V4(p.trunc())));
    v4.into_iter().chain(network.ipv6.map(|p| ("ipv6", IpNet::V6(p.trunc()))))
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

fn unusable(prefix: IpNet) -> Option<&'static str> {
    let v4 = UNUSABLE_V4.iter().filter_map(|(p, why)| Some((IpNet::V4(p.parse::<Ipv4Net>().ok()?), *why)));
    let v6 = UNUSABLE_V6.iter().filter_map(|(p, why)| Some((IpNet::V6(p.parse::<Ipv6Net>().ok()?), *why)));
    v4.chain(v6).find(|(p, _)| overlap(p, &prefix)).map(|(_, why)| why)
}

/// Fixed addresses are free host addresses of the first network; all nodes' addresses differ.
fn addresses(spec: &ClusterSpec) -> Result<(), Fault> {
    let Some(network) = spec.networks.first() else { return Ok(()) };
    let Nodes::List(nodes) = &spec.nodes else { return Ok(()) };
    let host: Vec<IpAddr> = network.addresses(1).iter().map(IpNet::addr).collect();
    for (i, node) in nodes.iter().enumerate() {
        for address in &node.addresses {
            let fail = |why: String| Err((format!("nodes[{i}].addresses"), format!("{address} {why}")));
            let prefixes: Vec<IpNet> = prefixes_of(network).map(|(_, p)| p).collect();
            let Some(prefix) = prefixes.iter().find(|p| p.contains(address)) else {
                let all: Vec<String> = prefixes.iter().map(IpNet::to_string).collect();
                return fail(format!("is not in {}, the first network's", all.join(" or ")));
            };
            let broadcast = address.is_ipv4() && *address == prefix.broadcast();
            if *address == prefix.network() || broadcast {
                return fail(format!("is the network's or the broadcast address of {prefix}"));
            }
            if host.contains(address) {
                return fail("is this host's on that network".to_owned());
            }
        }
        for family in [IpAddr::is_ipv4 as fn(&IpAddr) -> bool, IpAddr::is_ipv6] {
            let of_family: Vec<&IpAddr> = node.addresses.iter().filter(|a| family(a)).collect();
            if let [one, other, ..] = of_family.as_slice() {
                return Err((
                    format!("nodes[{i}].addresses"),
                    format!("{one} and {other}: a node has one address of each family"),
                ));
            }
        }
    }
    let mut seen: BTreeMap<IpAddr, String> = BTreeMap::new();
    for node in spec.resolve() {
        for address in node.nics.iter().flat_map(|nic| &nic.addresses).map(IpNet::addr) {
            if let Some(other) = seen.insert(address, node.name.to_string()) {
                return Err((
                    format!("nodes[{}].addresses", node.index),
                    format!("{address} is already that of {other}"),
                ));
            }
        }
    }
    Ok(())
}

fn publish(all: &[Publish]) -> Result<(), Fault> {
    for (i, one) in all.iter().enumerate() {
        let fail = |why: String| Err((format!("publish[{i}]"), format!("{one}: {why}")));
        let ip = one.listen.ip();
        if ip.is_multicast() || matches!(ip, IpAddr::V4(ip) if ip.is_broadcast()) {
            return fail(format!("{ip} is not an address of this host"));
        }
        let clash = all[..i].iter().find(|other| {
            let same_address = other.listen.ip() == ip
                || other.listen.ip().is_unspecified() && (other.listen.is_ipv6() || ip.is_ipv4())
                || ip.is_unspecified() && (ip.is_ipv6() || other.listen.is_ipv4());
            one.listen.port() != 0 && other.listen.port() == one.listen.port() && same_address
        });
        if let Some(other) = clash {
            return fail(format!("the port is already published by {other}"));
        }
    }
    Ok(())
}

/// Names that a node cannot have.
fn names(spec: &ClusterSpec) -> Result<(), Fault> {
    for (i, name) in spec.node_names().iter().enumerate() {
        let reserved = match name.as_str() {
            "localhost" => Some("is every host's own name"),
            // Members of an engine's cluster are shown as "none" where there is none.
            "none" if spec.engine_kind() != Some(EngineKind::None) => {
                Some("cannot be a member's name: engines say \"none\" where there is none")
            }
            _ => None,
        };
        if let Some(why) = reserved {
            return Err((format!("nodes[{i}].name"), format!("\"{name}\" {why}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::ClusterSpec;

    fn error(yaml: &str) -> String {
        match ClusterSpec::from_yaml("c.yaml", &format!("name: demo\nimage: x\n{yaml}")) {
            Err(e) => e.to_string(),
            Ok(_) => panic!("accepted: {yaml}"),
        }
    }

    /// File, line and key of each kind of what a cluster file cannot mean.
    #[test]
    fn what_a_cluster_file_cannot_mean_is_refused_with_its_line() {
        let lan = "networks:\n- name: lan\n  ipv4: 10.0.0.0/24\n  ipv6: fd00::/64\n";
        let node =
            |address: &str| format!("{lan}nodes:\n- name: a\n  addresses:\n  - {address}\n- name: b\n");
        for (yaml, line, says) in [
            ("nodes: 1\nmachine:\n  memory: 2048\n".to_owned(), 5, "has no unit"),
            ("nodes: 1\nmachine:\n  memory: 1MiB\n".to_owned(), 5, "machine.memory: 1MiB is too little"),
            ("nodes: 1\nengine: incus\nmachine:\n  memory: 200MiB\n".to_owned(), 6, "a node with an engine"),
            ("nodes: 1\nmachine:\n  cpus: 0\n".to_owned(), 5, "machine.cpus: 0 is not between"),
            ("nodes:\n- name: a\n- name: b\n  machine: {cpus: 0}\n".to_owned(), 6, "nodes[1].machine.cpus: 0"),
            ("nodes:\n- name: a\n- name: none\nengine: lxd\n".to_owned(), 5, "nodes[1].name: \"none\""),
            ("nodes:\n- name: localhost\n".to_owned(), 4, "every host's own name"),
            (node("10.0.1.5"), 9, "is not in 10.0.0.0/24 or fd00::/64"),
            (node("10.0.0.0"), 9, "the network's or the broadcast address"),
            (node("10.0.0.255"), 9, "the network's or the broadcast address"),
            (node("10.0.0.1"), 9, "is this host's"),
            (node("10.0.0.3"), 11, "is already that of a"),
            ("nodes: 1\nnetworks:\n- {name: lo, ipv4: 10.0.0.0/24}\n".to_owned(), 5, "the kernel uses itself"),
            ("nodes: 1\nnetworks:\n- {name: 1a, ipv4: 10.0.0.0/24}\n".to_owned(), 5, "begin with a letter"),
            ("nodes: 1\nnetworks:\n- {name: a, ipv4: 127.0.0.0/24}\n".to_owned(), 5, "is loopback"),
            ("nodes: 1\nnetworks:\n- {name: a, ipv4: 224.0.0.0/24}\n".to_owned(), 5, "is multicast"),
            ("nodes: 1\nnetworks:\n- {name: a, ipv4: 10.0.0.0/8}\n- {name: b, ipv4: 10.1.0.0/24}\n".to_owned(), 6, "overlaps with 10.0.0.0/8 of network a"),
            ("nodes: 1\nnetworks:\n- {name: a, ipv4: 10.0.0.0/24, ipv6: 'fe80::/64'}\n".to_owned(), 5, "is link-local"),
            ("nodes: 2\npublish:\n- 127.0.0.1:80:node1:80\n- 127.0.0.1:80:node2:80\n".to_owned(), 6, "already published by 127.0.0.1:80:node1:80"),
            ("nodes: 2\npublish:\n- 0.0.0.0:80:node1:80\n- 127.0.0.1:80:node2:80\n".to_owned(), 6, "already published"),
            ("nodes: 1\nsysctl:\n  nonsense: 1\n".to_owned(), 5, "\"nonsense\" is not a kernel parameter"),
            ("nodes: 1\nsysctl:\n  vm.max map: 1\n".to_owned(), 5, "is not a kernel parameter"),
            ("nodes: 1\nservices:\n- name: a b\n  command: [x]\n".to_owned(), 5, "is not a service's name"),
            ("nodes: 1\nservices:\n- name: a\n  command: [x]\n  after: [b]\n- name: b\n  command: [x]\n  after: [a]\n".to_owned(), 4, "wait for each other: a -> b"),
            ("nodes: 1\nservices:\n- name: a\n  command: [x]\n  after: [a]\n".to_owned(), 4, "wait for each other"),
            ("nodes: 1\nservices:\n- name: a\n  command: [x]\n  stop_signal: NONE\n".to_owned(), 7, "is not a signal"),
            ("nodes: 1\nengine:\n  kind: none\n  preseed: {config: {a: b}}\n".to_owned(), 6, "there is no engine"),
            ("nodes: 1\nengine:\n  kind: incus\n  preseed:\n    storage_pools:\n    - name: x\n".to_owned(), 8, "has no driver"),
            ("nodes: 1\nengine:\n  kind: incus\n  preseed:\n    config:\n      core.htps_address: x\n".to_owned(), 8, "did you mean \"core.https_address\""),
        ] {
            let said = error(&yaml);
            assert!(said.starts_with(&format!("c.yaml:{line}")) && said.contains(says), "{yaml}\n{said}");
        }
    }

    #[test]
    fn what_a_cluster_file_may_say_is_taken() {
        for yaml in [
            "nodes: 1\nmachine: {memory: 25%, cpus: 1}",
            "nodes: 1\nmachine: {memory: 64MiB}",
            "nodes: [{name: none}]\nengine: none",
            "nodes: 2\npublish: ['127.0.0.1:80:node1:80', '127.0.0.2:80:node2:80', '[::1]:80:node1:80', '127.0.0.1:0:node1:1', '127.0.0.1:0:node1:2']",
            "nodes: [{name: a, addresses: [10.0.0.9, 'fd00::9']}, {name: b}]\nnetworks: [{name: lan, ipv4: 10.0.0.0/24, ipv6: 'fd00::/64'}]",
            "nodes: 1\nsysctl: {net.ipv4.ip_forward: 1, net/ipv4/conf/eth0.5/forwarding: 1, kernel.core_pattern: '|/bin/x %p'}",
            "nodes: 1\nservices: [{name: a, command: [x], after: [incusd], stop_signal: SIGHUP}]",
            "nodes: 1\nengine: {kind: lxd, preseed: {config: {core.trust_password: x, user.htps: y}, storage_pools: [{name: default, config: {size: 5GiB}}]}}",
        ] {
            ClusterSpec::from_yaml("c.yaml", &format!("name: demo\nimage: x\n{yaml}"))
                .map_err(|e| format!("{yaml}: {e}"))
                .unwrap();
        }
    }
}
