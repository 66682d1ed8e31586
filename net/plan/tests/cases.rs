//! Configs of controllers, from their bytes to the plan. Each was once accepted without effect and without a word.

use holdfast_api::config::to_desired;
use holdfast_api::proto::config::EdgeDevConfig;
use holdfast_model::contract::network::Lease;
use holdfast_model::desired::Desired;
use holdfast_plan::kinds::service::ServiceKind;
use holdfast_plan::{Allocations, Input, LinkFact, NetItem, Plan, path, plan};
use prost::Message;
use std::collections::BTreeMap;

fn read(case: &str) -> Desired {
    let file = format!("{}/testdata/{case}.pb", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
    to_desired(&EdgeDevConfig::decode(bytes.as_slice()).expect("config"), None)
}

fn planned(desired: &Desired) -> Plan {
    let cards: Vec<LinkFact> =
        (0..3_u8).map(|n| LinkFact { name: format!("eth{n}"), mac: [2, 0, 0, 0, 0, n], pci: String::new() }).collect();
    let lease = |n: u8| Lease {
        address: [192, 0, n, 15].into(),
        prefix_length: 24,
        routers: vec![[192, 0, n, 1].into()],
        dns: vec![[192, 0, n, 3].into()],
        domain: String::new(),
        ntp: Vec::new(),
        mtu: None,
        routes: Vec::new(),
        server: [192, 0, n, 1].into(),
        lease_seconds: 3600,
    };
    plan(&Input {
        desired,
        links: &cards,
        leases: &(2..5_u8).map(|n| (format!("eth{}", n - 2), lease(n))).collect(),
        allocations: &Allocations::default(),
        paths: &path::Facts::default(),
        app_uids: &BTreeMap::new(),
    })
}

/// Everything said about a case, by the conversion and by the planner.
fn said(case: &str) -> Vec<String> {
    let desired = read(case);
    let plan = planned(&desired);
    desired.faults.iter().chain(&plan.faults).map(|trouble| trouble.text.clone()).collect()
}

#[test]
fn what_was_silent_is_named() {
    for (case, expected) in [
        ("silent-two-switches-on-one-port", "is already in the switch of network instance"),
        ("two-switches-one-port-1", "is already in the switch of network instance"),
        ("two-switches-one-port-2", "is already in the switch of network instance"),
        ("silent-local-network-over-the-port-of-a-switch", "a local network needs a port with IP configuration"),
        ("silent-network-instance-in-127-0-0-0-24", "is reserved (loopback)"),
        ("silent-network-instance-in-169-254-169-0-24", "is reserved (link-local)"),
        ("silent-port-map-of-a-rule-for-another-adapter", "is not the uplink of network instance"),
        ("silent-rule-for-an-adapter-that-does-not-exist", "is not an adapter or label of this device"),
        ("silent-IPv6-only-network", "has IPv6 by router advertisement only, and no name server"),
    ] {
        let said = said(case);
        assert!(said.iter().any(|text| text.contains(expected)), "{case}: {said:#?}");
    }
}

#[test]
fn an_app_in_a_network_made_by_eden_has_name_servers_that_answer() {
    let plan = planned(&read("eden-ni-dns-is-gateway"));
    let mut services = 0;
    for (_, item) in plan.graph.iter() {
        if let NetItem::Service(service) = item.as_ref()
            && let ServiceKind::Network { service, uplink: Some(_), .. } = &service.kind
        {
            assert!(!service.upstreams.is_empty(), "{service:?}");
            assert!(service.upstreams.iter().all(|server| server.ip() != service.v4.gateway), "{service:?}");
            services += 1;
        }
    }
    assert_eq!(services, 2);
}

#[test]
fn an_old_uplink_of_usage_0_is_used() {
    let desired = read("minimal-usage0-uplink");
    let plan = planned(&desired);
    let uplinks: Vec<_> = desired.adapters.iter().filter(|adapter| adapter.reaches_controller()).collect();
    assert!(!uplinks.is_empty());
    for adapter in uplinks {
        assert!(plan.ports.iter().any(|port| port.name == adapter.name && port.management), "{}", adapter.name);
    }
}

#[test]
fn a_name_server_beside_dhcp_is_asked_before_those_of_the_lease() {
    let desired = read("silent-DNS-server-of-a-DHCP-port");
    let configured = desired.adapters.iter().find(|adapter| !adapter.dns.is_empty()).expect("a name server");
    let plan = planned(&desired);
    let port = plan.ports.iter().find(|port| port.name == configured.name).expect("port");
    assert_eq!((port.dns.first(), port.dns.len()), (configured.dns.first(), 2));
}
