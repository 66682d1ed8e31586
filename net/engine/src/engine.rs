//! State: what is intended, what exists, what runs and what failed.
//!
//! Which operations can run now is in [`schedule`], what their results mean in [`outcome`].

mod outcome;
mod schedule;

use crate::diff::{Difference, Facts, diff};
use crate::graph::{Graph, is_same};
use crate::item::{Action, Item, Need};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
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
    /// Exists as intended (an external item: exists).
    Created,
    /// Not as intended yet; the text says what it waits for.
    Pending(String),
    /// Exists, and keeps its value until the item that pins it has ended; the text says which.
    Kept(String),
    /// An operation on it runs.
    InProgress,
    /// The last action on it failed; it is tried again.
    Failed {
        /// What was tried and the driver's error.
        error: String,
        /// Failures in a row.
        attempts: u32,
    },
}

/// Names an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// Actions that can run now, in this order: one, or several of one batch. Operations may run side by side.
#[derive(Debug)]
pub struct Op<I> {
    /// To be given back to [`Engine::finished`].
    pub id: OpId,
    /// What to do.
    pub actions: Vec<Action<I>>,
}

/// What the engine is told by observers.
#[derive(Debug, Clone, PartialEq)]
pub enum Fact<I: Item> {
    /// An external item exists now, with this value. Of other items the engine knows by its own operations.
    Present(Rc<I>),
    /// An external item no longer exists.
    Absent(I::Key),
    /// All that is true of an item now; replaces what was told before. What was told of an item ends when it is deleted.
    Conditions(I::Key, BTreeSet<I::Condition>),
}

#[derive(Debug)]
struct Failure<I> {
    error: String,
    attempts: u32,
    retry_at: Instant,
    /// Value that was wanted then (`None`: removal). A change of mind ends the waiting.
    wanted: Option<Rc<I>>,
    /// It failed as part of a batch: tried again with its owner's items only.
    apart: bool,
}

#[derive(Debug)]
struct Running<I: Item> {
    actions: Vec<Action<I>>,
    batch: Option<I::Batch>,
    /// Number of the difference it was made from.
    round: u64,
}

/// Owns what is known to exist and says how to get to what is intended.
#[derive(Debug)]
pub struct Engine<I: Item> {
    intended: Graph<I>,
    current: Graph<I>,
    facts: Facts<I>,
    failures: BTreeMap<I::Key, Failure<I>>,
    backoff: Backoff,
    difference: Difference<I>,
    /// Counts differences: the inputs changed since the last one when `stale`.
    round: u64,
    stale: bool,
    /// Changes to look at: only they can have become ready.
    candidates: BTreeSet<I::Key>,
    ops: BTreeMap<OpId, Running<I>>,
    last_op: u64,
    running: BTreeMap<I::Key, OpId>,
    /// What running operations need, counted: not deleted meanwhile.
    locks: BTreeMap<I::Key, usize>,
    /// Items that were lost while an operation on them ran.
    lost: BTreeSet<I::Key>,
    /// Batches of which an operation runs.
    busy: BTreeSet<I::Batch>,
    /// Changes that wait for a running operation of their batch.
    queued: BTreeMap<I::Batch, BTreeSet<I::Key>>,
}

impl<I: Item> Engine<I> {
    /// Nothing intended, nothing known to exist.
    #[must_use]
    pub fn new(backoff: Backoff) -> Self {
        Self {
            intended: Graph::new(),
            current: Graph::new(),
            facts: Facts::default(),
            failures: BTreeMap::new(),
            backoff,
            difference: Difference::default(),
            round: 0,
            stale: false,
            candidates: BTreeSet::new(),
            ops: BTreeMap::new(),
            last_op: 0,
            running: BTreeMap::new(),
            locks: BTreeMap::new(),
            lost: BTreeSet::new(),
            busy: BTreeSet::new(),
            queued: BTreeMap::new(),
        }
    }

    /// Takes over what was found to exist already, for example after a restart of this process. External items that were told
    /// stay. Operations that still run are forgotten: their results count no more.
    pub fn adopt(&mut self, found: Graph<I>) {
        let told = std::mem::replace(&mut self.current, found);
        for (_, item) in told.iter().filter(|(_, i)| i.external()) {
            self.current.insert(item.clone());
        }
        self.current.share_with(&self.intended);
        self.facts.doubt.clear();
        self.facts.tried.clear();
        self.failures.clear();
        self.ops.clear();
        self.running.clear();
        self.locks.clear();
        self.lost.clear();
        self.busy.clear();
        self.queued.clear();
        self.stale = true;
    }

    /// Sets what shall exist. An operation that runs is not disturbed; what it did is changed again when it has ended.
    pub fn set_intended(&mut self, mut intended: Graph<I>) {
        intended.share_with(&self.intended);
        if intended == self.intended {
            return;
        }
        // Equal values may say more here than what was found could.
        self.current.share_with(&intended);
        self.failures.retain(|key, f| match (&f.wanted, intended.shared(key)) {
            (None, None) => true,
            (Some(then), Some(now)) => is_same(then, now),
            _ => false,
        });
        self.intended = intended;
        self.stale = true;
    }

    /// Takes in what an observer saw.
    pub fn tell(&mut self, fact: Fact<I>) {
        match fact {
            Fact::Present(item) if !item.external() => {}
            Fact::Present(item) => {
                let old = self.current.insert(item.clone());
                self.stale |= old.is_none_or(|old| !is_same(&old, &item));
            }
            Fact::Absent(key) => {
                if self.current.shared(&key).is_some_and(|i| i.external()) {
                    self.current.remove(&key);
                    self.facts.conditions.remove(&key);
                    self.stale = true;
                }
            }
            Fact::Conditions(key, conditions) => {
                let nothing = BTreeSet::new();
                self.stale |= *self.facts.conditions.get(&key).unwrap_or(&nothing) != conditions;
                self.facts.conditions.insert(key, conditions);
            }
        }
    }

    /// An observer saw that the item no longer exists: it and what depends on it are created again.
    pub fn mark_lost(&mut self, key: &I::Key) {
        if self.running.contains_key(key) {
            self.lost.insert(key.clone());
            return;
        }
        self.current.remove(key);
        self.facts.doubt.remove(key);
        self.facts.tried.remove(key);
        self.facts.conditions.remove(key);
        self.failures.remove(key);
        self.stale = true;
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

    /// Ask [`next`](Self::next) again at this time, even if nothing changes; `None` when nothing waits for a retry.
    #[must_use]
    pub fn next_retry(&self) -> Option<Instant> {
        let waiting = self.failures.iter().filter(|(key, _)| !self.running.contains_key(*key));
        waiting.map(|(_, f)| f.retry_at).min()
    }

    /// True when no operation runs and none is left to run now or after a wait. Items may still lack something that is not
    /// here to give (an external item, a condition) or stay for another item.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let nothing_left = match self.stale {
            true => diff(&self.intended, &self.current, &self.facts).changes.is_empty(),
            false => self.difference.changes.is_empty(),
        };
        nothing_left && self.ops.is_empty()
    }

    /// State of an item that is intended or exists, as of the last [`next`](Self::next).
    #[must_use]
    pub fn state(&self, key: &I::Key) -> Option<State> {
        if self.running.contains_key(key) {
            return Some(State::InProgress);
        }
        if let Some(f) = self.failures.get(key) {
            return Some(State::Failed { error: f.error.clone(), attempts: f.attempts });
        }
        let pending = |text: String| Some(State::Pending(text));
        match (self.intended.shared(key), self.current.shared(key)) {
            (_, Some(have)) if have.external() => Some(State::Created),
            (Some(want), _) if want.external() => pending(format!("waits for {key} to appear")),
            (Some(want), Some(have)) if self.exists(key) && is_same(have, want) => Some(State::Created),
            (Some(_), have) => {
                if let (Some(_), Some(by)) = (have, self.difference.kept.get(key)) {
                    return Some(State::Kept(format!("stays as it is until {by} has ended")));
                }
                match self.intended.needs(key).iter().find(|n| !self.is_met(n)) {
                    Some(need) => pending(self.waits_for(need)),
                    None => pending("waits for its turn".to_owned()),
                }
            }
            (None, Some(_)) => match self.difference.kept.get(key) {
                Some(by) => pending(format!("is removed when {by} has ended")),
                None => pending("waits to be removed".to_owned()),
            },
            (None, None) => None,
        }
    }

    fn waits_for(&self, need: &Need<I::Key, I::Condition>) -> String {
        let known = self.intended.contains(&need.key) || self.current.contains(&need.key);
        if known { format!("waits for {need}") } else { format!("needs {need}, which is not configured") }
    }

    /// State of all items that are intended or exist, as of the last [`next`](Self::next).
    #[must_use]
    pub fn states(&self) -> BTreeMap<I::Key, State> {
        let keys: BTreeSet<&I::Key> = self
            .intended
            .iter()
            .chain(self.current.iter())
            .map(|(k, _)| k)
            .chain(self.failures.keys())
            .chain(self.running.keys())
            .collect();
        keys.into_iter().filter_map(|k| self.state(k).map(|s| (k.clone(), s))).collect()
    }

    /// Intended items that cannot exist now, with the need that is not met, as of the last [`next`](Self::next).
    #[must_use]
    pub fn unmet(&self) -> &BTreeMap<I::Key, Need<I::Key, I::Condition>> {
        &self.difference.unmet
    }

    /// Exists and stays as it is: others can rest on it.
    fn exists(&self, key: &I::Key) -> bool {
        let Some(have) = self.current.shared(key) else {
            return false;
        };
        if have.external() {
            return true;
        }
        let settled = !self.running.contains_key(key) && !self.difference.changes.contains_key(key);
        settled
            && (self.difference.kept.contains_key(key)
                || self.intended.shared(key).is_some_and(|want| is_same(have, want)))
    }

    fn is_met(&self, need: &Need<I::Key, I::Condition>) -> bool {
        self.exists(&need.key) && self.facts.allow(need)
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
