//! Acting: runs the decided actions, keeps the state of each item, retries with backoff.

use crate::diff::{Action, Doubt, diff, unsatisfied};
use crate::driver::Driver;
use crate::graph::{Graph, Item};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Waiting time before the n-th new try of a failed item: doubles from `first` up to `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// Never longer than this.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(500), max: Duration::from_secs(60) }
    }
}

impl Backoff {
    fn delay(&self, attempts: u32) -> Duration {
        let factor = 1_u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.max)
    }
}

/// State of one item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Exists as intended.
    Created,
    /// Intended, not there yet; the text says what it waits for.
    Pending(String),
    /// The last action on it failed; it is tried again.
    Failed {
        /// What was tried and the driver's error.
        error: String,
        /// Failures in a row.
        attempts: u32,
    },
}

/// What a run did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Actions that succeeded.
    pub done: usize,
    /// Actions that failed.
    pub failed: usize,
    /// Run again at this time, even if nothing changes; `None` when nothing waits for a retry.
    pub next_retry: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Failure<I> {
    error: String,
    attempts: u32,
    retry_at: Instant,
    /// Value that was wanted then (`None`: deletion). A change of mind ends the waiting.
    wanted: Option<I>,
}

/// Owns what is known to exist and drives it towards what is intended.
#[derive(Debug)]
pub struct Reconciler<I: Item> {
    intended: Graph<I>,
    current: Graph<I>,
    /// Items of `current` whose last action failed.
    doubt: BTreeMap<I::Key, Doubt>,
    failures: BTreeMap<I::Key, Failure<I>>,
    backoff: Backoff,
}

impl<I: Item> Reconciler<I> {
    /// Nothing intended, nothing known to exist.
    #[must_use]
    pub fn new(backoff: Backoff) -> Self {
        Self {
            intended: Graph::new(),
            current: Graph::new(),
            doubt: BTreeMap::new(),
            failures: BTreeMap::new(),
            backoff,
        }
    }

    /// Takes over what was found to exist already, for example after a restart of this process.
    pub fn adopt(&mut self, found: Graph<I>) {
        self.current = found;
        self.doubt.clear();
        self.failures.clear();
    }

    /// Sets what shall exist. Takes effect with the next [`run`](Self::run).
    pub fn set_intended(&mut self, intended: Graph<I>) {
        self.intended = intended;
        let intended = &self.intended;
        self.failures.retain(|key, f| f.wanted.as_ref() == intended.get(key));
    }

    /// What shall exist.
    #[must_use]
    pub fn intended(&self) -> &Graph<I> {
        &self.intended
    }

    /// What is known to exist.
    #[must_use]
    pub fn current(&self) -> &Graph<I> {
        &self.current
    }

    /// An observer saw that the item no longer exists: it and what depends on it will be made anew.
    pub fn mark_lost(&mut self, key: &I::Key) {
        self.current.remove(key);
        self.doubt.remove(key);
        self.failures.remove(key);
    }

    /// True when nothing is left to do now or later.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        diff(&self.intended, &self.current, &self.doubt).is_empty()
    }

    /// State of an item that is intended or still exists.
    #[must_use]
    pub fn state(&self, key: &I::Key) -> Option<State> {
        if let Some(f) = self.failures.get(key) {
            return Some(State::Failed { error: f.error.clone(), attempts: f.attempts });
        }
        match (self.intended.get(key), self.current.get(key)) {
            (Some(_), _) if self.holds(key) => Some(State::Created),
            (Some(want), _) => {
                let waits = want.dependencies().into_iter().find(|d| !self.holds(d));
                Some(State::Pending(match waits {
                    Some(d) if self.intended.contains(&d) => format!("waits for {d}"),
                    Some(d) => format!("needs {d}, which is not configured"),
                    None => "waits for its turn".to_owned(),
                }))
            }
            (None, Some(_)) => Some(State::Pending("waits to be removed".to_owned())),
            (None, None) => None,
        }
    }

    /// State of all items that are intended or still exist.
    #[must_use]
    pub fn states(&self) -> BTreeMap<I::Key, State> {
        let keys: BTreeSet<&I::Key> = self
            .intended
            .iter()
            .map(|(k, _)| k)
            .chain(self.current.iter().map(|(k, _)| k))
            .chain(self.failures.keys())
            .collect();
        keys.into_iter().filter_map(|k| self.state(k).map(|s| (k.clone(), s))).collect()
    }

    /// Intended items that can never exist, with the dependency that is not configured.
    #[must_use]
    pub fn unsatisfied(&self) -> BTreeMap<I::Key, I::Key> {
        unsatisfied(&self.intended)
    }

    /// Executes all actions that are due at `now`, each at most once.
    pub async fn run<D: Driver<I>>(&mut self, driver: &mut D, now: Instant) -> Report {
        let mut report = Report::default();
        for action in diff(&self.intended, &self.current, &self.doubt) {
            if !self.is_due(&action.key(), now) || !self.is_ready(&action) {
                continue;
            }
            self.execute(driver, action, now, &mut report).await;
        }
        report.next_retry = self.failures.values().map(|f| f.retry_at).min();
        report
    }

    fn is_due(&self, key: &I::Key, now: Instant) -> bool {
        self.failures.get(key).is_none_or(|f| f.retry_at <= now)
    }

    /// Earlier actions of the same run may have failed: look at what exists now, not at what was planned.
    fn is_ready(&self, action: &Action<I>) -> bool {
        match action {
            Action::Delete(item) => {
                let key = item.key();
                !self.current.iter().any(|(k, i)| *k != key && i.dependencies().contains(&key))
            }
            Action::Create(item) => {
                let have = self.current.get(&item.key());
                have.is_none_or(|h| h == item) && self.dependencies_hold(item)
            }
            Action::Modify { old, new } => self.current.get(&new.key()) == Some(old) && self.dependencies_hold(new),
        }
    }

    fn dependencies_hold(&self, item: &I) -> bool {
        item.dependencies().iter().all(|d| self.holds(d))
    }

    /// True when the item exists as intended, without doubt.
    fn holds(&self, key: &I::Key) -> bool {
        self.current.contains(key) && self.current.get(key) == self.intended.get(key) && !self.doubt.contains_key(key)
    }

    async fn execute<D: Driver<I>>(&mut self, driver: &mut D, action: Action<I>, now: Instant, report: &mut Report) {
        let key = action.key();
        let (verb, result) = match &action {
            Action::Create(item) => ("create", driver.create(item).await),
            Action::Modify { old, new } => ("change", driver.modify(old, new).await),
            Action::Delete(item) => ("remove", driver.delete(item).await),
        };
        match result {
            Ok(()) => {
                report.done += 1;
                self.failures.remove(&key);
                self.doubt.remove(&key);
                match action {
                    Action::Create(item) => drop(self.current.insert(item)),
                    Action::Modify { new, .. } => drop(self.current.insert(new)),
                    Action::Delete(_) => drop(self.current.remove(&key)),
                }
            }
            Err(error) => {
                report.failed += 1;
                let doubt = match action {
                    Action::Create(item) => {
                        self.current.insert(item);
                        Doubt::Partial
                    }
                    Action::Delete(_) => Doubt::Partial,
                    Action::Modify { .. } => Doubt::Changing,
                };
                self.doubt.insert(key.clone(), doubt);
                let attempts = self.failures.get(&key).map_or(0, |f| f.attempts) + 1;
                let failure = Failure {
                    error: format!("cannot {verb} {key}: {error}"),
                    attempts,
                    retry_at: now + self.backoff.delay(attempts),
                    wanted: self.intended.get(&key).cloned(),
                };
                self.failures.insert(key, failure);
            }
        }
    }
}

#[cfg(test)]
mod tests;
