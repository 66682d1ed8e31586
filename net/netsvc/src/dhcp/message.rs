//! The DHCP message (RFC 2131 §2) and its options (RFC 2132, RFC 3396, RFC 3442).
//!
//! | offset | field | | offset | field |
//! |--|--|--|--|--|
//! | 0 | op | | 20 | siaddr |
//! | 1 | htype, hlen, hops | | 24 | giaddr |
//! | 4 | xid | | 28 | chaddr (16) |
//! | 8 | secs, flags | | 44 | sname (64) |
//! | 12 | ciaddr | | 108 | file (128) |
//! | 16 | yiaddr | | 236 | magic cookie, options |

use holdfast_model::contract::network::{Mac, StaticRoute};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use thiserror::Error;

/// Why a packet is no DHCP message.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ParseError {
    /// Shorter than the fixed part.
    #[error("DHCP message of {0} bytes, expected at least 240")]
    Short(usize),
    /// Not Ethernet.
    #[error("hardware type {0} length {1}, expected 1 and 6")]
    Hardware(u8, u8),
    /// Not DHCP but BOOTP or anything.
    #[error("magic cookie {0:08x}, expected 63825363")]
    Cookie(u32),
    /// An option runs beyond the end.
    #[error("option {0} is truncated")]
    Option(u8),
    /// No or an unknown type.
    #[error("message type {0:?}, expected 1..=8")]
    Type(Option<u8>),
}

/// Option 53.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum MessageType {
    /// Client looks for servers.
    Discover = 1,
    /// Server proposes.
    Offer = 2,
    /// Client asks.
    Request = 3,
    /// Client found the address in use.
    Decline = 4,
    /// Server confirms.
    Ack = 5,
    /// Server refuses.
    Nak = 6,
    /// Client gives back.
    Release = 7,
    /// Client with an address of its own wants parameters.
    Inform = 8,
}

impl MessageType {
    fn from_number(n: u8) -> Option<Self> {
        use MessageType::{Ack, Decline, Discover, Inform, Nak, Offer, Release, Request};
        [Discover, Offer, Request, Decline, Ack, Nak, Release, Inform].into_iter().find(|t| *t as u8 == n)
    }
}

/// Option numbers.
pub mod option {
    #![allow(missing_docs)] // Named as in RFC 2132.
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const DOMAIN: u8 = 15;
    pub const MTU: u8 = 26;
    pub const BROADCAST: u8 = 28;
    pub const NTP: u8 = 42;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER_ID: u8 = 54;
    pub const PARAMETERS: u8 = 55;
    pub const MESSAGE_TEXT: u8 = 56;
    pub const MAX_SIZE: u8 = 57;
    pub const RENEWAL_TIME: u8 = 58;
    pub const REBINDING_TIME: u8 = 59;
    pub const CLIENT_ID: u8 = 61;
    pub const ROUTES: u8 = 121;
}

const COOKIE: u32 = 0x6382_5363;
const FIXED: usize = 240;
/// Smallest message that old relays pass on (RFC 1542 §2.1).
const MINIMUM: usize = 300;

/// A DHCP message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// From a server (op 2), else from a client (op 1).
    pub reply: bool,
    /// Type.
    pub kind: MessageType,
    /// Transaction id.
    pub xid: u32,
    /// Seconds since the client began.
    pub secs: u16,
    /// The client cannot take unicast yet.
    pub broadcast: bool,
    /// Address the client has.
    pub ciaddr: Ipv4Addr,
    /// Address the client gets.
    pub yiaddr: Ipv4Addr,
    /// Next server.
    pub siaddr: Ipv4Addr,
    /// Relay.
    pub giaddr: Ipv4Addr,
    /// Client's MAC.
    pub mac: Mac,
    /// Options by number, pieces of one option joined (RFC 3396); without the type.
    pub options: BTreeMap<u8, Vec<u8>>,
}

impl Message {
    /// A client's message without options.
    #[must_use]
    pub fn request(kind: MessageType, xid: u32, mac: Mac) -> Self {
        Self {
            reply: false,
            kind,
            xid,
            secs: 0,
            broadcast: false,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            siaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: Ipv4Addr::UNSPECIFIED,
            mac,
            options: BTreeMap::new(),
        }
    }

    /// A server's answer to this message, without options.
    #[must_use]
    pub fn answer(&self, kind: MessageType) -> Self {
        Self {
            reply: true,
            kind,
            secs: 0,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            siaddr: Ipv4Addr::UNSPECIFIED,
            options: BTreeMap::new(),
            ..self.clone()
        }
    }

    /// Reads a UDP payload.
    pub fn parse(data: &[u8]) -> Result<Self, ParseError> {
        let (fixed, tail) = data.split_at_checked(FIXED).ok_or(ParseError::Short(data.len()))?;
        let u32_at = |i: usize| u32::from_be_bytes([fixed[i], fixed[i + 1], fixed[i + 2], fixed[i + 3]]);
        let ip_at = |i: usize| Ipv4Addr::from(u32_at(i));
        if fixed[1] != 1 || fixed[2] != 6 {
            return Err(ParseError::Hardware(fixed[1], fixed[2]));
        }
        if u32_at(236) != COOKIE {
            return Err(ParseError::Cookie(u32_at(236)));
        }
        let mut options = BTreeMap::new();
        read_options(tail, &mut options)?;
        // RFC 2132 §9.3: 1 = file holds options too, 2 = sname, 3 = both.
        let overload = match options.get(&option::OVERLOAD).map(Vec::as_slice) {
            Some([n]) => *n,
            _ => 0,
        };
        if overload & 1 != 0 {
            read_options(&fixed[108..236], &mut options)?;
        }
        if overload & 2 != 0 {
            read_options(&fixed[44..108], &mut options)?;
        }
        options.remove(&option::OVERLOAD);
        let kind = match options.remove(&option::MESSAGE_TYPE).as_deref() {
            Some([n]) => MessageType::from_number(*n).ok_or(ParseError::Type(Some(*n)))?,
            _ => return Err(ParseError::Type(None)),
        };
        Ok(Self {
            reply: fixed[0] == 2,
            kind,
            xid: u32_at(4),
            secs: u16::from_be_bytes([fixed[8], fixed[9]]),
            broadcast: fixed[10] & 0x80 != 0,
            ciaddr: ip_at(12),
            yiaddr: ip_at(16),
            siaddr: ip_at(20),
            giaddr: ip_at(24),
            mac: [fixed[28], fixed[29], fixed[30], fixed[31], fixed[32], fixed[33]],
            options,
        })
    }

    /// Bytes of a UDP payload.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0_u8; FIXED];
        out[0] = if self.reply { 2 } else { 1 };
        out[1] = 1;
        out[2] = 6;
        out[4..8].copy_from_slice(&self.xid.to_be_bytes());
        out[8..10].copy_from_slice(&self.secs.to_be_bytes());
        out[10] = if self.broadcast { 0x80 } else { 0 };
        out[12..16].copy_from_slice(&self.ciaddr.octets());
        out[16..20].copy_from_slice(&self.yiaddr.octets());
        out[20..24].copy_from_slice(&self.siaddr.octets());
        out[24..28].copy_from_slice(&self.giaddr.octets());
        out[28..34].copy_from_slice(&self.mac);
        out[236..240].copy_from_slice(&COOKIE.to_be_bytes());
        out.extend_from_slice(&[option::MESSAGE_TYPE, 1, self.kind as u8]);
        for (&number, value) in &self.options {
            if value.is_empty() {
                out.extend_from_slice(&[number, 0]);
            }
            for piece in value.chunks(255) {
                out.push(number);
                out.push(piece.len() as u8);
                out.extend_from_slice(piece);
            }
        }
        out.push(255);
        out.resize(out.len().max(MINIMUM), 0);
        out
    }

    /// Sets an option to bytes.
    pub fn set(&mut self, number: u8, value: impl Into<Vec<u8>>) -> &mut Self {
        self.options.insert(number, value.into());
        self
    }

    /// Sets an option to addresses.
    pub fn set_addresses(&mut self, number: u8, addresses: &[Ipv4Addr]) -> &mut Self {
        self.set(number, addresses.iter().flat_map(Ipv4Addr::octets).collect::<Vec<u8>>())
    }

    /// First address of an option.
    #[must_use]
    pub fn address(&self, number: u8) -> Option<Ipv4Addr> {
        self.addresses(number).first().copied()
    }

    /// Addresses of an option; at most 16.
    #[must_use]
    pub fn addresses(&self, number: u8) -> Vec<Ipv4Addr> {
        let bytes = self.options.get(&number).map_or(&[][..], Vec::as_slice);
        let (all, _) = bytes.as_chunks::<4>();
        all.iter().take(16).map(|c| Ipv4Addr::from(*c)).collect()
    }

    /// A 32-bit option.
    #[must_use]
    pub fn number(&self, number: u8) -> Option<u32> {
        let bytes = self.options.get(&number)?;
        Some(u32::from_be_bytes(bytes.as_slice().try_into().ok()?))
    }

    /// A text option: printable ASCII without spaces, else nothing; a stranger wrote it.
    #[must_use]
    pub fn text(&self, number: u8) -> String {
        let bytes = self.options.get(&number).map_or(&[][..], Vec::as_slice);
        let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
        if bytes.len() <= 253 && bytes.iter().all(u8::is_ascii_graphic) {
            bytes.iter().map(|b| char::from(*b)).collect()
        } else {
            String::new()
        }
    }

    /// Classless static routes (RFC 3442); at most 64, nothing when malformed.
    #[must_use]
    pub fn routes(&self) -> Vec<StaticRoute> {
        let mut rest = self.options.get(&option::ROUTES).map_or(&[][..], Vec::as_slice);
        let mut routes = Vec::new();
        while let Some((&prefix_length, tail)) = rest.split_first() {
            let significant = usize::from(prefix_length).div_ceil(8);
            if prefix_length > 32 || routes.len() == 64 {
                return Vec::new();
            }
            let (Some(net), Some(router)) = (tail.get(..significant), tail.get(significant..significant + 4)) else {
                return Vec::new();
            };
            let mut destination = [0; 4];
            destination[..significant].copy_from_slice(net);
            routes.push(StaticRoute {
                destination: destination.into(),
                prefix_length,
                router: Ipv4Addr::new(router[0], router[1], router[2], router[3]),
            });
            rest = &tail[significant + 4..];
        }
        routes
    }

    /// Sets the classless static routes.
    pub fn set_routes(&mut self, routes: &[StaticRoute]) -> &mut Self {
        let mut bytes = Vec::new();
        for r in routes.iter().filter(|r| r.prefix_length <= 32) {
            bytes.push(r.prefix_length);
            let significant = usize::from(r.prefix_length).div_ceil(8);
            bytes.extend_from_slice(&r.destination.octets()[..significant]);
            bytes.extend_from_slice(&r.router.octets());
        }
        self.set(option::ROUTES, bytes)
    }
}

fn read_options(mut data: &[u8], into: &mut BTreeMap<u8, Vec<u8>>) -> Result<(), ParseError> {
    while let Some((&number, rest)) = data.split_first() {
        data = rest;
        match number {
            0 => continue,
            255 => break,
            _ => {}
        }
        let (&len, rest) = data.split_first().ok_or(ParseError::Option(number))?;
        let (value, rest) = rest.split_at_checked(usize::from(len)).ok_or(ParseError::Option(number))?;
        into.entry(number).or_default().extend_from_slice(value);
        data = rest;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A DISCOVER as busybox udhcpc sends it, cut to what matters.
    fn discover() -> Vec<u8> {
        let mut d = vec![0; 240];
        d[..4].copy_from_slice(&[1, 1, 6, 0]);
        d[4..8].copy_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
        d[28..34].copy_from_slice(&[2, 0, 0, 0, 0, 7]);
        d[236..240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
        d.extend([53, 1, 1, 61, 7, 1, 2, 0, 0, 0, 0, 7, 12, 3, b'a', b'b', b'c', 255]);
        d
    }

    #[test]
    fn discover_is_read() {
        let m = Message::parse(&discover()).expect("valid");
        assert_eq!((m.kind, m.xid, m.reply), (MessageType::Discover, 0xdead_beef, false));
        assert_eq!(m.mac, [2, 0, 0, 0, 0, 7]);
        assert_eq!(m.text(option::HOST_NAME), "abc");
    }

    #[test]
    fn options_in_file_and_sname_are_read_when_overloaded() {
        let mut d = discover();
        d.truncate(240);
        d.extend([53, 1, 2, 52, 1, 3, 255]);
        d[108..114].copy_from_slice(&[3, 4, 10, 0, 0, 1]);
        d[114] = 255;
        d[44..50].copy_from_slice(&[6, 4, 10, 0, 0, 2]);
        let m = Message::parse(&d).expect("valid");
        assert_eq!(m.address(option::ROUTER), Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(m.address(option::DNS), Some(Ipv4Addr::new(10, 0, 0, 2)));
    }

    #[test]
    fn damaged_messages_are_refused_with_the_reason() {
        assert_eq!(Message::parse(&[0; 10]), Err(ParseError::Short(10)));
        let mut d = discover();
        d[1] = 6;
        assert_eq!(Message::parse(&d), Err(ParseError::Hardware(6, 6)));
        let mut d = discover();
        d[236] = 0;
        assert!(matches!(Message::parse(&d), Err(ParseError::Cookie(_))));
        let mut d = discover();
        d.truncate(d.len() - 2);
        assert_eq!(Message::parse(&d), Err(ParseError::Option(12)));
        d.truncate(240);
        assert_eq!(Message::parse(&d), Err(ParseError::Type(None)));
    }

    #[test]
    fn names_with_control_characters_are_nothing() {
        let mut m = Message::parse(&discover()).expect("valid");
        m.set(option::HOST_NAME, *b"a\nb");
        assert_eq!(m.text(option::HOST_NAME), "");
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(data in proptest::collection::vec(any::<u8>(), 0..700)) {
            crate::dhcp::fuzz_dhcp(&data);
            let mut framed = discover();
            framed.truncate(240);
            framed.extend(data);
            crate::dhcp::fuzz_dhcp(&framed);
        }

        #[test]
        fn encoding_and_parsing_are_inverse(
            xid in any::<u32>(), secs in any::<u16>(), broadcast in any::<bool>(), reply in any::<bool>(),
            ip in any::<u32>(), mac in any::<[u8; 6]>(), kind in 1..9_u8,
            options in proptest::collection::btree_map(60..250_u8, proptest::collection::vec(any::<u8>(), 0..600), 0..5),
        ) {
            let mut m = Message::request(MessageType::from_number(kind).expect("in range"), xid, mac);
            m.secs = secs;
            m.broadcast = broadcast;
            m.reply = reply;
            m.yiaddr = ip.into();
            m.options = options;
            prop_assert_eq!(Message::parse(&m.encode()), Ok(m));
        }

        #[test]
        fn routes_survive(list in proptest::collection::vec((any::<u32>(), 0..33_u8, any::<u32>()), 0..20)) {
            let routes: Vec<StaticRoute> = list.into_iter().map(|(net, prefix_length, router)| StaticRoute {
                destination: (net & u32::MAX.checked_shl(32 - u32::from(prefix_length)).unwrap_or(0)).into(),
                prefix_length,
                router: router.into(),
            }).collect();
            let mut m = Message::request(MessageType::Ack, 1, [0; 6]);
            m.set_routes(&routes);
            prop_assert_eq!(m.routes(), routes);
        }
    }
}
