//! A policy routing rule.

use super::{ItemKey, Keyed, Kind};
use holdfast_engine::Transition;
use std::fmt;

/// A routing rule for what comes in over one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRule {
    /// Lower is looked at first.
    pub priority: u32,
    /// Input interface.
    pub input: String,
    /// Table to look in.
    pub table: u32,
    /// Ignore routes of this prefix length or shorter; 0 = ignore default routes.
    pub suppress_prefix_length: Option<u32>,
}

impl Kind for PolicyRule {
    fn key(&self) -> ItemKey {
        ItemKey::PolicyRule((self.priority, self.input.clone()))
    }

    fn needs(&self) -> Vec<ItemKey> {
        vec![ItemKey::Link(self.input.clone())]
    }

    fn transition(&self, _: &Self) -> Transition {
        Transition::Recreate
    }
}

impl Keyed for PolicyRule {
    /// Priority and input interface.
    type Key = (u32, String);

    fn describe((priority, input): &Self::Key, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "routing rule {priority} for {input}")
    }
}
