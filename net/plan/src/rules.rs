//! The firewall: two tables made from ports, instances and access rules.
//!
//! ```text
//!  frame from a tap -> bridge table: is it the app's own MAC and IP?  else drop
//!                   -> inet forward:  answer to a known connection?   accept
//!                                     "out" chain of the sender       drop unless a rule allows
//!                                     "in" chain of the receiver      drop unless a rule allows
//!                                     allowed pair of interfaces?     else drop
//! ```
//! A chain of an app *returns* what its rules allow, so that a packet between two apps has to please both. Only packets in the
//! direction of the connection's first packet walk the chains: a rule taken away stops the connections it allowed.

use crate::firewall::{Base, Chain, ChainKind, Family, Hook, Match, Policy, Rule, Table, Verdict, ct_state};
use crate::instances::{InstancePlan, TapPlan, app_fault};
use crate::names::interface_id;
use crate::ports::PortPlan;
use holdfast_model::app::App;
use holdfast_model::net::{self, InstanceKind, Prefix, Protocol, RateUnit, RuleAction};
use holdfast_model::trouble::Trouble;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

/// Name of both tables.
pub const TABLE: &str = "holdfast";
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;
const ARP: u16 = 0x0806;

/// Everything the firewall is made from.
pub(crate) struct Parts<'a> {
    pub(crate) ports: &'a [PortPlan],
    pub(crate) instances: &'a [InstancePlan],
    pub(crate) taps: &'a [TapPlan],
    pub(crate) apps: &'a [App],
}

fn host(ip: IpAddr) -> Prefix {
    Prefix { address: ip, length: if ip.is_ipv4() { 32 } else { 128 } }
}

fn from(link: &str) -> Match {
    Match::InputInterface(link.to_owned())
}

fn to(link: &str) -> Match {
    Match::OutputInterface(link.to_owned())
}

fn base(name: &str, kind: ChainKind, hook: Hook, priority: i32, policy: Policy, rules: Vec<Rule>) -> Chain {
    Chain { name: name.into(), base: Some(Base { kind, hook, priority, policy }), rules }
}

/// The two tables.
pub(crate) fn tables(parts: &Parts, faults: &mut Vec<Trouble>) -> [Table; 2] {
    let mut dnat = Vec::new();
    let mut chains = Vec::new();
    let mut forward = vec![
        Rule::new(vec![Match::CtState(ct_state::INVALID)], Verdict::Drop),
        Rule::new(vec![Match::CtReply, Match::CtState(ct_state::ESTABLISHED)], Verdict::Accept),
        Rule::new(vec![Match::CtState(ct_state::RELATED)], Verdict::Accept),
    ];
    let mut mapped = BTreeSet::new();
    let mut walk_out = Vec::new();
    let mut walk_in = Vec::new();
    for tap in parts.taps {
        let (Some(ip), Some(instance)) = (tap.address, parts.instances.iter().find(|i| i.id == tap.instance)) else {
            continue;
        };
        let mut writer = Writer {
            parts,
            tap,
            instance,
            address: ip,
            mapped: &mut mapped,
            faults,
            out: Vec::new(),
            into: Vec::new(),
            dnat: &mut dnat,
        };
        writer.rules();
        let (out, into) = (writer.out, writer.into);
        let id = interface_id(tap.app, tap.index);
        let own = host(ip.into());
        walk_out.push(Rule::new(vec![from(&tap.bridge), Match::Source(own)], Verdict::Jump(format!("out-{id}"))));
        walk_in.push(Rule::new(vec![to(&tap.bridge), Match::Destination(own)], Verdict::Jump(format!("in-{id}"))));
        for (name, rules) in [(format!("out-{id}"), out), (format!("in-{id}"), into)] {
            let mut rules = rules;
            rules.push(Rule::new(Vec::new(), Verdict::Drop).counted());
            chains.push(Chain { name, base: None, rules });
        }
    }
    forward.extend(walk_out);
    forward.extend(walk_in);
    forward.extend(pairs(parts));
    let policy = Policy::Drop;
    chains.push(base("input", ChainKind::Filter, Hook::Input, 0, policy, input(parts)));
    chains.push(base("forward", ChainKind::Filter, Hook::Forward, 0, policy, forward));
    chains.push(base("prerouting", ChainKind::Nat, Hook::Prerouting, -100, Policy::Accept, dnat));
    chains.push(base("postrouting", ChainKind::Nat, Hook::Postrouting, 100, Policy::Accept, masquerade(parts)));
    let inet = Table { family: Family::Inet, name: TABLE.into(), chains };
    [inet, frames(parts)]
}

fn locals<'a>(parts: &'a Parts) -> impl Iterator<Item = (&'a InstancePlan, Prefix)> {
    parts.instances.iter().filter_map(|i| Some((i, i.address?)))
}

/// To the host: nothing but DHCP, DNS and ping from apps, and answers.
fn input(parts: &Parts) -> Vec<Rule> {
    // A DHCP client reads a packet socket, ahead of this hook: nothing need be open for it.
    let mut rules = vec![
        Rule::new(vec![from("lo")], Verdict::Accept),
        Rule::new(vec![Match::CtState(ct_state::INVALID)], Verdict::Drop),
        Rule::new(vec![Match::CtState(ct_state::ESTABLISHED | ct_state::RELATED)], Verdict::Accept),
    ];
    for (i, address) in locals(parts) {
        let gateway = Match::Destination(host(address.address));
        let port = |protocol, port| [Match::Protocol(protocol), Match::DestinationPort(port)];
        rules.push(Rule::new([&[from(&i.bridge)][..], &port(UDP, 67)].concat(), Verdict::Accept));
        for protocol in [UDP, TCP] {
            let matches = [&[from(&i.bridge), gateway.clone()][..], &port(protocol, 53)].concat();
            rules.push(Rule::new(matches, Verdict::Accept));
        }
        let ping = vec![from(&i.bridge), gateway, Match::Protocol(ICMP), Match::IcmpType(8)];
        rules.push(Rule::new(ping, Verdict::Accept));
    }
    // Router and neighbour discovery (RFC 4861): without it a port has no IPv6.
    for kind in 133..=136 {
        rules.push(Rule::new(vec![Match::Protocol(ICMP6), Match::IcmpType(kind)], Verdict::Accept));
    }
    rules
}

/// Which interfaces may talk at all, once the chains of the apps are content.
fn pairs(parts: &Parts) -> Vec<Rule> {
    let mut rules = Vec::new();
    for (i, subnet) in locals(parts) {
        let own = Match::Source(subnet);
        rules.push(Rule::new(vec![from(&i.bridge), to(&i.bridge), own.clone()], Verdict::Accept));
        if let Some(uplink) = &i.uplink {
            rules.push(Rule::new(vec![from(&i.bridge), to(uplink), own], Verdict::Accept));
            rules.push(Rule::new(vec![from(uplink), to(&i.bridge), Match::CtDnat], Verdict::Accept));
        }
        for (other, _) in locals(parts).filter(|(o, _)| o.id != i.id) {
            let matches = vec![from(&other.bridge), to(&i.bridge), Match::CtDnat];
            rules.push(Rule::new(matches, Verdict::Accept));
        }
    }
    rules
}

fn masquerade(parts: &Parts) -> Vec<Rule> {
    let mut rules = Vec::new();
    for (i, subnet) in locals(parts) {
        let own = Match::Source(subnet);
        if let Some(uplink) = &i.uplink {
            rules.push(Rule::new(vec![to(uplink), own.clone()], Verdict::Masquerade));
        }
        // Hairpin: an app that reaches its neighbour by the uplink's address sees answers from there.
        rules.push(Rule::new(vec![to(&i.bridge), own, Match::CtDnat], Verdict::Masquerade));
    }
    rules
}

/// Frames: what an app sends carries its own MAC, and in a `Local` network its own IP.
fn frames(parts: &Parts) -> Table {
    let mut chains = Vec::new();
    let mut entry = Vec::new();
    for tap in parts.taps {
        let name = format!("from-{}", interface_id(tap.app, tap.index));
        entry.push(Rule::new(vec![from(&tap.tap)], Verdict::Goto(name.clone())));
        let mut rules = vec![Rule::new(vec![Match::EtherSourceNot(tap.mac)], Verdict::Drop).counted()];
        if let Some(ip) = tap.address {
            for sender in [ip, Ipv4Addr::UNSPECIFIED] {
                rules.push(Rule::new(
                    vec![Match::EtherType(ARP), Match::ArpSenderMac(tap.mac), Match::ArpSenderIp(sender)],
                    Verdict::Accept,
                ));
            }
            rules.push(Rule::new(vec![Match::Source(host(ip.into()))], Verdict::Accept));
            rules.push(Rule::new(
                vec![
                    Match::Source(host(Ipv4Addr::UNSPECIFIED.into())),
                    Match::Protocol(UDP),
                    Match::SourcePort(68),
                    Match::DestinationPort(67),
                ],
                Verdict::Accept,
            ));
            rules.push(Rule::new(Vec::new(), Verdict::Drop).counted());
        } else if parts.instances.iter().any(|i| i.id == tap.instance && i.kind == InstanceKind::Switch) {
            let open = matches!(tap.rules.as_slice(), [r] if is_allow_all(r));
            rules.push(Rule::new(Vec::new(), if open { Verdict::Accept } else { Verdict::Drop }));
        }
        chains.push(Chain { name, base: None, rules });
    }
    chains.push(base("prerouting", ChainKind::Filter, Hook::Prerouting, -300, Policy::Accept, entry));
    Table { family: Family::Bridge, name: TABLE.into(), chains }
}

fn is_allow_all(r: &net::Rule) -> bool {
    r.action == RuleAction::Allow
        && r.remote.is_none_or(|p| p.length == 0)
        && r.host.as_ref().is_none_or(String::is_empty)
        && r.protocol.is_none()
        && r.adapter.is_empty()
}

/// A switch cannot enforce access rules yet: says so for each interface that has others than "allow all".
pub(crate) fn switch_faults(parts: &Parts, faults: &mut Vec<Trouble>) {
    for tap in parts.taps.iter().filter(|t| t.address.is_none()) {
        if !matches!(tap.rules.as_slice(), [r] if is_allow_all(r))
            && let Some(app) = parts.apps.iter().find(|a| a.id == tap.app)
        {
            let text = "a switch network enforces no access rules yet; only one rule that allows everything is accepted, \
                        so all traffic is dropped";
            faults.push(app_fault(app, &tap.name, text));
        }
    }
}

/// Writes the chains of one interface.
struct Writer<'a, 'b> {
    parts: &'a Parts<'a>,
    tap: &'a TapPlan,
    instance: &'a InstancePlan,
    address: Ipv4Addr,
    /// Uplink ports in use: interface, protocol, port.
    mapped: &'b mut BTreeSet<(String, u8, u16)>,
    faults: &'b mut Vec<Trouble>,
    out: Vec<Rule>,
    into: Vec<Rule>,
    dnat: &'b mut Vec<Rule>,
}

impl Writer<'_, '_> {
    fn rules(&mut self) {
        for rule in &self.tap.rules {
            if let Err(text) = self.rule(rule) {
                let text = format!("rule {}: {text}", rule.id);
                if let Some(app) = self.parts.apps.iter().find(|a| a.id == self.tap.app) {
                    self.faults.push(app_fault(app, &self.tap.name, &text));
                }
                // What should have been kept out must not be let in by a later rule.
                if matches!(rule.action, RuleAction::Drop | RuleAction::Limit { .. }) {
                    return;
                }
            }
        }
    }

    fn rule(&mut self, rule: &net::Rule) -> Result<(), String> {
        let remote = match (&rule.host, rule.remote) {
            (Some(name), _) if !name.is_empty() => match name.parse::<IpAddr>() {
                Ok(ip) => Some(host(ip)),
                Err(_) => {
                    return Err(format!("match by host name {name:?} is not supported yet; give an IP prefix"));
                }
            },
            (_, remote) => remote.filter(|p| p.length > 0),
        };
        if remote.is_some_and(|p| !p.address.is_ipv4()) {
            // Never matches: the network has no IPv6.
            return Ok(());
        }
        let protocol = rule.protocol.map(|p| match p {
            Protocol::Tcp => TCP,
            Protocol::Udp => UDP,
            Protocol::Icmp => ICMP,
            Protocol::Number(n) => n,
        });
        let has_ports = rule.local_port.is_some() || rule.remote_port.is_some();
        if has_ports && !matches!(protocol, Some(TCP | UDP)) {
            return Err("a port needs protocol tcp or udp".into());
        }
        let uplink = self.parts.ports.iter().find(|p| Some(&p.interface) == self.instance.uplink.as_ref());
        let here = rule.adapter.is_empty() || uplink.is_some_and(|p| p.answers_to(&rule.adapter));
        if !here {
            return Ok(());
        }
        if let RuleAction::PortMap { app_port } = rule.action {
            return self.port_map(rule, remote, protocol, app_port, uplink);
        }
        let mut out: Vec<Match> = remote.map(Match::Destination).into_iter().collect();
        let mut into: Vec<Match> = remote.map(Match::Source).into_iter().collect();
        if let Some(uplink) = uplink.filter(|_| !rule.adapter.is_empty()) {
            out.push(to(&uplink.interface));
            into.push(from(&uplink.interface));
        }
        for list in [&mut out, &mut into] {
            list.extend(protocol.map(Match::Protocol));
        }
        out.extend(rule.local_port.map(Match::SourcePort));
        out.extend(rule.remote_port.map(Match::DestinationPort));
        into.extend(rule.remote_port.map(Match::SourcePort));
        into.extend(rule.local_port.map(Match::DestinationPort));
        for (chain, matches) in [(&mut self.out, out), (&mut self.into, into)] {
            match rule.action {
                RuleAction::Allow => chain.push(Rule::new(matches, Verdict::Return)),
                RuleAction::Drop => chain.push(Rule::new(matches, Verdict::Drop).counted()),
                RuleAction::Limit { rate, per, burst } => {
                    let per_seconds = match per {
                        RateUnit::Second => 1,
                        RateUnit::Minute => 60,
                        RateUnit::Hour => 3600,
                    };
                    let mut limited = matches.clone();
                    limited.push(Match::Limit {
                        // The kernel refuses a rate of nothing; a burst of nothing lets nothing pass.
                        rate: rate.max(1),
                        per_seconds,
                        burst: burst.max(1),
                    });
                    if rate > 0 {
                        chain.push(Rule::new(limited, Verdict::Return));
                    }
                    chain.push(Rule::new(matches, Verdict::Drop).counted());
                }
                RuleAction::PortMap { .. } => {}
            }
        }
        Ok(())
    }

    fn port_map(
        &mut self,
        rule: &net::Rule,
        remote: Option<Prefix>,
        protocol: Option<u8>,
        app_port: u16,
        uplink: Option<&PortPlan>,
    ) -> Result<(), String> {
        let (Some(port), Some(protocol)) = (rule.local_port, protocol) else {
            return Err("a port map needs protocol tcp or udp and a local port".into());
        };
        let uplink = uplink.ok_or("a port map needs a network instance with an uplink")?;
        if !self.mapped.insert((uplink.interface.clone(), protocol, port)) {
            return Err(format!("port {port} of {} is already mapped to another app", uplink.name));
        }
        let source: Vec<Match> = remote.map(Match::Source).into_iter().collect();
        let mut allowed = source.clone();
        allowed.extend([Match::Protocol(protocol), Match::DestinationPort(app_port), Match::CtDnat]);
        self.into.push(Rule::new(allowed, Verdict::Return));
        // Without an address yet there is nothing to map; the plan is made anew when it comes.
        let Some(address) = uplink.address_v4() else {
            return Ok(());
        };
        let bridges = locals(self.parts).map(|(i, _)| i.bridge.clone());
        for link in std::iter::once(uplink.interface.clone()).chain(bridges) {
            let mut matches = vec![from(&link)];
            matches.extend(source.clone());
            matches.extend([
                Match::Destination(host(address.address)),
                Match::Protocol(protocol),
                Match::DestinationPort(port),
            ]);
            let verdict = Verdict::Dnat { address: self.address, port: app_port };
            self.dnat.push(Rule::new(matches, verdict));
        }
        Ok(())
    }
}
