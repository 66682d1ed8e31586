//! Lines of units on their way to the controller: device logs and app logs apart, bounded, in order.

use crate::parts::app::vm::app_of;
use holdfast_supervise::{LogLine, Stream};
use std::collections::{BTreeMap, VecDeque};
use uuid::Uuid;

/// Lines kept for the device while the controller is away; the oldest go first.
const DEVICE_LINES: usize = 4000;
/// Lines kept for each app.
const APP_LINES: usize = 4000;

/// A line on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Who said it: unit name, or `node`, `guest`, `console`.
    pub source: String,
    /// `info` or `error`, ...
    pub severity: &'static str,
    /// Unix nanoseconds; counted from boot while the clock is not known.
    pub at_ns: u64,
    /// Ever-growing number.
    pub id: u64,
    /// The text.
    pub text: String,
}

/// What waits.
#[derive(Debug, Default)]
pub struct Waiting {
    /// Of the device.
    pub device: VecDeque<Line>,
    /// Of apps.
    pub apps: BTreeMap<Uuid, VecDeque<Line>>,
    /// Lines given up because the queue was full.
    pub dropped: u64,
    next: u64,
}

impl Waiting {
    /// Takes a line of a unit in; one of an app's console only with `keep_app_lines`.
    pub fn unit_line(&mut self, line: &LogLine, boot_ns: u64, keep_app_lines: bool) {
        let at_ns = boot_ns + line.at_ms * 1_000_000;
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

    /// Adds a line of the device itself.
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
    fn app_output_and_device_lines_go_apart() {
        let mut w = Waiting::default();
        let app = Uuid::from_u128(3);
        let unit = format!("vmm-{app}");
        w.unit_line(&line(&unit, Stream::Out, "hello"), 0, true);
        w.unit_line(&line(&unit, Stream::Err, "vmm: ring"), 0, true);
        w.unit_line(&line(&unit, Stream::Out, "holdfast-guest: exit code=3"), 0, true);
        w.unit_line(&line(&unit, Stream::Out, "not wanted"), 0, false);
        assert_eq!(w.apps[&app].len(), 2);
        assert_eq!(w.device.len(), 1);
        assert_eq!(w.device[0].severity, "error");
    }

    #[test]
    fn a_full_queue_gives_up_the_oldest_and_counts() {
        let mut w = Waiting::default();
        for n in 0..DEVICE_LINES + 3 {
            w.device_line("info", 0, &n.to_string());
        }
        assert_eq!((w.device.len(), w.dropped), (DEVICE_LINES, 3));
        assert_eq!(w.device[0].text, "3");
    }
}
