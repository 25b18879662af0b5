//! A small DHCPv4 client (RFC 2131): asks for a lease, sets address, routes and nameservers, and renews.
//!
//! Owns the exchange on one interface; [`wire`] owns the bytes. Requests ask for broadcast replies, since the interface
//! has no address yet.

pub mod wire;

use super::{apply::Netlink, files};
use crate::handle::Handle;
use ipnet::{IpNet, Ipv4Net};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    path::Path,
    time::Duration,
};
use stead_model::{
    agent::EventKind,
    node::{NetworkSpec, Route},
};
use tokio::{net::UdpSocket, sync::oneshot, time::Instant};
use wire::{Kind, Message};

/// Resolves when an interface has its first lease.
pub type FirstLease = oneshot::Receiver<()>;

/// First wait for a reply, doubled each time (RFC 2131 says 4 s, for networks shared by thousands of hosts).
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Longest wait for a reply.
const LONGEST_WAIT: Duration = Duration::from_secs(16);
/// Shortest lease assumed, so that a wrong server does not keep us busy.
const SHORTEST_LEASE: Duration = Duration::from_secs(30);

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The leased address.
    pub address: Ipv4Net,
    /// Default gateways.
    pub routers: Vec<Ipv4Addr>,
    /// Nameservers.
    pub nameservers: Vec<Ipv4Addr>,
    /// Domain to search.
    pub domain: Option<String>,
    /// The server.
    pub server: Ipv4Addr,
    /// Its duration.
    pub duration: Duration,
    /// When to renew it, since its start (T1).
    pub renew: Duration,
}

impl Lease {
    /// The lease in an acknowledgement. `None` when it lacks a required option.
    pub fn from_ack(ack: &Message) -> Option<Self> {
        let mask =
            ack.addresses(wire::SUBNET_MASK).first().copied().unwrap_or(Ipv4Addr::new(255, 255, 255, 0));
        let address = Ipv4Net::with_netmask(ack.your_address, mask).ok()?;
        if ack.your_address.is_unspecified() {
            return None;
        }
        let seconds = |option| ack.number(option).map(|s| Duration::from_secs(s.into()));
        let duration = seconds(wire::LEASE_TIME)?.max(SHORTEST_LEASE);
        Some(Self {
            address,
            routers: ack.addresses(wire::ROUTERS),
            nameservers: ack.addresses(wire::NAMESERVERS),
            domain: ack.text(wire::DOMAIN),
            server: ack.addresses(wire::SERVER).first().copied()?,
            duration,
            renew: seconds(wire::RENEWAL_TIME).unwrap_or(duration / 2).clamp(SHORTEST_LEASE / 2, duration),
        })
    }
}

/// Keeps a lease on an interface for as long as the node runs.
pub fn keep(interface: String, spec: NetworkSpec, netlink: Netlink, handle: Handle) -> FirstLease {
    let (sender, first) = oneshot::channel();
    tokio::spawn(async move {
        let mut first = Some(sender);
        let mut warned = false;
        let mut wait = FIRST_WAIT;
        loop {
            let client = match Client::open(&interface, &netlink).await {
                Ok(client) => client,
                Err(e) => {
                    if !std::mem::replace(&mut warned, true) {
                        handle.warn(format!("DHCP on {interface}: {e}"));
                    }
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                    continue;
                }
            };
            client.keep(&spec, &netlink, &handle, &mut first).await;
        }
    });
    first
}

struct Client {
    interface: String,
    index: u32,
    mac: [u8; 6],
    socket: UdpSocket,
    hostname: String,
}

impl Client {
    async fn open(interface: &str, netlink: &Netlink) -> io::Result<Self> {
        let links = netlink.links().await.map_err(io::Error::other)?;
        let link = links
            .into_iter()
            .find(|l| l.name == interface)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the interface does not exist"))?;
        let mac = link.mac.ok_or_else(|| io::Error::other("the interface has no hardware address"))?;
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, wire::CLIENT_PORT)).await;
        let socket = match socket {
            Ok(socket) => socket,
            Err(e) => return Err(e),
        };
        socket.bind_device(Some(interface.as_bytes()))?;
        socket.set_broadcast(true)?;
        let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Ok(Self { interface: interface.to_owned(), index: link.index, mac: mac.0, socket, hostname })
    }

    /// The life of one lease: obtained, renewed as long as possible, and lost.
    async fn keep(
        &self,
        spec: &NetworkSpec,
        netlink: &Netlink,
        handle: &Handle,
        first: &mut Option<oneshot::Sender<()>>,
    ) {
        let mut lease = self.ask().await;
        handle.note(EventKind::Network, format!("lease {} on {}", lease.address, self.interface));
        loop {
            for why in self.set(&lease, spec, netlink).await {
                handle.warn(format!("DHCP on {}: {why}", self.interface));
            }
            if let Some(first) = first.take() {
                let _ = first.send(());
            }
            let got = Instant::now();
            tokio::time::sleep(lease.renew).await;
            match self.renew(&lease, got + lease.duration).await {
                Some(new) => {
                    if new.address != lease.address {
                        netlink.remove_address(self.index, IpNet::V4(lease.address)).await;
                    }
                    lease = new;
                }
                None => {
                    handle.warn(format!("DHCP lease on {} was not renewed", self.interface));
                    netlink.remove_address(self.index, IpNet::V4(lease.address)).await;
                    return;
                }
            }
        }
    }

    /// Repeats DISCOVER and REQUEST until there is a lease.
    async fn ask(&self) -> Lease {
        let mut wait = FIRST_WAIT;
        loop {
            let id = transaction_id();
            let discover = Message::discover(id, self.mac, &self.hostname);
            let broadcast = SocketAddrV4::new(Ipv4Addr::BROADCAST, wire::SERVER_PORT);
            if let Some(offer) = self.exchange(&discover, broadcast, &[Kind::Offer], wait).await
                && let Some(server) = offer.addresses(wire::SERVER).first().copied()
            {
                let request =
                    Message::request(id, self.mac, &self.hostname, offer.your_address, Some(server));
                let answer = self.exchange(&request, broadcast, &[Kind::Ack, Kind::Nak], wait).await;
                if let Some(lease) =
                    answer.filter(|a| a.kind() == Some(Kind::Ack)).and_then(|a| Lease::from_ack(&a))
                {
                    return lease;
                }
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Asks to renew the lease, first its server, then (from 7/8 of its time) any server. `None`: it has ended.
    async fn renew(&self, lease: &Lease, end: Instant) -> Option<Lease> {
        let rebind = end - lease.duration / 8;
        let mut wait = Duration::from_secs(1);
        while Instant::now() < end {
            let to = if Instant::now() < rebind { lease.server } else { Ipv4Addr::BROADCAST };
            let mut request =
                Message::request(transaction_id(), self.mac, &self.hostname, lease.address.addr(), None);
            request.client_address = lease.address.addr();
            let to = SocketAddrV4::new(to, wire::SERVER_PORT);
            if let Some(answer) = self.exchange(&request, to, &[Kind::Ack, Kind::Nak], wait).await {
                return Lease::from_ack(&answer).filter(|_| answer.kind() == Some(Kind::Ack));
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
        None
    }

    /// Sends a message and waits for an answer of these kinds to its transaction.
    async fn exchange(
        &self,
        message: &Message,
        to: SocketAddrV4,
        kinds: &[Kind],
        wait: Duration,
    ) -> Option<Message> {
        self.socket.send_to(&message.encode(), SocketAddr::V4(to)).await.ok()?;
        let until = Instant::now() + wait;
        // A reply with all options fits into an Ethernet frame.
        let mut buffer = [0u8; 1500];
        loop {
            let (n, _) =
                tokio::time::timeout_at(until, self.socket.recv_from(&mut buffer)).await.ok()?.ok()?;
            let answer = Message::decode(&buffer[..n]);
            if let Some(answer) = answer
                && answer.reply
                && answer.transaction == message.transaction
                && answer.hardware_address == self.mac
                && answer.kind().is_some_and(|k| kinds.contains(&k))
            {
                return Some(answer);
            }
        }
    }

    async fn set(&self, lease: &Lease, spec: &NetworkSpec, netlink: &Netlink) -> Vec<String> {
        let mut errors = Vec::new();
        if let Err(e) = netlink.add_address(self.index, IpNet::V4(lease.address)).await {
            errors.push(crate::chain(&e));
        }
        if let Some(router) = lease.routers.first() {
            let to = IpNet::V4(Ipv4Net::default());
            if let Err(e) = netlink.add_route(self.index, &Route { to, via: Some(IpAddr::V4(*router)) }).await
            {
                errors.push(crate::chain(&e));
            }
        }
        // The spec takes precedence over the server.
        if spec.nameservers.is_empty() && !lease.nameservers.is_empty() {
            let servers: Vec<IpAddr> = lease.nameservers.iter().map(|a| IpAddr::V4(*a)).collect();
            let search = if spec.search.is_empty() {
                lease.domain.clone().into_iter().collect()
            } else {
                spec.search.clone()
            };
            if let Err(e) =
                files::write(Path::new("/etc/resolv.conf"), &files::resolv_conf(&servers, &search))
            {
                errors.push(format!("/etc/resolv.conf not written: {e}"));
            }
        }
        errors
    }
}

/// Random, so that clients do not accept each other's answers.
fn transaction_id() -> u32 {
    let mut bytes = [0u8; 4];
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u32::from_ne_bytes(bytes)
}
