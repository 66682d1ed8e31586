use super::*;
use crate::kinds::route::Hop;
use crate::kinds::service::ServiceKind;
use crate::kinds::{Card, Guest};
use holdfast_engine::{Backoff, Change, Engine, Fact, Facts, State, diff};
use holdfast_model::app::App;
use holdfast_model::net::{self, Addresses, AppInterface, InstanceKind, NetworkInstance, Protocol, RuleAction, Subnet};
use holdfast_model::trouble::ObjectKind;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

mod firewall;
mod layers;

fn uuid(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn rule(id: u32, action: RuleAction) -> net::Rule {
    net::Rule {
        id,
        remote: None,
        host: None,
        protocol: None,
        local_port: None,
        remote_port: None,
        adapter: String::new(),
        action,
    }
}

fn port_map(port: u16, app_port: u16) -> net::Rule {
    net::Rule { protocol: Some(Protocol::Tcp), local_port: Some(port), ..rule(2, RuleAction::PortMap { app_port }) }
}

fn app(n: u128, instance: Uuid, rules: Vec<net::Rule>) -> App {
    App {
        id: uuid(n),
        version: "1".into(),
        name: format!("App {n}"),
        activate: true,
        vcpus: 1,
        memory_bytes: 1 << 27,
        volumes: Vec::new(),
        interfaces: vec![AppInterface { name: "eth0".into(), instance, fixed: Addresses::default(), mac: None, rules }],
        user_data: String::new(),
        restart_counter: 0,
        purge_counter: 0,
        start_delay_seconds: 0,
        disable_logs: false,
    }
}

fn instance(n: u128, subnet: &str) -> NetworkInstance {
    let prefix: net::Prefix = subnet.parse().expect("prefix");
    let IpAddr::V4(network) = prefix.address else { panic!("{subnet}") };
    NetworkInstance {
        id: uuid(n),
        version: "1".into(),
        name: format!("net{n}"),
        kind: InstanceKind::Local,
        activate: true,
        uplinks: vec!["uplink".into()],
        v4: Some(Subnet { network, prefix_length: prefix.length, gateway: None, range: None }),
        v6: None,
        dns: Vec::new(),
        domain: String::new(),
        names: Vec::new(),
        mtu: None,
    }
}

fn links() -> Vec<LinkFact> {
    vec![LinkFact { name: "eth0".into(), mac: [2, 0, 0, 0, 0, 1], pci: "0000:00:03.0".into() }]
}

fn lease() -> Lease {
    Lease {
        address: Ipv4Addr::new(192, 0, 2, 15),
        prefix_length: 24,
        routers: vec![Ipv4Addr::new(192, 0, 2, 1)],
        dns: vec![Ipv4Addr::new(192, 0, 2, 3)],
        domain: "example".into(),
        ntp: Vec::new(),
        mtu: None,
        routes: Vec::new(),
        server: Ipv4Addr::new(192, 0, 2, 1),
        lease_seconds: 3600,
    }
}

fn desired() -> Desired {
    let mut d = last_resort(&links());
    d.instances = vec![instance(1, "10.1.0.0/24")];
    d.apps = vec![app(11, uuid(1), vec![rule(1, RuleAction::Allow), port_map(8080, 80)]), app(12, uuid(1), vec![])];
    d
}

fn make(desired: &Desired, with_lease: bool, allocations: &Allocations) -> Plan {
    let leases: BTreeMap<String, Lease> = with_lease.then(|| ("eth0".to_owned(), lease())).into_iter().collect();
    let app_uids = [(uuid(11), 2001), (uuid(12), 2002)].into();
    plan(&Input {
        desired,
        links: &links(),
        leases: &leases,
        allocations,
        paths: &path::Facts::default(),
        app_uids: &app_uids,
    })
}

#[test]
fn before_the_first_lease_the_port_is_up_and_asks() {
    let p = make(&last_resort(&links()), false, &Allocations::default());
    assert_eq!(p.faults, []);
    assert!(p.graph.contains(&ItemKey::Link("eth0".into())));
    assert!(p.graph.contains(&ItemKey::Service("dhcp-eth0".into())));
    assert!(p.graph.iter().all(|(k, _)| !matches!(k, ItemKey::Address(..) | ItemKey::Route(..))));
}

#[test]
fn a_lease_becomes_address_route_and_resolver() {
    let p = make(&last_resort(&links()), true, &Allocations::default());
    assert!(p.graph.contains(&ItemKey::Address(("eth0".into(), "192.0.2.15/24".into()))));
    assert!(p.graph.contains(&ItemKey::Route((254, "0.0.0.0/0".into(), 1000))));
    let Some(NetItem::Resolver(r)) = p.graph.get(&ItemKey::Resolver(())) else { panic!("resolver") };
    assert_eq!(r.text(), "search example\nnameserver 192.0.2.3\n");
}

#[test]
fn every_dependency_of_every_item_is_planned() {
    for with_lease in [false, true] {
        let p = make(&desired(), with_lease, &Allocations::default());
        assert_eq!(p.faults, []);
        for (key, _) in p.graph.iter() {
            for need in p.graph.needs(key) {
                let by_itself = matches!(need.key, ItemKey::Card(_));
                assert!(by_itself || p.graph.contains(&need.key), "{key} needs {need}");
            }
        }
    }
}

#[test]
fn local_network_has_service_tap_and_routes_over_its_uplink() {
    let p = make(&desired(), true, &Allocations::default());
    let bridge = names::bridge(uuid(1));
    let Some(NetItem::Service(s)) = p.graph.get(&ItemKey::Service(names::network_service(uuid(1)))) else {
        panic!("service")
    };
    let ServiceKind::Network { uplink, service, .. } = &s.kind else { panic!("network") };
    assert_eq!(uplink.as_deref(), Some("eth0"));
    assert_eq!(service.assignments.len(), 2);
    assert_eq!(service.assignments[0].host_name, "app-11");
    assert_eq!(service.assignments[0].addresses, IpAddr::from([10, 1, 0, 2]).into());
    assert_eq!(service.upstreams, ["192.0.2.3:53".parse().expect("address")]);
    let Some(NetItem::Tap(t)) = p.graph.get(&ItemKey::Link(names::tap(uuid(11), 0))) else { panic!("tap") };
    assert_eq!(t.owner_uid, 2001);
    assert!(p.graph.contains(&ItemKey::PolicyRule((1001, bridge))));
    let through = p.graph.get(&ItemKey::Route((names::table(uuid(1)), "0.0.0.0/0".into(), 100)));
    assert!(matches!(through, Some(NetItem::Route(r)) if matches!(r.hop, Hop::Gateway { .. })));
}

#[test]
fn queue_pairs_follow_the_vcpus_and_are_shared_by_the_cards() {
    for (vcpus, nics, pairs) in [
        (1, 1, 1),
        (2, 1, 2),
        (4, 1, 4),
        (64, 1, 4),
        (4, 4, 4),
        (4, 5, 3),
        (2, 5, 2),
        (4, 8, 2),
        (4, 9, 1),
        (4, 16, 1),
        (4, 0, 4),
    ] {
        assert_eq!(queue_pairs(vcpus, nics), pairs, "{vcpus} vCPUs, {nics} cards");
    }
}

#[test]
fn a_seventeenth_card_of_an_app_is_a_fault_and_the_others_stand() {
    let mut d = desired();
    let one = d.apps[0].interfaces[0].clone();
    d.apps[0].interfaces =
        (0..17).map(|n| AppInterface { name: format!("eth{n}"), rules: Vec::new(), ..one.clone() }).collect();
    let plan = make(&d, true, &Allocations::default());
    assert_eq!(plan.taps.iter().filter(|tap| tap.app == d.apps[0].id).count(), 16);
    let [fault] = plan.faults.as_slice() else { panic!("one fault: {:?}", plan.faults) };
    let text = format!("{fault:?}");
    assert!(["eth16", "interface 17 of 17", "at most 16"].iter().all(|words| text.contains(words)), "{text}");
}

/// The tap of app 11 when it has so many vCPUs.
fn with_vcpus(vcpus: u32) -> Plan {
    let mut d = desired();
    d.apps[0].vcpus = vcpus;
    make(&d, true, &Allocations::default())
}

fn is_multi_queue(plan: &Plan, app: u128) -> bool {
    match plan.graph.get(&ItemKey::Link(names::tap(uuid(app), 0))) {
        Some(NetItem::Tap(tap)) => tap.multi_queue,
        other => panic!("no tap: {other:?}"),
    }
}

#[test]
fn a_tap_is_for_several_queues_when_its_app_has_several_vcpus() {
    let [one, four] = [1, 4].map(with_vcpus);
    assert_eq!([&one, &four].map(|p| (p.taps[0].queue_pairs, is_multi_queue(p, 11))), [(1, false), (4, true)]);
    assert!(!is_multi_queue(&four, 12), "the neighbour has one vCPU");
}

#[test]
fn a_tap_of_another_kind_is_recreated_with_all_that_stands_on_it_and_nothing_else() {
    let [one, four] = [1, 4].map(with_vcpus);
    let tap = names::tap(uuid(11), 0);
    let (link, port) = (ItemKey::Link(tap.clone()), ItemKey::BridgePort(tap.clone()));
    let variable = ItemKey::Sysctl(format!("net/ipv6/conf/{tap}/disable_ipv6"));
    for (from, to) in [(&one, &four), (&four, &one)] {
        let changes = diff(&to.graph, &existing(from), &Facts::default()).changes;
        let expected = [&link, &port, &variable].map(|key| (key.clone(), Change::Recreate));
        assert_eq!(changes, expected.into());
    }
    // More queues of the same kind are the VMM's affair.
    assert!(diff(&with_vcpus(2).graph, &existing(&four), &Facts::default()).changes.is_empty());
}

/// All that is planned, on the cards that are present.
fn existing(plan: &Plan) -> Graph<NetItem> {
    let mut graph = plan.graph.clone();
    graph.extend(links().into_iter().map(|link| NetItem::from(Card { name: link.name })));
    graph
}

/// Drives an engine to where nothing is left to do; everything succeeds.
fn settle(engine: &mut Engine<NetItem>) {
    let now = Instant::now();
    for link in links() {
        engine.tell(Fact::Present(NetItem::from(Card { name: link.name }).into()));
    }
    loop {
        let ops = engine.next(now);
        if ops.is_empty() {
            break;
        }
        for op in ops {
            engine.finished(op.id, op.actions.iter().map(|_| Ok(())).collect(), now);
        }
    }
    assert!(engine.is_settled());
}

#[test]
fn a_running_vm_holds_its_tap_and_its_network_until_it_has_ended() {
    let mut engine = Engine::new(Backoff::default());
    engine.set_intended(with_vcpus(4).graph);
    settle(&mut engine);
    let guest = Guest::of(uuid(11), engine.current());
    let tap = ItemKey::Link(names::tap(uuid(11), 0));
    let bridge = ItemKey::Link(names::bridge(uuid(1)));
    let service = ItemKey::Service(names::network_service(uuid(1)));
    for key in [&tap, &bridge, &service] {
        assert!(guest.stands_on.contains(key), "{key}: not in {guest:?}");
    }
    engine.tell(Fact::Present(NetItem::from(guest).into()));
    let is_multi_queue = |engine: &Engine<NetItem>| match engine.current().get(&tap) {
        Some(NetItem::Tap(tap)) => tap.multi_queue,
        other => panic!("{other:?}"),
    };
    // Another kind of tap is wanted: the next start gets it.
    engine.set_intended(with_vcpus(1).graph);
    settle(&mut engine);
    assert!(is_multi_queue(&engine));
    engine.tell(Fact::Absent(ItemKey::Guest(uuid(11))));
    settle(&mut engine);
    assert!(!is_multi_queue(&engine));
    // The app and its network have left the config: what its VM stands on stays as long as it runs.
    let guest = Guest::of(uuid(11), engine.current());
    engine.tell(Fact::Present(NetItem::from(guest).into()));
    engine.set_intended(make(&last_resort(&links()), true, &Allocations::default()).graph);
    settle(&mut engine);
    for key in [&tap, &bridge, &service] {
        assert!(engine.current().contains(key), "{key}");
    }
    let pending = State::Pending(format!("is removed when the VM of app {} has ended", uuid(11)));
    assert_eq!(engine.state(&bridge), Some(pending));
    engine.tell(Fact::Absent(ItemKey::Guest(uuid(11))));
    settle(&mut engine);
    for key in [&tap, &bridge, &service] {
        assert!(!engine.current().contains(key), "{key}");
    }
}

#[test]
fn addresses_survive_the_departure_of_neighbours() {
    let first = make(&desired(), true, &Allocations::default());
    let mut d = desired();
    d.apps.remove(0);
    let second = make(&d, true, &first.allocations);
    assert_eq!(second.taps[0].address, first.taps[1].address);
    assert_eq!(second.allocations.v4[&uuid(1)].len(), 1);
}

#[test]
fn faults_stay_with_their_object_and_the_rest_is_planned() {
    let mut d = desired();
    d.instances.push(instance(2, "10.1.0.128/25"));
    d.instances.push(instance(3, "192.0.2.0/24"));
    d.instances.push(NetworkInstance { uplinks: vec!["eth9".into()], ..instance(4, "10.4.0.0/24") });
    d.instances.push(instance(5, "10.5.0.0/24"));
    d.adapters.push(net::Adapter { name: "wan".into(), on: "nothing".into(), ..d.adapters[0].clone() });
    d.apps.push(app(13, uuid(2), vec![]));
    d.apps.push(app(14, uuid(5), vec![port_map(8080, 80)]));
    let mut named = rule(7, RuleAction::Allow);
    named.host = Some("example.org".into());
    d.apps.push(app(15, uuid(5), vec![named]));
    let p = make(&d, true, &Allocations::default());
    let mut found: Vec<(ObjectKind, String)> = p.faults.iter().map(|f| (f.on.kind, f.text.clone())).collect();
    found.sort_by(|a, b| a.1.cmp(&b.1));
    let texts: Vec<&str> = found.iter().map(|f| f.1.as_str()).collect();
    assert_eq!(
        texts,
        [
            "adapter wan: needs port \"nothing\", which is not among the ports of the model",
            "app App 13 interface eth0: network instance 00000000-0000-0000-0000-000000000002 is missing or has an error",
            "app App 14 interface eth0: rule 2: port 8080 of eth0 is already mapped to another app",
            "app App 15 interface eth0: rule 7: match by host name \"example.org\" is not supported yet; give an IP prefix",
            "network instance net2: subnet 10.1.0.128/25 overlaps 10.1.0.1/24 of network instance net1",
            "network instance net3: subnet 192.0.2.0/24 overlaps 192.0.2.15/24 of port eth0",
            "network instance net4: port \"eth9\" is not an adapter or label of this device",
        ]
    );
    assert_eq!(p.instances.len(), 2);
}

#[test]
fn same_input_gives_the_same_plan() {
    let a = make(&desired(), true, &Allocations::default());
    assert_eq!(a, make(&desired(), true, &a.allocations));
}
