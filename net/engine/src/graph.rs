//! Sets of items, indexed by what they need.

use crate::item::{Item, Need};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// A key, and the items that two graphs have there.
pub(crate) type Joined<'a, I> = (&'a <I as Item>::Key, Option<&'a Rc<I>>, Option<&'a Rc<I>>);
type Needs<I> = Vec<Need<<I as Item>::Key, <I as Item>::Condition>>;

#[derive(Debug)]
struct Node<I: Item> {
    item: Rc<I>,
    needs: Needs<I>,
}

impl<I: Item> Clone for Node<I> {
    fn clone(&self) -> Self {
        Self { item: self.item.clone(), needs: self.needs.clone() }
    }
}

/// A set of items with one value for each key. Needs come from the items themselves.
#[derive(Debug)]
pub struct Graph<I: Item> {
    nodes: BTreeMap<I::Key, Node<I>>,
    /// Who needs a key, also one that is not in the graph.
    dependents: BTreeMap<I::Key, BTreeSet<I::Key>>,
}

impl<I: Item> Default for Graph<I> {
    fn default() -> Self {
        Self { nodes: BTreeMap::new(), dependents: BTreeMap::new() }
    }
}

impl<I: Item> Clone for Graph<I> {
    fn clone(&self) -> Self {
        Self { nodes: self.nodes.clone(), dependents: self.dependents.clone() }
    }
}

impl<I: Item> PartialEq for Graph<I> {
    fn eq(&self, other: &Self) -> bool {
        let same = |((k, a), (l, b)): (_, _)| k == l && is_same(a, b);
        self.len() == other.len() && self.iter().zip(other.iter()).all(same)
    }
}

/// Equal, at once where both are the same allocation.
pub(crate) fn is_same<I: PartialEq>(a: &Rc<I>, b: &Rc<I>) -> bool {
    Rc::ptr_eq(a, b) || a == b
}

impl<I: Item> Graph<I> {
    /// An empty graph.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts an item in; returns the one of the same key that it replaces.
    pub fn insert(&mut self, item: impl Into<Rc<I>>) -> Option<Rc<I>> {
        let item = item.into();
        let key = item.key();
        let replaced = self.remove(&key);
        let needs = item.needs();
        for need in &needs {
            self.dependents.entry(need.key.clone()).or_default().insert(key.clone());
        }
        self.nodes.insert(key, Node { item, needs });
        replaced
    }

    /// Takes an item out.
    pub fn remove(&mut self, key: &I::Key) -> Option<Rc<I>> {
        let node = self.nodes.remove(key)?;
        for need in &node.needs {
            if let Some(dependents) = self.dependents.get_mut(&need.key) {
                dependents.remove(key);
                if dependents.is_empty() {
                    self.dependents.remove(&need.key);
                }
            }
        }
        Some(node.item)
    }

    /// Where an item equals the one of `other`, both graphs share it from now on, and comparing them costs nothing.
    pub(crate) fn share_with(&mut self, other: &Self) {
        let mut others = other.nodes.iter().peekable();
        for (key, node) in &mut self.nodes {
            while others.next_if(|(k, _)| *k < key).is_some() {}
            if let Some((_, old)) = others.next_if(|(k, _)| *k == key)
                && is_same(&old.item, &node.item)
            {
                node.item = old.item.clone();
            }
        }
    }

    /// Every key of both graphs by ascending key, with the items that they have there.
    pub(crate) fn joined<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = Joined<'a, I>> {
        let (mut ours, mut theirs) = (self.iter().peekable(), other.iter().peekable());
        std::iter::from_fn(move || {
            let order = match (ours.peek(), theirs.peek()) {
                (Some((a, _)), Some((b, _))) => a.cmp(b),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return None,
            };
            let one = (order != Ordering::Greater).then(|| ours.next()).flatten();
            let two = (order != Ordering::Less).then(|| theirs.next()).flatten();
            let key = one.or(two)?.0;
            Some((key, one.map(|(_, i)| i), two.map(|(_, i)| i)))
        })
    }

    /// The item of that key.
    #[must_use]
    pub fn get(&self, key: &I::Key) -> Option<&I> {
        self.shared(key).map(|i| &**i)
    }

    /// The item of that key, to be shared.
    #[must_use]
    pub fn shared(&self, key: &I::Key) -> Option<&Rc<I>> {
        self.nodes.get(key).map(|n| &n.item)
    }

    /// True when the key is in the graph.
    #[must_use]
    pub fn contains(&self, key: &I::Key) -> bool {
        self.nodes.contains_key(key)
    }

    /// What the item of that key needs; nothing when it is not in the graph.
    pub fn needs(&self, key: &I::Key) -> &[Need<I::Key, I::Condition>] {
        self.nodes.get(key).map_or(&[], |n| &n.needs)
    }

    /// Items of the graph that need the key, by ascending key.
    pub fn dependents(&self, key: &I::Key) -> impl Iterator<Item = &I::Key> {
        self.dependents.get(key).into_iter().flatten()
    }

    /// All items by ascending key.
    pub fn iter(&self) -> impl Iterator<Item = (&I::Key, &Rc<I>)> {
        self.nodes.iter().map(|(k, n)| (k, &n.item))
    }

    /// Number of items.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
}

impl<I: Item> FromIterator<I> for Graph<I> {
    fn from_iter<T: IntoIterator<Item = I>>(iter: T) -> Self {
        let mut graph = Self::new();
        graph.extend(iter);
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
