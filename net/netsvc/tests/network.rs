//! The whole network of a device, with real packets: a router outside, the device, and two apps behind taps, each in a
//! network namespace. Wrong ways to see it: asking the firewall what it would do, or pinging from the device itself.

mod common;

use common::*;
use holdfast_engine::{Backoff, Engine, Graph, Report, State, drive};
use holdfast_model::Uuid;
use holdfast_model::app::App;
use holdfast_model::contract::network::{Assignment, Lease, NetworkService, NetworkV4, Reply, Request};
use holdfast_model::desired::Desired;
use holdfast_model::net::{
    Addresses, AppInterface, InstanceKind, NetworkInstance, Protocol, RateUnit, Rule, RuleAction, Subnet,
};
use holdfast_netkernel::NetDriver;
use holdfast_netkernel::cards::card_facts;
use holdfast_plan::firewall::Family;
use holdfast_plan::kinds::service::{Service, ServiceKind};
use holdfast_plan::names;
use holdfast_plan::{Allocations, Input, ItemKey, LinkFact, NetItem, Plan, last_resort, plan};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Instant;

const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const DEVICE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 15);
const DEVICE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x15];
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);

fn rule(action: RuleAction) -> Rule {
    Rule {
        id: 1,
        remote: None,
        host: None,
        protocol: None,
        local_port: None,
        remote_port: None,
        adapter: String::new(),
        action,
    }
}

fn port_map(port: u16, app_port: u16) -> Rule {
    Rule { protocol: Some(Protocol::Tcp), local_port: Some(port), ..rule(RuleAction::PortMap { app_port }) }
}

fn drop_to_outside() -> Rule {
    Rule { remote: Some("192.0.2.0/24".parse().expect("prefix")), ..rule(RuleAction::Drop) }
}

fn app(n: u128, name: &str, rules: Vec<Rule>) -> App {
    App {
        id: Uuid::from_u128(n),
        version: "1".into(),
        name: name.into(),
        activate: true,
        vcpus: 1,
        memory_bytes: 1 << 27,
        volumes: Vec::new(),
        interfaces: vec![AppInterface {
            name: "eth0".into(),
            instance: Uuid::from_u128(1),
            fixed: Addresses::default(),
            mac: None,
            rules,
        }],
        user_data: String::new(),
        restart_counter: 0,
        purge_counter: 0,
        start_delay_seconds: 0,
        disable_logs: false,
    }
}

fn desired(apps: Vec<App>) -> Desired {
    let mut d = last_resort(&links());
    d.instances.push(NetworkInstance {
        id: Uuid::from_u128(1),
        version: "1".into(),
        name: "net".into(),
        kind: InstanceKind::Local,
        activate: true,
        uplinks: vec!["eth0".into()],
        v4: Some(Subnet { network: Ipv4Addr::new(10, 1, 0, 0), prefix_length: 24, gateway: None, range: None }),
        v6: None,
        dns: Vec::new(),
        domain: "edge".into(),
        names: vec![("printer".into(), vec![Ipv4Addr::new(198, 51, 100, 9).into()])],
        mtu: None,
    });
    d.apps = apps;
    d
}

fn links() -> Vec<LinkFact> {
    vec![LinkFact { name: "eth0".into(), mac: DEVICE_MAC, pci: String::new() }]
}

/// DHCP and DNS of the network outside, by the same program in its other role.
fn outside_service() -> Service {
    Service {
        name: "outside".into(),
        link: "up0".into(),
        kind: ServiceKind::Network {
            address: "192.0.2.1/24".parse().expect("prefix"),
            uplink: None,
            service: NetworkService {
                v4: NetworkV4 {
                    gateway: ROUTER,
                    prefix_length: 24,
                    router: Some(ROUTER),
                    pool: None,
                    routes: Vec::new(),
                },
                assignments: vec![Assignment { mac: DEVICE_MAC, addresses: DEVICE.into(), host_name: "device".into() }],
                domain: String::new(),
                mtu: None,
                lease_seconds: 600,
                names: vec![("www.example".into(), vec![Ipv4Addr::new(198, 51, 100, 7).into()])],
                upstreams: Vec::new(),
            },
        },
    }
}

struct Device {
    driver: NetDriver<Processes>,
    engine: Engine<NetItem>,
    leases: BTreeMap<String, Lease>,
    allocations: Allocations,
    runtime: tokio::runtime::Runtime,
}

impl Device {
    fn apply(&mut self, desired: &Desired) -> (Plan, Report) {
        let plan = plan(&Input {
            desired,
            links: &links(),
            leases: &self.leases,
            allocations: &self.allocations,
            paths: &Default::default(),
            app_uids: &[(Uuid::from_u128(11), 2001), (Uuid::from_u128(12), 2002)].into(),
        });
        assert_eq!(plan.faults, []);
        self.allocations = plan.allocations.clone();
        for fact in card_facts(&links(), self.engine.current()) {
            self.engine.tell(fact);
        }
        self.engine.set_intended(plan.graph.clone());
        let report = self.runtime.block_on(drive(&mut self.engine, &self.driver, Instant::now()));
        for (key, state) in self.engine.states() {
            assert_eq!(state, State::Created, "{key}");
        }
        (plan, report)
    }
}

#[test]
fn two_apps_live_change_and_go_without_a_trace() {
    let (Some(outside), Some(device), Some(a), Some(b)) =
        (Namespace::new(), Namespace::new(), Namespace::new(), Namespace::new())
    else {
        return;
    };
    // The world outside, and the cable to the device.
    outside.run(|| {
        veth("up0", "eth0", DEVICE_MAC, &device);
        up("up0");
        address("up0", "192.0.2.1/24");
        route("10.1.0.0/24", DEVICE, "up0");
    });
    let out_processes = Processes::new();
    let service = outside_service();
    let prepared = sockets(&outside, &service);
    out_processes.launch(&service, prepared);
    let _outside_web = echo(&outside, 7000);

    // The device, on this thread.
    device.enter();
    let runtime = runtime();
    let resolver = std::env::temp_dir().join(format!("resolv-{}", std::process::id()));
    let driver = runtime.block_on(async { NetDriver::new(Processes::new(), resolver).expect("driver") });
    let mut d = Device {
        driver,
        engine: Engine::new(Backoff::default()),
        leases: BTreeMap::new(),
        allocations: Allocations::default(),
        runtime,
    };
    let before = d.runtime.block_on(d.driver.netlink().links()).expect("links").len();

    // Nothing but the port: its client gets a lease from outside.
    d.apply(&last_resort(&links()));
    let lease = wait_for_lease(&d.driver.services, "dhcp-eth0");
    assert_eq!((lease.address, lease.routers.as_slice()), (DEVICE, &[ROUTER][..]));
    d.leases.insert("eth0".into(), lease);

    // App a: everything allowed, and a port mapped. App b: nothing.
    let web = vec![rule(RuleAction::Allow), port_map(8080, 80)];
    let (plan, _) = d.apply(&desired(vec![app(11, "a", web.clone()), app(12, "b", vec![])]));
    let _cables: Vec<Cable> = [(&plan.taps[0], &a), (&plan.taps[1], &b)]
        .into_iter()
        .map(|(t, ns)| Cable::plug(&device, &t.tap, ns, t.mac))
        .collect();
    let (ip_a, ip_b) = (Ipv4Addr::new(10, 1, 0, 2), Ipv4Addr::new(10, 1, 0, 3));
    assert_eq!((plan.taps[0].address, plan.taps[1].address), (Some(ip_a), Some(ip_b)));

    // App a takes its address from the network's DHCP by our client.
    let app_processes = Processes::new();
    let client = Service {
        name: "a".into(),
        link: "eth0".into(),
        kind: ServiceKind::DhcpClient(holdfast_model::contract::network::ClientService {
            interface: "eth0".into(),
            host_name: "a".into(),
        }),
    };
    let prepared = sockets(&a, &client);
    app_processes.launch(&client, prepared);
    let got = wait_for_lease(&app_processes, "a");
    assert_eq!((got.address, got.routers.as_slice(), got.dns.as_slice()), (ip_a, &[GATEWAY][..], &[GATEWAY][..]));
    assert_eq!(got.domain, "edge");
    for (ns, ip) in [(&a, ip_a), (&b, ip_b)] {
        ns.run(|| {
            address("eth0", &format!("{ip}/24"));
            route("0.0.0.0/0", GATEWAY, "eth0");
        });
    }
    let _web_a = echo(&a, 80);
    let _web_b = echo(&b, 80);
    let _host = echo(&device, 2222);

    // Out: translated for a, denied for b.
    assert_eq!(seen_as(&a, (ROUTER, 7000), WORKS), Some(DEVICE.into()));
    assert_eq!(seen_as(&b, (ROUTER, 7000), DROPPED), None);
    // In: only by the mapped port.
    assert_eq!(seen_as(&outside, (DEVICE, 8080), WORKS), Some(ROUTER.into()));
    assert_eq!(seen_as(&outside, (DEVICE, 80), DROPPED), None);
    assert_eq!(seen_as(&outside, (DEVICE, 2222), DROPPED), None);
    assert_eq!(seen_as(&outside, (ip_a, 80), DROPPED), None);
    // Between apps: b may send nothing, and may not be sent to.
    assert_eq!(seen_as(&b, (ip_a, 80), DROPPED), None);
    assert_eq!(seen_as(&a, (ip_b, 80), DROPPED), None);
    // To the host: DNS only.
    assert_eq!(seen_as(&a, (GATEWAY, 2222), DROPPED), None);
    for tcp in [false, true] {
        assert_eq!(resolve(&a, GATEWAY, "b.edge", tcp), Some((0, vec![ip_b])));
        assert_eq!(resolve(&a, GATEWAY, "printer", tcp), Some((0, vec![Ipv4Addr::new(198, 51, 100, 9)])));
        assert_eq!(resolve(&a, GATEWAY, "nobody", tcp), Some((3, vec![])));
        // Forwarded to the server outside.
        assert_eq!(resolve(&a, GATEWAY, "www.example", tcp), Some((0, vec![Ipv4Addr::new(198, 51, 100, 7)])));
    }
    // With an address that is not its own nothing passes.
    a.run(|| address("eth0", "10.1.0.99/24"));
    let spoofed = a.run(|| {
        let s = UdpSocket::bind((Ipv4Addr::new(10, 1, 0, 99), 0)).expect("bind");
        s.set_read_timeout(Some(DROPPED)).expect("timeout");
        s.send_to(&[0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'b', 0, 0, 1, 0, 1], (GATEWAY, 53)).expect("send");
        s.recv(&mut [0; 64]).is_ok()
    });
    assert!(!spoofed);

    // What the service saw.
    let name = plan.instances[0].service.clone().expect("local");
    let Reply::Network { leases, counters } = d.driver.services.ask(&name, &Request::Query) else {
        panic!("state of a network")
    };
    assert_eq!(leases.iter().map(|l| l.address).collect::<Vec<_>>(), [ip_a]);
    assert!(counters.dns_forwarded >= 2 && counters.dns_local >= 6, "{counters:?}");

    // A change: b may do all now; its connections work while a's keep going.
    let (mut long, _) = a.run(|| open((ROUTER, 7000), WORKS)).expect("connection");
    let services = d.driver.services.started.borrow().clone();
    d.apply(&desired(vec![app(11, "a", web.clone()), app(12, "b", vec![rule(RuleAction::Allow)])]));
    assert_eq!(seen_as(&b, (ROUTER, 7000), WORKS), Some(DEVICE.into()));
    assert_eq!(seen_as(&b, (ip_a, 80), WORKS), Some(ip_b.into()));
    assert_eq!(seen_as(&a, (ip_b, 80), WORKS), Some(ip_a.into()));
    // Hairpin: the neighbour by the address of the uplink.
    assert!(seen_as(&b, (DEVICE, 8080), WORKS).is_some());
    assert_eq!(*d.driver.services.started.borrow(), services, "no service was restarted");

    // The agent restarts: it finds everything and replaces nothing.
    d.engine = Engine::new(Backoff::default());
    let wanted = desired(vec![app(11, "a", web.clone()), app(12, "b", vec![rule(RuleAction::Allow)])]);
    let intended = holdfast_plan::plan(&Input {
        desired: &wanted,
        links: &links(),
        leases: &d.leases,
        allocations: &d.allocations,
        paths: &Default::default(),
        app_uids: &[(Uuid::from_u128(11), 2001), (Uuid::from_u128(12), 2002)].into(),
    })
    .graph;
    let found = d.runtime.block_on(d.driver.discover(&intended)).expect("discover");
    for (key, item) in intended.iter() {
        let there = found.get(key);
        assert_eq!(there, Some(&**item), "{key}");
    }
    d.engine.adopt(found);
    let (_, report) = d.apply(&wanted);
    assert_eq!((report.done, report.failed), (0, 0));
    long.write_all(b"still here").expect("write");
    let mut back = [0; 10];
    long.read_exact(&mut back).expect("the connection lives");
    assert_eq!(*d.driver.services.started.borrow(), services);

    // Somebody removes the bridge: it is noticed, and made anew with all that stood on it.
    let bridge = plan.instances[0].bridge.clone();
    assert_eq!(d.runtime.block_on(d.driver.lost(d.engine.current())).expect("look"), []);
    let link = d.runtime.block_on(d.driver.netlink().link(&bridge)).expect("bridge");
    d.runtime.block_on(d.driver.netlink().delete_link(&link)).expect("delete");
    let lost = d.runtime.block_on(d.driver.lost(d.engine.current())).expect("look");
    assert!(lost.contains(&ItemKey::Link(bridge)), "{lost:?}");
    for key in &lost {
        d.engine.mark_lost(key);
    }
    d.apply(&wanted);
    assert_eq!(resolve(&a, GATEWAY, "b.edge", false), Some((0, vec![ip_b])));
    assert_eq!(seen_as(&a, (ip_b, 80), WORKS), Some(ip_a.into()));
    long.write_all(b"still here").expect("write");
    long.read_exact(&mut back).expect("even now the connection lives");

    // A rate: the burst passes, the flood does not.
    let limit = Rule {
        protocol: Some(Protocol::Udp),
        remote_port: Some(9000),
        ..rule(RuleAction::Limit { rate: 5, per: RateUnit::Second, burst: 10 })
    };
    d.apply(&desired(vec![app(11, "a", web.clone()), app(12, "b", vec![limit, rule(RuleAction::Allow)])]));
    let sink = outside.run(|| UdpSocket::bind((ROUTER, 9000)).expect("bind"));
    sink.set_read_timeout(Some(DROPPED)).expect("timeout");
    b.run(|| {
        let s = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("bind");
        for _ in 0..200 {
            s.send_to(b"x", (ROUTER, 9000)).expect("send");
        }
    });
    let passed = (0..200).take_while(|_| sink.recv(&mut [0; 4]).is_ok()).count();
    assert!((10..=30).contains(&passed), "{passed} of 200 passed");
    assert_eq!(seen_as(&b, (ROUTER, 7000), WORKS), Some(DEVICE.into()));

    // Other rules of it and of its neighbour leave standing what was counted.
    let dropped = |d: &Device, app: u128| {
        let counters = d.driver.nft().counters(Family::Inet).expect("counters");
        let name = format!("out-{}", names::interface_id(Uuid::from_u128(app), 0));
        counters.iter().find(|(n, _)| *n == name).expect("counter").1.packets
    };
    let flood = dropped(&d, 12);
    assert!(flood >= 170, "{flood} counted");

    // A drop rule before the allowance ends even the connection that is open (it was an allowance once: eve#2184).
    let mut dropping = web.clone();
    dropping.insert(0, drop_to_outside());
    dropping.pop();
    d.apply(&desired(vec![app(11, "a", dropping), app(12, "b", vec![rule(RuleAction::Allow)])]));
    assert_eq!(seen_as(&a, (ROUTER, 7000), DROPPED), None);
    assert_eq!(dropped(&d, 12), flood);
    assert!(dropped(&d, 11) > 0);
    long.write_all(b"x").expect("into the buffer");
    long.set_read_timeout(Some(DROPPED)).expect("timeout");
    assert!(long.read(&mut back).is_err());
    assert_eq!(seen_as(&a, (ip_b, 80), WORKS), Some(ip_a.into()));
    assert_eq!(seen_as(&outside, (DEVICE, 8080), DROPPED), None, "the port map is gone");

    // The end: nothing is left but the port.
    d.engine.set_intended(Graph::new());
    d.runtime.block_on(drive(&mut d.engine, &d.driver, Instant::now()));
    assert!(d.engine.is_settled(), "{:?}", d.engine.states());
    let empty = Graph::new();
    let left = d.runtime.block_on(d.driver.discover(&empty)).expect("discover");
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(d.runtime.block_on(d.driver.netlink().links()).expect("links").len(), before);
    assert!(!d.driver.services.is_alive("dhcp-eth0"));
}
