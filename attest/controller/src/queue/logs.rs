//! Log files waiting, in order, and the pace at which they go.

use crate::failure::Class;
use crate::timing::{
    LOG_BACKLOG, LOG_FAST, LOG_INTERVAL, LOG_MAX_FAILURES, LOG_MAX_REFUSALS, LOG_PAUSE, LOG_SLOW_FOR, LOG_SLOWEST,
    MAX_LOG_BYTES,
};
use holdfast_api::newlog::Origin;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A log file waiting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    /// Whose lines.
    pub origin: Origin,
    /// The file, as [`holdfast_api::newlog::pack`] made it.
    pub gzip: Vec<u8>,
}

/// Log files waiting, oldest first, and the pace at which they go.
#[derive(Debug)]
pub struct LogQueue {
    files: VecDeque<LogFile>,
    bytes: usize,
    dropped: u64,
    refusals: u32,
    failures: u32,
    not_before: Instant,
    slow: Option<(Duration, Instant)>,
}

impl LogQueue {
    /// An empty queue; the first file may go at `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { files: VecDeque::new(), bytes: 0, dropped: 0, refusals: 0, failures: 0, not_before: now, slow: None }
    }

    /// Adds a file. When the bound is reached the oldest files go.
    pub fn put(&mut self, file: LogFile) {
        self.bytes += file.gzip.len();
        self.files.push_back(file);
        while self.bytes > MAX_LOG_BYTES && self.files.len() > 1 {
            self.drop_first();
        }
    }

    /// The file whose turn it is.
    #[must_use]
    pub fn take(&self, now: Instant) -> Option<&LogFile> {
        self.files.front().filter(|_| self.not_before <= now)
    }

    /// When the next file may go; `None` when none waits.
    #[must_use]
    pub fn next_time(&self) -> Option<Instant> {
        (!self.files.is_empty()).then_some(self.not_before)
    }

    /// The outcome of the file that was taken; `None` = accepted. `random` in 0.0..1.0.
    pub fn settle(&mut self, failure: Option<Class>, now: Instant, fast: bool, random: f64) {
        match failure {
            None => {
                (self.refusals, self.failures) = (0, 0);
                self.pop();
            }
            Some(Class::TooMany) => {
                let interval = (self.interval(now, fast) * 2).clamp(LOG_FAST, LOG_SLOWEST);
                self.slow = Some((interval, now + LOG_SLOW_FOR));
            }
            Some(class) if class.is_final() => {
                self.refusals += 1;
                if self.refusals >= LOG_MAX_REFUSALS {
                    self.refusals = 0;
                    self.drop_first();
                }
            }
            Some(_) => self.failures += 1,
        }
        let wait = if self.failures >= LOG_MAX_FAILURES {
            self.failures = 0;
            LOG_PAUSE.0 + (LOG_PAUSE.1 - LOG_PAUSE.0).mul_f64(random.clamp(0.0, 1.0))
        } else {
            self.interval(now, fast)
        };
        self.not_before = now + wait;
    }

    /// The interval in force: slowed by 429, else fast, else by what waits.
    fn interval(&self, now: Instant, fast: bool) -> Duration {
        if let Some((interval, _)) = self.slow.filter(|(_, until)| now < *until) {
            return interval;
        }
        if fast {
            return LOG_FAST;
        }
        let backlog = LOG_BACKLOG.iter().find(|(files, _)| self.files.len() >= *files);
        backlog.map_or(LOG_INTERVAL, |(_, interval)| *interval)
    }

    fn pop(&mut self) {
        if let Some(file) = self.files.pop_front() {
            self.bytes -= file.gzip.len();
        }
    }

    fn drop_first(&mut self) {
        self.pop();
        self.dropped += 1;
    }

    /// Files waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// True when none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Files dropped so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn log(bytes: usize) -> LogFile {
        LogFile { origin: Origin::App { id: "a".to_owned(), name: "n".to_owned() }, gzip: vec![0; bytes] }
    }

    #[test]
    fn logs_go_in_order_at_the_pace_of_the_backlog() {
        let now = Instant::now();
        for (waiting, fast, wait) in [(1, false, 90), (3, false, 45), (60, false, 3), (1, true, 3)] {
            let mut queue = LogQueue::new(now);
            for size in 1..=waiting {
                queue.put(log(size));
            }
            assert_eq!(queue.take(now).expect("file").gzip.len(), 1);
            queue.settle(None, now, fast, 0.0);
            queue.put(log(1));
            assert_eq!(queue.next_time(), Some(now + seconds(wait)), "{waiting} files, fast {fast}");
        }
    }

    #[test]
    fn answer_429_doubles_the_interval_up_to_300_s_for_an_hour() {
        let mut now = Instant::now();
        let begun = now;
        let mut queue = LogQueue::new(now);
        queue.put(log(1));
        for wait in [6, 12, 24, 48, 96, 192, 300, 300] {
            queue.settle(Some(Class::TooMany), now, true, 0.0);
            assert_eq!(queue.next_time(), Some(now + seconds(wait)));
            now += seconds(wait);
        }
        queue.settle(None, now, true, 0.0);
        queue.put(log(1));
        assert_eq!(queue.next_time(), Some(now + seconds(300)), "still slow after a success");
        now = begun + seconds(3 * 3600);
        queue.settle(None, now, true, 0.0);
        queue.put(log(1));
        assert_eq!(queue.next_time(), Some(now + seconds(3)), "fast again");
    }

    #[test]
    fn file_refused_ten_times_is_given_up_and_three_failures_make_a_pause() {
        let now = Instant::now();
        let mut queue = LogQueue::new(now);
        queue.put(log(1));
        for _ in 0..9 {
            queue.settle(Some(Class::Unknown), now, true, 0.0);
        }
        assert_eq!(queue.len(), 1);
        queue.settle(Some(Class::Unknown), now, true, 0.0);
        assert_eq!((queue.len(), queue.dropped()), (0, 1));

        queue.put(log(1));
        for random in [0.0, 0.0, 0.5] {
            queue.settle(Some(Class::NoContact), now, true, random);
        }
        assert_eq!(queue.next_time(), Some(now + seconds(540)));
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn oldest_logs_go_when_the_bound_is_reached() {
        let mut queue = LogQueue::new(Instant::now());
        for _ in 0..5 {
            queue.put(log(MAX_LOG_BYTES / 4));
        }
        assert_eq!((queue.len(), queue.dropped()), (4, 1));
    }
}
