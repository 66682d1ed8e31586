//! The part's turn on a bench, over virtual machines that do as a test says.

use super::*;
use crate::parts::content::facts::ImageFact;
use crate::parts::volume::facts::VolumeFact;
use crate::testing::Bench;
use crate::world::Local;
use holdfast_model::app::VolumeRef;
use holdfast_model::contract::end::{End, ExitClass};
use holdfast_model::contract::fetch::ImageConfig;
use holdfast_model::observed::LoadState;
use holdfast_model::storage::{ContentTree, ImageFormat, Volume, VolumeOrigin};
use holdfast_model::trouble::{self, Object, Severity, Trouble};
use holdfast_supervise::UnitState;
use std::cell::RefCell;
use std::future::ready;
use std::path::Path;

pub(crate) const WEB: Uuid = Uuid::from_u128(1);
pub(crate) const VOLUME: Uuid = Uuid::from_u128(2);
pub(crate) const IMAGE: Uuid = Uuid::from_u128(3);

#[derive(Default)]
pub(crate) struct World {
    pub(crate) did: RefCell<Vec<String>>,
    pub(crate) refuse: RefCell<bool>,
}

impl World {
    pub(crate) fn did(&self, what: &str) -> usize {
        self.did.borrow().iter().filter(|d| *d == what).count()
    }
}

impl Machines for World {
    fn start(&self, plan: Plan) -> Local<Result<(), String>> {
        self.did.borrow_mut().push(format!("start {} as {}", plan.app.name, plan.number));
        let refused = Err(format!("app {}: no tap", plan.app.name));
        Box::pin(ready(if *self.refuse.borrow() { refused } else { Ok(()) }))
    }
    fn stop(&self, app: Uuid) -> Local<Result<bool, String>> {
        self.did.borrow_mut().push(format!("stop {app}"));
        Box::pin(ready(Ok(true)))
    }
    fn remove(&self, app: Uuid) -> Local<Result<(), String>> {
        self.did.borrow_mut().push(format!("remove {app}"));
        Box::pin(ready(Ok(())))
    }
}

pub(crate) fn web() -> App {
    App {
        id: WEB,
        version: "1".into(),
        name: "web".into(),
        activate: true,
        vcpus: 1,
        memory_bytes: 64 << 20,
        volumes: vec![VolumeRef { volume: VOLUME, generation: 0, mount_dir: String::new() }],
        interfaces: vec![],
        user_data: String::new(),
        restart_counter: 0,
        purge_counter: 0,
        start_delay_seconds: 0,
        disable_logs: false,
    }
}

pub(crate) fn desired(apps: &[App]) -> Desired {
    let volume = Volume {
        id: VOLUME,
        name: "root".into(),
        origin: VolumeOrigin::Content(IMAGE),
        generation: 0,
        max_size_bytes: 0,
        read_only: false,
    };
    let content = ContentTree {
        id: IMAGE,
        name: "image".into(),
        datastores: vec![],
        path: "web".into(),
        format: ImageFormat::Container,
        sha256: String::new(),
        max_size_bytes: 0,
        generation: 0,
    };
    let mut desired =
        Desired { apps: apps.to_vec(), volumes: vec![volume], contents: vec![content], ..Desired::default() };
    desired.properties.boot_retry_seconds = 600;
    desired
}

fn loaded(bench: &mut Bench) {
    let image = ImageFact {
        state: LoadState::Loaded,
        image: Some(ImageConfig { cmd: vec!["/web".into()], ..ImageConfig::default() }),
        ..ImageFact::default()
    };
    bench.facts.publish(Images([(IMAGE, image)].into()));
}

fn volume(bench: &mut Bench, fact: VolumeFact) {
    bench.facts.publish(Volumes([((VOLUME, 0), fact)].into()));
}

fn made() -> VolumeFact {
    VolumeFact { ready: true, file: "/data/volumes/root".into(), ..VolumeFact::default() }
}

pub(crate) fn unit(state: UnitState, at: u64, class: Option<ExitClass>) -> Event {
    let end = class.map(|class| End::new(class, format!("the end of {class:?}")));
    let name = vm::unit_of(WEB);
    Event::Unit(Rc::new(UnitStatus { name, state, since_ms: at * 1000, restarts: 0, exit: None, end, spec: None }))
}

fn nothing_runs() -> Event {
    Event::Units(Rc::new([]))
}

/// An app that runs since second 1.
fn running() -> (Rc<World>, AppPart, Bench) {
    let (world, mut bench) = (Rc::new(World::default()), Bench::default());
    let mut part = AppPart::over(world.clone(), Kept::default());
    loaded(&mut bench);
    volume(&mut bench, made());
    bench.now = Duration::from_secs(1);
    bench.event(&mut part, &nothing_runs());
    bench.config(&mut part, desired(&[web()]));
    bench.event(&mut part, &unit(UnitState::Running { pid: 7 }, 1, None));
    assert_eq!(status(&part).state, AppState::Running);
    (world, part, bench)
}

fn error(part: &AppPart) -> String {
    trouble::texts(&status(part).troubles)
}

fn status(part: &AppPart) -> AppStatus {
    let mut observed = Observed::default();
    part.observe(&mut observed);
    observed.apps.first().cloned().unwrap_or_default()
}

fn kept(bench: &Bench) -> Kept {
    serde_json::from_slice(&bench.files[Path::new(FILE)]).unwrap()
}

#[test]
fn an_app_starts_once_units_image_and_volume_are_known_and_its_record_is_on_disk() {
    let (world, mut bench) = (Rc::new(World::default()), Bench::default());
    let mut part = AppPart::over(world.clone(), Kept::default());
    bench.config(&mut part, desired(&[web()]));
    assert_eq!(status(&part).state, AppState::Initial, "PID 1 has not said what runs");
    bench.event(&mut part, &nothing_runs());
    assert_eq!(bench.facts.get::<WantedVolumes>().unwrap().0.len(), 0, "no volume before its image");
    loaded(&mut bench);
    bench.settle(&mut part);
    assert_eq!(status(&part).state, AppState::CreatingVolume);
    assert_eq!(bench.facts.get::<WantedVolumes>().unwrap().0, [(VOLUME, 0)].into());
    bench.full = true;
    volume(&mut bench, made());
    bench.settle(&mut part);
    assert!(world.did.borrow().is_empty(), "its record is not on disk");
    bench.full = false;
    bench.at(&mut part, 5);
    assert_eq!(*world.did.borrow(), ["start web as 0"]);
    let guest = Guest { uid: vm::FIRST_UID, running: true };
    assert_eq!(bench.facts.get::<Guests>().unwrap().0[&WEB], guest);
    assert_eq!(bench.facts.get::<HeldVolumes>().unwrap().0, [(VOLUME, 0)].into());
}

#[test]
fn a_vm_that_cannot_be_started_is_tried_again_later() {
    let (world, mut bench) = (Rc::new(World::default()), Bench::default());
    let mut part = AppPart::over(world.clone(), Kept::default());
    *world.refuse.borrow_mut() = true;
    loaded(&mut bench);
    volume(&mut bench, made());
    bench.event(&mut part, &nothing_runs());
    bench.config(&mut part, desired(&[web()]));
    let trouble = &status(&part).troubles[0];
    assert_eq!((trouble.text.as_str(), trouble.severity), ("app web: no tap", Severity::Error));
    assert_eq!(trouble.retry.as_ref().unwrap().condition, "started again 5 s after that");
    bench.at(&mut part, 4);
    assert_eq!(world.did("start web as 0"), 1);
    bench.at(&mut part, 5);
    assert_eq!(world.did("start web as 0"), 2);
}

#[test]
fn a_purge_waits_for_the_new_volume_and_is_done_once_even_when_the_agent_restarts() {
    let (world, mut part, mut bench) = running();
    let purged = App { purge_counter: 4, ..web() };
    bench.config(&mut part, desired(std::slice::from_ref(&purged)));
    assert_eq!(world.did(&format!("stop {WEB}")), 1);
    assert!(bench.facts.get::<Purges>().unwrap().0.is_empty(), "the VM still holds the volume");
    bench.event(&mut part, &unit(UnitState::Ended, 2, Some(ExitClass::PowerOff)));
    assert_eq!(bench.facts.get::<Purges>().unwrap().0[&VOLUME], 4);
    assert_eq!(status(&part).state, AppState::Purging);
    volume(&mut bench, VolumeFact { error: "no space".into(), ..made() });
    bench.settle(&mut part);
    assert_eq!((status(&part).state, error(&part).as_str()), (AppState::Purging, "no space"));
    assert_eq!(world.did("start web as 0"), 1);
    volume(&mut bench, VolumeFact { purged: Some(4), ..made() });
    bench.settle(&mut part);
    assert_eq!(world.did("start web as 0"), 2);
    assert!(bench.facts.get::<Purges>().unwrap().0.is_empty(), "the order is withdrawn");

    let (mut again, mut later) = (AppPart::over(world.clone(), kept(&bench)), Bench::default());
    loaded(&mut later);
    volume(&mut later, made());
    later.event(&mut again, &Event::Units([status_of(&unit(UnitState::Running { pid: 9 }, 2, None))].into()));
    later.config(&mut again, desired(&[purged]));
    assert_eq!(world.did(&format!("stop {WEB}")), 1, "counted as acted on");
    assert!(later.facts.get::<Purges>().unwrap().0.is_empty());
}

fn status_of(event: &Event) -> UnitStatus {
    match event {
        Event::Unit(status) => status.as_ref().clone(),
        _ => unreachable!("a unit's event"),
    }
}

#[test]
fn an_app_with_a_fault_runs_on_and_keeps_what_was_acted_on() {
    let (world, mut part, mut bench) = running();
    let counted = App { restart_counter: 3, ..web() };
    bench.config(&mut part, desired(std::slice::from_ref(&counted)));
    bench.event(&mut part, &unit(UnitState::Ended, 2, Some(ExitClass::PowerOff)));
    bench.event(&mut part, &unit(UnitState::Running { pid: 8 }, 2, None));
    let before = kept(&bench);
    let mut broken = desired(&[]);
    let text = "interface eth0: typo".to_owned();
    broken.faults.push(Trouble::error(Object::new(ObjectKind::App, WEB, "web"), text));
    bench.config(&mut part, broken.clone());
    assert_eq!((status(&part).state, error(&part).as_str()), (AppState::Running, "interface eth0: typo"));
    assert_eq!((world.did(&format!("stop {WEB}")), kept(&bench)), (1, before.clone()), "stopped by the counter only");
    bench.event(&mut part, &unit(UnitState::Ended, 3, Some(ExitClass::PowerOff)));
    assert_eq!(status(&part).state, AppState::Error);
    assert_eq!((world.did("start web as 0"), kept(&bench)), (2, before));
    // A purge that comes with the repair is carried out.
    bench.config(&mut part, desired(&[App { purge_counter: 1, ..counted }]));
    assert_eq!(status(&part).state, AppState::Purging);
}

#[test]
fn a_deleted_app_ends_then_its_unit_goes_and_its_number_is_free() {
    let (world, mut part, mut bench) = running();
    bench.config(&mut part, desired(&[]));
    assert_eq!(status(&part), AppStatus::default(), "it is not reported any more");
    assert!(bench.facts.get::<Guests>().unwrap().0[&WEB].running, "its network stays");
    bench.event(&mut part, &unit(UnitState::Ended, 2, Some(ExitClass::PowerOff)));
    assert_eq!(world.did(&format!("remove {WEB}")), 1);
    assert!(kept(&bench).apps.is_empty() && bench.facts.get::<Guests>().unwrap().0.is_empty());
}

#[test]
fn a_guest_that_restarts_itself_is_started_again_without_an_error() {
    let (world, mut part, mut bench) = running();
    bench.event(&mut part, &unit(UnitState::Ended, 2, Some(ExitClass::GuestReset)));
    assert_eq!(world.did("start web as 0"), 2);
    assert_eq!((status(&part).state, error(&part).as_str()), (AppState::Running, ""));
    assert_eq!(bench.said("app web: the guest restarts"), 1);
}

#[test]
fn what_pid_1_does_not_know_has_ended() {
    let (world, mut part, mut bench) = running();
    bench.event(&mut part, &nothing_runs());
    assert!(error(&part).contains("unknown to PID 1"), "{:?}", status(&part));
    bench.at(&mut part, 6);
    assert_eq!(world.did("start web as 0"), 2);
}

#[test]
fn apps_that_may_not_run_end_and_say_why() {
    let (world, mut part, mut bench) = running();
    bench.facts.publish(Held(Some("maintenance mode".into())));
    bench.settle(&mut part);
    assert_eq!(world.did(&format!("stop {WEB}")), 1);
    bench.event(&mut part, &unit(UnitState::Ended, 2, Some(ExitClass::PowerOff)));
    assert_eq!((status(&part).state, error(&part).as_str()), (AppState::Halted, "maintenance mode"));
    bench.facts.publish(Held(None));
    bench.settle(&mut part);
    assert_eq!(world.did("start web as 0"), 2);
}

#[test]
fn a_second_app_gets_a_number_of_its_own() {
    let (world, mut part, mut bench) = running();
    let second = App { id: Uuid::from_u128(9), name: "db".into(), ..web() };
    bench.config(&mut part, desired(&[web(), second]));
    assert_eq!(world.did("start db as 1"), 1);
}

#[test]
fn the_sentence_of_an_end_reaches_the_report_unchanged() {
    let (_, mut part, mut bench) = running();
    bench.event(&mut part, &unit(UnitState::Ended, 2, Some(ExitClass::Resource)));
    assert_eq!(error(&part), "app web: the end of Resource");
    assert_eq!(bench.said("app web: the end of Resource"), 2, "at the end, and with what happens next");
}

#[test]
fn a_fault_of_the_planner_is_a_warning_beside_running() {
    let (_, mut part, mut bench) = running();
    let fault = Err(Readiness::Failed("app web: port 8080 is taken by app db".into()));
    bench.facts.publish(Nics([(WEB, fault)].into()));
    bench.settle(&mut part);
    let found = status(&part);
    assert_eq!((found.state, found.troubles[0].severity), (AppState::Running, Severity::Warning));
    assert_eq!(found.troubles[0].text, "app web: port 8080 is taken by app db");
}
