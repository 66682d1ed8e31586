use super::*;
use crate::testing::Bench;
use holdfast_model::net::Uplink;
use std::time::Duration;

fn part() -> (ControllerPart, watch::Receiver<Uplinks>) {
    let (sender, receiver) = watch::channel(Uplinks::default());
    (ControllerPart::over(sender), receiver)
}

fn news(event: SessionEvent) -> Event {
    Event::News(Rc::new(event))
}

#[test]
fn a_config_of_the_controller_is_a_contact_and_one_from_disk_is_none() {
    let (mut part, _ways) = part();
    let mut bench = Bench::default();
    bench.now = Duration::from_secs(7);
    let config = || Box::new(Desired { revision: "3".into(), ..Desired::default() });
    bench.event(&mut part, &news(SessionEvent::Stored(Some(config()))));
    assert_eq!(bench.facts.get::<Contact>().unwrap().last, None);
    assert_eq!(bench.said("config 3 from disk is in force"), 1);
    bench.event(&mut part, &news(SessionEvent::Config(config())));
    assert_eq!(bench.facts.get::<Contact>().unwrap().last, Some(Duration::from_secs(7)));
    assert_eq!(bench.said("config 3 accepted: 0 apps, 0 network instances, 0 faults"), 1);
    let mut observed = Observed::default();
    part.observe(&mut observed);
    assert_eq!(observed.device.config_revision, "3");
}

#[test]
fn what_fails_again_and_again_is_said_once_and_kept_as_a_failure() {
    let (mut part, _ways) = part();
    let mut bench = Bench::default();
    for _ in 0..3 {
        bench.event(&mut part, &news(SessionEvent::NoContact { temporary: true }));
        bench.event(&mut part, &news(SessionEvent::Trouble("config: no route".into())));
    }
    assert_eq!(bench.said("no route"), 1);
    assert!(bench.facts.get::<Contact>().unwrap().last_failure.unwrap().temporary);
}

#[test]
fn the_session_learns_of_ways_as_they_come_and_go() {
    let (mut part, mut ways) = part();
    let mut bench = Bench::default();
    bench.settle(&mut part);
    assert!(!ways.has_changed().unwrap());
    bench.facts.publish(Uplinks(vec![Uplink::default()]));
    bench.settle(&mut part);
    assert_eq!(ways.borrow_and_update().0.len(), 1);
    bench.settle(&mut part);
    assert!(!ways.has_changed().unwrap(), "nothing changed");
}

#[test]
fn a_config_that_is_refused_is_an_error_of_the_device_until_the_controller_sends_one_that_fits() {
    let (mut part, _ways) = part();
    let mut bench = Bench::default();
    let faults = |part: &ControllerPart| {
        let mut observed = Observed::default();
        part.observe(&mut observed);
        observed.faults.into_iter().map(|fault| (fault.on.kind, fault.text)).collect::<Vec<_>>()
    };
    for _ in 0..2 {
        bench.event(&mut part, &news(SessionEvent::Refused("for another device".into())));
    }
    assert_eq!(faults(&part), [(ObjectKind::Device, "for another device".to_owned())]);
    assert_eq!(bench.said("for another device"), 1);
    bench.event(&mut part, &news(SessionEvent::Contact));
    assert_eq!(faults(&part), []);
}
