//! What the device says on a console, captured to a file.

use crate::process::last_lines;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Lines of the capture shown when waiting failed.
const LINES_SHOWN: usize = 25;

/// The capture of one console since the device was last powered on. Waiting moves forward: what one wait has found is behind the next.
#[derive(Debug)]
pub struct Serial {
    path: PathBuf,
    cursor: usize,
}

impl Serial {
    /// The capture in `path`, from its beginning.
    pub fn new(path: &Path) -> Self {
        Self { path: path.into(), cursor: 0 }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All that was said so far, without terminal control sequences.
    pub fn text(&self) -> String {
        plain(&String::from_utf8_lossy(&self.bytes()))
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap_or_default()
    }

    /// The next line that contains `text`, if it was said already.
    pub fn find(&mut self, text: &str) -> Option<String> {
        let bytes = self.bytes();
        let from = self.cursor.min(bytes.len());
        let (mut start, rest) = (from, &bytes[from..]);
        for line in rest.split_inclusive(|b| *b == b'\n') {
            let end = start + line.len();
            let shown = plain(&String::from_utf8_lossy(line));
            // A line still being written counts only if it matches already; its rest then belongs to the next wait.
            if shown.contains(text) {
                self.cursor = end;
                return Some(shown.trim_end().to_owned());
            }
            start = end;
        }
        None
    }

    /// Waits for a line that contains `text`, not looking at what earlier waits have passed; `alive` is asked meanwhile and ends the wait by an error.
    ///
    /// # Errors
    /// At the deadline, or when `alive` says so; the end of the capture is shown and its file named.
    pub fn wait_while(
        &mut self,
        text: &str,
        timeout: Duration,
        mut alive: impl FnMut() -> Result<()>,
    ) -> Result<String> {
        let started = Instant::now();
        loop {
            if let Some(line) = self.find(text) {
                return Ok(line);
            }
            if let Err(e) = alive() {
                // It may have said it as its last words.
                if let Some(line) = self.find(text) {
                    return Ok(line);
                }
                bail!("waiting for {text:?} on the console: {e:#}\n{}", self.shown());
            }
            if started.elapsed() >= timeout {
                bail!("{text:?} did not come within {} s\n{}", timeout.as_secs(), self.shown());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// [`Serial::wait_while`] without the question.
    ///
    /// # Errors
    /// At the deadline.
    pub fn wait_for(&mut self, text: &str, timeout: Duration) -> Result<String> {
        self.wait_while(text, timeout, || Ok(()))
    }

    /// The end of the capture with its file's name, for error messages.
    pub fn shown(&self) -> String {
        format!("the console ends with ({}):\n{}", self.path.display(), last_lines(&self.text(), LINES_SHOWN))
    }
}

/// Removes ECMA-48 control sequences (firmware draws menus with them) and carriage returns.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\r' => {}
            '\u{1b}' => {
                if chars.next_if_eq(&'[').is_some() {
                    // Parameters, then one final character of 0x40 to 0x7e.
                    while chars.next().is_some_and(|c| !('\u{40}'..='\u{7e}').contains(&c)) {}
                } else {
                    // Character set selection has an intermediate character of 0x20 to 0x2f first.
                    while chars.next().is_some_and(|c| ('\u{20}'..='\u{2f}').contains(&c)) {}
                }
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn capture(text: &str) -> (tempfile::TempDir, Serial) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("serial.log");
        fs::write(&path, text).unwrap();
        let serial = Serial::new(&path);
        (dir, serial)
    }

    #[test]
    fn waits_move_forward() {
        let (_dir, mut serial) = capture("boot 1\r\nready\r\nboot 2\r\nready\r\n");
        assert_eq!(serial.find("boot").as_deref(), Some("boot 1"));
        assert_eq!(serial.find("ready").as_deref(), Some("ready"));
        assert_eq!(serial.find("boot").as_deref(), Some("boot 2"));
        assert_eq!(serial.find("boot"), None);
        assert_eq!(serial.find("ready").as_deref(), Some("ready"));
        assert!(serial.text().contains("boot 1\nready"));
    }

    #[test]
    fn a_wait_ends_at_its_deadline_with_the_end_of_the_console() {
        let (_dir, mut serial) = capture("last words\n");
        let text = serial.wait_for("hello", Duration::from_millis(30)).unwrap_err().to_string();
        assert!(text.contains("hello") && text.contains("last words") && text.contains("serial.log"), "{text}");
    }

    #[test]
    fn a_dead_device_ends_the_wait_at_once_but_not_its_last_words() {
        let (_dir, mut serial) = capture("goodbye\n");
        assert!(serial.wait_while("goodbye", Duration::from_secs(60), || bail!("gone")).is_ok());
        let text = serial.wait_while("hello", Duration::from_secs(60), || bail!("gone")).unwrap_err().to_string();
        assert!(text.contains("gone"), "{text}");
    }

    #[test]
    fn control_sequences_do_not_hide_text() {
        assert_eq!(plain("\u{1b}[2J\u{1b}[01;01HBdsDxe: \u{1b}[37mloading\u{1b}(B\r\n"), "BdsDxe: loading\n");
        assert_eq!(plain("cut \u{1b}["), "cut ");
    }
}
