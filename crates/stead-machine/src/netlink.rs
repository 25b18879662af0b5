//! Links, addresses and routes of a network namespace, by netlink, from blocking code.
//!
//! Owns the netlink requests. Does not own which links there should be.

use crate::netns;
use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::{
    Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
        link::{InfoBridge, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    },
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, BorrowedFd},
};
use stead_model::MacAddress;

/// A netlink request failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {subject}")]
pub struct LinkError {
    operation: &'static str,
    subject: String,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

type Result<T> = std::result::Result<T, LinkError>;

fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    operation: &'static str,
    subject: impl ToString,
) -> impl FnOnce(E) -> LinkError {
    move |source| LinkError { operation, subject: subject.to_string(), source: source.into() }
}

/// One end of a veth pair that goes into another namespace.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VethPeer<'a> {
    /// Its name there.
    pub name: &'a str,
    /// Where it goes.
    pub netns: BorrowedFd<'a>,
    /// Hardware address; the kernel's choice when absent.
    pub mac: Option<MacAddress>,
}

/// The links of one namespace.
#[derive(Debug, Clone)]
pub(crate) struct Links(Handle);

/// Runs `work` with the links of a namespace (of the caller's own when `None`), on a thread of its own.
pub(crate) fn with<T: Send>(
    ns: Option<BorrowedFd<'_>>,
    work: impl AsyncFnOnce(Links) -> Result<T> + Send,
) -> Result<T> {
    let answer = netns::on_thread(|| {
        if let Some(ns) = ns {
            netns::enter(ns)?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            let connection = tokio::spawn(connection);
            let answer = work(Links(handle)).await;
            connection.abort();
            Ok(answer)
        })
    });
    answer.map_err(failed("open", "a netlink socket"))?
}

impl Links {
    /// The link of that name.
    pub(crate) async fn find(&self, name: &str) -> Result<Option<LinkMessage>> {
        match self.0.link().get().match_name(name.to_owned()).execute().try_next().await {
            Ok(link) => Ok(link),
            Err(e) if is(&e, rustix::io::Errno::NODEV) => Ok(None),
            Err(e) => Err(failed("look for link", name)(e)),
        }
    }

    async fn index(&self, name: &str) -> Result<u32> {
        match self.find(name).await? {
            Some(link) => Ok(link.header.index),
            None => Err(failed("find link", name)("there is no such link")),
        }
    }

    /// Every link's name, index and kind.
    pub(crate) async fn list(&self) -> Result<Vec<(String, u32, Option<InfoKind>)>> {
        let links: Vec<LinkMessage> =
            self.0.link().get().execute().try_collect().await.map_err(failed("list", "links"))?;
        Ok(links
            .into_iter()
            .map(|link| {
                let (mut name, mut kind) = (String::new(), None);
                for attribute in link.attributes {
                    match attribute {
                        LinkAttribute::IfName(n) => name = n,
                        LinkAttribute::LinkInfo(infos) => {
                            kind = infos.into_iter().find_map(|i| match i {
                                LinkInfo::Kind(k) => Some(k),
                                _ => None,
                            });
                        }
                        _ => {}
                    }
                }
                (name, link.header.index, kind)
            })
            .collect())
    }

    /// Deletes a link, if it is there.
    pub(crate) async fn delete(&self, name: &str) -> Result<()> {
        let Some(link) = self.find(name).await? else { return Ok(()) };
        match self.0.link().del(link.header.index).execute().await {
            Err(e) if !is(&e, rustix::io::Errno::NODEV) => Err(failed("delete link", name)(e)),
            _ => Ok(()),
        }
    }

    /// Sets a link up.
    pub(crate) async fn up(&self, name: &str) -> Result<()> {
        let index = self.index(name).await?;
        let message = LinkUnspec::new_with_index(index).up().build();
        self.0.link().change(message).execute().await.map_err(failed("set up link", name))
    }

    /// Makes a bridge, or changes the existing one: up, with this MTU and exactly these addresses.
    pub(crate) async fn ensure_bridge(
        &self,
        name: &str,
        mac: MacAddress,
        mtu: u16,
        addresses: &[IpNet],
    ) -> Result<()> {
        // Without snooping, multicast (and so neighbour discovery) reaches every node; there is no querier.
        // Without a hardware address of its own, a bridge takes the lowest of its ports. On each change the kernel drops
        // all neighbour entries and the packets that wait for them: a connection would wait a second for TCP to retry.
        let bridge = LinkBridge::new(name)
            .append_info_data(InfoBridge::MulticastSnooping(false))
            .address(mac.0.to_vec())
            .mtu(u32::from(mtu))
            .up()
            .build();
        match self.find(name).await? {
            None => self.0.link().add(bridge).execute().await.map_err(failed("make bridge", name))?,
            Some(link) => {
                let message = LinkUnspec::new_with_index(link.header.index).mtu(u32::from(mtu)).up().build();
                self.0.link().change(message).execute().await.map_err(failed("set up bridge", name))?;
            }
        }
        let index = self.index(name).await?;
        for (message, address) in self.addresses(Some(index)).await? {
            if message.header.scope == AddressScope::Universe && !addresses.contains(&address) {
                self.0
                    .address()
                    .del(message)
                    .execute()
                    .await
                    .map_err(failed("remove address", format!("{address} from {name}")))?;
            }
        }
        for address in addresses {
            self.add_address(index, name, *address).await?;
        }
        Ok(())
    }

    /// Adds an address to a link, without duplicate address detection.
    pub(crate) async fn add_address_to(&self, link: &str, address: IpNet) -> Result<()> {
        let index = self.index(link).await?;
        self.add_address(index, link, address).await
    }

    async fn add_address(&self, index: u32, link: &str, address: IpNet) -> Result<()> {
        let mut request = self.0.address().add(index, address.addr(), address.prefix_len());
        let message = request.message_mut();
        message.header.flags |= AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        match request.execute().await {
            Err(e) if !is(&e, rustix::io::Errno::EXIST) => {
                Err(failed("add address", format!("{address} to {link}"))(e))
            }
            _ => Ok(()),
        }
    }

    /// Addresses of one link or of all.
    pub(crate) async fn addresses(&self, link: Option<u32>) -> Result<Vec<(AddressMessage, IpNet)>> {
        let mut request = self.0.address().get();
        if let Some(index) = link {
            request = request.set_link_index_filter(index);
        }
        let messages: Vec<AddressMessage> =
            request.execute().try_collect().await.map_err(failed("list", "addresses"))?;
        Ok(messages
            .into_iter()
            .filter(|m| link.is_none_or(|index| m.header.index == index))
            .filter_map(|m| {
                let address = m.attributes.iter().find_map(|a| match a {
                    AddressAttribute::Local(ip) => Some(*ip),
                    _ => None,
                });
                let address = address.or_else(|| {
                    m.attributes.iter().find_map(|a| match a {
                        AddressAttribute::Address(ip) => Some(*ip),
                        _ => None,
                    })
                })?;
                let net = IpNet::new(address, m.header.prefix_len).ok()?;
                Some((m, net))
            })
            .collect())
    }

    /// Makes a veth pair: `name` here (on `bridge`, when given), its peer in another namespace. A pair of that name
    /// is left from a machine that died; it is deleted first.
    pub(crate) async fn add_veth(
        &self,
        name: &str,
        bridge: Option<&str>,
        mtu: u16,
        peer: VethPeer<'_>,
    ) -> Result<()> {
        self.delete(name).await?;
        let mut there =
            LinkUnspec::new_with_name(peer.name).mtu(u32::from(mtu)).setns_by_fd(peer.netns.as_raw_fd());
        if let Some(mac) = peer.mac {
            there = there.address(mac.0.to_vec());
        }
        let mut here = LinkVeth::new(name, peer.name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(there.build())))
            .mtu(u32::from(mtu))
            .up();
        if let Some(bridge) = bridge {
            here = here.controller(self.index(bridge).await?);
        }
        self.0.link().add(here.build()).execute().await.map_err(failed("make veth", name))
    }

    /// Puts a link on a bridge and sets it up.
    pub(crate) async fn attach(&self, name: &str, bridge: &str, mtu: u16) -> Result<()> {
        let controller = self.index(bridge).await?;
        let message = LinkUnspec::new_with_index(self.index(name).await?)
            .controller(controller)
            .mtu(u32::from(mtu))
            .up()
            .build();
        self.0
            .link()
            .change(message)
            .execute()
            .await
            .map_err(failed("attach", format!("{name} to bridge {bridge}")))
    }

    /// Destinations of all routes except default ones.
    pub(crate) async fn destinations(&self) -> Result<Vec<IpNet>> {
        let routes = self.routes().await?;
        Ok(routes.iter().filter(|r| r.header.destination_prefix_length > 0).filter_map(destination).collect())
    }

    /// Names of the interfaces that default routes lead to; true for IPv6.
    pub(crate) async fn default_interfaces(&self) -> Result<Vec<(String, bool)>> {
        let names = self.list().await?;
        let mut found: Vec<(String, bool)> = self
            .routes()
            .await?
            .iter()
            // The kernel's unreachable default for IPv6 has no interface but the loopback.
            .filter(|r| r.header.destination_prefix_length == 0 && r.header.kind == RouteType::Unicast)
            .filter_map(|r| {
                let index = r.attributes.iter().find_map(|a| match a {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                })?;
                let (name, _, _) = names.iter().find(|(_, i, _)| *i == index)?;
                Some((name.clone(), r.header.address_family == AddressFamily::Inet6))
            })
            .collect();
        found.sort();
        found.dedup();
        Ok(found)
    }

    async fn routes(&self) -> Result<Vec<RouteMessage>> {
        let mut all = Vec::new();
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
        for wanted in [v4, v6] {
            let found: Vec<RouteMessage> =
                self.0.route().get(wanted).execute().try_collect().await.map_err(failed("list", "routes"))?;
            all.extend(found);
        }
        Ok(all)
    }

    /// Adds a default route by a gateway, unless there is one.
    pub(crate) async fn default_route(&self, gateway: IpAddr) -> Result<()> {
        let message = match gateway {
            IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new().gateway(ip).build(),
            IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new().gateway(ip).build(),
        };
        match self.0.route().add(message).execute().await {
            Err(e) if !is(&e, rustix::io::Errno::EXIST) => Err(failed("add default route by", gateway)(e)),
            _ => Ok(()),
        }
    }
}

fn destination(route: &RouteMessage) -> Option<IpNet> {
    route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => {
            IpNet::new((*ip).into(), route.header.destination_prefix_length).ok()
        }
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => {
            IpNet::new((*ip).into(), route.header.destination_prefix_length).ok()
        }
        _ => None,
    })
}

fn is(error: &rtnetlink::Error, errno: rustix::io::Errno) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(m) if m.to_io().raw_os_error() == Some(errno.raw_os_error()))
}

impl From<LinkError> for io::Error {
    fn from(e: LinkError) -> Self {
        io::Error::other(e)
    }
}
