//! Chains and elements of local network instances.

use super::skeleton::{BRIDGES, GATEWAYS, INBOUND, LEAVING, MASQUERADE, PAIRS, RETURNING};
use super::{Family, Match, Owner, Part, Rule, Verdict};
use crate::instances::InstancePlan;
use crate::kinds::firewall_element::Target;
use crate::kinds::{FirewallChain, FirewallElement, NetItem};
use crate::names;
use holdfast_engine::Graph;
use std::net::IpAddr;

/// Plans the firewall of an instance; one that is no local network has none.
pub(crate) fn plan(instance: &InstancePlan, graph: &mut Graph<NetItem>) {
    let Some((subnet, IpAddr::V4(gateway))) = instance.address.map(|a| (a, a.address)) else {
        return;
    };
    let owner = Owner(Some(instance.id));
    // Which interfaces may talk at all, once the chains of the apps are content.
    let own = vec![Rule::new(vec![Match::Source(subnet)], Verdict::Accept)];
    let chain = FirewallChain::new(Family::Inet, &names::network_chain(instance.id), own, owner);
    let allowed = Target::Goto(chain.name.clone());
    graph.insert(NetItem::from(chain));
    let bridge = || Part::Interface(instance.bridge.clone());
    let mut element = |map, key, target| {
        graph.insert(NetItem::from(FirewallElement { family: Family::Inet, map, key, target, owner }));
    };
    element(BRIDGES, vec![bridge()], Target::Member);
    element(GATEWAYS, vec![bridge(), Part::Address4(gateway)], Target::Member);
    element(PAIRS, vec![bridge(), bridge()], allowed.clone());
    element(RETURNING, vec![bridge(), bridge()], Target::Goto(MASQUERADE.into()));
    if let Some(uplink) = &instance.uplink {
        let uplink = || Part::Interface(uplink.clone());
        element(PAIRS, vec![bridge(), uplink()], allowed);
        element(LEAVING, vec![bridge(), uplink()], Target::Goto(MASQUERADE.into()));
        element(INBOUND, vec![uplink(), bridge()], Target::Accept);
    }
}
