//! Deciding: from what exists and what is intended to ordered actions.

use crate::graph::{Graph, Item, Transition};
use std::collections::{BTreeMap, BTreeSet};

/// Why an item of the current graph cannot be taken to be as its value says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// Its creation or deletion failed: it may be there whole, in part or not at all.
    Partial,
    /// A change failed: it is there, as before or as was wanted then.
    Changing,
}

/// One step towards the intended graph.
#[derive(Debug, Clone, PartialEq)]
pub enum Action<I: Item> {
    /// Make it; it is absent (or perhaps there in part after a failed creation).
    Create(I),
    /// Change it in place.
    Modify {
        /// As it is now.
        old: I,
        /// As it shall be.
        new: I,
    },
    /// Remove it.
    Delete(I),
}

impl<I: Item> Action<I> {
    /// Key of the item the action is about.
    #[must_use]
    pub fn key(&self) -> I::Key {
        match self {
            Self::Create(i) | Self::Delete(i) => i.key(),
            Self::Modify { new, .. } => new.key(),
        }
    }
}

/// Actions that turn `current` into `intended`, in an order that may be executed as it stands: first deletions, dependents
/// before what they depend on; then creations and changes, dependencies first.
///
/// Items in `doubt` are created again even if their value is as intended, and removed before they get another value.
/// An item is recreated when its value demands it, or when something it now depends on goes away or is recreated.
/// Intended items with a dependency that is nowhere, or on a cycle, get no creation: [`unsatisfied`] names them.
#[must_use]
pub fn diff<I: Item>(intended: &Graph<I>, current: &Graph<I>, doubt: &BTreeMap<I::Key, Doubt>) -> Vec<Action<I>> {
    let satisfied = satisfiable(intended);
    let mut doomed: BTreeSet<I::Key> = BTreeSet::new();
    for (key, have) in current.iter() {
        let goes = match intended.get(key) {
            None => true,
            Some(_) if !satisfied.contains(key) => true,
            Some(want) => {
                want != have
                    && (doubt.get(key) == Some(&Doubt::Partial) || have.transition(want) == Transition::Recreate)
            }
        };
        // Something it stands on has vanished under it: it can only be made anew.
        let orphan = have.dependencies().iter().any(|d| !current.contains(d));
        if goes || orphan {
            doomed.insert(key.clone());
        }
    }
    let mut dependents: BTreeMap<I::Key, Vec<I::Key>> = BTreeMap::new();
    for (key, have) in current.iter() {
        for dep in have.dependencies() {
            dependents.entry(dep).or_default().push(key.clone());
        }
    }
    let mut spread: Vec<I::Key> = doomed.iter().cloned().collect();
    while let Some(key) = spread.pop() {
        for d in dependents.get(&key).into_iter().flatten() {
            if doomed.insert(d.clone()) {
                spread.push(d.clone());
            }
        }
    }

    let mut actions = Vec::new();
    let order = current.topological();
    for key in order.iter().rev().filter(|k| doomed.contains(*k)) {
        if let Some(item) = current.get(key) {
            actions.push(Action::Delete(item.clone()));
        }
    }
    for key in intended.topological() {
        if !satisfied.contains(&key) {
            continue;
        }
        let Some(want) = intended.get(&key) else {
            continue;
        };
        match current.get(&key) {
            Some(have) if !doomed.contains(&key) => {
                if have != want {
                    actions.push(Action::Modify { old: have.clone(), new: want.clone() });
                } else if doubt.contains_key(&key) {
                    actions.push(Action::Create(want.clone()));
                }
            }
            _ => actions.push(Action::Create(want.clone())),
        }
    }
    actions
}

/// Intended items that cannot exist, each with the first dependency that is missing (or lies on a cycle).
#[must_use]
pub fn unsatisfied<I: Item>(intended: &Graph<I>) -> BTreeMap<I::Key, I::Key> {
    let ok = satisfiable(intended);
    intended
        .iter()
        .filter(|(k, _)| !ok.contains(*k))
        .map(|(k, item)| {
            let missing = item.dependencies().into_iter().find(|d| !ok.contains(d));
            (k.clone(), missing.unwrap_or_else(|| k.clone()))
        })
        .collect()
}

fn satisfiable<I: Item>(intended: &Graph<I>) -> BTreeSet<I::Key> {
    let mut ok = BTreeSet::new();
    for key in intended.topological() {
        if let Some(item) = intended.get(&key)
            && item.dependencies().iter().all(|d| ok.contains(d))
        {
            ok.insert(key);
        }
    }
    ok
}
