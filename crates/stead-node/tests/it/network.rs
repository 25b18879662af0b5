//! A node's network in a namespace with real links: names, bridge, addresses, routes, and a lease from dnsmasq.

use crate::common::{Layers, Node, command, run, skip};
use std::{
    fs,
    process::Child,
    time::{Duration, Instant},
};

/// Two network namespaces with a cable between them; gone at the end.
struct Cable {
    node: String,
    host: String,
}

impl Cable {
    /// `mac`: of the node's end, whose name is `wire`.
    fn new(tag: &str, mac: &str) -> Self {
        let name = |end: &str| format!("stnode-{tag}-{end}-{}", std::process::id());
        let cable = Self { node: name("n"), host: name("h") };
        run("ip", &["netns", "add", &cable.node]);
        run("ip", &["netns", "add", &cable.host]);
        run(
            "ip",
            &[
                "-n",
                &cable.node,
                "link",
                "add",
                "wire",
                "address",
                mac,
                "type",
                "veth",
                "peer",
                "name",
                "port",
                "netns",
                &cable.host,
            ],
        );
        run("ip", &["-n", &cable.host, "addr", "add", "10.99.0.1/24", "dev", "port"]);
        run("ip", &["-n", &cable.host, "link", "set", "port", "up"]);
        cable
    }
    fn show(&self, what: &[&str]) -> String {
        run("ip", &[&["-n", self.node.as_str()], what].concat())
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for name in [&self.node, &self.host] {
            let _ = command("ip", &["netns", "del", name]).status();
        }
    }
}

struct Server(Child);
impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_bridge_with_addresses_and_routes() {
    if skip("a_bridge_with_addresses_and_routes", &["ip"]) {
        return;
    }
    let cable = Cable::new("br", "02:00:00:00:99:02");
    let layers = Layers::new();
    let spec = r#""network":{"interfaces":[
        {"name":"eth0","mac":"02:00:00:00:99:02","mtu":1400},
        {"name":"br0","bridge_ports":["eth0"],"mtu":1400,"addresses":["10.99.0.2/24","fd99::2/64"],
         "routes":[{"to":"0.0.0.0/0","via":"10.99.0.1"},{"to":"fd98::/64","via":"fd99::1"}]},
        {"name":"eth9"}],
        "nameservers":["10.99.0.1"],"search":["c"],"hosts":{"n2":["10.99.0.3"]}}"#;
    let mut node = Node::boot_in(&layers, spec, &[], Some(&cable.node));
    node.wait_for("] running");
    let console = node.console();
    let links = cable.show(&["-o", "link"]);
    assert!(links.contains("eth0") && !links.contains("wire"), "{links}");
    assert!(links.contains("master br0") && links.contains("mtu 1400"), "{links}");
    assert_eq!(
        links.matches("link/ether 02:00:00:00:99:02").count(),
        2,
        "the bridge has its port's address: {links}"
    );
    let addresses = cable.show(&["-o", "addr", "show", "br0"]);
    assert!(addresses.contains("10.99.0.2/24") && addresses.contains("fd99::2/64"), "{addresses}");
    assert!(!addresses.lines().any(|l| l.contains("fd99::2") && l.contains("tentative")), "{addresses}");
    assert!(cable.show(&["route"]).contains("default via 10.99.0.1 dev br0"));
    assert!(cable.show(&["-6", "route"]).contains("fd98::/64 via fd99::1 dev br0"));
    assert!(console.contains("interface eth9 does not exist"), "{console}");
    assert_eq!(node.read("/etc/resolv.conf"), "nameserver 10.99.0.1\nsearch c\n");
    let hosts = node.read("/etc/hosts");
    assert!(hosts.contains("10.99.0.2 n1.c n1\n") && hosts.contains("10.99.0.3 n2.c n2\n"), "{hosts}");
    run("ip", &["netns", "exec", &cable.host, "ping", "-c1", "-W5", "10.99.0.2"]);
    node.shut_down();
}

#[test]
fn a_lease_is_obtained_kept_and_used() {
    if skip("a_lease_is_obtained_kept_and_used", &["ip", "dnsmasq"]) {
        return;
    }
    let cable = Cable::new("dh", "02:00:00:00:99:04");
    let dir = tempfile::tempdir().unwrap();
    let leases = dir.path().join("leases");
    let server = Server(
        command(
            "ip",
            &[
                "netns",
                "exec",
                &cable.host,
                "dnsmasq",
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--port=0",
                "--user=root",
                "--interface=port",
                "--dhcp-range=10.99.0.50,10.99.0.60,255.255.255.0,120",
                "--dhcp-option=option:dns-server,10.99.0.9",
                "--dhcp-option=option:T1,5",
                "--domain=lan",
                "--dhcp-authoritative",
                "--no-ping",
                &format!("--dhcp-leasefile={}", leases.display()),
                "--pid-file=",
            ],
        )
        .spawn()
        .unwrap(),
    );
    let layers = Layers::new();
    let spec = r#""network":{"interfaces":[{"name":"eth0","mac":"02:00:00:00:99:04","dhcp":true}]}"#;
    let mut node = Node::boot_in(&layers, spec, &[], Some(&cable.node));
    node.wait_for("] running");
    node.wait_for("] lease 10.99.0.");
    let addresses = cable.show(&["-o", "addr", "show", "eth0"]);
    assert!(addresses.contains("10.99.0.5") || addresses.contains("10.99.0.60"), "{addresses}");
    let routes = cable.show(&["route"]);
    assert!(routes.contains("default via 10.99.0.1 dev eth0"), "{routes}");
    assert_eq!(node.read("/etc/resolv.conf"), "nameserver 10.99.0.9\nsearch lan\n");
    let lease = || fs::read_to_string(&leases).unwrap_or_default();
    assert!(lease().contains("02:00:00:00:99:04") && lease().contains(" n1 "), "{}", lease());
    // Renewed after the server's time (our least is 15 s): its end, the first word, advances.
    let (first, until) = (lease(), Instant::now() + Duration::from_secs(90));
    while lease() == first {
        assert!(Instant::now() < until, "not renewed: {first}");
        std::thread::sleep(Duration::from_millis(200));
    }
    node.shut_down();
    drop(server);
}
