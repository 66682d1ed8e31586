//! Expressions of a rule. Each is a name and attributes; data moves through 16-byte register 1 (and 2 for a port);
//! the parts of a looked-up key lie in 4-byte registers one behind the other.
//!
//! A match on an IP field needs to know that the packet is IP at all: in `inet` by `meta nfproto`, in `bridge` by the frame
//! type. The encoder adds that dependency once for each rule, as the `nft` program does.

use super::attributes::*;
use crate::netlink::Message;
use holdfast_model::net::Prefix;
use holdfast_plan::firewall::{Family, Field, Match, Rule, Verdict};
use libc::{
    NFT_CMP_EQ, NFT_CMP_NEQ, NFT_CT_DIRECTION, NFT_CT_STATE, NFT_CT_STATUS, NFT_META_IIFNAME, NFT_META_L4PROTO,
    NFT_META_NFPROTO, NFT_META_OIFNAME, NFT_META_PROTOCOL, NFT_PAYLOAD_LL_HEADER, NFT_PAYLOAD_NETWORK_HEADER,
    NFT_PAYLOAD_TRANSPORT_HEADER, NFT_REG_1, NFT_REG_2, NFT_REG_VERDICT,
};
use std::net::{IpAddr, Ipv4Addr};

/// `IPS_DST_NAT` of `nf_conntrack_common.h`.
const IPS_DST_NAT: u32 = 1 << 5;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Offsets in the IPv4 header (RFC 791).
const IPV4_SOURCE: u32 = 12;
const IPV4_DESTINATION: u32 = 16;
/// Offsets in the IPv6 header (RFC 8200).
const IPV6_SOURCE: u32 = 8;
const IPV6_DESTINATION: u32 = 24;
/// Offsets in the headers of TCP and UDP.
const SOURCE_PORT: u32 = 0;
const DESTINATION_PORT: u32 = 2;

/// Adds the list of expressions of a rule; one that counts does so with the counter of that name.
pub fn rule_expressions(m: &mut Message, family: Family, rule: &Rule, counter: Option<&str>) {
    let mut encoder = Encoder { m, family, ip_version: None, ether_type: None };
    for condition in &rule.matches {
        encoder.condition(condition);
    }
    if let Some(counter) = counter.filter(|_| rule.counted) {
        encoder.expression("objref", |m| {
            m.be32(NFTA_OBJREF_IMM_TYPE, NFT_OBJECT_COUNTER).text(NFTA_OBJREF_IMM_NAME, counter);
        });
    }
    encoder.verdict(&rule.verdict);
}

struct Encoder<'a> {
    m: &'a mut Message,
    family: Family,
    /// What earlier matches of the rule made sure of.
    ip_version: Option<u8>,
    ether_type: Option<u16>,
}

impl Encoder<'_> {
    fn expression(&mut self, name: &str, data: impl FnOnce(&mut Message)) {
        self.m.nest(NFTA_LIST_ELEM, |m| {
            m.text(NFTA_EXPR_NAME, name).nest(NFTA_EXPR_DATA, data);
        });
    }

    fn meta(&mut self, key: i32, register: i32) {
        self.expression("meta", |m| {
            m.be32(NFTA_META_DREG, register.cast_unsigned()).be32(NFTA_META_KEY, key.cast_unsigned());
        });
    }

    fn ct(&mut self, key: i32) {
        self.expression("ct", |m| {
            m.be32(NFTA_CT_DREG, NFT_REG_1.cast_unsigned()).be32(NFTA_CT_KEY, key.cast_unsigned());
        });
    }

    fn payload(&mut self, base: i32, offset: u32, len: u32, register: i32) {
        self.expression("payload", |m| {
            m.be32(NFTA_PAYLOAD_DREG, register.cast_unsigned())
                .be32(NFTA_PAYLOAD_BASE, base.cast_unsigned())
                .be32(NFTA_PAYLOAD_OFFSET, offset)
                .be32(NFTA_PAYLOAD_LEN, len);
        });
    }

    fn compare(&mut self, operator: i32, value: &[u8]) {
        self.expression("cmp", |m| {
            m.be32(NFTA_CMP_SREG, NFT_REG_1.cast_unsigned()).be32(NFTA_CMP_OP, operator.cast_unsigned()).nest(
                NFTA_CMP_DATA,
                |m| {
                    m.attr(NFTA_DATA_VALUE, value);
                },
            );
        });
    }

    fn mask(&mut self, mask: &[u8]) {
        self.expression("bitwise", |m| {
            m.be32(NFTA_BITWISE_SREG, NFT_REG_1.cast_unsigned())
                .be32(NFTA_BITWISE_DREG, NFT_REG_1.cast_unsigned())
                .be32(NFTA_BITWISE_LEN, mask.len() as u32)
                .nest(NFTA_BITWISE_MASK, |m| {
                    m.attr(NFTA_DATA_VALUE, mask);
                })
                .nest(NFTA_BITWISE_XOR, |m| {
                    m.attr(NFTA_DATA_VALUE, &vec![0; mask.len()]);
                });
        });
    }

    fn load_immediate(&mut self, register: i32, value: &[u8]) {
        self.expression("immediate", |m| {
            m.be32(NFTA_IMMEDIATE_DREG, register.cast_unsigned()).nest(NFTA_IMMEDIATE_DATA, |m| {
                m.attr(NFTA_DATA_VALUE, value);
            });
        });
    }

    fn interface(&mut self, key: i32, name: &str) {
        self.meta(key, NFT_REG_1);
        self.compare(NFT_CMP_EQ, &super::interface_name(name));
    }

    /// Loads the fields one behind the other and looks them up; the verdict of the element counts when `verdict`.
    fn lookup(&mut self, map: &str, fields: &[Field], flags: i32, verdict: bool) {
        if fields.iter().any(|f| matches!(f, Field::Source4 | Field::Destination4)) {
            self.require_ip(Ipv4Addr::UNSPECIFIED.into());
        }
        let mut next = 0;
        for field in fields {
            let register = register(next);
            next += match field {
                Field::Input | Field::Output => 4,
                _ => 1,
            };
            match field {
                Field::Input => self.meta(NFT_META_IIFNAME, register),
                Field::Output => self.meta(NFT_META_OIFNAME, register),
                Field::Source4 => self.payload(NFT_PAYLOAD_NETWORK_HEADER, IPV4_SOURCE, 4, register),
                Field::Destination4 => self.payload(NFT_PAYLOAD_NETWORK_HEADER, IPV4_DESTINATION, 4, register),
                Field::Protocol => self.meta(NFT_META_L4PROTO, register),
                Field::DestinationPort => self.payload(NFT_PAYLOAD_TRANSPORT_HEADER, DESTINATION_PORT, 2, register),
            }
        }
        self.expression("lookup", |m| {
            m.text(NFTA_LOOKUP_SET, map).be32(NFTA_LOOKUP_SREG, NFT_REG_1.cast_unsigned());
            if verdict {
                m.be32(NFTA_LOOKUP_DREG, NFT_REG_VERDICT.cast_unsigned());
            }
            if flags != 0 {
                m.be32(NFTA_LOOKUP_FLAGS, flags.cast_unsigned());
            }
        });
    }

    fn require_ip(&mut self, ip: IpAddr) {
        let (version, protocol, ether_type) = match ip {
            IpAddr::V4(_) => (4, libc::NFPROTO_IPV4 as u8, ETHERTYPE_IPV4),
            IpAddr::V6(_) => (6, libc::NFPROTO_IPV6 as u8, ETHERTYPE_IPV6),
        };
        if self.ip_version == Some(version) || self.ether_type == Some(ether_type) {
            return;
        }
        match self.family {
            Family::Inet => {
                self.meta(NFT_META_NFPROTO, NFT_REG_1);
                self.compare(NFT_CMP_EQ, &[protocol]);
            }
            Family::Bridge => {
                self.meta(NFT_META_PROTOCOL, NFT_REG_1);
                self.compare(NFT_CMP_EQ, &ether_type.to_be_bytes());
            }
        }
        self.ip_version = Some(version);
    }

    /// `v4` and `v6` are the offsets of the field in the two headers.
    fn prefix(&mut self, prefix: Prefix, v4: u32, v6: u32) {
        self.require_ip(prefix.address);
        let (offset, address) = match prefix.address {
            IpAddr::V4(a) => (v4, a.octets().to_vec()),
            IpAddr::V6(a) => (v6, a.octets().to_vec()),
        };
        let bits = address.len() * 8;
        self.payload(NFT_PAYLOAD_NETWORK_HEADER, offset, address.len() as u32, NFT_REG_1);
        let mask: Vec<u8> = (0..bits)
            .step_by(8)
            .map(|first| {
                let set = usize::from(prefix.length).saturating_sub(first).min(8);
                (0xff00_u16 >> set) as u8
            })
            .collect();
        if usize::from(prefix.length) < bits {
            self.mask(&mask);
        }
        let value: Vec<u8> = address.iter().zip(&mask).map(|(a, m)| a & m).collect();
        self.compare(NFT_CMP_EQ, &value);
    }

    fn condition(&mut self, condition: &Match) {
        match condition {
            Match::InputInterface(name) => self.interface(NFT_META_IIFNAME, name),
            Match::OutputInterface(name) => self.interface(NFT_META_OIFNAME, name),
            Match::Source(p) => self.prefix(*p, IPV4_SOURCE, IPV6_SOURCE),
            Match::Destination(p) => self.prefix(*p, IPV4_DESTINATION, IPV6_DESTINATION),
            Match::Protocol(number) => {
                self.meta(NFT_META_L4PROTO, NFT_REG_1);
                self.compare(NFT_CMP_EQ, &[*number]);
            }
            Match::SourcePort(port) => {
                self.payload(NFT_PAYLOAD_TRANSPORT_HEADER, SOURCE_PORT, 2, NFT_REG_1);
                self.compare(NFT_CMP_EQ, &port.to_be_bytes());
            }
            Match::DestinationPort(port) => {
                self.payload(NFT_PAYLOAD_TRANSPORT_HEADER, DESTINATION_PORT, 2, NFT_REG_1);
                self.compare(NFT_CMP_EQ, &port.to_be_bytes());
            }
            Match::IcmpType(kind) => {
                self.payload(NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1, NFT_REG_1);
                self.compare(NFT_CMP_EQ, &[*kind]);
            }
            Match::CtState(bits) => {
                self.ct(NFT_CT_STATE);
                self.mask(&bits.to_ne_bytes());
                self.compare(NFT_CMP_NEQ, &[0; 4]);
            }
            Match::CtOriginal => {
                self.ct(NFT_CT_DIRECTION);
                self.compare(NFT_CMP_EQ, &[0]);
            }
            Match::CtReply => {
                self.ct(NFT_CT_DIRECTION);
                self.compare(NFT_CMP_EQ, &[1]);
            }
            Match::CtDnat => {
                self.ct(NFT_CT_STATUS);
                self.mask(&IPS_DST_NAT.to_ne_bytes());
                self.compare(NFT_CMP_NEQ, &[0; 4]);
            }
            Match::EtherType(kind) => {
                self.payload(NFT_PAYLOAD_LL_HEADER, 12, 2, NFT_REG_1);
                self.compare(NFT_CMP_EQ, &kind.to_be_bytes());
                self.ether_type = Some(*kind);
            }
            Match::EtherSource(mac) => {
                self.payload(NFT_PAYLOAD_LL_HEADER, 6, 6, NFT_REG_1);
                self.compare(NFT_CMP_EQ, mac);
            }
            Match::EtherSourceNot(mac) => {
                self.payload(NFT_PAYLOAD_LL_HEADER, 6, 6, NFT_REG_1);
                self.compare(NFT_CMP_NEQ, mac);
            }
            // ARP for IPv4 over Ethernet: sender MAC at 8, sender address at 14 (RFC 826).
            Match::ArpSenderMac(mac) => {
                self.payload(NFT_PAYLOAD_NETWORK_HEADER, 8, 6, NFT_REG_1);
                self.compare(NFT_CMP_EQ, mac);
            }
            Match::ArpSenderIp(ip) => {
                self.payload(NFT_PAYLOAD_NETWORK_HEADER, 14, 4, NFT_REG_1);
                self.compare(NFT_CMP_EQ, &ip.octets());
            }
            Match::In(set, fields) => self.lookup(set, fields, 0, false),
            Match::NotIn(set, fields) => self.lookup(set, fields, libc::NFT_LOOKUP_F_INV, false),
            Match::Limit { rate, per_seconds, burst } => self.expression("limit", |m| {
                m.be64(NFTA_LIMIT_RATE, u64::from(*rate))
                    .be64(NFTA_LIMIT_UNIT, *per_seconds)
                    .be32(NFTA_LIMIT_BURST, *burst)
                    .be32(NFTA_LIMIT_TYPE, libc::NFT_LIMIT_PKTS.cast_unsigned())
                    // No flags: true up to the rate, not above it.
                    .be32(NFTA_LIMIT_FLAGS, 0);
            }),
        }
    }

    fn verdict(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Drop => self.verdict_code(libc::NF_DROP, None),
            Verdict::Accept => self.verdict_code(libc::NF_ACCEPT, None),
            Verdict::Jump(chain) => self.verdict_code(libc::NFT_JUMP, Some(chain)),
            Verdict::Goto(chain) => self.verdict_code(libc::NFT_GOTO, Some(chain)),
            Verdict::Return => self.verdict_code(libc::NFT_RETURN, None),
            Verdict::Map(map, fields) => self.lookup(map, fields, 0, true),
            Verdict::Masquerade => self.expression("masq", |_| {}),
            Verdict::Dnat { address, port } => {
                self.load_immediate(NFT_REG_1, &address.octets());
                self.load_immediate(NFT_REG_2, &port.to_be_bytes());
                self.expression("nat", |m| {
                    m.be32(NFTA_NAT_TYPE, libc::NFT_NAT_DNAT.cast_unsigned())
                        .be32(NFTA_NAT_FAMILY, libc::NFPROTO_IPV4 as u32)
                        .be32(NFTA_NAT_REG_ADDR_MIN, NFT_REG_1.cast_unsigned())
                        .be32(NFTA_NAT_REG_PROTO_MIN, NFT_REG_2.cast_unsigned());
                });
            }
        }
    }

    fn verdict_code(&mut self, code: i32, chain: Option<&str>) {
        self.expression("immediate", |m| {
            m.be32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT.cast_unsigned()).nest(NFTA_IMMEDIATE_DATA, |m| {
                verdict_data(m, code, chain);
            });
        });
    }
}

/// Adds a verdict, in a rule or as the data of an element.
pub fn verdict_data(m: &mut Message, code: i32, chain: Option<&str>) {
    m.nest(NFTA_DATA_VERDICT, |m| {
        m.be32(NFTA_VERDICT_CODE, code.cast_unsigned());
        if let Some(chain) = chain {
            m.text(NFTA_VERDICT_CHAIN, chain);
        }
    });
}

/// The register that begins with the given 4-byte one; where a 16-byte one begins there, by its own name.
fn register(index: i32) -> i32 {
    if index % 4 == 0 { NFT_REG_1 + index / 4 } else { libc::NFT_REG32_00 + index }
}
