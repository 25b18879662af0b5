//! Executes network steps by netlink.

use super::{Link, NetworkPlan, Step, plan};
use crate::sysctl;
use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::{
    AddressMessageBuilder, Handle, LinkBridge, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressFlags},
        link::LinkAttribute,
    },
};
use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};
use stead_model::{
    names::MacAddress,
    node::{NetworkSpec, Route},
};

/// A failed netlink operation.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A netlink socket cannot be opened.
    #[error("cannot open a netlink socket")]
    Socket(#[source] io::Error),
    /// The kernel refused.
    #[error("cannot {what}")]
    Netlink {
        /// The operation, as a fragment.
        what: String,
        /// Why.
        #[source]
        source: rtnetlink::Error,
    },
    /// A link is missing.
    #[error("interface {0} does not exist")]
    NoLink(String),
}

/// A netlink socket, served by a task.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Opens it in the current tokio runtime.
    ///
    /// # Errors
    /// No socket.
    pub fn open() -> Result<Self, NetworkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Socket)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// The node's links.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn links(&self) -> Result<Vec<Link>, NetworkError> {
        let mut found = Vec::new();
        let mut stream = self.handle.link().get().execute();
        while let Some(message) = stream.try_next().await.map_err(refused("list interfaces"))? {
            let mut link = Link { index: message.header.index, name: String::new(), mac: None };
            for attribute in message.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => link.name = name,
                    LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(MacAddress),
                    _ => {}
                }
            }
            found.push(link);
        }
        Ok(found)
    }

    /// Sets up a network: plans it for the present links, and executes every step that can be.
    ///
    /// Returns the failures; the rest of the network is up.
    pub async fn set_up(&self, spec: &NetworkSpec) -> Vec<String> {
        let links = match self.links().await {
            Ok(links) => links,
            Err(e) => return vec![crate::chain(&e)],
        };
        let plan = plan(spec, &links);
        let mut errors: Vec<String> =
            plan.missing.iter().map(|m| format!("interface {m} does not exist")).collect();
        errors.extend(self.apply(&plan, &links).await);
        errors
    }

    /// Executes every step; returns the errors.
    pub async fn apply(&self, plan: &NetworkPlan, links: &[Link]) -> Vec<String> {
        let mut indexes: HashMap<String, u32> = links.iter().map(|l| (l.name.clone(), l.index)).collect();
        let mut errors = Vec::new();
        for step in &plan.steps {
            if let Err(e) = self.step(step, &mut indexes).await {
                errors.push(crate::chain(&e));
            }
        }
        errors
    }

    async fn step(&self, step: &Step, indexes: &mut HashMap<String, u32>) -> Result<(), NetworkError> {
        let index = |name: &str| indexes.get(name).copied().ok_or_else(|| NetworkError::NoLink(name.into()));
        match step {
            Step::Up(name) => {
                let message = LinkUnspec::new_with_index(index(name)?).up().build();
                self.set(message, || format!("bring {name} up")).await
            }
            Step::Rename { index, name } => {
                let down = LinkUnspec::new_with_index(*index).down().build();
                self.set(down, || format!("take interface {index} down")).await?;
                let message = LinkUnspec::new_with_index(*index).name(name.clone()).build();
                self.set(message, || format!("rename interface {index} to {name}")).await?;
                indexes.retain(|_, i| i != index);
                indexes.insert(name.clone(), *index);
                Ok(())
            }
            Step::Bridge { name, mac } => {
                // Ports forward at once: without a second bridge there can be no loop.
                let mut message = LinkBridge::new(name).forward_delay(0);
                if let Some(mac) = mac {
                    message = message.address(mac.0.to_vec());
                }
                let request = self.handle.link().add(message.build());
                request.execute().await.map_err(refused(&format!("make bridge {name}")))?;
                for link in self.links().await? {
                    indexes.insert(link.name, link.index);
                }
                Ok(())
            }
            Step::Port { name, bridge } => {
                let message = LinkUnspec::new_with_index(index(name)?).controller(index(bridge)?).build();
                self.set(message, || format!("put {name} into {bridge}")).await
            }
            Step::Mtu { name, mtu } => {
                let message = LinkUnspec::new_with_index(index(name)?).mtu(u32::from(*mtu)).build();
                self.set(message, || format!("set the mtu of {name} to {mtu}")).await
            }
            Step::Sysctl { key, value } => {
                // Fails without IPv6 in the kernel, where there is nothing to set.
                let _ = std::fs::write(sysctl::path(key), value);
                Ok(())
            }
            Step::Address { name, address } => self.add_address(index(name)?, *address).await,
            Step::Route { name, route } => self.add_route(index(name)?, route).await,
        }
    }

    async fn set(
        &self,
        message: rtnetlink::packet_route::link::LinkMessage,
        what: impl Fn() -> String,
    ) -> Result<(), NetworkError> {
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(|source| NetworkError::Netlink { what: what(), source })
    }

    /// Adds an address, unless it exists. IPv6 addresses are usable at once, without duplicate address detection, which
    /// would take a second: all nodes' addresses come from one plan.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn add_address(&self, index: u32, address: IpNet) -> Result<(), NetworkError> {
        let message = match address {
            IpNet::V4(net) => AddressMessageBuilder::<Ipv4Addr>::new()
                .index(index)
                .address(net.addr(), net.prefix_len())
                .build(),
            IpNet::V6(net) => {
                let mut message = AddressMessageBuilder::<Ipv6Addr>::new()
                    .index(index)
                    .address(net.addr(), net.prefix_len())
                    .build();
                message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
                message
            }
        };
        let mut request = self.handle.address().add(index, address.addr(), address.prefix_len()).replace();
        *request.message_mut() = message;
        request.execute().await.map_err(refused(&format!("add address {address}")))
    }

    /// Removes an address; a missing one is not an error.
    pub async fn remove_address(&self, index: u32, address: IpNet) {
        let mut found = self.handle.address().get().set_link_index_filter(index).execute();
        while let Ok(Some(message)) = found.try_next().await {
            let is_it = message
                .attributes
                .iter()
                .any(|a| matches!(a, AddressAttribute::Address(ip) if *ip == address.addr()));
            if is_it && message.header.prefix_len == address.prefix_len() {
                let _ = self.handle.address().del(message).execute().await;
            }
        }
    }

    /// Adds a route, or replaces it.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn add_route(&self, index: u32, route: &Route) -> Result<(), NetworkError> {
        let prefix = route.to.prefix_len();
        let message = match (route.to.network(), route.via) {
            (IpAddr::V4(to), via) => {
                let builder = RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(to, prefix)
                    .output_interface(index);
                match via {
                    Some(IpAddr::V4(via)) => builder.gateway(via).build(),
                    _ => builder.scope(rtnetlink::packet_route::route::RouteScope::Link).build(),
                }
            }
            (IpAddr::V6(to), via) => {
                let builder = RouteMessageBuilder::<Ipv6Addr>::new()
                    .destination_prefix(to, prefix)
                    .output_interface(index);
                match via {
                    Some(IpAddr::V6(via)) => builder.gateway(via).build(),
                    _ => builder.build(),
                }
            }
        };
        let what = match route.via {
            Some(via) => format!("add route {} via {via}", route.to),
            None => format!("add route {}", route.to),
        };
        self.handle.route().add(message).replace().execute().await.map_err(refused(&what))
    }
}

fn refused(what: &str) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    let what = what.to_owned();
    move |source| NetworkError::Netlink { what, source }
}
