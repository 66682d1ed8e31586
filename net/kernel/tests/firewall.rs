//! The firewall against the real kernel, each test in a network namespace of its own thread, and against the `nft` program as
//! an independent witness. Without root (or the witness) a test says so and does nothing.

mod scale;

use holdfast_engine::{Backoff, Engine, Graph, Item, Report, State, drive};
use holdfast_model::net::Prefix;
use holdfast_netkernel::nft::read::Count;
use holdfast_netkernel::{NetDriver, Prepared, Services, sys};
use holdfast_plan::Plan;
use holdfast_plan::firewall::skeleton::{APPS, TAPS, WALK_IN, WALK_OUT};
use holdfast_plan::firewall::{Family, Match, Owner, Part, Rule, Verdict};
use holdfast_plan::kinds::firewall_element::Target;
use holdfast_plan::kinds::{FirewallChain, FirewallCounter, FirewallElement, FirewallSkeleton, NetItem, Service};
use scale::{changed, desired, planned};
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};
use uuid::Uuid;

struct NoServices;

impl Services for NoServices {
    async fn start(&self, service: &Service, _: Prepared) -> Result<(), String> {
        Err(format!("{} is not to be started", service.name))
    }

    async fn update(&self, _: &Service, new: &Service) -> Result<(), String> {
        Err(format!("{} is not to be changed", new.name))
    }

    async fn stop(&self, service: &Service) -> Result<(), String> {
        Err(format!("{} is not to be stopped", service.name))
    }

    async fn running(&self) -> Vec<Service> {
        Vec::new()
    }
}

/// A driver in a fresh namespace.
fn driver() -> Option<NetDriver<NoServices>> {
    match sys::unshare_network() {
        Ok(()) => Some(NetDriver::new(NoServices, "/nonexistent").expect("driver")),
        Err(e) => {
            println!("not run: a network namespace needs root ({e})");
            None
        }
    }
}

/// What `nft` says, if it is installed.
fn nft(args: &[&str]) -> Option<String> {
    match Command::new("nft").args(args).output() {
        Err(e) => {
            println!("not run: nft is not installed ({e})");
            None
        }
        Ok(o) => {
            assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
            Some(String::from_utf8(o.stdout).expect("text"))
        }
    }
}

async fn run(engine: &mut Engine<NetItem>, driver: &NetDriver<NoServices>) -> Report {
    drive(engine, driver, Instant::now()).await
}

fn prefix(text: &str) -> Prefix {
    text.parse().expect("prefix")
}

fn add(graph: &mut Graph<NetItem>, family: Family, map: &'static str, key: Vec<Part>, target: Target, owner: Owner) {
    graph.insert(NetItem::from(FirewallElement { family, map, key, target, owner }));
}

/// Adds a chain with what its rules count with; gives its name.
fn add_chain(graph: &mut Graph<NetItem>, family: Family, name: &str, rules: Vec<Rule>, owner: Owner) -> String {
    let chain = FirewallChain::new(family, name, rules, owner);
    if let Some(counter) = chain.counter.clone() {
        graph.insert(NetItem::from(FirewallCounter { family, name: counter, owner }));
    }
    let name = chain.name.clone();
    graph.insert(NetItem::from(chain));
    name
}

fn skeleton() -> Graph<NetItem> {
    [Family::Inet, Family::Bridge].map(|family| NetItem::from(FirewallSkeleton::of(family))).into_iter().collect()
}

/// An app with these rules for what it sends; it may be reached by nobody.
fn app(graph: &mut Graph<NetItem>, n: u8, rules: Vec<Rule>) {
    let owner = Owner(Some(Uuid::from_u128(n.into())));
    let key = vec![Part::Interface(format!("br-{n}")), Part::Address4(Ipv4Addr::new(10, 1, n, 2))];
    let closed = vec![Rule::new(vec![], Verdict::Drop).counted()];
    let out = add_chain(graph, Family::Inet, &format!("out-{n}"), rules, owner);
    let into = add_chain(graph, Family::Inet, &format!("in-{n}"), closed, owner);
    add(graph, Family::Inet, WALK_OUT, key.clone(), Target::Jump(out), owner);
    add(graph, Family::Inet, WALK_IN, key.clone(), Target::Jump(into), owner);
    add(graph, Family::Inet, APPS, key, Target::Member, owner);
}

/// The firewall alone, so that a test needs no interfaces.
fn firewall_of(plan: &Plan) -> Graph<NetItem> {
    let mut graph = Graph::new();
    for (_, item) in plan.graph.iter().filter(|(_, i)| i.batch().is_some()) {
        graph.insert(item.clone());
    }
    graph
}

fn dropping() -> Vec<Rule> {
    vec![Rule::new(vec![], Verdict::Drop).counted()]
}

#[tokio::test]
async fn nft_reads_back_every_kind_of_rule_and_element() {
    let Some(driver) = driver() else { return };
    let mut intended = skeleton();
    let rules = vec![
        Rule::new(
            vec![Match::Destination(prefix("10.0.0.0/20")), Match::Protocol(6), Match::DestinationPort(80)],
            Verdict::Return,
        ),
        Rule::new(
            vec![Match::Protocol(17), Match::SourcePort(53), Match::Limit { rate: 10, per_seconds: 60, burst: 4 }],
            Verdict::Accept,
        ),
        Rule::new(vec![Match::Source(prefix("fd00::/8")), Match::Protocol(58), Match::IcmpType(135)], Verdict::Accept),
        Rule::new(vec![Match::OutputInterface("br-1".into()), Match::CtDnat, Match::CtOriginal], Verdict::Accept),
        Rule::new(vec![], Verdict::Drop).counted(),
    ];
    app(&mut intended, 1, rules);
    let mac = [2, 0, 0, 0, 0, 1];
    let frames = vec![
        Rule::new(vec![Match::EtherSourceNot(mac)], Verdict::Drop).counted(),
        Rule::new(
            vec![Match::EtherType(0x0806), Match::ArpSenderMac(mac), Match::ArpSenderIp(Ipv4Addr::new(10, 1, 1, 2))],
            Verdict::Accept,
        ),
        Rule::new(vec![Match::Source(prefix("10.1.1.2/32"))], Verdict::Accept),
    ];
    let from = add_chain(&mut intended, Family::Bridge, "from-1", frames, Owner::default());
    let tap = vec![Part::Interface("tap-1".into())];
    add(&mut intended, Family::Bridge, TAPS, tap, Target::Goto(from.clone()), Owner::default());
    let mut engine = Engine::new(Backoff::default());
    engine.set_intended(intended.clone());
    let report = run(&mut engine, &driver).await;
    assert_eq!((report.failed, engine.is_settled()), (0, true), "{:?}", engine.states());
    if let Some(text) = nft(&["list", "ruleset"]) {
        for line in [
            "comment \"holdfast ",
            "ip daddr 10.0.0.0/20 tcp dport 80 return",
            "udp sport 53 limit rate 10/minute burst 4 packets accept",
            "ip6 saddr fd00::/8 icmpv6 type nd-neighbor-solicit accept",
            "oifname \"br-1\" ct status dnat ct direction original accept",
            "counter name \"out-1\" drop",
            "iifname @bridges iifname . ip saddr != @apps drop",
            "iifname . ip saddr vmap @walk-out",
            "oifname . ip daddr vmap @walk-in",
            "iifname . ip daddr . meta l4proto . th dport vmap @port-maps",
            "elements = { \"br-1\" . 10.1.1.2 }",
            "type filter hook forward priority filter; policy drop;",
            "type nat hook postrouting priority srcnat; policy accept;",
            "ether saddr != 02:00:00:00:00:01 counter name \"from-1\" drop",
            "arp saddr ether 02:00:00:00:00:01 arp saddr ip 10.1.1.2 accept",
            "iifname vmap @taps",
            &format!("elements = {{ \"tap-1\" : goto {from} }}"),
        ] {
            assert!(text.contains(line), "{line}: not in\n{text}");
        }
    }
    // A restarted process finds all of it, and has nothing to do.
    let found = driver.discover(&intended).await.expect("discover");
    assert_eq!(found, intended);
    // The end: nothing is left.
    engine.set_intended(Graph::new());
    assert_eq!(run(&mut engine, &driver).await.failed, 0);
    assert!(driver.discover(&Graph::new()).await.expect("discover").is_empty());
}

#[tokio::test]
async fn counters_survive_another_rule_of_the_same_and_of_another_app() {
    let Some(driver) = driver() else { return };
    let mut engine = Engine::new(Backoff::default());
    engine.set_intended(skeleton());
    run(&mut engine, &driver).await;
    // As if both had dropped packets before.
    for n in [1, 2] {
        if nft(&[&format!("add counter inet holdfast out-{n} {{ packets {n} bytes 100 ; }}")]).is_none() {
            return;
        }
    }
    let mut before = skeleton();
    app(&mut before, 1, dropping());
    app(&mut before, 2, dropping());
    engine.set_intended(before);
    run(&mut engine, &driver).await;
    let mut after = skeleton();
    app(&mut after, 1, [vec![Rule::new(vec![Match::Protocol(6)], Verdict::Return)], dropping()].concat());
    app(&mut after, 2, dropping());
    engine.set_intended(after);
    // Its new chain, the element that leads to it, its old chain; of the neighbour nothing.
    assert_eq!(run(&mut engine, &driver).await.done, 3);
    let text = nft(&["list", "counters"]).expect("nft");
    let counted = driver.nft().counters(Family::Inet).expect("counters");
    for n in [1, 2] {
        assert!(text.contains(&format!("counter out-{n} {{\n\t\tpackets {n} bytes 100\n")), "{text}");
        assert!(counted.contains(&(format!("out-{n}"), Count { packets: n, bytes: 100 })), "{counted:?}");
    }
    let text = nft(&["list", "ruleset"]).expect("nft");
    assert!(text.contains("meta l4proto tcp return\n\t\tcounter name \"out-1\" drop"), "{text}");
}

#[tokio::test]
async fn an_app_whose_chain_is_refused_keeps_nobody_else_out() {
    let Some(driver) = driver() else { return };
    let mut intended = skeleton();
    app(&mut intended, 1, dropping());
    app(&mut intended, 2, vec![Rule::new(vec![], Verdict::Jump("nowhere".into()))]);
    app(&mut intended, 3, dropping());
    let mut engine = Engine::new(Backoff::default());
    engine.set_intended(intended.clone());
    run(&mut engine, &driver).await;
    for (key, state) in engine.states() {
        let text = key.to_string();
        if text.contains("-2") {
            assert_ne!(state, State::Created, "{text}");
        } else {
            assert_eq!(state, State::Created, "{text}");
        }
    }
    let chain = intended.iter().map(|(k, _)| k).find(|k| k.to_string().contains("chain inet out-2")).expect("chain");
    let Some(State::Failed { error, .. }) = engine.state(chain) else { panic!("{:?}", engine.state(chain)) };
    assert!(error.contains("change the firewall: rule 1 of chain out-2"), "{error}");
    // Repaired, it gets in.
    let mut repaired = skeleton();
    (1..=3).for_each(|n| app(&mut repaired, n, dropping()));
    engine.set_intended(repaired);
    drive(&mut engine, &driver, Instant::now() + Duration::from_secs(120)).await;
    assert!(engine.states().values().all(|s| *s == State::Created), "{:?}", engine.states());
}

#[tokio::test]
async fn a_table_of_another_version_is_replaced_with_all_that_is_in_it() {
    let Some(driver) = driver() else { return };
    let mut intended = skeleton();
    app(&mut intended, 1, dropping());
    let mut engine = Engine::new(Backoff::default());
    engine.set_intended(intended.clone());
    // No digest on the table, a chain that nobody wants, and an element that leads to it.
    for line in [
        "add table inet holdfast",
        "add chain inet holdfast out-9.0123456789abcdef",
        "add map inet holdfast walk-out { type ifname . ipv4_addr : verdict ; }",
        "add element inet holdfast walk-out { br-9 . 10.9.0.2 : jump out-9.0123456789abcdef }",
    ] {
        if nft(&[line]).is_none() {
            return;
        }
    }
    engine.adopt(driver.discover(&intended).await.expect("discover"));
    let report = run(&mut engine, &driver).await;
    assert_eq!((report.failed, engine.is_settled()), (0, true), "{:?}", engine.states());
    assert_eq!(driver.discover(&intended).await.expect("discover"), intended);
}

#[tokio::test]
async fn what_others_removed_is_noticed_and_created_again() {
    let Some(driver) = driver() else { return };
    let mut intended = skeleton();
    app(&mut intended, 1, dropping());
    let mut engine = Engine::new(Backoff::default());
    engine.set_intended(intended.clone());
    run(&mut engine, &driver).await;
    assert_eq!(driver.lost(engine.current()).await.expect("look"), []);
    if nft(&["flush", "ruleset"]).is_none() {
        return;
    }
    let lost = driver.lost(engine.current()).await.expect("look");
    assert_eq!(lost.len(), intended.len());
    lost.iter().for_each(|key| engine.mark_lost(key));
    assert_eq!(run(&mut engine, &driver).await.failed, 0);
    assert_eq!(driver.discover(&intended).await.expect("discover"), intended);
}

#[tokio::test]
async fn one_changed_rule_among_many_apps_costs_what_its_app_has() {
    // Counts only: they depend on nothing but the plan.
    for (apps, rules) in [(10, 50), (200, 50)] {
        let mut engine = scale::engine();
        engine.set_intended(planned(&desired(apps, rules)).graph);
        scale::pretend(&mut engine);
        engine.set_intended(planned(&changed(desired(apps, rules))).graph);
        let actions = scale::pretend(&mut engine);
        let (messages, bytes) = scale::sent(&actions);
        // Two chains: created, with each rule; the elements that lead to them; the old ones removed.
        assert_eq!(actions.len(), 6, "{apps} apps");
        assert_eq!(messages, 2 * (1 + 1 + rules as usize + 1) + 2 * 2 + 2, "{apps} apps");
        assert!(bytes < 60_000, "{apps} apps: {bytes}");
    }
}

#[tokio::test]
async fn two_hundred_apps_with_512_rules_each_load_and_are_found() {
    let Some(driver) = driver() else { return };
    let intended = firewall_of(&planned(&desired(200, 512)));
    let mut engine = Engine::new(Backoff::default());
    engine.set_intended(intended.clone());
    let begin = Instant::now();
    let report = run(&mut engine, &driver).await;
    println!("loaded in {:?}", begin.elapsed());
    assert_eq!((report.failed, engine.is_settled()), (0, true));
    let begin = Instant::now();
    let found = driver.discover(&intended).await.expect("discover");
    println!("found in {:?}", begin.elapsed());
    assert_eq!(found.len(), intended.len());
    assert!(intended.iter().all(|(key, _)| found.contains(key)));
    let begin = Instant::now();
    engine.set_intended(firewall_of(&planned(&changed(desired(200, 512)))));
    let report = run(&mut engine, &driver).await;
    println!("one rule changed in {:?}", begin.elapsed());
    assert_eq!((report.done, report.failed), (6, 0));
}
