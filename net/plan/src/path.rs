//! Paths: which adapter carries a network instance, and over which ones, in which order, the controller is called.
//!
//! A pure ranking of planned adapters by what is known of them: carrier, address, whether the controller was reached, cost. It
//! makes no items, and it keeps nothing: the same facts give the same path.

use crate::PortPlan;
use holdfast_model::net::Uplink;
use std::collections::BTreeMap;

/// What is known of adapters beyond their plan. What is missing is not known, and speaks for the adapter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The link has a carrier, by kernel interface.
    pub carrier: BTreeMap<String, bool>,
    /// The controller was reached over it when that was last tried, by adapter name.
    pub reach: BTreeMap<String, bool>,
}

/// How good an adapter is as a path, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fitness {
    /// Nothing speaks against it.
    Fit,
    /// It has an address, and the controller was not reached over it.
    Unreached,
    /// It has no address yet.
    NoAddress,
    /// Its cable is out.
    NoCarrier,
}

/// How good this adapter is as a path.
#[must_use]
pub fn fitness(port: &PortPlan, facts: &Facts) -> Fitness {
    let carries = |interface: &str| facts.carrier.get(interface) != Some(&false);
    // A VLAN has no carrier while the port below has none.
    if !carries(&port.interface) || port.vlan.as_ref().is_some_and(|tag| !carries(&tag.parent)) {
        Fitness::NoCarrier
    } else if port.addresses.is_empty() {
        Fitness::NoAddress
    } else if facts.reach.get(&port.name) == Some(&false) {
        Fitness::Unreached
    } else {
        Fitness::Fit
    }
}

/// The adapters that `wanted` accepts, best path first: by fitness, then cost, then in the order given.
#[must_use]
pub fn rank<'a>(ports: &'a [PortPlan], facts: &Facts, wanted: impl Fn(&PortPlan) -> bool) -> Vec<&'a PortPlan> {
    let mut ranked: Vec<&PortPlan> = ports.iter().filter(|port| wanted(port)).collect();
    ranked.sort_by_key(|port| (fitness(port, facts), port.cost));
    ranked
}

/// The ways to the controller, best first: adapters for management that have an address and a carrier, each by one address of each
/// version of IP. Addresses that the kernel takes from router advertisements are not known here and not among them.
#[must_use]
pub fn controller_uplinks(ports: &[PortPlan], facts: &Facts) -> Vec<Uplink> {
    let usable = |port: &PortPlan| port.management && fitness(port, facts) <= Fitness::Unreached;
    let mut uplinks = Vec::new();
    for port in rank(ports, facts, usable) {
        for v4 in [true, false] {
            let own = port.addresses.iter().find(|own| own.address.is_ipv4() == v4);
            uplinks.extend(own.map(|own| Uplink {
                adapter: port.name.clone(),
                interface: Some(port.interface.clone()),
                source: Some(own.address),
            }));
        }
    }
    uplinks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links::Tag;
    use proptest::prelude::*;

    fn port(name: &str, cost: u8, address: bool) -> PortPlan {
        let addresses = address.then(|| "192.0.2.1/24".parse().expect("prefix")).into_iter().collect();
        PortPlan {
            name: name.into(),
            interface: name.into(),
            vlan: None,
            management: true,
            cost,
            labels: Vec::new(),
            dhcp: true,
            addresses,
            gateway: None,
            dns: Vec::new(),
            domain: String::new(),
            mtu: 1500,
            layer2: false,
        }
    }

    fn facts(carrier: &[(&str, bool)], reach: &[(&str, bool)]) -> Facts {
        let map = |list: &[(&str, bool)]| list.iter().map(|(name, is)| ((*name).to_owned(), *is)).collect();
        Facts { carrier: map(carrier), reach: map(reach) }
    }

    fn names(ports: &[PortPlan], facts: &Facts) -> Vec<String> {
        rank(ports, facts, |_| true).into_iter().map(|port| port.name.clone()).collect()
    }

    #[test]
    fn the_cheapest_is_the_path_until_something_speaks_against_it() {
        let ports = [port("cheap", 0, true), port("dear", 9, true), port("middle", 4, true)];
        for (known, expected) in [
            (facts(&[], &[]), ["cheap", "middle", "dear"]),
            (facts(&[("cheap", true)], &[("cheap", true), ("dear", true)]), ["cheap", "middle", "dear"]),
            (facts(&[("cheap", false)], &[]), ["middle", "dear", "cheap"]),
            (facts(&[], &[("cheap", false), ("middle", false)]), ["dear", "cheap", "middle"]),
            (facts(&[("middle", false)], &[("cheap", false)]), ["dear", "cheap", "middle"]),
        ] {
            assert_eq!(names(&ports, &known), expected, "{known:?}");
        }
    }

    #[test]
    fn an_adapter_without_address_comes_after_dear_ones_that_have_one() {
        let ports = [port("waits", 0, false), port("dear", 255, true)];
        assert_eq!(names(&ports, &facts(&[], &[])), ["dear", "waits"]);
        assert_eq!(names(&ports, &facts(&[("dear", false)], &[])), ["waits", "dear"]);
    }

    #[test]
    fn a_vlan_is_no_path_while_its_port_has_no_carrier() {
        let vlan = PortPlan { vlan: Some(Tag { parent: "eth0".into(), id: 5 }), ..port("eth0.5", 0, true) };
        assert_eq!(fitness(&vlan, &facts(&[("eth0.5", true), ("eth0", false)], &[])), Fitness::NoCarrier);
        assert_eq!(fitness(&vlan, &facts(&[("eth0", true)], &[])), Fitness::Fit);
    }

    #[test]
    fn the_controller_is_called_over_adapters_for_management_that_can_carry_it() {
        let mut both = port("both", 1, true);
        both.addresses.insert(0, "2001:db8::1/64".parse().expect("prefix"));
        let apps = PortPlan { management: false, ..port("apps", 0, true) };
        let ports = [apps, port("waits", 0, false), port("out", 0, true), port("silent", 0, true), both];
        let facts = facts(&[("out", false)], &[("silent", false)]);
        let uplinks = controller_uplinks(&ports, &facts);
        let found: Vec<_> =
            uplinks.iter().map(|u| (u.adapter.as_str(), u.source.expect("source").to_string())).collect();
        let expected = [("both", "192.0.2.1"), ("both", "2001:db8::1"), ("silent", "192.0.2.1")];
        assert_eq!(found, expected.map(|(name, ip)| (name, ip.to_owned())));
        assert!(uplinks.iter().all(|u| u.interface.as_deref() == Some(u.adapter.as_str())));
        assert_eq!(controller_uplinks(&[], &facts), []);
    }

    proptest! {
        #[test]
        fn no_adapter_is_lost_and_a_fit_one_is_never_behind_an_unfit_one(
            ports in proptest::collection::vec((0..4_u8, any::<bool>(), any::<Option<bool>>(), any::<Option<bool>>()), 0..8),
        ) {
            let mut known = Facts::default();
            let mut plans = Vec::new();
            for (n, (cost, address, carrier, reach)) in ports.iter().enumerate() {
                let name = format!("eth{n}");
                known.carrier.extend(carrier.map(|is| (name.clone(), is)));
                known.reach.extend(reach.map(|is| (name.clone(), is)));
                plans.push(port(&name, *cost, *address));
            }
            let ranked = rank(&plans, &known, |_| true);
            prop_assert_eq!(ranked.len(), plans.len());
            prop_assert!(ranked.is_sorted_by_key(|port| (fitness(port, &known), port.cost)));
        }
    }
}
