//! The node's addresses, by netlink.

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use std::{collections::BTreeSet, io, net::IpAddr};
use tokio::sync::OnceCell;

/// Reads addresses through one netlink socket, opened at the first request, when the network is up.
#[derive(Debug, Default)]
pub struct Addresses {
    netlink: OnceCell<rtnetlink::Handle>,
}

impl Addresses {
    /// Every address of the node that another machine can use, IPv4 first.
    pub async fn read(&self) -> io::Result<Vec<String>> {
        let netlink = self
            .netlink
            .get_or_try_init(|| async {
                let (connection, handle, _) = rtnetlink::new_connection()?;
                tokio::spawn(connection);
                io::Result::Ok(handle)
            })
            .await?;
        let messages: Vec<AddressMessage> =
            netlink.address().get().execute().try_collect().await.map_err(io::Error::other)?;
        Ok(usable(messages.iter().filter_map(address_of)))
    }
}

/// On a point-to-point link `Address` is the peer's and `Local` ours; IPv6 has `Address` only.
fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    })
}

fn usable(addresses: impl Iterator<Item = IpAddr>) -> Vec<String> {
    let unique: BTreeSet<IpAddr> = addresses
        .filter(|a| match a {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        })
        .collect();
    unique.iter().map(IpAddr::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_others_can_use() {
        let all = ["fd00::2", "10.0.0.2", "127.0.0.1", "::1", "fe80::1", "169.254.3.4", "10.0.0.2"];
        let parsed = all.iter().map(|a| a.parse().unwrap());
        assert_eq!(usable(parsed), ["10.0.0.2", "fd00::2"]);
    }

    #[tokio::test]
    async fn the_kernel_answers() {
        let addresses = Addresses::default();
        for _ in 0..2 {
            assert!(addresses.read().await.unwrap().iter().all(|a| !a.starts_with("127.")));
        }
    }
}
