//! Contents, volumes and apps together: what one of them tells the others leads all of them where the config wants them.

mod random;
mod world;

use super::app::tests::{IMAGE, VOLUME, WEB, World as Machines, desired, unit, web};
use super::app::{AppPart, kept::Kept as KeptApps};
use super::content::tests::{World as Images, desired as contents, done};
use super::content::{ContentPart, Means, kept::Kept as KeptContents};
use super::volume::VolumePart;
use super::volume::tests::Memory;
use crate::part::{Event, Part, Turn};
use crate::testing::Bench;
use holdfast_model::app::App;
use holdfast_model::contract::end::ExitClass;
use holdfast_model::desired::Desired;
use holdfast_model::observed::{AppState, Observed};
use holdfast_model::trouble::{Object, ObjectKind, Trouble};
use holdfast_supervise::UnitState;
use std::path::Path;
use std::rc::Rc;

/// Several parts as one, in the order of the kernel.
struct Together(Vec<Box<dyn Part>>);

impl Part for Together {
    fn name(&self) -> &'static str {
        "together"
    }
    fn event(&mut self, event: &Event, turn: &mut Turn<'_>) {
        self.0.iter_mut().for_each(|part| part.event(event, turn));
    }
    fn turn(&mut self, turn: &mut Turn<'_>) {
        self.0.iter_mut().for_each(|part| part.turn(turn));
    }
    fn observe(&self, observed: &mut Observed) {
        self.0.iter().for_each(|part| part.observe(observed));
    }
}

/// A device with one app that runs.
struct Device {
    images: Rc<Images>,
    volumes: Rc<Memory>,
    machines: Rc<Machines>,
    agent: Together,
    bench: Bench,
}

fn config(apps: &[App]) -> Desired {
    let mut all = desired(apps);
    let source = contents(&[(3, "web:1")]);
    (all.contents, all.datastores) = (source.contents, source.datastores);
    all.properties.download_retry_seconds = 600;
    all
}

impl Device {
    fn running() -> Self {
        let images = Rc::new(Images::default());
        images.reports.borrow_mut().push_back(vec![done("aa")]);
        let mut device = Self {
            images,
            volumes: Rc::default(),
            machines: Rc::default(),
            agent: Together(Vec::new()),
            bench: Bench::default(),
        };
        device.restart(&Event::Units(Rc::new([])));
        device.config(config(&[web()]));
        device.runs(1);
        assert_eq!(device.app(), (AppState::Running, String::new()));
        device
    }

    /// Another agent takes over; `units` is what PID 1 says.
    fn restart(&mut self, units: &Event) {
        let kept = |name: &str| self.bench.files.get(Path::new(name)).cloned().unwrap_or_else(|| b"{}".to_vec());
        let kept_apps: KeptApps = serde_json::from_slice(&kept(super::app::FILE)).unwrap();
        let kept_contents: KeptContents = serde_json::from_slice(&kept(super::content::FILE)).unwrap();
        let (files, now) = (std::mem::take(&mut self.bench.files), self.bench.now);
        self.bench = Bench::default();
        (self.bench.files, self.bench.now) = (files, now);
        let means = Means { fetching: self.images.clone(), images: self.images.clone(), roots_pem: vec![] };
        self.agent = Together(vec![
            Box::new(ContentPart::over(means, kept_contents)),
            Box::new(VolumePart::over(self.volumes.clone())),
            Box::new(AppPart::over(self.machines.clone(), kept_apps)),
        ]);
        self.bench.event(&mut self.agent, units);
    }

    fn config(&mut self, desired: Desired) {
        self.bench.config(&mut self.agent, desired);
    }

    fn runs(&mut self, at: u64) {
        self.bench.event(&mut self.agent, &unit(UnitState::Running { pid: 7 }, at, None));
    }

    fn ends(&mut self, at: u64) {
        self.bench.event(&mut self.agent, &unit(UnitState::Ended, at, Some(ExitClass::PowerOff)));
    }

    fn app(&self) -> (AppState, String) {
        let mut observed = Observed::default();
        self.agent.observe(&mut observed);
        let app = observed.apps.first().cloned().unwrap_or_default();
        (app.state, holdfast_model::trouble::texts(&app.troubles))
    }

    fn starts(&self) -> usize {
        self.machines.did("start web as 0")
    }

    fn stops(&self) -> usize {
        self.machines.did(&format!("stop {WEB}"))
    }

    fn volumes_made(&self) -> usize {
        self.volumes.made.borrow().len()
    }
}

#[test]
fn an_app_comes_from_its_registry_to_running_and_goes_without_a_trace() {
    let mut device = Device::running();
    assert_eq!((device.starts(), device.volumes_made(), device.images.names.borrow().len()), (1, 1, 1));
    device.config(Desired::default());
    assert_eq!(device.volumes.names.borrow().len(), 1, "its VM still holds the volume");
    device.ends(2);
    assert!(device.volumes.names.borrow().is_empty() && device.images.names.borrow().is_empty());
}

#[test]
fn a_purge_makes_the_volume_once_whenever_the_agent_restarts() {
    for restart_at in 0..4 {
        let mut device = Device::running();
        let wanted = config(&[App { purge_counter: 1, ..web() }]);
        let again = |device: &mut Device, step, event: &Event| {
            if restart_at == step {
                device.restart(&Event::Units(match event {
                    Event::Unit(status) => [status.as_ref().clone()].into(),
                    _ => Rc::new([]),
                }));
                device.config(wanted.clone());
            }
        };
        device.config(wanted.clone());
        again(&mut device, 0, &unit(UnitState::Stopping { pid: 7 }, 2, None));
        device.ends(2);
        again(&mut device, 1, &unit(UnitState::Running { pid: 8 }, 2, None));
        device.runs(2);
        again(&mut device, 2, &unit(UnitState::Running { pid: 8 }, 2, None));
        assert_eq!((device.app().0, device.starts(), device.stops()), (AppState::Running, 2, 1), "at {restart_at}");
        assert_eq!(device.volumes_made(), 2, "once at first, once by the purge; restart at {restart_at}");
    }
}

#[test]
fn one_typing_mistake_stops_deletes_and_forgets_nothing() {
    let mut device = Device::running();
    // As the config is read: what refers to an object with a fault has a fault itself.
    let mut broken = Desired::default();
    for (kind, id) in [(ObjectKind::Content, IMAGE), (ObjectKind::Volume, VOLUME), (ObjectKind::App, WEB)] {
        broken.faults.push(Trouble::error(Object::new(kind, id, "web"), "datastore: expected a host, found none"));
    }
    device.config(broken.clone());
    assert_eq!(device.app(), (AppState::Running, "datastore: expected a host, found none".into()));
    // The same for an agent that starts with such a config.
    device.restart(&Event::Units([running_unit()].into()));
    device.config(broken);
    assert_eq!(device.app().0, AppState::Running);
    assert_eq!((device.stops(), device.images.names.borrow().len(), device.volumes.names.borrow().len()), (0, 1, 1));
    // The repair comes with a restart counter: it counts, and nothing is fetched or made again.
    device.config(config(&[App { restart_counter: 1, ..web() }]));
    assert_eq!((device.app().0, device.stops()), (AppState::Restarting, 1));
    device.ends(3);
    device.runs(3);
    assert_eq!((device.app().0, device.starts()), (AppState::Running, 2));
    assert_eq!((device.images.began.borrow().len(), device.volumes_made()), (1, 1));
}

fn running_unit() -> holdfast_supervise::UnitStatus {
    match unit(UnitState::Running { pid: 7 }, 1, None) {
        Event::Unit(status) => status.as_ref().clone(),
        _ => unreachable!("a unit's event"),
    }
}

#[test]
fn a_purge_without_space_keeps_the_old_volume_and_the_app_waits_for_the_new_one() {
    let mut device = Device::running();
    *device.volumes.full.borrow_mut() = true;
    device.config(config(&[App { purge_counter: 1, ..web() }]));
    device.ends(2);
    let (state, text) = device.app();
    assert!(state == AppState::Purging && text.contains("no space"), "{text}");
    assert_eq!((device.volumes.names.borrow().len(), device.starts()), (1, 1));
    *device.volumes.full.borrow_mut() = false;
    device.bench.at(&mut device.agent, 60);
    assert_eq!((device.volumes_made(), device.starts()), (2, 2));
}
