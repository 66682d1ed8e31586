//! Contents, volumes and apps in a world where anything may fail and the agent may die at every effect.
//!
//! Held: an app is stopped by its own counters only, its data are lost by its own purges only, its VM never runs twice, and once
//! everything is well again it runs.

use super::world::{Seen, World};
use super::{Together, config};
use crate::part::Event;
use crate::parts::app::tests::{IMAGE, VOLUME, WEB, web};
use crate::parts::app::{self, AppPart};
use crate::parts::content::{self, ContentPart, Means};
use crate::parts::volume::VolumePart;
use crate::testing::Bench;
use holdfast_model::app::App;
use holdfast_model::contract::end::ExitClass;
use holdfast_model::desired::Desired;
use holdfast_model::trouble::{Object, ObjectKind, Trouble};
use holdfast_supervise::UnitStatus;
use proptest::prelude::*;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

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
