//! What access rules become.

use super::*;
use crate::firewall::skeleton::{APPS, HAIRPINS, INBOUND, LEAVING, PAIRS, PORT_MAPS, WALK_IN, WALK_OUT};
use crate::firewall::{Match, Rule, Verdict};
use crate::kinds::FirewallChain;
use holdfast_model::net::RateUnit;

/// Rules of the chain of that purpose.
fn chain(plan: &Plan, purpose: &str) -> Vec<Rule> {
    let found = plan.graph.iter().find_map(|(_, item)| match &**item {
        NetItem::FirewallChain(c) if FirewallChain::purpose(&c.name) == Some(purpose) => Some(c.rules.clone()),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("no chain {purpose}"))
}

/// Keys of the elements of a map.
fn keys(plan: &Plan, map: &str) -> Vec<String> {
    let elements = plan.graph.iter().filter_map(|(_, item)| match &**item {
        NetItem::FirewallElement(e) if e.map == map => Some(e.key.iter().map(ToString::to_string).collect::<Vec<_>>()),
        _ => None,
    });
    elements.map(|key| key.join(" ")).collect()
}

#[test]
fn an_app_without_rules_gets_chains_that_only_drop() {
    let p = make(&desired(), true, &Allocations::default());
    let id = names::interface_id(uuid(12), 0);
    for name in [format!("out-{id}"), format!("in-{id}")] {
        let rules = chain(&p, &name);
        assert_eq!(rules, [Rule::new(vec![], Verdict::Drop).counted()], "{name}");
    }
}

#[test]
fn a_drop_rule_drops_and_one_that_cannot_be_read_closes_the_rest() {
    let mut d = desired();
    let mut named = rule(1, RuleAction::Drop);
    named.host = Some("bad.example".into());
    let prefix = net::Rule { remote: Some("198.51.100.0/24".parse().expect("prefix")), ..rule(1, RuleAction::Drop) };
    d.apps = vec![
        app(11, uuid(1), vec![prefix, rule(2, RuleAction::Allow)]),
        app(12, uuid(1), vec![named, rule(2, RuleAction::Allow)]),
    ];
    let p = make(&d, true, &Allocations::default());
    let verdicts = |app: u128| -> Vec<Verdict> {
        let rules = chain(&p, &format!("out-{}", names::interface_id(uuid(app), 0)));
        rules.into_iter().map(|r| r.verdict).collect()
    };
    assert_eq!(verdicts(11), [Verdict::Drop, Verdict::Return, Verdict::Drop]);
    assert_eq!(verdicts(12), [Verdict::Drop]);
}

#[test]
fn port_map_is_on_the_uplink_and_for_hairpins() {
    let p = make(&desired(), true, &Allocations::default());
    assert_eq!(keys(&p, PORT_MAPS), ["eth0 192.0.2.15 protocol 6 port 8080"]);
    assert_eq!(keys(&p, HAIRPINS), ["192.0.2.15 protocol 6 port 8080"]);
    let rules = chain(&p, &format!("map-{}", names::interface_id(uuid(11), 0)));
    let to = Verdict::Dnat { address: Ipv4Addr::new(10, 1, 0, 2), port: 80 };
    assert_eq!(rules, [Rule::new(vec![Match::Protocol(6), Match::DestinationPort(8080)], to)]);
}

#[test]
fn another_rule_of_one_app_changes_that_apps_chains_and_what_leads_to_them() {
    let before = make(&desired(), true, &Allocations::default());
    let mut d = desired();
    d.apps[0].interfaces[0].rules[0].remote_port = Some(443);
    d.apps[0].interfaces[0].rules[0].protocol = Some(Protocol::Tcp);
    let after = make(&d, true, &before.allocations);
    let changes = diff(&after.graph, &existing(&before), &Facts::default()).changes;
    let id = names::interface_id(uuid(11), 0);
    let mut found: Vec<(String, Change)> = Vec::new();
    for (key, change) in changes {
        found.push(match key {
            ItemKey::FirewallChain((_, name)) => (FirewallChain::purpose(&name).expect("ours").to_owned(), change),
            ItemKey::FirewallElement((_, map, _)) => (map.to_owned(), change),
            other => panic!("{other}: {change:?}"),
        });
    }
    found.sort_by_key(|(name, change)| (name.clone(), *change == Change::Remove));
    let chains = ["in", "out"].map(|direction| format!("{direction}-{id}"));
    let expected = [
        (chains[0].clone(), Change::Create),
        (chains[0].clone(), Change::Remove),
        (chains[1].clone(), Change::Create),
        (chains[1].clone(), Change::Remove),
        (WALK_IN.to_owned(), Change::Modify),
        (WALK_OUT.to_owned(), Change::Modify),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_switch_lets_all_frames_of_the_app_pass_or_none() {
    let mut d = desired();
    d.adapters.clear();
    let switch =
        NetworkInstance { kind: InstanceKind::Switch, uplinks: vec![], v4: None, ..instance(1, "10.1.0.0/24") };
    d.instances = vec![switch];
    let v6 = net::Rule { remote: Some("fd00::/8".parse().expect("prefix")), ..rule(1, RuleAction::Drop) };
    d.apps = vec![
        app(11, uuid(1), vec![rule(1, RuleAction::Allow)]),
        app(12, uuid(1), vec![v6, rule(2, RuleAction::Allow)]),
        app(13, uuid(1), vec![rule(1, RuleAction::Drop)]),
    ];
    let p = make(&d, true, &Allocations::default());
    let last = |app: u128| {
        let rules = chain(&p, &format!("from-{}", names::interface_id(uuid(app), 0)));
        rules.last().expect("a rule").verdict.clone()
    };
    assert_eq!([last(11), last(12), last(13)], [Verdict::Accept, Verdict::Drop, Verdict::Drop]);
    let accused: Vec<&str> = p.faults.iter().map(|f| f.on.name.as_str()).collect();
    assert_eq!(accused, ["App 12", "App 13"]);
}

#[test]
fn air_gapped_network_has_no_way_out() {
    let mut d = desired();
    d.instances[0].uplinks.clear();
    d.apps[0].interfaces[0].rules.pop();
    let p = make(&d, true, &Allocations::default());
    assert_eq!(p.faults, []);
    for map in [INBOUND, LEAVING, PORT_MAPS] {
        assert!(keys(&p, map).is_empty(), "{map}");
    }
    let bridge = names::bridge(uuid(1));
    assert_eq!(keys(&p, PAIRS), [format!("{bridge} {bridge}")]);
}

#[test]
fn a_rule_becomes_the_same_conditions_seen_from_both_ends() {
    let prefix: net::Prefix = "198.51.100.0/24".parse().expect("prefix");
    let tcp = |action| net::Rule {
        remote: Some(prefix),
        protocol: Some(Protocol::Tcp),
        local_port: Some(80),
        remote_port: Some(4000),
        ..rule(1, action)
    };
    let ends = |r: net::Rule| {
        let mut d = desired();
        d.apps = vec![app(11, uuid(1), vec![r])];
        let p = make(&d, true, &Allocations::default());
        let id = names::interface_id(uuid(11), 0);
        ["out", "in"].map(|direction| chain(&p, &format!("{direction}-{id}")))
    };
    let out = || {
        let ports = [Match::SourcePort(80), Match::DestinationPort(4000)];
        [vec![Match::Destination(prefix), Match::Protocol(6)], ports.to_vec()].concat()
    };
    let into = || {
        let ports = [Match::SourcePort(4000), Match::DestinationPort(80)];
        [vec![Match::Source(prefix), Match::Protocol(6)], ports.to_vec()].concat()
    };
    let drop = |matches| Rule::new(matches, Verdict::Drop).counted();
    let allowed = |matches| vec![Rule::new(matches, Verdict::Return), drop(vec![])];
    assert_eq!(ends(tcp(RuleAction::Allow)), [allowed(out()), allowed(into())]);
    assert_eq!(ends(tcp(RuleAction::Drop)), [vec![drop(out()), drop(vec![])], vec![drop(into()), drop(vec![])]]);
    let limit = |rate| RuleAction::Limit { rate, per: RateUnit::Minute, burst: 0 };
    let limited = |matches: Vec<Match>| {
        let rate = Match::Limit { rate: 5, per_seconds: 60, burst: 1 };
        let within = [matches.clone(), vec![rate]].concat();
        vec![Rule::new(within, Verdict::Return), drop(matches), drop(vec![])]
    };
    assert_eq!(ends(tcp(limit(5))), [limited(out()), limited(into())]);
    // A rate of nothing lets nothing pass.
    assert_eq!(ends(tcp(limit(0))), ends(tcp(RuleAction::Drop)));
    // A rule over another adapter than the uplink never fits.
    let elsewhere = net::Rule { adapter: "wan9".into(), ..tcp(RuleAction::Allow) };
    assert_eq!(ends(elsewhere), [vec![drop(vec![])], vec![drop(vec![])]]);
}

#[test]
fn an_app_is_let_through_only_when_packets_find_both_of_its_chains() {
    let p = make(&desired(), true, &Allocations::default());
    let members =
        p.graph.iter().filter(|(key, _)| matches!(key, ItemKey::FirewallElement((_, map, _)) if *map == APPS));
    let mut count = 0;
    for (key, _) in members {
        count += 1;
        for map in [WALK_OUT, WALK_IN] {
            let leads = |need: &ItemKey| matches!(need, ItemKey::FirewallElement((_, m, _)) if *m == map);
            assert!(p.graph.needs(key).iter().any(|n| leads(&n.key)), "{key} without {map}");
        }
    }
    assert_eq!(count, 2);
}
