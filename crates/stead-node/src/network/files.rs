//! Files of /etc that describe the network to programs.

use std::{collections::BTreeMap, fs, io, net::IpAddr, path::Path};
use stead_model::node::NetworkSpec;

/// Most nameservers that the C library asks (MAXNS of resolv.h).
const MAX_NAMESERVERS: usize = 3;

/// First lines of every /etc/hosts.
const LOOPBACK: &str = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n\
    ff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n";

/// /etc/resolv.conf.
pub fn resolv_conf(nameservers: &[IpAddr], search: &[String]) -> String {
    let mut text = String::new();
    for server in nameservers.iter().take(MAX_NAMESERVERS) {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !search.is_empty() {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    text
}

/// /etc/hosts: loopback, the node itself, and the spec's hosts.
pub fn hosts(hostname: &str, domain: &str, spec: &NetworkSpec) -> String {
    let mut text = String::from(LOOPBACK);
    let own: Vec<IpAddr> =
        spec.interfaces.iter().flat_map(|i| i.addresses.iter().map(|a| a.addr())).collect();
    let mut names: BTreeMap<&str, Vec<IpAddr>> = BTreeMap::new();
    // As in Debian: a node without a fixed address still resolves its own name.
    names.insert(hostname, if own.is_empty() { vec![IpAddr::from([127, 0, 1, 1])] } else { own });
    for (name, addresses) in &spec.hosts {
        names.entry(name).or_insert_with(|| addresses.clone());
    }
    for (name, addresses) in names {
        for address in addresses {
            if name.contains('.') {
                text.push_str(&format!("{address} {name}\n"));
            } else {
                text.push_str(&format!("{address} {name}.{domain} {name}\n"));
            }
        }
    }
    text
}

/// Writes a file of /etc atomically; a symbolic link, as systemd-resolved leaves, is replaced, not followed.
///
/// # Errors
/// It cannot be written.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let temporary = path.with_extension("stead-new");
    fs::write(&temporary, text)?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let spec: NetworkSpec = serde_json::from_str(
            r#"{"interfaces":[{"name":"br0","addresses":["10.0.0.1/24","fd00::1/64"]}],"hosts":{"node2":["10.0.0.2"],"x.y":["10.0.0.9"]}}"#,
        )
        .unwrap();
        let text = hosts("node1", "demo", &spec);
        insta::assert_snapshot!(text.lines().skip(4).collect::<Vec<_>>().join("\n"), @r"
        10.0.0.1 node1.demo node1
        fd00::1 node1.demo node1
        10.0.0.2 node2.demo node2
        10.0.0.9 x.y
        ");
        assert_eq!(
            resolv_conf(&["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()], &["demo".into()]),
            "nameserver 10.0.0.1\nnameserver fd00::1\nsearch demo\n"
        );
    }
}
