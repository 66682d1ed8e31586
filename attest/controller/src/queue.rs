//! What waits to be sent, as pure values: info by key, logs in order. Time and chance come in as arguments.

use crate::failure::Class;
use crate::timing::{
    INFO_BACKOFF, LOG_BACKLOG, LOG_FAST, LOG_INTERVAL, LOG_MAX_FAILURES, LOG_MAX_REFUSALS,
    LOG_PAUSE, LOG_SLOW_FOR, LOG_SLOWEST, MAX_INFO_ITEMS, MAX_LOG_BYTES,
};
use holdfast_api::hash::sha256;
use holdfast_api::info::{InfoKey, without_stamp};
use holdfast_api::newlog::Origin;
use holdfast_api::proto::info::ZInfoMsg;
use prost::Message;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Info messages waiting: for each key the newest content only.
///
/// A message that says the same as the last accepted one is not sent again. After 5xx, 429 or no contact a message
/// waits with a backoff of its own; after another 4xx it is dropped.
#[derive(Debug, Default)]
pub struct InfoQueue {
    waiting: BTreeMap<InfoKey, Item>,
    accepted: HashMap<InfoKey, [u8; 32]>,
    next_ticket: u64,
    dropped: u64,
}

#[derive(Debug)]
struct Item {
    message: ZInfoMsg,
    says: [u8; 32],
    ticket: u64,
    failures: u32,
    not_before: Instant,
}

/// A message taken from the queue, to be given back with its outcome.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    /// Its key.
    pub key: InfoKey,
    /// The message.
    pub message: ZInfoMsg,
    ticket: u64,
}

impl InfoQueue {
    /// Adds a message; it replaces one of the same key. Returns false when it says nothing new or the queue is full.
    pub fn put(&mut self, key: InfoKey, message: ZInfoMsg, now: Instant) -> bool {
        let says = sha256(&without_stamp(&message).encode_to_vec());
        match self.waiting.get(&key) {
            Some(item) if item.says == says => return false,
            None if self.accepted.get(&key) == Some(&says) => return false,
            None if self.waiting.len() >= MAX_INFO_ITEMS => {
                self.dropped += 1;
                return false;
            }
            _ => {}
        }
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        // A replaced item keeps its backoff: new content does not make an absent controller come back.
        let (failures, not_before) = self
            .waiting
            .get(&key)
            .map_or((0, now), |item| (item.failures, item.not_before));
        self.waiting.insert(
            key,
            Item {
                message,
                says,
                ticket,
                failures,
                not_before,
            },
        );
        true
    }

    /// The message whose turn it is: the one that waited longest of those that may go.
    #[must_use]
    pub fn take(&self, now: Instant) -> Option<Taken> {
        let ready = self
            .waiting
            .iter()
            .filter(|(_, item)| item.not_before <= now);
        ready
            .min_by_key(|(_, item)| (item.not_before, item.ticket))
            .map(|(key, item)| Taken {
                key: key.clone(),
                message: item.message.clone(),
                ticket: item.ticket,
            })
    }

    /// When the next message may go; `None` when none waits.
    #[must_use]
    pub fn next_time(&self) -> Option<Instant> {
        self.waiting.values().map(|item| item.not_before).min()
    }

    /// The outcome of a taken message; `None` = accepted. A message that was replaced meanwhile stays.
    pub fn settle(&mut self, taken: &Taken, failure: Option<Class>, now: Instant) {
        let Some(item) = self.waiting.get_mut(&taken.key) else {
            return;
        };
        match failure {
            None => {
                self.accepted.insert(
                    taken.key.clone(),
                    sha256(&without_stamp(&taken.message).encode_to_vec()),
                );
                if item.ticket == taken.ticket {
                    self.waiting.remove(&taken.key);
                } else {
                    (item.failures, item.not_before) = (0, now);
                }
            }
            Some(class) if class.is_final() => {
                if item.ticket == taken.ticket {
                    self.waiting.remove(&taken.key);
                    self.dropped += 1;
                }
            }
            Some(_) => {
                item.failures = item.failures.saturating_add(1);
                item.not_before = now + INFO_BACKOFF.after(item.failures);
            }
        }
    }

    /// Forgets what was accepted for a key, so that the next message of it is sent even when it says the same.
    pub fn forget(&mut self, key: &InfoKey) {
        self.accepted.remove(key);
    }

    /// Forgets all that was accepted: the controller wants everything again (`controller_epoch` changed).
    pub fn forget_all(&mut self) {
        self.accepted.clear();
    }

    /// Messages waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// True when none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Messages dropped so far: refused by the controller, or the queue was full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

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
        Self {
            files: VecDeque::new(),
            bytes: 0,
            dropped: 0,
            refusals: 0,
            failures: 0,
            not_before: now,
            slow: None,
        }
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
        let backlog = LOG_BACKLOG
            .iter()
            .find(|(files, _)| self.files.len() >= *files);
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
    use holdfast_api::info::InfoKind;
    use holdfast_api::proto::info::{ZInfoApp, z_info_msg::InfoContent};
    use prost_types::Timestamp;

    fn key(id: &str) -> InfoKey {
        InfoKey {
            kind: InfoKind::App,
            id: id.to_owned(),
        }
    }

    fn message(name: &str, seconds: i64) -> ZInfoMsg {
        ZInfoMsg {
            at_time_stamp: Some(Timestamp { seconds, nanos: 0 }),
            info_content: Some(InfoContent::Ainfo(ZInfoApp {
                app_name: name.to_owned(),
                ..ZInfoApp::default()
            })),
            ..ZInfoMsg::default()
        }
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn newest_content_replaces_older_of_the_same_key() {
        let now = Instant::now();
        let mut queue = InfoQueue::default();
        assert!(queue.put(key("a"), message("one", 1), now));
        assert!(queue.put(key("a"), message("two", 2), now));
        assert_eq!(queue.len(), 1);
        assert_eq!(queue.take(now).expect("message").message, message("two", 2));
    }

    #[test]
    fn what_was_accepted_is_not_sent_again_until_it_changes_or_is_forgotten() {
        let now = Instant::now();
        let mut queue = InfoQueue::default();
        queue.put(key("a"), message("one", 1), now);
        let taken = queue.take(now).expect("message");
        queue.settle(&taken, None, now);
        assert!(
            !queue.put(key("a"), message("one", 99), now),
            "only the stamp differs"
        );
        assert!(queue.put(key("a"), message("two", 99), now));
        let taken = queue.take(now).expect("message");
        queue.settle(&taken, None, now);
        queue.forget(&key("a"));
        assert!(queue.put(key("a"), message("two", 100), now));
    }

    #[test]
    fn info_is_kept_after_server_error_429_and_lost_contact_with_growing_waits() {
        for class in [
            Class::ServerError,
            Class::Temporary,
            Class::TooMany,
            Class::NoContact,
            Class::BadAnswer,
        ] {
            let mut now = Instant::now();
            let mut queue = InfoQueue::default();
            queue.put(key("a"), message("one", 1), now);
            for wait in [1, 2, 4, 8] {
                let taken = queue.take(now).expect("message");
                queue.settle(&taken, Some(class), now);
                assert_eq!(queue.take(now), None);
                assert_eq!(queue.next_time(), Some(now + seconds(wait)), "{class:?}");
                now += seconds(wait);
            }
            assert_eq!((queue.len(), queue.dropped()), (1, 0));
        }
    }

    #[test]
    fn info_is_dropped_on_rejection() {
        for class in [
            Class::Unknown,
            Class::Unauthorized,
            Class::Forbidden,
            Class::Refused,
        ] {
            let now = Instant::now();
            let mut queue = InfoQueue::default();
            queue.put(key("a"), message("one", 1), now);
            let taken = queue.take(now).expect("message");
            queue.settle(&taken, Some(class), now);
            assert_eq!((queue.len(), queue.dropped()), (0, 1), "{class:?}");
        }
    }

    #[test]
    fn content_that_came_during_a_send_is_sent_after_it() {
        let now = Instant::now();
        for outcome in [None, Some(Class::Refused), Some(Class::NoContact)] {
            let mut queue = InfoQueue::default();
            queue.put(key("a"), message("one", 1), now);
            let taken = queue.take(now).expect("message");
            queue.put(key("a"), message("two", 2), now);
            queue.settle(&taken, outcome, now);
            let later = queue.take(now + seconds(1)).expect("message");
            assert_eq!(later.message, message("two", 2), "{outcome:?}");
        }
    }

    #[test]
    fn a_failing_item_does_not_hold_up_the_others() {
        let now = Instant::now();
        let mut queue = InfoQueue::default();
        queue.put(key("a"), message("one", 1), now);
        queue.put(key("b"), message("two", 1), now);
        let taken = queue.take(now).expect("message");
        assert_eq!(taken.key, key("a"));
        queue.settle(&taken, Some(Class::ServerError), now);
        assert_eq!(queue.take(now).expect("message").key, key("b"));
    }

    #[test]
    fn queue_is_bounded() {
        let now = Instant::now();
        let mut queue = InfoQueue::default();
        for number in 0..MAX_INFO_ITEMS + 5 {
            queue.put(key(&number.to_string()), message("x", 1), now);
        }
        assert_eq!((queue.len(), queue.dropped()), (MAX_INFO_ITEMS, 5));
    }

    fn log(bytes: usize) -> LogFile {
        LogFile {
            origin: Origin::App {
                id: "a".to_owned(),
                name: "n".to_owned(),
            },
            gzip: vec![0; bytes],
        }
    }

    #[test]
    fn logs_go_in_order_at_the_pace_of_the_backlog() {
        let now = Instant::now();
        for (waiting, fast, wait) in [(1, false, 90), (3, false, 45), (60, false, 3), (1, true, 3)]
        {
            let mut queue = LogQueue::new(now);
            for size in 1..=waiting {
                queue.put(log(size));
            }
            assert_eq!(queue.take(now).expect("file").gzip.len(), 1);
            queue.settle(None, now, fast, 0.0);
            queue.put(log(1));
            assert_eq!(
                queue.next_time(),
                Some(now + seconds(wait)),
                "{waiting} files, fast {fast}"
            );
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
        assert_eq!(
            queue.next_time(),
            Some(now + seconds(300)),
            "still slow after a success"
        );
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
