//! What the results of operations mean.

use super::schedule::needs;
use super::{Engine, Failure, OpId, Running};
use crate::diff::{Change, Doubt};
use crate::graph::is_same;
use crate::item::{Action, Item};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

impl<I: Item> Engine<I> {
    /// Takes in how an operation ended: a result for each of its actions, in order. An action without a result has failed. An
    /// operation that is not known (any more) changes nothing.
    pub fn finished(&mut self, id: OpId, results: Vec<Result<(), String>>, now: Instant) {
        let Some(Running { actions, batch, round }) = self.ops.remove(&id) else {
            return;
        };
        for action in &actions {
            self.running.remove(&action.key());
            for need in needs(action) {
                if let Some(count) = self.locks.get_mut(&need.key) {
                    *count -= 1;
                    if *count == 0 {
                        self.locks.remove(&need.key);
                    }
                }
            }
        }
        let owners: BTreeSet<_> = actions.iter().map(|a| a.item().owner()).collect();
        let mixed = batch.is_some() && owners.len() > 1;
        let mut results = results.into_iter();
        for action in actions {
            self.candidates.extend(self.neighbours(&action));
            self.candidates.insert(action.key());
            let result = results.next().unwrap_or_else(|| Err("the driver gave no result".to_owned()));
            // What was decided while it ran did not know of this outcome.
            self.stale |= round != self.round && !(result.is_ok() && self.was_foreseen(&action));
            match result {
                Ok(()) => self.succeeded(&action),
                Err(error) => self.failed(&action, error, mixed, now),
            }
        }
        if let Some(batch) = batch {
            self.busy.remove(&batch);
            self.candidates.extend(self.queued.remove(&batch).into_iter().flatten());
        }
    }

    /// The present difference asks for what the action did, so that its success is a step on the way.
    fn was_foreseen(&self, action: &Action<I>) -> bool {
        let key = action.key();
        let change = self.difference.changes.get(&key);
        match action {
            Action::Delete(_) => matches!(change, Some(Change::Remove | Change::Recreate)),
            Action::Create(item) | Action::Modify { new: item, .. } => {
                matches!(change, Some(Change::Create | Change::Modify | Change::Repair))
                    && self.intended.shared(&key).is_some_and(|want| is_same(want, item))
                    && !needs(action).any(|n| self.difference.changes.contains_key(&n.key))
            }
        }
    }

    fn succeeded(&mut self, action: &Action<I>) {
        let key = action.key();
        self.failures.remove(&key);
        self.facts.doubt.remove(&key);
        let tried = self.facts.tried.remove(&key);
        self.candidates.extend(tried.iter().flatten().flat_map(|t| t.needs()).map(|n| n.key));
        let lost = self.lost.remove(&key);
        match action {
            Action::Create(item) | Action::Modify { new: item, .. } => {
                self.current.insert(item.clone());
                self.difference.changes.remove(&key);
                if lost {
                    self.facts.doubt.insert(key, Doubt::Partial);
                    self.stale = true;
                }
            }
            Action::Delete(_) => {
                self.current.remove(&key);
                // What was true of it is true no more: what needs that has to wait.
                self.stale |= self.facts.conditions.remove(&key).is_some();
                match self.difference.changes.get_mut(&key) {
                    Some(change) if *change == Change::Recreate => *change = Change::Create,
                    _ => drop(self.difference.changes.remove(&key)),
                }
            }
        }
    }

    fn failed(&mut self, action: &Action<I>, error: String, mixed: bool, now: Instant) {
        let key = action.key();
        self.lost.remove(&key);
        // It may exist on what has yet to be recreated, and then goes with it.
        self.stale |= needs(action).any(|n| self.difference.changes.contains_key(&n.key));
        if let Action::Create(item) = action
            && self.current.shared(&key).is_some_and(|have| !is_same(have, item))
        {
            // The old value could not be deleted before, in the same operation: that is the failure to report.
            self.facts.tried.entry(key).or_default().push(item.clone());
            return;
        }
        let doubt = match action {
            Action::Create(item) => {
                self.current.insert(item.clone());
                self.difference.changes.insert(key.clone(), Change::Repair);
                Doubt::Partial
            }
            Action::Delete(_) => Doubt::Partial,
            Action::Modify { new, .. } => {
                self.facts.tried.entry(key.clone()).or_default().push(new.clone());
                Doubt::Changing
            }
        };
        self.facts.doubt.insert(key.clone(), doubt);
        let attempts = self.failures.get(&key).map_or(0, |f| f.attempts) + 1;
        // One item of a batch fails all of them. Tried owner by owner at once, only the one at fault has to wait.
        let delay = if mixed { Duration::ZERO } else { self.backoff.delay(attempts) };
        let apart = action.item().batch().is_some();
        let failure = Failure {
            error: format!("cannot {} {key}: {error}", action.verb()),
            attempts,
            retry_at: now + delay,
            wanted: self.intended.shared(&key).cloned(),
            apart,
        };
        self.failures.insert(key, failure);
    }
}
