//! The part's turn on a bench, over a STATE in memory and downloads that report what a test lets them.

use super::job::{Reported, unit};
use super::*;
use crate::fetching::{Get, Order, Reports};
use crate::parts::controller::facts::Failure;
use crate::testing::Bench;
use crate::world::Local;
use holdfast_model::base_os::BaseOs;
use holdfast_model::contract::fetch::{FailureClass, Outcome, Report};
use holdfast_model::desired::Desired;
use holdfast_model::observed::BootReason;
use holdfast_model::storage::{ContentTree, Datastore, DatastoreKind, ImageFormat};
use holdfast_slots::{Effect, Image, Phase, step};
use holdfast_supervise::{UnitName, UnitSpec, UnitState, UnitStatus};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{pending, ready};
use std::time::Duration;
use uuid::Uuid;

struct World {
    record: RefCell<Record>,
    refuse: RefCell<Option<String>>,
    committed: RefCell<Vec<u32>>,
    jobs: RefCell<Vec<Order>>,
    stopped: RefCell<usize>,
    reports: RefCell<VecDeque<Vec<Report>>>,
}

struct Script(RefCell<VecDeque<Report>>, bool);

impl Reports for Script {
    fn next(&self) -> Local<Option<Report>> {
        match self.0.borrow_mut().pop_front() {
            None if self.1 => Box::pin(pending()),
            report => Box::pin(ready(report)),
        }
    }
}

impl Slots for World {
    fn send(&self, events: Vec<SlotEvent>) -> Local<Sent> {
        let mut result = match self.refuse.borrow().clone() {
            Some(text) => Err(text),
            None => Ok(None),
        };
        for event in events {
            if result.is_err() {
                break;
            }
            let stepped = step(&self.record.borrow(), event);
            match stepped {
                Ok((record, effects)) => {
                    *self.record.borrow_mut() = record;
                    for effect in effects {
                        match effect {
                            Effect::CommitEpoch(epoch) => self.committed.borrow_mut().push(epoch),
                            Effect::Reboot { reason, text } => result = Ok(Some((reason, text))),
                            _ => {}
                        }
                    }
                }
                Err(e) => result = Err(e.to_string()),
            }
        }
        Box::pin(ready(Sent { record: self.record.borrow().clone(), result }))
    }
    fn commit_epoch(&self, epoch: u32) -> Local<Result<(), String>> {
        self.committed.borrow_mut().push(epoch);
        Box::pin(ready(Ok(())))
    }
}

impl Fetching for World {
    fn start(&self, order: Order) -> Local<Result<Rc<dyn Reports>, String>> {
        self.jobs.borrow_mut().push(order);
        let list = self.reports.borrow_mut().pop_front();
        let script = Script(RefCell::new(list.clone().unwrap_or_default().into()), list.is_none());
        Box::pin(ready(Ok(Rc::new(script) as Rc<dyn Reports>)))
    }
    fn adopt(&self, _: UnitName) -> Local<Result<Rc<dyn Reports>, String>> {
        let list = self.reports.borrow_mut().pop_front().unwrap_or_default();
        Box::pin(ready(Ok(Rc::new(Script(RefCell::new(list.into()), false)) as Rc<dyn Reports>)))
    }
    fn stop(&self, _: UnitName) -> Local<Result<(), String>> {
        *self.stopped.borrow_mut() += 1;
        Box::pin(ready(Ok(())))
    }
    fn remove(&self, _: UnitName) -> Local<Result<(), String>> {
        Box::pin(ready(Ok(())))
    }
}

fn image(version: &str, epoch: u32) -> Image {
    Image { version: version.into(), epoch }
}

fn world(record: Record) -> Rc<World> {
    Rc::new(World {
        record: RefCell::new(record),
        refuse: RefCell::default(),
        committed: RefCell::default(),
        jobs: RefCell::default(),
        stopped: RefCell::default(),
        reports: RefCell::default(),
    })
}

/// Slot A runs version 1 of epoch 3.
fn stable() -> Record {
    Record::initial(Slot::A, image("1", 3))
}

/// Slot B runs version 2, which has to prove itself.
fn trial() -> Record {
    Record { phase: Phase::Trial { image: image("2", 4), reason: None }, ..stable() }
}

fn part(world: &Rc<World>, running: Slot) -> BaseOsPart {
    let means = Means {
        slots: world.clone(),
        fetching: world.clone(),
        roots_pem: vec![],
        release_key_pem: String::new(),
        partitions: Partitions { esp_b: "/dev/esp-b".into(), os_b: "/dev/os-b".into(), ..Partitions::default() },
        epoch: 3,
    };
    let record = world.record.borrow().clone();
    BaseOsPart::over(means, record, running, true)
}

fn desired(version: &str, activate: bool, retry_counter: u32) -> Desired {
    let [content, store] = [1, 2].map(Uuid::from_u128);
    let mut desired = Desired {
        base_os: Some(BaseOs { content, activate, version: version.into(), retry_counter }),
        contents: vec![ContentTree {
            id: content,
            name: "os".into(),
            datastores: vec![store],
            path: format!("{version}.update"),
            format: ImageFormat::Raw,
            sha256: String::new(),
            max_size_bytes: 0,
            generation: 0,
        }],
        datastores: vec![Datastore {
            id: store,
            kind: DatastoreKind::Https,
            host: "files".into(),
            path: String::new(),
            user: String::new(),
            password: String::new(),
            ca_pem: vec![],
        }],
        ..Desired::default()
    };
    desired.properties.download_retry_seconds = 600;
    desired.properties.test_window_seconds = 60;
    desired.properties.fallback_no_network_seconds = 300;
    desired
}

fn done(version: &str, epoch: u32) -> Report {
    Report::Done(Outcome::Update { version: version.into(), epoch })
}

fn reboot(bench: &Bench) -> Option<BootReason> {
    bench.facts.get::<RebootDue>().unwrap().0.as_ref().map(|(reason, _)| *reason)
}

fn contact(bench: &mut Bench, last: Option<u64>, failure: Option<(u64, bool)>) {
    let last_failure = failure.map(|(at, temporary)| Failure { at: Duration::from_secs(at), temporary });
    bench.facts.publish(Contact { last: last.map(Duration::from_secs), last_failure, device: None });
}

#[test]
fn a_version_is_streamed_into_the_other_slot_and_booted_when_the_controller_wants_it() {
    let world = world(stable());
    world.reports.borrow_mut().push_back(vec![done("2", 4)]);
    let (mut part, mut bench) = (part(&world, Slot::A), Bench::default());
    bench.config(&mut part, desired("2", false, 0));
    assert!(matches!(&world.jobs.borrow()[0].get, Get::Slot { esp, min_epoch: 3, .. } if esp.ends_with("esp-b")));
    assert_eq!(world.record.borrow().phase, Phase::Staged { image: image("2", 4), forced: false });
    assert_eq!(reboot(&bench), None);
    assert_eq!(bench.said("base OS 2: complete in the other slot, verified"), 1);
    bench.config(&mut part, desired("2", true, 0));
    assert_eq!(world.record.borrow().phase, Phase::Armed(image("2", 4)));
    assert_eq!(reboot(&bench), Some(BootReason::Update));
    assert_eq!(world.jobs.borrow().len(), 1);
}

#[test]
fn what_the_network_broke_is_tried_again_and_what_the_payload_is_wrong_about_is_not() {
    let world = world(stable());
    let failed = |class, text: &str| vec![Report::Failed { class, text: text.into() }];
    world.reports.borrow_mut().push_back(failed(FailureClass::Transport, "cut"));
    world.reports.borrow_mut().push_back(failed(FailureClass::Content, "bad signature"));
    let (mut part, mut bench) = (part(&world, Slot::A), Bench::default());
    bench.config(&mut part, desired("2", true, 0));
    assert_eq!(world.jobs.borrow().len(), 1);
    let reason = |part: &BaseOsPart| part.state.slots()[1].reason.clone();
    assert_eq!(reason(&part), "base OS 2: cut");
    bench.at(&mut part, 19);
    assert_eq!(world.jobs.borrow().len(), 1);
    bench.at(&mut part, 20);
    assert_eq!(world.jobs.borrow().len(), 2);
    assert!(reason(&part).contains("bad signature"), "{}", reason(&part));
    bench.at(&mut part, 5000);
    assert_eq!(world.jobs.borrow().len(), 2, "this version has failed");
    bench.config(&mut part, desired("2", true, 1));
    assert_eq!(world.jobs.borrow().len(), 3, "until the retry counter changes");
}

#[test]
fn another_version_ends_the_download_of_the_one_before() {
    let world = world(stable());
    let (mut part, mut bench) = (part(&world, Slot::A), Bench::default());
    bench.config(&mut part, desired("2", true, 0));
    bench.config(&mut part, desired("3", true, 0));
    assert_eq!((*world.stopped.borrow(), world.jobs.borrow().len()), (1, 1), "told once, then waited for");
    bench.event(&mut part, &Event::News(Rc::new(Reported(1, Rc::new(Script(RefCell::default(), true)), None))));
    assert_eq!(world.jobs.borrow().len(), 2);
}

#[test]
fn a_base_os_with_a_fault_stops_nothing_that_is_under_way() {
    let world = world(stable());
    let (mut part, mut bench) = (part(&world, Slot::A), Bench::default());
    bench.config(&mut part, desired("2", true, 0));
    bench.config(&mut part, Desired { base_os: None, ..desired("2", true, 0) });
    assert_eq!((*world.stopped.borrow(), part.state.busy()), (0, true));
}

#[test]
fn a_trial_is_committed_after_its_window_with_the_controller() {
    let world = world(trial());
    let (mut part, mut bench) = (part(&world, Slot::B), Bench::default());
    bench.config(&mut part, desired("2", true, 0));
    assert_eq!(*bench.facts.get::<InTrial>().unwrap(), InTrial(true));
    contact(&mut bench, Some(10), None);
    bench.at(&mut part, 10);
    bench.at(&mut part, 69);
    assert!(part.state.in_trial());
    bench.at(&mut part, 70);
    assert_eq!(world.record.borrow().phase, Phase::Stable);
    assert_eq!((world.record.borrow().committed, world.committed.borrow().clone()), (Slot::B, vec![4]));
    assert_eq!(bench.said("base OS in slot B committed"), 1);
}

#[test]
fn a_failed_poll_begins_the_window_anew_and_silence_ends_the_trial() {
    let world = world(trial());
    let (mut part, mut bench) = (part(&world, Slot::B), Bench::default());
    bench.config(&mut part, desired("2", true, 0));
    contact(&mut bench, Some(10), None);
    bench.at(&mut part, 10);
    contact(&mut bench, Some(10), Some((40, false)));
    bench.at(&mut part, 40);
    bench.at(&mut part, 100);
    assert!(part.state.in_trial(), "the window was broken");
    bench.at(&mut part, 340);
    assert_eq!(reboot(&bench), Some(BootReason::Fallback));
    let reason = "the controller was there, and then gave no sign of life for 300 s";
    assert!(bench.facts.get::<RebootDue>().unwrap().0.as_ref().unwrap().1.contains(reason));
}

#[test]
fn a_commit_that_the_tpm_refuses_is_tried_again_after_a_while() {
    let world = world(Record { phase: Phase::Committing(image("2", 4)), ..stable() });
    let (mut part, mut bench) = (part(&world, Slot::B), Bench::default());
    *world.refuse.borrow_mut() = Some("TPM: no answer".into());
    bench.settle(&mut part);
    assert_eq!((bench.said("base OS: TPM: no answer"), bench.begun.len()), (1, 1));
    *world.refuse.borrow_mut() = None;
    bench.at(&mut part, 29);
    assert_eq!(bench.begun.len(), 1);
    bench.at(&mut part, 30);
    assert_eq!(world.record.borrow().phase, Phase::Stable);
}

#[test]
fn nothing_is_decided_while_the_device_goes_down() {
    let world = world(stable());
    let (mut part, mut bench) = (part(&world, Slot::A), Bench::default());
    bench.facts.publish(GoingDown(Some(holdfast_model::observed::RebootRecord::default())));
    bench.config(&mut part, desired("2", true, 0));
    assert!(world.jobs.borrow().is_empty());
    bench.facts.publish(GoingDown(None));
    bench.settle(&mut part);
    assert_eq!(world.jobs.borrow().len(), 1);
}

#[test]
fn the_running_epoch_is_committed_once_outside_of_a_trial() {
    let world = world(stable());
    let (mut part, mut bench) = (part(&world, Slot::A), Bench::default());
    bench.settle(&mut part);
    bench.at(&mut part, 5);
    assert_eq!(*world.committed.borrow(), [3]);
    let tried = self::world(trial());
    let mut part = self::part(&tried, Slot::B);
    bench.settle(&mut part);
    assert!(tried.committed.borrow().is_empty());
}

#[test]
fn the_download_of_a_former_agent_goes_on_when_its_version_is_wanted() {
    for (version, adopted) in [("2", true), ("3", false)] {
        let world = world(Record { phase: Phase::Dirty(image("2", 3)), ..stable() });
        world.reports.borrow_mut().push_back(vec![done("2", 4)]);
        let (mut part, mut bench) = (part(&world, Slot::A), Bench::default());
        let mut spec = UnitSpec::new(unit(), "/bin/fetch", 1000);
        spec.tag = "2".into();
        let state = UnitState::Running { pid: 5 };
        let status = UnitStatus {
            name: unit(),
            state,
            since_ms: 0,
            restarts: 0,
            exit: None,
            end: None,
            spec: Some(Box::new(spec)),
        };
        bench.event(&mut part, &Event::Units([status].into()));
        bench.config(&mut part, desired(version, false, 0));
        let staged = world.record.borrow().phase == Phase::Staged { image: image("2", 4), forced: false };
        assert_eq!(
            (staged, world.jobs.borrow().len(), *world.stopped.borrow()),
            (adopted, usize::from(!adopted), usize::from(!adopted))
        );
    }
}

#[test]
fn a_trial_that_cannot_open_the_vault_says_why() {
    let world = world(trial());
    let mut part = part(&world, Slot::B);
    part.state.vault_open = false;
    let mut bench = Bench::default();
    bench.facts.publish(Closed(Some("sealed to another image".into())));
    bench.at(&mut part, 299);
    assert_eq!(reboot(&bench), None);
    bench.at(&mut part, 300);
    let (reason, text) = bench.facts.get::<RebootDue>().unwrap().0.clone().unwrap();
    assert_eq!(reason, BootReason::Fallback);
    assert!(text.contains("the vault did not open within 300 s: sealed to another image"), "{text}");
}
