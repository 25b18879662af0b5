//! The configuration dnsmasq runs with, as text made from the network's spec, and its arguments.
//!
//! Owns the ranges of leases and the names. Does not own the process. Paths are arguments: in the text, `#`, quotes and line
//! ends of a directory's name would have a meaning.

use super::{BridgeSpec, HostNetworkSpec};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::{
    ffi::OsString,
    fmt::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

/// How long an address is leased: instances come and go, and the range is small.
const LEASE: &str = "1h";
/// Host parts left free after the last node, for nodes to come.
const NODE_MARGIN: u32 = 50;
/// Where leases begin in a prefix that has room for it, so that a few more nodes do not move the range.
const USUAL_START: u32 = 100;
/// The most leases in one prefix.
const MAX_LEASES: u32 = 4096;

/// The configuration; `None` without bridges. Every bridge gets DNS, so that nodes know each other by name; those that want
/// it also get DHCP. `upstream` are asked for other names.
pub(crate) fn config(spec: &HostNetworkSpec, upstream: &[IpAddr]) -> Option<String> {
    let bridges = &spec.bridges;
    if bridges.is_empty() {
        return None;
    }
    let mut c = String::new();
    let mut say = |line: String| {
        let _ = writeln!(c, "{line}");
    };
    let domain = &spec.cluster;
    for line in [
        // Nothing of the host's own configuration.
        "no-hosts",
        "no-resolv",
        "no-poll",
        "pid-file=",
        "log-facility=-",
        // Changing user or group would clear the tie by which it dies with its supervisor (PR_SET_PDEATHSIG in prctl(2)).
        "user=root",
        "group=root",
        "bind-dynamic",
        "except-interface=lo",
        // Nobody else uses the range: a lease needs no probe.
        "no-ping",
        "dhcp-authoritative",
        "dhcp-rapid-commit",
        "quiet-ra",
        "domain-needed",
        "bogus-priv",
        "cache-size=1000",
    ] {
        say(line.to_owned());
    }
    say(format!("domain={domain}"));
    say(format!("local=/{domain}/"));
    for server in upstream {
        say(format!("server={server}"));
    }
    // A machine on several networks has one default route: by the first network with NAT, else by the first.
    let way_out = bridges.iter().position(|b| b.dhcp && b.nat).or(bridges.iter().position(|b| b.dhcp));
    for (i, bridge) in bridges.iter().enumerate() {
        let name = &bridge.name;
        say(format!("interface={name}"));
        if !bridge.dhcp {
            say(format!("no-dhcp-interface={name}"));
        }
        for address in bridge.addresses.iter().filter(|_| bridge.dhcp) {
            match address {
                IpNet::V4(net) => {
                    if let Some((start, end)) = range_v4(*net, bridge) {
                        say(format!("dhcp-range=set:{name},{start},{end},{},{LEASE}", net.netmask()));
                    }
                }
                IpNet::V6(net) => {
                    let (start, end) = range_v6(*net);
                    // Stateful DHCPv6 for those that ask; the others make themselves an address, and dnsmasq finds
                    // it and gives it the name of their DHCPv4 lease.
                    say("enable-ra".to_owned());
                    say(format!("dhcp-range=set:{name},{start},{end},slaac,ra-names,64,{LEASE}"));
                    let lifetime = if Some(i) == way_out { ",10,1800" } else { ",10,0" };
                    say(format!("ra-param={name},mtu:{}{lifetime}", bridge.mtu));
                }
            }
        }
        if bridge.dhcp && Some(i) != way_out {
            say(format!("dhcp-option=tag:{name},option:router"));
        }
        if bridge.dhcp && bridge.mtu != 1500 {
            say(format!("dhcp-option=tag:{name},option:mtu,{}", bridge.mtu));
        }
        for host in &bridge.hosts {
            let v4 = host.addresses.iter().find(|a| a.is_ipv4());
            let v6 = host.addresses.iter().find(|a| a.is_ipv6());
            let addresses: String = [v4, v6].iter().flatten().map(|a| format!(",{a}")).collect();
            // The plain name is the node's address on its first network; its others have the network's name in them.
            let known = bridges[..i].iter().any(|b| b.hosts.iter().any(|h| h.name == host.name));
            let names = if known {
                format!("{}.{name}.{domain}", host.name)
            } else {
                format!("{0}.{domain},{0}", host.name)
            };
            if !addresses.is_empty() {
                say(format!("host-record={names}{addresses}"));
                let v4 = v4.map(|a| format!(",{a}")).unwrap_or_default();
                let v6 = v6.map(|a| format!(",[{a}]")).unwrap_or_default();
                if bridge.dhcp {
                    say(format!("dhcp-host={}{v4}{v6},{}", host.mac, host.name));
                }
            }
        }
    }
    Some(c)
}

/// Its arguments, with the configuration in this file. Leases are kept over restarts.
pub(crate) fn arguments(spec: &HostNetworkSpec, config: &Path) -> [OsString; 3] {
    let option = |name: &str, path: &Path| {
        let mut option = OsString::from(name);
        option.push(path);
        option
    };
    [
        "--keep-in-foreground".into(),
        option("--conf-file=", config),
        option("--dhcp-leasefile=", &spec.dir.join("leases")),
    ]
}

/// The range of leases in an IPv4 prefix; `None` if no address is free. It is in the stretch between fixed addresses that
/// gives most leases, and leaves the beginning of the stretch, at most half of it, to nodes that are added later.
fn range_v4(net: Ipv4Net, bridge: &BridgeSpec) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let network = u32::from(net.network());
    let fixed = bridge.hosts.iter().flat_map(|h| &h.addresses);
    let mut taken: Vec<u32> = fixed
        .filter_map(|address| match address {
            IpAddr::V4(a) if net.contains(a) => Some(u32::from(*a)),
            _ => None,
        })
        .chain([network, net.addr().into(), net.broadcast().into()])
        .collect();
    taken.sort_unstable();
    let ranges = taken.windows(2).filter_map(|fixed| {
        let before = fixed[0];
        let free = fixed[1].checked_sub(before.saturating_add(1)).filter(|free| *free > 0)?;
        let wanted = network.saturating_add(USUAL_START).max(before.saturating_add(NODE_MARGIN));
        let start = wanted.min(before + 1 + free / 2);
        Some((start, (before + free).min(start.saturating_add(MAX_LEASES - 1))))
    });
    // Of equally long ranges the first.
    let (start, end) = ranges.max_by_key(|(start, end)| (end - start, u32::MAX - start))?;
    Some((start.into(), end.into()))
}

/// The range of leases in an IPv6 prefix: `::1:0` to `::1:ffff`. Nodes are below, numbered from 2.
fn range_v6(net: Ipv6Net) -> (Ipv6Addr, Ipv6Addr) {
    let network = u128::from(net.network());
    ((network | 0x1_0000).into(), (network | 0x1_ffff).into())
}

/// The name servers in a resolv.conf that can be reached from another network namespace.
pub(crate) fn nameservers(resolv_conf: &str) -> Vec<IpAddr> {
    resolv_conf
        .lines()
        .filter_map(|l| l.trim().strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok())
        .filter(|a| !a.is_loopback() && !a.is_unspecified())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::HostEntry;
    use proptest::prelude::*;

    fn bridge(net: &str, nodes: u32) -> BridgeSpec {
        let net: IpNet = net.parse().unwrap();
        let IpAddr::V4(first) = net.network() else { panic!("v4 only") };
        BridgeSpec {
            name: "lan".into(),
            addresses: vec![
                format!("{}/{}", Ipv4Addr::from(u32::from(first) + 1), net.prefix_len()).parse().unwrap(),
            ],
            mtu: 1500,
            dhcp: true,
            nat: false,
            hosts: (0..nodes)
                .map(|i| HostEntry {
                    name: format!("node{}", i + 1).parse().unwrap(),
                    mac: "02:00:00:00:00:01".parse().unwrap(),
                    addresses: vec![Ipv4Addr::from(u32::from(first) + 2 + i).into()],
                })
                .collect(),
        }
    }

    #[test]
    fn ranges_leave_room_for_nodes() {
        let range = |net: &str, nodes| {
            let b = bridge(net, nodes);
            let IpNet::V4(n) = b.addresses[0] else { panic!() };
            range_v4(n, &b).map(|(a, b)| format!("{a}-{b}"))
        };
        assert_eq!(range("10.88.0.0/24", 3).unwrap(), "10.88.0.100-10.88.0.254");
        assert_eq!(range("10.88.0.0/24", 100).unwrap(), "10.88.0.151-10.88.0.254");
        assert_eq!(range("10.88.0.0/24", 200).unwrap(), "10.88.0.228-10.88.0.254");
        assert_eq!(range("10.88.0.0/24", 250).unwrap(), "10.88.0.253-10.88.0.254");
        assert_eq!(range("10.0.0.0/28", 3).unwrap(), "10.0.0.10-10.0.0.14");
        assert_eq!(range("10.0.0.0/8", 3).unwrap(), "10.0.0.100-10.0.16.99");
        assert_eq!(range("10.0.0.0/30", 1), None);
    }

    #[test]
    fn a_high_fixed_address_leaves_the_range_below_it() {
        for high in [200, 250, 254] {
            let mut b = bridge("10.88.0.0/24", 3);
            b.hosts[2].addresses = vec![Ipv4Addr::new(10, 88, 0, high).into()];
            let IpNet::V4(net) = b.addresses[0] else { panic!() };
            let range = range_v4(net, &b).map(|(a, b)| (a.octets()[3], b.octets()[3]));
            assert_eq!(range, Some((100, high - 1)));
        }
    }

    proptest! {
        /// Whatever addresses are fixed, the range has none of them and at least half of the largest free stretch.
        #[test]
        fn fixed_addresses_leave_half_of_the_largest_stretch(
            prefix in 16u8..=32,
            fixed in proptest::collection::vec(any::<u32>(), 0..40),
        ) {
            let net = Ipv4Net::new(Ipv4Addr::new(10, 88, 0, 1), prefix).unwrap();
            let mut b = bridge("10.88.0.0/24", 1);
            b.addresses = vec![net.into()];
            let address = |n: u32| u32::from(net.network()) + n % 2u32.pow(32 - u32::from(prefix));
            b.hosts[0].addresses = fixed.iter().map(|n| Ipv4Addr::from(address(*n)).into()).collect();
            let is_fixed = |n: u32| {
                n == u32::from(net.addr()) || b.hosts[0].addresses.contains(&Ipv4Addr::from(n).into())
            };
            let hosts = u32::from(net.network()) + 1..u32::from(net.broadcast());
            let (mut longest, mut free) = (0u32, 0u32);
            for n in hosts.clone() {
                free = if is_fixed(n) { 0 } else { free + 1 };
                longest = longest.max(free);
            }
            match range_v4(net, &b) {
                None => prop_assert_eq!(longest, 0),
                Some((start, end)) => {
                    let (start, end) = (u32::from(start), u32::from(end));
                    prop_assert!(start <= end && hosts.contains(&start) && hosts.contains(&end));
                    prop_assert!(!(start..=end).any(is_fixed));
                    prop_assert!(end - start + 1 >= longest.div_ceil(2).min(MAX_LEASES));
                }
            }
        }
    }

    #[test]
    fn config_of_two_networks() {
        let mut lan = bridge("10.88.0.0/24", 1);
        lan.addresses.push("fd88::1/64".parse().unwrap());
        lan.hosts[0].addresses.push("fd88::2".parse().unwrap());
        let mut storage = bridge("10.99.0.0/24", 1);
        storage.name = "storage".into();
        storage.mtu = 9000;
        let spec = HostNetworkSpec {
            cluster: "demo".parse().unwrap(),
            dir: "/var/lib/x".into(),
            bridges: vec![lan, storage],
            publish: vec![],
        };
        let all = config(&spec, &["192.0.2.53".parse().unwrap()]).unwrap();
        let changing = all.split_once("cache-size=1000\n").unwrap().1;
        insta::assert_snapshot!(changing, @r"
        domain=demo
        local=/demo/
        server=192.0.2.53
        interface=lan
        dhcp-range=set:lan,10.88.0.100,10.88.0.254,255.255.255.0,1h
        enable-ra
        dhcp-range=set:lan,fd88::1:0,fd88::1:ffff,slaac,ra-names,64,1h
        ra-param=lan,mtu:1500,10,1800
        host-record=node1.demo,node1,10.88.0.2,fd88::2
        dhcp-host=02:00:00:00:00:01,10.88.0.2,[fd88::2],node1
        interface=storage
        dhcp-range=set:storage,10.99.0.100,10.99.0.254,255.255.255.0,1h
        dhcp-option=tag:storage,option:router
        dhcp-option=tag:storage,option:mtu,9000
        host-record=node1.storage.demo,10.99.0.2
        dhcp-host=02:00:00:00:00:01,10.99.0.2,node1
        ");
        let mut quiet = spec;
        quiet.bridges[1].dhcp = false;
        let all = config(&quiet, &[]).unwrap();
        let (_, storage) = all.split_once("interface=storage\n").unwrap();
        assert_eq!(storage, "no-dhcp-interface=storage\nhost-record=node1.storage.demo,10.99.0.2\n");
        quiet.bridges.clear();
        assert_eq!(config(&quiet, &[]), None);
    }

    #[test]
    fn no_path_is_part_of_the_text() {
        let odd = "/var/lib/a#b \"c\", d\ndhcp-script=/bin/evil";
        let dir = Path::new(odd).to_owned();
        let spec = HostNetworkSpec {
            cluster: "demo".parse().unwrap(),
            dir: dir.clone(),
            bridges: vec![bridge("10.88.0.0/24", 1)],
            publish: vec![],
        };
        let text = config(&spec, &[]).unwrap();
        assert!(!text.contains("evil") && !text.contains("/var/lib"), "{text}");
        let [_, file, leases] = arguments(&spec, &dir.join("dnsmasq.conf"));
        assert_eq!(file.to_str().unwrap(), format!("--conf-file={odd}/dnsmasq.conf"));
        assert_eq!(leases.to_str().unwrap(), format!("--dhcp-leasefile={odd}/leases"));
    }

    #[test]
    fn loopback_resolvers_are_of_no_use_elsewhere() {
        assert_eq!(nameservers("# x\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nsearch a\n").len(), 1);
    }
}
