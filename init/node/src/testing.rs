//! One part on a bench: turns, its operations run to their ends, files in memory. For table tests of parts.

use crate::part::{Asked, Event, Facts, Line, Operation, Part, SaveFailed, Saved, Turn};
use holdfast_model::desired::Desired;
use std::any::Any;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

/// What a part is tested with.
#[derive(Default)]
pub struct Bench {
    pub now: Duration,
    pub config: Option<Rc<Desired>>,
    pub facts: Facts,
    pub lines: Vec<Line>,
    pub files: BTreeMap<PathBuf, Vec<u8>>,
    /// Saves fail.
    pub full: bool,
    pub wake: Option<Duration>,
    /// Names of the operations that began.
    pub begun: Vec<String>,
    /// The agent dies before it has had so many more effects: saves, and operations that run.
    pub dies_in: Option<usize>,
    /// It has died.
    pub dead: bool,
    pending: Vec<Operation>,
}

impl Bench {
    pub fn config(&mut self, part: &mut dyn Part, desired: Desired) {
        let desired = Rc::new(desired);
        self.config = Some(desired.clone());
        self.event(part, &Event::Config(desired));
    }

    /// An event, then everything that follows from it.
    pub fn event(&mut self, part: &mut dyn Part, event: &Event) {
        let asked = self.with(part, |part, turn| part.event(event, turn));
        self.carry_out(part, asked);
        self.settle(part);
    }

    /// Turns until nothing more begins or ends.
    pub fn settle(&mut self, part: &mut dyn Part) {
        for _ in 0..50 {
            if self.dead {
                return;
            }
            let asked = self.with(part, |part, turn| part.turn(turn));
            self.wake = asked.wake;
            let began = !asked.operations.is_empty() || !asked.saves.is_empty();
            let ended = self.carry_out(part, asked);
            if !began && !ended && !self.facts.take_changed() {
                return;
            }
        }
        panic!("the part does not come to rest: {:?}", self.begun);
    }

    pub fn at(&mut self, part: &mut dyn Part, seconds: u64) {
        self.now = Duration::from_secs(seconds);
        self.settle(part);
    }

    pub fn said(&self, text: &str) -> usize {
        self.lines.iter().filter(|l| l.text.contains(text)).count()
    }

    fn dies(&mut self) -> bool {
        self.dead = self.dead || self.dies_in == Some(0);
        self.dies_in = self.dies_in.map(|n| n.saturating_sub(1));
        self.dead
    }

    fn with(&mut self, part: &mut dyn Part, f: impl FnOnce(&mut dyn Part, &mut Turn<'_>)) -> Asked {
        let mut asked = Asked::default();
        let mut turn = Turn {
            now: self.now,
            wall: SystemTime::UNIX_EPOCH,
            config: self.config.as_ref(),
            facts: &mut self.facts,
            part: part.name(),
            asked: &mut asked,
        };
        f(part, &mut turn);
        asked
    }

    fn carry_out(&mut self, part: &mut dyn Part, mut asked: Asked) -> bool {
        self.lines.append(&mut asked.lines);
        let mut news: Vec<Rc<dyn Any>> = Vec::new();
        for (name, path, content) in asked.saves {
            if self.dies() {
                return false;
            }
            if self.full {
                asked.operations.retain(|o| !o.saved);
                news.push(Rc::new(SaveFailed { part: name, path, error: "no space".into() }));
            } else {
                self.files.insert(path.clone(), content);
                news.push(Rc::new(Saved { part: name, path }));
            }
        }
        for operation in asked.operations {
            self.begun.push(operation.what);
            self.pending.push(operation.run);
        }
        for mut run in std::mem::take(&mut self.pending) {
            if self.dies() {
                return false;
            }
            match run.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(brought) => news.push(brought),
                Poll::Pending => self.pending.push(run),
            }
        }
        let ended = !news.is_empty();
        for brought in news {
            let asked = self.with(part, |part, turn| part.event(&Event::News(brought), turn));
            self.carry_out(part, asked);
        }
        ended
    }
}
