//! What is the same on every device: base chains, and the maps by which they find the chains of apps and instances.
//!
//! A packet of a bridge that is no app's is dropped before any map of chains is asked: with an element missing, nothing is open.

use super::{Base, ChainKind, Family, Field, Hook, Map, Match, PartType, Policy, Rule, Verdict, ct_state, digest};

/// Bridges of local networks.
pub const BRIDGES: &str = "bridges";
/// Bridge and the host's address on it.
pub const GATEWAYS: &str = "gateways";
/// Bridge and the address of an app there; the last element that an app gets.
pub const APPS: &str = "apps";
/// Bridge and source: the "out" chain of an app.
pub const WALK_OUT: &str = "walk-out";
/// Bridge and destination: the "in" chain of an app.
pub const WALK_IN: &str = "walk-in";
/// Interfaces between which an instance's apps may talk: the chain of the instance.
pub const PAIRS: &str = "pairs";
/// Uplink and bridge: connections of port maps are let in.
pub const INBOUND: &str = "inbound";
/// Bridge and uplink: the source is translated.
pub const LEAVING: &str = "leaving";
/// Bridge and bridge, of a port map that leads back: the source is translated.
pub const RETURNING: &str = "returning";
/// Uplink, its address, protocol and port: the "map" chain of an app.
pub const PORT_MAPS: &str = "port-maps";
/// Address of the uplink, protocol and port, asked by apps: the "map" chain of an app.
pub const HAIRPINS: &str = "hairpins";
/// Tap: the "from" chain of an app (bridge family).
pub const TAPS: &str = "taps";
/// The chain that translates sources.
pub const MASQUERADE: &str = "masquerade";

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;

/// A chain of the skeleton.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fixed {
    /// Name.
    pub name: &'static str,
    /// Where packets enter it; `None` = only by jump.
    pub base: Option<Base>,
    /// Rules in order.
    pub rules: Vec<Rule>,
}

/// Everything in a table that is fixed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Maps and sets, empty.
    pub maps: Vec<Map>,
    /// Chains.
    pub chains: Vec<Fixed>,
}

impl Layout {
    /// Of the table of that family.
    #[must_use]
    pub fn of(family: Family) -> Self {
        match family {
            Family::Inet => inet(),
            Family::Bridge => bridge(),
        }
    }

    /// Changes whenever anything in it does.
    #[must_use]
    pub fn digest(&self) -> u64 {
        digest(self)
    }
}

fn set(name: &'static str, key: &'static [PartType]) -> Map {
    Map { name, key, verdicts: false }
}

fn verdicts(name: &'static str, key: &'static [PartType]) -> Map {
    Map { name, key, verdicts: true }
}

fn chain(name: &'static str, kind: ChainKind, hook: Hook, priority: i32, policy: Policy, rules: Vec<Rule>) -> Fixed {
    Fixed { name, base: Some(Base { kind, hook, priority, policy }), rules }
}

fn inet() -> Layout {
    use PartType::{Address4, Interface, Port, Protocol};
    let maps = vec![
        set(BRIDGES, &[Interface]),
        set(GATEWAYS, &[Interface, Address4]),
        set(APPS, &[Interface, Address4]),
        verdicts(WALK_OUT, &[Interface, Address4]),
        verdicts(WALK_IN, &[Interface, Address4]),
        verdicts(PAIRS, &[Interface, Interface]),
        verdicts(INBOUND, &[Interface, Interface]),
        verdicts(LEAVING, &[Interface, Interface]),
        verdicts(RETURNING, &[Interface, Interface]),
        verdicts(PORT_MAPS, &[Interface, Address4, Protocol, Port]),
        verdicts(HAIRPINS, &[Address4, Protocol, Port]),
    ];
    let chains = vec![
        Fixed { name: MASQUERADE, base: None, rules: vec![Rule::new(vec![], Verdict::Masquerade)] },
        chain("input", ChainKind::Filter, Hook::Input, 0, Policy::Drop, input()),
        chain("forward", ChainKind::Filter, Hook::Forward, 0, Policy::Drop, forward()),
        chain("prerouting", ChainKind::Nat, Hook::Prerouting, -100, Policy::Accept, prerouting()),
        chain("postrouting", ChainKind::Nat, Hook::Postrouting, 100, Policy::Accept, postrouting()),
    ];
    Layout { maps, chains }
}

fn from_bridge() -> Match {
    Match::In(BRIDGES, vec![Field::Input])
}

fn to_bridge() -> Match {
    Match::In(BRIDGES, vec![Field::Output])
}

/// To the host: nothing but DHCP, DNS and ping from apps, and answers.
fn input() -> Vec<Rule> {
    // A DHCP client reads a packet socket, ahead of this hook: nothing need be open for it.
    let mut rules = vec![
        Rule::new(vec![Match::InputInterface("lo".into())], Verdict::Accept),
        Rule::new(vec![Match::CtState(ct_state::INVALID)], Verdict::Drop),
        Rule::new(vec![Match::CtState(ct_state::ESTABLISHED | ct_state::RELATED)], Verdict::Accept),
        Rule::new(vec![from_bridge(), Match::Protocol(UDP), Match::DestinationPort(67)], Verdict::Accept),
    ];
    let gateway = || Match::In(GATEWAYS, vec![Field::Input, Field::Destination4]);
    for protocol in [UDP, TCP] {
        let dns = vec![gateway(), Match::Protocol(protocol), Match::DestinationPort(53)];
        rules.push(Rule::new(dns, Verdict::Accept));
    }
    rules.push(Rule::new(vec![gateway(), Match::Protocol(ICMP), Match::IcmpType(8)], Verdict::Accept));
    // Router and neighbour discovery (RFC 4861): without it a port has no IPv6.
    for kind in 133..=136 {
        rules.push(Rule::new(vec![Match::Protocol(ICMP6), Match::IcmpType(kind)], Verdict::Accept));
    }
    rules
}

fn forward() -> Vec<Rule> {
    let (sender, receiver) = (vec![Field::Input, Field::Source4], vec![Field::Output, Field::Destination4]);
    let pair = || vec![Field::Input, Field::Output];
    vec![
        Rule::new(vec![Match::CtState(ct_state::INVALID)], Verdict::Drop),
        Rule::new(vec![Match::CtReply, Match::CtState(ct_state::ESTABLISHED)], Verdict::Accept),
        Rule::new(vec![Match::CtState(ct_state::RELATED)], Verdict::Accept),
        Rule::new(vec![from_bridge(), Match::NotIn(APPS, sender.clone())], Verdict::Drop),
        Rule::new(vec![to_bridge(), Match::NotIn(APPS, receiver.clone())], Verdict::Drop),
        Rule::new(vec![], Verdict::Map(WALK_OUT, sender)),
        Rule::new(vec![], Verdict::Map(WALK_IN, receiver)),
        Rule::new(vec![Match::CtDnat, from_bridge(), to_bridge()], Verdict::Accept),
        Rule::new(vec![Match::CtDnat], Verdict::Map(INBOUND, pair())),
        Rule::new(vec![], Verdict::Map(PAIRS, pair())),
    ]
}

fn prerouting() -> Vec<Rule> {
    use Field::{Destination4, DestinationPort, Input, Protocol};
    vec![
        Rule::new(vec![], Verdict::Map(PORT_MAPS, vec![Input, Destination4, Protocol, DestinationPort])),
        Rule::new(vec![from_bridge()], Verdict::Map(HAIRPINS, vec![Destination4, Protocol, DestinationPort])),
    ]
}

fn postrouting() -> Vec<Rule> {
    let pair = || vec![Field::Input, Field::Output];
    vec![
        Rule::new(vec![], Verdict::Map(LEAVING, pair())),
        // Hairpin: an app that reaches its neighbour by the uplink's address sees answers from there.
        Rule::new(vec![Match::CtDnat], Verdict::Map(RETURNING, pair())),
    ]
}

fn bridge() -> Layout {
    let look = Rule::new(vec![], Verdict::Map(TAPS, vec![Field::Input]));
    Layout {
        maps: vec![verdicts(TAPS, &[PartType::Interface])],
        chains: vec![chain("prerouting", ChainKind::Filter, Hook::Prerouting, -300, Policy::Accept, vec![look])],
    }
}
