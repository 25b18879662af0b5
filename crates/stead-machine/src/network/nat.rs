//! The way out of a cluster's namespace: a veth to the host, and masquerading at both ends of it.
//!
//! Inside, everything that leaves by `uplink` takes the uplink's address; on the host, that address takes the host's. So
//! clusters with the same prefixes can all go out at once. On the host there are just the veth `stead-<hash>`, the
//! nftables table `stead_<cluster>`, and forwarding on the interfaces that need it; all three go with [`remove`].
//!
//! IPv6 goes out only where the host forwards IPv6 anyway, or its kernel can forward on single interfaces (Linux 6.17):
//! with forwarding on everywhere, a host ignores the advertisements of its own router.

use super::HostNetworkSpec;
use crate::{
    LinkError, TeardownError,
    files::{self, Durability, Lock},
    netlink::{self, Links, VethPeer},
    netns,
    teardown::Failures,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs, io,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};
use stead_model::ClusterName;
use stead_os::{CommandError, PathContext, PathError, Program};

/// Name of the uplink inside the namespace.
const UPLINK: &str = "uplink";
/// Prefix of the names of uplinks on the host.
const LINK_PREFIX: &str = "stead-";
/// Marks of the interfaces on which forwarding was enabled; removed with the last cluster that has NAT.
const FORWARDING_DIR: &str = "/run/stead/forwarding";
/// The prefix the small networks of uplinks are taken from: shared address space (RFC 6598), which no private network
/// uses for itself.
const UPLINKS: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);
/// How many candidates are tried. On a host with few networks the first or second is free.
const MAX_TRIES: u32 = 64;
/// Ethernet's usual MTU: more is not certain outside the host.
const MTU: u16 = 1500;

/// The way out could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum NatError {
    /// A file.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The veth, its addresses or routes.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// nft is not there, or refuses the rules.
    #[error(transparent)]
    Nft(#[from] CommandError),
    /// The namespace that nft was to run in.
    #[error("cannot enter the network namespace for {}", .rules.display())]
    Enter {
        /// The file with the rules.
        rules: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Every small network tried is in use.
    #[error("no free network for the uplink of {0} within {UPLINKS}")]
    NoRoom(ClusterName),
}

/// What was chosen; kept as `<dir>/nat.json` so that `down` knows what to remove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Plan {
    link: String,
    table: String,
    v4: Ipv4Net,
    v6: Ipv6Net,
}

/// What would be chosen at the `n`th try, from the cluster's name alone.
fn candidate(cluster: &ClusterName, n: u32) -> Plan {
    let digest = Sha256::digest(format!("{cluster}/{n}"));
    let hash = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
    // A /10 holds 2^20 networks of four addresses.
    let v4 = u32::from(UPLINKS.network()) + (hash >> 12) * 4;
    // fd53:7465:6164 is "Stead" behind a unique local prefix.
    let v6 = Ipv6Addr::from(0xfd53_7465_6164_0000_0000_0000_0000_0000 | u128::from(hash) << 32);
    Plan {
        link: link_name(cluster),
        table: format!("stead_{cluster}"),
        v4: Ipv4Net::new_assert(v4.into(), 30),
        v6: Ipv6Net::new_assert(v6, 126),
    }
}

fn link_name(cluster: &ClusterName) -> String {
    let digest = Sha256::digest(cluster.as_str());
    format!("{LINK_PREFIX}{:02x}{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2], digest[3])
}

impl Plan {
    /// The host's end and the cluster's end.
    fn ends(&self, family_v6: bool) -> (IpNet, IpNet) {
        let at = |n: u32| -> IpNet {
            if family_v6 {
                IpNet::new_assert(Ipv6Addr::from(u128::from(self.v6.network()) + u128::from(n)).into(), 126)
            } else {
                IpNet::new_assert(Ipv4Addr::from(u32::from(self.v4.network()) + n).into(), 30)
            }
        };
        (at(1), at(2))
    }

    /// Rules for the host. The table is emptied first, in the same transaction.
    fn host_rules(&self) -> String {
        let Self { link, table, v4, v6 } = self;
        format!(
            "table inet {table} {{}}\ndelete table inet {table}\ntable inet {table} {{\n\
             \tchain postrouting {{\n\
             \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
             \t\tip saddr {v4} oifname != \"{link}\" masquerade\n\
             \t\tip6 saddr {v6} oifname != \"{link}\" masquerade\n\
             \t}}\n}}\n"
        )
    }

    fn no_host_rules(&self) -> String {
        let table = &self.table;
        format!("table inet {table} {{}}\ndelete table inet {table}\n")
    }
}

/// Rules inside the namespace: only the bridges that want it may go out.
fn inner_rules(spec: &HostNetworkSpec) -> String {
    let kept: String = spec
        .bridges
        .iter()
        .filter(|b| !b.nat)
        .map(|b| format!("\t\tiifname \"{}\" oifname \"{UPLINK}\" reject\n", b.name))
        .collect();
    format!(
        "table inet nat {{}}\ndelete table inet nat\ntable inet nat {{\n\
         \tchain postrouting {{\n\
         \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
         \t\toifname \"{UPLINK}\" masquerade\n\
         \t}}\n\
         \tchain forward {{\n\
         \t\ttype filter hook forward priority filter; policy accept;\n\
         \t\tiifname \"{UPLINK}\" ct state new drop\n\
         {kept}\t}}\n}}\n"
    )
}

fn plan_file(spec: &HostNetworkSpec) -> PathBuf {
    spec.dir.join("nat.json")
}

/// Makes the way out when a bridge wants one, or removes what an earlier spec wanted. Idempotent.
pub(super) fn ensure(spec: &HostNetworkSpec) -> Result<(), NatError> {
    if !spec.bridges.iter().any(|b| b.nat) {
        if plan_file(spec).exists() {
            let mut first = None;
            take_down(spec, &mut |e| first = first.take().or(Some(e)));
            return first.map_or(Ok(()), Err);
        }
        return Ok(());
    }
    let path = plan_file(spec);
    let plan = match files::read_json::<Plan>(&path) {
        Some(plan) => plan,
        None => choose(&spec.cluster)?,
    };
    // Written before anything is made, so that all of it can be found again.
    files::write_json(&path, &plan, Durability::Durable).at("write", &path)?;
    let name = spec.netns();
    let ns_path = netns::path(&name);
    let ns = netns::open(&name).at("open", &ns_path)?;
    make_link(&plan, ns.as_fd())?;
    let rules = spec.dir.join("nat-inside.nft");
    nft(&rules, &inner_rules(spec), Some(ns.as_fd()))?;
    nft(&spec.dir.join("nat-host.nft"), &plan.host_rules(), None)?;
    forward(&plan)
}

fn choose(cluster: &ClusterName) -> Result<Plan, NatError> {
    let used = netlink::with(None, async |links: Links| {
        let mut used: Vec<IpNet> = links.addresses(None).await?.into_iter().map(|(_, net)| net).collect();
        used.extend(links.destinations().await?);
        Ok(used)
    })?;
    let overlaps = |plan: &Plan| {
        used.iter().any(|net| match net {
            IpNet::V4(n) => n.contains(&plan.v4) || plan.v4.contains(n),
            IpNet::V6(n) => n.contains(&plan.v6) || plan.v6.contains(n),
        })
    };
    (0..MAX_TRIES)
        .map(|n| candidate(cluster, n))
        .find(|plan| !overlaps(plan))
        .ok_or_else(|| NatError::NoRoom(cluster.clone()))
}

fn make_link(plan: &Plan, ns: BorrowedFd<'_>) -> Result<(), NatError> {
    let there = netlink::with(Some(ns), async |links: Links| Ok(links.find(UPLINK).await?.is_some()))?;
    netlink::with(None, async |links: Links| {
        if !there || links.find(&plan.link).await?.is_none() {
            let peer = VethPeer { name: UPLINK, netns: ns, mac: None };
            links.add_veth(&plan.link, None, MTU, peer).await?;
            // Its own parameters exist only now; addresses come after them.
            let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{}/accept_dad", plan.link), "0");
        }
        for v6 in [false, true] {
            links.add_address_to(&plan.link, plan.ends(v6).0).await?;
        }
        Ok(())
    })?;
    netlink::with(Some(ns), async |links: Links| {
        links.up(UPLINK).await?;
        for v6 in [false, true] {
            let (host, inner) = plan.ends(v6);
            links.add_address_to(UPLINK, inner).await?;
            links.default_route(host.addr()).await?;
        }
        Ok(())
    })?;
    Ok(())
}

/// Applies a file of rules as one transaction with nft, inside `ns` when given.
fn nft(path: &Path, rules: &str, ns: Option<BorrowedFd<'_>>) -> Result<(), NatError> {
    files::write(path, rules.as_bytes(), Durability::Volatile).at("write", path)?;
    let program = Program::new("nft").package("nftables").arg("-f").arg(path);
    let run = || {
        if let Some(ns) = ns {
            netns::enter(ns)?;
        }
        Ok(program.run())
    };
    netns::on_thread(run).map_err(|source| NatError::Enter { rules: path.to_owned(), source })??;
    Ok(())
}

/// Enables forwarding where packets come in: on the uplink, and on the interfaces that lead out. Marks each, so that it
/// is disabled with the last cluster.
fn forward(plan: &Plan) -> Result<(), NatError> {
    let dir = Path::new(FORWARDING_DIR);
    fs::create_dir_all(dir).at("make", dir)?;
    let _lock = Lock::wait(&dir.join(".lock")).at("lock", dir)?;
    let ways_out = netlink::with(None, async |links: Links| links.default_interfaces().await)?;
    let sysctl = Path::new("/proc/sys/net");
    for (family, key, on) in [("ipv4", "forwarding", false), ("ipv6", "force_forwarding", v6_forwards())] {
        let interfaces = ways_out.iter().filter(|(_, v6)| *v6 == (family == "ipv6")).map(|(name, _)| name);
        if on {
            continue;
        }
        let uplink = sysctl.join(family).join("conf").join(&plan.link).join(key);
        if !uplink.exists() {
            continue;
        }
        fs::write(&uplink, "1").at("write", &uplink)?;
        for interface in interfaces {
            let path = sysctl.join(family).join("conf").join(interface).join(key);
            if fs::read_to_string(&path).is_ok_and(|v| v.trim() == "0") {
                let mark = dir.join(format!("{family}@{interface}"));
                fs::write(&mark, "").at("write", &mark)?;
                fs::write(&path, "1").at("write", &path)?;
            }
        }
    }
    Ok(())
}

fn v6_forwards() -> bool {
    fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding").is_ok_and(|v| v.trim() == "1")
}

/// Removes the way out. Idempotent.
pub(super) fn remove(spec: &HostNetworkSpec) -> Result<(), TeardownError> {
    let mut failures = Failures::default();
    take_down(spec, &mut |e: NatError| failures.note(Err(e)));
    failures.into_result()
}

fn take_down(spec: &HostNetworkSpec, failed: &mut dyn FnMut(NatError)) {
    let path = plan_file(spec);
    let link = link_name(&spec.cluster);
    let link_there = netlink::with(None, async |links: Links| Ok(links.find(&link).await?.is_some()));
    if !path.exists() && !matches!(link_there, Ok(true)) {
        return;
    }
    let mut complete = true;
    let mut note = |result: Result<(), NatError>| {
        if let Err(e) = result {
            complete = false;
            failed(e);
        }
    };
    let plan = files::read_json::<Plan>(&path).unwrap_or_else(|| candidate(&spec.cluster, 0));
    let rules = spec.dir.join("nat-host.nft");
    note(nft(&rules, &plan.no_host_rules(), None));
    // The peer goes with it.
    note(netlink::with(None, async |links: Links| links.delete(&link).await).map_err(NatError::from));
    note(stop_forwarding());
    if complete {
        for file in [&path, &rules, &spec.dir.join("nat-inside.nft")] {
            let _ = fs::remove_file(file);
        }
    }
}

/// Disables what [`forward`] enabled, once no cluster has an uplink.
fn stop_forwarding() -> Result<(), NatError> {
    let dir = Path::new(FORWARDING_DIR);
    if !dir.exists() {
        return Ok(());
    }
    let _lock = Lock::wait(&dir.join(".lock")).at("lock", dir)?;
    let links = netlink::with(None, async |links: Links| links.list().await)?;
    if links.iter().any(|(name, _, _)| name.starts_with(LINK_PREFIX)) {
        return Ok(());
    }
    for entry in fs::read_dir(dir).at("read", dir)?.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((family, interface)) = name.split_once('@') else { continue };
        let key = if family == "ipv4" { "forwarding" } else { "force_forwarding" };
        let path = Path::new("/proc/sys/net").join(family).join("conf").join(interface).join(key);
        // An interface that is gone needs nothing.
        if path.exists() {
            fs::write(&path, "0").at("write", &path)?;
        }
        fs::remove_file(entry.path()).at("remove", entry.path())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_lie_in_shared_space_and_differ() {
        let cluster: ClusterName = "demo".parse().unwrap();
        let (a, b) = (candidate(&cluster, 0), candidate(&cluster, 1));
        assert!(UPLINKS.contains(&a.v4) && UPLINKS.contains(&b.v4) && a.v4 != b.v4 && a.v6 != b.v6);
        assert_eq!(a.link, b.link);
        assert!(a.link.len() <= 15);
        assert_eq!(a.v4.network(), a.v4.addr());
        assert_eq!(a.v6.network(), a.v6.addr());
        let (host, inner) = a.ends(false);
        assert!(a.v4.contains(&inner.to_string().parse::<Ipv4Net>().unwrap()) && host != inner);
    }

    #[test]
    fn host_rules_touch_only_the_uplink() {
        let mut plan = candidate(&"a-b".parse().unwrap(), 0);
        plan.link = "stead-x".into();
        plan.v4 = "100.64.0.0/30".parse().unwrap();
        plan.v6 = "fd53::/126".parse().unwrap();
        insta::assert_snapshot!(plan.host_rules(), @r#"
        table inet stead_a-b {}
        delete table inet stead_a-b
        table inet stead_a-b {
        	chain postrouting {
        		type nat hook postrouting priority srcnat; policy accept;
        		ip saddr 100.64.0.0/30 oifname != "stead-x" masquerade
        		ip6 saddr fd53::/126 oifname != "stead-x" masquerade
        	}
        }
        "#);
    }
}
