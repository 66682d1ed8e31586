//! Chains and elements of the interfaces of apps.

use super::flow::{Compiled, Direction, MappedPorts, compile};
use super::skeleton::{APPS, HAIRPINS, PORT_MAPS, TAPS, WALK_IN, WALK_OUT};
use super::{Family, Match, Owner, Part, Rule, Verdict, host};
use crate::instances::InstancePlan;
use crate::kinds::firewall_element::Target;
use crate::kinds::{FirewallChain, FirewallCounter, FirewallElement, NetItem};
use crate::names::interface_id;
use crate::ports::PortPlan;
use crate::taps::{TapPlan, app_fault};
use holdfast_engine::Graph;
use holdfast_model::app::App;
use holdfast_model::net::InstanceKind;
use holdfast_model::trouble::Trouble;
use std::net::Ipv4Addr;

const UDP: u8 = 17;
const ARP: u16 = 0x0806;

/// Plans the firewall of an app's interface.
pub(crate) fn plan(
    tap: &TapPlan,
    instance: &InstancePlan,
    ports: &[PortPlan],
    apps: &[App],
    mapped: &mut MappedPorts,
    graph: &mut Graph<NetItem>,
    faults: &mut Vec<Trouble>,
) {
    let compiled = compile(tap, instance, ports, mapped);
    let mut fault = |text: &str| {
        if let Some(app) = apps.iter().find(|a| a.id == tap.app) {
            faults.push(app_fault(app, &tap.name, text));
        }
    };
    compiled.faults.iter().for_each(|text| fault(text));
    // A rule for IPv6 alone means nothing to the compiler, and much to a switch: it must be the only rule.
    let open = tap.rules.len() == 1 && compiled.is_open();
    if instance.kind == InstanceKind::Switch && !open && compiled.faults.is_empty() {
        fault(
            "a switch network enforces no access rules yet; only one rule that allows everything is accepted, so all traffic \
             is dropped",
        );
    }
    let mut items = Items { tap, id: interface_id(tap.app, tap.index), owner: Owner(Some(tap.app)), graph };
    items.frames(open);
    if let Some(address) = tap.address {
        items.walk(address, &compiled);
        items.port_maps(address, &compiled, ports.iter().find(|p| Some(&p.interface) == instance.uplink.as_ref()));
    }
}

struct Items<'a> {
    tap: &'a TapPlan,
    /// Part of the names of its chains.
    id: String,
    owner: Owner,
    graph: &'a mut Graph<NetItem>,
}

impl Items<'_> {
    /// A chain, and its counter if a rule counts; gives its full name.
    fn chain(&mut self, family: Family, prefix: &str, rules: Vec<Rule>) -> String {
        let chain = FirewallChain::new(family, &format!("{prefix}-{}", self.id), rules, self.owner);
        if let Some(counter) = chain.counter.clone() {
            self.graph.insert(NetItem::from(FirewallCounter { family, name: counter, owner: self.owner }));
        }
        let name = chain.name.clone();
        self.graph.insert(NetItem::from(chain));
        name
    }

    fn element(&mut self, family: Family, map: &'static str, key: Vec<Part>, target: Target) {
        self.graph.insert(NetItem::from(FirewallElement { family, map, key, target, owner: self.owner }));
    }

    /// Frames: what an app sends carries its own MAC, and in a `Local` network its own IP.
    fn frames(&mut self, open: bool) {
        let tap = self.tap;
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
        } else if open {
            rules.push(Rule::new(Vec::new(), Verdict::Accept));
        } else {
            rules.push(Rule::new(Vec::new(), Verdict::Drop).counted());
        }
        let from = self.chain(Family::Bridge, "from", rules);
        let key = vec![Part::Interface(tap.tap.clone())];
        self.element(Family::Bridge, TAPS, key, Target::Goto(from));
    }

    fn walk(&mut self, address: Ipv4Addr, compiled: &Compiled) {
        let key = vec![Part::Interface(self.tap.bridge.clone()), Part::Address4(address)];
        for (prefix, map, direction) in [("out", WALK_OUT, Direction::Out), ("in", WALK_IN, Direction::In)] {
            let chain = self.chain(Family::Inet, prefix, compiled.chain(direction));
            self.element(Family::Inet, map, key.clone(), Target::Jump(chain));
        }
        self.element(Family::Inet, APPS, key, Target::Member);
    }

    fn port_maps(&mut self, address: Ipv4Addr, compiled: &Compiled, uplink: Option<&PortPlan>) {
        // Without an address yet there is nothing to map; the next plan has it.
        let Some((uplink, own)) = uplink.and_then(|p| Some((p, p.address_v4()?.address))) else {
            return;
        };
        let std::net::IpAddr::V4(own) = own else { return };
        if compiled.maps.is_empty() {
            return;
        }
        let rules = compiled.maps.iter().map(|map| {
            let mut matches: Vec<Match> = map.remote.map(Match::Source).into_iter().collect();
            matches.extend([Match::Protocol(map.protocol), Match::DestinationPort(map.port)]);
            Rule::new(matches, Verdict::Dnat { address, port: map.app_port })
        });
        let chain = self.chain(Family::Inet, "map", rules.collect());
        for map in &compiled.maps {
            let inner = [Part::Address4(own), Part::Protocol(map.protocol), Part::Port(map.port)];
            let outer = [Part::Interface(uplink.interface.clone())].into_iter().chain(inner.clone()).collect();
            self.element(Family::Inet, PORT_MAPS, outer, Target::Goto(chain.clone()));
            self.element(Family::Inet, HAIRPINS, inner.to_vec(), Target::Goto(chain.clone()));
        }
    }
}
