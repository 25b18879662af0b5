//! Clusters' networks: side by side, names, leases, published ports, the way out, and what stays behind.

use crate::{
    Outcome, Test,
    world::{Scratch, assert_no_traces, eventually, exe, in_netns, ip, sh, unique},
};
use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};
use stead_machine::{
    netns,
    network::{self, BridgeSpec, HostEntry, HostNetworkSpec, PublishTarget},
};

pub const TESTS: &[Test] = &[
    ("network::same_addresses_side_by_side", same_addresses_side_by_side),
    ("network::names_and_leases", names_and_leases),
    ("network::names_without_dhcp", names_without_dhcp),
    ("network::published_ports", published_ports),
    ("network::killed_and_changed", killed_and_changed),
    ("network::way_out", way_out),
];

pub fn spec(cluster: &str, dir: &Path) -> HostNetworkSpec {
    HostNetworkSpec {
        cluster: cluster.parse().unwrap(),
        dir: dir.to_owned(),
        bridges: vec![BridgeSpec {
            name: "lan".into(),
            addresses: vec!["10.88.0.1/24".parse().unwrap(), "fd88::1/64".parse().unwrap()],
            mtu: 1500,
            dhcp: true,
            nat: false,
            hosts: (1..=3)
                .map(|i| HostEntry {
                    name: format!("node{i}").parse().unwrap(),
                    mac: format!("02:00:00:00:00:0{i}").parse().unwrap(),
                    addresses: vec![
                        format!("10.88.0.{}", i + 1).parse().unwrap(),
                        format!("fd88::{}", i + 1).parse().unwrap(),
                    ],
                })
                .collect(),
        }],
        publish: vec![],
    }
}

/// A network that is always taken down and leaves nothing behind.
pub struct Up(pub HostNetworkSpec, #[allow(dead_code)] Scratch);
impl Up {
    pub fn new(name: &str, change: impl FnOnce(&mut HostNetworkSpec)) -> Self {
        let name = unique(name);
        let scratch = Scratch::new(&name);
        let mut spec = spec(&name, &scratch);
        change(&mut spec);
        let up = Self(spec, scratch);
        network::up(&exe(), &up.0).expect("network up");
        up
    }
    pub fn netns(&self) -> String {
        self.0.netns()
    }
    pub fn down(self) {
        network::down(&self.0).expect("network down");
        network::down(&self.0).expect("network down again");
        let name = self.0.cluster.to_string();
        drop(self);
        assert_no_traces(&name);
    }
}
impl Drop for Up {
    fn drop(&mut self) {
        // A test that failed leaves its machines running.
        for machine in std::fs::read_dir(&self.0.dir).into_iter().flatten().flatten() {
            let _ = stead_machine::supervise::kill(&machine.path());
        }
        let _ = stead_machine::layers::unmount_all(&self.0.dir.join("layers"));
        let _ = network::down(&self.0);
    }
}

/// A namespace on the cluster's bridge, like a machine's.
struct Client(String);
impl Client {
    fn new(up: &Up, n: usize) -> Self {
        let name = format!("{}-c{n}", up.netns());
        ip(&["netns", "add", &name]);
        let client = Self(name);
        let (outer, netns) = (format!("c{n}"), up.netns());
        sh(
            &netns,
            &["ip", "link", "add", &outer, "type", "veth", "peer", "name", "eth0", "netns", &client.0],
        );
        sh(&netns, &["ip", "link", "set", &outer, "master", "lan", "up"]);
        sh(&client.0, &["ip", "link", "set", "eth0", "up"]);
        client
    }
    fn with_address(self, address: &str) -> Self {
        sh(&self.0, &["ip", "addr", "add", address, "dev", "eth0", "nodad"]);
        self
    }
}
impl Drop for Client {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

/// Asks the cluster's name server, from inside `netns`.
fn resolve(netns: &str, name: &str, v6: bool) -> Vec<std::net::IpAddr> {
    let server: std::net::IpAddr = "10.88.0.1".parse().unwrap();
    let netns = netns.to_owned();
    let mut q = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        q.push(label.len() as u8);
        q.extend(label.bytes());
    }
    q.extend([0, 0, if v6 { 28 } else { 1 }, 0, 1]);
    std::thread::spawn(move || {
        netns::enter_thread(&netns).unwrap();
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket.send_to(&q, (server, 53)).unwrap();
        let mut answer = [0; 1500];
        let n = socket.recv(&mut answer).expect("an answer");
        let records = usize::from(answer[7]);
        let mut at = q.len();
        let mut found = Vec::new();
        for _ in 0..records {
            // dnsmasq compresses names to two bytes.
            let len = usize::from(answer[at + 11]);
            let data = &answer[at + 12..at + 12 + len];
            match len {
                4 => found.push(<[u8; 4]>::try_from(data).unwrap().into()),
                16 => found.push(<[u8; 16]>::try_from(data).unwrap().into()),
                _ => {}
            }
            at += 12 + len;
        }
        assert!(at <= n);
        found
    })
    .join()
    .unwrap()
}

fn same_addresses_side_by_side() -> Outcome {
    let (a, b) = (Up::new("tst-a", |_| {}), Up::new("tst-b", |_| {}));
    for up in [&a, &b] {
        let client = Client::new(up, 1).with_address("10.88.0.2/24").with_address("fd88::2/64");
        sh(&client.0, &["ping", "-c1", "-W2", "10.88.0.1"]);
        sh(&client.0, &["ping", "-c1", "-W2", "fd88::1"]);
        // The other cluster's addresses belong to other machines.
        assert!(!in_netns(&client.0, &["ping", "-c1", "-W1", "10.88.0.3"]).status.success());
    }
    assert_eq!(
        network::up(&exe(), &a.0).unwrap(),
        network::observe(&a.0).unwrap(),
        "a second up changed something"
    );
    a.down();
    assert!(network::observe(&b.0).is_some_and(|s| s.ready), "one's down took the other");
    b.down();
    Outcome::Passed
}

/// Nodes know each other by name on a network without DHCP too, where nobody gets a lease.
fn names_without_dhcp() -> Outcome {
    let up = Up::new("tst-nd", |spec| spec.bridges[0].dhcp = false);
    assert_eq!(resolve(&up.netns(), "node2", false), ["10.88.0.3".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(resolve(&up.netns(), "node2", true), ["fd88::3".parse::<std::net::IpAddr>().unwrap()]);
    let client = Client::new(&up, 1);
    let lease = ["busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-t", "2", "-T", "1", "-s", "/bin/true"];
    assert!(!in_netns(&client.0, &lease).status.success(), "a lease without DHCP");
    drop(client);
    up.down();
    Outcome::Passed
}

fn names_and_leases() -> Outcome {
    let up = Up::new("tst-n", |_| {});
    let domain = up.0.cluster.to_string();
    for name in ["node2".to_owned(), format!("node2.{domain}")] {
        assert_eq!(resolve(&up.netns(), &name, false), ["10.88.0.3".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(resolve(&up.netns(), &name, true), ["fd88::3".parse::<std::net::IpAddr>().unwrap()]);
    }
    assert!(resolve(&up.netns(), "nobody", false).is_empty());
    let client = Client::new(&up, 1);
    let lease = sh(
        &client.0,
        &[
            "busybox",
            "udhcpc",
            "-i",
            "eth0",
            "-n",
            "-q",
            "-t",
            "5",
            "-T",
            "1",
            "-x",
            "hostname:web1",
            "-s",
            "/bin/true",
        ],
    );
    let _ = lease;
    let web1 = resolve(&up.netns(), "web1", false);
    assert!(web1.len() == 1 && web1[0].to_string().starts_with("10.88.0."), "{web1:?}");
    assert!(web1[0] >= "10.88.0.100".parse::<std::net::IpAddr>().unwrap(), "{web1:?} may become a node's");
    // It makes itself an IPv6 address out of the router's advertisement, which then has its name too.
    eventually("an address by autoconfiguration", || {
        sh(&client.0, &["ip", "-6", "addr", "show", "dev", "eth0"]).contains("fd88::")
    });
    eventually("the name of an autoconfigured address", || {
        !resolve(&up.netns(), &format!("web1.{domain}"), true).is_empty()
    });
    drop(client);
    up.down();
    Outcome::Passed
}

/// A server inside the cluster that answers with what it got once the client is done sending.
fn echo_after_end(netns: &str, addr: &str) -> std::thread::JoinHandle<()> {
    let (netns, addr) = (netns.to_owned(), addr.to_owned());
    let (ready, is_ready) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        netns::enter_thread(&netns).unwrap();
        let listener = TcpListener::bind(addr).unwrap();
        ready.send(()).unwrap();
        for client in listener.incoming().take(2) {
            let mut client = client.unwrap();
            let mut got = Vec::new();
            client.read_to_end(&mut got).unwrap();
            client.write_all(&got).unwrap();
        }
    });
    is_ready.recv().unwrap();
    thread
}

fn round_trip(at: SocketAddr) -> Vec<u8> {
    let mut client = TcpStream::connect(at).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let sent: Vec<u8> = (0..300_000u32).map(|i| i as u8).collect();
    client.write_all(&sent).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert!(got == sent, "{} bytes of {}", got.len(), sent.len());
    got
}

fn published_ports() -> Outcome {
    let publish = |listen: &str, target: &str| PublishTarget {
        publish: format!("{listen}:node1:80").parse().unwrap(),
        target: target.parse().unwrap(),
    };
    let up = Up::new("tst-p", |s| {
        s.publish = vec![publish("127.0.0.1:0", "10.88.0.1:80"), publish("[::1]:0", "10.88.0.1:81")];
    });
    let state = network::observe(&up.0).unwrap();
    let [at, v6] = state.listening[..] else { panic!("{state:?}") };
    assert!(at.port() != 0 && v6.is_ipv6());
    let server = echo_after_end(&up.netns(), "10.88.0.1:80");
    round_trip(at);
    // Nobody listens there: the client is told so and not left waiting.
    let mut refused = TcpStream::connect(v6).unwrap();
    refused.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    assert!(refused.read(&mut [0]).is_err(), "an answer from nobody");
    // A killed supervisor comes back on the same ports, without dnsmasq standing in the way.
    let pid = rustix::process::Pid::from_raw(state.supervisor_pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    eventually("the supervisor's death", || network::observe(&up.0).is_none());
    let again = network::up(&exe(), &up.0).unwrap();
    assert_eq!(again.listening, state.listening);
    round_trip(at);
    server.join().unwrap();
    let mut direct =
        netns::dial(&up.netns(), "10.88.0.1:53".parse().unwrap(), Duration::from_secs(2)).unwrap();
    direct.write_all(&[0]).unwrap();
    up.down();
    Outcome::Passed
}

fn killed_and_changed() -> Outcome {
    let mut up = Up::new("tst-k", |_| {});
    let name = up.0.cluster.to_string();
    let dnsmasq = || -> Vec<i32> {
        crate::world::traces(&name)
            .into_iter()
            .filter(|t| t.starts_with("process") && t.contains("dnsmasq"))
            .map(|t| t.split(' ').nth(1).unwrap().parse().unwrap())
            .collect()
    };
    let first = dnsmasq();
    assert_eq!(first.len(), 1, "{first:?}");
    let kill = |pid: i32| {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    };
    kill(first[0]);
    eventually("another dnsmasq", || dnsmasq().len() == 1 && dnsmasq() != first);
    eventually("the network to be ready again", || network::observe(&up.0).is_some_and(|s| s.ready));
    // A new node is known without another supervisor.
    let before = network::observe(&up.0).unwrap().supervisor_pid;
    up.0.bridges[0].hosts.push(HostEntry {
        name: "node9".parse().unwrap(),
        mac: "02:00:00:00:00:09".parse().unwrap(),
        addresses: vec!["10.88.0.10".parse().unwrap()],
    });
    let state = network::up(&exe(), &up.0).unwrap();
    assert_eq!(state.supervisor_pid, before);
    assert_eq!(resolve(&up.netns(), "node9", false).len(), 1);
    // With the supervisor dnsmasq goes; the namespace stays for `down` or `up`.
    kill(before);
    eventually("dnsmasq to follow its supervisor", || dnsmasq().is_empty());
    up.down();
    Outcome::Passed
}

/// A private host with a private outside network: this test must not touch the real host's network.
fn way_out() -> Outcome {
    if Command::new("nft").arg("--version").stdout(Stdio::null()).status().is_err() {
        return Outcome::Skipped("nft is not installed".into());
    }
    let (host, outside) = (unique("tst-host"), unique("tst-outside"));
    struct Gone(Vec<String>);
    impl Drop for Gone {
        fn drop(&mut self) {
            for name in &self.0 {
                let _ = Command::new("ip").args(["netns", "del", name]).output();
            }
        }
    }
    ip(&["netns", "add", &host]);
    ip(&["netns", "add", &outside]);
    let gone = Gone(vec![host.clone(), outside.clone()]);
    sh(&host, &["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", &outside]);
    for (ns, address) in [(&host, "192.0.2.2/24"), (&outside, "192.0.2.1/24")] {
        sh(ns, &["ip", "addr", "add", address, "dev", "eth0"]);
        sh(ns, &["ip", "link", "set", "eth0", "up"]);
    }
    sh(&host, &["ip", "route", "add", "default", "via", "192.0.2.1"]);
    sh(&outside, &["ip", "addr", "add", "198.51.100.1/32", "dev", "lo"]);
    let nat = |name: &str| {
        std::thread::scope(|s| {
            s.spawn(|| {
                netns::enter_thread(&host).unwrap();
                Up::new(name, |s| s.bridges[0].nat = true)
            })
            .join()
            .unwrap()
        })
    };
    let (a, b) = (nat("tst-x"), nat("tst-y"));
    for up in [&a, &b] {
        let client = Client::new(up, 1).with_address("10.88.0.2/24");
        sh(&client.0, &["ip", "route", "add", "default", "via", "10.88.0.1"]);
        sh(&client.0, &["ping", "-c1", "-W2", "198.51.100.1"]);
    }
    let forwarding = || sh(&host, &["cat", "/proc/sys/net/ipv4/conf/eth0/forwarding"]);
    assert_eq!(forwarding().trim(), "1");
    assert_eq!(sh(&host, &["nft", "list", "tables"]).lines().count(), 2);
    for up in [a, b] {
        std::thread::scope(|s| {
            s.spawn(|| {
                netns::enter_thread(&host).unwrap();
                up.down();
            })
            .join()
            .unwrap()
        });
    }
    assert_eq!(forwarding().trim(), "0", "forwarding was left on");
    assert_eq!(sh(&host, &["nft", "list", "tables"]), "");
    assert!(!sh(&host, &["ip", "-br", "link"]).contains("stead-"));
    drop(gone);
    assert_no_traces(&host);
    assert_no_traces(&outside);
    Outcome::Passed
}
