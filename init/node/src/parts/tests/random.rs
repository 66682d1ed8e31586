//! Contents, volumes and apps in a world where anything may fail and the agent may die at every effect.
//!
//! Held: an app is stopped by its own counters only, its data are lost by its own purges only, its VM never runs twice, and once
//! everything is well again it runs.

use super::{Together, config};
use crate::fetching::{Fetching, Order, Reports};
use crate::part::Event;
use crate::parts::app::machines::Machines;
use crate::parts::app::tests::{IMAGE, VOLUME, WEB, web};
use crate::parts::app::vm::{Plan, unit_of};
use crate::parts::app::{self, AppPart};
use crate::parts::content::images::{self, ImageStore};
use crate::parts::content::tests::done;
use crate::parts::content::{self, ContentPart, Means};
use crate::parts::volume::VolumePart;
use crate::parts::volume::files::{self, Listing, VolumeStore};
use crate::testing::Bench;
use crate::world::Local;
use holdfast_model::app::App;
use holdfast_model::contract::end::{End, ExitClass};
use holdfast_model::contract::fetch::{FailureClass, Report};
use holdfast_model::desired::Desired;
use holdfast_model::trouble::{Object, ObjectKind, Trouble};
use holdfast_supervise::{UnitName, UnitSpec, UnitState, UnitStatus};
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// Everything but the agent.
#[derive(Default)]
struct World {
    now_ms: Cell<u64>,
    /// The VM's unit, with its tag.
    vm: RefCell<Option<(UnitStatus, String)>>,
    events: RefCell<Vec<UnitStatus>>,
    /// Volumes; true when an app has written to it.
    volumes: RefCell<BTreeMap<(Uuid, i64), bool>>,
    images: RefCell<Vec<String>>,
    no_space: Cell<bool>,
    no_server: Cell<bool>,
    no_vm: Cell<bool>,
    stops: Cell<usize>,
    lost: Cell<usize>,
}

impl World {
    fn unit(&self, state: UnitState, end: Option<End>, tag: &str) {
        let mut spec = UnitSpec::new(unit_of(WEB), "/bin/vmm", 0);
        spec.tag = tag.into();
        let status = UnitStatus {
            name: unit_of(WEB),
            state,
            since_ms: self.now_ms.get(),
            restarts: 0,
            exit: None,
            end,
            spec: Some(Box::new(spec)),
        };
        self.events.borrow_mut().push(UnitStatus { spec: None, ..status.clone() });
        *self.vm.borrow_mut() = Some((status, tag.into()));
    }

    fn running(&self) -> bool {
        self.vm.borrow().as_ref().is_some_and(|(status, _)| matches!(status.state, UnitState::Running { .. }))
    }

    fn end(&self, class: ExitClass) {
        if self.running() {
            let tag = self.vm.borrow().as_ref().map(|(_, tag)| tag.clone()).unwrap_or_default();
            self.unit(UnitState::Ended, Some(End::new(class, "ended")), &tag);
        }
    }
}

/// The world as the parts see it. Effects happen when an operation runs, not when it is asked for.
#[derive(Clone)]
struct Seen(Rc<World>);

struct One(RefCell<Option<Report>>);

impl Reports for One {
    fn next(&self) -> Local<Option<Report>> {
        let report = self.0.borrow_mut().take();
        Box::pin(async move { report })
    }
}

impl Machines for Seen {
    fn start(&self, plan: Plan) -> Local<Result<(), String>> {
        let world = self.0.clone();
        Box::pin(async move {
            assert!(!world.running(), "PID 1 is asked for a VM that runs");
            assert!(world.volumes.borrow().contains_key(&(VOLUME, 0)), "a VM starts without its volume");
            if world.no_vm.get() {
                return Err("app web: no tap".into());
            }
            world.volumes.borrow_mut().insert((VOLUME, 0), true);
            world.unit(UnitState::Running { pid: 1 }, None, &plan.tag());
            Ok(())
        })
    }
    fn stop(&self, _: Uuid) -> Local<Result<bool, String>> {
        let world = self.0.clone();
        Box::pin(async move {
            let runs = world.running();
            world.stops.set(world.stops.get() + usize::from(runs));
            world.end(ExitClass::Stopped);
            Ok(runs)
        })
    }
    fn remove(&self, _: Uuid) -> Local<Result<(), String>> {
        let world = self.0.clone();
        Box::pin(async move {
            assert!(!world.running(), "a VM that runs is dropped");
            *world.vm.borrow_mut() = None;
            Ok(())
        })
    }
}

impl VolumeStore for Seen {
    fn file(&self, volume: Uuid, generation: i64) -> PathBuf {
        files::file_of(Path::new("/data/volumes"), volume, generation)
    }
    fn look(&self) -> Local<io::Result<Listing>> {
        let world = self.0.clone();
        Box::pin(async move {
            let volumes = world.volumes.borrow().keys().map(|key| (*key, 4096)).collect();
            Ok(Listing { volumes, strays: vec![] })
        })
    }
    fn make(&self, volume: Uuid, generation: i64, _: u64) -> Local<io::Result<u64>> {
        let world = self.0.clone();
        Box::pin(async move {
            if world.no_space.get() {
                return Err(io::Error::other("no space"));
            }
            assert!(!world.running(), "a volume is replaced under its VM");
            if world.volumes.borrow_mut().insert((volume, generation), false) == Some(true) {
                world.lost.set(world.lost.get() + 1);
            }
            Ok(4096)
        })
    }
    fn remove(&self, names: Vec<String>) -> Local<io::Result<()>> {
        let world = self.0.clone();
        Box::pin(async move {
            for key in names.iter().filter_map(|name| files::key_of(name)) {
                let written = world.volumes.borrow_mut().remove(&key) == Some(true);
                world.lost.set(world.lost.get() + usize::from(written));
            }
            Ok(())
        })
    }
}

impl ImageStore for Seen {
    fn file(&self, sha256: &str) -> PathBuf {
        Path::new("/data/images").join(images::name_of(sha256))
    }
    fn partial(&self, content: Uuid) -> PathBuf {
        Path::new("/data/images").join(images::partial_name(content))
    }
    fn spool(&self) -> PathBuf {
        "/data/images/spool".into()
    }
    fn look(&self) -> Local<io::Result<Vec<String>>> {
        let world = self.0.clone();
        Box::pin(async move { Ok(world.images.borrow().clone()) })
    }
    fn keep(&self, _: Uuid, sha256: String) -> Local<io::Result<()>> {
        let world = self.0.clone();
        Box::pin(async move {
            world.images.borrow_mut().push(images::name_of(&sha256));
            Ok(())
        })
    }
    fn remove(&self, names: Vec<String>) -> Local<io::Result<()>> {
        let world = self.0.clone();
        Box::pin(async move {
            world.images.borrow_mut().retain(|name| !names.contains(name));
            Ok(())
        })
    }
}

impl Fetching for Seen {
    fn start(&self, _: Order) -> Local<Result<Rc<dyn Reports>, String>> {
        let world = self.0.clone();
        Box::pin(async move {
            let cut = Report::Failed { class: FailureClass::Transport, text: "cut".into() };
            let report = if world.no_server.get() { cut } else { done("aa") };
            Ok(Rc::new(One(RefCell::new(Some(report)))) as Rc<dyn Reports>)
        })
    }
    fn adopt(&self, _: UnitName) -> Local<Result<Rc<dyn Reports>, String>> {
        Box::pin(async { Err("no reports".into()) })
    }
    fn stop(&self, _: UnitName) -> Local<Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
    fn remove(&self, _: UnitName) -> Local<Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}

/// A device in that world.
struct Device {
    world: Rc<World>,
    agent: Together,
    bench: Bench,
    wanted: Desired,
    web: App,
}

impl Device {
    fn new() -> Self {
        Self::whose_agent_dies(None)
    }

    fn whose_agent_dies(dies_in: Option<usize>) -> Self {
        let mut device = Self {
            world: Rc::default(),
            agent: Together(vec![]),
            bench: Bench::default(),
            wanted: config(&[web()]),
            web: web(),
        };
        device.bench.dies_in = dies_in;
        device.begin();
        device
    }

    /// An agent begins with what the one before it left on disk.
    fn begin(&mut self) {
        let bench = std::mem::take(&mut self.bench);
        (self.bench.files, self.bench.now, self.bench.full) = (bench.files, bench.now, bench.full);
        self.bench.dies_in = bench.dies_in.filter(|_| !bench.dead);
        let kept = |name: &str| self.bench.files.get(Path::new(name)).map(Vec::as_slice);
        let (apps, lost) = crate::kept::decode(app::FILE, kept(app::FILE));
        let (contents, none) = crate::kept::decode(content::FILE, kept(content::FILE));
        assert!(lost.is_empty() && none.is_empty());
        let seen = Rc::new(Seen(self.world.clone()));
        let means = Means { fetching: seen.clone(), images: seen.clone(), roots_pem: vec![] };
        self.agent = Together(vec![
            Box::new(ContentPart::over(means, contents)),
            Box::new(VolumePart::over(seen.clone())),
            Box::new(AppPart::over(seen, apps)),
        ]);
        // Before it asks what runs: what happened until then is in the answer.
        self.world.events.borrow_mut().clear();
        let units: Vec<UnitStatus> = self.world.vm.borrow().iter().map(|(status, _)| status.clone()).collect();
        self.bench.event(&mut self.agent, &Event::Units(units.into()));
        self.bench.config(&mut self.agent, self.wanted.clone());
        self.hear();
    }

    /// PID 1's events, until there are none.
    fn hear(&mut self) {
        loop {
            if self.bench.dead {
                return self.begin();
            }
            let events = std::mem::take(&mut *self.world.events.borrow_mut());
            if events.is_empty() {
                return;
            }
            for status in events {
                self.bench.event(&mut self.agent, &Event::Unit(Rc::new(status)));
            }
        }
    }

    fn want(&mut self, desired: Desired) {
        self.wanted = desired;
        self.bench.config(&mut self.agent, self.wanted.clone());
        self.hear();
    }

    fn wait(&mut self, seconds: u64) {
        self.bench.now += Duration::from_secs(seconds);
        self.world.now_ms.set(u64::try_from(self.bench.now.as_millis()).unwrap());
        self.bench.settle(&mut self.agent);
        self.hear();
    }

    fn heal(&mut self) {
        self.bench.full = false;
        self.bench.dies_in = None;
        for trouble in [&self.world.no_space, &self.world.no_server, &self.world.no_vm] {
            trouble.set(false);
        }
        self.want(config(std::slice::from_ref(&self.web.clone())));
        for _ in 0..8 {
            self.wait(700);
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Restart,
    Purge,
    Typo,
    Repair,
    GuestEnds(bool),
    AgentDies(usize),
    Full(bool),
    NoSpace(bool),
    NoServer(bool),
    NoVm(bool),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Restart),
        Just(Step::Purge),
        Just(Step::Typo),
        Just(Step::Repair),
        any::<bool>().prop_map(Step::GuestEnds),
        (0..12_usize).prop_map(Step::AgentDies),
        any::<bool>().prop_map(Step::Full),
        any::<bool>().prop_map(Step::NoSpace),
        any::<bool>().prop_map(Step::NoServer),
        any::<bool>().prop_map(Step::NoVm),
        (1..700_u64).prop_map(Step::Wait),
    ]
}

fn typo() -> Desired {
    let mut broken = Desired::default();
    for (kind, id) in [(ObjectKind::Content, IMAGE), (ObjectKind::Volume, VOLUME), (ObjectKind::App, WEB)] {
        broken.faults.push(Trouble::error(Object::new(kind, id, "web"), "typo"));
    }
    broken
}

/// Takes the steps; returns how often a restart and a purge were ordered.
fn take(device: &mut Device, steps: &[Step]) -> (usize, usize) {
    let (mut restarts, mut purges) = (0, 0);
    for step in steps {
        match step {
            Step::Restart => {
                restarts += 1;
                device.web.restart_counter += 1;
                device.want(config(std::slice::from_ref(&device.web.clone())));
            }
            Step::Purge => {
                purges += 1;
                device.web.purge_counter += 1;
                device.want(config(std::slice::from_ref(&device.web.clone())));
            }
            Step::Typo => device.want(typo()),
            Step::Repair => device.want(config(std::slice::from_ref(&device.web.clone()))),
            Step::GuestEnds(reset) => {
                device.world.end(if *reset { ExitClass::GuestReset } else { ExitClass::GuestFault });
                device.hear();
            }
            Step::AgentDies(effects) => device.bench.dies_in = Some(*effects),
            Step::Full(full) => device.bench.full = *full,
            Step::NoSpace(on) => device.world.no_space.set(*on),
            Step::NoServer(on) => device.world.no_server.set(*on),
            Step::NoVm(on) => device.world.no_vm.set(*on),
            Step::Wait(seconds) => device.wait(*seconds),
        }
    }
    (restarts, purges)
}

fn check(steps: &[Step]) {
    let mut device = Device::new();
    device.wait(1);
    let (restarts, purges) = take(&mut device, steps);
    device.heal();
    let world = &device.world;
    assert!(world.running(), "it runs in the end");
    assert!(
        world.stops.get() <= restarts + purges,
        "{} stops by {restarts} restarts, {purges} purges",
        world.stops.get()
    );
    assert!(world.lost.get() <= purges, "data lost {} times by {purges} purges", world.lost.get());
    if matches!(steps.last(), Some(Step::Purge)) && !steps.iter().any(|s| matches!(s, Step::Full(_) | Step::NoSpace(_)))
    {
        assert!(world.lost.get() >= 1, "a purge is carried out");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn an_app_is_disturbed_by_its_own_counters_only(steps in prop::collection::vec(step(), 1..25)) {
        check(&steps);
    }
}

#[test]
fn a_purge_acts_once_wherever_the_agent_dies() {
    for effects in 0..60 {
        let mut device = Device::new();
        device.wait(1);
        take(&mut device, &[Step::AgentDies(effects), Step::Purge, Step::Wait(5), Step::Wait(5), Step::Wait(5)]);
        device.heal();
        let world = &device.world;
        assert_eq!(
            (world.running(), world.stops.get(), world.lost.get()),
            (true, 1, 1),
            "dies before effect {effects}"
        );
    }
}

#[test]
fn an_app_starts_once_wherever_the_agent_dies() {
    for effects in 0..40 {
        let mut device = Device::whose_agent_dies(Some(effects));
        device.wait(1);
        device.heal();
        assert_eq!((device.world.running(), device.world.stops.get(), device.world.lost.get()), (true, 0, 0));
    }
}

#[test]
fn a_purge_that_cannot_be_noted_starts_nothing_that_the_next_agent_would_purge_again() {
    let mut device = Device::new();
    device.wait(1);
    take(&mut device, &[Step::Full(true), Step::Purge, Step::Wait(5), Step::AgentDies(0), Step::Wait(6)]);
    assert!(!device.world.running(), "its counter is not on disk");
    device.heal();
    let world = &device.world;
    assert_eq!((world.running(), world.stops.get(), world.lost.get()), (true, 1, 1));
}
