//! What `cargo test` prints, read line by line: counts, what failed and why, and which lines a person wants to see.
//!
//! Thousands of lines say that something passed; a few say what failed, or what could not be looked at here. Only the latter,
//! one line of totals for each test program and a sign of life of what takes long are shown, and each failure is kept
//! with its text for the end, where people and logs that are cut in the middle look first.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Lines kept of a failure: its end, where the panic and its backtrace are.
const KEPT_LINES: usize = 120;
/// A passing test is worth a line when nothing was shown for this long.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);
/// What a passing test prints when a part of it could not be done on this machine.
const NOT_DONE: [&str; 3] = ["not run", "NOT CHECKED", "SKIPPED"];

/// A failed test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its path in its program.
    pub name: String,
    /// The last lines it printed; empty when the program did not say.
    pub text: Vec<String>,
}

/// Which part of a test program's output the lines belong to.
enum Part {
    /// One line for each test, with whatever programs print that capture nothing.
    Tests,
    /// What passing tests printed (`--show-output`), by test.
    Successes(String),
    /// What failing tests printed, by test.
    Failures(String),
}

/// Reads the output of any number of test programs, one after the other.
pub struct Reader {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
    /// Those that failed, as far as they were named.
    pub failures: Vec<Failure>,
    part: Part,
    /// Names seen to fail in the program at hand.
    named: Vec<String>,
    /// The program's last lines outside any section.
    recent: VecDeque<String>,
    shown: Instant,
}

impl Reader {
    /// Nothing read yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            passed: 0,
            failed: 0,
            failures: Vec::new(),
            part: Part::Tests,
            named: Vec::new(),
            recent: VecDeque::new(),
            shown: Instant::now(),
        }
    }

    /// Takes a line; what to show of it.
    pub fn line(&mut self, line: &str) -> Option<String> {
        let show = self.read(line);
        if show.is_some() {
            self.shown = Instant::now();
        }
        show
    }

    fn read(&mut self, line: &str) -> Option<String> {
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.end_program(counts);
            return Some(line.to_owned());
        }
        if is_running(line) {
            (self.part, self.recent) = (Part::Tests, VecDeque::new());
            return None;
        }
        match line {
            "successes:" => self.part = Part::Successes(String::new()),
            "failures:" => self.part = Part::Failures(String::new()),
            _ => return self.read_in_part(line),
        }
        None
    }

    fn read_in_part(&mut self, line: &str) -> Option<String> {
        let heading = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"));
        match (&mut self.part, heading) {
            (Part::Successes(test) | Part::Failures(test), Some(name)) => {
                name.clone_into(test);
                matches!(self.part, Part::Failures(_)).then(|| line.to_owned())
            }
            (Part::Successes(test), None) => {
                NOT_DONE.iter().any(|word| line.contains(word)).then(|| format!("{test}: {line}"))
            }
            (Part::Failures(test), None) => {
                let test = test.clone();
                if !test.is_empty() {
                    self.keep(&test, line);
                }
                Some(line.to_owned())
            }
            (Part::Tests, _) => self.read_test(line),
        }
    }

    /// A line of the part that names each test.
    fn read_test(&mut self, line: &str) -> Option<String> {
        let test = line.strip_prefix("test ");
        if let Some(name) = test.and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            self.named.push(name.to_owned());
        } else if test.is_some_and(|rest| rest.ends_with(" ... ok")) {
            // Among what a program tells of its own accord its outcomes have their place.
            let wanted = !self.recent.is_empty() || self.shown.elapsed() >= SIGN_OF_LIFE;
            return wanted.then(|| line.to_owned());
        } else if line.trim().is_empty() {
            return None;
        }
        self.recent.push_back(line.to_owned());
        if self.recent.len() > KEPT_LINES {
            self.recent.pop_front();
        }
        Some(line.to_owned())
    }

    fn keep(&mut self, test: &str, line: &str) {
        let index = self.failures.iter().position(|f| f.name == test).unwrap_or_else(|| {
            self.failures.push(Failure { name: test.to_owned(), text: Vec::new() });
            self.failures.len() - 1
        });
        let text = &mut self.failures[index].text;
        text.push(line.to_owned());
        if text.len() > KEPT_LINES {
            text.remove(0);
        }
    }

    /// `test result: ok. 3 passed; 0 failed; ...`: the program's totals.
    fn end_program(&mut self, counts: &str) {
        let number = |word: &str| {
            counts
                .split([';', '.'])
                .find_map(|part| part.trim().strip_suffix(word)?.trim().parse::<u64>().ok())
                .unwrap_or(0)
        };
        self.passed += number("passed");
        self.failed += number("failed");
        // Programs that capture nothing have no section of failures: what they printed last is all there is.
        let mut text: Vec<String> = std::mem::take(&mut self.recent).into();
        for name in std::mem::take(&mut self.named) {
            if !self.failures.iter().any(|f| f.name == name) {
                self.failures.push(Failure { name, text: std::mem::take(&mut text) });
            }
        }
        self.part = Part::Tests;
    }
}

impl Default for Reader {
    fn default() -> Self {
        Self::new()
    }
}

/// `running 3 tests`: a test program begins.
fn is_running(line: &str) -> bool {
    let number = line.strip_prefix("running ").and_then(|rest| rest.split_once(" test"));
    number.is_some_and(|(number, _)| number.parse::<u64>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Reader, Vec<String>) {
        let mut reader = Reader::new();
        let shown = text.lines().filter_map(|line| reader.line(line)).collect();
        (reader, shown)
    }

    #[test]
    fn what_passed_is_counted_and_what_failed_is_kept_with_its_words() {
        let (reader, shown) = read(
            "\
running 2 tests
test a::b ... ok
test a::c ... FAILED

successes:

successes:
    a::b

failures:

---- a::c stdout ----
thread 'a::c' panicked at src/a.rs:1:
left: 1

failures:
    a::c

test result: FAILED. 11 passed; 2 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.01s
running 1 test
test d ... ok
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
        );
        assert_eq!((reader.passed, reader.failed), (12, 2));
        assert_eq!(reader.failures.len(), 1);
        assert_eq!(reader.failures[0].name, "a::c");
        assert_eq!(reader.failures[0].text[0], "thread 'a::c' panicked at src/a.rs:1:");
        assert!(!shown.iter().any(|line| line.contains("a::b") || line.contains("test d")), "{shown:?}");
        assert!(shown.iter().any(|line| line == "left: 1"));
    }

    #[test]
    fn what_a_passing_test_could_not_look_at_is_shown_with_its_name() {
        let (_, shown) = read(
            "\
running 2 tests
successes:

---- dm::zero stdout ----
no /dev/mapper/control: not run
chatter

successes:
    dm::zero
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        );
        assert_eq!(shown[0], "dm::zero: no /dev/mapper/control: not run");
        assert_eq!(shown.len(), 2, "{shown:?}");
    }

    #[test]
    fn a_program_that_captures_nothing_leaves_its_last_lines_with_the_failure() {
        let (reader, shown) = read(
            "\
test nested::whole ... ok
vmm: the guest says nothing
test nested::disk ... FAILED
test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
        );
        assert_eq!(reader.failures[0].name, "nested::disk");
        assert!(reader.failures[0].text.contains(&"vmm: the guest says nothing".to_owned()));
        assert_eq!(shown.len(), 3);
        let (_, shown) = read("test a ... ok\nhello\ntest b ... ok");
        assert_eq!(shown, ["hello", "test b ... ok"]);
    }
}
