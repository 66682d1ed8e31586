//! Which operations can run now.

use super::{Engine, Op, OpId, Running};
use crate::diff::{Change, diff};
use crate::item::{Action, Item, Need};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Instant;

/// A batch under construction: its actions, and what will exist after them.
struct Group<I: Item> {
    actions: Vec<Action<I>>,
    after: BTreeMap<I::Key, Option<Rc<I>>>,
}

impl<I: Item> Default for Group<I> {
    fn default() -> Self {
        Self { actions: Vec::new(), after: BTreeMap::new() }
    }
}

/// Groups of one batch: of all items together (`None`), and of the items of one owner that are tried apart.
type Groups<I> = BTreeMap<(<I as Item>::Batch, Option<Option<<I as Item>::Owner>>), Group<I>>;

impl<I: Item> Engine<I> {
    /// The operations that can start at `now`, deletions first. Their items are in progress until [`finished`](Self::finished).
    pub fn next(&mut self, now: Instant) -> Vec<Op<I>> {
        if self.stale {
            self.refresh();
        }
        let due = self.failures.iter().filter(|(_, f)| f.retry_at <= now).map(|(k, _)| k.clone());
        self.candidates.extend(due);
        let mut queue = std::mem::take(&mut self.candidates);
        let mut groups: Groups<I> = BTreeMap::new();
        let mut ops = Vec::new();
        while let Some(key) = queue.pop_first() {
            let Some(change) = self.difference.changes.get(&key).copied() else {
                continue;
            };
            let failure = self.failures.get(&key);
            if self.running.contains_key(&key) || failure.is_some_and(|f| f.retry_at > now) {
                continue;
            }
            let Some(item) = self.intended.shared(&key).or(self.current.shared(&key)) else {
                continue;
            };
            let apart = failure.is_some_and(|f| f.apart).then(|| item.owner());
            match item.batch() {
                None => ops.extend(self.ready(&key, change, &BTreeMap::new()).map(|a| self.start(vec![a], None))),
                Some(batch) if self.busy.contains(&batch) => {
                    self.queued.entry(batch).or_default().insert(key);
                }
                Some(batch) => {
                    let group = groups.entry((batch, apart)).or_default();
                    if let Some(action) = self.ready(&key, change, &group.after) {
                        queue.extend(self.neighbours(&action));
                        queue.insert(key.clone());
                        group.after.insert(key, (!matches!(action, Action::Delete(_))).then(|| action.item().clone()));
                        group.actions.push(action);
                    }
                }
            }
        }
        for ((batch, _), group) in groups {
            if group.actions.is_empty() {
                continue;
            }
            // One at a time: the next holds everything that became ready meanwhile.
            if self.busy.contains(&batch) {
                self.queued.entry(batch).or_default().extend(group.actions.iter().map(Action::key));
            } else {
                ops.push(self.start(group.actions, Some(batch)));
            }
        }
        ops.sort_by_key(|op| !matches!(op.actions.first(), Some(Action::Delete(_))));
        ops
    }

    /// Decides anew; everything may have become ready.
    fn refresh(&mut self) {
        self.difference = diff(&self.intended, &self.current, &self.facts);
        self.candidates = self.difference.changes.keys().cloned().collect();
        self.stale = false;
        self.round += 1;
    }

    fn start(&mut self, actions: Vec<Action<I>>, batch: Option<I::Batch>) -> Op<I> {
        self.last_op += 1;
        let id = OpId(self.last_op);
        for action in &actions {
            self.running.insert(action.key(), id);
            for need in needs(action) {
                *self.locks.entry(need.key).or_default() += 1;
            }
        }
        self.busy.extend(batch.clone());
        self.ops.insert(id, Running { actions: actions.clone(), batch, round: self.round });
        Op { id, actions }
    }

    /// The next action of a change, if it can run after what the batch (`after`) does before it.
    fn ready(&self, key: &I::Key, change: Change, after: &BTreeMap<I::Key, Option<Rc<I>>>) -> Option<Action<I>> {
        let have = match after.get(key) {
            Some(planned) => planned.as_ref(),
            None => self.current.shared(key),
        };
        let want = self.intended.shared(key);
        match (change, have, want) {
            (Change::Remove, Some(have), _) | (Change::Recreate, Some(have), _) if !after.contains_key(key) => {
                self.is_free(key, after).then(|| Action::Delete(have.clone()))
            }
            (Change::Create | Change::Recreate, None, Some(want)) => {
                self.has_needs(self.intended.needs(key), after).then(|| Action::Create(want.clone()))
            }
            (Change::Repair, Some(have), _) if !after.contains_key(key) => {
                self.has_needs(self.current.needs(key), after).then(|| Action::Create(have.clone()))
            }
            (Change::Modify, Some(have), Some(want)) if !after.contains_key(key) => {
                let action = || Action::Modify { old: have.clone(), new: want.clone() };
                self.has_needs(self.intended.needs(key), after).then(action)
            }
            _ => None,
        }
    }

    fn has_needs(&self, needs: &[Need<I::Key, I::Condition>], after: &BTreeMap<I::Key, Option<Rc<I>>>) -> bool {
        needs.iter().all(|need| match after.get(&need.key) {
            Some(planned) => planned.is_some() && self.facts.allow(need),
            None => self.is_met(need),
        })
    }

    /// Nothing needs it any more, neither what exists nor what runs.
    fn is_free(&self, key: &I::Key, after: &BTreeMap<I::Key, Option<Rc<I>>>) -> bool {
        let lets_go = |dependent: &I::Key, otherwise: bool| match after.get(dependent) {
            Some(None) => true,
            Some(Some(new)) => !new.needs().iter().any(|n| n.key == *key),
            None => otherwise,
        };
        let is_external = |k: &I::Key| self.current.shared(k).is_none_or(|i| i.external());
        !self.locks.contains_key(key)
            && self.current.dependents(key).all(|dependent| lets_go(dependent, is_external(dependent)))
            && self.facts.doubtful_dependents(key).all(|dependent| lets_go(dependent, false))
    }

    /// Keys whose changes may become ready by this action.
    pub(super) fn neighbours(&self, action: &Action<I>) -> BTreeSet<I::Key> {
        let key = action.key();
        let dependents = self.intended.dependents(&key).chain(self.current.dependents(&key)).cloned();
        dependents.chain(needs(action).map(|n| n.key)).collect()
    }
}

/// What the action's item needs, before and after.
pub(super) fn needs<I: Item>(action: &Action<I>) -> impl Iterator<Item = Need<I::Key, I::Condition>> {
    let (first, second) = match action {
        Action::Create(item) | Action::Delete(item) => (item, None),
        Action::Modify { old, new } => (old, Some(new)),
    };
    first.needs().into_iter().chain(second.into_iter().flat_map(|i| i.needs()))
}
