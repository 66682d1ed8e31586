//! Bytes of a pipe into lines, and the brake on lines that go to the console.
#![forbid(unsafe_code)]

/// Longest line in bytes; a longer one is cut into several.
pub const MAX_LINE: usize = 4096;

/// Cuts a byte stream into lines.
#[derive(Debug, Default)]
pub struct Splitter {
    partial: Vec<u8>,
}

impl Splitter {
    /// Takes bytes and gives each line that is complete, without its end.
    pub fn feed(&mut self, bytes: &[u8], mut line: impl FnMut(&str)) {
        for part in bytes.split_inclusive(|&b| b == b'\n') {
            let (text, complete) = match part.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (part, false),
            };
            let mut text = text;
            while self.partial.len() + text.len() > MAX_LINE {
                let (now, later) = text.split_at(MAX_LINE - self.partial.len());
                self.partial.extend_from_slice(now);
                self.emit(&mut line);
                text = later;
            }
            self.partial.extend_from_slice(text);
            if complete {
                self.emit(&mut line);
            }
        }
    }

    /// The stream has ended: gives what is left.
    pub fn finish(&mut self, mut line: impl FnMut(&str)) {
        if !self.partial.is_empty() {
            self.emit(&mut line);
        }
    }

    fn emit(&mut self, line: &mut impl FnMut(&str)) {
        let text = self.partial.strip_suffix(b"\r").unwrap_or(&self.partial);
        line(&String::from_utf8_lossy(text));
        self.partial.clear();
    }
}

/// A token bucket over lines: bursts of `burst`, `per_second` in the long run.
#[derive(Debug)]
pub struct Brake {
    /// Thousandths of a line.
    tokens: u64,
    last_ms: u64,
    burst: u64,
    per_second: u64,
    suppressed: u64,
}

impl Brake {
    /// Full at the beginning.
    pub fn new(burst: u64, per_second: u64) -> Brake {
        Brake { tokens: burst * 1000, last_ms: 0, burst, per_second, suppressed: 0 }
    }

    /// May one more line pass? `Some(n)` yes, after `n` were held back.
    pub fn pass(&mut self, now_ms: u64) -> Option<u64> {
        let earned = now_ms.saturating_sub(self.last_ms).saturating_mul(self.per_second);
        self.tokens = self.tokens.saturating_add(earned).min(self.burst * 1000);
        self.last_ms = now_ms;
        if self.tokens < 1000 {
            self.suppressed += 1;
            return None;
        }
        self.tokens -= 1000;
        Some(std::mem::take(&mut self.suppressed))
    }
}

/// A stranger's text made safe for a terminal: control characters become `.`.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '.' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(chunks: &[&[u8]]) -> Vec<String> {
        let mut splitter = Splitter::default();
        let mut lines = Vec::new();
        for chunk in chunks {
            splitter.feed(chunk, |l| lines.push(l.to_owned()));
        }
        splitter.finish(|l| lines.push(l.to_owned()));
        lines
    }

    #[test]
    fn lines_are_joined_across_reads() {
        assert_eq!(all(&[b"on", b"e\r\ntwo\n", b"\n", b"rest"]), ["one", "two", "", "rest"]);
        assert_eq!(all(&[b"\xffx\n"]), ["\u{fffd}x"]);
    }

    #[test]
    fn endless_line_is_cut() {
        let lines = all(&[&[b'a'; 10_000], b"\nb\n"]);
        let lengths: Vec<usize> = lines.iter().map(String::len).collect();
        assert_eq!(lengths, [4096, 4096, 10_000 - 2 * 4096, 1]);
    }

    #[test]
    fn brake_lets_bursts_pass_and_counts_the_rest() {
        let mut brake = Brake::new(3, 10);
        let passed: Vec<_> = (0..5).map(|_| brake.pass(1000)).collect();
        assert_eq!(passed, [Some(0), Some(0), Some(0), None, None]);
        assert_eq!(brake.pass(1100), Some(2));
        assert_eq!(brake.pass(1101), None);
    }

    #[test]
    fn terminal_sequences_do_not_reach_the_console() {
        assert_eq!(printable("a\x1b[2Jb\x07\u{9b}c\td"), "a.[2Jb..c\td");
    }

    proptest! {
        #[test]
        fn no_bytes_get_lost(text in "[a-z\n]{0,300}", cut in 1usize..20) {
            let chunks: Vec<&[u8]> = text.as_bytes().chunks(cut).collect();
            let expected: Vec<&str> = text.lines().collect();
            prop_assert_eq!(all(&chunks), expected);
        }
    }
}
