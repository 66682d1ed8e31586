//! A part's own file: what it is to hold, and what is known to be on disk.
//!
//! One write at a time. What must be on disk before something is done waits for [`Keeper::on_disk`] to say so.

use crate::part::{Event, SaveFailed, Saved, Turn};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// Between two tries of a write that failed.
const RETRY: Duration = Duration::from_secs(5);
/// Texts remembered by [`Said`].
const TEXTS: usize = 512;

/// The file of one part.
#[derive(Debug)]
pub struct Keeper<T> {
    path: PathBuf,
    on_disk: T,
    writing: Option<T>,
    retry_at: Duration,
}

impl<T: PartialEq + Clone + Serialize> Keeper<T> {
    /// The file at `path` below the data folder holds `on_disk`.
    pub fn new(path: impl Into<PathBuf>, on_disk: T) -> Self {
        Self { path: path.into(), on_disk, writing: None, retry_at: Duration::ZERO }
    }

    /// What is on disk for sure.
    pub fn on_disk(&self) -> &T {
        &self.on_disk
    }

    /// Asks for a write when the file does not hold `value`.
    pub fn keep(&mut self, value: &T, turn: &mut Turn<'_>) {
        if self.writing.is_some() || *value == self.on_disk {
            return;
        }
        if turn.now < self.retry_at {
            return turn.wake(self.retry_at);
        }
        match serde_json::to_vec_pretty(value) {
            Ok(bytes) => {
                turn.save(self.path.clone(), bytes);
                self.writing = Some(value.clone());
            }
            Err(e) => {
                turn.say("error", format!("{}: expected data that fits JSON: {e}", self.path.display()));
                self.retry_at = turn.now + RETRY;
            }
        }
    }

    /// Takes in how a write ended.
    pub fn event(&mut self, event: &Event, turn: &mut Turn<'_>) {
        if event.news::<Saved>().is_some_and(|saved| saved.path == self.path) {
            if let Some(written) = self.writing.take() {
                self.on_disk = written;
            }
        } else if let Some(failed) = event.news::<SaveFailed>().filter(|failed| failed.path == self.path) {
            self.writing = None;
            self.retry_at = turn.now + RETRY;
            let (path, error) = (self.path.display(), &failed.error);
            turn.say("error", format!("{path} cannot be saved: {error}; tried again in {} s", RETRY.as_secs()));
        }
    }
}

/// Texts that were said: each is said once.
#[derive(Debug, Default)]
pub struct Said(BTreeSet<String>);

impl Said {
    /// Says it, unless it was said before.
    pub fn once(&mut self, turn: &mut Turn<'_>, severity: &'static str, text: &str) {
        if self.0.insert(text.to_owned()) {
            turn.say(severity, text);
        }
        // Bounded: a long list of distinct texts starts over.
        if self.0.len() > TEXTS {
            self.0.clear();
        }
    }
}
