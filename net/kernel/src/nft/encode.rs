//! Expressions of a rule. Each is a name and attributes; data moves through 16-byte register 1 (and 2 for a port).
//!
//! A match on an IP field needs to know that the packet is IP at all: in `inet` by `meta nfproto`, in `bridge` by the frame
//! type. The encoder adds that dependency once for each rule, as the `nft` program does.

use crate::netlink::Message;
use holdfast_model::net::Prefix;
use holdfast_plan::firewall::{Family, Match, Rule, Verdict};
use std::net::IpAddr;

const LIST_ELEM: u16 = 1;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const REG_VERDICT: u32 = 0;
const REG_1: u32 = 1;
const REG_2: u32 = 2;
const EQ: u32 = 0;
const NEQ: u32 = 1;
const META_PROTOCOL: u32 = 1;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const LINK: u32 = 0;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
const CT_STATE: u32 = 0;
const CT_DIRECTION: u32 = 1;
const CT_STATUS: u32 = 2;
/// `IPS_DST_NAT` of `nf_conntrack_common.h`.
const STATUS_DNAT: u32 = 1 << 5;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Adds the list of expressions of a rule.
pub fn rule_expressions(m: &mut Message, family: Family, rule: &Rule) {
    let mut encoder = Encoder { m, family, ip_version: None, ether_type: None };
    for condition in &rule.matches {
        encoder.condition(condition);
    }
    if rule.counter {
        encoder.expression("counter", |_| {});
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
        self.m.nest(LIST_ELEM, |m| {
            m.text(EXPR_NAME, name).nest(EXPR_DATA, data);
        });
    }

    fn meta(&mut self, key: u32) {
        self.expression("meta", |m| {
            m.be32(1, REG_1).be32(2, key);
        });
    }

    fn ct(&mut self, key: u32) {
        self.expression("ct", |m| {
            m.be32(1, REG_1).be32(2, key);
        });
    }

    fn payload(&mut self, base: u32, offset: u32, len: u32) {
        self.expression("payload", |m| {
            m.be32(1, REG_1).be32(2, base).be32(3, offset).be32(4, len);
        });
    }

    fn compare(&mut self, operator: u32, value: &[u8]) {
        self.expression("cmp", |m| {
            m.be32(1, REG_1).be32(2, operator).nest(3, |m| {
                m.attr(DATA_VALUE, value);
            });
        });
    }

    fn mask(&mut self, mask: &[u8]) {
        self.expression("bitwise", |m| {
            m.be32(1, REG_1)
                .be32(2, REG_1)
                .be32(3, mask.len() as u32)
                .nest(4, |m| {
                    m.attr(DATA_VALUE, mask);
                })
                .nest(5, |m| {
                    m.attr(DATA_VALUE, &vec![0; mask.len()]);
                });
        });
    }

    fn load_immediate(&mut self, register: u32, value: &[u8]) {
        self.expression("immediate", |m| {
            m.be32(1, register).nest(2, |m| {
                m.attr(DATA_VALUE, value);
            });
        });
    }

    fn interface(&mut self, key: u32, name: &str) {
        let mut value = [0; 16];
        let len = name.len().min(15);
        value[..len].copy_from_slice(&name.as_bytes()[..len]);
        self.meta(key);
        self.compare(EQ, &value);
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
                self.meta(META_NFPROTO);
                self.compare(EQ, &[protocol]);
            }
            Family::Bridge => {
                self.meta(META_PROTOCOL);
                self.compare(EQ, &ether_type.to_be_bytes());
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
        self.payload(NETWORK, offset, address.len() as u32);
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
        self.compare(EQ, &value);
    }

    fn condition(&mut self, condition: &Match) {
        match condition {
            Match::InputInterface(name) => self.interface(META_IIFNAME, name),
            Match::OutputInterface(name) => self.interface(META_OIFNAME, name),
            Match::Source(p) => self.prefix(*p, 12, 8),
            Match::Destination(p) => self.prefix(*p, 16, 24),
            Match::Protocol(number) => {
                self.meta(META_L4PROTO);
                self.compare(EQ, &[*number]);
            }
            Match::SourcePort(port) => {
                self.payload(TRANSPORT, 0, 2);
                self.compare(EQ, &port.to_be_bytes());
            }
            Match::DestinationPort(port) => {
                self.payload(TRANSPORT, 2, 2);
                self.compare(EQ, &port.to_be_bytes());
            }
            Match::IcmpType(kind) => {
                self.payload(TRANSPORT, 0, 1);
                self.compare(EQ, &[*kind]);
            }
            Match::CtState(bits) => {
                self.ct(CT_STATE);
                self.mask(&bits.to_ne_bytes());
                self.compare(NEQ, &[0; 4]);
            }
            Match::CtOriginal => {
                self.ct(CT_DIRECTION);
                self.compare(EQ, &[0]);
            }
            Match::CtReply => {
                self.ct(CT_DIRECTION);
                self.compare(EQ, &[1]);
            }
            Match::CtDnat => {
                self.ct(CT_STATUS);
                self.mask(&STATUS_DNAT.to_ne_bytes());
                self.compare(NEQ, &[0; 4]);
            }
            Match::EtherType(kind) => {
                self.payload(LINK, 12, 2);
                self.compare(EQ, &kind.to_be_bytes());
                self.ether_type = Some(*kind);
            }
            Match::EtherSource(mac) => {
                self.payload(LINK, 6, 6);
                self.compare(EQ, mac);
            }
            Match::EtherSourceNot(mac) => {
                self.payload(LINK, 6, 6);
                self.compare(NEQ, mac);
            }
            // ARP for IPv4 over Ethernet: sender MAC at 8, sender address at 14 (RFC 826).
            Match::ArpSenderMac(mac) => {
                self.payload(NETWORK, 8, 6);
                self.compare(EQ, mac);
            }
            Match::ArpSenderIp(ip) => {
                self.payload(NETWORK, 14, 4);
                self.compare(EQ, &ip.octets());
            }
            Match::Limit { rate, per_seconds, burst } => self.expression("limit", |m| {
                // rate, unit, burst, type (0 = packets), flags (0 = up to the rate).
                m.be64(1, u64::from(*rate)).be64(2, *per_seconds).be32(3, *burst).be32(4, 0).be32(5, 0);
            }),
        }
    }

    fn verdict(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Drop => self.verdict_code(0, None),
            Verdict::Accept => self.verdict_code(1, None),
            Verdict::Jump(chain) => self.verdict_code(-3, Some(chain)),
            Verdict::Goto(chain) => self.verdict_code(-4, Some(chain)),
            Verdict::Return => self.verdict_code(-5, None),
            Verdict::Masquerade => self.expression("masq", |_| {}),
            Verdict::Dnat { address, port } => {
                self.load_immediate(REG_1, &address.octets());
                self.load_immediate(REG_2, &port.to_be_bytes());
                self.expression("nat", |m| {
                    // type (1 = destination), family, address register, port register.
                    m.be32(1, 1).be32(2, libc::NFPROTO_IPV4 as u32).be32(3, REG_1).be32(5, REG_2);
                });
            }
        }
    }

    fn verdict_code(&mut self, code: i32, chain: Option<&str>) {
        self.expression("immediate", |m| {
            m.be32(1, REG_VERDICT).nest(2, |m| {
                m.nest(DATA_VERDICT, |m| {
                    m.be32(VERDICT_CODE, code.cast_unsigned());
                    if let Some(chain) = chain {
                        m.text(VERDICT_CHAIN, chain);
                    }
                });
            });
        });
    }
}
