//! What a part of the agent is, and what it sees and asks for in a turn.
//!
//! Principles:
//! 1. A part owns its state, its file below `/data/status` and its share of the reports. Nobody else touches them.
//! 2. A turn is synchronous: it looks at the part's own state, the config, the clock and the facts of other parts, and returns
//!    operations. Nothing in it waits, reads a device or calls another program.
//! 3. An operation is a future that the kernel runs as a task. What it returns comes back to every part as [`Event::News`].
//! 4. What must be on disk before an operation may start is saved with it ([`Turn::start_saved`]), or known to be there
//!    ([`crate::keeper::Keeper::on_disk`]).
//! 5. A part tells others what it knows by publishing a fact: one value of a type of its own.

use holdfast_model::desired::Desired;
use holdfast_model::observed::Observed;
use holdfast_supervise::{UnitName, UnitStatus};
use std::any::{Any, TypeId};
use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

/// A domain of the agent: networks, contents, apps, ...
pub trait Part {
    /// Name in messages, for example `network`. Also the file name of its state.
    fn name(&self) -> &'static str;

    /// Takes an event in. Called for every event; a part ignores what it does not know.
    fn event(&mut self, event: &Event, turn: &mut Turn<'_>);

    /// Compares what is wanted with what exists and asks for operations. Called after each event, again when a fact of another
    /// part changed in the same turn, and at the times asked for with [`Turn::wake`]. Idempotent: a second call with nothing
    /// changed asks for nothing.
    fn turn(&mut self, turn: &mut Turn<'_>);

    /// Writes the part's share of the state report. Reads no device and no file.
    fn observe(&self, observed: &mut Observed);
}

/// What happened.
#[derive(Clone)]
pub enum Event {
    /// A config is in force, from disk or from the controller. Also in [`Turn::config`] from now on.
    Config(Rc<Desired>),
    /// All units that PID 1 knows: at the start, and after its event queue overran.
    Units(Rc<[UnitStatus]>),
    /// The state of a unit changed.
    Unit(Rc<UnitStatus>),
    /// PID 1 dropped a unit from its table.
    UnitRemoved(UnitName),
    /// PID 1 has new log lines.
    Logs,
    /// What an operation returned, or what a long-running task of a part learned. The parts that know the type take it.
    News(Rc<dyn Any>),
}

impl Event {
    /// The news, if it is of type `T`.
    #[must_use]
    pub fn news<T: 'static>(&self) -> Option<&T> {
        match self {
            Self::News(news) => news.downcast_ref(),
            _ => None,
        }
    }
}

/// An operation: what it brings back goes to all parts.
pub type Operation = Pin<Box<dyn Future<Output = Rc<dyn Any>>>>;

/// An operation that a part asked for.
pub struct Ordered {
    /// The part.
    pub part: &'static str,
    /// What it does, for messages about operations that take long.
    pub what: String,
    /// It starts only after what the part saved in this turn is on disk.
    pub saved: bool,
    /// The operation.
    pub run: Operation,
}

/// A line for the console and the device log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// `info`, `warning` or `error`.
    pub severity: &'static str,
    /// The text; names its object.
    pub text: String,
}

/// What parts know of each other: at most one value of each type.
#[derive(Default)]
pub struct Facts {
    values: BTreeMap<TypeId, Rc<dyn Any>>,
    changed: bool,
}

impl Facts {
    /// The fact of type `T`, if a part published one.
    #[must_use]
    pub fn get<T: 'static>(&self) -> Option<&T> {
        self.values.get(&TypeId::of::<T>())?.downcast_ref()
    }

    /// Replaces the fact of this type. Parts run again in the same turn when it differs from the one before.
    pub fn publish<T: PartialEq + 'static>(&mut self, fact: T) {
        if self.get::<T>() != Some(&fact) {
            self.values.insert(TypeId::of::<T>(), Rc::new(fact));
            self.changed = true;
        }
    }

    /// True when a fact changed since the last call.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }
}

/// What a part sees and asks for.
pub struct Turn<'a> {
    /// Monotonic time since boot.
    pub now: Duration,
    /// Wall time, for stamps only.
    pub wall: SystemTime,
    /// The config in force; `None` before the first.
    pub config: Option<&'a Rc<Desired>>,
    /// What other parts know.
    pub facts: &'a mut Facts,
    pub(crate) part: &'static str,
    pub(crate) asked: &'a mut Asked,
}

/// All that the parts asked for in one turn.
#[derive(Default)]
pub struct Asked {
    /// Operations, in the order they were asked for.
    pub operations: Vec<Ordered>,
    /// Files to be replaced: part, path below the data folder, content.
    pub saves: Vec<(&'static str, PathBuf, Vec<u8>)>,
    /// Lines to be said.
    pub lines: Vec<Line>,
    /// The next time to look, if nothing happens before.
    pub wake: Option<Duration>,
    /// A config to be in force from the next turn on.
    pub config: Option<Rc<Desired>>,
}

impl Turn<'_> {
    /// Asks for an operation; its result comes back as [`Event::News`].
    pub fn start<T: 'static>(&mut self, what: impl Into<String>, run: impl Future<Output = T> + 'static) {
        self.order(what.into(), false, run);
    }

    /// Asks for an operation that may start only once what the part saves in this turn is on disk. It is dropped when that
    /// cannot be saved; the part sees [`SaveFailed`] and asks again later.
    pub fn start_saved<T: 'static>(&mut self, what: impl Into<String>, run: impl Future<Output = T> + 'static) {
        self.order(what.into(), true, run);
    }

    fn order<T: 'static>(&mut self, what: String, saved: bool, run: impl Future<Output = T> + 'static) {
        let run: Operation = Box::pin(async move { Rc::new(run.await) as Rc<dyn Any> });
        self.asked.operations.push(Ordered { part: self.part, what, saved, run });
    }

    /// Replaces a file below the data folder, durably; only the last content of a turn is written.
    pub fn save(&mut self, path: impl Into<PathBuf>, content: Vec<u8>) {
        let path = path.into();
        self.asked.saves.retain(|(_, p, _)| *p != path);
        self.asked.saves.push((self.part, path, content));
    }

    /// Puts a config in force: every part sees it as [`Event::Config`] in the next turn.
    pub fn configure(&mut self, config: Rc<Desired>) {
        self.asked.config = Some(config);
    }

    /// Says something on the console and in the device log.
    pub fn say(&mut self, severity: &'static str, text: impl Into<String>) {
        self.asked.lines.push(Line { severity, text: text.into() });
    }

    /// Looks again at `at` at the latest.
    pub fn wake(&mut self, at: Duration) {
        self.asked.wake = Some(self.asked.wake.map_or(at, |before| before.min(at)));
    }
}

/// News: a file of a part could not be saved. Its waiting operations were dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaveFailed {
    /// The part.
    pub part: &'static str,
    /// The file.
    pub path: PathBuf,
    /// The system's error.
    pub error: String,
}

/// News: a file of a part is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The part.
    pub part: &'static str,
    /// The file.
    pub path: PathBuf,
}
