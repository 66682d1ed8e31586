//! Deciding: from what exists and what is intended to what has to change.

use crate::graph::{Graph, is_same};
use crate::item::{Item, Need, Transition};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Why an item of the current graph cannot be taken to be as its value says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// Its creation or deletion failed: it may exist whole, in part or not at all.
    Partial,
    /// A change failed: it exists, as before or as was wanted then.
    Changing,
}

/// What is known of items of the current graph besides their values.
#[derive(Debug, Clone)]
pub struct Facts<I: Item> {
    /// Items whose last action failed.
    pub doubt: BTreeMap<I::Key, Doubt>,
    /// The values that failed changes and recreations would have given: each item may have one of them, and need what that needs.
    pub tried: BTreeMap<I::Key, Vec<Rc<I>>>,
    /// What is true of items.
    pub conditions: BTreeMap<I::Key, BTreeSet<I::Condition>>,
}

impl<I: Item> Default for Facts<I> {
    fn default() -> Self {
        Self { doubt: BTreeMap::new(), tried: BTreeMap::new(), conditions: BTreeMap::new() }
    }
}

impl<I: Item> Facts<I> {
    /// Items that may need the key because of a change that failed.
    pub(crate) fn doubtful_dependents(&self, key: &I::Key) -> impl Iterator<Item = &I::Key> {
        let may_need = |item: &Rc<I>| item.needs().iter().any(|n| n.key == *key);
        self.tried.iter().filter(move |(_, items)| items.iter().any(may_need)).map(|(k, _)| k)
    }

    /// The need asks for no condition, or for one that is true.
    pub(crate) fn allow(&self, need: &Need<I::Key, I::Condition>) -> bool {
        let known = self.conditions.get(&need.key);
        need.condition.as_ref().is_none_or(|c| known.is_some_and(|k| k.contains(c)))
    }
}

/// What has to be done to an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Create it as intended.
    Create,
    /// Create it again with the value it has: an earlier action on it failed.
    Repair,
    /// Change it in place to the intended value.
    Modify,
    /// Delete it, then create it as intended.
    Recreate,
    /// Delete it.
    Remove,
}

/// The way from what exists to what is intended.
#[derive(Debug)]
pub struct Difference<I: Item> {
    /// What has to change. The order follows from the needs.
    pub changes: BTreeMap<I::Key, Change>,
    /// Items that stay for now although they would be recreated or removed, each with the item that it stays for.
    pub kept: BTreeMap<I::Key, I::Key>,
    /// Intended items that cannot exist now, each with the first need that is not met (or lies on a cycle).
    pub unmet: BTreeMap<I::Key, Need<I::Key, I::Condition>>,
}

impl<I: Item> Default for Difference<I> {
    fn default() -> Self {
        Self { changes: BTreeMap::new(), kept: BTreeMap::new(), unmet: BTreeMap::new() }
    }
}

/// What turns `current` into `intended`.
///
/// - An item is recreated when its value demands it, when it is in doubt and another value is wanted, or when something that it
///   needs is recreated or no longer exists. One that can be changed so that it no longer needs what goes is changed instead.
/// - An intended item with a need that is not met gets no creation, and is removed if it exists.
/// - What an external item needs is not removed while that one exists (it may be recreated), and what is pinned is not
///   recreated while the pinning item exists (it may be removed); the same holds for all that such an item needs itself. An item under which something has vanished is recreated all the same.
#[must_use]
pub fn diff<I: Item>(intended: &Graph<I>, current: &Graph<I>, facts: &Facts<I>) -> Difference<I> {
    let unmet = unmet(intended, current, facts);
    let broken = broken(current);
    let kept = kept(intended, current, &broken);
    let sight = Sight { intended, current, facts, unmet: &unmet, kept: &kept };
    let doomed = sight.doomed(broken);
    let mut changes = BTreeMap::new();
    for key in &doomed {
        changes.insert((*key).clone(), if sight.is_wanted(key) { Change::Recreate } else { Change::Remove });
    }
    for (key, want, have) in intended.joined(current) {
        let Some(want) = want.filter(|w| !w.external() && !unmet.contains_key(key) && !doomed.contains(key)) else {
            continue;
        };
        let change = match have {
            None => Some(Change::Create),
            Some(have) if !is_same(have, want) && sight.can_modify(key) => Some(Change::Modify),
            Some(_) => facts.doubt.contains_key(key).then_some(Change::Repair),
        };
        changes.extend(change.map(|c| (key.clone(), c)));
    }
    // What stays for another has to be whole.
    let doubtful = facts.doubt.keys().filter(|key| kept.contains_key(*key) && !sight.is_wanted(key));
    changes.extend(doubtful.map(|key| (key.clone(), Change::Repair)));
    Difference { changes, kept, unmet }
}

/// Intended items that cannot exist, with the need that is the cause.
fn unmet<I: Item>(
    intended: &Graph<I>,
    current: &Graph<I>,
    facts: &Facts<I>,
) -> BTreeMap<I::Key, Need<I::Key, I::Condition>> {
    let nodes: Vec<(&I::Key, bool)> = intended.iter().map(|(key, item)| (key, item.external())).collect();
    let is_present = |key: &I::Key| current.get(key).is_some_and(Item::external);
    // Needs met by other intended items are counted down; those met by external items are met now or not at all.
    let mut waiting: Vec<usize> = vec![0; nodes.len()];
    let mut dependents: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    let mut ready = Vec::new();
    for (index, (key, external)) in nodes.iter().enumerate() {
        let mut possible = !external;
        for need in intended.needs(key) {
            match nodes.binary_search_by(|(k, _)| (*k).cmp(&need.key)) {
                Ok(other) if !nodes[other].1 => {
                    waiting[index] += 1;
                    dependents[other].push(index);
                }
                _ => possible &= is_present(&need.key),
            }
            possible &= facts.allow(need);
        }
        if !possible {
            // Never counted down to nothing.
            waiting[index] = usize::MAX;
        } else if waiting[index] == 0 {
            ready.push(index);
        }
    }
    let mut met = vec![false; nodes.len()];
    while let Some(index) = ready.pop() {
        met[index] = true;
        for dependent in &dependents[index] {
            if waiting[*dependent] != usize::MAX {
                waiting[*dependent] -= 1;
                if waiting[*dependent] == 0 {
                    ready.push(*dependent);
                }
            }
        }
    }
    let is_met = |need: &Need<I::Key, I::Condition>| {
        let by_another = nodes.binary_search_by(|(k, _)| (*k).cmp(&need.key)).is_ok_and(|other| met[other]);
        facts.allow(need) && (by_another || is_present(&need.key))
    };
    let all = nodes.iter().zip(&met).filter(|((_, external), met)| !external && !**met);
    all.map(|((key, _), _)| {
        let cause = intended.needs(key).iter().find(|n| !is_met(n));
        ((*key).clone(), cause.cloned().unwrap_or_else(|| Need::exists((*key).clone())))
    })
    .collect()
}

/// Items that need something that does not exist any more, and those that need them.
fn broken<I: Item>(current: &Graph<I>) -> BTreeSet<&I::Key> {
    let orphan = |key: &I::Key| current.needs(key).iter().any(|n| !current.contains(&n.key));
    let mut spread: Vec<&I::Key> = current.iter().filter(|(k, i)| !i.external() && orphan(k)).map(|(k, _)| k).collect();
    let mut broken = BTreeSet::new();
    while let Some(key) = spread.pop() {
        if broken.insert(key) {
            spread.extend(current.dependents(key).filter(|d| current.shared(d).is_some_and(|i| !i.external())));
        }
    }
    broken
}

/// Items that stay for another one: each with that one.
fn kept<I: Item>(intended: &Graph<I>, current: &Graph<I>, broken: &BTreeSet<&I::Key>) -> BTreeMap<I::Key, I::Key> {
    let mut spread: Vec<(&I::Key, I::Key)> = Vec::new();
    for (key, item) in current.iter() {
        if item.external() {
            let needs = current.needs(key).iter().map(|n| &n.key);
            spread.extend(needs.filter(|n| !intended.contains(n)).map(|n| (n, key.clone())));
        } else if intended.contains(key)
            && let Some(by) = item.pinned_by().filter(|by| current.contains(by))
        {
            spread.push((key, by));
        }
    }
    let mut kept = BTreeMap::new();
    while let Some((key, by)) = spread.pop() {
        let stays = current.shared(key).is_some_and(|i| !i.external()) && !broken.contains(key);
        if stays && !kept.contains_key(key) {
            spread.extend(current.needs(key).iter().map(|n| (&n.key, by.clone())));
            kept.insert(key.clone(), by);
        }
    }
    kept
}

struct Sight<'a, I: Item> {
    intended: &'a Graph<I>,
    current: &'a Graph<I>,
    facts: &'a Facts<I>,
    unmet: &'a BTreeMap<I::Key, Need<I::Key, I::Condition>>,
    kept: &'a BTreeMap<I::Key, I::Key>,
}

impl<'a, I: Item> Sight<'a, I> {
    /// Intended, and all its needs can be met.
    fn is_wanted(&self, key: &I::Key) -> bool {
        self.intended.contains(key) && !self.unmet.contains_key(key)
    }

    /// Its value differs from the intended one and can be changed to it in place.
    fn can_modify(&self, key: &I::Key) -> bool {
        match (self.current.shared(key), self.intended.shared(key)) {
            (Some(have), Some(want)) => {
                !is_same(have, want)
                    && self.facts.doubt.get(key) != Some(&Doubt::Partial)
                    && have.transition(want) == Transition::Modify
            }
            _ => false,
        }
    }

    /// Everything to delete, for good or to be created again.
    fn doomed(&self, broken: BTreeSet<&'a I::Key>) -> BTreeSet<&'a I::Key> {
        let mut spread: Vec<&I::Key> = Vec::new();
        for (key, have, want) in self.current.joined(self.intended) {
            let Some(have) = have.filter(|h| !h.external() && !self.kept.contains_key(key)) else {
                continue;
            };
            let wanted = want.filter(|_| !self.unmet.contains_key(key));
            let stays = wanted.is_some_and(|want| is_same(have, want) || self.can_modify(key));
            if !stays || broken.contains(key) {
                spread.push(key);
            }
        }
        let mut doomed = BTreeSet::new();
        let mut spared: BTreeSet<&I::Key> = BTreeSet::new();
        loop {
            while let Some(key) = spread.pop() {
                if !doomed.insert(key) {
                    continue;
                }
                for dependent in self.current.dependents(key).chain(self.facts.doubtful_dependents(key)) {
                    let external = self.current.shared(dependent).is_some_and(|i| i.external());
                    if external || self.kept.contains_key(dependent) || doomed.contains(dependent) {
                        continue;
                    }
                    if self.leaves(dependent, key) {
                        spared.insert(dependent);
                    } else {
                        spread.push(dependent);
                    }
                }
            }
            // To be changed first, a spared item must not wait for anything that waits for deletions.
            spread.extend(spared.iter().filter(|s| !doomed.contains(*s) && self.rests_on(s, &doomed)));
            if spread.is_empty() {
                return doomed;
            }
        }
    }

    /// A change in place makes the item independent of `of`.
    fn leaves(&self, key: &I::Key, of: &I::Key) -> bool {
        self.is_wanted(key) && self.can_modify(key) && !self.intended.needs(key).iter().any(|n| n.key == *of)
    }

    /// What is intended for the item needs something doomed, directly or not.
    fn rests_on(&self, key: &I::Key, doomed: &BTreeSet<&I::Key>) -> bool {
        let mut seen = BTreeSet::new();
        let mut spread = vec![key];
        while let Some(key) = spread.pop() {
            for need in self.intended.needs(key) {
                if doomed.contains(&need.key) {
                    return true;
                }
                if seen.insert(&need.key) {
                    spread.push(&need.key);
                }
            }
        }
        false
    }
}
