//! A device with many apps, each in a network instance of its own with many access rules; shared by the tests and the bench.

use holdfast_engine::{Action, Backoff, Engine, Op};
use holdfast_model::app::App;
use holdfast_model::contract::network::Lease;
use holdfast_model::desired::Desired;
use holdfast_model::net::{
    Addresses, AppInterface, InstanceKind, NetworkInstance, Prefix, Protocol, Rule, RuleAction, Subnet,
};
use holdfast_netkernel::cards::card_facts;
use holdfast_netkernel::nft::commit::messages;
use holdfast_plan::{Allocations, Input, LinkFact, NetItem, Plan, last_resort, path, plan};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Instant;
use uuid::Uuid;

/// The port.
pub fn links() -> Vec<LinkFact> {
    vec![LinkFact { name: "eth0".into(), mac: [2, 0, 0, 0, 0, 1], pci: String::new() }]
}

/// The rule of that number of an app.
pub fn rule(n: u32) -> Rule {
    Rule {
        id: n,
        remote: Some(Prefix { address: Ipv4Addr::from(0xc612_0000 + (n << 8)).into(), length: 24 }),
        host: None,
        protocol: Some(Protocol::Tcp),
        local_port: None,
        remote_port: Some(443),
        adapter: String::new(),
        action: RuleAction::Allow,
    }
}

/// `apps` apps of `rules` rules each.
pub fn desired(apps: u32, rules: u32) -> Desired {
    let mut desired = last_resort(&links());
    for n in 0..apps {
        let instance = Uuid::from_u128(0x1000 + u128::from(n));
        desired.instances.push(NetworkInstance {
            id: instance,
            version: "1".into(),
            name: format!("net{n}"),
            kind: InstanceKind::Local,
            activate: true,
            uplinks: vec!["uplink".into()],
            v4: Some(Subnet {
                network: Ipv4Addr::from(0x0a00_0000 + (n << 8)),
                prefix_length: 24,
                gateway: None,
                range: None,
            }),
            v6: None,
            dns: Vec::new(),
            domain: String::new(),
            names: Vec::new(),
            mtu: None,
        });
        desired.apps.push(App {
            id: Uuid::from_u128(0x2000 + u128::from(n)),
            version: "1".into(),
            name: format!("app{n}"),
            activate: true,
            vcpus: 1,
            memory_bytes: 1 << 27,
            volumes: Vec::new(),
            interfaces: vec![AppInterface {
                name: "eth0".into(),
                instance,
                fixed: Addresses::default(),
                mac: None,
                rules: (0..rules).map(rule).collect(),
            }],
            user_data: String::new(),
            restart_counter: 0,
            purge_counter: 0,
            start_delay_seconds: 0,
            disable_logs: false,
        });
    }
    desired
}

/// The same with one field of one rule of one app changed.
pub fn changed(mut desired: Desired) -> Desired {
    let middle = desired.apps.len() / 2;
    desired.apps[middle].interfaces[0].rules[0].remote_port = Some(8443);
    desired
}

/// The plan, on a port with a lease.
pub fn planned(desired: &Desired) -> Plan {
    let address = Ipv4Addr::new(192, 0, 2, 15);
    let router = Ipv4Addr::new(192, 0, 2, 1);
    let lease = Lease {
        address,
        prefix_length: 24,
        routers: vec![router],
        dns: Vec::new(),
        domain: String::new(),
        ntp: Vec::new(),
        mtu: None,
        routes: Vec::new(),
        server: router,
        lease_seconds: 3600,
    };
    let plan = plan(&Input {
        desired,
        links: &links(),
        leases: &BTreeMap::from([("eth0".to_owned(), lease)]),
        allocations: &Allocations::default(),
        paths: &path::Facts::default(),
        app_uids: &BTreeMap::new(),
    });
    assert_eq!(plan.faults, []);
    plan
}

/// An engine that knows the cards.
pub fn engine() -> Engine<NetItem> {
    let mut engine = Engine::new(Backoff::default());
    for fact in card_facts(&links(), engine.current()) {
        engine.tell(fact);
    }
    engine
}

/// Ends an operation as if it succeeded.
pub fn succeed(engine: &mut Engine<NetItem>, op: &Op<NetItem>) {
    engine.finished(op.id, op.actions.iter().map(|_| Ok(())).collect(), Instant::now());
}

/// Runs everything as if it succeeded; gives what was done.
pub fn pretend(engine: &mut Engine<NetItem>) -> Vec<Action<NetItem>> {
    let now = Instant::now();
    let mut done = Vec::new();
    loop {
        let ops = engine.next(now);
        if ops.is_empty() {
            assert!(engine.is_settled());
            return done;
        }
        for op in ops {
            succeed(engine, &op);
            done.extend(op.actions);
        }
    }
}

/// Messages to nftables and their bytes.
pub fn sent(actions: &[Action<NetItem>]) -> (usize, usize) {
    let all: Vec<_> = actions.iter().flat_map(messages).collect();
    (all.len(), all.iter().map(|(_, m)| m.size()).sum())
}
