//! Access rules, compiled once: from what the controller says to flows, and from flows to the rules of chains.

use super::{Match, Rule, Verdict};
use crate::instances::InstancePlan;
use crate::ports::PortPlan;
use crate::taps::TapPlan;
use holdfast_model::net::{self, Prefix, Protocol, RateUnit, RuleAction};
use std::collections::BTreeSet;
use std::net::IpAddr;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;

/// Which way connections are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// By the app.
    Out,
    /// To the app.
    In,
}

/// Connections that an access rule is about, seen from the app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Who makes them.
    pub direction: Direction,
    /// The other side; `None` = any.
    pub remote: Option<Prefix>,
    /// Layer-4 protocol number.
    pub protocol: Option<u8>,
    /// Port at the app, of TCP or UDP.
    pub local_port: Option<u16>,
    /// Port at the other side.
    pub remote_port: Option<u16>,
    /// Only over this interface.
    pub over: Option<String>,
    /// Only those that a port map has led to the app.
    pub mapped: bool,
    /// What happens to them.
    pub action: Action,
}

/// What happens to a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Allowed.
    Allow,
    /// Dropped.
    Drop,
    /// Allowed up to a rate, dropped above it.
    Limit {
        /// Packets per unit; 0 = none at all.
        rate: u32,
        /// Unit in seconds.
        per_seconds: u64,
        /// Packets above the rate that pass at once.
        burst: u32,
    },
}

/// A port of an uplink that leads to the app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMap {
    /// Who may use it; `None` = anybody.
    pub remote: Option<Prefix>,
    /// 6 or 17.
    pub protocol: u8,
    /// Port of the uplink.
    pub port: u16,
    /// Port of the app.
    pub app_port: u16,
}

/// What the access rules of one interface mean.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Compiled {
    /// In order: the first that fits decides; what none fits is dropped.
    pub flows: Vec<Flow>,
    /// Port maps.
    pub maps: Vec<PortMap>,
    /// What is wrong, by rule. A rule that cannot be read and should have kept something out ends the list.
    pub faults: Vec<String>,
}

/// Ports of uplinks in use: interface, protocol, port.
pub type MappedPorts = BTreeSet<(String, u8, u16)>;

/// Compiles the rules of an interface.
#[must_use]
pub fn compile(tap: &TapPlan, instance: &InstancePlan, ports: &[PortPlan], mapped: &mut MappedPorts) -> Compiled {
    let uplink = ports.iter().find(|p| Some(&p.interface) == instance.uplink.as_ref());
    let mut compiled = Compiled::default();
    for rule in &tap.rules {
        if let Err(text) = one(rule, uplink, mapped, &mut compiled) {
            compiled.faults.push(format!("rule {}: {text}", rule.id));
            // What should have been kept out must not be let in by a later rule.
            if matches!(rule.action, RuleAction::Drop | RuleAction::Limit { .. }) {
                break;
            }
        }
    }
    compiled
}

impl Compiled {
    /// Everything is allowed, both ways.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let any = |direction| Flow {
            direction,
            remote: None,
            protocol: None,
            local_port: None,
            remote_port: None,
            over: None,
            mapped: false,
            action: Action::Allow,
        };
        self.faults.is_empty() && self.flows == [any(Direction::Out), any(Direction::In)]
    }

    /// Rules of the chain that packets of that direction walk: it returns what is allowed and ends with a counted drop.
    #[must_use]
    pub fn chain(&self, direction: Direction) -> Vec<Rule> {
        let flows = self.flows.iter().filter(|f| f.direction == direction);
        let mut rules: Vec<Rule> = flows.flat_map(Flow::rules).collect();
        rules.push(Rule::new(Vec::new(), Verdict::Drop).counted());
        rules
    }
}

impl Flow {
    fn matches(&self) -> Vec<Match> {
        let out = self.direction == Direction::Out;
        let mut list: Vec<Match> = Vec::new();
        list.extend(self.remote.map(if out { Match::Destination } else { Match::Source }));
        list.extend(self.over.clone().map(if out { Match::OutputInterface } else { Match::InputInterface }));
        list.extend(self.protocol.map(Match::Protocol));
        let (source, destination) =
            if out { (self.local_port, self.remote_port) } else { (self.remote_port, self.local_port) };
        list.extend(source.map(Match::SourcePort));
        list.extend(destination.map(Match::DestinationPort));
        list.extend(self.mapped.then_some(Match::CtDnat));
        list
    }

    fn rules(&self) -> Vec<Rule> {
        let matches = self.matches();
        let drop = |matches| Rule::new(matches, Verdict::Drop).counted();
        match self.action {
            Action::Allow => vec![Rule::new(matches, Verdict::Return)],
            Action::Drop | Action::Limit { rate: 0, .. } => vec![drop(matches)],
            Action::Limit { rate, per_seconds, burst } => {
                let mut limited = matches.clone();
                // The kernel refuses a burst of nothing; it would let nothing pass.
                limited.push(Match::Limit { rate, per_seconds, burst: burst.max(1) });
                vec![Rule::new(limited, Verdict::Return), drop(matches)]
            }
        }
    }
}

fn one(
    rule: &net::Rule,
    uplink: Option<&PortPlan>,
    mapped: &mut MappedPorts,
    out: &mut Compiled,
) -> Result<(), String> {
    let remote = remote(rule)?;
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
    if !rule.adapter.is_empty() && !uplink.is_some_and(|p| p.answers_to(&rule.adapter)) {
        return Ok(());
    }
    let over = uplink.filter(|_| !rule.adapter.is_empty()).map(|p| p.interface.clone());
    let action = match rule.action {
        RuleAction::PortMap { app_port } => {
            let map = port_map(rule, remote, protocol, app_port, uplink, mapped)?;
            out.flows.push(Flow {
                direction: Direction::In,
                remote,
                protocol,
                local_port: Some(app_port),
                remote_port: None,
                over: None,
                mapped: true,
                action: Action::Allow,
            });
            out.maps.push(map);
            return Ok(());
        }
        RuleAction::Allow => Action::Allow,
        RuleAction::Drop => Action::Drop,
        RuleAction::Limit { rate, per, burst } => {
            let per_seconds = match per {
                RateUnit::Second => 1,
                RateUnit::Minute => 60,
                RateUnit::Hour => 3600,
            };
            Action::Limit { rate, per_seconds, burst }
        }
    };
    for direction in [Direction::Out, Direction::In] {
        let (local_port, remote_port) = (rule.local_port, rule.remote_port);
        let over = over.clone();
        out.flows.push(Flow { direction, remote, protocol, local_port, remote_port, over, mapped: false, action });
    }
    Ok(())
}

/// The other side that a rule names.
fn remote(rule: &net::Rule) -> Result<Option<Prefix>, String> {
    match (&rule.host, rule.remote) {
        (Some(name), _) if !name.is_empty() => match name.parse::<IpAddr>() {
            Ok(ip) => Ok(Some(super::host(ip))),
            Err(_) => Err(format!("match by host name {name:?} is not supported yet; give an IP prefix")),
        },
        (_, remote) => Ok(remote.filter(|p| p.length > 0)),
    }
}

fn port_map(
    rule: &net::Rule,
    remote: Option<Prefix>,
    protocol: Option<u8>,
    app_port: u16,
    uplink: Option<&PortPlan>,
    mapped: &mut MappedPorts,
) -> Result<PortMap, String> {
    let (Some(port), Some(protocol)) = (rule.local_port, protocol) else {
        return Err("a port map needs protocol tcp or udp and a local port".into());
    };
    let uplink = uplink.ok_or("a port map needs a network instance with an uplink")?;
    if !mapped.insert((uplink.interface.clone(), protocol, port)) {
        return Err(format!("port {port} of {} is already mapped to another app", uplink.name));
    }
    Ok(PortMap { remote, protocol, port, app_port })
}
