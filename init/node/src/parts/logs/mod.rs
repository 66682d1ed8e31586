//! Logs: lines of units, read from PID 1 and kept until the controller has them.
//!
//! Principles:
//! 1. A pass reads one answer of PID 1 and lets everything else go on before the next; a flood costs its own lines only.
//! 2. The device and each app have queues of their own, bounded: no app can push out the lines of another.
//! 3. A restarted agent goes on where the one before it stopped: no line twice, none lost.
//!
//! Reading order: here, [`queue`] (what waits for upload).

pub mod queue;

use self::queue::Queue;
use crate::keeper::Said;
use crate::part::{Event, Part, Turn};
use crate::parts::app::vm::app_of;
use crate::setup::Setup;
use crate::world::init::Init;
use holdfast_model::observed::Observed;
use holdfast_supervise::{LogLine, Logs};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::sleep;
use uuid::Uuid;

/// Between two answers of PID 1 while more lines wait.
const PACE: Duration = Duration::from_millis(20);
/// A clock before 2025 was never set.
const CLOCK_FLOOR: Duration = Duration::from_secs(1_735_689_600);
/// After an answer that failed.
const RETRY: Duration = Duration::from_secs(2);

/// The queues, shared with whoever uploads.
pub type Shared = Arc<Mutex<Queue>>;

/// The part.
pub struct LogsPart {
    init: Rc<dyn Init>,
    queue: Shared,
    /// File with the cursor, in memory: cursors begin again with each boot.
    mark: PathBuf,
    cursor: u64,
    reading: bool,
    /// PID 1 has lines that were not read yet.
    more: bool,
    retry_at: Duration,
    said: Said,
}

/// The part on a real machine.
///
/// # Errors
/// Never.
pub fn new(setup: &Setup, _kept: Option<&[u8]>) -> anyhow::Result<Box<dyn Part>> {
    let init = Rc::new(setup.supervisor.clone());
    Ok(Box::new(LogsPart::over(init, setup.logs.clone(), setup.paths.run.join("log-cursor"))))
}

/// News: an answer of PID 1.
struct Read(Result<Logs, String>);

impl LogsPart {
    /// A part that goes on from the cursor in the file `mark`, if an agent before it in this boot left one.
    #[must_use]
    pub fn over(init: Rc<dyn Init>, queue: Shared, mark: PathBuf) -> Self {
        let cursor = fs::read_to_string(&mark).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        Self { init, queue, mark, cursor, reading: false, more: true, retry_at: Duration::ZERO, said: Said::default() }
    }

    fn read(&mut self, turn: &mut Turn<'_>) {
        // Which lines of apps are kept is asked of the config.
        if self.reading || !self.more || turn.config.is_none() {
            return;
        }
        if turn.now < self.retry_at {
            return turn.wake(self.retry_at);
        }
        self.reading = true;
        let (mark, cursor, logs) = (self.mark.clone(), self.cursor, self.init.logs(self.cursor));
        turn.start("read log lines", async move {
            // In memory, so neither slow nor lasting.
            if let Err(e) = fs::write(&mark, cursor.to_string()) {
                return Read(Err(format!("{}: {e}", mark.display())));
            }
            sleep(PACE).await;
            Read(logs.await)
        });
    }

    fn take(&mut self, result: &Result<Logs, String>, turn: &mut Turn<'_>) {
        self.reading = false;
        let logs = match result {
            Ok(logs) => logs,
            Err(e) => {
                self.retry_at = turn.now + RETRY;
                return self.said.once(turn, "warning", &format!("log lines cannot be read: {e}; tried again"));
            }
        };
        let moved = logs.next != self.cursor;
        (self.cursor, self.more) = (logs.next, logs.more || moved);
        let wanted: BTreeMap<Uuid, bool> =
            turn.config.iter().flat_map(|c| &c.apps).map(|a| (a.id, !a.disable_logs)).collect();
        // Counted from boot while the clock is not known.
        let wall = turn.wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        let boot = if wall < CLOCK_FLOOR { Duration::ZERO } else { wall.saturating_sub(turn.now) };
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        for line in &logs.lines {
            queue_line(&mut queue, line, boot, &wanted);
        }
    }
}

fn queue_line(queue: &mut Queue, line: &LogLine, boot: Duration, wanted: &BTreeMap<Uuid, bool>) {
    // What the agent itself says went into the queue when it was said.
    if line.unit.as_str() == "node" {
        return;
    }
    let keep = app_of(&line.unit).is_none_or(|app| wanted.get(&app).copied().unwrap_or(false));
    let boot_ns = u64::try_from(boot.as_nanos()).unwrap_or(u64::MAX);
    queue.unit_line(line, boot_ns, keep);
}

/// Nanoseconds since the Unix epoch; 0 before it.
#[must_use]
pub fn nanoseconds(wall: SystemTime) -> u64 {
    wall.duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

impl Part for LogsPart {
    fn name(&self) -> &'static str {
        "logs"
    }

    fn event(&mut self, event: &Event, turn: &mut Turn<'_>) {
        match event {
            Event::Logs => self.more = true,
            Event::Config(config) => {
                let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                queue.apps.retain(|id, _| config.apps.iter().any(|a| a.id == *id));
            }
            _ => {}
        }
        if let Some(Read(result)) = event.news() {
            self.take(result, turn);
        }
    }

    fn turn(&mut self, turn: &mut Turn<'_>) {
        self.read(turn);
    }

    fn observe(&self, _: &mut Observed) {}
}

#[cfg(test)]
mod tests;
