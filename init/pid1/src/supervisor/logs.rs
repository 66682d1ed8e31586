//! The last lines of every unit, in bounded memory, read by cursor.
#![forbid(unsafe_code)]

use holdfast_supervise::{LogLine, Logs, Stream, UnitName};
use std::collections::{BTreeMap, VecDeque};

/// Memory for all lines of all units.
pub const BUDGET_BYTES: usize = 1024 * 1024;
/// One unit may use the budget up to this share, so that a lonely chatterer leaves room for others.
const MIN_SHARES: usize = 4;
/// What a line costs besides its text.
const LINE_OVERHEAD: usize = 64;
/// JSON of one answer, below the packet size.
const ANSWER_BYTES: usize = 56 * 1024;

/// All rings.
#[derive(Debug)]
pub struct LogStore {
    rings: BTreeMap<UnitName, Ring>,
    newest: u64,
    budget_bytes: usize,
}

#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<Line>,
    bytes: usize,
    number: u64,
}

#[derive(Debug)]
struct Line {
    cursor: u64,
    number: u64,
    stream: Stream,
    at_ms: u64,
    text: Box<str>,
}

impl Default for LogStore {
    fn default() -> LogStore {
        LogStore::with_budget(BUDGET_BYTES)
    }
}

impl LogStore {
    /// A store that keeps at most this many bytes.
    pub fn with_budget(budget_bytes: usize) -> LogStore {
        LogStore { rings: BTreeMap::new(), newest: 0, budget_bytes }
    }

    /// Cursor of the newest line; 0 before the first.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// Keeps a line.
    pub fn push(&mut self, unit: &UnitName, stream: Stream, at_ms: u64, text: &str) {
        self.newest += 1;
        let cursor = self.newest;
        if !self.rings.contains_key(unit) {
            self.rings.insert(unit.clone(), Ring::default());
            let quota = self.quota();
            self.rings.values_mut().for_each(|ring| ring.trim(quota));
        }
        let quota = self.quota();
        if let Some(ring) = self.rings.get_mut(unit) {
            ring.number += 1;
            ring.bytes += text.len() + LINE_OVERHEAD;
            ring.lines.push_back(Line { cursor, number: ring.number, stream, at_ms, text: text.into() });
            ring.trim(quota);
        }
    }

    /// Forgets a unit's lines.
    pub fn remove(&mut self, unit: &UnitName) {
        self.rings.remove(unit);
    }

    /// Lines after `after`, oldest first.
    pub fn read(&self, after: u64, unit: Option<&UnitName>, max: u32) -> Logs {
        let mut sources: Vec<(&UnitName, usize, &Ring)> = self
            .rings
            .iter()
            .filter(|(name, _)| unit.is_none_or(|wanted| wanted == *name))
            .map(|(name, ring)| (name, ring.lines.partition_point(|l| l.cursor <= after), ring))
            .collect();
        let mut logs = Logs { lines: Vec::new(), next: self.newest.max(after), more: false };
        let mut size = 0;
        loop {
            let oldest = sources
                .iter_mut()
                .filter(|(_, at, ring)| *at < ring.lines.len())
                .min_by_key(|(_, at, ring)| ring.lines[*at].cursor);
            let Some((name, at, ring)) = oldest else {
                return logs;
            };
            let line = &ring.lines[*at];
            size += escaped_len(&line.text) + name.as_str().len() + 160;
            if logs.lines.len() >= max as usize || size > ANSWER_BYTES {
                logs.more = true;
                logs.next = logs.lines.last().map_or(after, |l| l.cursor);
                return logs;
            }
            logs.lines.push(LogLine {
                cursor: line.cursor,
                unit: name.clone(),
                number: line.number,
                stream: line.stream,
                at_ms: line.at_ms,
                text: line.text.clone().into(),
            });
            *at += 1;
        }
    }

    fn quota(&self) -> usize {
        self.budget_bytes / self.rings.len().max(MIN_SHARES)
    }
}

impl Ring {
    fn trim(&mut self, quota: usize) {
        while self.bytes > quota {
            match self.lines.pop_front() {
                Some(line) => self.bytes -= line.text.len() + LINE_OVERHEAD,
                None => return,
            }
        }
    }
}

/// Length of the text in JSON, never too small: control characters take six bytes, quotes two.
fn escaped_len(text: &str) -> usize {
    text.bytes()
        .map(|b| {
            if b < 0x20 {
                6
            } else if b == b'"' || b == b'\\' {
                2
            } else {
                1
            }
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_supervise::Reply;

    fn name(text: &str) -> UnitName {
        UnitName::new(text).unwrap()
    }

    fn texts(logs: &Logs) -> Vec<&str> {
        logs.lines.iter().map(|l| l.text.as_str()).collect()
    }

    #[test]
    fn reading_by_cursor_merges_units_and_misses_nothing() {
        let mut store = LogStore::default();
        for n in 0..10 {
            store.push(&name(if n % 3 == 0 { "a" } else { "b" }), Stream::Out, n, &n.to_string());
        }
        let first = store.read(0, None, 4);
        assert_eq!((texts(&first), first.more, first.next), (vec!["0", "1", "2", "3"], true, 4));
        let rest = store.read(first.next, None, 100);
        assert_eq!((texts(&rest), rest.more, rest.next), (vec!["4", "5", "6", "7", "8", "9"], false, 10));
        let only = store.read(0, Some(&name("a")), 100);
        assert_eq!((texts(&only), only.next), (vec!["0", "3", "6", "9"], 10));
        assert_eq!(store.read(10, None, 100).lines, []);
        let none = store.read(0, None, 0);
        assert_eq!((none.next, none.more), (0, true));
    }

    #[test]
    fn chatterer_loses_its_own_oldest_lines_and_the_gap_shows() {
        let mut store = LogStore::with_budget(4000);
        store.push(&name("quiet"), Stream::Err, 0, "still here");
        for n in 0..1000 {
            store.push(&name("loud"), Stream::Out, n, "x");
        }
        let logs = store.read(0, None, 10_000);
        assert_eq!(logs.lines[0].text, "still here");
        let loud = &logs.lines[1..];
        assert!(loud.len() > 5 && loud.len() * (1 + LINE_OVERHEAD) <= 1000);
        assert_eq!(loud[0].number as usize, 1000 - loud.len() + 1);
    }

    #[test]
    fn memory_stays_bounded_however_many_units() {
        let mut store = LogStore::with_budget(10_000);
        for n in 0..100 {
            for _ in 0..100 {
                store.push(&name(&format!("u{n}")), Stream::Out, 0, "some text");
            }
        }
        assert!(store.rings.values().map(|r| r.bytes).sum::<usize>() <= 10_000);
    }

    #[test]
    fn answers_fit_into_a_packet_however_ugly_the_text() {
        let mut store = LogStore::default();
        for _ in 0..100 {
            store.push(&name("u"), Stream::Out, u64::MAX, &"\x01\"".repeat(2048));
        }
        let mut after = 0;
        for _ in 0..1000 {
            let logs = store.read(after, None, u32::MAX);
            assert!(!logs.lines.is_empty());
            after = logs.next;
            let more = logs.more;
            holdfast_supervise::wire::encode_reply(&Reply::Logs(logs)).unwrap();
            if !more {
                assert_eq!(after, store.newest());
                return;
            }
        }
        panic!("never finished");
    }
}
