//! Items and graphs of them.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};

/// How an existing item may become another value of the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// In place; items that depend on it are not disturbed.
    Modify,
    /// Only by delete and create, together with everything that depends on it.
    Recreate,
}

/// Something that exists or should exist.
pub trait Item: Clone + PartialEq + Debug {
    /// Names the item: two values with one key are versions of the same thing.
    type Key: Ord + Clone + Debug + Display;

    /// The item's name.
    fn key(&self) -> Self::Key;

    /// What must exist for this item to exist. Derived from the value, so that an item read back from the system
    /// carries its dependencies with it.
    fn dependencies(&self) -> Vec<Self::Key>;

    /// How to get from this value to `new`; asked only for different values of one key.
    fn transition(&self, new: &Self) -> Transition;
}

/// A set of items with one value for each key. Dependencies come from the items themselves.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph<I: Item> {
    items: BTreeMap<I::Key, I>,
}

impl<I: Item> Default for Graph<I> {
    fn default() -> Self {
        Self { items: BTreeMap::new() }
    }
}

impl<I: Item> Graph<I> {
    /// An empty graph.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts an item in; returns the one of the same key that it replaces.
    pub fn insert(&mut self, item: I) -> Option<I> {
        self.items.insert(item.key(), item)
    }

    /// Takes an item out.
    pub fn remove(&mut self, key: &I::Key) -> Option<I> {
        self.items.remove(key)
    }

    /// The item of that key.
    #[must_use]
    pub fn get(&self, key: &I::Key) -> Option<&I> {
        self.items.get(key)
    }

    /// True when the key is in the graph.
    #[must_use]
    pub fn contains(&self, key: &I::Key) -> bool {
        self.items.contains_key(key)
    }

    /// All items by ascending key.
    pub fn iter(&self) -> impl Iterator<Item = (&I::Key, &I)> {
        self.items.iter()
    }

    /// Number of items.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Keys so ordered that each comes after those it depends on (within this graph). Items on a dependency cycle and
    /// items that depend on one are left out.
    #[must_use]
    pub fn topological(&self) -> Vec<I::Key> {
        let mut waiting: BTreeMap<&I::Key, usize> = BTreeMap::new();
        let mut dependents: BTreeMap<I::Key, Vec<&I::Key>> = BTreeMap::new();
        for (key, item) in &self.items {
            let mut n = 0;
            for dep in item.dependencies() {
                if self.items.contains_key(&dep) {
                    n += 1;
                    dependents.entry(dep).or_default().push(key);
                }
            }
            waiting.insert(key, n);
        }
        let mut ready: Vec<&I::Key> = waiting.iter().rev().filter(|(_, n)| **n == 0).map(|(k, _)| *k).collect();
        let mut order = Vec::with_capacity(self.items.len());
        while let Some(key) = ready.pop() {
            order.push(key.clone());
            for d in dependents.get(key).into_iter().flatten() {
                if let Some(n) = waiting.get_mut(d) {
                    *n -= 1;
                    if *n == 0 {
                        ready.push(d);
                    }
                }
            }
        }
        order
    }
}

impl<I: Item> FromIterator<I> for Graph<I> {
    fn from_iter<T: IntoIterator<Item = I>>(iter: T) -> Self {
        let mut graph = Self::new();
        for item in iter {
            graph.insert(item);
        }
        graph
    }
}

impl<I: Item> Extend<I> for Graph<I> {
    fn extend<T: IntoIterator<Item = I>>(&mut self, iter: T) {
        for item in iter {
            self.insert(item);
        }
    }
}
