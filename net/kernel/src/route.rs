//! Routes and routing rules (`RTM_*ROUTE`, `RTM_*RULE`).

use crate::PROTOCOL;
use crate::error::{NetlinkError, tolerate};
use crate::rtnl::{self, Rtnl};
use holdfast_model::net::Prefix;
use holdfast_plan::kinds::PolicyRule;
use rtnetlink::IpVersion;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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

impl KernelRoute {
    /// Reads an `RTM_NEWROUTE` message; `None` when it is of neither IP version.
    #[must_use]
    pub fn read(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let any = match header.address_family {
            AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => return None,
        };
        let mut route = Self {
            table: u32::from(header.table),
            destination: Prefix { address: any, length: header.destination_prefix_length },
            metric: 0,
            output: None,
            router: None,
            source: None,
            unreachable: header.kind == RouteType::Unreachable,
            ours: u8::from(header.protocol) == PROTOCOL,
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(a) => route.destination.address = ip(a)?,
                RouteAttribute::Oif(index) => route.output = Some(*index),
                RouteAttribute::Gateway(a) => route.router = ip(a),
                RouteAttribute::Priority(metric) => route.metric = *metric,
                RouteAttribute::PrefSource(a) => route.source = ip(a),
                RouteAttribute::Table(table) => route.table = *table,
                _ => {}
            }
        }
        Some(route)
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: match self.destination.address {
                IpAddr::V4(_) => AddressFamily::Inet,
                IpAddr::V6(_) => AddressFamily::Inet6,
            },
            destination_prefix_length: self.destination.length,
            // Tables above 255 do not fit into the header: always the attribute.
            table: RouteHeader::RT_TABLE_UNSPEC,
            protocol: PROTOCOL.into(),
            scope: if self.router.is_some() || self.unreachable { RouteScope::Universe } else { RouteScope::Link },
            kind: if self.unreachable { RouteType::Unreachable } else { RouteType::Unicast },
            ..RouteHeader::default()
        };
        let attributes = &mut message.attributes;
        attributes.extend([RouteAttribute::Table(self.table), RouteAttribute::Priority(self.metric)]);
        if self.destination.length > 0 {
            attributes.push(RouteAttribute::Destination(self.destination.address.into()));
        }
        attributes.extend(self.output.map(RouteAttribute::Oif));
        attributes.extend(self.router.map(|a| RouteAttribute::Gateway(a.into())));
        attributes.extend(self.source.map(|a| RouteAttribute::PrefSource(a.into())));
        message
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some(IpAddr::V4(*a)),
        RouteAddress::Inet6(a) => Some(IpAddr::V6(*a)),
        _ => None,
    }
}

/// Reads an `RTM_NEWRULE` message; `None` unless it is one of ours.
#[must_use]
pub fn read_rule(message: &RuleMessage) -> Option<PolicyRule> {
    let table = u32::from(message.header.table);
    let mut rule = PolicyRule { priority: 0, input: String::new(), table, suppress_prefix_length: None };
    let mut ours = false;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Iifname(name) => rule.input.clone_from(name),
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = *table,
            // All ones: nothing is suppressed.
            RuleAttribute::SuppressPrefixLen(n) => rule.suppress_prefix_length = Some(*n).filter(|n| *n != u32::MAX),
            RuleAttribute::Protocol(protocol) => ours = u8::from(*protocol) == PROTOCOL,
            _ => {}
        }
    }
    ours.then_some(rule)
}

/// Gives a request the content of a rule.
fn fill_rule(message: &mut RuleMessage, rule: &PolicyRule) {
    message.header.family = AddressFamily::Inet;
    message.header.action = RuleAction::ToTable;
    // Tables above 255 do not fit into the header: always the attribute.
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.attributes = vec![
        RuleAttribute::Iifname(rule.input.clone()),
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Table(rule.table),
        RuleAttribute::Protocol(PROTOCOL.into()),
    ];
    message.attributes.extend(rule.suppress_prefix_length.map(RuleAttribute::SuppressPrefixLen));
}

impl Rtnl {
    /// All IPv4 and IPv6 routes of all tables.
    pub async fn routes(&self) -> Result<Vec<KernelRoute>, NetlinkError> {
        let answers = self.handle()?.route().get(RouteMessage::default()).execute();
        let messages = rtnl::list("list routes", answers).await?;
        Ok(messages.iter().filter_map(KernelRoute::read).collect())
    }

    /// Adds or replaces a route.
    pub async fn add_route(&self, route: &KernelRoute) -> Result<(), NetlinkError> {
        let request = self.handle()?.route().add(route.message()).replace().execute();
        rtnl::done(&format!("add route {}", route.destination), request).await
    }

    /// Removes a route; one that is gone already is no error.
    pub async fn delete_route(&self, route: &KernelRoute) -> Result<(), NetlinkError> {
        let mut message = route.message();
        // Whatever scope it has: the kernel compares unless this is given.
        message.header.scope = RouteScope::NoWhere;
        let request = self.handle()?.route().del(message).execute();
        let removed = rtnl::done(&format!("remove route {}", route.destination), request).await;
        tolerate(removed, &[libc::ESRCH, libc::ENODEV])
    }

    /// Routing rules made by this program.
    pub async fn rules(&self) -> Result<Vec<PolicyRule>, NetlinkError> {
        let answers = self.handle()?.rule().get(IpVersion::V4).execute();
        let messages = rtnl::list("list routing rules", answers).await?;
        Ok(messages.iter().filter_map(read_rule).collect())
    }

    /// Adds a rule; one that is there already is no error.
    pub async fn add_rule(&self, rule: &PolicyRule) -> Result<(), NetlinkError> {
        let mut request = self.handle()?.rule().add();
        fill_rule(request.message_mut(), rule);
        let added = rtnl::done(&format!("add routing rule {}", rule.priority), request.execute()).await;
        tolerate(added, &[libc::EEXIST])
    }

    /// Removes a rule; one that is gone already is no error.
    pub async fn delete_rule(&self, rule: &PolicyRule) -> Result<(), NetlinkError> {
        let mut message = RuleMessage::default();
        fill_rule(&mut message, rule);
        let request = self.handle()?.rule().del(message).execute();
        let removed = rtnl::done(&format!("remove routing rule {}", rule.priority), request).await;
        tolerate(removed, &[libc::ENOENT])
    }
}
