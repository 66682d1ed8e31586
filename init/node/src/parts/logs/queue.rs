//! Lines on their way to the controller: those of the device and those of each app apart, bounded, in order.

use crate::parts::app::vm::app_of;
use holdfast_supervise::{LogLine, Stream};
use std::collections::{BTreeMap, VecDeque};
use uuid::Uuid;

/// Lines kept for the device while the controller is away; the oldest are dropped first.
const DEVICE_LINES: usize = 4000;
/// Lines kept for each app.
const APP_LINES: usize = 4000;

/// A line on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Who wrote it: unit name, or `node`, `guest`, `console`.
    pub source: String,
    /// `info`, `warning` or `error`.
    pub severity: &'static str,
    /// Nanoseconds since the Unix epoch; since boot while the clock is not known.
    pub at_ns: u64,
    /// Ever-growing number.
    pub id: u64,
    /// The text.
    pub text: String,
}

/// What waits.
#[derive(Debug, Default)]
pub struct Queue {
    /// Of the device.
    pub device: VecDeque<Line>,
    /// Of apps.
    pub apps: BTreeMap<Uuid, VecDeque<Line>>,
    /// Lines dropped because a queue was full.
    pub dropped: u64,
    next: u64,
}

impl Queue {
    /// Takes in a line of a unit: the output of a virtual machine is its app's, everything else the device's.
    pub fn unit_line(&mut self, line: &LogLine, boot_ns: u64, keep_app_lines: bool) {
        let at_ns = boot_ns.saturating_add(line.at_ms.saturating_mul(1_000_000));
        match (app_of(&line.unit), line.stream) {
            (Some(app), Stream::Out) => {
                if keep_app_lines {
                    self.push(Some(app), "console", "info", at_ns, &line.text);
                }
            }
            (_, stream) => {
                let severity = if stream == Stream::Err { "error" } else { "info" };
                self.push(None, line.unit.as_str(), severity, at_ns, &line.text);
            }
        }
    }

    /// Adds a line of the agent itself.
    pub fn device_line(&mut self, severity: &'static str, at_ns: u64, text: &str) {
        self.push(None, "node", severity, at_ns, text);
    }

    fn push(&mut self, app: Option<Uuid>, source: &str, severity: &'static str, at_ns: u64, text: &str) {
        self.next += 1;
        let line = Line { source: source.to_owned(), severity, at_ns, id: self.next, text: text.to_owned() };
        let (queue, bound) = match app {
            Some(app) => (self.apps.entry(app).or_default(), APP_LINES),
            None => (&mut self.device, DEVICE_LINES),
        };
        if queue.len() >= bound {
            queue.pop_front();
            self.dropped += 1;
        }
        queue.push_back(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_supervise::UnitName;

    fn line(unit: &str, stream: Stream, text: &str) -> LogLine {
        LogLine { cursor: 1, unit: UnitName::new(unit).unwrap(), number: 1, stream, at_ms: 5, text: text.into() }
    }

    #[test]
    fn app_output_and_device_lines_are_kept_apart() {
        let mut queue = Queue::default();
        let app = Uuid::from_u128(3);
        let unit = format!("vmm-{app}");
        queue.unit_line(&line(&unit, Stream::Out, "hello"), 0, true);
        queue.unit_line(&line(&unit, Stream::Out, "not wanted"), 0, false);
        queue.unit_line(&line(&unit, Stream::Err, "vmm: ring"), 0, true);
        assert_eq!(queue.apps[&app].len(), 1);
        assert_eq!(queue.device.len(), 1);
        assert_eq!(queue.device[0].severity, "error");
    }

    #[test]
    fn a_full_queue_drops_the_oldest_and_counts_them() {
        let mut queue = Queue::default();
        for n in 0..DEVICE_LINES + 3 {
            queue.device_line("info", 0, &n.to_string());
        }
        assert_eq!((queue.device.len(), queue.dropped), (DEVICE_LINES, 3));
        assert_eq!(queue.device[0].text, "3");
    }
}
