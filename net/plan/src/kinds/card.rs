//! A network card: it exists by itself, or not.

use super::{ItemKey, Keyed, Kind};
use holdfast_engine::Transition;
use std::fmt;

/// A physical interface that the kernel has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Kernel name.
    pub name: String,
}

impl Kind for Card {
    fn key(&self) -> ItemKey {
        ItemKey::Card(self.name.clone())
    }

    fn needs(&self) -> Vec<ItemKey> {
        Vec::new()
    }

    fn transition(&self, _: &Self) -> Transition {
        Transition::Modify
    }
}

impl Keyed for Card {
    type Key = String;

    fn describe(name: &String, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "network card {name}")
    }
}
