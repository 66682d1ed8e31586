//! Info messages waiting, by key.

use crate::failure::Class;
use crate::timing::{INFO_BACKOFF, MAX_INFO_ITEMS};
use holdfast_api::hash::sha256;
use holdfast_api::info::{InfoKey, without_stamp};
use holdfast_api::proto::info::ZInfoMsg;
use prost::Message;
use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

/// Info messages waiting: for each key the newest content only.
///
/// A message that says the same as the last settled one is not sent again. After 5xx, 429 or no contact a message
/// waits with a backoff of its own; after another 4xx it is dropped.
#[derive(Debug, Default)]
pub struct InfoQueue {
    waiting: BTreeMap<InfoKey, Item>,
    settled: HashMap<InfoKey, [u8; 32]>,
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
            None if self.settled.get(&key) == Some(&says) => return false,
            None if self.waiting.len() >= MAX_INFO_ITEMS => {
                self.dropped += 1;
                return false;
            }
            _ => {}
        }
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        // A replaced item keeps its backoff: new content does not make an absent controller come back.
        let (failures, not_before) = self.waiting.get(&key).map_or((0, now), |item| (item.failures, item.not_before));
        self.waiting.insert(key, Item { message, says, ticket, failures, not_before });
        true
    }

    /// The message whose turn it is: the one that waited longest of those that may go.
    #[must_use]
    pub fn take(&self, now: Instant) -> Option<Taken> {
        let ready = self.waiting.iter().filter(|(_, item)| item.not_before <= now);
        ready.min_by_key(|(_, item)| (item.not_before, item.ticket)).map(|(key, item)| Taken {
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
                if item.ticket == taken.ticket {
                    self.waiting.remove(&taken.key);
                } else {
                    (item.failures, item.not_before) = (0, now);
                }
                self.remember(&taken.key, sha256(&without_stamp(&taken.message).encode_to_vec()));
            }
            Some(class) if class.is_final() => {
                if item.ticket == taken.ticket {
                    // Not again until it says something else: asking the same again would be refused the same.
                    let says = item.says;
                    self.waiting.remove(&taken.key);
                    self.remember(&taken.key, says);
                    self.dropped += 1;
                }
            }
            Some(_) => {
                item.failures = item.failures.saturating_add(1);
                item.not_before = now + INFO_BACKOFF.after(item.failures);
            }
        }
    }

    fn remember(&mut self, key: &InfoKey, says: [u8; 32]) {
        if self.settled.len() >= MAX_INFO_ITEMS {
            // Objects come and go over the years; to forget costs no more than one message of each sent again.
            self.settled.clear();
        }
        self.settled.insert(key.clone(), says);
    }

    /// Forgets what was settled for a key, so that the next message of it is sent even when it says the same.
    pub fn forget(&mut self, key: &InfoKey) {
        self.settled.remove(key);
    }

    /// Forgets all that was settled: the controller wants everything again (`controller_epoch` changed).
    pub fn forget_all(&mut self) {
        self.settled.clear();
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

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::info::InfoKind;
    use holdfast_api::proto::info::{ZInfoApp, z_info_msg::InfoContent};
    use prost_types::Timestamp;
    use std::time::Duration;

    fn key(id: &str) -> InfoKey {
        InfoKey { kind: InfoKind::App, id: id.to_owned() }
    }

    fn message(name: &str, seconds: i64) -> ZInfoMsg {
        ZInfoMsg {
            at_time_stamp: Some(Timestamp { seconds, nanos: 0 }),
            info_content: Some(InfoContent::Ainfo(ZInfoApp { app_name: name.to_owned(), ..ZInfoApp::default() })),
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
        assert!(!queue.put(key("a"), message("one", 99), now), "only the stamp differs");
        assert!(queue.put(key("a"), message("two", 99), now));
        let taken = queue.take(now).expect("message");
        queue.settle(&taken, None, now);
        queue.forget(&key("a"));
        assert!(queue.put(key("a"), message("two", 100), now));
    }

    #[test]
    fn info_is_kept_after_server_error_429_and_lost_contact_with_growing_waits() {
        for class in [Class::ServerError, Class::Temporary, Class::TooMany, Class::NoContact, Class::BadAnswer] {
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
        for class in [Class::Unknown, Class::Unauthorized, Class::Forbidden, Class::Refused] {
            let now = Instant::now();
            let mut queue = InfoQueue::default();
            queue.put(key("a"), message("one", 1), now);
            let taken = queue.take(now).expect("message");
            queue.settle(&taken, Some(class), now);
            assert_eq!((queue.len(), queue.dropped()), (0, 1), "{class:?}");
            assert!(!queue.put(key("a"), message("one", 2), now), "the same again");
            assert!(queue.put(key("a"), message("two", 2), now), "something else");
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
}
