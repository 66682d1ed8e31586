use super::*;
use crate::{LinkFact, last_resort};
use PortConfigSource as Source;
use holdfast_model::desired::Desired;
use holdfast_model::net::{Adapter, Addressing4, Addressing6, Link, LinkKind, Port, PortUsage, Static};

const POLL: u64 = 10;

fn now(seconds: u64) -> Now {
    Now { uptime: Duration::from_secs(seconds), unix_seconds: 1_800_000_000 + seconds as i64 }
}

/// One adapter for management, by DHCP; `name` tells one content from another.
fn layers(name: &str) -> Layers {
    let Desired { ports, links, adapters, .. } = last_resort(&[link(name)]);
    Layers { ports, links, adapters }
}

fn link(name: &str) -> LinkFact {
    LinkFact { name: name.into(), mac: [2; 6], pci: String::new() }
}

fn tried(works: bool) -> [Tried; 1] {
    [Tried { adapter: "a".into(), result: if works { Ok(()) } else { Err("timeout".into()) } }]
}

/// The list with these sources; the content of each is named after it.
fn list(sources: &[Source], worked: Option<&str>) -> PortList {
    let mut list = PortList::new(worked.map(layers));
    list.set_properties(&Properties { fallback_any_ethernet: true, ..Properties::default() });
    for source in sources {
        list.set(*source, Some(layers(source.as_str())), now(0));
    }
    list
}

/// Polls every ten seconds; `works` says whether the source in use leads to the controller. Gives the source in use and whether it
/// was in contact, poll by poll.
fn run(list: &mut PortList, from: u64, to: u64, works: impl Fn(Source, u64) -> bool) -> Vec<(Source, bool)> {
    let mut seen = Vec::new();
    for at in (from..to).step_by(POLL as usize) {
        let said = list.turn(now(at));
        let source = list.current().expect("a configuration").source;
        assert!(said.is_none_or(|text| text.contains(source.as_str())));
        let reached = works(source, at);
        list.polled(&tried(reached), now(at));
        seen.push((source, reached));
    }
    seen
}

/// How long each source was in use, in order.
fn spans(seen: &[(Source, bool)]) -> Vec<(Source, u64)> {
    let mut spans: Vec<(Source, u64)> = Vec::new();
    for (source, _) in seen {
        match spans.last_mut() {
            Some((last, seconds)) if last == source => *seconds += POLL,
            _ => spans.push((*source, POLL)),
        }
    }
    spans
}

#[test]
fn a_config_that_never_works_is_given_up_soon_and_tried_again_from_one_that_works() {
    let mut list = list(&[Source::Site, Source::Controller], None);
    let seen = run(&mut list, 0, 1500, |source, _| source == Source::Site);
    let expected = [
        (Source::Controller, 30),
        (Source::Site, 600),
        (Source::Controller, 30),
        (Source::Site, 600),
        (Source::Controller, 30),
    ];
    assert_eq!(spans(&seen)[..5], expected);
    let report = list.report();
    let controller = &report.list[0];
    assert_eq!((controller.source, controller.verdict), (Source::Controller, Verdict::Fails));
    assert_eq!(controller.error, "no contact with the controller for 30 s");
    assert_eq!(controller.paths["a"].error, "timeout");
    assert!(controller.failed_seconds > 0 && controller.succeeded_seconds == 0);
    assert_eq!(report.list[report.current].verdict, Verdict::Works);
}

#[test]
fn a_config_that_is_repaired_is_found_and_stays() {
    let mut list = list(&[Source::Site, Source::Controller], None);
    run(&mut list, 0, 700, |source, _| source == Source::Site);
    let seen = run(&mut list, 700, 3000, |_, _| true);
    assert_eq!(spans(&seen).last().map(|(source, _)| *source), Some(Source::Controller));
    assert_eq!(list.worked(), Some(&layers(Source::Controller.as_str())));
    assert_eq!(list.report().list[0].error, "");
}

#[test]
fn a_config_that_has_worked_is_given_up_late_and_used_most_of_the_time_while_nothing_works() {
    let own = Source::Controller.as_str();
    let mut list = list(&[Source::Site, Source::Controller], Some(own));
    let seen = run(&mut list, 0, 4000, |_, _| false);
    let expected = [(Source::Controller, 600), (Source::Site, 30), (Source::Controller, 600), (Source::Site, 30)];
    assert_eq!(spans(&seen)[..4], expected, "as after a reboot while the provider is away");
}

#[test]
fn a_new_config_is_applied_at_once_and_the_last_that_worked_stands_behind_it() {
    let mut list = list(&[Source::Site, Source::Controller], None);
    run(&mut list, 0, 100, |_, _| true);
    let good = layers(Source::Controller.as_str());
    list.set(Source::Controller, Some(layers("broken")), now(100));
    assert_eq!(list.current().map(|config| &config.layers), Some(&layers("broken")));
    let seen = run(&mut list, 100, 400, |source, _| source == Source::Earlier);
    assert_eq!(spans(&seen), [(Source::Controller, 30), (Source::Earlier, 270)]);
    assert_eq!(list.current().map(|config| &config.layers), Some(&good));
    assert_eq!(list.worked(), Some(&good), "kept over a restart");

    // The operator takes it back: one and the same content is not in the list twice.
    list.set(Source::Controller, Some(good.clone()), now(400));
    assert_eq!(list.current().map(|config| config.source), Some(Source::Controller));
    assert!(list.report().list.iter().all(|config| config.source != Source::Earlier));
    // A third config, from a fallback that works.
    list.set(Source::Controller, Some(layers("third")), now(500));
    assert_eq!(list.current().map(|config| &config.layers), Some(&layers("third")));
    list.polled(&tried(true), now(510));
    assert_eq!(list.worked(), Some(&layers("third")));
}

#[test]
fn last_resort_is_used_when_allowed_or_when_there_is_nothing_else() {
    let mut alone = PortList::new(None);
    alone.set(Source::LastResort, Some(layers("any")), now(0));
    assert!(alone.turn(now(0)).is_some());
    assert_eq!(alone.current().map(|config| config.source), Some(Source::LastResort));
    alone.set(Source::Site, Some(layers("site")), now(1));
    assert!(alone.turn(now(1)).is_some(), "not allowed beside others");
    let seen = run(&mut alone, 10, 500, |_, _| false);
    assert_eq!(spans(&seen).len(), 1);
    alone.set_properties(&Properties { fallback_any_ethernet: true, ..Properties::default() });
    let seen = run(&mut alone, 500, 1500, |source, _| source == Source::LastResort);
    assert!(seen.iter().any(|(source, reached)| *source == Source::LastResort && *reached));
}

#[test]
fn a_config_without_ports_for_management_is_not_used() {
    let mut list = list(&[Source::Site], None);
    let mut shut = layers("shut");
    shut.adapters[0].management = false;
    list.set(Source::Controller, Some(shut), now(0));
    assert!(list.turn(now(0)).is_some());
    assert_eq!(list.current().map(|config| config.source), Some(Source::Site));
}

#[test]
fn nothing_is_judged_without_polls_and_one_failure_is_none() {
    let mut list = list(&[Source::Site, Source::Controller], None);
    assert_eq!(list.turn(now(0)), None, "a new config is applied when it comes");
    assert_eq!(list.turn(now(5000)), None);
    list.polled(&[], now(5000));
    list.polled(&tried(false), now(5000));
    assert_eq!(list.turn(now(5000)), None);
    list.polled(&tried(false), now(5010));
    assert!(list.turn(now(5010)).is_some());
}

#[test]
fn a_change_at_the_ports_gives_a_test_its_time_anew_but_once() {
    let mut list = list(&[Source::Site, Source::Controller], None);
    list.changed(now(25));
    let seen = run(&mut list, 30, 200, |_, _| false);
    assert_eq!(spans(&seen)[0], (Source::Controller, 30), "until 55 s");
    let mut flapping = self::list(&[Source::Site, Source::Controller], None);
    let left = (0..200).step_by(5).find(|at| {
        flapping.changed(now(*at));
        flapping.polled(&tried(false), now(*at));
        flapping.turn(now(*at)).is_some()
    });
    assert!(left.is_some_and(|at| at <= 40), "{left:?}");
}

#[test]
fn waits_are_the_properties() {
    let mut list = list(&[Source::Site, Source::Controller], None);
    list.set_properties(&Properties { port_test_seconds: 100, port_better_seconds: 0, ..Properties::default() });
    let seen = run(&mut list, 0, 5000, |source, _| source == Source::Site);
    assert_eq!(spans(&seen), [(Source::Controller, 100), (Source::Site, 4900)], "0 = never tried again");
}

#[test]
fn an_adapter_without_contact_counts_as_such_for_one_interval() {
    let mut list = list(&[Source::Controller], None);
    list.turn(now(0));
    let both =
        [Tried { adapter: "a".into(), result: Err("timeout".into()) }, Tried { adapter: "b".into(), result: Ok(()) }];
    list.polled(&both, now(10));
    let reach = |list: &PortList, at| list.reach(now(at)).into_values().collect::<Vec<_>>();
    assert_eq!(reach(&list, 20), [false, true]);
    assert_eq!(reach(&list, 310), [true, true]);
    list.polled(&both, now(310));
    list.polled(&tried(true), now(320));
    assert_eq!(reach(&list, 320), [true, true]);
}

#[test]
fn a_report_changes_when_something_does_and_not_at_each_poll() {
    let mut list = list(&[Source::Site, Source::Controller], None);
    run(&mut list, 0, 20, |_, _| true);
    let steady = list.report();
    run(&mut list, 20, 500, |_, _| true);
    assert_eq!(list.report(), steady);
    run(&mut list, 500, 520, |_, _| false);
    let failing = list.report();
    assert_ne!(failing, steady);
    run(&mut list, 520, 600, |_, _| false);
    assert_eq!(list.report(), failing);
    assert_eq!(failing.list[0].paths["a"].failed_seconds, 1_800_000_500);
}

/// Every set of sources, of those that lead to the controller before and after a change, and of what had worked before: the device
/// is never without contact for longer than it takes to give up the one in use and to try the others.
#[test]
fn no_combination_is_stuck_offline() {
    let all = Source::ALL;
    let subset = |mask: u32| all.iter().enumerate().filter(move |(n, _)| mask & 1 << n != 0).map(|(_, source)| *source);
    // Patience, one test for each other, and a poll more each time.
    let bound = 600 + 3 * 30 + 6 * POLL;
    let mut cases = 0;
    for present in 1..16_u32 {
        for before in 0..16_u32 {
            for after in (0..16_u32).filter(|after| after & present != 0) {
                for trusted in [false, true] {
                    let earlier = subset(present).any(|source| source == Source::Earlier);
                    let sources: Vec<Source> = subset(present).filter(|source| *source != Source::Earlier).collect();
                    if sources.is_empty() || (trusted && (earlier || !sources.contains(&Source::Controller))) {
                        continue;
                    }
                    let worked = match (earlier, trusted) {
                        (true, _) => Some("earlier"),
                        (false, true) => Some(Source::Controller.as_str()),
                        (false, false) => None,
                    };
                    let mut list = list(&sources, worked);
                    list.set(
                        Source::Controller,
                        list.configs.get(&Source::Controller).map(|c| c.layers.clone()),
                        now(0),
                    );
                    let works = |mask: u32| move |source: Source, _| subset(mask).any(|working| working == source);
                    run(&mut list, 0, 2000, works(before));
                    // A config that worked has taken the place of the earlier one.
                    let present = list.configs.keys().copied().collect::<Vec<_>>();
                    let lasting = subset(after).any(|source| present.contains(&source));
                    let seen = run(&mut list, 2000, 6000, works(after));
                    let mut silent = 0;
                    for (n, (_, reached)) in seen.iter().enumerate() {
                        silent = if *reached { 0 } else { silent + POLL };
                        assert!(!lasting || silent <= bound, "{present:?} {before:b} {after:b} {trusted}, poll {n}");
                    }
                    let best = subset(after).find(|source| present.contains(source));
                    if best.is_some_and(|best| Some(&best) == present.first()) {
                        assert_eq!(seen.last().map(|(source, _)| *source), best, "the preferred one is come back to");
                    }
                    cases += 1;
                }
            }
        }
    }
    assert!(cases > 1000, "{cases}");
}

#[test]
fn names_and_labels_of_the_config_stay_and_what_is_kept_from_the_host_stays_so() {
    let port = |label: &str, interface: &str, usage| Port {
        label: label.into(),
        physical_label: label.into(),
        interface: interface.into(),
        pci: String::new(),
        usage,
    };
    let fixed = Static { address: [10, 0, 0, 9].into(), prefix_length: 24, gateway: None };
    let adapter = Adapter {
        name: "uplink".into(),
        on: "up".into(),
        v4: Addressing4::Static(fixed),
        v6: Addressing6::None,
        cost: 7,
        labels: vec!["wan".into()],
        ..layers("x").adapters[0].clone()
    };
    let desired = Desired {
        ports: vec![
            port("up", "eth0", PortUsage::ManagementAndApps),
            port("apps", "eth1", PortUsage::Shared),
            port("given", "eth2", PortUsage::Dedicated),
        ],
        adapters: vec![adapter],
        ..Desired::default()
    };
    let links = ["eth0", "eth1", "eth2", "eth3"].map(link);
    let Desired { ports, links: none, adapters, .. } = last_resort(&links);
    let made = overlay(&desired, &Layers { ports, links: none, adapters }, &links);
    let view: Vec<_> = made.adapters.iter().map(|a| (a.name.as_str(), a.on.as_str(), a.management)).collect();
    assert_eq!(view, [("uplink", "up", true), ("eth1", "apps", true), ("eth3", "eth3", true)]);
    assert!(made.adapters.iter().all(|a| a.v4 == Addressing4::Dhcp));
    assert_eq!((made.adapters[0].cost, made.adapters[0].labels.as_slice()), (7, ["wan".to_owned()].as_slice()));
}

#[test]
fn an_earlier_vlan_stands_beside_what_the_config_has_on_its_port() {
    let links = [link("eth0")];
    let vlan = |label: &str, parent: &str| Link {
        label: label.into(),
        interface: "v7".into(),
        kind: LinkKind::Vlan { parent: parent.into(), id: 7 },
    };
    let mut earlier = layers("eth0");
    earlier.links = vec![vlan("old", "eth0")];
    earlier.adapters[0].on = "old".into();
    let mut desired = last_resort(&links);
    desired.ports[0].label = "up".into();
    desired.adapters[0].on = "up".into();
    let made = overlay(&desired, &earlier, &links);
    assert_eq!(made.links, [vlan("old", "up")]);
    assert_eq!(made.adapters.iter().map(|a| a.on.as_str()).collect::<Vec<_>>(), ["up", "old"]);
    desired.links = vec![vlan("new", "up")];
    desired.adapters[0].on = "new".into();
    let made = overlay(&desired, &earlier, &links);
    assert_eq!((made.links.len(), made.adapters.len(), made.adapters[0].on.as_str()), (1, 1, "new"));
}
