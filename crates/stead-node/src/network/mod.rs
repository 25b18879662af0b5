//! The node's network: ordered steps from its spec and its links.
//!
//! [`plan`] chooses, [`apply`] uses netlink, [`dhcp`] keeps leases, [`files`] makes the files of /etc. Does not own
//! instances' networks, which are the engine's.

pub mod apply;
pub mod dhcp;
pub mod files;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use stead_model::{
    names::MacAddress,
    node::{Interface, NetworkSpec, Route},
};

/// A link of the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its present name.
    pub name: String,
    /// Its hardware address, when it has an Ethernet one.
    pub mac: Option<MacAddress>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Bring a link up.
    Up(String),
    /// Rename a link, which is taken down for it.
    Rename {
        /// The link's index.
        index: u32,
        /// Its new name.
        name: String,
    },
    /// Make a bridge.
    Bridge {
        /// Its name.
        name: String,
        /// Its hardware address; the kernel's choice would change with its ports.
        mac: Option<MacAddress>,
    },
    /// Add a link to a bridge.
    Port {
        /// The link.
        name: String,
        /// The bridge.
        bridge: String,
    },
    /// Set the MTU.
    Mtu {
        /// The link.
        name: String,
        /// In bytes.
        mtu: u16,
    },
    /// Set a kernel parameter of the link.
    Sysctl {
        /// File below /proc/sys.
        key: String,
        /// Value.
        value: String,
    },
    /// Add an address.
    Address {
        /// The link.
        name: String,
        /// With its prefix.
        address: IpNet,
    },
    /// Add a route.
    Route {
        /// The link.
        name: String,
        /// The route.
        route: Route,
    },
}

/// The steps, and the spec's interfaces that are missing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NetworkPlan {
    /// In order.
    pub steps: Vec<Step>,
    /// Names of interfaces that were not found.
    pub missing: Vec<String>,
}

/// Plans the network. Links are identified by hardware address, then by name; two that swap names use a third one.
pub fn plan(spec: &NetworkSpec, links: &[Link]) -> NetworkPlan {
    let mut plan = NetworkPlan::default();
    let mut now: Vec<Link> = links.to_vec();
    plan.steps.push(Step::Up("lo".into()));
    for interface in spec.interfaces.iter().filter(|i| i.bridge_ports.is_none()) {
        plan_name(interface, &mut now, &mut plan);
    }
    let missing = plan.missing.clone();
    let there = |name: &str| !missing.iter().any(|m| m == name);
    for interface in &spec.interfaces {
        let Some(ports) = &interface.bridge_ports else { continue };
        let first = ports.iter().find_map(|p| now.iter().find(|l| &l.name == p));
        let mac = interface.mac.or_else(|| first.and_then(|l| l.mac));
        if !now.iter().any(|l| l.name == interface.name) {
            plan.steps.push(Step::Bridge { name: interface.name.clone(), mac });
        }
    }
    for interface in spec.interfaces.iter().filter(|i| there(&i.name)) {
        if let Some(mtu) = interface.mtu {
            plan.steps.push(Step::Mtu { name: interface.name.clone(), mtu });
        }
    }
    for interface in &spec.interfaces {
        for port in interface.bridge_ports.iter().flatten().filter(|p| there(p)) {
            plan.steps.push(Step::Port { name: port.clone(), bridge: interface.name.clone() });
        }
    }
    for interface in spec.interfaces.iter().filter(|i| there(&i.name)) {
        plan_addresses(interface, &mut plan);
    }
    // Routes last: their gateways may be on any interface.
    for interface in spec.interfaces.iter().filter(|i| there(&i.name)) {
        for route in &interface.routes {
            plan.steps.push(Step::Route { name: interface.name.clone(), route: route.clone() });
        }
    }
    plan
}

fn plan_name(interface: &Interface, now: &mut [Link], plan: &mut NetworkPlan) {
    let found = match interface.mac {
        Some(mac) => now.iter().position(|l| l.mac == Some(mac)),
        None => now.iter().position(|l| l.name == interface.name),
    };
    let Some(found) = found else {
        plan.missing.push(interface.name.clone());
        return;
    };
    if now[found].name == interface.name {
        return;
    }
    if let Some(other) = now.iter_mut().find(|l| l.name == interface.name) {
        other.name = format!("stead{}", other.index);
        plan.steps.push(Step::Rename { index: other.index, name: other.name.clone() });
    }
    now[found].name.clone_from(&interface.name);
    plan.steps.push(Step::Rename { index: now[found].index, name: interface.name.clone() });
}

fn plan_addresses(interface: &Interface, plan: &mut NetworkPlan) {
    let name = &interface.name;
    let mut sysctl = |file: &str, value: &str| {
        plan.steps
            .push(Step::Sysctl { key: format!("net/ipv6/conf/{name}/{file}"), value: value.to_owned() });
    };
    // 2: also if the node forwards, which engines enable.
    sysctl("accept_ra", if interface.accept_ra { "2" } else { "0" });
    if !interface.accept_ra {
        sysctl("autoconf", "0");
    }
    if interface.dhcp {
        // A DHCP reply comes from an address without a route yet.
        plan.steps.push(Step::Sysctl { key: format!("net/ipv4/conf/{name}/rp_filter"), value: "0".into() });
    }
    plan.steps.push(Step::Up(name.clone()));
    for address in &interface.addresses {
        plan.steps.push(Step::Address { name: name.clone(), address: *address });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn link(index: u32, name: &str) -> Link {
        Link { index, name: name.into(), mac: Some(MacAddress([2, 0, 0, 0, 0, index as u8])) }
    }

    fn spec(json: &str) -> NetworkSpec {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_bridge_over_the_node_s_interface() {
        let plan = plan(
            &spec(
                r#"{"interfaces":[{"name":"eth0","mac":"02:00:00:00:00:02","mtu":1400},
                {"name":"br0","bridge_ports":["eth0"],"mtu":1400,"addresses":["10.0.0.2/24","fd00::2/64"],
                 "routes":[{"to":"0.0.0.0/0","via":"10.0.0.1"}]}]}"#,
            ),
            &[link(1, "lo"), link(2, "enp1s0")],
        );
        insta::assert_snapshot!(plan.steps.iter().map(|s| serde_json::to_string(s).unwrap()).collect::<Vec<_>>().join("\n"), @r#"
        {"up":"lo"}
        {"rename":{"index":2,"name":"eth0"}}
        {"bridge":{"name":"br0","mac":"02:00:00:00:00:02"}}
        {"mtu":{"name":"eth0","mtu":1400}}
        {"mtu":{"name":"br0","mtu":1400}}
        {"port":{"name":"eth0","bridge":"br0"}}
        {"sysctl":{"key":"net/ipv6/conf/eth0/accept_ra","value":"0"}}
        {"sysctl":{"key":"net/ipv6/conf/eth0/autoconf","value":"0"}}
        {"up":"eth0"}
        {"sysctl":{"key":"net/ipv6/conf/br0/accept_ra","value":"0"}}
        {"sysctl":{"key":"net/ipv6/conf/br0/autoconf","value":"0"}}
        {"up":"br0"}
        {"address":{"name":"br0","address":"10.0.0.2/24"}}
        {"address":{"name":"br0","address":"fd00::2/64"}}
        {"route":{"name":"br0","route":{"to":"0.0.0.0/0","via":"10.0.0.1"}}}
        "#);
        assert!(plan.missing.is_empty());
    }

    #[test]
    fn a_missing_interface_is_reported_and_left_out() {
        let plan = plan(
            &spec(
                r#"{"interfaces":[{"name":"eth7","addresses":["10.0.0.2/24"]},{"name":"br0","bridge_ports":["eth7"]}]}"#,
            ),
            &[link(1, "lo")],
        );
        assert_eq!(plan.missing, ["eth7"]);
        assert!(!plan.steps.iter().any(|s| matches!(s, Step::Port { .. } | Step::Address { .. })));
        assert!(plan.steps.iter().any(|s| matches!(s, Step::Bridge { .. })));
    }

    proptest! {
        /// Whatever names links have and get, no name is ever used twice, and each link ends with its own.
        #[test]
        fn names_never_collide(order in Just(vec![0usize, 1, 2, 3]).prop_shuffle(), named in 0usize..5) {
            let links: Vec<Link> = (0..4).map(|n| link(n as u32 + 2, &format!("eth{}", order[n]))).collect();
            let mut spec = NetworkSpec::default();
            for (n, link) in links.iter().take(named).enumerate() {
                let json = format!(r#"{{"name":"eth{n}","mac":"{}"}}"#, link.mac.unwrap());
                spec.interfaces.push(serde_json::from_str(&json).unwrap());
            }
            let plan = plan(&spec, &links);
            let mut now = links.clone();
            for step in &plan.steps {
                if let Step::Rename { index, name } = step {
                    prop_assert!(!now.iter().any(|l| &l.name == name), "{} is taken", name);
                    now.iter_mut().find(|l| l.index == *index).unwrap().name.clone_from(name);
                }
            }
            for (n, link) in links.iter().take(named).enumerate() {
                let end = now.iter().find(|l| l.index == link.index).unwrap();
                prop_assert_eq!(&end.name, &format!("eth{n}"));
            }
        }
    }
}
