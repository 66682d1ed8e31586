//! What a program says as it ends: one JSON [`End`], through a pipe whose other end PID 1 holds.
//!
//! The pipe outlives the program, so a unit that is killed right after has still said it; one that is killed before has
//! said nothing, and PID 1 makes an end from the signal. Nobody has to find it among log lines.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, RawFd};

use holdfast_model::contract::end::End;

use crate::fds;

/// Environment variable with the number of the descriptor.
pub const VARIABLE: &str = "HOLDFAST_LAST_WORDS";
/// Most bytes of JSON that are written and read: a pipe takes as many at once or not at all (`PIPE_BUF`).
pub const MAX_BYTES: usize = 4096;

/// The way to say them; says nothing for a program that nobody listens to.
#[derive(Debug, Default)]
pub struct LastWords(Option<File>);

impl LastWords {
    /// Takes over the descriptor that PID 1 named, if it named one. Call it once, before other descriptors are opened or
    /// closed by number.
    #[must_use]
    pub fn adopt() -> Self {
        let number = std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok());
        Self(number.and_then(|fd| fds::adopt(fd, "last words").ok()).map(File::from))
    }

    /// The descriptor, for a program that closes all others.
    #[must_use]
    pub fn fd(&self) -> Option<RawFd> {
        self.0.as_ref().map(|file| file.as_raw_fd())
    }

    /// Says how the program ends. A sentence that is too long is cut.
    pub fn say(&self, end: &End) {
        if let Some(mut file) = self.0.as_ref() {
            // Nobody is left to tell that this failed.
            let _ = file.write_all(&encode(end));
        }
    }
}

/// The JSON of an end, of at most [`MAX_BYTES`], its sentence cut where that takes it.
#[must_use]
pub fn encode(end: &End) -> Vec<u8> {
    let mut reason: &str = &end.reason;
    loop {
        let text = serde_json::to_vec(&End::new(end.class, reason)).unwrap_or_default();
        let Some(over) = text.len().checked_sub(MAX_BYTES).filter(|over| *over > 0) else {
            return text;
        };
        // Escapes make up to six bytes of one: whatever is cut is at least a sixth of what is over.
        let mut keep = reason.len().saturating_sub(over.div_ceil(6));
        while !reason.is_char_boundary(keep) {
            keep -= 1;
        }
        reason = &reason[..keep];
    }
}

/// What came through the pipe as an end; `None` for nothing, too much, or anything else. Control characters in the
/// sentence become blanks, so that it stays one line wherever it is shown.
#[must_use]
pub fn parse(text: &[u8]) -> Option<End> {
    if text.len() > MAX_BYTES {
        return None;
    }
    let end: End = serde_json::from_slice(text).ok()?;
    let reason = end.reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
    Some(End::new(end.class, reason.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_model::contract::end::ExitClass;
    use proptest::prelude::*;

    #[test]
    fn an_end_arrives_with_its_sentence() {
        let end = End::new(ExitClass::Resource, "disk rootfs: cannot lock inherited fd 8");
        assert_eq!(parse(&encode(&end)), Some(end));
    }

    #[test]
    fn line_ends_in_a_sentence_become_blanks() {
        let end = End::new(ExitClass::Failed, "one\ntwo\u{1b}[31m\n");
        assert_eq!(parse(&encode(&end)).unwrap().reason, "one two [31m");
    }

    #[test]
    fn nothing_and_garbage_and_too_much_are_no_end() {
        for text in [&b""[..], b"no", br#"{"class":"done"}"#, br#"{"class":"done","reason":"","x":1}"#] {
            assert_eq!(parse(text), None);
        }
        let long = serde_json::to_vec(&End::new(ExitClass::Done, "x".repeat(MAX_BYTES))).unwrap();
        assert_eq!(parse(&long), None);
    }

    #[test]
    fn without_a_listener_nothing_is_said() {
        LastWords::default().say(&End::new(ExitClass::Done, ""));
        assert_eq!(LastWords::default().fd(), None);
    }

    proptest! {
        #[test]
        fn a_sentence_of_any_length_is_cut_to_fit(reason in "\\PC{0,3000}", nul in 0usize..3000) {
            let reason = reason + &"\0".repeat(nul);
            let end = parse(&encode(&End::new(ExitClass::Failed, reason.clone()))).unwrap();
            let shown: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            prop_assert!(shown.starts_with(&end.reason));
        }
    }
}
