use crate::config::to_desired;
use crate::proto::common::Ipspec;
use crate::proto::config::{
    BondAdapter, EdgeDevConfig, NetworkConfig, NetworkInstanceConfig, PhysicalIo, SystemAdapter, UuiDandVersion,
    VlanAdapter,
};
use holdfast_model::desired::Desired;
use holdfast_model::net::{Addressing4, Addressing6, BondMode, LinkKind, Medium, PortUsage};
use holdfast_model::trouble::ObjectKind;
use proptest::prelude::*;
use prost::Message;

const NET: &str = "00000000-0000-4000-8000-000000000002";
const INSTANCE: &str = "00000000-0000-4000-8000-000000000003";

fn port(label: &str, ptype: i32, usage: i32) -> PhysicalIo {
    let phyaddrs = [("ifname".to_owned(), label.to_owned())].into();
    PhysicalIo { ptype, logicallabel: label.to_owned(), phyaddrs, usage, ..PhysicalIo::default() }
}

fn adapter(name: &str, on: &str) -> SystemAdapter {
    SystemAdapter {
        name: name.to_owned(),
        lower_layer_name: on.to_owned(),
        network_uuid: NET.to_owned(),
        ..SystemAdapter::default()
    }
}

fn network(kind: i32, ip: Ipspec) -> NetworkConfig {
    NetworkConfig { id: NET.to_owned(), r#type: kind, ip: Some(ip), ..NetworkConfig::default() }
}

fn dhcp() -> Ipspec {
    Ipspec { dhcp: 4, ..Ipspec::default() }
}

/// Two ports for management, a bond of both, a VLAN over one and one over the bond.
fn layered() -> EdgeDevConfig {
    let vlan = |label: &str, below: &str, vlan_id| VlanAdapter {
        logicallabel: label.to_owned(),
        interface_name: format!("{label}if"),
        lower_layer_name: below.to_owned(),
        vlan_id,
    };
    EdgeDevConfig {
        id: Some(UuiDandVersion { uuid: NET.to_owned(), version: String::new() }),
        device_io_list: vec![port("eth0", 1, 1), port("eth1", 1, 1), port("wlan0", 5, 1)],
        bonds: vec![BondAdapter {
            logicallabel: "lag".to_owned(),
            interface_name: "bond0".to_owned(),
            lower_layer_names: vec!["eth0".to_owned(), "eth1".to_owned()],
            bond_mode: 5,
            lacp_rate: 2,
            ..BondAdapter::default()
        }],
        vlans: vec![vlan("v10", "eth0", 10), vlan("v20", "lag", 20)],
        networks: vec![network(4, dhcp())],
        system_adapter_list: vec![adapter("a", "v10"), adapter("b", "v20"), adapter("c", "wlan0")],
        ..EdgeDevConfig::default()
    }
}

/// The only fault, as kind, id and text.
fn only_fault(desired: &Desired) -> (ObjectKind, &str, &str) {
    match desired.faults.as_slice() {
        [fault] => (fault.on.kind, fault.on.id.as_str(), fault.text.as_str()),
        more => panic!("expected one fault, found {more:#?}"),
    }
}

#[test]
fn layers_name_each_other_by_label() {
    let desired = to_desired(&layered(), None);
    assert_eq!(desired.faults, []);
    let links: Vec<_> = desired.links.iter().map(|link| (link.label.as_str(), link.kind.clone())).collect();
    let members = vec!["eth0".to_owned(), "eth1".to_owned()];
    assert_eq!(
        links,
        [
            ("wlan0", LinkKind::Wireless(Medium::Wifi)),
            ("lag", LinkKind::Bond { members, mode: BondMode::Lacp { fast: true } }),
            ("v10", LinkKind::Vlan { parent: "eth0".to_owned(), id: 10 }),
            ("v20", LinkKind::Vlan { parent: "lag".to_owned(), id: 20 }),
        ]
    );
    let adapters: Vec<_> = desired.adapters.iter().map(|a| (a.name.as_str(), a.on.as_str(), a.management)).collect();
    assert_eq!(adapters, [("a", "v10", true), ("b", "v20", true), ("c", "wlan0", false)]);
}

#[test]
fn a_link_that_makes_no_sense_is_refused_by_name() {
    type Break = fn(&mut EdgeDevConfig);
    let cases: [(Break, &str, &str); 8] = [
        (|c| c.vlans[0].vlan_id = 4095, "v10", "id: expected 1 to 4094, found 4095"),
        (|c| c.vlans[0].lower_layer_name = "v20".into(), "v10", "lower layer \"v20\""),
        (|c| c.vlans[0].interface_name = "a name of 16 by".into(), "v10", "interface name"),
        (|c| c.vlans[0].logicallabel = "eth1".into(), "eth1", "another port or link has it"),
        (|c| c.bonds[0].bond_mode = 9, "lag", "mode: expected 1 to 7, found 9"),
        (|c| c.bonds[0].lower_layer_names.clear(), "lag", "at least one port"),
        (|c| c.bonds[0].lower_layer_names.push("eth7".into()), "lag", "member \"eth7\""),
        (|c| c.bonds[0].logicallabel.clear(), "", "label: expected a text"),
    ];
    for (break_it, id, text) in cases {
        let mut config = layered();
        break_it(&mut config);
        let desired = to_desired(&config, None);
        let fault = &desired.faults[0];
        assert_eq!((fault.on.kind, fault.on.id.as_str()), (ObjectKind::Port, id), "{text}");
        assert!(fault.text.contains(text), "{}", fault.text);
    }
}

#[test]
fn the_type_of_a_network_says_which_versions_of_ip_come_by_themselves() {
    for (kind, v4, v6) in [
        (0, Addressing4::Dhcp, Addressing6::Auto),
        (4, Addressing4::Dhcp, Addressing6::Auto),
        (6, Addressing4::Dhcp, Addressing6::Auto),
        (9, Addressing4::Dhcp, Addressing6::Auto),
        (7, Addressing4::Dhcp, Addressing6::None),
        (8, Addressing4::None, Addressing6::Auto),
    ] {
        let mut config = layered();
        config.networks = vec![network(kind, dhcp())];
        let desired = to_desired(&config, None);
        assert_eq!((desired.adapters[0].v4, desired.adapters[0].v6), (v4, v6), "type {kind}");
    }
}

#[test]
fn a_static_address_is_of_the_version_of_its_subnet() {
    for (subnet, gateway, address) in
        [("10.0.0.0/24", "10.0.0.1", "10.0.0.9"), ("fd00:1::/64", "fd00:1::1", "fd00:1::9")]
    {
        let ip = Ipspec { dhcp: 1, subnet: subnet.into(), gateway: gateway.into(), ..Ipspec::default() };
        let mut config = layered();
        config.networks = vec![network(4, ip)];
        config.system_adapter_list.truncate(1);
        config.system_adapter_list[0].addr = address.to_owned();
        let desired = to_desired(&config, None);
        assert_eq!(desired.faults, []);
        let found = match (desired.adapters[0].v4, desired.adapters[0].v6) {
            (Addressing4::Static(v4), Addressing6::None) => (v4.prefix(), v4.router()),
            (Addressing4::None, Addressing6::Static(v6)) => (v6.prefix(), v6.router()),
            other => panic!("{other:?}"),
        };
        let length = subnet.rsplit('/').next().expect("length");
        assert_eq!((found.0.to_string(), found.1), (format!("{address}/{length}"), gateway.parse().ok()));

        config.system_adapter_list[0].addr = "192.0.2.1".to_owned();
        let desired = to_desired(&config, None);
        let (kind, id, text) = only_fault(&desired);
        assert_eq!((kind, id), (ObjectKind::Adapter, "a"));
        assert!(text.contains(&format!("expected one in {subnet}, found 192.0.2.1")), "{text}");
    }
}

#[test]
fn an_instance_has_one_subnet_of_the_version_that_it_names() {
    let instance = |ip_type, subnet: &str| {
        let mut config = layered();
        config.network_instances = vec![NetworkInstanceConfig {
            uuidandversion: Some(UuiDandVersion { uuid: INSTANCE.to_owned(), version: String::new() }),
            inst_type: 2,
            ip_type,
            ip: Some(Ipspec { subnet: subnet.to_owned(), ..Ipspec::default() }),
            ..NetworkInstanceConfig::default()
        }];
        to_desired(&config, None)
    };
    for (ip_type, subnet) in [(0, "10.1.0.0/24"), (1, "10.1.0.0/24"), (0, "fd00::/64"), (2, "fd00::/64")] {
        let desired = instance(ip_type, subnet);
        assert_eq!(desired.faults, [], "{ip_type} {subnet}");
        assert_eq!(desired.instances[0].v4.is_some(), subnet.starts_with("10"));
        assert_eq!(desired.instances[0].v6.is_some(), subnet.starts_with("fd"));
    }
    for (ip_type, subnet) in [(2, "10.1.0.0/24"), (1, "fd00::/64")] {
        let desired = instance(ip_type, subnet);
        let (kind, _, text) = only_fault(&desired);
        assert_eq!(kind, ObjectKind::NetworkInstance);
        assert!(text.contains("expected one version of IP, found two"), "{text}");
    }
}

#[test]
fn a_port_without_usage_that_carries_an_old_uplink_is_for_management() {
    let config = EdgeDevConfig::decode(&include_bytes!("../../../testdata/config/minimal-usage0-uplink.pb")[..]);
    let desired = to_desired(&config.expect("config"), None);
    for adapter in desired.adapters.iter().filter(|adapter| adapter.management) {
        let port = desired.ports.iter().find(|port| port.label == adapter.on).expect("port");
        assert!(port.usage.is_management(), "{port:?}");
    }
    assert!(desired.adapters.iter().any(|adapter| adapter.management));

    let mut config = layered();
    config.device_io_list[0].usage = 0;
    config.bonds.clear();
    config.vlans.truncate(1);
    config.system_adapter_list.truncate(1);
    assert_eq!(to_desired(&config, None).ports[0].usage, PortUsage::None, "no uplink");
    config.system_adapter_list[0].uplink = true;
    assert_eq!(to_desired(&config, None).ports[0].usage, PortUsage::ManagementAndApps, "by way of the VLAN");
}

#[test]
fn the_same_bytes_have_one_meaning() {
    let cases: [&[u8]; 4] = [
        include_bytes!("../../../testdata/config/minimal-nondeterministic-phyaddrs.pb"),
        include_bytes!("../../../testdata/config/nondeterministic-1.pb"),
        include_bytes!("../../../testdata/config/nondeterministic-2.pb"),
        include_bytes!("../../../testdata/config/nondeterministic-3.pb"),
    ];
    for bytes in cases {
        // A map decoded again has another order.
        let read = || to_desired(&EdgeDevConfig::decode(bytes).expect("config"), None);
        let first = read();
        assert!(first.ports.iter().any(|port| port.interface == "eth0"));
        assert!((0..50).all(|_| read() == first));
    }
}

proptest! {
    #[test]
    fn keys_of_a_physical_address_count_in_any_case_and_the_exact_one_first(
        keys in proptest::collection::btree_set("[iI][fF][nN][aA][mM][eE]", 1..6),
    ) {
        let read = || {
            let mut io = port("p", 1, 1);
            io.phyaddrs = keys.iter().map(|key| (key.clone(), format!("x-{key}"))).collect();
            let config = EdgeDevConfig { device_io_list: vec![io], ..EdgeDevConfig::default() };
            to_desired(&config, None).ports[0].interface.clone()
        };
        let first = keys.iter().next().expect("one");
        let expected = if keys.contains("ifname") { "ifname" } else { first.as_str() };
        for _ in 0..8 {
            prop_assert_eq!(read(), format!("x-{expected}"));
        }
    }
}
