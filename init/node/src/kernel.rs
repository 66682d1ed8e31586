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
use crate::part::{Asked, Event, Facts, Line, Operation, Ordered, Part, SaveFailed, Saved, Turn};
use crate::world::{Clock, Files};
use holdfast_model::desired::Desired;
use holdfast_model::observed::Observed;
use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Longest time between two turns when nothing happens.
const TICK: Duration = Duration::from_secs(1);
/// Shortest time between two turns when nothing happens: a part that wants to be woken at a time that has passed does not make
/// the loop spin.
const PAUSE: Duration = Duration::from_millis(10);
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

    /// One more turn.
    pub(crate) fn advance(&self) {
        self.0.set(self.0.get() + 1);
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
    /// One writer for each part that saves: its files are written in order, and what waits for them stays behind them.
    writers: BTreeMap<&'static str, mpsc::UnboundedSender<Batch>>,
}

/// What a part saves in one turn, and the operations that wait for it.
#[derive(Default)]
struct Batch {
    saves: Vec<(PathBuf, Vec<u8>)>,
    behind: Vec<Operation>,
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
            writers: BTreeMap::new(),
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
            let until = self.wake.map_or(TICK, |at| at.saturating_sub(now)).clamp(PAUSE, TICK);
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
        if let Some(config) = asked.config.take() {
            // In the next turn: every part sees it as an event, in order with everything else.
            let _ = self.sender.send(Event::Config(config));
        }
        asked.lines.iter().for_each(|line| (self.means.say)(line));
        self.carry_out(asked.saves, asked.operations);
        self.publish();
        self.progress.advance();
    }

    fn each(&mut self, asked: &mut Asked, mut f: impl FnMut(&mut dyn Part, &mut Turn<'_>)) {
        let (now, wall) = (self.means.clock.now(), self.means.clock.wall());
        for part in &mut self.parts {
            let name = part.name();
            let mut turn = Turn { now, wall, config: self.config.as_ref(), facts: &mut self.facts, part: name, asked };
            f(part.as_mut(), &mut turn);
        }
    }

    /// Starts what was asked for: what waits for a save behind it, everything else at once.
    fn carry_out(&mut self, saves: Vec<(&'static str, PathBuf, Vec<u8>)>, operations: Vec<Ordered>) {
        let mut batches: BTreeMap<&'static str, Batch> = BTreeMap::new();
        for (part, path, content) in saves {
            batches.entry(part).or_default().saves.push((path, content));
        }
        for operation in operations {
            if operation.saved {
                batches.entry(operation.part).or_default().behind.push(operation.run);
            } else {
                spawn(operation.run, self.sender.clone());
            }
        }
        for (part, batch) in batches {
            let writer = self
                .writers
                .entry(part)
                .or_insert_with(|| start_writer(part, self.means.files.clone(), self.sender.clone()));
            // The writer lives as long as the kernel.
            let _ = writer.send(batch);
        }
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

fn spawn(run: Operation, events: mpsc::UnboundedSender<Event>) {
    tokio::task::spawn_local(async move {
        let _ = events.send(Event::News(run.await));
    });
}

/// Writes the files of one part, one after the other. A save that fails drops the operations behind it, and those of later
/// turns too until a save succeeds: what they rely on is not on disk.
fn start_writer(
    part: &'static str,
    files: Rc<dyn Files>,
    events: mpsc::UnboundedSender<Event>,
) -> mpsc::UnboundedSender<Batch> {
    let (sender, mut batches) = mpsc::unbounded_channel::<Batch>();
    tokio::task::spawn_local(async move {
        let mut failed: Option<SaveFailed> = None;
        while let Some(batch) = batches.recv().await {
            let nothing_to_save = batch.saves.is_empty();
            for (path, content) in batch.saves {
                let news: Rc<dyn Any> = match files.replace(path.clone(), content).await {
                    Ok(()) => {
                        failed = None;
                        Rc::new(Saved { part, path })
                    }
                    Err(e) => {
                        let lost = SaveFailed { part, path, error: e.to_string() };
                        failed = Some(lost.clone());
                        Rc::new(lost)
                    }
                };
                let _ = events.send(Event::News(news));
            }
            match &failed {
                None => batch.behind.into_iter().for_each(|run| spawn(run, events.clone())),
                Some(lost) if nothing_to_save => drop(events.send(Event::News(Rc::new(lost.clone())))),
                Some(_) => {}
            }
        }
    });
    sender
}

#[cfg(test)]
mod tests;
