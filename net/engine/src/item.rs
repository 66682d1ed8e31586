//! Items, what they need, and actions on them.

use std::fmt::{Debug, Display};
use std::rc::Rc;

/// How an existing item may become another value of the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// In place; items that depend on it are not disturbed.
    Modify,
    /// Only by delete and create, together with everything that depends on it.
    Recreate,
}

/// Another item that has to exist, and perhaps more of it than that, for as long as this one exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need<K, C> {
    /// The other item.
    pub key: K,
    /// What has to be true of it besides ([`crate::Fact::Conditions`]); `None` = it is enough that it exists as intended.
    pub condition: Option<C>,
}

impl<K, C> Need<K, C> {
    /// The other item exists.
    pub fn exists(key: K) -> Self {
        Self { key, condition: None }
    }

    /// The other item exists, and the condition is true of it.
    pub fn with(key: K, condition: C) -> Self {
        Self { key, condition: Some(condition) }
    }
}

impl<K: Display, C: Display> Display for Need<K, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.condition {
            None => write!(f, "{}", self.key),
            Some(condition) => write!(f, "{} ({condition})", self.key),
        }
    }
}

/// Something that exists or should exist.
pub trait Item: PartialEq + Debug {
    /// Names the item: two values with one key are versions of the same thing.
    type Key: Ord + Clone + Debug + Display;
    /// What can be true of an item besides that it exists, for example "has carrier".
    type Condition: Ord + Clone + Debug + Display;
    /// Names a group of items whose actions can go into one operation.
    type Batch: Ord + Clone + Debug;
    /// Whose item it is. One owner's fault in a batch does not keep the items of others out.
    type Owner: Ord + Clone + Debug;

    /// The item's name.
    fn key(&self) -> Self::Key;

    /// What must exist for this item to exist. Derived from the value, so that an item read back from the system
    /// carries its needs with it.
    fn needs(&self) -> Vec<Need<Self::Key, Self::Condition>>;

    /// How to get from this value to `new`; asked only for different values of one key.
    fn transition(&self, new: &Self) -> Transition;

    /// It comes and goes by itself: never created, changed or deleted here. The engine is told of it by [`crate::Fact`].
    fn external(&self) -> bool {
        false
    }

    /// While this other item exists, the item (and all that it needs) keeps its value where only recreation gives it another.
    /// Removal is not held up by this: what an external item needs itself is not removed under it.
    fn pinned_by(&self) -> Option<Self::Key> {
        None
    }

    /// Its actions may share an operation with others of this batch.
    fn batch(&self) -> Option<Self::Batch> {
        None
    }

    /// Whose it is.
    fn owner(&self) -> Option<Self::Owner> {
        None
    }
}

/// One step towards the intended graph.
#[derive(Debug, PartialEq)]
pub enum Action<I> {
    /// Create it; it is absent, or exists in part or as wanted after a failure.
    Create(Rc<I>),
    /// Change it in place.
    Modify {
        /// As it is now, or (after a failed change) as it was.
        old: Rc<I>,
        /// As it shall be.
        new: Rc<I>,
    },
    /// Delete it.
    Delete(Rc<I>),
}

impl<I> Clone for Action<I> {
    fn clone(&self) -> Self {
        match self {
            Self::Create(item) => Self::Create(item.clone()),
            Self::Modify { old, new } => Self::Modify { old: old.clone(), new: new.clone() },
            Self::Delete(item) => Self::Delete(item.clone()),
        }
    }
}

impl<I: Item> Action<I> {
    /// The item: as it shall be, or the one to delete.
    #[must_use]
    pub fn item(&self) -> &Rc<I> {
        match self {
            Self::Create(item) | Self::Delete(item) => item,
            Self::Modify { new, .. } => new,
        }
    }

    /// Key of the item the action is about.
    #[must_use]
    pub fn key(&self) -> I::Key {
        self.item().key()
    }

    /// What is done, for texts.
    #[must_use]
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Modify { .. } => "change",
            Self::Delete(_) => "delete",
        }
    }
}
