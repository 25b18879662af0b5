//! The bytes of DHCPv4 messages (RFC 2131 section 2, options of RFC 2132).

use std::net::Ipv4Addr;

/// Port of servers.
pub const SERVER_PORT: u16 = 67;
/// Port of clients.
pub const CLIENT_PORT: u16 = 68;

/// Option: subnet mask.
pub const SUBNET_MASK: u8 = 1;
/// Option: routers.
pub const ROUTERS: u8 = 3;
/// Option: nameservers.
pub const NAMESERVERS: u8 = 6;
/// Option: host name.
pub const HOSTNAME: u8 = 12;
/// Option: domain name.
pub const DOMAIN: u8 = 15;
/// Option: requested address.
pub const REQUESTED_ADDRESS: u8 = 50;
/// Option: lease time in seconds.
pub const LEASE_TIME: u8 = 51;
/// Option: message type.
pub const KIND: u8 = 53;
/// Option: the server's address.
pub const SERVER: u8 = 54;
/// Option: requested options.
pub const PARAMETERS: u8 = 55;
/// Option: time until renewal in seconds.
pub const RENEWAL_TIME: u8 = 58;

/// Magic cookie, after 236 bytes of fields.
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const FIELDS_BYTES: usize = 236;
/// Shortest message sent: some servers drop messages shorter than BOOTP's.
const SHORTEST_BYTES: usize = 300;
/// The only flag: answer by broadcast.
const BROADCAST: u16 = 0x8000;

/// Message types that a client sends or receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A client searches for servers.
    Discover,
    /// A server offers an address.
    Offer,
    /// A client requests an address.
    Request,
    /// The server accepts.
    Ack,
    /// The server refuses.
    Nak,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// From server to client.
    pub reply: bool,
    /// Transaction id.
    pub transaction: u32,
    /// The client's address, when it has one.
    pub client_address: Ipv4Addr,
    /// The assigned address.
    pub your_address: Ipv4Addr,
    /// The client's hardware address.
    pub hardware_address: [u8; 6],
    /// Options in order, none longer than 255 bytes.
    pub options: Vec<(u8, Vec<u8>)>,
}

impl Message {
    fn from_client(kind: u8, transaction: u32, hardware_address: [u8; 6], hostname: &str) -> Self {
        let mut options = vec![(KIND, vec![kind])];
        if !hostname.is_empty() && hostname.len() < 64 {
            options.push((HOSTNAME, hostname.as_bytes().to_vec()));
        }
        options.push((PARAMETERS, vec![SUBNET_MASK, ROUTERS, NAMESERVERS, DOMAIN, LEASE_TIME, RENEWAL_TIME]));
        Self {
            reply: false,
            transaction,
            client_address: Ipv4Addr::UNSPECIFIED,
            your_address: Ipv4Addr::UNSPECIFIED,
            hardware_address,
            options,
        }
    }

    /// A message that searches for servers.
    pub fn discover(transaction: u32, hardware_address: [u8; 6], hostname: &str) -> Self {
        Self::from_client(1, transaction, hardware_address, hostname)
    }

    /// A message that requests an address: with `server` one that it offered, without to keep the present one.
    pub fn request(
        transaction: u32,
        hardware_address: [u8; 6],
        hostname: &str,
        address: Ipv4Addr,
        server: Option<Ipv4Addr>,
    ) -> Self {
        let mut message = Self::from_client(3, transaction, hardware_address, hostname);
        if let Some(server) = server {
            message.options.push((REQUESTED_ADDRESS, address.octets().to_vec()));
            message.options.push((SERVER, server.octets().to_vec()));
        }
        message
    }

    /// Its type, if it is one of [`Kind`].
    pub fn kind(&self) -> Option<Kind> {
        match self.option(KIND)? {
            [1] => Some(Kind::Discover),
            [2] => Some(Kind::Offer),
            [3] => Some(Kind::Request),
            [5] => Some(Kind::Ack),
            [6] => Some(Kind::Nak),
            _ => None,
        }
    }

    fn option(&self, code: u8) -> Option<&[u8]> {
        self.options.iter().find(|(c, _)| *c == code).map(|(_, v)| v.as_slice())
    }

    /// An option with addresses; empty when it is absent or truncated.
    pub fn addresses(&self, code: u8) -> Vec<Ipv4Addr> {
        let bytes = self.option(code).unwrap_or_default();
        bytes.chunks_exact(4).map(|c| Ipv4Addr::new(c[0], c[1], c[2], c[3])).collect()
    }

    /// An option with a number.
    pub fn number(&self, code: u8) -> Option<u32> {
        Some(u32::from_be_bytes(self.option(code)?.try_into().ok()?))
    }

    /// An option with a domain name; `None` when it is not a valid one, since it is written into a file.
    pub fn text(&self, code: u8) -> Option<String> {
        let bytes = self.option(code)?;
        let text = String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
        (!text.is_empty() && text.bytes().all(fits)).then_some(text)
    }

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SHORTEST_BYTES);
        // Operation, Ethernet, length of its addresses, hops.
        out.extend([if self.reply { 2 } else { 1 }, 1, 6, 0]);
        out.extend(self.transaction.to_be_bytes());
        out.extend([0, 0]);
        let flags = if self.client_address.is_unspecified() { BROADCAST } else { 0 };
        out.extend(flags.to_be_bytes());
        out.extend(self.client_address.octets());
        out.extend(self.your_address.octets());
        out.extend([0; 8]);
        out.extend(self.hardware_address);
        out.resize(FIELDS_BYTES, 0);
        out.extend(COOKIE);
        for (code, value) in &self.options {
            out.push(*code);
            out.push(value.len().min(255) as u8);
            out.extend(&value[..value.len().min(255)]);
        }
        out.push(255);
        out.resize(out.len().max(SHORTEST_BYTES), 0);
        out
    }

    /// From bytes; `None` when they are not a DHCP message for Ethernet.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let field = |at: usize| -> Option<[u8; 4]> { bytes.get(at..at + 4)?.try_into().ok() };
        if bytes.get(1..3)? != [1, 6] || field(FIELDS_BYTES)? != COOKIE {
            return None;
        }
        let mut options = Vec::new();
        let mut rest = bytes.get(FIELDS_BYTES + 4..)?;
        while let [code, after @ ..] = rest {
            match code {
                0 => rest = after,
                255 => break,
                _ => {
                    let (length, after) = after.split_first()?;
                    let (value, after) = after.split_at_checked(usize::from(*length))?;
                    options.push((*code, value.to_vec()));
                    rest = after;
                }
            }
        }
        Some(Self {
            reply: bytes[0] == 2,
            transaction: u32::from_be_bytes(field(4)?),
            client_address: field(12)?.into(),
            your_address: field(16)?.into(),
            hardware_address: bytes.get(28..34)?.try_into().ok()?,
            options,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_discover_as_servers_want_it() {
        let bytes = Message::discover(0x0102_0304, [2, 0, 0, 0, 0, 9], "node1").encode();
        assert!(bytes.len() >= 300);
        assert_eq!(bytes[..12], [1, 1, 6, 0, 1, 2, 3, 4, 0, 0, 0x80, 0]);
        assert_eq!(bytes[236..243], [99, 130, 83, 99, 53, 1, 1]);
        assert_eq!(bytes[243..250], *b"\x0c\x05node1");
    }

    #[test]
    fn an_invalid_name_stays_out_of_files() {
        let mut message = Message::discover(1, [0; 6], "");
        message.options.push((DOMAIN, b"demo\nnameserver 6.6.6.6".to_vec()));
        assert_eq!(message.text(DOMAIN), None);
    }

    proptest! {
        #[test]
        fn round_trips(transaction: u32, mac: [u8; 6], yours: [u8; 4], reply: bool,
                       options in proptest::collection::vec((1u8..255, proptest::collection::vec(any::<u8>(), 0..40)), 0..8)) {
            let message = Message {
                reply, transaction, client_address: Ipv4Addr::UNSPECIFIED, your_address: yours.into(),
                hardware_address: mac, options,
            };
            prop_assert_eq!(Message::decode(&message.encode()), Some(message));
        }
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Message::decode(&bytes);
            let mut made = Message::discover(1, [0; 6], "x").encode();
            made.truncate(240);
            made.extend(bytes);
            if let Some(message) = Message::decode(&made) {
                let _ = super::super::Lease::from_ack(&message);
            }
        }
    }
}
