//! Layer 2 below adapters, and which adapter a network of apps gets.

use super::*;
use holdfast_model::net::{Adapter, Addressing4, Addressing6, BondMode, Link, LinkKind, Port, PortUsage, Static};
use holdfast_model::trouble::Severity;

/// Two cards, each with an adapter of its name: `eth0` by DHCP, `eth1` without IP.
fn two() -> (Desired, Vec<LinkFact>) {
    let card = |n: u8| LinkFact { name: format!("eth{n}"), mac: [2, 0, 0, 0, 0, n], pci: String::new() };
    let cards = vec![card(0), card(1)];
    let mut desired = last_resort(&cards);
    (desired.adapters[1].v4, desired.adapters[1].v6) = (Addressing4::None, Addressing6::None);
    (desired, cards)
}

fn made(desired: &Desired, cards: &[LinkFact], paths: &path::Facts) -> Plan {
    plan(&Input {
        desired,
        links: cards,
        leases: &[("eth0".to_owned(), lease())].into(),
        allocations: &Allocations::default(),
        paths,
        app_uids: &BTreeMap::new(),
    })
}

fn texts(plan: &Plan) -> Vec<&str> {
    plan.faults.iter().map(|fault| fault.text.as_str()).collect()
}

fn vlan(label: &str, parent: &str, id: u16) -> Link {
    Link { label: label.into(), interface: label.into(), kind: LinkKind::Vlan { parent: parent.into(), id } }
}

fn on(adapter: &Adapter, link: &str) -> Adapter {
    Adapter { name: link.into(), on: link.into(), ..adapter.clone() }
}

fn switch(n: u128, port: &str) -> NetworkInstance {
    NetworkInstance { kind: InstanceKind::Switch, v4: None, uplinks: vec![port.into()], ..instance(n, "10.9.0.0/24") }
}

#[test]
fn a_vlan_stands_on_its_port_beside_an_adapter_of_the_port_itself() {
    let (mut desired, cards) = two();
    desired.links = vec![vlan("eth1.7", "eth1", 7), vlan("eth0.8", "eth0", 8)];
    let dhcp = desired.adapters[0].clone();
    desired.adapters.extend([Adapter { mtu: Some(1600), ..on(&dhcp, "eth1.7") }, on(&dhcp, "eth0.8")]);
    let plan = made(&desired, &cards, &path::Facts::default());
    assert_eq!(texts(&plan), [""; 0]);
    let Some(NetItem::Vlan(item)) = plan.graph.get(&ItemKey::Link("eth1.7".into())) else { panic!("VLAN") };
    assert_eq!((item.parent.as_str(), item.id, item.mtu), ("eth1", 7, 1600));
    let Some(NetItem::Port(card)) = plan.graph.get(&ItemKey::Link("eth1".into())) else { panic!("card") };
    assert_eq!(card.mtu, 1600, "the card carries what the VLAN sends");
    for link in ["eth0", "eth1.7", "eth0.8"] {
        assert!(plan.graph.contains(&ItemKey::Service(names::dhcp_client(link))), "{link}");
    }
}

#[test]
fn a_vlan_without_an_adapter_on_its_port_still_has_its_card_up() {
    let (mut desired, cards) = two();
    desired.links = vec![vlan("tagged", "eth1", 7)];
    desired.adapters[1] = on(&desired.adapters[0], "tagged");
    let plan = made(&desired, &cards, &path::Facts::default());
    assert_eq!(texts(&plan), [""; 0]);
    assert!(plan.graph.contains(&ItemKey::Link("eth1".into())));
}

#[test]
fn links_that_cannot_be_made_are_named_on_the_adapter() {
    let (base, cards) = two();
    type Change = fn(&mut Desired);
    let cases: [(Change, &str); 7] = [
        (
            |d| {
                let (members, mode) = (vec!["eth1".to_owned()], BondMode::ActiveBackup);
                d.links = vec![Link {
                    label: "lag".into(),
                    interface: "bond0".into(),
                    kind: LinkKind::Bond { members, mode },
                }];
                d.adapters[1].on = "lag".into();
            },
            "adapter eth1: stands on lag (bond of eth1), which this version does not support",
        ),
        (
            |d| {
                let kind = LinkKind::Wireless(net::Medium::Wifi);
                d.links = vec![Link { label: "wlan0".into(), interface: "wlan0".into(), kind }];
                d.adapters[1].on = "wlan0".into();
            },
            "adapter eth1: stands on wlan0 (Wi-Fi), which this version does not support",
        ),
        (
            |d| {
                d.links = vec![vlan("eth0", "eth1", 7)];
                d.ports[0].label = "up".into();
                d.adapters[0].on = "up".into();
                d.adapters[1].on = "eth0".into();
            },
            "adapter eth1: VLAN eth0: its interface name eth0 is taken",
        ),
        (
            |d| {
                d.links = vec![vlan("a", "eth0", 7), vlan("b", "eth0", 7)];
                d.adapters[1].on = "a".into();
                d.adapters.push(on(&d.adapters[1], "b"));
            },
            "adapter b: the VLAN's tag is already that of adapter eth1 on the same port",
        ),
        (
            |d| d.ports[1].usage = PortUsage::Dedicated,
            "adapter eth1: needs port eth1, whose usage (dedicated to an app) keeps it from the host",
        ),
        (
            |d| d.ports[1].interface = "eth7".into(),
            "adapter eth1: interface eth7 of port eth1 is missing; present are eth0, eth1",
        ),
        (
            |d| d.adapters[1].v6 = Addressing6::Auto,
            "adapter eth1: has IPv6 by router advertisement only, and no name server: this version takes name servers from \
             DHCP for IPv4 or from the config",
        ),
    ];
    for (change, expected) in cases {
        let mut desired = base.clone();
        change(&mut desired);
        let plan = made(&desired, &cards, &path::Facts::default());
        assert_eq!(texts(&plan), [expected]);
        assert_eq!(plan.faults[0].on.kind, ObjectKind::Adapter);
        assert!(plan.ports.iter().any(|p| p.name == "eth0"), "{expected}: the other adapter stays");
    }
}

#[test]
fn a_static_ipv6_address_has_a_route_over_its_gateway() {
    let (mut desired, cards) = two();
    let fixed = Static {
        address: "fd00::9".parse().expect("address"),
        prefix_length: 64,
        gateway: Some("fd00::1".parse().expect("address")),
    };
    desired.adapters[1].v6 = Addressing6::Static(fixed);
    let plan = made(&desired, &cards, &path::Facts::default());
    assert_eq!(texts(&plan), [""; 0]);
    assert!(plan.graph.contains(&ItemKey::Address(("eth1".into(), "fd00::9/64".into()))));
    assert!(plan.graph.contains(&ItemKey::Route((254, "::/0".into(), 1001))));
}

#[test]
fn a_port_is_in_one_switch_and_carries_no_local_network_then() {
    let (mut desired, cards) = two();
    desired.instances = vec![
        switch(1, "eth1"),
        switch(2, "eth1"),
        NetworkInstance { uplinks: vec!["eth1".into()], ..instance(3, "10.3.0.0/24") },
        switch(4, "eth0"),
    ];
    let plan = made(&desired, &cards, &path::Facts::default());
    assert_eq!(
        texts(&plan),
        [
            "network instance net2: port eth1 is already in the switch of network instance net1",
            "network instance net3: a local network needs a port with IP configuration, but eth1 has none",
            "network instance net4: a switch needs a port without IP configuration, but eth0 has one",
        ]
    );
    assert_eq!(plan.instances.iter().map(|i| i.id).collect::<Vec<_>>(), [uuid(1)]);
}

#[test]
fn reserved_subnets_and_ipv6_are_refused_by_name() {
    let (mut desired, cards) = two();
    let v6 = net::Subnet { network: "fd00::".parse().expect("address"), prefix_length: 64, gateway: None, range: None };
    desired.instances = vec![
        instance(1, "127.0.0.0/24"),
        instance(2, "224.0.0.0/24"),
        instance(3, "169.254.169.0/24"),
        NetworkInstance { v4: None, v6: Some(v6), ..instance(4, "10.4.0.0/24") },
    ];
    let plan = made(&desired, &cards, &path::Facts::default());
    assert_eq!(
        texts(&plan),
        [
            "network instance net1: subnet 127.0.0.0/24 lies in 127.0.0.0/8, which is reserved (loopback)",
            "network instance net2: subnet 224.0.0.0/24 lies in 224.0.0.0/4, which is reserved (multicast)",
            "network instance net3: subnet 169.254.169.0/24 lies in 169.254.0.0/16, which is reserved (link-local)",
            "network instance net4: subnet fd00::/64 is not IPv4, which is all that is supported",
        ]
    );
}

#[test]
fn a_name_server_that_is_the_networks_own_gateway_is_not_asked() {
    let (mut desired, cards) = two();
    let upstreams = |dns: &[&str]| {
        let mut desired = desired.clone();
        let dns = dns.iter().map(|ip| ip.parse().expect("address")).collect();
        desired.instances = vec![NetworkInstance { dns, ..instance(1, "10.1.0.0/24") }];
        let plan = made(&desired, &cards, &path::Facts::default());
        match plan.graph.get(&ItemKey::Service(names::network_service(uuid(1)))) {
            Some(NetItem::Service(kinds::Service { kind: ServiceKind::Network { service, .. }, .. })) => {
                service.upstreams.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(upstreams(&["10.1.0.1"]), ["192.0.2.3"], "as Eden's network instances have it");
    assert_eq!(upstreams(&["10.1.0.1", "198.51.100.53"]), ["198.51.100.53"]);
    assert_eq!(upstreams(&[]), ["192.0.2.3"]);
    desired.adapters[0].dns = vec!["198.51.100.1".parse().expect("address")];
    let configured_first = made(&desired, &cards, &path::Facts::default());
    assert_eq!(configured_first.ports[0].dns.len(), 2, "those of the config, then those of the lease");
    assert_eq!(configured_first.ports[0].dns[0].to_string(), "198.51.100.1");
}

#[test]
fn a_label_of_several_ports_means_the_best_of_them() {
    let (mut desired, cards) = two();
    let fixed = Static { address: Ipv4Addr::new(198, 51, 100, 2), prefix_length: 24, gateway: None };
    desired.adapters[1] = Adapter { v4: Addressing4::Static(fixed), cost: 5, ..desired.adapters[1].clone() };
    for adapter in &mut desired.adapters {
        adapter.labels = vec!["wan".into()];
    }
    desired.instances = vec![NetworkInstance { uplinks: vec!["wan".into()], ..instance(1, "10.1.0.0/24") }];
    let uplink = |facts: &path::Facts| made(&desired, &cards, facts).instances[0].uplink_adapter.clone();
    assert_eq!(uplink(&path::Facts::default()).as_deref(), Some("eth0"));
    let out = path::Facts { carrier: [("eth0".to_owned(), false)].into(), ..path::Facts::default() };
    assert_eq!(uplink(&out).as_deref(), Some("eth1"), "the cheaper one's cable is out");
}

#[test]
fn a_switch_on_a_label_of_several_ports_has_the_best_of_them_and_says_so() {
    let (mut desired, cards) = two();
    desired.adapters[0] = Adapter { name: "eth0".into(), on: "eth0".into(), ..desired.adapters[1].clone() };
    for adapter in &mut desired.adapters {
        adapter.labels = vec!["lan".into()];
    }
    desired.instances = vec![NetworkInstance { mtu: Some(9000), ..switch(1, "lan") }];
    let plan = made(&desired, &cards, &path::Facts::default());
    assert_eq!(
        texts(&plan),
        [
            "network instance net1: mtu 9000 is above the 1500 of its port eth0: larger packets do not leave it",
            "network instance net1: \"lan\" means the ports eth0, eth1, but a switch of several ports is not supported by this \
             version: only eth0 is in it",
        ]
    );
    assert!(plan.faults.iter().all(|fault| fault.severity == Severity::Warning));
    assert_eq!(plan.instances.len(), 1, "it is made");
}

#[test]
fn a_rule_for_an_adapter_that_is_elsewhere_or_nowhere_is_named_on_its_app() {
    let (mut desired, cards) = two();
    desired.instances = vec![instance(1, "10.1.0.0/24")];
    let on = |adapter: &str, rule: net::Rule| net::Rule { adapter: adapter.into(), ..rule };
    let rules = vec![
        on("eth0", rule(1, RuleAction::Allow)),
        on("eth1", net::Rule { id: 2, ..port_map(8080, 80) }),
        on("eth7", rule(3, RuleAction::Drop)),
        on("eth1", rule(4, RuleAction::Drop)),
        on("eth1", rule(5, RuleAction::Allow)),
        on("uplink", rule(6, RuleAction::Allow)),
    ];
    // Not for management: the label "uplink" is eth0's alone.
    desired.adapters[1].management = false;
    desired.apps = vec![app(11, uuid(1), rules)];
    let plan = made(&desired, &cards, &path::Facts::default());
    let elsewhere = "adapter \"eth1\" is not the uplink of network instance net1 (eth0); the rule has no effect";
    assert_eq!(
        texts(&plan),
        [
            format!("app App 11 interface eth0: rule 2: {elsewhere}"),
            "app App 11 interface eth0: rule 3: adapter \"eth7\" is not an adapter or label of this device; the rule has no effect"
                .to_owned(),
            format!("app App 11 interface eth0: rule 5: {elsewhere}"),
        ]
    );
    assert!(plan.faults.iter().all(|fault| fault.severity == Severity::Warning), "the app runs");
}

#[test]
fn an_instance_with_an_error_keeps_the_addresses_of_its_apps() {
    let (mut desired, cards) = two();
    desired.instances = vec![instance(1, "10.1.0.0/24")];
    desired.apps = vec![app(11, uuid(1), vec![]), app(12, uuid(1), vec![])];
    let first = made(&desired, &cards, &path::Facts::default());
    desired.instances[0].uplinks = vec!["typo".into()];
    let plan_with = |desired: &Desired, allocations: &Allocations| {
        let none = (path::Facts::default(), BTreeMap::new(), BTreeMap::new());
        let input = Input { desired, links: &cards, leases: &none.1, allocations, paths: &none.0, app_uids: &none.2 };
        plan(&input)
    };
    let broken = plan_with(&desired, &first.allocations);
    assert_eq!(broken.taps, []);
    assert_eq!(broken.allocations, first.allocations);
    let fault = broken.faults.iter().find(|fault| fault.on.kind == ObjectKind::App).expect("fault");
    assert_eq!(fault.cause.as_ref().map(|cause| cause.id.clone()), Some(uuid(1).to_string()));
    desired.instances.clear();
    assert_eq!(plan_with(&desired, &first.allocations).allocations, Allocations::default());
}

#[test]
fn a_port_of_the_model_is_found_by_name_then_by_pci_address() {
    let cards = [LinkFact { name: "enp3s0".into(), mac: [2; 6], pci: "0000:03:00.0".into() }];
    let port = |interface: &str, pci: &str| Port {
        label: "enp3s0".into(),
        physical_label: String::new(),
        interface: interface.into(),
        pci: pci.into(),
        usage: PortUsage::Shared,
    };
    let found = |port: Port| link_of(&port, &cards).is_some();
    assert!(found(port("enp3s0", "")) && found(port("", "0000:03:00.0")) && found(port("", "")));
    assert!(!found(port("eth0", "0000:03:00.0")) && !found(port("", "0000:04:00.0")));
}
