//! The simulated machine: PID 1 and its units, the disk, the registry. It outlives the agent, and its disk outlives a power cut.
//!
//! It watches as well: what an agent must never do is noted in [`Machine::wrong`].

use super::effects::{Cut, Effects, act};
use holdfast_model::Uuid;
use holdfast_model::contract::end::{End, ExitClass};
use holdfast_model::desired::Desired;
use holdfast_model::observed::Observed;
use holdfast_model::trouble::ObjectKind;
use holdfast_node::fetching::Order;
use holdfast_node::part::Event;
use holdfast_node::parts::app::vm::{Plan, unit_of};
use holdfast_node::unsure::Unsure;
use holdfast_node::world::{Clock, Files, Local};
use holdfast_slots::Record;
use holdfast_supervise::{UnitName, UnitSpec, UnitState, UnitStatus};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep};

/// Monotonic time when an agent can first start.
const BOOT: Duration = Duration::from_secs(3);

/// What a unit is.
pub enum Kind {
    /// The virtual machine of an app.
    Vm(Plan),
    /// A fetch job.
    Job(Order),
}

/// A unit of PID 1.
pub struct Unit {
    pub kind: Kind,
    pub tag: String,
    pub state: UnitState,
    /// When it was started.
    pub began: Duration,
    /// When it entered its state.
    pub since: Duration,
    pub end: Option<End>,
    /// When it ends by itself, or by the stop that was ordered, and how.
    pub due: Option<(Duration, End)>,
    /// Dropped once it ends.
    pub dropped: bool,
    /// No other unit has it.
    pub serial: u64,
}

impl Unit {
    /// Its process lives.
    pub fn lives(&self) -> bool {
        matches!(self.state, UnitState::Running { .. } | UnitState::Stopping { .. })
    }

    /// Its virtual machine, while that lives.
    pub fn vm(&self) -> Option<&Plan> {
        match &self.kind {
            Kind::Vm(plan) if self.lives() => Some(plan),
            _ => None,
        }
    }
}

/// A file of a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VolumeFile {
    /// Purge counter of the app that used it last; none when it was never used.
    pub used_with: Option<u32>,
    /// A config since its last use did not have it: it may be removed, even when the next config has it again.
    pub given_up: bool,
}

/// The machine.
pub struct Machine {
    pub effects: Rc<Effects>,
    pub units: RefCell<BTreeMap<UnitName, Unit>>,
    pub volumes: RefCell<BTreeMap<(Uuid, i64), VolumeFile>>,
    /// Halves in the folder of volumes.
    pub strays: RefCell<BTreeSet<String>>,
    pub images: RefCell<BTreeSet<String>>,
    pub files: RefCell<BTreeMap<PathBuf, Vec<u8>>>,
    pub slots: RefCell<Record>,
    pub config: RefCell<Option<Rc<Desired>>>,
    /// References that the registry refuses.
    pub refused: RefCell<BTreeSet<String>>,
    /// What an agent did that none may.
    pub wrong: RefCell<Vec<String>>,
    /// Virtual machines, by unit serial, that a config since their start gave a reason to stop.
    may_stop: RefCell<BTreeSet<u64>>,
    /// Monotonic times of heartbeats in this boot.
    pub beats: RefCell<Vec<Duration>>,
    pub report: RefCell<Option<watch::Receiver<Observed>>>,
    pub lines: RefCell<Vec<String>>,
    /// Number of this boot, from 1.
    pub boot: Cell<u64>,
    agent: RefCell<Option<mpsc::UnboundedSender<Event>>>,
    began: Cell<Instant>,
    last_serial: Cell<u64>,
    changed: Notify,
}

impl Machine {
    /// A machine with an empty disk; `seed` decides how long things take.
    pub fn new(seed: u64) -> Rc<Self> {
        Rc::new(Self {
            effects: Rc::new(Effects::new(seed)),
            units: RefCell::default(),
            volumes: RefCell::default(),
            strays: RefCell::default(),
            images: RefCell::default(),
            files: RefCell::default(),
            slots: RefCell::new(Record::initial(
                holdfast_model::slot::Slot::A,
                holdfast_slots::Image { version: "1".into(), epoch: 1 },
            )),
            config: RefCell::default(),
            refused: RefCell::default(),
            wrong: RefCell::default(),
            may_stop: RefCell::default(),
            beats: RefCell::default(),
            report: RefCell::default(),
            lines: RefCell::default(),
            boot: Cell::new(1),
            agent: RefCell::default(),
            began: Cell::new(Instant::now()),
            last_serial: Cell::new(0),
            changed: Notify::new(),
        })
    }

    /// Monotonic time since boot.
    pub fn now(&self) -> Duration {
        self.began.get().elapsed() + BOOT
    }

    /// A number that nothing else has.
    pub fn serial(&self) -> u64 {
        self.last_serial.set(self.last_serial.get() + 1);
        self.last_serial.get()
    }

    /// Notes something that an agent must never do.
    pub fn note(&self, wrong: impl Into<String>) {
        self.wrong.borrow_mut().push(format!("at {:?}, effect {}: {}", self.now(), self.effects.count(), wrong.into()));
    }

    /// The agent that lives now, if one does.
    pub fn connect(&self, agent: Option<mpsc::UnboundedSender<Event>>) {
        *self.agent.borrow_mut() = agent;
    }

    pub fn tell(&self, event: Event) {
        if let Some(agent) = &*self.agent.borrow() {
            let _ = agent.send(event);
        }
    }

    /// A config is in force.
    pub fn configure(&self, desired: Desired) {
        let desired = Rc::new(desired);
        let before = self.config.borrow_mut().replace(desired.clone());
        if before.is_some_and(|b| b.commands != desired.commands) {
            self.may_stop_all();
        }
        self.judge_stops();
        // Who deletes a volume with its app gives its content up.
        for (key, file) in self.volumes.borrow_mut().iter_mut() {
            if self.is_given_up(key.0) {
                (file.used_with, file.given_up) = (None, true);
            }
        }
        self.tell(Event::Config(desired));
    }

    /// The config in force has no such volume, and none with a fault that may be it.
    pub fn is_given_up(&self, volume: Uuid) -> bool {
        let config = self.config.borrow();
        config.as_ref().is_some_and(|desired| {
            let unsure = Unsure::of(desired, ObjectKind::Volume);
            !desired.volumes.iter().any(|v| v.id == volume) && !unsure.may_want(&volume)
        })
    }

    /// Notes which virtual machines the present config gives a reason to stop.
    pub fn judge_stops(&self) {
        let Some(desired) = self.config.borrow().clone() else { return };
        let unsure = Unsure::of(&desired, ObjectKind::App);
        for unit in self.units.borrow().values() {
            let Some(plan) = unit.vm() else { continue };
            let may = match desired.apps.iter().find(|a| a.id == plan.app.id) {
                None => !unsure.may_want(&plan.app.id),
                Some(app) => {
                    let counters = |a: &holdfast_model::app::App| (a.restart_counter, a.purge_counter);
                    !app.activate || counters(app) != counters(&plan.app)
                }
            };
            if may {
                self.may_stop.borrow_mut().insert(unit.serial);
            }
        }
    }

    /// An orderly reboot ends every virtual machine.
    pub fn may_stop_all(&self) {
        self.may_stop.borrow_mut().extend(self.units.borrow().values().map(|u| u.serial));
    }

    /// True when a config since its start gave a reason to stop this unit.
    pub fn may_stop(&self, serial: u64) -> bool {
        self.may_stop.borrow().contains(&serial)
    }

    fn status(name: &UnitName, unit: &Unit, spec: bool) -> UnitStatus {
        let spec = spec.then(|| {
            let mut spec = UnitSpec::new(name.clone(), "/bin/any", 2000);
            spec.tag.clone_from(&unit.tag);
            Box::new(spec)
        });
        let since_ms = u64::try_from(unit.since.as_millis()).unwrap();
        UnitStatus {
            name: name.clone(),
            state: unit.state,
            since_ms,
            restarts: 0,
            exit: None,
            end: unit.end.clone(),
            spec,
        }
    }

    /// All units, as PID 1 lists them.
    pub fn list(&self) -> Event {
        Event::Units(self.units.borrow().iter().map(|(name, unit)| Self::status(name, unit, true)).collect())
    }

    /// Something about a unit changed.
    pub fn unit_changed(&self, name: &UnitName) {
        let status = self.units.borrow().get(name).map(|unit| Self::status(name, unit, false));
        if let Some(status) = status {
            self.tell(Event::Unit(Rc::new(status)));
        }
        self.changed.notify_one();
    }

    /// Starts a unit, as PID 1 does.
    pub fn start(&self, name: &UnitName, kind: Kind, tag: String, due: Option<(Duration, End)>) -> Result<u64, String> {
        if self.units.borrow().get(name).is_some_and(Unit::lives) {
            return Err(format!("unit {name}: lives"));
        }
        let serial = self.serial();
        let state = UnitState::Running { pid: 100 + u32::try_from(serial).unwrap() };
        let (began, since) = (self.now(), self.now());
        let unit = Unit { kind, tag, state, began, since, end: None, due, dropped: false, serial };
        self.units.borrow_mut().insert(name.clone(), unit);
        self.unit_changed(name);
        Ok(serial)
    }

    /// Drops an ended unit; one that stops is dropped when it ends.
    pub fn remove(&self, name: &UnitName) -> Result<(), String> {
        let mut units = self.units.borrow_mut();
        match units.get_mut(name) {
            Some(unit) if matches!(unit.state, UnitState::Running { .. }) => return Err(format!("unit {name}: lives")),
            Some(unit) if unit.lives() => unit.dropped = true,
            Some(_) => drop(units.remove(name)),
            None => return Ok(()),
        }
        drop(units);
        self.tell(Event::UnitRemoved(name.clone()));
        Ok(())
    }

    /// The virtual machine of an app ends by itself.
    pub fn ends(&self, app: Uuid, class: ExitClass) {
        let name = unit_of(app);
        if let Some(unit) = self.units.borrow_mut().get_mut(&name).filter(|u| u.lives()) {
            unit.due = Some((self.now(), End::new(class, format!("ended as {class:?}"))));
        }
        self.changed.notify_one();
    }

    /// Time passes for units, for ever.
    pub async fn live(&self) {
        loop {
            let now = self.now();
            let next =
                self.units.borrow().values().filter(|u| u.lives()).filter_map(|u| u.due.as_ref()).map(|d| d.0).min();
            match next {
                Some(at) if at <= now => self.end_what_is_due(now),
                Some(at) => tokio::select! {
                    () = sleep(at - now) => {}
                    () = self.changed.notified() => {}
                },
                None => self.changed.notified().await,
            }
        }
    }

    fn end_what_is_due(&self, now: Duration) {
        let mut ended = Vec::new();
        for (name, unit) in self.units.borrow_mut().iter_mut().filter(|(_, u)| u.lives()) {
            if let Some((_, end)) = unit.due.take_if(|(at, _)| *at <= now) {
                (unit.state, unit.since, unit.end) = (UnitState::Ended, now, Some(end));
                ended.push(name.clone());
            }
        }
        for name in ended {
            self.unit_changed(&name);
            self.units.borrow_mut().retain(|n, u| *n != name || !u.dropped);
        }
    }

    /// What a cut leaves.
    pub fn suffer(&self, cut: Cut) {
        self.connect(None);
        if cut == Cut::Power {
            self.units.borrow_mut().clear();
            self.beats.borrow_mut().clear();
            self.began.set(Instant::now());
            self.boot.set(self.boot.get() + 1);
        }
    }
}

/// The machine as the agent's kernel sees it.
#[derive(Clone)]
pub struct On(pub Rc<Machine>);

impl Clock for On {
    fn now(&self) -> Duration {
        self.0.now()
    }

    fn wall(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000) + self.0.now()
    }
}

impl Files for On {
    fn replace(&self, path: PathBuf, content: Vec<u8>) -> Local<io::Result<()>> {
        let machine = self.0.clone();
        let written = act(&self.0.effects, format!("write {}", path.display()), move || {
            machine.files.borrow_mut().insert(path, content);
            Ok(())
        });
        Box::pin(async move { written.await.map_err(io::Error::other) })
    }
}
