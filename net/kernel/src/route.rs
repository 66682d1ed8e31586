//! Routes and routing rules (`RTM_*ROUTE`, `RTM_*RULE`).

use crate::PROTOCOL;
use crate::address::{address, family_and_bytes};
use crate::netlink::{Message, Netlink, NetlinkError, attributes, number, string, tolerate};
use holdfast_model::net::Prefix;
use holdfast_plan::item::PolicyRule;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_TABLE: u16 = 15;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_PROTOCOL: u16 = 21;
const TO_TABLE: u8 = 1;

/// A route in the kernel's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelRoute {
    /// Table.
    pub table: u32,
    /// Destination.
    pub destination: Prefix,
    /// Lower wins.
    pub metric: u32,
    /// Output interface index.
    pub output: Option<u32>,
    /// Router.
    pub router: Option<IpAddr>,
    /// Source address to prefer.
    pub source: Option<IpAddr>,
    /// Senders are told that it leads nowhere.
    pub unreachable: bool,
    /// Made by this program.
    pub ours: bool,
}

/// Reads an `RTM_NEWROUTE` body.
#[must_use]
pub fn parse(body: &[u8]) -> Option<KernelRoute> {
    // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags u32.
    let family = i32::from(*body.first()?);
    let any = match family {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut route = KernelRoute {
        table: u32::from(*body.get(4)?),
        destination: Prefix { address: any, length: *body.get(1)? },
        metric: 0,
        output: None,
        router: None,
        source: None,
        unreachable: *body.get(7)? == libc::RTN_UNREACHABLE,
        ours: *body.get(5)? == PROTOCOL,
    };
    for (kind, value) in attributes(body.get(12..)?) {
        match kind {
            RTA_DST => route.destination.address = address(value)?,
            RTA_OIF => route.output = number(value),
            RTA_GATEWAY => route.router = address(value),
            RTA_PRIORITY => route.metric = number(value)?,
            RTA_PREFSRC => route.source = address(value),
            RTA_TABLE => route.table = number(value)?,
            _ => {}
        }
    }
    Some(route)
}

fn message(kind: u16, flags: i32, route: &KernelRoute) -> Message {
    let (family, destination) = family_and_bytes(route.destination.address);
    let scope = if kind == libc::RTM_DELROUTE {
        // Whatever scope it has: the kernel compares unless this is given.
        libc::RT_SCOPE_NOWHERE
    } else if route.router.is_some() || route.unreachable {
        libc::RT_SCOPE_UNIVERSE
    } else {
        libc::RT_SCOPE_LINK
    };
    let header = [
        family,
        route.destination.length,
        0,
        0,
        libc::RT_TABLE_UNSPEC,
        PROTOCOL,
        scope,
        if route.unreachable { libc::RTN_UNREACHABLE } else { libc::RTN_UNICAST },
        0,
        0,
        0,
        0,
    ];
    let mut m = Message::new(kind, flags, &header);
    m.u32(RTA_TABLE, route.table).u32(RTA_PRIORITY, route.metric);
    if route.destination.length > 0 {
        m.attr(RTA_DST, &destination);
    }
    if let Some(output) = route.output {
        m.u32(RTA_OIF, output);
    }
    if let Some(router) = route.router {
        m.attr(RTA_GATEWAY, &family_and_bytes(router).1);
    }
    if let Some(source) = route.source {
        m.attr(RTA_PREFSRC, &family_and_bytes(source).1);
    }
    m
}

/// Reads an `RTM_NEWRULE` body; `None` unless it is one of ours.
#[must_use]
pub fn parse_rule(body: &[u8]) -> Option<PolicyRule> {
    // struct fib_rule_hdr: family, dst_len, src_len, tos, table, res, res, action, flags u32.
    let mut rule =
        PolicyRule { priority: 0, input: String::new(), table: u32::from(*body.get(4)?), suppress_prefix_length: None };
    let mut ours = false;
    for (kind, value) in attributes(body.get(12..)?) {
        match kind {
            FRA_IIFNAME => rule.input = string(value),
            FRA_PRIORITY => rule.priority = number(value)?,
            FRA_TABLE => rule.table = number(value)?,
            FRA_SUPPRESS_PREFIXLEN => {
                rule.suppress_prefix_length = number(value).filter(|n| *n != u32::MAX);
            }
            FRA_PROTOCOL => ours = number(value) == Some(u32::from(PROTOCOL)),
            _ => {}
        }
    }
    ours.then_some(rule)
}

fn rule_message(kind: u16, flags: i32, rule: &PolicyRule) -> Message {
    let mut header = [0; 12];
    header[0] = libc::AF_INET as u8;
    header[7] = TO_TABLE;
    let mut m = Message::new(kind, flags, &header);
    m.text(FRA_IIFNAME, &rule.input)
        .u32(FRA_PRIORITY, rule.priority)
        .u32(FRA_TABLE, rule.table)
        .attr(FRA_PROTOCOL, &[PROTOCOL]);
    if let Some(length) = rule.suppress_prefix_length {
        m.u32(FRA_SUPPRESS_PREFIXLEN, length);
    }
    m
}

impl Netlink {
    /// All IPv4 and IPv6 routes of all tables.
    pub fn routes(&mut self) -> Result<Vec<KernelRoute>, NetlinkError> {
        let m = Message::new(libc::RTM_GETROUTE, 0, &[0; 12]);
        let answers = self.dump("list routes", m)?;
        Ok(answers.iter().filter_map(|a| parse(&a.body)).collect())
    }

    /// Adds or replaces a route.
    pub fn add_route(&mut self, route: &KernelRoute) -> Result<(), NetlinkError> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let m = message(libc::RTM_NEWROUTE, flags, route);
        self.request(&format!("add route {}", route.destination), m)
    }

    /// Removes a route; one that is gone already is no error.
    pub fn delete_route(&mut self, route: &KernelRoute) -> Result<(), NetlinkError> {
        let m = message(libc::RTM_DELROUTE, 0, route);
        tolerate(self.request(&format!("remove route {}", route.destination), m), &[libc::ESRCH, libc::ENODEV])
    }

    /// Routing rules made by this program.
    pub fn rules(&mut self) -> Result<Vec<PolicyRule>, NetlinkError> {
        let mut header = [0; 12];
        header[0] = libc::AF_INET as u8;
        let m = Message::new(libc::RTM_GETRULE, 0, &header);
        let answers = self.dump("list routing rules", m)?;
        Ok(answers.iter().filter_map(|a| parse_rule(&a.body)).collect())
    }

    /// Adds a rule; one that is there already is no error.
    pub fn add_rule(&mut self, rule: &PolicyRule) -> Result<(), NetlinkError> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let m = rule_message(libc::RTM_NEWRULE, flags, rule);
        tolerate(self.request(&format!("add routing rule {}", rule.priority), m), &[libc::EEXIST])
    }

    /// Removes a rule; one that is gone already is no error.
    pub fn delete_rule(&mut self, rule: &PolicyRule) -> Result<(), NetlinkError> {
        let m = rule_message(libc::RTM_DELRULE, 0, rule);
        tolerate(self.request(&format!("remove routing rule {}", rule.priority), m), &[libc::ENOENT])
    }
}
