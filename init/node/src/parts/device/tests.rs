//! The part's turn on a bench.

use super::*;
use crate::parts::app::facts::Guest;
use crate::testing::Bench;
use crate::world::Local;
use holdfast_model::desired::Commands;
use std::cell::RefCell;
use std::future::ready;
use std::path::Path;
use std::time::Duration;
use uuid::Uuid;

#[derive(Default)]
struct World {
    did: RefCell<Vec<String>>,
}

impl Machine for World {
    fn ready(&self) -> Local<Result<(), String>> {
        self.did.borrow_mut().push("ready".into());
        Box::pin(ready(Ok(())))
    }
    fn reboot(&self, text: String) -> Local<Result<(), String>> {
        self.did.borrow_mut().push(format!("reboot: {text}"));
        Box::pin(ready(Ok(())))
    }
    fn debug(&self, order: &'static str) -> Local<Result<String, String>> {
        self.did.borrow_mut().push(order.into());
        Box::pin(ready(Ok(format!("said of {order}"))))
    }
}

fn boot(boot_count: u64) -> BootFacts {
    serde_json::from_value(serde_json::json!({
        "slot": "A", "version": "1", "epoch": 0, "boot_count": boot_count,
        "partitions": holdfast_model::boot::Partitions::default(), "tpm": false, "secure_boot": false, "watchdog": "",
        "stages": [], "measurements": [], "previous_end": "", "previous_reason": null, "fallback_reason": "",
    }))
    .unwrap()
}

fn part(boot_count: u64, kept: Kept) -> (Rc<World>, DevicePart, Bench) {
    let world = Rc::new(World::default());
    let means = Means {
        machine: world.clone(),
        boot: boot(boot_count),
        vault_open: true,
        has_controller: true,
        kind: Kind::Dev,
        constant: DeviceStatus { cpus: 4, ..DeviceStatus::default() },
    };
    let mut part = DevicePart::over(means, kept);
    let mut bench = Bench::default();
    bench.settle(&mut part);
    (world, part, bench)
}

fn commands(reboot: u32, shutdown: u32) -> Desired {
    Desired { commands: Commands { reboot, shutdown }, revision: "r".into(), ..Desired::default() }
}

fn held(bench: &Bench) -> Option<String> {
    bench.facts.get::<Held>().unwrap().0.clone()
}

fn kept(bench: &Bench) -> Kept {
    serde_json::from_slice(&bench.files[Path::new(FILE)]).unwrap()
}

#[test]
fn a_reboot_command_is_saved_then_apps_end_then_the_machine_reboots_once() {
    let (world, mut part, mut bench) = part(1, Kept::default());
    bench.config(&mut part, commands(3, 0));
    assert_eq!(*world.did.borrow(), ["ready"], "the first value orders nothing");
    bench.facts.publish(Guests([(Uuid::from_u128(1), Guest { uid: 2000, running: true })].into()));
    bench.config(&mut part, commands(4, 0));
    assert_eq!(held(&bench).unwrap(), "the device goes down: reboot ordered by the controller (counter 4)");
    bench.at(&mut part, 10);
    assert_eq!(world.did.borrow().len(), 1, "an app runs");
    bench.facts.publish(Guests::default());
    bench.settle(&mut part);
    assert_eq!(world.did.borrow()[1], "reboot: reboot ordered by the controller (counter 4)");
    bench.at(&mut part, 20);
    assert_eq!(world.did.borrow().len(), 2);

    let (after, mut next, mut later) = self::part(2, kept(&bench));
    later.config(&mut next, commands(4, 0));
    later.at(&mut next, 100);
    assert_eq!(*after.did.borrow(), ["ready"]);
    let mut observed = Observed::default();
    next.observe(&mut observed);
    assert_eq!(observed.device.last_reboot.text, "reboot ordered by the controller (counter 4)");
}

#[test]
fn a_counter_that_cannot_be_saved_does_not_reboot() {
    let (world, mut part, mut bench) = part(1, Kept::default());
    bench.config(&mut part, commands(3, 0));
    bench.full = true;
    bench.config(&mut part, commands(4, 0));
    for at in [31, 36, 41] {
        bench.at(&mut part, at);
    }
    assert_eq!(world.did.borrow().len(), 1);
    bench.full = false;
    bench.at(&mut part, 46);
    assert_eq!(world.did.borrow().len(), 2);
}

#[test]
fn apps_that_were_shut_down_stay_so_until_the_next_boot() {
    let (_, mut part, mut bench) = part(5, Kept::default());
    bench.config(&mut part, commands(0, 1));
    assert_eq!(held(&bench), None);
    bench.config(&mut part, commands(0, 2));
    assert!(held(&bench).unwrap().starts_with("shut down by the controller"));
    let (_, mut restarted, mut again) = self::part(5, kept(&bench));
    again.config(&mut restarted, commands(0, 2));
    assert!(held(&again).is_some(), "another agent in the same boot");
    let (_, mut next, mut later) = self::part(6, kept(&bench));
    later.config(&mut next, commands(0, 2));
    assert_eq!(held(&later), None);
}

#[test]
fn silence_of_the_controller_ends_in_a_reboot() {
    let (world, mut part, mut bench) = part(1, Kept::default());
    let mut desired = commands(0, 0);
    desired.properties.reboot_no_network_seconds = 600;
    bench.config(&mut part, desired);
    bench.facts.publish(Contact { last: Some(Duration::from_secs(100)), ..Contact::default() });
    bench.at(&mut part, 700);
    assert_eq!(held(&bench), None);
    bench.at(&mut part, 701);
    bench.at(&mut part, 703);
    assert!(world.did.borrow()[1].contains("timer.reboot.no.network"));
}

#[test]
fn a_debugging_order_is_followed_once_after_it_was_saved() {
    let (world, mut part, mut bench) = part(1, Kept::default());
    let mut desired = commands(0, 0);
    desired.properties.unknown.push((debug::MEMORY.into(), "now".into()));
    bench.full = true;
    bench.config(&mut part, desired.clone());
    assert_eq!(world.did.borrow().len(), 1);
    bench.full = false;
    bench.at(&mut part, 5);
    assert_eq!((world.did.borrow().len(), bench.said("said of debug.memory")), (2, 1));
    let (after, mut next, mut later) = self::part(1, kept(&bench));
    later.config(&mut next, desired);
    assert_eq!(after.did.borrow().len(), 1);
}

#[test]
fn what_others_say_of_the_device_stays() {
    let (_, part, _) = part(1, Kept::default());
    let mut observed = Observed::default();
    observed.device.trust.tpm = true;
    part.observe(&mut observed);
    assert_eq!((observed.device.trust.tpm, observed.device.cpus, observed.device.boot_count), (true, 4, 1));
}

#[test]
fn without_the_vault_nothing_is_measured_or_saved_and_a_fallback_still_reboots() {
    let world = Rc::new(World::default());
    let means = Means {
        machine: world.clone(),
        boot: boot(1),
        vault_open: false,
        has_controller: false,
        kind: Kind::Dev,
        constant: DeviceStatus::default(),
    };
    let (mut part, mut bench) = (DevicePart::over(means, Kept::default()), Bench::default());
    bench.facts.publish(Closed(Some("sealed to another image".into())));
    bench.settle(&mut part);
    let mut observed = Observed::default();
    part.observe(&mut observed);
    assert_eq!(observed.device.state, DeviceState::Maintenance);
    assert_eq!(observed.device.maintenance, "sealed to another image");
    let order = RebootOrder { reason: BootReason::Fallback, text: "the vault did not open".into() };
    bench.event(&mut part, &Event::News(Rc::new(order)));
    assert!(world.did.borrow().is_empty() && bench.files.is_empty());
    bench.at(&mut part, 30);
    assert_eq!(*world.did.borrow(), ["reboot: the vault did not open"]);
}
