//! The loop of the agent: events in, one turn of every part, operations out. It knows no noun.
//!
//! ```text
//!  events --> part.event() of all --> part.turn() of all, again while facts change --> saves, operations, lines, report
//!    ^                                                                                     |
//!    +-------------------- what operations and tasks bring back (News) <-------------------+
//! ```
//! Nothing in the loop waits for anything but the next event. An operation that never ends holds up nobody but what its part
//! makes wait for it. The heartbeat is a task of its own that watches [`Progress`].

use crate::machine;
use crate::part::{Asked, Event, Facts, Line, Ordered, Part, SaveFailed, Saved, Turn};
use crate::world::{Clock, Files};
use holdfast_model::desired::Desired;
use holdfast_model::observed::Observed;
use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Longest time between two turns when nothing happens.
const TICK: Duration = Duration::from_secs(1);
/// Most passes over the parts in one turn; facts that still change then are looked at in the next turn.
const PASSES: usize = 8;

/// Counts turns: whoever feeds the watchdog sees that the loop goes on.
#[derive(Debug, Clone, Default)]
pub struct Progress(Rc<Cell<u64>>);

impl Progress {
    /// Number of turns so far.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.0.get()
    }
}

/// What the kernel acts through.
pub struct Means {
    /// The clock.
    pub clock: Rc<dyn Clock>,
    /// The data folder.
    pub files: Rc<dyn Files>,
    /// Takes lines for the console and the device log.
    pub say: Box<dyn Fn(&Line)>,
}

/// The kernel of the agent.
pub struct Kernel {
    parts: Vec<Box<dyn Part>>,
    means: Means,
    config: Option<Rc<Desired>>,
    facts: Facts,
    sender: mpsc::UnboundedSender<Event>,
    events: mpsc::UnboundedReceiver<Event>,
    report: watch::Sender<Observed>,
    progress: Progress,
    wake: Option<Duration>,
}

impl Kernel {
    /// A kernel of these parts; the report appears at the receiver.
    #[must_use]
    pub fn new(parts: Vec<Box<dyn Part>>, means: Means) -> (Self, watch::Receiver<Observed>) {
        let (sender, events) = mpsc::unbounded_channel();
        let (report, reader) = watch::channel(Observed::default());
        let kernel = Self {
            parts,
            means,
            config: None,
            facts: Facts::default(),
            sender,
            events,
            report,
            progress: Progress::default(),
            wake: None,
        };
        (kernel, reader)
    }

    /// Where tasks send what they learn. Each must bound what it sends: it awaits an answer or paces itself.
    #[must_use]
    pub fn sender(&self) -> mpsc::UnboundedSender<Event> {
        self.sender.clone()
    }

    /// Shows that the loop goes on.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// What the parts know.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Runs until `done` says that the parts have reached their end, which only recovery has.
    pub async fn run(&mut self, done: impl Fn(&Facts) -> bool) {
        self.turn(None);
        while !done(&self.facts) {
            let now = self.means.clock.now();
            let until = self.wake.map_or(TICK, |at| at.saturating_sub(now)).min(TICK);
            let event = tokio::select! {
                event = self.events.recv() => event,
                () = tokio::time::sleep(until) => None,
            };
            self.turn(event);
        }
    }

    /// One turn: the event to all parts, then all parts until their facts rest.
    fn turn(&mut self, event: Option<Event>) {
        let mut asked = Asked::default();
        if let Some(event) = &event {
            if let Event::Config(config) = event {
                self.config = Some(config.clone());
            }
            self.each(&mut asked, |part, turn| part.event(event, turn));
        }
        for _ in 0..PASSES {
            self.each(&mut asked, |part, turn| part.turn(turn));
            if !self.facts.take_changed() {
                break;
            }
        }
        self.wake = asked.wake;
        asked.lines.iter().for_each(|line| (self.means.say)(line));
        self.carry_out(asked.saves, asked.operations);
        self.publish();
        self.progress.0.set(self.progress.0.get() + 1);
    }

    fn each(&mut self, asked: &mut Asked, mut f: impl FnMut(&mut dyn Part, &mut Turn<'_>)) {
        let (now, wall) = (self.means.clock.now(), self.means.clock.wall());
        for part in &mut self.parts {
            let name = part.name();
            let mut turn = Turn { now, wall, config: self.config.as_ref(), facts: &mut self.facts, part: name, asked };
            f(part.as_mut(), &mut turn);
        }
    }

    /// Starts the saves and operations: those that wait for a save behind it, the others at once.
    fn carry_out(&self, saves: Vec<(&'static str, PathBuf, Vec<u8>)>, operations: Vec<Ordered>) {
        let (mut waiting, ready): (Vec<Ordered>, Vec<Ordered>) = operations.into_iter().partition(|o| o.saved);
        for operation in ready {
            self.spawn(operation);
        }
        let mut parts: Vec<&'static str> = saves.iter().map(|s| s.0).chain(waiting.iter().map(|o| o.part)).collect();
        parts.sort_unstable();
        parts.dedup();
        let mut saves = saves;
        for part in parts {
            let own: Vec<_> = saves.extract_if(.., |s| s.0 == part).collect();
            let behind: Vec<_> = waiting.extract_if(.., |o| o.part == part).collect();
            let (files, sender) = (self.means.files.clone(), self.sender.clone());
            tokio::task::spawn_local(async move {
                for (part, path, content) in own {
                    if let Err(e) = files.replace(path.clone(), content).await {
                        let failed = SaveFailed { part, path, error: e.to_string() };
                        let _ = sender.send(Event::News(Rc::new(failed)));
                        return;
                    }
                    let _ = sender.send(Event::News(Rc::new(Saved { part, path })));
                }
                for operation in behind {
                    let sender = sender.clone();
                    tokio::task::spawn_local(async move {
                        let _ = sender.send(Event::News(operation.run.await));
                    });
                }
            });
        }
    }

    fn spawn(&self, operation: Ordered) {
        let sender = self.sender.clone();
        tokio::task::spawn_local(async move {
            let _ = sender.send(Event::News(operation.run.await));
        });
    }

    fn publish(&self) {
        let mut observed = Observed::default();
        for part in &self.parts {
            part.observe(&mut observed);
        }
        self.report.send_if_modified(|old| {
            observed.settle(old, machine::seconds_of(self.means.clock.wall()));
            let changed = *old != observed;
            if changed {
                *old = observed;
            }
            changed
        });
    }
}
