//! The last bytes a guest wrote to one console, with the position of each since the VM started.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

/// Bytes kept of each console's output.
pub const KEPT: usize = 64 * 1024;

/// A window on the stream of output: bytes `start()..end()` of all that was ever written.
#[derive(Debug, Default)]
pub(super) struct History {
    bytes: VecDeque<u8>,
    end: u64,
}

impl History {
    /// Appends `data`; the oldest bytes go.
    pub(super) fn push(&mut self, data: &[u8]) {
        self.end += data.len() as u64;
        let data = &data[data.len().saturating_sub(KEPT)..];
        let excess = (self.bytes.len() + data.len()).saturating_sub(KEPT);
        self.bytes.drain(..excess);
        self.bytes.extend(data);
    }

    /// Position of the oldest byte that is kept.
    pub(super) fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    /// Position behind the newest byte: how many there ever were.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Kept bytes from position `at` on, as far as they lie in one piece; empty only at the end.
    pub(super) fn from(&self, at: u64) -> &[u8] {
        let skip = usize::try_from(at.saturating_sub(self.start())).unwrap_or(usize::MAX);
        let (first, second) = self.bytes.as_slices();
        match first.get(skip..) {
            Some(rest) if !rest.is_empty() => rest,
            _ => second.get(skip.saturating_sub(first.len())..).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(history: &History, mut at: u64) -> Vec<u8> {
        let mut out = Vec::new();
        loop {
            let part = history.from(at);
            if part.is_empty() {
                return out;
            }
            out.extend_from_slice(part);
            at += part.len() as u64;
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn window_is_the_end_of_everything_written(lens in proptest::collection::vec(0usize..40_000, 0..8)) {
            let (mut history, mut everything) = (History::default(), Vec::new());
            for (n, len) in lens.into_iter().enumerate() {
                let data: Vec<u8> = (0..len).map(|i| (i * 7 + n) as u8).collect();
                history.push(&data);
                everything.extend(data);
            }
            let kept = everything.len().min(KEPT);
            prop_assert_eq!(history.end(), everything.len() as u64);
            prop_assert_eq!(history.start(), (everything.len() - kept) as u64);
            prop_assert!(all(&history, history.start()) == everything[everything.len() - kept..]);
            prop_assert!(history.from(history.end()).is_empty() && history.from(u64::MAX).is_empty());
        }
    }

    #[test]
    fn one_write_longer_than_the_window_keeps_its_end() {
        let mut history = History::default();
        history.push(&[1; 10]);
        history.push(&[2; KEPT + 3]);
        assert_eq!((history.start(), history.end()), (13, KEPT as u64 + 13));
        assert!(all(&history, 13).iter().all(|b| *b == 2));
    }
}
